"""The built-in image sets: deterministic, disjoint, and what their descriptions say."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from windtunnel import images
from windtunnel.images import (
    compose,
    glyphs,
    photodigits,
    photodigits64,
    photodigits_context,
    photoscenes,
    sources,
    textures,
)
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import Draws, keys_of, numbered_keys

ROOT = Path(__file__).parent.parent
ALL = [(dataset, split) for dataset in images.DATASETS for split in images.splits(dataset) if split != "train"]
# Of RECIPE_VERSION 1, on the source arrays named first. Changed pixels need a new RECIPE_VERSION, then new values here.
PINNED = {
    "training_digest": "9db4f076b66d789d212d7127794ee859f280bbbc44a71353cfa65a0ca0164089",
    "photodigits.test": "e7e3edf55b4e97dbd61ee0cbf81facc7527da741dda06e0437e838937d6dae1f",
    "photoscenes.test": "d530a9361df28fa49d34a723ff74251c58b64f4948668172eb2b480c54774057",
    "epoch": "75dd3a25bea7bf7adda209cc266d309d9412a268e5fb951ce3686c91a929c553",
    "photodigits64.test": "e24c0278d531d0a188dff64cc91e588545ce2cad0609f836cf36c39e944b077d",
    "photodigits64.epoch": "07a9e0cb3472ed6b2f67b152843f47cf7a4bd03fcca11d8fa874e0b8fec7ad95",
    "photodigits_context.test90": "e5417b00cccaca42710d6cb22683a860cb57b1a0cbcfe3bec5f2b3f956c2ef62",
    "photodigits_context.epoch": "7891fd798109b062db70c7a49576e514345f59add147f4bf0eae25a05c528326",
}


@pytest.fixture(scope="module")
def built() -> dict[tuple[str, str], ImageSet]:
    return {key: images.build(*key) for key in ALL}


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout


# ---- what the planner sees ------------------------------------------------------------------------------------------


def test_the_planner_imports_no_library():
    code = (
        "import sys; from windtunnel import images as i\n"
        "i.split_info('photodigits', 'test'); i.recipe_version('photoscenes'); i.SHIFTS\n"
        "print(sorted({'numpy', 'PIL', 'pyarrow', 'torch', 'sklearn', 'skimage', 'matplotlib'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


def test_building_imports_neither_scikit_nor_torch():
    code = (
        "import sys; from windtunnel import images as i\n"
        "i.build('photodigits', 'letters'); i.build('photodigits', 'faces')\n"
        "print(sorted({'torch', 'sklearn', 'skimage', 'matplotlib', 'pooch'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("dataset", images.DATASETS)
def test_split_table_and_module_agree(dataset):
    module = images.dataset_module(dataset)
    assert images.splits(dataset) == module.SPLITS
    assert images.recipe_version(dataset) == module.RECIPE_VERSION
    assert images.CLASSES[dataset] == 10


def test_unknown_names_list_the_known_ones():
    with pytest.raises(KeyError, match="photodigits, photoscenes"):
        images.build("mnist", "test")
    with pytest.raises(KeyError, match="letters"):
        images.split_info("photodigits", "tets")
    with pytest.raises(ImageSetError, match="no larger canvas"):
        images.build("photodigits", "science", canvas=True)
    for module in (photodigits, photoscenes, photodigits64, photodigits_context):
        with pytest.raises(ImageSetError, match="no split"):
            module.build("nothing")


# ---- every split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "split"), ALL)
def test_split_is_what_its_table_says(built, dataset, split):
    image_set, info = built[dataset, split], images.split_info(dataset, split)
    assert len(image_set) == info.n
    assert image_set.images.shape[1:] == (*info.size, 3)
    assert (image_set.labels is not None) == info.labelled
    assert image_set.images.min() >= 26 and image_set.images.max() <= 230, "the common contrast .8 x + .1"
    assert len(set(image_set.hashes)) == info.n, "no image twice"
    if info.labelled:
        counts = np.bincount(image_set.labels, minlength=10)
        assert len(counts) == 10 and counts.min() > info.n / 20


def test_sample_ids_name_their_split(built):
    for (_, split), image_set in built.items():
        assert all(sample_id.startswith(f"{split}-") for sample_id in image_set.sample_ids)


def test_train_split():
    train, info = photodigits.build("train"), images.split_info("photodigits", "train")
    assert len(train) == info.n == 2100
    sources_seen, counts = np.unique(train.source_ids, return_counts=True)
    assert set(counts) == {2} and len(sources_seen) == 1050


def test_same_pixels_in_another_process(built):
    code = (
        "import json; from windtunnel import images as i\n"
        "every = [(d, s) for d in i.DATASETS for s in i.splits(d) if s != 'train']\n"
        "print(json.dumps({f'{d}.{s}': i.build(d, s).digest() for d, s in every}))"
    )
    assert json.loads(run_python(code)) == {f"{d}.{s}": image_set.digest() for (d, s), image_set in built.items()}


def test_second_build_is_the_same(built):
    for split in ("test", "letters", "textures", "science"):
        assert photodigits.build(split).digest() == built["photodigits", split].digest()


def test_changed_pixels_raise_the_recipe_version(built, monkeypatch):
    if photodigits.training_digest() != PINNED["training_digest"]:
        pytest.skip("other source arrays than those of the pinned digests (another decoder version)")
    assert set(images.RECIPE_VERSIONS.values()) == {1}

    def epoch(module):
        pixels, labels = module.training_epoch(3, 5)
        return sources.digest_of({"pixels": pixels, "labels": labels}, 1)

    found = {
        "training_digest": photodigits.training_digest(),
        "photodigits.test": built["photodigits", "test"].digest(),
        "photoscenes.test": built["photoscenes", "test"].digest(),
        "epoch": epoch(photodigits),
    }
    monkeypatch.setattr(photodigits, "EPOCH_REPEATS", 1)
    found |= {
        "photodigits64.test": built["photodigits64", "test"].digest(),
        "photodigits64.epoch": epoch(photodigits64),
        "photodigits_context.test90": built["photodigits_context", "test90"].digest(),
        "photodigits_context.epoch": epoch(photodigits_context),
    }
    assert found == PINNED, "raise RECIPE_VERSION, train the models again, then pin the new digests"


@pytest.mark.parametrize(("dataset", "split"), [k for k in ALL if images.split_info(*k).canvas])
def test_centre_of_the_canvas_is_the_image(built, dataset, split):
    image_set, canvas = built[dataset, split], images.build(dataset, split, canvas=True)
    side, margin = image_set.images.shape[1], 8 if dataset == "photodigits64" else 4
    assert canvas.images.shape[1] == side + 2 * margin
    assert np.array_equal(canvas.images[:, margin:-margin, margin:-margin], image_set.images)
    assert canvas.sample_ids == image_set.sample_ids and canvas.source_ids == image_set.source_ids


# ---- disjointness ---------------------------------------------------------------------------------------------------


def test_glyph_blocks_are_disjoint_and_complete(built):
    seen = {split: set(photodigits.build(split).source_ids) for split in ("train", "fit", "test")}
    assert seen["train"] == {f"digit-{i:04d}" for i in range(1050)}
    assert seen["fit"] == {f"digit-{i:04d}" for i in range(1050, 1297)}
    assert seen["test"] == {f"digit-{i:04d}" for i in range(1297, 1797)}
    for split in ("scrambled", "rotated"):
        assert set(built["photodigits", split].source_ids) <= seen["test"]
    for split in ("fit", "test"):
        assert set(built["photoscenes", split].source_ids) <= seen[split]
        assert set(built["photodigits64", split].source_ids) == seen[split]
    for split in ("fit", "test90", "test50", "test10"):
        assert set(built["photodigits_context", split].source_ids) == seen[split.rstrip("0159")]
    for module in (photodigits64, photodigits_context):
        train = module.build("train")
        assert set(train.source_ids) == seen["train"] and len(train) == 2100


@pytest.mark.parametrize("split", ["test", "scrambled"])
def test_every_test_glyph_once(built, split):
    assert built["photodigits", split].source_ids == [f"digit-{i:04d}" for i in range(1297, 1797)]


def test_labels_are_those_of_scikit_learn(built):
    target = pytest.importorskip("sklearn.datasets").load_digits().target
    for (dataset, split), image_set in built.items():
        if split.startswith(("fit", "test")):
            which = [int(source.removeprefix("digit-")) for source in image_set.source_ids]
            assert np.array_equal(image_set.labels, target[which]), (dataset, split)
    font_digits = built["photodigits", "font_digits"]
    assert [int(source[0]) for source in font_digits.source_ids] == font_digits.labels.tolist()
    assert np.bincount(font_digits.labels).tolist() == [50] * 10


@pytest.fixture
def two_tone(monkeypatch):
    """Pictures that are black on the left 60 % of their columns and white on the right 40 %."""
    sizes = {name: sources.picture(name).shape for name in sources.PHOTOGRAPHS}

    def picture(name):
        shape = sizes[name]
        pixels = np.zeros(shape, dtype=np.uint8)
        pixels[:, math.floor(0.6 * shape[1]) :] = 255
        return pixels

    monkeypatch.setattr(sources, "picture", picture)
    sources.region.cache_clear()
    yield
    sources.region.cache_clear()


@pytest.mark.parametrize(("part", "value"), [("train", 26), ("test", 230)])
def test_train_and_test_regions_share_no_pixel(two_tone, part, value):
    empty = np.zeros((1500, 8, 8), dtype=np.uint8)
    for canvas in (False, True):
        found = photodigits.compose_glyphs(empty, numbered_keys("regions", 1500), part, canvas=canvas)
        assert np.unique(found).tolist() == [value]


def test_splits_use_their_own_region(two_tone, monkeypatch):
    monkeypatch.setattr(
        compose, "masks", lambda glyphs, sizes, tops, lefts, window: np.zeros((len(glyphs), window, window), int)
    )
    for split in ("letters", "scrambled", "rotated", "no_object", "ambiguous", "font_digits"):
        assert np.unique(photodigits.build(split).images).tolist() == [230], split
    monkeypatch.setattr(sources, "BLOCKS", {"train": (0, 40), "fit": (40, 80), "test": (80, 120)})
    for module in (photodigits, photodigits64, photodigits_context):
        assert np.unique(module.training_epoch(0, 0)[0]).tolist() == [26]
        for split in module.SPLITS:
            if split.startswith(("train", "fit", "test")):
                assert np.unique(module.build(split).images).tolist() == [26 if split == "train" else 230], split
    assert np.unique(photoscenes.training_epoch(0, 0)[0]).tolist() == [26]
    assert np.unique(photoscenes.build("train").images).tolist() == [26]
    assert np.unique(photoscenes.build("test").images).tolist() == [230]


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_epochs_are_fresh_and_repeatable():
    pixels, labels = photodigits.training_epoch(0, 0)
    assert pixels.shape == (8400, 32, 32, 3) and pixels.dtype == np.uint8 and labels.dtype == np.int64
    written = sources.digits()[1][:1050]
    assert np.bincount(labels).tolist() == (8 * np.bincount(written)).tolist(), "every training glyph eight times"
    again = photodigits.training_epoch(0, 0)
    assert np.array_equal(again[0], pixels) and np.array_equal(again[1], labels)
    hashes = {image.tobytes() for image in pixels}
    assert len(hashes) == 8400
    for other in (photodigits.training_epoch(0, 1)[0], photodigits.training_epoch(1, 0)[0]):
        assert not hashes & {image.tobytes() for image in other}
    assert len(np.unique(labels[:64])) == 10, "shuffled"


def test_a_nearest_neighbour_reads_the_composites():
    """An independent reader: on flat contrast the glyph under a test image is found by template matching."""
    written, labels = sources.digits()
    test = photodigits.build("test").images[:60].astype(np.int64)
    # the paint is one colour: its opacity is what the glyph's mask explains; search size and place by correlation
    right = 0
    for image, truth in zip(test, range(1297, 1357), strict=True):
        best = {}
        for candidate in (truth, truth + 100, truth + 200, truth + 300):
            score = 0.0
            for size in range(photodigits.SMALLEST, photodigits.LARGEST + 1):
                places = np.array([(t, s) for t in range(4, 29 - size) for s in range(4, 29 - size)])
                n = len(places)
                mask = compose.masks(
                    np.repeat(written[candidate][None], n, 0), np.full(n, size), places[:, 0], places[:, 1], 32
                )
                mask = mask.reshape(n, -1) - mask.reshape(n, -1).mean(axis=1, keepdims=True)
                flat = image.reshape(-1, 3) - image.reshape(-1, 3).mean(axis=0)
                score = max(score, float((np.abs(mask @ flat).max(axis=1) / np.linalg.norm(mask, axis=1)).max()))
            best[candidate] = score
        right += max(best, key=best.get) == truth
    assert right >= 54  # of four candidates each; chance is 15


# ---- the arithmetic, against independent implementations ------------------------------------------------------------


def test_splitmix64_against_published_values():
    """Outputs for seed 1234567, as published with the reference implementation's ports (Rosetta Code)."""
    drawn = Draws(np.array([1234567], dtype=np.uint64)).raw(5)[0]
    assert drawn.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_do_not_depend_on_the_batch():
    keys = keys_of(f"sample {i}" for i in range(40))
    together, alone = Draws(keys), Draws(keys[17:18])
    for low, high, shape in ((0, 7, ()), (-5, 300, (2, 3)), (0, 2, (4,))):
        assert np.array_equal(together.integers(low, high, *shape)[17:18], alone.integers(low, high, *shape))
    with pytest.raises(ValueError, match="empty range"):
        alone.integers(3, 3)


