"""Image sets on disk: built, shifted, read back as the first rows of a fixed nested order."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel import images, store
from windtunnel.catalogue import NONE
from windtunnel.images.container import ImageSet, read_images, write_images
from windtunnel.jobs import Made, Making, log, make_parts
from windtunnel.plan import Plan, split_shift


def build(plan: Plan, dataset: str, manifest: Path, *, attempt: int = 1) -> None:
    """Build (or, for a user's file, check and adopt) every split that the run needs of one data set."""
    makings = []
    for split in plan.datasets[dataset]:
        name = f"{dataset}.{split}"
        choice = plan.set_choice(name)
        identity: Any = plan.images_settings(name, NONE)
        if choice.file:
            path = plan.catalogue.base / choice.file
            if not path.is_file():
                raise store.StoreError(f"catalogue.images.{name}.file: no file '{path}'")
            identity = {**identity, "sha256": store.file_digest(path), "on_bad_image": plan.run.on_bad_image}
            work = partial(_adopt, path, plan.run.on_bad_image, choice.classes)
        else:
            work = partial(_build, dataset, split)
        makings.append(Making(key=split, identity=identity, make=work, file=f"{split}.parquet"))
    parts = make_parts(manifest, plan.digest("images_build", dataset=dataset), makings, attempt=attempt)
    _refuse_failures(manifest, [(p.key, p.reason) for p in parts if p.status != "ok"])


def shift(plan: Plan, name: str, manifest: Path, *, attempt: int = 1) -> None:
    """Make every shifted version of one image set that the run needs."""
    base = Path("results/images") / plan.set_choice(name).dataset / "manifest.json"
    choice = plan.set_choice(name)
    source = store.read_manifest(base)[choice.split]
    makings = []
    for shifted in plan.shifted_sets[name]:
        identity = {"shift": plan.images_settings(name, shifted), "source": source.sha256}
        makings.append(
            Making(key=shifted, identity=identity, make=partial(_shift, plan, name, shifted), file=f"{shifted}.parquet")
        )
    parts = make_parts(manifest, plan.digest("images_shift", set=name), makings, attempt=attempt)
    _refuse_failures(manifest, [(p.key, p.reason) for p in parts if p.status != "ok"])


def read(plan: Plan, name: str, shift_name: str, n: int | None, *, results: Path | None = None) -> ImageSet:
    """An image set of a run: checked against its manifest, cut to its first ``n`` in the nested order."""
    manifest, key = locate(plan, name, shift_name, results=results)
    return subset(_read_checked(store.checked_file(manifest, store.read_manifest(manifest)[key])), n)


def locate(plan: Plan, name: str, shift_name: str, *, results: Path | None = None) -> tuple[Path, str]:
    """The manifest of an image set and its key there."""
    choice = plan.set_choice(name)
    folder = (results or Path("results")) / "images"
    if shift_name == NONE:
        return folder / choice.dataset / "manifest.json", choice.split
    return folder / name / "shifted.json", shift_name


def content(plan: Plan, name: str, shift_name: str) -> str | None:
    """The digest of an image set's file: part of the identity of everything made from it."""
    manifest, key = locate(plan, name, shift_name)
    return store.read_manifest(manifest)[key].sha256


def nested_order(sample_ids: list[str]) -> list[int]:
    """Positions in a fixed pseudo-random order: the first n are a subset of the first m > n, whatever n and m are."""
    return sorted(range(len(sample_ids)), key=lambda i: hashlib.sha256(sample_ids[i].encode()).hexdigest())


def subset(image_set: ImageSet, n: int | None) -> ImageSet:
    """The first ``n`` samples of the nested order, kept in their own order; all where ``n`` is null or larger."""
    if n is None or n >= len(image_set.sample_ids):
        return image_set
    keep = np.array(sorted(nested_order(image_set.sample_ids)[:n]))
    return image_set.take(keep)


@lru_cache(maxsize=4)
def _read_checked(path: Path) -> ImageSet:
    return read_images(path)[0]


def _written(image_set: ImageSet, metadata: dict[str, Any]) -> Made:
    def write(path: Path) -> int:
        write_images(path, image_set, metadata=metadata)
        return len(image_set)

    return write, metadata, None


def _build(dataset: str, split: str) -> Made:
    return _written(images.build(dataset, split), {"dataset": dataset, "split": split})


def _adopt(path: Path, on_bad_image: str, classes: int | None) -> Made:
    image_set, skipped = read_images(path, on_bad_image=on_bad_image, n_classes=classes)
    for sentence in skipped:
        log.warning("skipped: %s", sentence)
    return _written(image_set, {"file": str(path), "skipped": skipped})


def _shift(plan: Plan, name: str, shifted: str) -> Made:
    choice = plan.set_choice(name)
    kind, severity = split_shift(shifted)
    image_set = read(plan, name, NONE, None)
    canvas = images.build(choice.dataset, choice.split, canvas=True) if kind in images.CANVAS_SHIFTS else None
    result = images.shift_set(image_set, kind, severity, canvas=canvas)
    return _written(result, {"images": name, "shift": kind, "severity": severity})


def _refuse_failures(manifest: Path, failed: list[tuple[str, str | None]]) -> None:
    """Without its images nothing downstream can run: here a failure stops the job, and the manifest does not stand."""
    if failed:
        Path(manifest).unlink(missing_ok=True)
        raise store.StoreError("; ".join(f"{key}: {reason}" for key, reason in failed))
