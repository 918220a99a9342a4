"""Random defenses: dice drawn per row, the real thing in numpy, and the same with a gradient."""

from __future__ import annotations

import numpy as np
import pytest
from attack_samples import digits_net, linear_samples
from test_defenses import noise, photographs

from windtunnel import registry
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import torch
from windtunnel.defenses.base import Purified, RandomDefense, apply_draws, repeat
from windtunnel.defenses.random_noise import RandomNoise
from windtunnel.defenses.random_pad import RandomPad, placed
from windtunnel.engine import RowRandom, run_attack

DEFENSES = {"random_pad": RandomPad(), "random_noise": RandomNoise(sigma=16)}


def generators(n: int, seed: int = 0) -> list[np.random.Generator]:
    return RowRandom.keyed(seed, [f"sample-{i}" for i in range(n)]).streams


@pytest.fixture(params=sorted(DEFENSES))
def defense(request: pytest.FixtureRequest) -> RandomDefense:
    return DEFENSES[request.param]


# ------------------------------------------------------------------------------------------------------- the contract


def test_the_plan_reads_what_the_class_says(defense):
    name = {type(d): name for name, d in DEFENSES.items()}[type(defense)]
    constants = registry.card("defense", name).constants
    assert constants["is_random"] is True and constants["rules"] == defense.rules == ("identity", "exact")
    assert set(constants["generic_rules"]) <= set(defense.rules) and constants["algorithm_version"] >= 1
    draws = [defense.draw(generators(2), (3, 32, 32))]
    assert tuple(defense.backward_rules_drawn(draws)) == defense.rules
    with pytest.raises(TypeError, match="random"):
        defense.purify(photographs()[:2])


@pytest.mark.parametrize("images", [photographs(), noise(), noise(2, 21, 34), np.ones((2, 3, 32, 32), np.float32)])
def test_shape_type_range_and_input_untouched(defense, images):
    before = images.copy()
    result = repeat(defense, images, 2, generators(len(images)))
    assert isinstance(result, Purified) and result.file_bits is None and result.payload_bits is None
    assert result.images.shape == images.shape and result.images.dtype == np.float32
    assert result.images.flags.c_contiguous and not np.shares_memory(result.images, images)
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert np.array_equal(images, before)
    assert repeat(defense, images[:0], 1, []).images.shape == (0, *images.shape[1:])


def test_wrong_input_is_refused(defense):
    draw = defense.draw(generators(2), (3, 32, 32))
    images = photographs()[:2]
    for wrong in (images.astype(np.float64), images + np.float32(1), images * np.float32(np.nan)):
        with pytest.raises(ValueError, match="a defense takes"):
            defense.purify_drawn(wrong, draw)


def test_the_same_generators_give_the_same_bytes_and_others_other_ones(defense):
    images = photographs()
    one = repeat(defense, images, 3, generators(len(images))).images
    assert np.array_equal(one, repeat(defense, images, 3, generators(len(images))).images)
    other = repeat(defense, images, 3, generators(len(images), seed=1)).images
    assert (np.abs(one - other).reshape(len(images), -1).max(1) > 0).all()
    once = repeat(defense, images, 1, generators(len(images))).images
    assert np.abs(one - once).max() > 0.01, "every round throws its own dice"


def test_the_dice_of_a_row_are_its_own_generator_s(defense):
    images = photographs()
    whole = repeat(defense, images, 2, generators(len(images))).images
    order = np.random.default_rng(0).permutation(len(images))
    streams = generators(len(images))
    shuffled = repeat(defense, np.ascontiguousarray(images[order]), 2, [streams[i] for i in order]).images
    assert np.array_equal(shuffled, whole[order])
    for row in range(len(images)):
        stream = generators(len(images))[row]
        assert np.array_equal(repeat(defense, images[row : row + 1], 2, [stream]).images[0], whole[row])


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_exact_rule_is_the_defense_with_the_same_dice(defense, rounds):
    for images in (photographs(), noise(3, 21, 34)):
        streams = generators(len(images))
        draws = [defense.draw(streams, images.shape[1:]) for _ in range(rounds)]
        real = apply_draws(defense, images, draws).images
        exact = defense.backward_rules_drawn(draws)["exact"](torch.tensor(images)).numpy()
        np.testing.assert_allclose(exact, real, atol=2e-6)


def test_the_gradient_of_the_exact_rule_is_that_of_the_real_defense(defense):
    """Central differences of the numpy code along random directions, rows alone, away from the box."""
    draw_random = np.random.default_rng(3)
    images = (0.45 + 0.1 * noise(4)).astype(np.float32)
    draws = [defense.draw(generators(4), (3, 32, 32)) for _ in range(2)]
    weights = draw_random.normal(size=images.shape).astype(np.float32)
    x = torch.tensor(images, requires_grad=True)
    found = defense.backward_rules_drawn(draws)["exact"](x)
    (gradient,) = torch.autograd.grad(found, x, torch.tensor(weights))
    direction = draw_random.normal(size=images.shape).astype(np.float32)
    high, low = (apply_draws(defense, images + s * np.float32(0.002) * direction, draws).images for s in (1, -1))
    wanted = ((high.astype(np.float64) - low) / 0.004 * weights).sum((1, 2, 3))
    slope = (gradient.numpy().astype(np.float64) * direction).sum((1, 2, 3))
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=0.02)


