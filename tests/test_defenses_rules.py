"""Backward rules: their names, their gradients, how near they are to what they stand for, and where they mask."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch.nn.functional as functional
from PIL import Image
from test_defenses import METHODS, make, noise, photographs

from windtunnel import registry
from windtunnel.backend import torch
from windtunnel.defenses import rules as generic
from windtunnel.defenses._soft_jpeg import cosines, soft_jpeg, tables
from windtunnel.defenses.bits import Bits


def gradient(rule, x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The pull-back of fixed random output gradients."""
    variable = torch.tensor(x, requires_grad=True)
    output = rule(variable)
    assert output.shape == variable.shape
    assert output.dtype == variable.dtype
    if weights is None:
        weights = np.random.default_rng(4).normal(size=x.shape).astype(np.float32)
    (found,) = torch.autograd.grad(output, variable, torch.tensor(weights))
    return found.numpy()


def norms(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x.reshape(len(x), -1).astype(np.float64), axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_rules_are_those_that_the_plan_reads(method):
    constants, defense = registry.card("defense", method).constants, make(method)
    assert tuple(defense.backward_rules(3)) == defense.rules == constants["rules"]
    assert set(defense.generic_rules) <= set(defense.rules)
    assert set(defense.generic_rules) <= set(generic.generic_rules())
    assert len(defense.rules) >= 3, "the minimum over rules needs three"
    for needed in ("algorithm_version", "is_random", "generic_rules", "libraries"):
        assert needed in constants


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_nonzero_and_of_each_row_alone(method, rounds):
    for name, rule in make(method).backward_rules(rounds).items():
        for images in (photographs(), noise(2), noise(1, 24, 40)):
            found = gradient(rule, images)
            assert np.isfinite(found).all(), name
            assert np.all(norms(found) > 0), name
        weights = np.random.default_rng(6).normal(size=photographs().shape).astype(np.float32)
        whole = gradient(rule, photographs(), weights)
        alone = gradient(rule, photographs()[2:3], weights[2:3])
        np.testing.assert_allclose(alone[0], whole[2], rtol=1e-3, atol=1e-5 * np.abs(whole).max(), err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_rules_leave_their_input_alone(method):
    for rule in make(method).backward_rules(2).values():
        images = torch.tensor(photographs()[:2])
        rule(images)
        assert np.array_equal(images.numpy(), photographs()[:2])


# ---------------------------------------------------------------- generic rules


def test_generic_jpeg_is_one_soft_round():
    images = torch.tensor(photographs())
    assert torch.equal(make("webp").backward_rules(5)["jpeg"](images), soft_jpeg(50)(images))


def test_identity_passes_gradients_unchanged():
    weights = np.random.default_rng(6).normal(size=noise().shape).astype(np.float32)
    assert np.array_equal(gradient(generic.identity, noise(), weights), weights)
    assert np.array_equal(generic.identity(torch.tensor(noise())).numpy(), noise())


def test_blur_is_a_normalised_gaussian_of_five_pixels():
    impulse = torch.zeros(1, 3, 11, 11)
    impulse[0, 1, 5, 5] = 1.0
    response = generic.blur(impulse)[0].numpy()
    line = np.exp(-0.5 * np.arange(-2, 3) ** 2.0)
    wanted = np.outer(line, line) / line.sum() ** 2
    np.testing.assert_allclose(response[1, 3:8, 3:8], wanted, atol=1e-7)
    assert response[0].max() == response[2].max() == 0
    np.testing.assert_allclose(generic.blur(torch.full((1, 3, 9, 9), 0.3)).numpy(), 0.3, atol=1e-6)


def test_mirrored_neighbours_equal_torch_padding_and_outlive_it():
    images = torch.tensor(noise(2, 8, 9))
    padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
    neighbours = generic.shifts(images, 2)
    assert len(neighbours) == 25
    assert torch.equal(neighbours[7], padded[:, :, 1:9, 2:11])
    assert torch.equal(neighbours[12], images)
    assert generic.mirror(3, 5).tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]


# ---------------------------------------------------------------- own forms against the real defense


@pytest.mark.parametrize(
    "family, value, tolerance",
    [("gaussian", 5, 1e-6), ("gaussian", 25, 1e-6), ("median", 3, 0.0), ("median", 5, 0.0), ("bilateral", 5, 2e-5),
     ("bilateral", 30, 2e-5)],
)  # fmt: skip
@pytest.mark.parametrize("rounds", [1, 3])
def test_own_forward_is_the_defense(family, value, tolerance, rounds):
    from windtunnel.defenses.base import repeat

    defense = make(family, value)
    own = defense.backward_rules(rounds)["own"](torch.tensor(photographs())).numpy()
    np.testing.assert_allclose(own, repeat(defense, photographs(), rounds).images, atol=rounds * tolerance)


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_soft_bits_stay_within_half_a_level_and_do_not_vanish_with_rounds(depth):
    defense, images = Bits(depth=depth), noise()
    step = 1.0 / defense.steps
    soft = defense.backward_rules()["own"](torch.tensor(images)).numpy()
    assert np.abs(soft - defense.purify(images).images).max() <= 0.5 * step + 1e-6
    real = defense.purify(images).images
    assert np.abs(soft - real).mean() < 0.7 * np.abs(images - real).mean(), "nearer to the defense than the input is"
    levels = np.arange(defense.steps + 1, dtype=np.float32) * np.float32(step)
    ones = np.ones((1, 3, 1, len(levels)), dtype=np.float32)
    slopes = gradient(defense.backward_rules()["own"], np.tile(levels, (1, 3, 1, 1)), ones)
    assert slopes.min() > 0.14, "smallest on a level"
    ten = gradient(defense.backward_rules(10)["own"], np.tile(levels, (1, 3, 1, 1)), ones)
    assert np.array_equal(ten, slopes), "the defense is idempotent: one round stands for all"


def test_gaussian_gradient_is_the_transposed_filter():
    x, y = noise(1), noise(2)[1:]
    defense = make("gaussian", 10)
    forward = (defense.purify(x).images.astype(np.float64) * y).sum()
    backward = (gradient(defense.backward_rules()["own"], x, y).astype(np.float64) * x).sum()
    assert forward == pytest.approx(backward, rel=1e-5)


# ---------------------------------------------------------------- differentiable JPEG


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 100])
def test_quantiser_steps_are_libjpegs(quality):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="JPEG", quality=quality)
    written = Image.open(buffer).quantization
    assert tables(quality)[0].tolist() == list(written[0])
    assert tables(quality)[1].tolist() == tables(quality)[2].tolist() == list(written[1])


