"""What every job does around its one piece of work: log, plan, parts, failed cells, one clear sentence when it cannot
go on.

A job makes a list of *parts*. A part that exists with the right id and the right bytes is kept; one that is foreign is
removed; a cell that raises becomes a status part and the others go on. The second attempt of a job records the cell on
which the first was killed (out of memory, segmentation fault) and passes over it. Only then is the manifest written.
"""

from __future__ import annotations

import os

for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "passive"), ("MKL_NUM_THREADS", "1")):
    os.environ.setdefault(_name, _value)

import atexit
import logging
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel import store
from windtunnel.plan import Plan
from windtunnel.store import Part, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("windtunnel")
CURRENT = ".current"
LAST_WORDS = "failed.txt"
UPSTREAM_FAILED = "UpstreamFailed"
_SCREEN: list[int] = []
MADE = ".made"


Made = tuple["pa.Table | Callable[[Path], int]", dict[str, Any], "int | None"]


@dataclass(frozen=True)
class Making:
    """One part to make: its key in the manifest, everything its name depends on, and the work itself.

    ``make`` returns the table (or, for another file format, a function that writes the file and returns its rows), its
    metadata and how many gradient evaluations it took (null where there is no such thing). ``file`` overrides the
    content-addressed file name (image sets have readable names).
    """

    key: str
    identity: Any
    make: Callable[[], Made]
    file: str | None = None


NAMED_RUN, NAMED_FOLDER = "WINDTUNNEL_RUN", "WINDTUNNEL_RUN_FOLDER"


def use_this_python() -> None:
    """Jobs that are shell commands find this environment's programs first, activated or not."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def named_run(names: Sequence[str]) -> str | None:
    """Which of the runs with a config of their own was asked for on the command line, if any.

    Jobs on other machines do not see that command line: they learn it from the environment, which they inherit.
    """
    found = next((n for n in names if n in sys.argv[1:]), None) or os.environ.get(NAMED_RUN)
    if found in names:
        os.environ[NAMED_RUN] = str(found)
        os.environ.setdefault(NAMED_FOLDER, str(Path("runs", str(found)).absolute()))
        return found
    return None


def folder_of(run: str) -> str:
    """Where a named run lies: runs/<name> below the folder in which it was asked for."""
    folder = Path(os.environ.get(NAMED_FOLDER) or Path("runs", run).absolute())
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


@contextmanager
def script(snakemake: Any) -> Iterator[Plan]:
    """The frame of every script: output goes to the rule's log; an error is one sentence, there and on screen."""
    target = Path(str(snakemake.log[0]))
    target.parent.mkdir(parents=True, exist_ok=True)
    screen = os.dup(2)
    _SCREEN.append(screen)
    with open(target, "w") as handle:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    wildcards = " ".join(str(w) for w in snakemake.wildcards)
    started, worked = time.perf_counter(), time.process_time()
    try:
        plan = Plan.of(dict(snakemake.config), source="config", base=Path.cwd())
        started, worked = time.perf_counter(), time.process_time()
        yield plan
        _record_costs(target, time.perf_counter() - started, time.process_time() - worked)
    except Exception as error:
        traceback.print_exc()
        sentence = f"windtunnel: {snakemake.rule} {wildcards}: {error}".rstrip()
        log.error(sentence)
        sys.stderr.flush()
        os.write(screen, (sentence + "\n").encode())
        raise SystemExit(1) from None
    log.info("%s %s: done in %.1f s", snakemake.rule, wildcards, time.perf_counter() - started)
    sys.stderr.flush()
    sys.stdout.flush()


def _record_costs(target: Path, wall: float, cpu: float) -> None:
    """What the whole job took from its first piece of work on: beside the logs, under results/costs, one file a job."""
    path = Path("results/costs") / Path(*target.with_suffix(".json").parts[2:])
    store.write_json(path, {"wall_seconds": wall, "cpu_seconds": cpu, "peak_memory_mb": _peak_memory_mb()})


def _peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(lines: Sequence[str]) -> None:
    """Lines for the person at the terminal, past the log that a script's output goes to."""
    for line in lines:
        log.info(line)
    text = "\n".join(lines) + "\n"
    if _SCREEN:
        os.write(_SCREEN[-1], text.encode())