def test_an_attack_through_it_runs_and_repeats_itself(defense):
    model, images, labels = digits_net()
    images, labels = images[:20], labels[:20]
    ids = [f"sample-{i}" for i in range(20)]
    options = {"eps": 0.06, "norm": "linf", "mode": "full", "defense": defense, "rule": "exact", "seed": 3}
    one = run_attack(model, PGD(steps=4), images, labels, ids, **options)
    two = run_attack(model, PGD(steps=4), images[::-1], labels[::-1], ids[::-1], batch_size=7, **options)
    np.testing.assert_allclose(one.last, two.last[::-1], atol=2e-6)
    assert not one.bound_violation.any() and (one.n_backward > 0).all() and np.abs(one.last - images).max() > 0.05


# ------------------------------------------------------------------------------------------------------ each its maths


def test_noise_is_normal_and_clipped():
    grey = np.full((40, 3, 32, 32), 0.5, dtype=np.float32)
    drawn = repeat(RandomNoise(sigma=16), grey, 1, generators(40)).images.astype(np.float64) - 0.5
    n = drawn.size
    assert abs(drawn.mean()) < 4 * 16 / 255 / np.sqrt(n) and abs(drawn.std() / (16 / 255) - 1) < 4 / np.sqrt(2 * n)
    assert abs(((drawn / (16 / 255)) ** 4).mean() - 3) < 4 * np.sqrt(96 / n)  # the fourth moment of a normal
    black = repeat(RandomNoise(sigma=16), 0 * grey, 1, generators(40)).images
    assert abs((black == 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(n) and np.allclose(black, np.clip(drawn, 0, 1), atol=1e-7)


def test_the_exact_gradient_of_noise_stops_where_it_was_clipped():
    images, defense = np.zeros((2, 3, 8, 8), dtype=np.float32), RandomNoise(sigma=16)
    draws = [defense.draw(generators(2), (3, 8, 8))]
    x = torch.tensor(images, requires_grad=True)
    rules = defense.backward_rules_drawn(draws)
    (exact,) = torch.autograd.grad(rules["exact"](x).sum(), x)
    (identity,) = torch.autograd.grad(rules["identity"](x).sum(), x)
    assert np.array_equal(exact.numpy() == 1, draws[0]["noise"] > 0) and (identity == 1).all()
    assert set(exact.unique().tolist()) == {0.0, 1.0}


def test_noise_in_front_of_a_linear_model_makes_its_votes_normal():
    """Cohen et al., section 2: right with probability Phi(distance / sigma) where the boundary is a plane."""
    from scipy.stats import norm

    model, images, labels = linear_samples(2, margin=1.0)
    sigma = 1.0 / float(model.w.norm())  # the distance to the boundary, 18 grey levels
    shown = np.repeat(images[:1], 1000, axis=0)
    noisy = repeat(RandomNoise(sigma=255 * sigma), shown, 1, generators(1000)).images
    right = (model(torch.from_numpy(noisy)).argmax(1).numpy() == labels[0]).mean()
    assert abs(right - norm.cdf(1.0)) < 4 * np.sqrt(0.16 * 0.84 / 1000)


def test_pad_places_a_smaller_picture_on_black():
    images = np.full((300, 3, 32, 32), 0.75, dtype=np.float32)
    found = repeat(RandomPad(), images, 1, generators(300)).images
    sizes, places = set(), set()
    for picture in found:
        lit = picture[0] > 0
        rows, columns = np.nonzero(lit.any(1))[0], np.nonzero(lit.any(0))[0]
        assert lit.sum() == len(rows) * len(columns) and len(rows) == len(columns) == rows[-1] - rows[0] + 1
        np.testing.assert_allclose(picture[:, lit], 0.75, atol=1e-6)  # a constant stays: weights sum to 1
        sizes.add(len(rows))
        places.add((len(rows), int(rows[0]), int(columns[0])))
    assert sizes == {28, 29, 30, 31}
    # (1 + 1)^2 + 3^2 + 4^2 + 5^2 = 54 places; 300 throws miss few of them.
    assert len(places) > 45 and all(top + size <= 32 and left + size <= 32 for size, top, left in places)


@pytest.mark.parametrize("length", [28, 29, 31])
def test_pad_resizes_as_torch_does(length):
    image = torch.tensor(photographs()[:1])
    wanted = torch.nn.functional.interpolate(image, size=(length, length), mode="bilinear", align_corners=False)
    start = 32 - length
    matrix = placed(length, start, 32)
    found = matrix @ image.numpy()[0] @ matrix.T
    np.testing.assert_allclose(found[:, start:, start:], wanted[0].numpy(), atol=1e-6)
    assert (found[:, :start] == 0).all() and (found[:, :, :start] == 0).all()


def test_settings_outside_their_range_are_refused():
    for wrong in (lambda: RandomPad(least=1.0), lambda: RandomPad(least=0.0), lambda: RandomNoise(sigma=-1.0)):
        with pytest.raises(ValueError, match="must lie"):
            wrong()
