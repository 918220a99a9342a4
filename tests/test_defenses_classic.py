"""Defenses that need no training (low-pass, high-pass, blind spot, robust crop) and the codec libraries' versions."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from windtunnel import images as image_sets
from windtunnel import registry
from windtunnel.backend import torch
from windtunnel.defenses import _codec, robustcrop
from windtunnel.defenses.base import Defense, repeat
from windtunnel.defenses.blindspot import BlindSpot
from windtunnel.defenses.gaussian import Gaussian
from windtunnel.defenses.highpass import HighPass
from windtunnel.defenses.lowpass import LowPass
from windtunnel.defenses.robustcrop import RobustCrop
from windtunnel.metrics.quality import psnr

DEFENSES = {
    "lowpass": LowPass(cutoff=0.5), "highpass": HighPass(cutoff=0.1), "blindspot": BlindSpot(),
    "robustcrop": RobustCrop(share=0.95),
}  # fmt: skip
FLOAT32 = 2e-6


@cache
def digits(n: int = 12) -> np.ndarray:
    """Pictures of the benchmark, read-only."""
    return _nchw(image_sets.build("photodigits", "test").images[:n])


@cache
def canvases(n: int = 12) -> np.ndarray:
    """The same pictures with what lies 4 pixels around them."""
    return _nchw(image_sets.build("photodigits", "test", canvas=True).images[:n])


def _nchw(pictures: np.ndarray) -> np.ndarray:
    found = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    found.setflags(write=False)
    return found


def grains(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(9).random((n, 3, height, width), dtype=np.float32)


def gradient(rule, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    variable = torch.tensor(x, requires_grad=True)
    (found,) = torch.autograd.grad(rule(variable), variable, torch.tensor(weights, dtype=variable.dtype))
    return found.numpy()


# ------------------------------------------------------------------------------------------------------------ contract


@pytest.mark.parametrize("name", DEFENSES)
def test_contract(name):
    defense = DEFENSES[name]
    flat = np.full((1, 3, 16, 16), 77 / 255, dtype=np.float32)
    for images in (digits(), grains(2, 21, 34), grains(1, 34, 21), np.zeros_like(flat), np.ones_like(flat), flat):
        before, result = images.copy(), defense.purify(images)
        assert result.images.shape == images.shape and result.images.dtype == np.float32
        assert result.images.flags.c_contiguous and not np.shares_memory(result.images, images)
        assert result.images.min() >= 0 and result.images.max() <= 1
        assert result.file_bits is None and result.payload_bits is None
        assert np.array_equal(images, before)
    np.testing.assert_allclose(defense.purify(flat).images, flat, atol=FLOAT32, err_msg="a flat picture has no detail")
    assert defense.purify(np.zeros((0, 3, 32, 32), np.float32)).images.shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="a defense takes"):
        defense.purify(digits().astype(np.float64))


@pytest.mark.parametrize("name", DEFENSES)
def test_rows_are_alone(name):
    defense, order = DEFENSES[name], np.random.default_rng(0).permutation(12)
    whole = defense.purify(digits()).images
    assert np.array_equal(defense.purify(digits()[order]).images, whole[order])
    for row in range(3):
        assert np.array_equal(defense.purify(digits()[row : row + 1]).images[0], whole[row])


@pytest.mark.parametrize("name", DEFENSES)
def test_rules_are_declared_finite_and_of_each_row_alone(name):
    defense, constants = DEFENSES[name], registry.card("defense", name).constants
    weights = np.random.default_rng(6).normal(size=digits().shape).astype(np.float32)
    for rounds in (1, 2):
        rules = defense.backward_rules(rounds)
        assert tuple(rules) == constants["rules"] == defense.rules
        for rule in rules.values():
            found = gradient(rule, digits(), weights)
            assert np.isfinite(found).all() and (np.abs(found).max(axis=(1, 2, 3)) > 0).all()
            alone = gradient(rule, digits()[2:3], weights[2:3])
            np.testing.assert_allclose(alone[0], found[2], rtol=1e-3, atol=1e-5 * np.abs(found).max())


@pytest.mark.parametrize(
    "defense, rule",
    [(LowPass(cutoff=0.3), "exact"), (LowPass(cutoff=0.4, shape="ideal"), "exact"), (HighPass(cutoff=0.05), "exact"),
     (BlindSpot(), "through-fit"), (BlindSpot(size=5), "fixed-fit"), (RobustCrop(share=0.9), "exact")],
)  # fmt: skip
@pytest.mark.parametrize("rounds", [1, 3])
def test_own_forward_is_the_defense(defense: Defense, rule, rounds):
    images = digits() * np.float32(0.5) + np.float32(0.25)  # far from the box: no clipping
    own = defense.backward_rules(rounds)[rule](torch.tensor(images)).numpy()
    np.testing.assert_allclose(own, repeat(defense, images, rounds).images, atol=2 * rounds * FLOAT32)


# ---------------------------------------------------------------------------------------------------------- frequencies


@pytest.mark.parametrize("height, width", [(32, 32), (20, 33)])
@pytest.mark.parametrize("cutoff, shape, order", [(0.3, "butterworth", 4), (0.6, "butterworth", 1), (0.5, "ideal", 4)])
def test_filters_equal_scipy(height, width, cutoff, shape, order):
    images = grains(2, height, width) * np.float32(0.2) + np.float32(0.4)
    radius = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    keep = radius <= cutoff if shape == "ideal" else 1 / (1 + (radius / cutoff) ** (2 * order))
    waves = scipy.fft.dctn(images.astype(np.float64), axes=(2, 3))
    low = scipy.fft.idctn(waves * keep, axes=(2, 3))
    settings = {"cutoff": cutoff, "shape": shape, "order": order}
    np.testing.assert_allclose(LowPass(**settings).purify(images).images, low, atol=FLOAT32)
    mean = images.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(HighPass(**settings).purify(images).images, images - low + mean, atol=FLOAT32)


def test_a_wave_is_halved_at_the_cut_off_and_gone_or_whole_away_from_it():
    place = (np.arange(32) + 0.5) / 32
    for k, low in ((4, 1.0), (16, 0.5), (30, 0.0)):  # radius .125, .5, .94 of Nyquist
        wave = np.float32(0.25) * np.cos(np.pi * k * place).astype(np.float32)
        image = np.broadcast_to(np.float32(0.5) + wave, (1, 3, 32, 32)).copy()
        for defense, share in ((LowPass(cutoff=0.5), low), (HighPass(cutoff=0.5), 1 - low)):
            result = defense.purify(image).images[0, 0, 0]
            np.testing.assert_allclose(result, 0.5 + share * wave, atol=0.003)


def test_the_ideal_filter_is_a_projection_and_keeps_everything_beyond_the_corner():
    images = digits() * np.float32(0.5) + np.float32(0.25)
    for defense in (LowPass(cutoff=0.4, shape="ideal"), HighPass(cutoff=0.1, shape="ideal")):
        once, twice = repeat(defense, images, 1).images, repeat(defense, images, 2).images
        np.testing.assert_allclose(once, twice, atol=FLOAT32)
        assert np.abs(once - images).max() > 0.01
    np.testing.assert_allclose(LowPass(cutoff=1.42, shape="ideal").purify(images).images, images, atol=FLOAT32)


def test_the_mean_of_every_channel_is_kept():
    images = grains(2, 24, 24) * np.float32(0.2) + np.float32(0.4)
    for defense in (LowPass(cutoff=0.2), HighPass(cutoff=0.2)):
        kept = defense.purify(images).images.mean(axis=(2, 3))
        np.testing.assert_allclose(kept, images.mean(axis=(2, 3)), atol=FLOAT32)


def test_the_gradient_of_a_filter_is_the_filter():
    weights = grains(2, 20, 33)
    rule = HighPass(cutoff=0.2).backward_rules(2)["exact"]
    np.testing.assert_allclose(
        gradient(rule, grains(2, 20, 33), weights), rule(torch.tensor(weights)).numpy(), atol=FLOAT32
    )


# ----------------------------------------------------------------------------------------------------------- blind spot


@pytest.mark.parametrize("size", [3, 5])
def test_blind_spot_is_j_invariant_for_a_given_filter(size):
    defense, image = BlindSpot(size=size), digits()[1].astype(np.float64)
    weights, means = defense.fit(image)
    before, moved = defense.apply(image, weights, means), image.copy()
    for y, x in ((0, 0), (0, 31), (13, 17), (31, 5)):
        moved = image.copy()
        moved[:, y, x] += (0.3, -0.2, 0.5)
        after = defense.apply(moved, weights, means)
        assert np.array_equal(after[:, y, x], before[:, y, x])
        assert np.abs(after - before).max() > 0.01, "the neighbours do see it"


@pytest.mark.parametrize("size, ridge", [(3, 0.001), (5, 0.1)])
def test_blind_spot_equals_scikit_learns_ridge_regression(size, ridge):
    from sklearn.linear_model import Ridge

    for image in digits()[:3].astype(np.float64):
        reach, centre = size // 2, image - image.mean(axis=(1, 2), keepdims=True)
        padded = np.pad(centre, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
        windows = np.delete(windows.reshape(3, -1, size * size), size * size // 2, axis=2)
        samples = windows.transpose(1, 0, 2).reshape(windows.shape[1], -1)
        strength = ridge * np.square(samples).sum() / samples.shape[1] + 1e-7 * len(samples)
        model = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(samples, centre.reshape(3, -1).T)
        wanted = model.predict(samples).T.reshape(image.shape) + image.mean(axis=(1, 2), keepdims=True)
        result = BlindSpot(size=size, ridge=ridge).purify(image[None].astype(np.float32)).images[0]
        np.testing.assert_allclose(result, np.clip(wanted, 0, 1), atol=2e-6)


@pytest.mark.parametrize("noise", [0.05, 0.1])
def test_blind_spot_removes_noise_better_than_any_gaussian_blind_to_the_pixel(noise):
    """The paper's own baseline: a Gaussian whose window has no centre, its width the best in hindsight."""
    clean = digits(100)
    noisy = np.clip(clean + np.random.default_rng(3).normal(0, noise, clean.shape), 0, 1).astype(np.float32)
    found = psnr(clean, BlindSpot().purify(noisy).images).mean()
    blind = []
    for sigma in (0.4, 0.6, 0.8, 1.0, 1.5):
        impulse = np.zeros((9, 9))
        impulse[4, 4] = 1
        window = scipy.ndimage.gaussian_filter(impulse, sigma)
        window[4, 4] = 0
        result = scipy.ndimage.convolve(noisy, window[None, None] / window.sum(), mode="mirror")
        blind.append(psnr(clean, result.astype(np.float32)).mean())
    assert found > max(blind) + 0.3
    assert found > psnr(clean, noisy).mean() + 3
    if noise == 0.05:
        gaussian = max(
            psnr(clean, Gaussian(sigma=s).purify(noisy).images).mean() for s in (0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
        )
        assert found > gaussian, "even one that sees the pixel and has its width from hindsight"


def test_noise_that_nothing_predicts_is_not_kept():
    grey = np.full((1, 3, 64, 64), 0.5) + np.random.default_rng(2).normal(0, 0.05, (1, 3, 64, 64))
    left = BlindSpot().purify(grey.astype(np.float32)).images - 0.5
    assert left.std() < 0.2 * 0.05


def test_through_fit_is_the_whole_derivative_and_fixed_fit_is_not():
    defense, image = BlindSpot(), digits()[4:5].astype(np.float64)
    generator = np.random.default_rng(1)
    weights, direction = generator.normal(size=image.shape), generator.normal(size=image.shape)

    def value(x: np.ndarray) -> float:
        return float((defense.apply(x[0], *defense.fit(x[0])) * weights[0]).sum())

    step = 1e-5
    wanted = (value(image + step * direction) - value(image - step * direction)) / (2 * step)
    rules = defense.backward_rules()
    assert (gradient(rules["through-fit"], image, weights) * direction).sum() == pytest.approx(wanted, rel=1e-5)
    fitted = defense.fit(image[0])
    held = (defense.apply((image + direction)[0], *fitted) - defense.apply(image[0], *fitted)) * weights[0]
    assert (gradient(rules["fixed-fit"], image, weights) * direction).sum() == pytest.approx(held.sum(), rel=1e-9)
    assert abs(held.sum() - wanted) > 1e-3 * abs(wanted), "the two rules differ"


# ---------------------------------------------------------------------------------------------------------- robust crop


def all_shifts(image: np.ndarray) -> np.ndarray:
    """Every cyclic shift of a [3, H, W] picture."""
    _, height, width = image.shape
    return np.stack([np.roll(image, (y, x), axis=(1, 2)) for y in range(height) for x in range(width)])


def checked() -> dict[str, np.ndarray]:
    """Pictures that try the rule: natural ones, off the 8-bit grid, noise, and ones full of ties."""
    generator = np.random.default_rng(8)
    spots = np.zeros((3, 12, 12), dtype=np.float32)
    spots[:, [3, 3, 9, 9], [2, 8, 2, 8]] = 1.0  # a period of 6 both ways, but for one spot's colour
    spots[1, 9, 8] = 0.5
    line = np.tile(generator.random(10, dtype=np.float32), (3, 6, 1))
    return {
        "digit": digits()[0], "other digit": digits()[5], "between the levels": grains(1, 32, 32)[0],
        "two colours": generator.integers(0, 2, (3, 12, 12)).astype(np.float32),
        "chessboard": (np.indices((8, 6)).sum(0) % 2).astype(np.float32)[None].repeat(3, 0),
        "spots": spots, "stripes": line, "flat": np.full((3, 5, 8), np.float32(0.3)),
        "below the 8-bit level": np.float32(0.5) + np.float32(1e-4) * generator.random((3, 8, 8), dtype=np.float32),
    }  # fmt: skip


@pytest.mark.parametrize("name", checked())
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_every_cyclic_shift_gives_the_same_bytes(name, share):
    results = RobustCrop(share=share).purify(all_shifts(checked()[name])).images
    assert len({row.tobytes() for row in results}) == 1


def test_pictures_full_of_ties_are_what_they_seem():
    """The cases above do reach the last tie-break; without it the first of equals would depend on the shift."""
    for name in ("chessboard", "stripes", "below the 8-bit level"):
        image = checked()[name]
        grey = np.rint(image * np.float32(255)).astype(np.int64)
        seams = RobustCrop(share=1.0)._seams(grey, 1)
        assert (seams == seams.max()).sum() > 1, name


def test_the_border_of_most_pictures_is_found():
    whole = RobustCrop(share=1.0).purify(digits(200)).images
    kept = (whole == digits(200)).all(axis=(1, 2, 3)).mean()
    assert kept > 0.85


def test_the_window_follows_what_stands_out():
    image = np.full((3, 32, 32), np.float32(0.4)) + np.float32(0.002) * np.arange(32, dtype=np.float32)[:, None]
    image = image + np.float32(0.003) * np.arange(32, dtype=np.float32)
    image[:, 0, :] -= np.float32(0.1)  # a border that can be found
    image[:, :, 0] -= np.float32(0.1)
    image[:, 2:8, 20:26] = np.float32(0.95)
    lines, columns = RobustCrop(share=0.5).select(image)
    assert lines.min() == 0 and lines.max() == 15
    assert 8 < columns.min() <= 20 and columns.max() >= 25
    result = RobustCrop(share=0.5).purify(image[None]).images[0]
    assert set(np.unique(result)) <= set(np.unique(image)), "pixels are moved, never changed"
    assert np.array_equal(result[:, 8:24, 8:24], image[:, 0:16, columns.min() : columns.min() + 16])
    assert np.array_equal(result[:, 0], result[:, 8]) and np.array_equal(result[:, :, 31], result[:, :, 23])


def test_a_realistic_shift_is_not_covered_and_usually_harmless():
    """Cut one pixel off from the larger canvas: the middle is often, not always, the same picture."""
    defense = RobustCrop(share=0.8)
    centre = defense.purify(np.ascontiguousarray(canvases(100)[:, :, 4:36, 4:36])).images
    moved = defense.purify(np.ascontiguousarray(canvases(100)[:, :, 4:36, 5:37])).images
    same = (centre == moved).all(axis=(1, 2, 3)).mean()
    assert 0.2 < same < 1.0
    bare = (canvases(100)[:, :, 4:36, 4:36] == canvases(100)[:, :, 4:36, 5:37]).all(axis=(1, 2, 3)).mean()
    assert bare == 0


def test_the_gradient_goes_back_to_the_pixels_that_were_taken():
    defense, images = RobustCrop(share=0.9), digits()[:3]
    weights = np.random.default_rng(4).normal(size=images.shape).astype(np.float32)
    found = gradient(defense.backward_rules()["exact"], images, weights)
    wanted = np.zeros(images.shape)
    for row, image in enumerate(images):
        lines, columns = defense.select(image)
        for y, line in enumerate(lines):
            for x, column in enumerate(columns):
                wanted[row, :, line, column] += weights[row, :, y, x]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_lower_median_and_pyramids_are_what_the_docstring_says():
    assert robustcrop._pyramids(3, 5).tolist() == [[1, 2, 1, 0, 0], [0, 1, 2, 1, 0], [0, 0, 1, 2, 1]]
    assert robustcrop._pyramids(4, 4).tolist() == [[1, 2, 2, 1]]
    assert robustcrop._placed(7, 3, 8).tolist() == [7, 7, 7, 8, 9, 9, 9, 9]


# ------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    "build",
    [
        lambda: LowPass(cutoff=0.0),
        lambda: HighPass(cutoff=1.5),
        lambda: LowPass(cutoff=0.5, shape="gauss"),
        lambda: HighPass(cutoff=0.5, order=0),
        lambda: BlindSpot(size=4),
        lambda: BlindSpot(ridge=0.0),
        lambda: RobustCrop(share=1.01),
        lambda: RobustCrop(share=0.9, jump=0),
    ],
)
def test_settings_outside_their_range_are_refused(build):
    with pytest.raises(ValueError, match="must"):
        build()