def make_parts(
    manifest: Path | str,
    plan_digest: str,
    makings: Sequence[Making],
    *,
    attempt: int = 1,
    prepare: Callable[[], object] | None = None,
) -> list[Part]:
    """Make what is missing, keep what is right, remove what is foreign, write the manifest. Returns the parts.

    ``prepare`` (imports, a model's loading) is called once before the first part that must be made, outside its costs.
    ``attempt`` is Snakemake's: from the second on, the cell on which the attempt before was killed is recorded as
    failed. Raises StoreError when a file cannot be written or an input cannot be read: finished parts stay.
    """
    folder = store.parts_folder(manifest)
    made = folder / MADE
    made.mkdir(parents=True, exist_ok=True)
    current = folder / f"{CURRENT}.{Path(manifest).stem}"
    died_on = current.read_text() if attempt > 1 and current.exists() else None
    parts: list[Part] = []
    for index, making in enumerate(makings, start=1):
        part_id = store.short_id(making.identity)
        file = making.file or f"{part_id}.parquet"
        note = made / f"{Path(file).stem}.json"
        part = _finished(folder, note, making.key, part_id)
        if part is not None:
            log.info("[%d/%d] %s: kept %s", index, len(makings), making.key, file)
            parts.append(part)
            continue
        if died_on == part_id:
            reason = (
                "the process was killed while it made this cell (out of memory, a crash in native code, or by hand)"
            )
            part = Part(key=making.key, file=None, sha256=None, status="error", reason=reason)
        else:
            if prepare is not None:
                prepare()
                prepare = None
            current.write_text(part_id)
            try:
                part = _make(folder / file, making)
            except StoreError:
                current.unlink(missing_ok=True)
                raise
        _note(note, part_id, part)
        log.info(
            "[%d/%d] %s: %s%s", index, len(makings), making.key, part.status, f" ({part.reason})" if part.reason else ""
        )
        parts.append(part)
    current.unlink(missing_ok=True)
    _remove_foreign(folder, made, manifest, parts, makings)
    store.write_manifest(manifest, plan_digest, parts)
    return parts


def _make(path: Path, making: Making) -> Part:
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        table, metadata, gradients = making.make()
    except StoreError:
        raise
    except Exception as error:
        traceback.print_exc()
        return Part(
            key=making.key, file=None, sha256=None, status="error", reason=f"{type(error).__name__}: {error}"[:500]
        )
    if callable(table):
        rows = table(path)
    else:
        store.write_table(path, table, metadata)
        rows = table.num_rows
    costs: dict[str, float] = {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_mb": _peak_memory_mb(),
    }
    if gradients is not None:
        costs["gradient_evaluations"] = gradients
    return Part(key=making.key, file=path.name, sha256=store.file_digest(path), status="ok", rows=rows, costs=costs)


def _note(note: Path, part_id: str, part: Part) -> None:
    store.write_json(note, {"id": part_id, "key": part.key, **part.as_json(), "costs": part.costs})


def _finished(folder: Path, note: Path, key: str, part_id: str) -> Part | None:
    if not note.exists():
        return None
    try:
        entry = store.read_json(note)
    except StoreError:
        return None
    if entry.get("id") != part_id:
        return None
    if entry["status"] != "ok":
        return Part(key=key, file=None, sha256=None, status=entry["status"], reason=entry["reason"])
    path = folder / entry["file"]
    if not path.is_file() or store.file_digest(path) != entry["sha256"]:
        log.warning("%s is missing or damaged: made again", path)
        return None
    return Part(
        key=key, file=entry["file"], sha256=entry["sha256"], status="ok", rows=entry["rows"], costs=entry["costs"]
    )


