"""The image format: round trips, readers of other libraries, and every way in which a file can be wrong."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from windtunnel.images import from_folder, read_images, read_metadata, write_images
from windtunnel.images.container import SCHEMA, ImageSet, ImageSetError, pixel_hash
from windtunnel.images.decode import decode_image, encode_png


def some_set(n: int = 6, side: int = 8, labelled: bool = True) -> ImageSet:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (n, side, side, 3)).astype(np.uint8)
    labels = np.arange(n, dtype=np.int32) % 3 if labelled else None
    return ImageSet(images, labels, [f"s{i}" for i in range(n)], [f"glyph-{i // 2}" for i in range(n)])


def rows_of(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def write_rows(path, rows: list[dict], schema: pa.Schema = SCHEMA) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def bomb_png(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("labelled", [True, False])
def test_round_trip(tmp_path, labelled):
    image_set = some_set(labelled=labelled)
    path = write_images(tmp_path / "deep" / "set.parquet", image_set, metadata={"recipe": 3, "classes": ["a", "b"]})
    back, skipped = read_images(path, n_classes=3)
    assert skipped == []
    assert np.array_equal(back.images, image_set.images)
    assert (back.labels is None) == (not labelled)
    assert labelled is False or np.array_equal(back.labels, image_set.labels)
    assert (back.sample_ids, back.source_ids) == (image_set.sample_ids, image_set.source_ids)
    assert back.digest() == image_set.digest() == read_metadata(path)["digest"]
    assert read_metadata(path)["metadata"] == {"recipe": 3, "classes": ["a", "b"]}
    assert [p.name for p in path.parent.iterdir()] == ["set.parquet"], "no temporary file stays"


def test_same_input_gives_the_same_bytes(tmp_path):
    first = write_images(tmp_path / "a.parquet", some_set(), metadata={"x": 1, "y": 2}).read_bytes()
    second = write_images(tmp_path / "b.parquet", some_set(), metadata={"y": 2, "x": 1}).read_bytes()
    assert first == second


def test_digest_covers_pixels_labels_and_identifiers():
    base = some_set()
    pixels = base.images.copy()
    pixels[2, 3, 4, 1] ^= 1
    labels = base.labels.copy()
    labels[0] += 1
    variants = [
        ImageSet(pixels, base.labels, base.sample_ids, base.source_ids),
        ImageSet(base.images, labels, base.sample_ids, base.source_ids),
        ImageSet(base.images, None, base.sample_ids, base.source_ids),
        ImageSet(base.images, base.labels, ["other", *base.sample_ids[1:]], base.source_ids),
        ImageSet(base.images, base.labels, base.sample_ids, ["other", *base.source_ids[1:]]),
        base.take([1, 0, 2, 3, 4, 5]),
    ]
    digests = {v.digest() for v in variants} | {base.digest()}
    assert len(digests) == len(variants) + 1
    assert base.take(range(6)).digest() == base.digest()


def test_pixels_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="read-only"):
        some_set().images[0] = 0


def test_pixel_hash_knows_the_shape():
    flat = np.zeros((2, 6, 3), dtype=np.uint8)
    assert pixel_hash(flat) != pixel_hash(flat.reshape(6, 2, 3))


# ---- other libraries ------------------------------------------------------------------------------------------------


def test_pandas_reads_it_and_its_copy_is_accepted(tmp_path):
    pd = pytest.importorskip("pandas")
    image_set = some_set()
    path = write_images(tmp_path / "set.parquet", image_set, metadata={})
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["image", "label", "sample_id", "source_id", "sha256"]
    assert frame["label"].tolist() == image_set.labels.tolist()
    first = np.array(Image.open(io.BytesIO(frame["image"][0]["bytes"])))
    assert np.array_equal(first, image_set.images[0])
    frame.iloc[::-1].to_parquet(tmp_path / "copy.parquet")  # int64 labels, an index column, other string types
    back, _ = read_images(tmp_path / "copy.parquet")
    assert back.sample_ids == image_set.sample_ids[::-1]


def test_duckdb_reads_it(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    image_set = some_set()
    path = write_images(tmp_path / "set.parquet", image_set, metadata={})
    found = duckdb.sql(
        f"select sample_id, label, image.bytes as content, sha256 from '{path}' where label = 1 order by sample_id"
    ).fetchall()
    assert [row[0] for row in found] == ["s1", "s4"]
    assert pixel_hash(decode_image(bytes(found[0][2]))) == found[0][3]


def test_hugging_face_datasets_decodes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    image_set = some_set()
    path = write_images(tmp_path / "set.parquet", image_set, metadata={})
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert isinstance(loaded[0]["image"], Image.Image)
    assert np.array_equal(np.array(loaded[3]["image"]), image_set.images[3])
    assert loaded["label"][:] == image_set.labels.tolist()


def test_hugging_face_datasets_reads_a_set_without_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    path = write_images(tmp_path / "set.parquet", some_set(labelled=False), metadata={})
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert loaded["label"][:] == [None] * 6


# ---- what can be wrong ----------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path):
    path = write_images(tmp_path / "set.parquet", some_set(), metadata={})
    return path, rows_of(path)


def plant(good, change) -> str:
    path, rows = good
    change(rows)
    write_rows(path, rows)
    return str(path)


def jpeg_of(row: dict) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(row["image"]["bytes"])).save(buffer, "JPEG", quality=40)
    return buffer.getvalue()


BAD_ROWS = {
    "unreadable": (lambda row: row["image"].update(bytes=row["image"]["bytes"][:60]), "unreadable image"),
    "no image at all": (lambda row: row["image"].update(bytes=b"hello"), "unreadable image"),
    "bomb": (lambda row: row["image"].update(bytes=bomb_png(60000, 60000)), "bomb"),
    "large": (lambda row: row["image"].update(bytes=bomb_png(4097, 4096)), "max_pixels"),
    "other pixels": (lambda row: row["image"].update(bytes=jpeg_of(row)), "do not match their sha256"),
    "label too large": (lambda row: row.update(label=3), r"label 3 is out of range \(0 to 2\)"),
    "label negative": (lambda row: row.update(label=-1), "label -1 is out of range"),
    "label missing": (lambda row: row.update(label=None), "no label"),
    "bytes missing": (lambda row: row["image"].update(bytes=None), "no image.bytes"),
    "struct missing": (lambda row: row.update(image=None), "no image.bytes"),
    "hash missing": (lambda row: row.update(sha256=None), "no sha256"),
    "id missing": (lambda row: row.update(sample_id=None), "no sample_id"),
    "source missing": (lambda row: row.update(source_id=None), "no source_id"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_named_or_skipped(good, name):
    change, words = BAD_ROWS[name]
    path = plant(good, lambda rows: change(rows[2]))
    with pytest.raises(ImageSetError, match=words) as caught:
        read_images(path, n_classes=3)
    assert path in str(caught.value) and "row 2" in str(caught.value) and "skip" in str(caught.value)
    back, skipped = read_images(path, n_classes=3, on_bad_image="skip")
    assert back.sample_ids == ["s0", "s1", "s3", "s4", "s5"]
    assert len(skipped) == 1 and path in skipped[0] and "row 2" in skipped[0]


def test_pixel_limit_is_a_parameter(good):
    path, _ = good
    with pytest.raises(ImageSetError, match="max_pixels=63"):
        read_images(path, max_pixels=63)
    assert len(read_images(path, max_pixels=64)[0]) == 6


def test_set_limit_is_checked_before_memory_is_used(good):
    with pytest.raises(ImageSetError, match="max_set_bytes=1000"):
        read_images(good[0], max_set_bytes=1000)


def test_duplicate_sample_id(good):
    path = plant(good, lambda rows: rows[4].update(sample_id="s1"))
    for mode in ("error", "skip"):
        with pytest.raises(ImageSetError, match="rows 1 and 4 share the sample_id 's1'"):
            read_images(path, on_bad_image=mode)


def test_mixed_sizes(good):
    other = np.zeros((4, 8, 3), dtype=np.uint8)
    path = plant(good, lambda rows: rows[3].update(image={"bytes": encode_png(other)}, sha256=pixel_hash(other)))
    with pytest.raises(ImageSetError, match="row 3.*8 x 4 pixels, but row 0 has 8 x 8"):
        read_images(path, on_bad_image="skip")


def test_missing_column(good):
    path, _ = good
    pq.write_table(pq.read_table(path).drop(["sha256", "source_id"]), path)
    with pytest.raises(ImageSetError, match="lacks the column.* source_id, sha256.*write_images"):
        read_images(path)


def test_wrong_column_type(good):
    path, _ = good
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "image", table["sample_id"]), path)
    with pytest.raises(ImageSetError, match="wrong type.*image is string"):
        read_images(path)


def test_changed_label_in_our_file_is_found(good):
    path, rows = good
    rows[0]["label"] = 2
    write_rows(path, rows, pq.read_schema(path))
    with pytest.raises(ImageSetError, match="recorded digest"):
        read_images(path, n_classes=3)


def test_every_flipped_bit_is_found_or_harmless(good):
    """Flip one bit in each of many bytes: the file is refused or the content is untouched, never silently different."""
    path, _ = good
    original = path.read_bytes()
    expected = some_set().digest()
    refused = 0
    for position in range(0, len(original), max(1, len(original) // 150)):
        damaged = bytearray(original)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            back, _ = read_images(path)
        except ImageSetError as problem:
            assert str(path) in str(problem)
            refused += 1
        else:
            assert back.digest() == expected, f"bit flipped at byte {position}"
    assert refused > 75


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a parquet file at all" * 10])
def test_no_parquet(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    for read in (read_images, read_metadata):
        with pytest.raises(ImageSetError, match="no readable Parquet file"):
            read(path)


def test_absent_file_and_empty_set(tmp_path):
    with pytest.raises(ImageSetError, match="does not exist"):
        read_images(tmp_path / "absent.parquet")
    write_rows(tmp_path / "empty.parquet", [])
    with pytest.raises(ImageSetError, match="no usable image"):
        read_images(tmp_path / "empty.parquet")


def test_unknown_mode(good):
    with pytest.raises(ImageSetError, match="allowed: error, skip"):
        read_images(good[0], on_bad_image="ignore")


def test_failed_write_leaves_the_old_file(good, monkeypatch):
    path, _ = good
    before = path.read_bytes()

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("windtunnel.images.container.pq.write_table", full)
    with pytest.raises(ImageSetError, match="set.parquet.*No space left"):
        write_images(path, some_set(3), metadata={})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["set.parquet"]


@pytest.mark.parametrize(
    "change",
    [
        {"images": np.zeros((2, 4, 4, 3), dtype=np.float32)},
        {"images": np.zeros((2, 4, 4), dtype=np.uint8)},
        {"labels": np.zeros(2, dtype=np.int64)},
        {"labels": np.zeros(3, dtype=np.int32)},
        {"sample_ids": ["a"]},
        {"source_ids": ["a", "b", "c"]},
        {"sample_ids": ["a", "a"]},
    ],
)
def test_an_inconsistent_set_cannot_be_made(change):
    parts = {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": None,
        "sample_ids": ["a", "b"],
        "source_ids": ["g"] * 2,
    }
    ImageSet(**parts)
    with pytest.raises(ImageSetError):
        ImageSet(**(parts | change))


# ---- decoding -------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_decoding_of_modes():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert np.array_equal(decode_image(encoded(Image.fromarray(opaque))), opaque[..., :3])
    for bad in (np.dstack([grey] * 4), grey.astype(np.uint16) * 256):
        with pytest.raises(ImageSetError, match="transparent|8-bit"):
            decode_image(encoded(Image.fromarray(bad)))


# ---- a user's folder ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    for index, name in enumerate(["dog", "cat"]):
        (root / name / "deep").mkdir(parents=True)
        for k in range(2):
            pixels = np.full((5, 7, 3), 100 * index + k, dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / ("deep" if k else ".") / f"{k}.png")
    (root / "cat" / ".DS_Store").write_bytes(b"junk")
    return root


def test_folder_with_classes(folder, tmp_path):
    image_set, skipped = from_folder(folder)
    assert image_set.sample_ids == ["cat/0.png", "cat/deep/1.png", "dog/0.png", "dog/deep/1.png"]
    assert image_set.labels.tolist() == [0, 0, 1, 1] and skipped == []
    assert image_set.images[:, 0, 0, 0].tolist() == [100, 101, 0, 1]
    chosen, _ = from_folder(folder, classes=["dog", "cat"])
    assert chosen.labels.tolist() == [0, 0, 1, 1] and chosen.sample_ids[0] == "dog/0.png"
    path = write_images(tmp_path / "mine.parquet", image_set, metadata={"classes": ["cat", "dog"]})
    assert read_images(path, n_classes=2)[0].digest() == image_set.digest()


def test_folder_without_classes_has_no_labels(folder):
    image_set, _ = from_folder(folder / "dog" / "deep")
    assert image_set.labels is None and image_set.sample_ids == ["1.png"]


@pytest.mark.parametrize(
    ("change", "classes", "words"),
    [
        (lambda f: (f / "cat" / "x.png").write_bytes(b"no image"), None, "x.png.*unreadable.*skip"),
        (lambda f: Image.new("RGB", (9, 9)).save(f / "cat" / "x.png"), None, "9 x 9 pixels.*7 x 5.*resize"),
        (lambda f: None, ["cat"], "no class: .'dog'"),
        (lambda f: None, ["cat", "dog", "emu"], "without a sub-folder: .'emu'"),
        (lambda f: Image.new("RGB", (7, 5)).save(f / "x.png"), None, "x.png' lies beside"),
    ],
)
def test_wrong_folders(folder, change, classes, words):
    change(folder)
    with pytest.raises(ImageSetError, match=words):
        from_folder(folder, classes)


def test_folder_skips_and_lists(folder):
    (folder / "cat" / "x.png").write_bytes(b"no image")
    image_set, skipped = from_folder(folder, on_bad_image="skip")
    assert len(image_set) == 4 and len(skipped) == 1 and "x.png" in skipped[0]
    with pytest.raises(ImageSetError, match="no folder"):
        from_folder(folder / "absent")