# -------------------------------------------------------------------------------------------------------------- codecs


def test_codec_versions_are_those_of_the_libraries():
    from PIL import features

    found = _codec.codec_versions(["webp", "jpg", "jpg_2000", "avif"])
    assert list(found) == sorted(found), "an identity has one order"
    assert found["libwebp"] == features.version("webp")
    assert found["openjpeg"] == features.version("jpg_2000")
    assert found["libavif"] == features.version("avif")
    jpeg = {name for name in found if "jpeg" in name and name != "openjpeg"}
    assert len(jpeg) == 1 and found[jpeg.pop()] is not None
    if features.check("avif"):
        assert "[enc]" in found["av1"], "libavif's own version does not tell which encoder made the file"
    assert _codec.codec_versions([]) == {}
    with pytest.raises(ValueError, match="known: jpg"):
        _codec.codec_versions(["heif"])


def test_every_codec_method_names_a_feature_whose_library_is_known():
    for method in ("avif", "jpeg", "jpeg2000", "webp"):
        feature = registry.card("defense", method).constants["pillow_feature"]
        assert feature in _codec.LIBRARIES
        assert _codec.missing_codec(feature) is None


def test_a_missing_codec_has_no_version_and_a_sentence(monkeypatch):
    monkeypatch.setattr(_codec.features, "check", lambda feature: False)
    assert _codec.codec_versions(["avif", "jpg"]) == {"av1": None, "libavif": None, "libjpeg": None}
    assert "without 'avif'" in _codec.missing_codec("avif")


def test_the_plan_can_ask_for_codecs_without_torch():
    code = (
        "import sys; from windtunnel.defenses._codec import codec_versions; codec_versions(['jpg', 'avif']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'kornia', 'skimage')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
