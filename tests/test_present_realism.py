"""The question of realism: what counts as a pair, what a verdict needs, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from present_frames import metric_frame

from windtunnel.metrics.intervals import t_interval
from windtunnel.present.tables_realism import MARGIN, pairs, realism, verdict

PLACE: dict[str, Any] = {
    "dataset": "photodigits64",
    "split": "test",
    "role": "id",
    "model": "digits64-cnn",
    "model_seed": 0,
}
GAINS = (0.06, 0.08, 0.07)


def rows(
    gains: tuple[float, ...] = GAINS,
    *,
    gap: float = 0.0,
    kids: tuple[float, float] = (0.02, 0.005),
    half: float = 0.002,
) -> list[dict[str, Any]]:
    """Three codec seeds of hyperprior64-1: faithful .40 right under attack, realistic more by ``gains``."""
    found = []
    for seed, gain in enumerate(gains):
        end = f"-s{seed}" if seed else ""
        for name, kid, bits, right in (
            (f"hyperprior64-1{end}", kids[0], 0.5, 0.4),
            (f"hyperprior64-real-1{end}", kids[1], 0.5 * (1 + gap), 0.4 + gain),
        ):  # fmt: skip
            cell = {**PLACE, "defense": name, "shift": "none", "attack": "none", "n": 500}
            found += [
                {**cell, "cell_id": f"r{name}", "metric": "bpp_payload", "value": bits},
                {**cell, "cell_id": f"r{name}", "metric": "accuracy", "value": 0.9, "ci_low": 0.88, "ci_high": 0.92},
                {**cell, "group_id": f"g{name}", "metric": "robust_accuracy", "against": "all", "threat": "linf-4",
                 "attack": None, "value": right, "ci_low": right - 0.04, "ci_high": right + 0.04},
            ]  # fmt: skip
            for model in ("digits64-cnn", "digits64-vit"):
                value = kid if model == "digits64-vit" else 10 * kid
                found.append(
                    {**cell, "model": model, "group_id": f"k{model}{name}", "metric": "realism.kid", "value": value,
                     "ci_low": value - half, "ci_high": value + half}
                )  # fmt: skip
    return found


def measured(defenses: list[str], kids: tuple[float, float], half: float) -> pd.DataFrame:
    """Pseudo-values of 50 images that all decoders share, so that only the paired difference knows who is nearer."""
    shared = np.random.default_rng(0).normal(0, 1, 50)
    own = np.tile([-1.0, 1.0], 25) * half * np.sqrt(49) / 1.96  # a paired interval of this half width
    found = []
    for name in defenses:
        values = shared - shared.mean() + (kids[1] + own if "-real" in name else kids[0])
        found += [
            {"model": "digits64-vit", "model_seed": 0, "dataset": "photodigits64", "split": "test", "defense": name,
             "quantity": "kid", "sample_id": f"i{k}", "value": v}
            for k, v in enumerate(values)
        ]  # fmt: skip
    return pd.DataFrame(found)


def table(
    gains: tuple[float, ...] = GAINS, kids: tuple[float, float] = (0.02, 0.005), half: float = 0.002, **settings: Any
) -> pd.DataFrame:
    found = rows(gains, kids=kids, half=1.0, **settings)
    return realism(metric_frame(found), measured(sorted({r["defense"] for r in found}), kids, half)).data


def test_a_row_per_codec_seed_and_one_over_seeds_with_students_interval() -> None:
    found = table()
    assert found["seed"].tolist() == ["0", "1", "2", "over seeds"]
    assert found["gain"].iloc[:3].tolist() == pytest.approx(GAINS)
    summary, expected = found.iloc[3], t_interval(GAINS)
    assert (summary["gain"], summary["gain_low"], summary["gain_high"]) == pytest.approx(
        (expected.mean, expected.ci_low, expected.ci_high)
    )
    assert summary["gain_low"] > MARGIN and summary["verdict"] == "realism helps"
    assert set(found["network"]) == {"digits64-vit"}, "realism is measured by another network than the judge"
    assert found["kid"].iloc[0] == pytest.approx(0.02)


def test_no_verdict_without_matched_rates_and_shown_realism() -> None:
    assert table(gap=0.031)["verdict"].iloc[3] == "not answered: rates not matched"
    assert table(gap=0.029)["verdict"].iloc[3] == "realism helps"
    assert table(kids=(0.02, 0.02))["verdict"].iloc[3] == "not answered: realism not shown to differ"
    assert table(kids=(0.02, 0.0181), half=0.002)["verdict"].iloc[3] == "not answered: realism not shown to differ"
    assert table(kids=(0.02, 0.0179), half=0.002)["verdict"].iloc[3] == "realism helps"
    assert realism(metric_frame(rows())).data["verdict"].iloc[3] == "not answered: realism not measured"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.031, 0.2, "realism helps"), (0.01, 0.2, "inconclusive"), (-0.02, 0.02, "no difference of 3 points"),
        (-0.2, -0.04, "realism hurts"), (-0.2, 0.2, "inconclusive"), (None, None, "inconclusive: one codec seed"),
    ],
)  # fmt: skip
def test_the_margin_decides(low: float | None, high: float | None, said: str) -> None:
    assert verdict(low, high) == said


def test_a_seed_that_failed_is_no_seed_left_out_and_two_are_too_few() -> None:
    broken = rows()
    for row in broken:
        if row["metric"] == "robust_accuracy" and row["defense"] == "hyperprior64-real-1-s2":
            row["value"] = None
    found = realism(metric_frame(broken), measured(sorted({r["defense"] for r in broken}), (0.02, 0.005), 0.002)).data
    assert found["seed"].tolist() == ["0", "1", "2", "over seeds"]
    assert found["verdict"].tolist()[2:] == ["not answered: a decoder has no worst case"] * 2
    assert pd.isna(found["gain"].iloc[3])
    assert table(gains=GAINS[:2])["verdict"].iloc[2] == "not answered: fewer than 3 codec seeds"


def test_pairs_are_decoders_of_one_codec_rate_seed_and_rounds() -> None:
    alone = ["hyperprior-real-2", "jpeg-50"]
    both = ["hyperprior-1", "hyperprior-real-1", "hyperprior-1-s1-x3", "hyperprior-real-1-s1-x3"]
    names = pd.Series([*alone, *both])
    assert pairs(names) == [
        ("hyperprior-1", "hyperprior-real-1"), ("hyperprior-1-s1-x3", "hyperprior-real-1-s1-x3"),
    ]  # fmt: skip
    one = [r for r in rows() if "-s" not in r["defense"]]
    found = realism(metric_frame(one), measured(["hyperprior64-1", "hyperprior64-real-1"], (0.02, 0.005), 0.002)).data
    assert len(found) == 1 and found["verdict"].iloc[0] == ""
    assert realism(metric_frame([r for r in rows() if "real" not in r["defense"]])).is_empty
