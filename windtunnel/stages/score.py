"""Scores from cached logits and features; writes the sample tables. No torch: adding a score runs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from windtunnel import registry, store
from windtunnel.jobs import log
from windtunnel.plan import CLEAN, Plan, Wanted
from windtunnel.scores.base import Head, Observations, Score, State
from windtunnel.stages import images as image_stage
from windtunnel.stages.attack import model_folder
from windtunnel.stages.observe import fit_key, key_columns


def score(plan: Plan, group: str, batch: str, output: Path) -> None:
    """The sample table of one (group of models, batch): every cell's rows, every configured score's column."""
    manifest = Path("results/observed") / group / f"{batch}.json"
    parts = store.read_manifest(manifest)
    fitted = {m: _fit(plan, group, m) for m in plan.observed_models(group, batch)}
    schema = store.samples_schema(plan.run.scores)
    tables = []
    for wanted in plan.observe_jobs[(group, batch)]:
        part = parts[plan.cell_id(wanted.cell)]
        if part.status == "error":
            log.warning("%s failed: %s", part.key, part.reason)
            tables.append(failed_rows(plan, wanted, part.reason, schema))
            continue
        observed = store.part_table(manifest, part)
        columns: dict[str, Any] = {
            name: observed.column(name) for name, _ in store.SAMPLE_FIELDS if name in observed.column_names
        }
        columns["schema_version"] = store.SCHEMA_VERSION
        columns |= _scores(observed, wanted.scores, *fitted[wanted.cell.model])
        tables.append(store.table_from_columns(columns, schema))
    metadata = {"schema_version": store.SCHEMA_VERSION, "scores": list(plan.run.scores), "fit_on": plan.run.fit_on}
    store.write_table(output, pa.concat_tables(tables), metadata)


def failed_rows(plan: Plan, wanted: Wanted, reason: str | None, schema: pa.Schema) -> pa.Table:
    """A failed cell is rows too: one per sample, status ``error``, never correct."""
    image_set = image_stage.read(plan, wanted.cell.images, wanted.cell.shift, wanted.n)
    n = len(image_set.sample_ids)
    columns = {
        **key_columns(plan, wanted.cell),
        "schema_version": store.SCHEMA_VERSION,
        "sample_id": image_set.sample_ids,
        "source_id": image_set.source_ids,
        "label": image_set.labels,
        "correct": [False] * n if image_set.labels is not None else None,
        "status": ["error"] * n,
        "reason": [reason] * n,
    }
    return store.table_from_columns(columns, schema)


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """[N, D] float32 of a list column whose lists are equally long."""
    array = column.combine_chunks()
    if array.null_count:
        return np.zeros((len(array), 0), dtype=np.float32)
    flat = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), -1) if len(array) else flat.reshape(0, 0)


def _observations(table: pa.Table) -> Observations:
    labels = table.column("label")
    return Observations(
        logits=matrix(table.column("logits")),
        features=matrix(table.column("features")),
        labels=None if labels.null_count else labels.to_numpy(),
    )


def _fit(plan: Plan, group: str, model: str) -> tuple[Head | None, dict[str, tuple[Score, State]]]:
    """Every score that this model can have, fitted. A user's model without a named head has scores of logits only."""
    if model not in plan.fitted_models:
        return None, {}
    from windtunnel.models.load import load_head

    try:
        head = load_head(model_folder(model))
    except LookupError as error:
        log.warning("%s: scores that need features are null", error)
        head = None
    manifest = Path("results/observed") / group / f"{CLEAN}.json"
    fit = store.read_manifest(manifest).get(fit_key(model))
    train = _observations(store.part_table(manifest, fit)) if fit and fit.status == "ok" else None
    fitted: dict[str, tuple[Score, State]] = {}
    for name in plan.run.scores:
        entry, card, settings = plan.catalogue.score(name)
        method: Score = registry.load("score", entry.method, plan.catalogue.base)(**settings)
        if head is None and (
            card.constants.get("needs_features", False) or card.constants.get("needs_temperature", False)
        ):
            continue
        if head is not None and not method.applies_to(head):
            continue
        if not card.constants.get("needs_fit", False):
            fitted[name] = (method, {})
            continue
        if train is None:
            log.warning("score '%s' is null: the split '%s' of %s was not observed", name, plan.run.fit_on, model)
            continue
        try:
            fitted[name] = (method, method.fit(train, head))
        except ValueError as error:
            log.warning("score '%s' is null for %s: it cannot be fitted (%s)", name, model, error)
    return head, fitted


def _scores(
    observed: pa.Table, wanted: tuple[str, ...], head: Head | None, fitted: dict[str, tuple[Score, State]]
) -> dict[str, np.ndarray]:
    if not wanted:
        return {}
    observations = _observations(observed)
    found = {}
    for name in wanted:
        if name in fitted:
            method, state = fitted[name]
            found[store.score_column(name)] = np.asarray(method.score(observations, state, head), dtype=np.float64)
    return found
