"""Sample tables of made-up cells in the exact schema: what the tests of checks, metrics, tables and figures read.

``cell`` makes the rows of one cell from per-sample arrays, ``samples`` joins cells to a frame as ``windtunnel.load``
gives it, ``infos`` what a run knows of each cell beside its rows, and ``run`` a whole small run (clean, bare,
unaware, through, transfer, shifted and OOD cells over several training seeds) that looks like the built-in benchmark.
No model is involved: these numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from windtunnel import store

KEYS = (
    "dataset", "split", "role", "shift", "severity", "model", "model_seed", "source_model", "attack", "threat",
    "attack_seed", "attack_defense", "through", "defense", "mode", "iterate",
)  # fmt: skip
SCORES = ("msp", "energy", "abet", "abet-unablated")
RULES = {"jpeg": ("surrogate-n", "surrogate-1", "identity"), "median": ("median", "identity", "blur")}


def cell(
    *,
    n: int = 200,
    correct: Sequence[bool] | np.ndarray | None = None,
    broken: int | None = None,
    scores: dict[str, np.ndarray] | None = None,
    ids: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    labelled: bool = True,
    model: str = "digits-cnn",
    model_seed: int = 0,
    dataset: str = "photodigits",
    split: str = "test",
    role: str = "id",
    shift: str = "none",
    severity: int | None = None,
    attack: str = "none",
    eps_255: int | None = None,
    defense: str = "none",
    attack_defense: str = "none",
    through: str | None = None,
    source_model: str | None = None,
    attack_seed: int = 0,
    mode: str = "full",
    iterate: str = "best",
    n_backward: int | None = 20,
    status: str | Sequence[str] = "ok",
    **columns: Any,
) -> pd.DataFrame:
    """The rows of one cell. ``correct`` gives each sample's outcome; ``broken`` = the first so many are wrong.

    Of an attacked cell (``attack`` not ``none``) the threat is ``linf-<eps_255>``, the source the model itself,
    ``through`` ``bare`` without a defense under attack. ``columns`` overrides or fills any other column of the
    schema.
    """
    attacked = attack != "none"
    eps = None if eps_255 is None else eps_255 / 255
    n = len(correct) if correct is not None else n
    outcome = np.ones(n, dtype=bool) if correct is None else np.asarray(correct, dtype=bool).copy()
    if broken is not None:
        outcome[:broken] = False
    states = np.array([status] * n if isinstance(status, str) else list(status), dtype=object)
    outcome &= ~np.isin(states, ("nan", "error"))
    label = np.arange(n) % 10
    own = model if model_seed == 0 else f"{model}-s{model_seed}"
    row: dict[str, Any] = {
        "dataset": dataset, "split": split, "role": role, "shift": shift, "severity": severity, "model": model,
        "model_seed": model_seed, "attack": attack, "defense": defense,
        "source_model": (source_model or own) if attacked else None,
        "threat": f"linf-{eps_255}" if attacked else "none",
        "attack_seed": attack_seed if attacked else None,
        "attack_defense": attack_defense if attacked else "none",
        "through": (through or "bare") if attacked else "none",
        "mode": mode if attacked else "none", "iterate": iterate if attacked else "none",
    }  # fmt: skip
    confidence = np.where(outcome, 0.9, 0.6) - (np.arange(n) % 7) * 0.01
    content: dict[str, Any] = {
        **{k: [v] * n for k, v in row.items()},
        "schema_version": [store.SCHEMA_VERSION] * n,
        "cell_id": [store.short_id(row)] * n,
        "sample_id": list(ids) if ids is not None else [f"{split}-{i:05d}" for i in range(n)],
        "source_id": list(sources) if sources is not None else [f"{split}/glyph-{i:05d}" for i in range(n)],
        "label": label.tolist() if labelled else [None] * n,
        "norm": ["linf" if attacked else None] * n,
        "eps": [eps if attacked else None] * n,
        "eps_255": [eps_255 if attacked else None] * n,
        "pred": np.where(outcome, label, (label + 1) % 10).tolist(),
        "correct": outcome.tolist() if labelled else [None] * n,
        "conf": confidence.tolist(),
        "margin": np.where(outcome, 2.0, -2.0).tolist(),
        "linf": [eps if attacked else None] * n,
        "l2": [30 * eps if attacked and eps is not None else None] * n,
        "psnr": [31.0 + (i % 5) * 0.1 for i in range(n)] if attacked or defense != "none" else [None] * n,
        "ssim": [0.95] * n if attacked or defense != "none" else [None] * n,
        "bpp_file": [6.1] * n if defense.startswith("jpeg") else [None] * n,
        "bpp_payload": [1.1] * n if defense.startswith("jpeg") else [None] * n,
        "success_float": (~outcome).tolist() if attacked else [None] * n,
        "n_forward": [n_backward + 1 if attacked and n_backward is not None else None] * n,
        "n_backward": [n_backward if attacked else None] * n,
        "zero_gradient": [False if attacked else None] * n,
        "status": states.tolist(),
        "reason": [None if s == "ok" else f"planted {s}" for s in states],
    }
    for name, value in columns.items():
        content[name] = [value] * n if value is None or np.isscalar(value) else list(value)
    for name, value in (scores or {}).items():
        content[store.score_column(name)] = np.asarray(value, dtype=float).tolist()
    return pd.DataFrame({name: pd.Series(value, dtype=object) for name, value in content.items()})


def samples(*cells: pd.DataFrame, scores: Sequence[str] = ()) -> pd.DataFrame:
    """Cells joined to one frame with the types of ``windtunnel.load('results', 'samples')``."""
    return table(*cells, scores=scores).to_pandas()


def table(*cells: pd.DataFrame, scores: Sequence[str] = ()) -> pa.Table:
    """Cells joined to one Arrow table of the sample schema."""
    wanted = store.samples_schema(scores)
    tables = []
    for rows in cells:
        columns = {
            name: [
                None if v is None or (isinstance(v, float) and v != v and name == "label") else v for v in rows[name]
            ]
            for name in wanted.names
            if name in rows
        }
        tables.append(store.table_from_columns(columns, wanted))
    return pa.concat_tables(tables)


def infos(frame: pd.DataFrame, **extra: Any) -> list[dict[str, Any]]:
    """One entry per cell of a frame: its key columns and what a run records of it. ``extra`` overrides fields."""
    found = []
    for cell_id, rows in frame.groupby("cell_id", sort=True):
        first = rows.iloc[0]
        key = {name: None if pd.isna(first[name]) else first[name] for name in KEYS}
        for name in ("severity", "model_seed", "attack_seed"):
            key[name] = None if key[name] is None else int(key[name])
        found.append(
            {
                "cell_id": cell_id,
                **key,
                "has_scores": False,
                "fit_on": None,
                "config_json": store.canonical_json(key),
                "weights_sha256": "0" * 64,
                "source_weights_sha256": None if key["attack"] == "none" else "0" * 64,
                "versions_json": "{}",
                "commit": None,
                "status": "ok",
                "reason": None,
                "rule_is_generic": None if key["defense"] == "none" else key["defense"].split("-")[0] not in RULES,
                "adversarially_trained": key["model"] == "digits-at",
                **extra,
            }
        )
    return found


def measured(
    diagnostic: str,
    *,
    model: str = "digits-cnn",
    model_seed: int = 0,
    dataset: str = "photodigits",
    split: str = "test",
    defense: str = "none",
    through: str = "bare",
    norm: str = "linf",
    eps: float = 8 / 255,
    **quantities: Sequence[float] | np.ndarray,
) -> pd.DataFrame:
    """The rows of one measurement in the schema of the diagnostics table: values per sample by quantity."""
    parts = []
    for quantity, values in quantities.items():
        n = len(values)
        row: dict[str, Any] = {
            "dataset": dataset, "split": split, "shift": "none", "severity": None, "model": model,
            "model_seed": model_seed, "defense": defense, "through": through, "norm": norm, "eps": eps,
            "diagnostic": diagnostic, "quantity": quantity,
        }  # fmt: skip
        ids = [f"{split}-{i:05d}" for i in range(n)]
        parts.append(
            pd.DataFrame(
                {**{k: [v] * n for k, v in row.items()}, "sample_id": ids, "value": np.asarray(values, dtype=float)}
            )
        )
    return pd.concat(parts, ignore_index=True)


def _outcomes(rng: np.random.Generator, n: int, accuracy: float) -> np.ndarray:
    return rng.random(n) < accuracy


def _scores(
    rng: np.random.Generator, n: int, distance: float, names: Sequence[str], model: str
) -> dict[str, np.ndarray]:
    has_temperature = model.endswith("abet")
    return {
        name: rng.normal(distance * (1 + 0.1 * place), 1.0, n)
        for place, name in enumerate(names)
        if has_temperature or not name.startswith("abet")
    }


def run(
    *,
    seeds: int = 3,
    n: int = 60,
    n_attacked: int = 40,
    score_names: Sequence[str] = SCORES,
    models: Sequence[str] = ("digits-cnn", "digits-abet", "digits-coslin", "digits-at"),
    random_state: int = 7,
) -> pd.DataFrame:
    """A whole run in small: every kind of cell, image set and figure input of the built-in benchmark."""
    rng = np.random.default_rng(random_state)
    near, far = ("letters", "scrambled", "rotated"), ("science", "textures", "new_scenes")
    parts: list[pd.DataFrame] = []
    for model in models:
        hardened = model == "digits-at"
        for seed in range(seeds):
            common: dict[str, Any] = {"model": model, "model_seed": seed}

            def scored(size: int, distance: float, model: str = model) -> dict[str, np.ndarray]:
                return _scores(rng, size, distance, score_names, model)

            for defense in ("none", "jpeg-50", "median-3"):
                accuracy = 0.95 if defense == "none" else 0.9
                parts.append(
                    cell(correct=_outcomes(rng, n, accuracy), defense=defense, scores=scored(n, 0.0), **common)
                )
                for role, splits in (("near_ood", near), ("far_ood", far), ("sanity", ("noise",))):
                    for place, split in enumerate(splits):
                        distance = (1.0 if role == "near_ood" else 2.0) + 0.3 * place + 0.1 * seed
                        parts.append(
                            cell(
                                n=n,
                                split=split,
                                role=role,
                                labelled=False,
                                defense=defense,
                                scores=scored(n, distance),
                                **common,
                            )
                        )
            for severity in (1, 2, 3):
                parts.append(
                    cell(
                        correct=_outcomes(rng, n, 0.95 - 0.1 * severity),
                        shift="gaussian_noise",
                        severity=severity,
                        role="shifted",
                        scores=scored(n, 0.3 * severity),
                        **common,
                    )
                )
            if seed:
                continue
            for eps in (1, 2, 4, 8, 16):
                fall = 0.9 - 0.05 * eps if hardened else max(0.0, 0.7 - 0.15 * eps)
                for attack, gradients, extra in (("fgsm", 1, 0.15), ("pgd20", 20, 0.0), ("sign-noise", 0, 0.6)):
                    parts.append(
                        cell(
                            correct=_outcomes(rng, n_attacked, min(0.95, fall + extra)),
                            attack=attack,
                            eps_255=eps,
                            mode="search",
                            iterate="first",
                            n_backward=gradients,
                            **common,
                        )
                    )
            for eps in (4, 8):
                for iterate in ("best", "last"):
                    attacked: dict[str, Any] = {"attack": "pgd20", "eps_255": eps, "iterate": iterate, **common}
                    fall = 0.5 if hardened else 0.02
                    parts.append(
                        cell(correct=_outcomes(rng, n_attacked, fall), scores=scored(n_attacked, -0.5), **attacked)
                    )
                    for defense in ("jpeg-50", "median-3", "wavelet"):
                        parts.append(
                            cell(
                                correct=_outcomes(rng, n_attacked, 0.5),
                                defense=defense,
                                scores=scored(n_attacked, -0.2),
                                **attacked,
                            )
                        )
            if model != "digits-cnn":
                continue
            parts.append(
                cell(
                    correct=_outcomes(rng, n_attacked, 0.6),
                    attack="pgd20",
                    eps_255=8,
                    source_model="digits-cnn-s1",
                    **common,
                )
            )
            parts.append(
                cell(
                    correct=_outcomes(rng, n_attacked, 0.2),
                    attack="square",
                    eps_255=8,
                    n_backward=0,
                    mode="search",
                    iterate="first",
                    **common,
                )
            )
            parts.append(cell(correct=_outcomes(rng, n, 0.9), defense="wavelet", **common))
            for rule in RULES["median"]:
                parts.append(
                    cell(
                        correct=_outcomes(rng, n_attacked, 0.1),
                        attack="pgd20",
                        eps_255=8,
                        defense="median-3",
                        attack_defense="median-3",
                        through=rule,
                        **common,
                    )
                )
            for rounds, rise in ((1, 0.01), (2, 0.12), (3, 0.61), (5, 0.70), (10, 0.78)):
                defense = "jpeg-50" if rounds == 1 else f"jpeg-50-x{rounds}"
                if rounds > 1:
                    parts.append(cell(correct=_outcomes(rng, n, 0.9), defense=defense, **common))
                    parts.append(
                        cell(
                            correct=_outcomes(rng, n_attacked, 0.51),
                            attack="pgd20",
                            eps_255=8,
                            defense=defense,
                            **common,
                        )
                    )
                for rule in RULES["jpeg"]:
                    if rounds == 1 and rule == "surrogate-n":
                        continue
                    level = {"surrogate-n": rise, "surrogate-1": 0.01, "identity": 0.25}[rule]
                    for iterate in ("best", "last"):
                        parts.append(
                            cell(
                                correct=_outcomes(rng, n_attacked, level),
                                attack="pgd20",
                                eps_255=8,
                                defense=defense,
                                attack_defense=defense,
                                through=rule,
                                iterate=iterate,
                                **common,
                            )
                        )
    return samples(*parts, scores=score_names)
