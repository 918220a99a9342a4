"""Files: canonical, atomic, checked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windtunnel import store
from windtunnel.jobs import Making, failed_parts, forget_failed, make_parts, remove_damaged
from windtunnel.store import StoreError


def table(value: int = 1, rows: int = 5) -> pa.Table:
    return pa.table({"x": np.full(rows, value)})


@given(
    st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)))
)
def test_equal_settings_have_one_digest(settings: dict) -> None:
    turned = dict(reversed(list(settings.items())))
    assert store.digest(settings) == store.digest(turned)
    assert store.digest(settings) != store.digest({**settings, "one more": 1})


def test_nan_is_no_setting() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        store.digest({"x": float("nan")})


def test_atomic_writing_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "file.bin"
    store.write_atomic(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"file\.bin.*No space left"):
        store.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_equal_tables_are_equal_bytes_and_damage_is_seen(tmp_path: Path) -> None:
    a, b = tmp_path / "a.parquet", tmp_path / "b.parquet"
    store.write_table(a, table(rows=10_000), {"m": 1})
    store.write_table(b, table(rows=10_000), {"m": 1})
    assert a.read_bytes() == b.read_bytes()
    assert store.table_metadata(store.read_table(a)) == {"m": 1}
    a.write_bytes(a.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"a\.parquet"):
        store.read_table(a)


def test_columns_null_scalars_masks_and_matrices() -> None:
    schema = store.schema([("a", pa.int32()), ("b", pa.string()), ("c", pa.float32()), ("d", pa.list_(pa.float32()))])
    made = store.table_from_columns(
        {
            "a": np.ma.masked_array([1, 2], mask=[False, True]),
            "b": "word",
            "d": np.arange(6, dtype=np.float32).reshape(2, 3),
        },
        schema,
    )
    assert made.to_pylist() == [
        {"a": 1, "b": "word", "c": None, "d": [0.0, 1.0, 2.0]},
        {"a": None, "b": "word", "c": None, "d": [3.0, 4.0, 5.0]},
    ]
    with pytest.raises(StoreError, match="not in the schema"):
        store.table_from_columns({"e": [1]}, schema)
    with pytest.raises(StoreError, match="differ in length"):
        store.table_from_columns({"a": [1], "b": ["x", "y"]}, schema)


def test_parts_are_kept_remade_and_removed(tmp_path: Path) -> None:
    manifest = tmp_path / "job.json"
    made: list[str] = []

    def making(key: str, value: int) -> Making:
        def make() -> tuple[pa.Table, dict, None]:
            made.append(key)
            return table(value), {}, None

        return Making(key=key, identity=[key, value], make=make)

    make_parts(manifest, "p", [making("a", 1), making("b", 2)])
    assert made == ["a", "b"]
    first = manifest.read_bytes()
    manifest.unlink()
    make_parts(manifest, "p", [making("b", 2), making("a", 1)])
    assert made == ["a", "b"], "finished parts are kept, whatever their order"
    assert manifest.read_bytes() == first
    make_parts(manifest, "p", [making("a", 1), making("b", 3)])
    assert made == ["a", "b", "b"]
    assert len(list((tmp_path / "job").glob("*.parquet"))) == 2, "the foreign part is gone"
    path = store.checked_file(manifest, store.read_manifest(manifest)["a"])
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="missing or damaged"):
        store.checked_file(manifest, store.read_manifest(manifest)["a"])
    make_parts(manifest, "p", [making("a", 1), making("b", 3)])
    assert made == ["a", "b", "b", "a"]


def test_a_failed_cell_is_a_status_part_and_is_tried_again(tmp_path: Path) -> None:
    manifest = tmp_path / "job.json"
    broken = [True]

    def fails() -> tuple[pa.Table, dict, None]:
        if broken[0]:
            raise ZeroDivisionError("by zero")
        return table(), {}, None

    makings = [Making("bad", "bad", fails), Making("good", "good", lambda: (table(), {}, None))]
    parts = {p.key: p for p in make_parts(manifest, "p", makings)}
    assert parts["bad"].status == "error"
    assert parts["bad"].reason == "ZeroDivisionError: by zero"
    assert parts["good"].status == "ok"
    assert failed_parts([manifest]) == [(str(manifest), "bad", "ZeroDivisionError: by zero")]
    broken[0] = False
    assert {p.key: p.status for p in make_parts(manifest, "p", makings)} == {"bad": "error", "good": "ok"}, (
        "not before the verdict"
    )
    forget_failed([manifest])
    assert not manifest.exists()
    assert {p.key: p.status for p in make_parts(manifest, "p", makings)} == {"bad": "ok", "good": "ok"}


def test_the_cell_on_which_a_job_was_killed_is_passed_over_by_its_second_attempt(tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    code = (
        "import os, signal, sys, pyarrow as pa\nfrom windtunnel.jobs import Making, make_parts\n"
        "def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def fine():\n    return pa.table({'x': [1]}), {}, None\n"
        "makings = [Making('a', 'a', fine), Making('k', 'k', die), Making('z', 'z', fine)]\n"
        "make_parts('job.json', 'p', makings, attempt=int(sys.argv[1]))\n"
    )
    first = subprocess.run([sys.executable, "-c", code, "1"], cwd=tmp_path, check=False)
    assert first.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-c", code, "2"], cwd=tmp_path, check=True)
    parts = store.read_manifest(tmp_path / "job.json")
    assert {k: p.status for k, p in parts.items()} == {"a": "ok", "k": "error", "z": "ok"}
    assert "was killed" in (parts["k"].reason or "")


def test_damaged_parts_are_removed_at_the_start(tmp_path: Path) -> None:
    manifest = tmp_path / "observed" / "m" / "clean.json"
    make_parts(
        manifest, "p", [Making("a", "a", lambda: (table(), {}, None)), Making("b", "b", lambda: (table(2), {}, None))]
    )
    assert remove_damaged(tmp_path, 100) == []
    path = store.checked_file(manifest, store.read_manifest(manifest)["a"])
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert remove_damaged(tmp_path, 0) == [], "above the limit nothing is read"
    assert remove_damaged(tmp_path, 100) == [str(path)]
    assert not path.exists()
    assert not manifest.exists()


def test_loading_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run 'snakemake' first"):
        store.load(tmp_path)
    with pytest.raises(StoreError, match="known tables are"):
        store.load(tmp_path, "cell")
    store.write_table(tmp_path / "tables" / "metrics.parquet", table(), {"schema_version": 99})
    with pytest.raises(StoreError, match="schema version 99"):
        store.load(tmp_path, "metrics")
    for name, content in (("a", table()), ("b", pa.table({"y": [1]}))):
        store.write_table(
            tmp_path / "tables" / "samples" / f"{name}.parquet", content, {"schema_version": store.SCHEMA_VERSION}
        )
    with pytest.raises(StoreError, match="other columns"):
        store.load(tmp_path)
