"""A model looks once at every image of its cells: logits, features and the natural columns of the sample table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.defenses.base import repeat
from windtunnel.jobs import Made, Making, make_parts
from windtunnel.plan import JOB_VERSIONS, Cell, Plan, Wanted, split_shift
from windtunnel.stages import attack as attack_stage
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage
from windtunnel.store import Part, StoreError

DEFENSE_SEED = 0
"""Judging throws its own dice, keyed by this and the sample: the same for every attack on a defense."""


class UpstreamFailed(RuntimeError):
    """The attacked images of this cell could not be made; the reason is the attack's."""


def observe(plan: Plan, group: str, batch: str, manifest: Path, *, attempt: int = 1) -> None:
    """All cells of one (group of judging models, batch), one part each; batch ``clean`` also the fitting split."""
    models = plan.observed_models(group, batch)
    weights = {m: attack_stage.weights_digest(plan, m) for m in models}
    makings = []
    for wanted in plan.observe_jobs[(group, batch)]:
        source, content = _source(plan, wanted.cell)
        identity = {
            "job": JOB_VERSIONS["observe"],
            "cell": plan.cell_settings(wanted.cell),
            "n": wanted.n,
            "weights": weights[wanted.cell.model],
            "networks": purify_stage.network_digests(plan, wanted.cell.defense),
            "content": content,
            "features": bool(wanted.scores),
            "batch_size": plan.run.batch_size,
        }
        makings.append(
            Making(
                key=plan.cell_id(wanted.cell),
                identity=identity,
                make=partial(_observe, plan, wanted, source),
            )
        )
    for model in plan.fitted_in(group, batch):
        fit = plan.fit_set(model) or ""
        identity = {
            "job": JOB_VERSIONS["observe"],
            "model": model,
            "fit": plan.images_settings(fit, NONE),
            "weights": weights[model],
            "content": image_stage.content(plan, fit, NONE),
            "batch_size": plan.run.batch_size,
        }
        makings.append(Making(key=fit_key(model), identity=identity, make=partial(_observe_fit, plan, model, fit)))
    make_parts(
        manifest,
        plan.digest("observe", group=group, batch=batch),
        makings,
        attempt=attempt,
        prepare=partial(attack_stage.classifier, models[0]),
    )


def manifest_of(plan: Plan, wanted: Wanted) -> Path:
    """The manifest that lists a cell's observations."""
    return Path("results/observed") / plan.group_of(wanted.cell.model) / f"{wanted.batch}.json"


def fit_key(model: str) -> str:
    """The manifest key of a model's fitting split."""
    return f"fit:{model}"


def attacked_manifest(plan: Plan, cell: Cell) -> Path:
    """The manifest that lists a cell's attacked images."""
    if cell.attack is None:
        raise ValueError("a clean cell has no attacked images")
    key = cell.attack
    return Path("results/attacked") / key.model / key.images / f"{plan.batch_of(key)}.json"


def _source(plan: Plan, cell: Cell) -> tuple[Part | None, str | None]:
    """The part a cell is made from (null for undefended clean images) and the digest that goes into its identity."""
    clean = image_stage.content(plan, cell.images, cell.shift)
    if cell.attack is not None:
        part = store.read_manifest(attacked_manifest(plan, cell))[attack_stage.key_name(cell.attack)]
        return part, f"{clean}:{part.sha256 or part.reason}"
    if cell.defense != NONE and not _is_random(plan, cell):
        part = store.read_manifest(_purified_manifest(plan, cell))[
            purify_stage.key(cell.images, cell.shift, cell.defense)
        ]
        return part, f"{clean}:{part.sha256 or part.reason}"
    return None, clean


def _purified_manifest(plan: Plan, cell: Cell) -> Path:
    dataset, family = plan.set_choice(cell.images).dataset, plan.catalogue.defense(cell.defense).family
    return Path("results/defended") / dataset / f"{family}.json"


