"""Frames of a small synthetic run for the tests of tables and figures: samples, and the metrics and cells made from
them.

The numbers come through the same functions as those of a real run, so a table that looks for rows under a name that is
not written any more finds nothing here either.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from synthetic import SCORES, cell, infos, run
from synthetic import samples as sample_frame

from windtunnel import store
from windtunnel.stages import summarise


def metric_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Hand-made rows as ``windtunnel.load(..., 'metrics')`` gives them; what a row does not name is null."""
    wanted = store.schema(store.METRIC_FIELDS)
    return store.table_from_columns({n: [row.get(n) for row in rows] for n in wanted.names}, wanted).to_pandas()


def metrics_of(samples: pd.DataFrame, scores: tuple[str, ...] = SCORES) -> pd.DataFrame:
    """Metrics of a whole run, as the summarising stage computes them (few bootstrap replicates)."""
    rows: list[dict[str, Any]] = []
    for _, part in samples.groupby(["model", "model_seed"], sort=True):
        rows += summarise.cell_metrics(part, scores=scores, cell_infos=infos(part), replicates=20)
    return summarise.metrics_table([*rows, *summarise.group_metrics(rows)]).to_pandas()


def cells_of(samples: pd.DataFrame) -> pd.DataFrame:
    """The cells table, checks included."""
    return summarise.cells_table(samples, infos(samples)).to_pandas()


def with_codecs(samples: pd.DataFrame) -> pd.DataFrame:
    """The run and two codecs in three settings each: clean, unaware and through, on 'digits-cnn'."""
    rng, parts = np.random.default_rng(3), []
    for place, (family, quality) in enumerate((f, q) for f in ("jpeg", "webp") for q in (10, 25, 75)):
        defense, bits = f"{family}-{quality}", (0.3 + 0.02 * quality) * (1.0 if family == "jpeg" else 0.6)
        common: dict[str, Any] = {"defense": defense, "bpp_payload": bits}
        attacked: dict[str, Any] = {"attack": "pgd20", "eps_255": 8, **common}
        right = [rng.random(40) < level for level in (0.93 - 0.02 * place, 0.5, 0.05, 0.2)]
        parts += [cell(correct=right[0], **common), cell(correct=right[1], **attacked)]
        rules = ("surrogate-1", "identity") if family == "jpeg" else ("identity", "blur")
        for rule, outcome in zip(rules, right[2:], strict=True):
            parts.append(cell(correct=outcome, attack_defense=defense, through=rule, **attacked))
    return pd.concat([samples, sample_frame(*parts, scores=SCORES)], ignore_index=True)


@cache
def whole_run() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """samples, metrics, cells of the synthetic run. Shared between tests: nobody changes them."""
    samples = with_codecs(run(seeds=2))
    return samples, metrics_of(samples), cells_of(samples)
