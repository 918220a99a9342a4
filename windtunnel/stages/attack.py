"""Attacked images: each attack of one job, bare or through a defense, one part each."""

from __future__ import annotations

from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from windtunnel import registry, store
from windtunnel.catalogue import LEARNED, NONE
from windtunnel.jobs import Made, Making, log, make_parts
from windtunnel.models.folder import WEIGHTS
from windtunnel.plan import JOB_VERSIONS, AttackKey, Plan
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage


def attack(plan: Plan, model: str, name: str, batch: str, manifest: Path, *, attempt: int = 1) -> None:
    """All attacks of one (attacked model, image set, batch)."""
    weights = weights_digest(plan, model)
    makings = [
        Making(key=key_name(key), identity=identity(plan, key, weights), make=partial(_attack, plan, key))
        for key in plan.attack_jobs[(model, name, batch)]
    ]
    make_parts(
        manifest,
        plan.digest("attack", model=model, set=name, batch=batch),
        makings,
        attempt=attempt,
        prepare=partial(attacked_model, plan, model),
    )


@cache
def _file_digest(path: str) -> str:
    return store.file_digest(path)


def weights_digest(plan: Plan, model: str) -> str:
    """The digest of a model's weights; of an ensemble that of its members' digests."""
    found = [_file_digest(path) for path in plan.weights_of(model)["weights"]]
    return found[0] if len(found) == 1 else store.digest(found)


def model_folder(model: str) -> Path:
    """Where a provided model lies."""
    return Path("results/models") / model


@lru_cache(maxsize=1)
def classifier(model: str) -> Any:
    """A provided model, loaded once; the cells of a job come model by model, so one at a time is in memory."""
    from windtunnel.models.load import load_model

    return load_model(model_folder(model))


@lru_cache(maxsize=1)
def attacked_model(plan: Plan, model: str) -> Any:
    """The model that is attacked: a single one, or the members of an ensemble as one."""
    members = plan.catalogue.members(model)
    if len(members) == 1:
        return classifier(members[0])
    from windtunnel.models.ensemble import ensemble_of
    from windtunnel.models.load import load_model

    return ensemble_of({m: load_model(model_folder(m)) for m in members})


def backward_rule(plan: Plan, images: str, defense: str, rule: str) -> Any:
    """What ``engine.Pipeline`` takes as a rule: its name, or the learned surrogate itself."""
    if defense == NONE:
        return "identity"
    if rule != LEARNED:
        return rule
    from windtunnel.stages.surrogate import reason_of_failure
    from windtunnel.surrogates.provide import load

    folder = Path(plan.surrogate_of(images, defense))
    reason = reason_of_failure(folder)
    if reason:
        raise RuntimeError(f"the stand-in of '{defense}' could not be trained: {reason}")
    return load(folder)


def surrogate_digest(plan: Plan, images: str, defense: str, rule: str) -> str | None:
    """The digest of the learned surrogate that a pipeline is seen through, null for any other rule."""
    if rule != LEARNED:
        return None
    return store.file_digest(Path(plan.surrogate_of(images, defense)) / WEIGHTS)


def key_name(key: AttackKey) -> str:
    """The manifest key of an attack, readable."""
    pieces = [key.shift, key.attack, key.threat, f"seed{key.seed}", key.mode, key.defense, key.rule]
    return ":".join(pieces)


def identity(plan: Plan, key: AttackKey, weights: str) -> dict[str, Any]:
    """Everything an attacked part depends on: its settings and the digests of its inputs."""
    return {
        "job": JOB_VERSIONS["attack"],
        "settings": plan.attack_settings(key),
        "weights": weights,
        "surrogate": surrogate_digest(plan, key.images, key.defense, key.rule),
        "networks": purify_stage.network_digests(plan, key.defense),
        "images": image_stage.content(plan, key.images, key.shift),
        "batch_size": plan.run.batch_size,
    }


def _attack(plan: Plan, key: AttackKey) -> Made:
    from windtunnel import engine

    image_set = image_stage.read(plan, key.images, key.shift, plan.n_of(key))
    choice = plan.catalogue.attack(key.attack)
    threat = plan.catalogue.threat(key.threat)
    members = [(m.name, registry.load("attack", m.method, plan.catalogue.base)(**m.settings)) for m in choice.members]
    defense, rounds = purify_stage.build(plan, key.defense) if key.defense != NONE else (None, 1)
    clean = purify_stage.nchw(image_set.images)

    def progress(done: int, total: int, robust: float) -> None:
        log.info("  %s: %d of %d, robust so far %.3f", key_name(key), done, total, robust)

    result, broken_by = engine.run_battery(
        attacked_model(plan, key.model),
        members,
        clean,
        np.asarray(image_set.labels, dtype=np.int64),
        image_set.sample_ids,
        eps=threat.budget,
        norm=threat.norm,
        seed=key.seed,
        mode=key.mode,
        defense=defense,
        rounds=rounds,
        rule=backward_rule(plan, key.images, key.defense, key.rule),
        eot=choice.entry.eot,
        to_be_stored=True,
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
        "broken_by": broken_by,
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
