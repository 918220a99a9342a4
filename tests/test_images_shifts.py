"""Shifts against independent implementations, and their promise: a pure function of image and sample id."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from windtunnel import images
from windtunnel.images import photodigits, shifts
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.shifts import SHIFTS, apply_shift, shift_set

CASES = [(name, severity) for name, severities in SHIFTS.items() for severity in severities]


@pytest.fixture(scope="module")
def test_set() -> ImageSet:
    return photodigits.build("test")


@pytest.fixture(scope="module")
def canvas() -> ImageSet:
    return photodigits.build("test", canvas=True)


def test_the_planner_and_the_module_know_the_same_shifts():
    assert images.SHIFTS is SHIFTS
    assert set(shifts._FUNCTIONS) | set(images.CANVAS_SHIFTS) == set(SHIFTS)


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_any_subset_in_any_order_gives_the_same(test_set, canvas, name, severity):
    before = test_set.images.copy()
    whole = shift_set(test_set.take(range(80)), name, severity, canvas=canvas.take(range(80)))
    rows = [41, 3, 70]
    part = shift_set(test_set.take(rows), name, severity, canvas=canvas.take(rows))
    assert np.array_equal(part.images, whole.images[rows])
    assert whole.images.shape == (80, 32, 32, 3) and whole.images.dtype == np.uint8
    assert whole.labels.tolist() == test_set.labels[:80].tolist() and whole.source_ids == test_set.source_ids[:80]
    assert not np.array_equal(whole.images, test_set.images[:80])
    assert np.array_equal(test_set.images, before)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_noise_has_the_stated_distribution(severity):
    grey = np.full((60, 32, 32, 3), 128, dtype=np.uint8)
    ids = [f"n{i}" for i in range(60)]
    noise = apply_shift(grey, "gaussian_noise", severity, ids).astype(float) - 128
    sigma = 255 * {1: 0.04, 2: 0.08, 3: 0.10}[severity]
    n = noise.size
    assert abs(noise.mean()) < 4 * sigma / n**0.5
    assert abs(noise.var() - (sigma**2 + 1 / 12)) < 4 * sigma**2 * (2 / n) ** 0.5  # rounding adds a twelfth
    assert abs((np.abs(noise) < sigma).mean() - 0.6827) < 0.02
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert abs(kurtosis - 2.9) < 0.05  # twelve uniform draws: 3 - 1.2 / 12
    correlation = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert abs(correlation) < 0.02
    assert len({image.tobytes() for image in noise}) == 60, "every sample has its own noise"


def test_noise_differs_between_severities(test_set):
    first, second = (apply_shift(test_set.images[:4], "gaussian_noise", s, test_set.sample_ids[:4]) for s in (1, 2))
    difference = (first.astype(int) - test_set.images[:4]).ravel(), (second.astype(int) - test_set.images[:4]).ravel()
    assert abs(np.corrcoef(*difference)[0, 1]) < 0.05


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_blur_against_scipy(test_set, severity):
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    sigma = {1: 0.4, 2: 0.7, 3: 1.0}[severity]
    ours = apply_shift(test_set.images[:20], "gaussian_blur", severity, test_set.sample_ids[:20]).astype(float)
    theirs = gaussian_filter(test_set.images[:20].astype(float), sigma=(0, sigma, sigma, 0), mode="nearest", truncate=4)
    assert np.abs(ours - theirs).max() < 1.6
    assert np.abs(ours - theirs).mean() < 0.3  # rounding alone gives .25
    assert sum(shifts.BLUR_KERNEL[severity]) == 1024


def test_blur_and_contrast_leave_a_flat_image_alone():
    for value in (0, 1, 77, 254, 255):
        flat = np.full((1, 32, 32, 3), value, dtype=np.uint8)
        for name in ("gaussian_blur", "contrast"):
            for severity in (1, 2, 3):
                assert np.array_equal(apply_shift(flat, name, severity, ["x"]), flat)


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_contrast_against_its_formula(test_set, severity):
    share = {1: 0.75, 2: 0.40, 3: 0.15}[severity]
    x = test_set.images[:50].astype(float)
    mean = x.mean(axis=(1, 2), keepdims=True)
    ours = apply_shift(test_set.images[:50], "contrast", severity, test_set.sample_ids[:50])
    assert np.abs(ours - ((x - mean) * share + mean)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (2, 58), (3, 40)])
def test_jpeg_is_pillows(test_set, severity, quality):
    ours = apply_shift(test_set.images[:5], "jpeg_artefacts", severity, test_set.sample_ids[:5])
    for image, found in zip(test_set.images[:5], ours, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
        assert np.array_equal(np.array(Image.open(buffer)), found)


@pytest.mark.parametrize("name", ["gaussian_noise", "gaussian_blur", "contrast", "jpeg_artefacts"])
def test_a_higher_severity_changes_more(test_set, name):
    change = [
        np.abs(
            apply_shift(test_set.images[:100], name, s, test_set.sample_ids[:100]).astype(int) - test_set.images[:100]
        ).mean()
        for s in (1, 2, 3)
    ]
    assert change[0] < change[1] < change[2]


def directions_found(original: np.ndarray, shifted: np.ndarray, severity: int, shift) -> list[tuple[int, int]]:
    found = []
    for before, after in zip(original, shifted, strict=True):
        fits = [d for d in shifts.DIRECTIONS.tolist() if np.array_equal(shift(before, d, severity), after)]
        assert fits, "the shifted image is none of the eight"
        found.append(tuple(fits[0]))
    return found


@pytest.mark.parametrize("severity", [1, 2, 4])
def test_cyclic_shift_is_a_roll(test_set, severity):
    shifted = apply_shift(test_set.images, "cyclic_shift", severity, test_set.sample_ids)
    found = directions_found(
        test_set.images, shifted, severity, lambda x, d, k: np.roll(x, (k * d[0], k * d[1]), axis=(0, 1))
    )
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 8 and counts.min() > 35, "all eight directions, evenly"


@pytest.mark.parametrize("severity", [1, 2, 4])
def test_pixel_shift_shows_more_of_the_scene(test_set, canvas, severity):
    shifted = apply_shift(test_set.images, "pixel_shift", severity, test_set.sample_ids, canvas=canvas.images)

    def window(x, d, k):
        return x[4 - k * d[0] : 36 - k * d[0], 4 - k * d[1] : 36 - k * d[1]]

    found = directions_found(canvas.images, shifted, severity, window)
    assert len(set(found)) == 8
    # what both show is the same picture, moved
    for i in range(30):
        dy, dx = (severity * step for step in found[i])
        inner = slice(4, 28)
        moved = shifted[i, 4 + dy : 28 + dy, 4 + dx : 28 + dx]
        assert np.array_equal(moved, test_set.images[i, inner, inner])


def test_the_digit_stays_whole_under_the_largest_shift(monkeypatch):
    """Glyph boxes keep 4 pixels from the border: no shift of at most 4 cuts a digit."""
    from windtunnel.images import compose

    boxes = []
    masks = compose.masks

    def recorded(shapes, sizes, tops, lefts, size):
        boxes.append((tops, tops + sizes, lefts, lefts + sizes))
        return masks(shapes, sizes, tops, lefts, size)

    monkeypatch.setattr(compose, "masks", recorded)
    photodigits.build("test")
    photodigits.training_epoch(0, 0)
    for top, bottom, left, right in boxes:
        assert min(top.min(), left.min()) >= 4 and max(bottom.max(), right.max()) <= 28


@pytest.mark.parametrize(
    ("name", "severity", "more", "words"),
    [
        ("fog", 1, {}, "unknown shift 'fog'; known: gaussian_noise"),
        ("contrast", 4, {}, "no severity 4; it has 1, 2, 3"),
        ("pixel_shift", 3, {}, "no severity 3; it has 1, 2, 4"),
        ("pixel_shift", 1, {}, "needs the larger canvas.*cyclic_shift"),
        ("pixel_shift", 4, {"canvas": np.zeros((2, 34, 34, 3), np.uint8)}, "no margin of 4"),
        ("pixel_shift", 1, {"canvas": np.ones((2, 40, 40, 3), np.uint8)}, "other images at its centre"),
    ],
)
def test_wrong_requests(name, severity, more, words):
    with pytest.raises(ImageSetError, match=words):
        apply_shift(np.zeros((2, 32, 32, 3), np.uint8), name, severity, ["a", "b"], **more)


def test_wrong_arrays(test_set, canvas):
    with pytest.raises(ImageSetError, match="uint8"):
        apply_shift(np.zeros((2, 32, 32, 3)), "contrast", 1, ["a", "b"])
    with pytest.raises(ImageSetError, match="2 images but 1 sample_ids"):
        apply_shift(np.zeros((2, 32, 32, 3), np.uint8), "contrast", 1, ["a"])
    with pytest.raises(ImageSetError, match="other samples"):
        shift_set(test_set, "pixel_shift", 1, canvas=canvas.take(range(3)))


def test_scenes_shift_too():
    scenes, canvas = images.build("photoscenes", "test"), images.build("photoscenes", "test", canvas=True)
    shifted = shift_set(scenes, "pixel_shift", 4, canvas=canvas)
    assert shifted.images.shape == (200, 128, 128, 3) and shifted.sample_ids == scenes.sample_ids