def key_columns(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns that every row of a cell shares."""
    choice = plan.set_choice(cell.images)
    shift, severity = split_shift(cell.shift) if cell.shift != NONE else (NONE, None)
    model = plan.catalogue.model(cell.model)
    key = cell.attack
    threat = plan.catalogue.threat(key.threat) if key else None
    linf = threat is not None and threat.norm == "linf"
    return {
        "cell_id": plan.cell_id(cell),
        "dataset": choice.dataset,
        "split": choice.split,
        "role": choice.role if cell.shift == NONE else "shifted",
        "shift": shift,
        "severity": severity,
        "model": model.family,
        "model_seed": model.seed,
        "source_model": key.model if key else None,
        "attack": key.attack if key else NONE,
        "threat": key.threat if key else NONE,
        "norm": threat.norm if threat else None,
        "eps": threat.budget if threat else None,
        "eps_255": threat.eps_255 if threat and linf else None,
        "attack_seed": key.seed if key else None,
        "attack_defense": key.defense if key else NONE,
        "through": cell.through,
        "defense": cell.defense,
        "mode": key.mode if key else NONE,
        "iterate": cell.iterate,
    }


def _observe(plan: Plan, wanted: Wanted, source: Part | None) -> Made:
    from windtunnel import engine

    cell = wanted.cell
    if source is not None and source.status == "error":
        raise UpstreamFailed(source.reason)
    image_set = image_stage.read(plan, cell.images, cell.shift, wanted.n)
    clean = purify_stage.nchw(image_set.images)
    columns: dict[str, Any] = {}
    seen = clean
    if cell.attack is not None:
        table = store.part_table(attacked_manifest(plan, cell), source)  # type: ignore[arg-type]
        _same_samples(table.column("sample_id").to_pylist(), image_set.sample_ids, source)
        attacked = attack_stage.unpack(table, cell.iterate)
        columns |= _attack_columns(plan, cell, table, attacked, clean)
        purified = None
        seen = attacked
        if cell.defense != NONE and not _is_random(plan, cell):
            method, rounds = purify_stage.build(plan, cell.defense)
            purified = repeat(method, attacked, rounds)
            seen = purified.images
        columns |= purify_stage.quality(clean, seen, purified)
    elif cell.defense != NONE and not _is_random(plan, cell):
        table = store.part_table(_purified_manifest(plan, cell), source)  # type: ignore[arg-type]
        keep = _rows_of(table.column("sample_id").to_pylist(), image_set.sample_ids, source)
        table = table.take(keep)
        seen = purify_stage.unpack(table)
        columns |= {name: table.column(name) for name in ("psnr", "ssim", "bpp_file", "bpp_payload")}
    look = partial(
        engine.predict,
        attack_stage.classifier(cell.model),
        batch_size=plan.run.batch_size,
        with_features=bool(wanted.scores) and _has_head(cell.model),
    )
    if _is_random(plan, cell):
        logits, features, drawn = _over_draws(plan, cell, image_set, seen, look)
        columns |= purify_stage.quality(clean, drawn.pop("first_draw"), None) | drawn
    else:
        logits, features = look(seen)
    columns |= judge(logits, image_set.labels, columns.get("bound_violation"))
    columns.pop("bound_violation", None)
    columns |= key_columns(plan, cell)
    columns |= {
        "sample_id": image_set.sample_ids,
        "source_id": image_set.source_ids,
        "label": image_set.labels,
        "logits": logits,
        "features": features,
    }
    return store.table_from_columns(columns, store.schema(store.OBSERVED_FIELDS)), {"cell": plan.cell_id(cell)}, None


def _is_random(plan: Plan, cell: Cell) -> bool:
    return cell.defense != NONE and plan.catalogue.defense(cell.defense).is_random


def _over_draws(
    plan: Plan, cell: Cell, image_set: Any, images: np.ndarray, look: Any
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """(mean logits, mean features, the columns of a random defense): fresh draws, which no attack has seen.

    ``pred`` comes from the mean logits; ``p_correct`` is the share of single draws that are right, which is what
    accuracies average.
    """
    from windtunnel import engine

    method, rounds = purify_stage.build(plan, cell.defense)
    streams = engine.RowRandom.keyed(DEFENSE_SEED, [f"{s}\0judge" for s in image_set.sample_ids]).streams
    logits, features, first = [], [], images
    for draw in range(engine.JUDGING_DRAWS):
        seen = repeat(method, images, rounds, streams).images
        first = seen if draw == 0 else first
        z, h = look(seen)
        logits.append(z)
        features.append(h)
    n = len(images)
    found: dict[str, Any] = {
        "first_draw": first,
        "n_draws": np.full(n, engine.JUDGING_DRAWS),
        "defense_seed": np.full(n, DEFENSE_SEED),
    }
    if image_set.labels is not None:
        right = [(z.argmax(1) == image_set.labels) & np.isfinite(z).all(1) for z in logits]
        found["p_correct"] = np.mean(right, axis=0)
    mean = np.mean(logits, axis=0, dtype=np.float64).astype(np.float32)
    return mean, None if features[0] is None else np.mean(features, axis=0, dtype=np.float64).astype(np.float32), found


def judge(logits: np.ndarray, labels: np.ndarray | None, bound_violation: np.ndarray | None = None) -> dict[str, Any]:
    """Prediction columns from logits [N, K]. A NaN logit is a wrong answer with status ``nan``; without labels no
    answer is right.

    ``margin`` is the label's logit minus the largest other one: positive exactly where the prediction is correct.
    """
    n, _ = logits.shape
    broken = ~np.isfinite(logits).all(axis=1)
    z = np.where(broken[:, None], 0.0, logits.astype(np.float64))
    top = z.argmax(axis=1)
    shifted = z - z.max(axis=1, keepdims=True)
    conf = 1.0 / np.exp(shifted).sum(axis=1)
    status = np.where(broken, "nan", "ok").astype(object)
    if bound_violation is not None:
        status[bound_violation & ~broken] = "bound"
    found: dict[str, Any] = {
        "pred": np.ma.masked_array(top.astype(np.int32), mask=broken),
        "conf": np.ma.masked_array(conf.astype(np.float32), mask=broken),
        "status": list(status),
        "reason": [
            "a logit is not finite" if b else ("the attack left its ball or the box" if s == "bound" else None)
            for b, s in zip(broken, status, strict=True)
        ],
    }
    if labels is not None:
        others = z.copy()
        others[np.arange(n), labels] = -np.inf
        margin = z[np.arange(n), labels] - others.max(axis=1)
        found["correct"] = (top == labels) & ~broken
        found["margin"] = np.ma.masked_array(margin.astype(np.float32), mask=broken)
    return found


def _attack_columns(plan: Plan, cell: Cell, table: Any, attacked: np.ndarray, clean: np.ndarray) -> dict[str, Any]:
    difference = (attacked.astype(np.float64) - clean).reshape(len(clean), -1)
    success = table.column("success").to_numpy(zero_copy_only=False).astype(bool)
    return {
        "linf": np.abs(difference).max(axis=1).astype(np.float32),
        "l2": np.sqrt((difference**2).sum(axis=1)).astype(np.float32),
        "success_float": success,
        "broken_by": table.column("broken_by"),
        "broken_at": table.column("first_success"),
        "n_forward": table.column("n_forward"),
        "n_backward": table.column("n_backward"),
        "zero_gradient": table.column("zero_gradient"),
        "nan_gradient": table.column("nan_gradient"),
        "bound_violation": table.column("bound_violation").to_numpy(zero_copy_only=False).astype(bool),
    }


def _same_samples(found: list[str], wanted: list[str], part: Part | None) -> None:
    if found != wanted:
        raise StoreError(f"the attacked part '{part.file if part else None}' holds other samples than its image set")


def _rows_of(found: list[str], wanted: list[str], part: Part | None) -> list[int]:
    where = {sample: row for row, sample in enumerate(found)}
    missing = [s for s in wanted if s not in where]
    if missing:
        raise StoreError(f"the purified part '{part.file if part else None}' lacks samples such as '{missing[0]}'")
    return [where[s] for s in wanted]


def _observe_fit(plan: Plan, model: str, name: str) -> Made:
    from windtunnel import engine

    image_set = image_stage.read(plan, name, NONE, None)
    logits, features = engine.predict(
        attack_stage.classifier(model),
        purify_stage.nchw(image_set.images),
        batch_size=plan.run.batch_size,
        with_features=_has_head(model),
    )
    columns = {
        "sample_id": image_set.sample_ids,
        "source_id": image_set.source_ids,
        "label": image_set.labels,
        "logits": logits,
        "features": features,
    }
    return store.table_from_columns(columns, store.schema(store.OBSERVED_FIELDS)), {"fit": name}, None


def _has_head(model: str) -> bool:
    """Whether the model's last layer is known, so that it has features: a user's own module may not say."""
    return store.read_json(attack_stage.model_folder(model) / "card.json").get("head") is not None
