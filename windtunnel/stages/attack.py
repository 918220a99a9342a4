"""Attacked images: each attack of one job, bare or through a defense, one part each."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from windtunnel import registry, store
from windtunnel.catalogue import NONE
from windtunnel.jobs import Made, Making, log, make_parts
from windtunnel.plan import AttackKey, Plan
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage


def attack(plan: Plan, model: str, name: str, batch: str, manifest: Path, *, attempt: int = 1) -> None:
    """All attacks of one (attacked model, image set, batch)."""
    weights = store.file_digest(model_folder(model) / "weights.safetensors")
    makings = [
        Making(key=key_name(key), identity=identity(plan, key, weights), make=partial(_attack, plan, key))
        for key in plan.attack_jobs[(model, name, batch)]
    ]
    make_parts(
        manifest,
        plan.digest("attack", model=model, set=name, batch=batch),
        makings,
        attempt=attempt,
        prepare=partial(classifier, model),
    )


def model_folder(model: str) -> Path:
    """Where a provided model lies."""
    return Path("results/models") / model


@lru_cache(maxsize=1)
def classifier(model: str) -> Any:
    """A provided model, loaded once; the cells of a job come model by model, so one at a time is in memory."""
    from windtunnel.models.load import load_model

    return load_model(model_folder(model))


def key_name(key: AttackKey) -> str:
    """The manifest key of an attack, readable."""
    pieces = [key.shift, key.attack, key.threat, f"seed{key.seed}", key.mode, key.defense, key.rule]
    return ":".join(pieces)


def identity(plan: Plan, key: AttackKey, weights: str) -> dict[str, Any]:
    """Everything an attacked part depends on: its settings and the digests of its inputs."""
    return {
        "settings": plan.attack_settings(key),
        "weights": weights,
        "images": image_stage.content(plan, key.images, key.shift),
        "batch_size": plan.run.batch_size,
    }


def _attack(plan: Plan, key: AttackKey) -> Made:
    from windtunnel import engine

    image_set = image_stage.read(plan, key.images, key.shift, plan.n_of(key))
    entry, _, settings = plan.catalogue.attack(key.attack)
    threat = plan.catalogue.threat(key.threat)
    method = registry.load("attack", entry.method, plan.catalogue.base)(**settings)
    defense, rounds = purify_stage.build(plan, key.defense) if key.defense != NONE else (None, 1)
    clean = purify_stage.nchw(image_set.images)

    def progress(done: int, total: int, robust: float) -> None:
        log.info("  %s: %d of %d, robust so far %.3f", key_name(key), done, total, robust)

    result = engine.run_attack(
        classifier(key.model),
        method,
        clean,
        np.asarray(image_set.labels, dtype=np.int64),
        image_set.sample_ids,
        eps=threat.budget,
        norm=threat.norm,
        seed=key.seed,
        mode=key.mode,
        defense=defense,
        rounds=rounds,
        rule=key.rule if key.defense != NONE else "identity",
        batch_size=plan.run.batch_size,
        progress=progress,
    )
    columns = {
        "sample_id": image_set.sample_ids,
        "source_id": image_set.source_ids,
        "label": image_set.labels,
        "best": pack(result.best, clean, threat.budget, threat.norm),
        "last": pack(result.last, clean, threat.budget, threat.norm),
        "success": result.success,
        "first_success": result.first_success,
        "n_forward": result.n_forward,
        "n_backward": result.n_backward,
        "zero_gradient": result.zero_gradient,
        "nan_gradient": result.nan_gradient,
        "nan": result.nan,
        "bound_violation": result.bound_violation,
    }
    table = store.table_from_columns(columns, store.schema(store.ATTACKED_FIELDS))
    metadata = {"norm": threat.norm, "shape": list(clean.shape[1:])}
    return table, metadata, int(np.sum(result.n_backward))


def pack(images: np.ndarray, clean: np.ndarray, eps: float, norm: str) -> list[bytes]:
    """Images as stored: 8-bit for linf (rounding stays in the ball), float32 for l2 (where it would leave it)."""
    from windtunnel import engine

    if norm == "linf":
        return [row.tobytes() for row in engine.store_linf(images, clean, eps)]
    return [row.tobytes() for row in np.ascontiguousarray(images, dtype=np.float32)]


def unpack(table: pa.Table, iterate: str) -> np.ndarray:
    """[N, 3, H, W] float32 images of an attacked part, as stored. ``first`` and ``best`` are one column."""
    metadata = store.table_metadata(table)
    shape = metadata["shape"]
    raw = b"".join(table.column("last" if iterate == "last" else "best").to_pylist())
    if metadata["norm"] == "linf":
        return np.frombuffer(raw, dtype=np.uint8).reshape(-1, *shape).astype(np.float32) / np.float32(255)
    return np.frombuffer(raw, dtype=np.float32).reshape(-1, *shape).copy()