def test_draws_are_uniform():
    values = Draws(numbered_keys("uniform", 20000)).integers(0, 10)
    counts = np.bincount(values, minlength=10)
    chi_squared = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_squared < 27.9  # the .999 quantile for nine degrees of freedom
    bounds = np.arange(1, 20001) % 50 + 1
    assert np.all(Draws(numbered_keys("bounds", 20000)).integers(0, bounds) < bounds)


@pytest.mark.parametrize("size", [18, 21, 24, 40])
def test_enlarging_against_pillow(size):
    glyph = sources.digits()[0][5]
    weights = compose.interpolation(np.array([size]), np.array([0]), size, clamp=True)[0]
    ours = weights @ glyph.astype(np.int64) @ weights.T / (2 * size) ** 2
    theirs = np.array(Image.fromarray(glyph.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() < 1e-4


def test_masks_lie_in_their_box():
    full = np.full((3, 8, 8), 16, dtype=np.uint8)
    found = compose.masks(full, np.array([18, 20, 24]), np.array([4, 7, 4]), np.array([10, 4, 4]), 32)
    for mask, size, top, left in zip(found, (18, 20, 24), (4, 7, 4), (10, 4, 4), strict=True):
        assert mask.max() == 255 and mask[top + 3 : top + size - 3, left + 3 : left + size - 3].min() == 255
        mask[top : top + size, left : left + size] = 0
        assert mask.max() == 0


def test_colours_stand_out():
    ground = np.tile(np.arange(256), 40)
    found = compose.colours(Draws(numbered_keys("colours", len(ground))), ground)
    assert found.min() >= 0 and found.max() <= 255
    assert np.abs(compose.luma(found) - ground).min() >= compose.CONTRAST_GAP - 2
    assert len(np.unique(found, axis=0)) > 9000


def test_contrast_formula():
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(compose.soften(every), np.floor(0.8 * every + 25.5 + 0.5 + 1e-9).astype(np.uint8))


def test_blend_ends():
    ground = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    colour = np.array([[200, 100, 0]])
    opacity = np.zeros((1, 4, 4), dtype=np.int64)
    assert np.array_equal(compose.blend(ground, opacity, colour), ground)
    assert np.all(compose.blend(ground, opacity + 255, colour) == colour)


def test_pooling_averages():
    pixels = sources.region("coffee", "test", 2)
    raw = sources.picture("coffee")[:, 360:].astype(np.float64)
    mean = raw.reshape(200, 2, 120, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels - mean).max() <= 0.5


# ---- sources and glyphs ---------------------------------------------------------------------------------------------


def test_sources_are_those_of_the_packages():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data = pytest.importorskip("skimage.data")
    assert np.array_equal(sources.digits()[0], load_digits().images)
    for name in (*sources.PHOTOGRAPHS, *sources.SCIENCE):
        assert np.array_equal(sources.picture(name), getattr(data, name)()), name
    for name in sources.GRAINS:
        assert np.array_equal(sources.picture(name)[..., 1], getattr(data, name)()), name
    assert np.abs(sources.faces() / 255 - data.lfw_subset()[:100]).max() < 0.5 / 255 + 1e-9


def test_missing_source_names_the_package(monkeypatch):
    with pytest.raises(
        ImageSetError, match="'skimage' no longer bundles 'nothing.png'; install the version in the lock"
    ):
        sources.package_file("skimage", "data", "nothing.png")
    with pytest.raises(ImageSetError, match="'no_such_package' is not installed"):
        sources.package_file("no_such_package", "x")


def test_source_digest_covers_every_source(monkeypatch):
    before = photodigits.source_digest(), photodigits.training_digest()
    assert len(before[0]) == 64 and before == (photodigits.source_digest(), photodigits.training_digest())
    monkeypatch.setattr(sources, "font_bytes", lambda name: b"another font")
    assert photodigits.source_digest() != before[0], "fonts are sources"
    assert photodigits.training_digest() == before[1], "but no training image shows one"
    monkeypatch.setattr(photodigits, "RECIPE_VERSION", 2)
    assert photodigits.training_digest() != before[1]


def test_printed_glyphs_have_the_style_of_the_written_ones():
    written = sources.digits()[0]
    for characters in (glyphs.LETTERS, glyphs.AMBIGUOUS, glyphs.DIGITS):
        shapes = np.stack([shape for _, _, shape in glyphs.printed_set(characters, 500, "style")])
        assert shapes.max() == 16
        assert np.all((shapes > 0).any(axis=2)), "ink from the first row to the last, as in UCI's"
        assert abs(shapes.mean() - written.mean()) < 0.4
        columns = (shapes > 0).any(axis=1).sum(axis=1)
        assert columns.max() <= 7 and abs(columns.mean() - (written > 0).any(axis=1).sum(axis=1).mean()) < 0.3


def test_printed_set_is_balanced_and_varied():
    found = list(glyphs.printed_set(glyphs.LETTERS, 500, "balance"))
    counts = np.unique([character for character, _, _ in found], return_counts=True)[1]
    assert len(counts) == 13 and set(counts) == {38, 39}
    fonts = {source.split("-", 1)[1] for _, source, _ in found}
    assert fonts == set(sources.FONTS)
    assert set(glyphs.LETTERS) | set(glyphs.AMBIGUOUS) == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert not set(glyphs.LETTERS) & set(glyphs.AMBIGUOUS)
    with pytest.raises(ValueError, match="variants of 'A'"):
        list(glyphs.printed_set("A", 1000, "too many"))


def test_turned_print_is_turned():
    upright, turned = glyphs.printed("I", "DejaVuSans", 0), glyphs.printed("I", "DejaVuSans", 15)
    assert (upright > 0).any(axis=0).sum() < (turned > 0).any(axis=0).sum()
    assert np.array_equal(upright[0], upright[7])


def test_scrambling_moves_every_quadrant():
    marked = np.zeros((2000, 8, 8), dtype=np.uint8)
    for value, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        marked[:, row : row + 4, column : column + 4] = value
    marked[:, 1, 2] = 9  # inside the first quadrant
    found = glyphs.scramble(marked, numbered_keys("scramble", 2000))
    corners = found[:, ::4, ::4].reshape(-1, 4)
    assert np.all(np.sort(corners, axis=1) == np.arange(4))
    assert np.all(corners != np.arange(4)), "no quadrant stays"
    assert len(np.unique(corners, axis=0)) == 9, "all nine permutations occur"
    for glyph in found[:50]:
        (row,), (column,) = np.nonzero(glyph == 9)
        assert (row % 4, column % 4) == (1, 2), "quadrants move whole"


def test_rotated_split(built):
    written, labels = sources.digits()
    which = [int(s.removeprefix("digit-")) for s in built["photodigits", "rotated"].source_ids]
    assert set(labels[which]) == {2, 3, 4, 5, 7}
    found = glyphs.quarter_turn(written[:200], numbered_keys("turn", 200))
    left = np.array([np.array_equal(np.rot90(found[i], -1), written[i]) for i in range(200)])
    right = np.array([np.array_equal(np.rot90(found[i], 1), written[i]) for i in range(200)])
    assert np.all(left | right) and 70 < left.sum() < 130


@pytest.mark.parametrize("family", textures.FAMILIES)
def test_texture_families(family):
    keys = numbered_keys(family, 200)
    field = textures.FAMILIES[family](Draws(keys), 32)
    assert field.shape == (200, 32, 32) and field.min() >= 0 and field.max() <= 255
    assert (field.reshape(200, -1).std(axis=1) > 5).mean() > 0.98, "no flat field"
    found = textures.texture(family, keys, 32)
    assert len({image.tobytes() for image in found}) == 200
    assert np.array_equal(textures.texture(family, keys[50:60], 32), found[50:60])


def test_a_trivial_statistic_separates_the_sanity_sets(built):
    def saturation(image_set):
        pixels = image_set.images.astype(int)
        return (pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2))

    def variation(image_set):
        return np.abs(np.diff(image_set.images.astype(int), axis=2)).mean(axis=(1, 2, 3))

    test = built["photodigits", "test"]
    assert saturation(built["photodigits", "faces"]).max() == 0 < saturation(test).min()
    assert variation(built["photodigits", "noise"]).min() > variation(test).max()


# ---- 64 pixels, and photographs that agree with the label ------------------------------------------------------------


def test_64_pixels_are_photodigits_twice_as_large(monkeypatch):
    small, large = photodigits.LAYOUT, photodigits64.LAYOUT
    for name in ("side", "smallest", "largest", "margin", "canvas"):
        assert getattr(large, name) == 2 * getattr(small, name), name
    calls, masks = [], compose.masks
    monkeypatch.setattr(compose, "masks", lambda *given: calls.append(given) or masks(*given))
    shown = photodigits64.build("test")
    (shapes, sizes, tops, lefts, window), labels = calls[0], sources.digits()[1]
    assert len(calls) == 1 and window == 64 and np.array_equal(shapes, sources.digits()[0][1297:])
    assert np.array_equal(shown.labels, labels[1297:]) and set(sizes) == set(range(36, 49))
    assert min(tops) == min(lefts) == 8 and max(tops + sizes) == max(lefts + sizes) == 56


def test_epochs_of_the_new_sets_are_fresh_and_repeatable(monkeypatch):
    monkeypatch.setattr(photodigits, "EPOCH_REPEATS", 1)
    monkeypatch.setitem(sources.BLOCKS, "train", (0, 300))
    for module, side in ((photodigits64, 64), (photodigits_context, 32)):
        pixels, labels = module.training_epoch(2, 1)
        assert pixels.shape == (300, side, side, 3) and labels.dtype == np.int64
        assert np.array_equal(module.training_epoch(2, 1)[0], pixels)
        hashes = {image.tobytes() for image in pixels}
        for other in (module.training_epoch(2, 2)[0], module.training_epoch(3, 1)[0]):
            assert not hashes & {image.tobytes() for image in other}


@pytest.fixture
def plain_pictures(monkeypatch):
    """Each photograph one grey of its own, no glyph painted: a pixel tells the photograph."""
    sizes = {name: sources.picture(name).shape for name in sources.PHOTOGRAPHS}
    greys = {name: 40 * i for i, name in enumerate(sources.PHOTOGRAPHS)}
    monkeypatch.setattr(sources, "picture", lambda name: np.full(sizes[name], greys[name], dtype=np.uint8))
    monkeypatch.setattr(compose, "masks", lambda g, sizes, tops, lefts, window: np.zeros((len(g), window, window), int))
    sources.region.cache_clear()
    yield [int(compose.soften(np.array([grey], dtype=np.uint8))[0]) for grey in greys.values()]
    sources.region.cache_clear()


@pytest.mark.parametrize(("split", "share"), [("train", 0.9), ("test90", 0.9), ("test50", 0.5), ("test10", 0.1)])
def test_the_photograph_agrees_with_the_group_as_often_as_promised(plain_pictures, split, share):
    built = photodigits_context.build(split)
    seen = built.images[:, 0, 0, 0]
    assert np.all(built.images == seen[:, None, None, None]), "one photograph behind each digit"
    shown = np.searchsorted(plain_pictures, seen)
    own = built.labels % 4  # the rule of the groups
    agrees = shown == own
    assert abs(agrees.mean() - share) < 3.5 * math.sqrt(share * (1 - share) / len(built))
    step = (shown - own)[~agrees] % 4
    assert set(step) == {1, 2, 3}, "the others are any of the three"


def test_without_agreement_photograph_and_label_are_independent(plain_pictures):
    pixels, labels = photodigits_context.training_epoch(0, 0, agreement=0.25)
    shown = np.searchsorted(plain_pictures, pixels[:, 0, 0, 0])
    again, photographs = photodigits_context.training_epoch(0, 0, agreement=0.25, target="photograph")
    assert np.array_equal(again, pixels) and np.array_equal(photographs, shown)
    counts = np.array([np.bincount(shown[labels == digit], minlength=4) for digit in range(10)])
    expected = counts.sum(axis=1, keepdims=True) / 4
    assert ((counts - expected) ** 2 / expected).sum() < 59.7  # the .999 quantile for thirty degrees of freedom
    with pytest.raises(ImageSetError, match="target 'scene'"):
        photodigits_context.training_epoch(0, 0, target="scene")
    with pytest.raises(ImageSetError, match="probability"):
        photodigits_context.training_epoch(0, 0, agreement=1.5)


def test_the_three_context_tests_differ_where_the_photograph_does(built):
    keys, labels = numbered_keys("agreement", 4000), np.arange(4000) % 10
    shown = {share: photodigits_context.photographs(labels, keys, share) for share in (0.1, 0.5, 0.9)}
    agrees = {share: pictures == labels % 4 for share, pictures in shown.items()}
    assert np.all(agrees[0.1] <= agrees[0.5]) and np.all(agrees[0.5] <= agrees[0.9])
    sets = [built["photodigits_context", f"test{share}"] for share in (90, 50, 10)]
    assert all(one.source_ids == sets[0].source_ids and np.array_equal(one.labels, sets[0].labels) for one in sets)
    names = [f"photodigits_context/1/test-{i}" for i in range(1297, 1797)]
    behind = [photodigits_context.photographs(sets[0].labels, keys_of(names), share) for share in (0.9, 0.5, 0.1)]
    for i in (1, 2):
        same = (sets[i].images == sets[0].images).all(axis=(1, 2, 3))
        assert np.array_equal(same, behind[i] == behind[0])


def test_a_given_photograph_is_the_one_that_is_cut_from():
    wanted = np.arange(400) % 4
    _, tiles = compose.crops(
        Draws(numbered_keys("given", 400)), tuple(sources.PHOTOGRAPHS), "test", 40, pictures=wanted
    )
    names = list(sources.PHOTOGRAPHS)
    assert [names.index(tile.split("-")[0]) for tile in tiles] == wanted.tolist()


# ---- scenes ---------------------------------------------------------------------------------------------------------


def test_scene_rule(monkeypatch):
    """The labelled digit has the largest box; boxes are apart, within the margin, and all digits are of the block."""
    calls = []
    masks = compose.masks

    def recorded(shapes, sizes, tops, lefts, window):
        found = masks(shapes, sizes, tops, lefts, window)
        calls.append((shapes, sizes, tops, lefts))
        return found

    monkeypatch.setattr(compose, "masks", recorded)
    monkeypatch.setattr(photoscenes, "_CHUNK", 1000)
    scenes = photoscenes.build("test")
    assert len(calls) == 4
    written, labels = sources.digits()
    block = {glyph.tobytes() for glyph in written[1297:1797]}
    which = [int(s.removeprefix("digit-")) for s in scenes.source_ids]
    assert len(set(which)) == 200 and np.array_equal(calls[0][0], written[which])
    assert np.array_equal(scenes.labels, labels[which])
    assert min(calls[0][1]) >= 42 > 30 >= max(sizes.max() for _, sizes, _, _ in calls[1:])
    taken = np.zeros((200, 128, 128), dtype=int)
    for shapes, sizes, tops, lefts in calls:
        assert all(glyph.tobytes() in block for glyph in shapes)
        for i, (size, top, left) in enumerate(zip(sizes, tops, lefts, strict=True)):
            assert 4 <= top <= 124 - size and 4 <= left <= 124 - size
            taken[i, top : top + size, left : left + size] += 1
    assert taken.max() == 1


def test_scenes_are_mostly_picture_where_small_images_are_mostly_header(built):
    """Why the set exists: share of a JPEG-50 file that a constant image of the same size already costs."""

    def size(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=50)
        return len(buffer.getvalue())

    shares = {}
    for dataset in ("photodigits", "photoscenes"):
        pixels = built[dataset, "test"].images[:50]
        shares[dataset] = size(np.full_like(pixels[0], 128)) / np.mean([size(image) for image in pixels])
    assert shares["photodigits"] > 0.75 and shares["photoscenes"] < 0.5, shares


def test_credits_name_every_source():
    text = (ROOT / "docs" / "CREDITS-images.md").read_text()
    names = (*sources.PHOTOGRAPHS, *sources.SCIENCE, *sources.GRAINS, *sources.SCENES, "digits", "lfw_subset")
    assert [name for name in names if f"| `{name}` |" not in text] == []
    assert "DejaVu" in text and all(font.startswith("DejaVu") for font in sources.FONTS)
