"""Model-free purification: each clean image set through each defense once, for all models."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from windtunnel import registry, store
from windtunnel.catalogue import NONE
from windtunnel.defenses._chain import Chain
from windtunnel.defenses.base import Defense, Purified, repeat
from windtunnel.jobs import Made, Making, make_parts
from windtunnel.metrics.quality import bits_per_pixel, psnr, ssim
from windtunnel.models.folder import WEIGHTS
from windtunnel.plan import JOB_VERSIONS, Plan
from windtunnel.stages import images as image_stage


class NetworkMissing(RuntimeError):
    """The network that a defense carries could not be provided; the reason is its job's."""


def build(plan: Plan, name: str) -> tuple[Defense, int]:
    """A defense object with the trained network it carries, and its rounds, by name."""
    choice = plan.catalogue.defense(name)
    made = []
    for part in choice.stages or (choice,):
        method = registry.load("defense", part.entry.method, plan.catalogue.base)(**part.settings)
        made.append(method.carrying(_module(plan, part.network)) if part.network else method)
    return (Chain(stages=tuple(made)) if choice.stages else made[0]), choice.rounds


@lru_cache(maxsize=4)
def _module(plan: Plan, name: str) -> Any:
    """A provided network, loaded once."""
    from windtunnel.networks.provide import load
    from windtunnel.stages.network import network
    from windtunnel.stages.surrogate import reason_of_failure

    folder = network_folder(name)
    if reason := reason_of_failure(folder):
        raise NetworkMissing(f"the network '{name}' could not be provided: {reason}")
    return load(network(plan, name), folder)


def network_folder(name: str) -> Path:
    """Where a provided network lies."""
    return Path("results/networks") / name


def network_digests(plan: Plan, defense: str) -> dict[str, str]:
    """The digests of the networks that a defense carries: part of the identity of everything it makes."""
    if defense == NONE:
        return {}
    return {n: store.file_digest(network_folder(n) / WEIGHTS) for n in plan.catalogue.defense(defense).networks}


def purify_shared(plan: Plan, dataset: str, family: str, manifest: Path, *, attempt: int = 1) -> None:
    """All strengths of one family on all image sets of a data set, shifts included."""
    makings = []
    for name, shift, defense, n in plan.purified[(dataset, family)]:
        identity = {
            "job": JOB_VERSIONS["purify_shared"],
            "images": plan.images_settings(name, shift),
            "content": image_stage.content(plan, name, shift),
            "defense": plan.defense_settings(defense),
            "networks": network_digests(plan, defense),
            "n": n,
        }
        makings.append(
            Making(
                key=key(name, shift, defense), identity=identity, make=partial(_purify, plan, name, shift, defense, n)
            )
        )
    make_parts(manifest, plan.digest("purify_shared", dataset=dataset, family=family), makings, attempt=attempt)


def key(images: str, shift: str, defense: str) -> str:
    """The manifest key of a purified set."""
    return f"{images}:{shift}:{defense}"


def nchw(images: np.ndarray) -> np.ndarray:
    """[N, H, W, 3] uint8 -> [N, 3, H, W] float32 in [0, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def quality(clean: np.ndarray, seen: np.ndarray, purified: Purified | None) -> dict[str, Any]:
    """Distortion and rate of what a model sees, against the clean image; null where there is nothing to compare."""
    decibels = np.asarray(psnr(clean, seen), np.float64)
    return {
        "psnr": np.ma.masked_array(np.where(np.isfinite(decibels), decibels, 0), mask=~np.isfinite(decibels)),
        "ssim": np.asarray(ssim(clean, seen), np.float32),
        "bpp_file": bits_per_pixel(purified.file_bits, seen) if purified else None,
        "bpp_payload": bits_per_pixel(purified.payload_bits, seen) if purified else None,
    }


def _purify(plan: Plan, name: str, shift: str, defense: str, n: int | None) -> Made:
    image_set = image_stage.read(plan, name, shift, n)
    method, rounds = build(plan, defense)
    clean = nchw(image_set.images)
    result = repeat(method, clean, rounds)
    columns = {
        "sample_id": image_set.sample_ids,
        "source_id": image_set.source_ids,
        "label": image_set.labels,
        "image": [row.tobytes() for row in np.ascontiguousarray(result.images, dtype=np.float32)],
        **quality(clean, result.images, result),
    }
    table = store.table_from_columns(columns, store.schema(store.DEFENDED_FIELDS))
    return table, {"shape": list(result.images.shape[1:])}, None


def unpack(table: pa.Table) -> np.ndarray:
    """[N, 3, H, W] float32 images of a purified part."""
    shape = store.table_metadata(table)["shape"]
    raw = b"".join(table.column("image").to_pylist())
    return np.frombuffer(raw, dtype=np.float32).reshape(-1, *shape).copy()