def test_the_transform_is_the_orthonormal_dct():
    from scipy.fft import dctn

    block = np.random.default_rng(0).normal(size=(8, 8))
    np.testing.assert_allclose(cosines() @ block.reshape(-1), dctn(block, norm="ortho").reshape(-1), atol=1e-12)


@pytest.mark.parametrize("quality", [25, 50, 75])
def test_the_soft_round_equals_kornias_on_grey_pictures(quality):
    """There kornia's luma path is the whole codec; given our tables at quality 50 its soft floor nearly keeps them."""
    from kornia.enhance.jpeg import jpeg_codec_differentiable

    grey = np.repeat(photographs()[:, :1], 3, axis=1)
    steps = torch.tensor(tables(quality).reshape(3, 1, 8, 8), dtype=torch.float32)
    kornias = jpeg_codec_differentiable(torch.tensor(grey), torch.tensor([50.0]), steps[0], steps[1]).numpy()
    # kornia takes colourless chroma as 127.5 of 255 and so shifts colours by half a level: compare brightness
    ours = soft_jpeg(quality)(torch.tensor(grey)).numpy()
    difference = 255 * np.abs(np.tensordot([0.299, 0.587, 0.114], ours - kornias, axes=(0, 1)))
    assert np.median(difference) < 0.05
    assert difference.mean() < 0.2


@pytest.mark.parametrize("quality", [25, 50, 75])
def test_the_soft_round_is_nearer_to_pillow_than_kornias(quality):
    real = make("jpeg", quality).purify(photographs(40)).images
    soft, kornias = (
        255 * np.abs(rule(quality)(torch.tensor(photographs(40))).numpy() - real).mean()
        for rule in (soft_jpeg, generic.kornia_jpeg)
    )
    assert soft < 1.6
    assert soft < 0.6 * kornias
    halved = make("jpeg420", quality).purify(photographs(40)).images
    assert 255 * np.abs(generic.kornia_jpeg(quality)(torch.tensor(photographs(40))).numpy() - halved).mean() < 2.0


def test_any_size_fits_and_padding_is_libjpegs():
    images = noise(2, 13, 22) * np.float32(0.2) + photographs(2)[:, :, :13, :22] * np.float32(0.8)
    real = make("jpeg", 75).purify(images).images
    soft = soft_jpeg(75)(torch.tensor(images)).numpy()
    assert 255 * np.abs(soft - real).mean() < 2.5


@pytest.mark.parametrize("family", ["jpeg", "jpeg420"])
def test_going_through_all_rounds_masks_the_gradient_and_one_round_does_not(family):
    """The field's classic trap: coefficients on the grid have a slope of 3 (c - round c)^2, nearly 0."""
    defense = make(family)
    lengths = {
        (name, rounds): norms(gradient(defense.backward_rules(rounds)[name], photographs(16))).mean()
        for name in ("surrogate-n", "surrogate-1")
        for rounds in (1, 2, 5, 10)
    }
    assert lengths["surrogate-n", 1] == lengths["surrogate-1", 1]
    assert lengths["surrogate-n", 10] < lengths["surrogate-n", 1] / 100
    through = [lengths["surrogate-n", rounds] for rounds in (1, 2, 5, 10)]
    assert through == sorted(through, reverse=True)
    assert lengths["surrogate-1", 10] == lengths["surrogate-1", 1]


def test_one_round_with_full_chroma_points_where_the_codec_goes():
    """A step along the soft round's gradient moves the real codec's output as asked, along kornia's less so."""
    jpeg, images = make("jpeg"), photographs(16)
    goal = np.random.default_rng(8).normal(size=images.shape).astype(np.float32)
    gained = {}
    for name, rule in (("soft", soft_jpeg(50)), ("kornia", generic.kornia_jpeg(50)), ("identity", generic.identity)):
        step = np.float32(8 / 255) * np.sign(gradient(rule, images, goal))
        moved = jpeg.purify(np.clip(images + step, 0, 1)).images - jpeg.purify(images).images
        gained[name] = float((moved * goal).sum())
    assert gained["soft"] > gained["kornia"] > 0
    assert gained["soft"] > gained["identity"]