def _remove_foreign(
    folder: Path, made: Path, manifest: Path | str, parts: Sequence[Part], makings: Sequence[Making]
) -> None:
    """Parts of older plans. Image folders hold several manifests' files, so there only their own names are known."""
    if any(m.file for m in makings):
        return
    wanted = {p.file for p in parts if p.file}
    notes = {f"{store.short_id(m.identity)}.json" for m in makings}
    for path in folder.glob("*.parquet"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    for path in made.glob("*.json"):
        if path.name not in notes:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def failed_parts(manifests: Sequence[Path | str]) -> list[tuple[str, str, str]]:
    """(manifest, cell key, reason) of every part that is not ok."""
    found = []
    for manifest in manifests:
        for part in store.read_manifest(manifest).values():
            if part.status == "error":
                found.append((str(manifest), part.key, part.reason or ""))
    return found


def forget_failed(manifests: Sequence[Path | str]) -> None:
    """Remove status parts and their manifests, so that the next run tries exactly those cells again."""
    for manifest in manifests:
        failed = {p.key for p in store.read_manifest(manifest).values() if p.status == "error"}
        if not failed:
            continue
        for note in (store.parts_folder(manifest) / MADE).glob("*.json"):
            entry = store.read_json(note)
            if entry.get("status") == "error" and entry.get("key") in failed:
                note.unlink(missing_ok=True)
        Path(manifest).unlink(missing_ok=True)


def remove_damaged(results: Path | str, limit_mb: int) -> list[str]:
    """Find parts whose bytes differ from their manifest, remove them with the manifest; returns their paths.

    Called at the start of a run, in the main process, before Snakemake plans: what was removed is made again. Above
    ``limit_mb`` of parts nothing is read (readers check every part they open all the same).
    """
    root = Path(results)
    manifests = [*root.glob("attacked/*/*/*.json"), *root.glob("observed/*/*.json"), *root.glob("defended/*/*.json")]
    manifests += root.glob("diagnosed/*/*.json")
    manifests += root.glob("certified/*/*/*.json")
    manifests += [*root.glob("images/*/manifest.json"), *root.glob("images/*/shifted.json")]
    entries = []
    for manifest in manifests:
        try:
            entries.append((manifest, list(store.read_manifest(manifest).values())))
        except (StoreError, KeyError, TypeError):
            entries.append((manifest, None))
    size = 0
    for manifest, parts in entries:
        for part in parts or []:
            path = store.parts_folder(manifest) / part.file if part.file else None
            size += path.stat().st_size if path and path.is_file() else 0
    if size > limit_mb * 1_000_000:
        return []
    damaged: list[str] = []
    for manifest, parts in entries:
        bad = [] if parts is not None else [manifest]
        for part in parts or []:
            if part.file is None:
                continue
            path = store.parts_folder(manifest) / part.file
            if not path.is_file() or store.file_digest(path) != part.sha256:
                bad.append(path)
        if bad:
            for path in bad:
                path.unlink(missing_ok=True)
                damaged.append(str(path))
            Path(manifest).unlink(missing_ok=True)
    if damaged:
        # Snakemake does not miss an input of finished work: what takes every manifest must be wanted again
        for output in ("tables/cells.parquet", "verdict.ok"):
            (root / output).unlink(missing_ok=True)
    return damaged


def verdict(manifests: Sequence[Path | str], output: Path, surrogates: Sequence[Path] = ()) -> None:
    """Write ``output`` if no cell failed; else list the failed ones, forget them for the next run, and raise.

    The list is also left in results/failed.txt, from where the workflow prints it as its last lines.
    """
    failed = failed_parts(manifests)
    listing = output.parent / LAST_WORDS
    if not failed:
        listing.unlink(missing_ok=True)
        store.write_atomic(output, b"ok\n")
        return
    causes = [f for f in failed if not f[2].startswith(UPSTREAM_FAILED)] or failed
    lines = [f"{Path(m).with_suffix('')} {key}: {reason}" for m, key, reason in causes]
    store.write_atomic(listing, ("\n".join(lines) + "\n").encode())
    forget_failed(manifests)
    from windtunnel.stages import surrogate

    surrogate.forget_failed(surrogates)
    raise RuntimeError(f"{len(causes)} failed; tables and report are made all the same, the next run tries again")


def leave_last_words(results: Path | str) -> None:
    """Print the failed cells of this run's verdict when the process ends: after all that Snakemake has to say."""
    listing = Path(results) / LAST_WORDS
    if listing.is_file():
        text = f"windtunnel: failed:\n{listing.read_text()}"
        atexit.register(lambda: print(text, end="", file=sys.stderr, flush=True))
