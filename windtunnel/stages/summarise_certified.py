"""Certificates of a run in two tables: sample by sample, and as certified accuracy against the radius."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from windtunnel import store
from windtunnel.certify.smoothing import asked_radius
from windtunnel.metrics.intervals import mean_estimate
from windtunnel.plan import CertifiedKey, Plan
from windtunnel.stages import certify

TABLE_METADATA = {"schema_version": store.SCHEMA_VERSION}
STEPS_PER_UNIT = 20
"""Radii of the stored curve: every 1/20, from 0 to the first one that no certificate can reach."""


def write(plan: Plan, samples: Path, accuracy: Path) -> None:
    """Both tables of a run; without certificates both are empty."""
    schema = store.schema(store.CERTIFIED_FIELDS)
    tables, rows = [schema.empty_table()], []
    for key in (k for keys in plan.certify_jobs.values() for k in keys):
        shared = key_columns(plan, key)
        shares = _shares(plan, key)
        if not shares:
            continue
        # in one order, whatever the number of shards
        whole = pa.concat_tables(shares).sort_by("sample_id")
        columns = {name: whole.column(name) for name in whole.column_names}
        repeated = {**shared, "looks": [shared["looks"]] * whole.num_rows}
        tables.append(store.table_from_columns(repeated | columns, schema))
        if len(shares) == plan.run.certify_shards:  # else the verdict names what failed; the others' mean is not it
            rows += accuracy_rows(whole.to_pandas(), shared)
    store.write_table(samples, pa.concat_tables(tables), TABLE_METADATA)
    store.write_table(accuracy, accuracy_table(rows), TABLE_METADATA)


def key_columns(plan: Plan, key: CertifiedKey) -> dict[str, Any]:
    """What every row of a certificate says of it."""
    choice, model = plan.set_choice(key.images), plan.catalogue.model(key.model)
    return {
        "dataset": choice.dataset, "split": choice.split, "model": model.family, "model_seed": model.seed,
        "defense": key.defense, "sigma": key.sigma, "choose_draws": key.choose_draws, "draws": key.draws,
        "alpha": key.alpha, "looks": list(key.looks), "mode": "sequential" if key.looks else "fixed",
        "largest_radius": asked_radius(key.draws, key.alpha, key.sigma, key.looks),
    }  # fmt: skip


def accuracy_rows(samples: pd.DataFrame, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """What one certificate says of a set of samples, each mean with its 95 % interval over sources.

    ``certified_accuracy`` at a radius r: the share of all samples that are certified as their own label with a radius
    of at least r (abstaining is wrong); at 0 that is the share certified as their label at all.
    ``average_certified_radius`` counts 0 for all others. ``abstained``; ``draws_used``: certifying draws per sample.
    ``smoothed_accuracy``: the majority of the choosing draws is right, without any guarantee.
    """
    if samples.empty:
        return []
    samples = samples.sort_values("sample_id")
    sources = samples["source_id"].where(samples["source_id"].notna(), samples["sample_id"]).to_numpy(dtype=object)
    correct = samples["correct"].to_numpy(dtype=bool)
    certified = np.where(correct, samples["radius"].to_numpy(dtype=np.float64), np.nan)
    means = {
        "smoothed_accuracy": (samples["chosen"] == samples["label"]).to_numpy(dtype=np.float64),
        "abstained": samples["predicted"].isna().to_numpy(dtype=np.float64),
        "average_certified_radius": np.nan_to_num(certified),
        "draws_used": samples["n_used"].to_numpy(dtype=np.float64),
    }
    rows = [_row(shared, name, None, values, sources) for name, values in means.items()]
    for radius in radii_of(shared["largest_radius"]):
        rows.append(_row(shared, "certified_accuracy", radius, (certified >= radius).astype(np.float64), sources))
    return rows


def radii_of(largest: float | None) -> list[float]:
    """0, 0.05, ... up to the first radius above ``largest``."""
    return [i / STEPS_PER_UNIT for i in range(int((largest or 0.0) * STEPS_PER_UNIT) + 2)]


def accuracy_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows in the schema of ``certified_accuracy.parquet``."""
    wanted = store.schema(store.CERTIFIED_ACCURACY_FIELDS)
    return store.table_from_columns({n: [r.get(n) for r in rows] for n in wanted.names}, wanted)


def _row(
    shared: dict[str, Any], metric: str, radius: float | None, values: np.ndarray, sources: np.ndarray
) -> dict[str, Any]:
    found = mean_estimate(values, sources)
    return shared | {
        "metric": metric, "radius": radius, "value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high,
        "ci_method": found.ci_method, "n": found.n, "n_clusters": found.n_clusters,
    }  # fmt: skip


def _shares(plan: Plan, key: CertifiedKey) -> list[pa.Table]:
    """The shares of a certificate that were made."""
    found = []
    for shard in range(plan.run.certify_shards):
        manifest = certify.manifest_of(key, shard)
        part = store.read_manifest(manifest)[certify.key_name(key)]
        if part.status == "ok":
            found.append(store.part_table(manifest, part))
    return found
