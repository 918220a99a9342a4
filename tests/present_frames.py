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
from windtunnel.present import words_diagnostics
from windtunnel.present.select import Composed
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


# ------------------------------------------------------------------------- batteries, ensembles, nearest, diagnostics

COMPOSED = Composed(
    batteries={"autoattack-standard": ("apgd-ce-100", "fab-t", "square-5000"), "pma-plus": ("pma-50", "apgd-t-50")},
    ensembles={"ens-cnn-at": ("digits-cnn", "digits-at"), "ens-three": ("digits-cnn", "digits-abet", "digits-coslin")},
    nearest=frozenset({"fab-t"}),
)
PIPELINES = (("digits-cnn", "none", "none"), ("digits-at", "none", "none"), ("digits-cnn", "jpeg-50", "surrogate-1"))


def battery_cells(
    model: str = "digits-cnn", *, n: int = 100, clean: float = 0.95, left: float = 0.5, eps_255: int = 8
) -> list[pd.DataFrame]:
    """Search cells of two batteries, four single attacks and a random search on one model, with what they spent."""
    rng = np.random.default_rng(5)
    hardness = rng.permutation(n) / n
    wrong = np.arange(n) >= round(clean * n)
    parts = []
    attacks: dict[str, tuple[float, float, tuple[str, ...]]] = {
        "autoattack-standard": (left, 700.0, COMPOSED.batteries["autoattack-standard"]),
        "pma-plus": (left + 0.005, 80.0, COMPOSED.batteries["pma-plus"]),
        "apgd-ce-100": (left + 0.06, 100.0, ()),
        "apgd-dlr-100": (left + 0.04, 100.0, ()),
        "pgd20": (left + 0.08, 20.0, ()),
        "fgsm": (left + 0.2, 1.0, ()),
        "square-300": (left + 0.15, 0.0, ()),
    }
    for attack, (level, longest, members) in attacks.items():
        survives = (hardness >= 1 - level) & ~wrong
        share = np.clip(hardness / max(1 - level, 1e-9), 0, 1)
        spent = np.where(survives, longest, np.ceil(longest**share if longest else 0 * share))
        spent = np.where(wrong, 0, spent)
        names = members or (attack,)
        who = np.minimum((share**3 * len(names)).astype(int), len(names) - 1)
        broken_by = [None if ok or bad else names[w] for ok, bad, w in zip(survives, wrong, who, strict=True)]
        parts.append(
            cell(correct=survives, model=model, attack=attack, eps_255=eps_255, mode="search", iterate="first",
                 broken_by=broken_by, n_forward=(spent + 1 + (300 if not longest else 0)).astype(int).tolist(),
                 ).assign(n_backward=pd.Series(spent.astype(int).tolist(), dtype=object))
        )  # fmt: skip
    return parts


def attack_run(n: int = 100) -> pd.DataFrame:
    """Samples of a run with every kind of attack: batteries, ensembles as sources, a nearest-image attack."""
    rng = np.random.default_rng(9)
    parts = []
    for model, clean, left in (("digits-cnn", 0.95, 0.03), ("digits-at", 0.85, 0.5)):
        parts.append(cell(correct=np.arange(n) < round(clean * n), model=model))
        for eps in (4, 8):
            parts += battery_cells(model, n=n, clean=clean, left=left + (0.15 if eps == 4 else 0.0), eps_255=eps)
        wrong = np.arange(n) >= round(clean * n)
        for norm, eps_255, unit in (("linf", 16, 1 / 255), ("l2", 128, 0.05)):
            distance = np.where(wrong, 0.0, rng.gamma(4.0, (0.8 if model == "digits-cnn" else 3.0) * unit, n))
            eps = 16 / 255 if norm == "linf" else 1.0
            correct = distance > eps
            threat = {"linf": "linf-16", "l2": "l2-100"}[norm]
            nearest = cell(correct=correct, model=model, attack="fab-t", eps_255=eps_255, n_backward=30)
            nearest = nearest.assign(threat=threat, norm=norm, eps=eps, cell_id=f"{model}-{threat}")
            parts.append(nearest.assign(**{norm: pd.Series(np.minimum(distance, eps).tolist(), dtype=object)}))
    for place, attack in enumerate(("pgd20", "mi-cwa", "adaea")):
        for source in ("digits-cnn", "digits-at", "digits-cnn-s1", "ens-cnn-at", "ens-three"):
            for model, base in (("digits-cnn", 0.3), ("digits-at", 0.7), ("digits-abet", 0.35)):
                level = 0.02 if source == model else base - 0.05 * place - (0.1 if "ens" in source else 0.0)
                parts.append(
                    cell(correct=rng.random(n) < level, model=model, source_model=source, attack=attack, eps_255=8)
                )
    parts.append(cell(correct=rng.random(n) < 0.9, model="digits-abet"))
    return sample_frame(*parts, scores=SCORES)


def diagnostic_frame(n: int = 40) -> pd.DataFrame:
    """``diagnostics.parquet`` of three pipelines: every built-in quantity that has words."""
    rng = np.random.default_rng(11)
    scale = {"e_lin": 1e-5, "distance": 0.02, "sparsity": 600.0, "spread": 90.0}
    rows = []
    for model, defense, through in PIPELINES:
        for name, quantities in words_diagnostics.known_quantities().items():
            for quantity in quantities:
                values = rng.beta(2, 3 if model == "digits-at" else 6, n) * scale.get(quantity, 1.0)
                if name == "pipeline_contract" or quantity in ("found", "vulnerable", "clean_correct", "beats_all"):
                    values = np.full(n, 0.0 if name == "pipeline_contract" else 1.0)
                values[: 4 if quantity in ("distance", "found", "roughness") else 0] = np.nan
                for i, value in enumerate(values):
                    rows.append(
                        {"dataset": "photodigits", "split": "test", "shift": "none", "model": model, "model_seed": 0,
                         "defense": defense, "through": through, "threat": "linf-8", "norm": "linf", "eps": 8 / 255,
                         "diagnostic": name.replace("_", "-"), "sample_id": f"test-{i:05d}",
                         "source_id": f"test/glyph-{i:05d}", "quantity": quantity,
                         "value": None if np.isnan(value) else float(value)}
                    )  # fmt: skip
    wanted = store.schema(store.DIAGNOSTIC_FIELDS)
    return store.table_from_columns({c: [r.get(c) for r in rows] for c in wanted.names}, wanted).to_pandas()


@cache
def attacked_run() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """samples, metrics (diagnostics included), cells, diagnostics. Shared between tests: nobody changes them."""
    samples, measured = attack_run(), diagnostic_frame()
    rows: list[dict[str, Any]] = []
    for _, part in samples.groupby(["model", "model_seed"], sort=True):
        rows += summarise.cell_metrics(part, scores=SCORES, cell_infos=infos(part), replicates=20)
    rows += [*summarise.group_metrics(rows), *summarise.diagnostic_metrics(measured, replicates=20)]
    return samples, summarise.metrics_table(rows).to_pandas(), cells_of(samples), measured
