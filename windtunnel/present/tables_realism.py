"""Does realism help? Two decoders behind one encoder: the same bits, one faithful, one realistic, both attacked."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from windtunnel.metrics.intervals import t_interval
from windtunnel.present import words
from windtunnel.present.estimates import frame, match, ordered, place_words, put
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import (
    PLACE,
    absent,
    clean_rows,
    diagnostic_rows,
    first,
    full_name,
    in_distribution,
    only,
    tidy,
)
from windtunnel.present.select import robust_rows as robust
from windtunnel.present.style import defense_order, defense_rounds

REALISTIC = "-real"
LEAST_SEEDS = 3
RATE_TOLERANCE = 0.03
"""Payload bits of a pair may differ by so much of the smaller one, or the pair is not matched."""
MARGIN = 0.03
"""Differences of robust accuracy below this are no difference: stated before anything was measured."""
SEED = re.compile(r"^(?P<base>.+?)(-s(?P<seed>[0-9]+))?$")
OVER_SEEDS = "over seeds"
Z95 = 1.959963984540054
CAPTION = (
    "Each pair is one encoder with two decoders: one trained for distortion alone, one for realism too. A pair counts "
    "where its payload bits differ by at most 3 % and where the unbiased kernel distance (KID) between defended and "
    "clean images, in the features of the network named, is smaller for the realistic decoder with a 95 % interval of "
    "the difference, paired image by image, that leaves out 0. Robust accuracy is the worst case over every attack of "
    "the run, rules and unaware images included. The verdict is over codec seeds, by Student's t, with a margin of 3 "
    "points stated beforehand."
)


def realism(metrics: pd.DataFrame, measured: pd.DataFrame | None = None) -> Table:
    """A row per pair and codec seed, then one over seeds with the verdict; by image set, model and threat.

    ``measured`` is ``diagnostics.parquet``: the kernel distances' pseudo-values image by image, by which two decoders
    are compared on the same images.
    """
    metrics = tidy(metrics)
    outcomes = robust(metrics, "all")
    # with those that failed, whose value is null: a seed that failed may not be left out in silence
    known = only(in_distribution(metrics), metric="robust_accuracy", against="all")
    rates, clean, means = clean_rows(metrics, "bpp_payload"), clean_rows(metrics), diagnostic_rows(metrics)
    distances = means[means["quantity"] == "kid"]
    lines: list[dict[str, Any]] = []
    for place in ordered(outcomes[[*PLACE, "threat"]], "threat"):
        here = only(outcomes, **match(place), threat=place["threat"])
        named = only(known, **match(place), threat=place["threat"])["defense"]
        by_pair: dict[str, list[dict[str, Any]]] = {}
        for faithful, realistic in pairs(named):
            network = _network(distances, place, (faithful, realistic))
            line = _one(place, faithful, realistic, here, only(rates, **match(place)), only(clean, **match(place)))
            line |= _distances(distances, place, network, faithful, realistic)
            line |= _gap(measured, place, network, faithful, realistic)
            line["verdict"] = "" if _counts(line) else _why_not(line)
            by_pair.setdefault(_seedless(faithful)[0], []).append(line)
        for pair in by_pair.values():
            lines += pair + ([_summary(pair)] if len(pair) > 1 else [])
    return Table(
        name="realism",
        title="Does a realistic decoder resist attack better than a faithful one at the same rate?",
        data=frame(lines),
        columns=(
            Column("images", "images"), Column("model", "model"), Column("budget", "threat"),
            Column("pair", "pair"), Column("seed", "codec seed"),
            Column("bpp", "payload bits per pixel"), Column("bpp_gap", "rates differ by", "percent"),
            Column("kid", "KID, faithful", "measure"),
            Column("kid_real", "KID, realistic", "measure"),
            Column("kid_gain", "faithful minus realistic", "measure"),
            Column("network", "features of"),
            Column("clean", "clean, faithful", "percent"), Column("clean_real", "clean, realistic", "percent"),
            Column("robust", "worst case, faithful", "percent"),
            Column("robust_real", "worst case, realistic", "percent"),
            Column("gain", "realistic minus faithful", "difference"), Column("verdict", "verdict"),
        ),
        caption=CAPTION,
        empty="Not in this run: no codec was attacked with both of its decoders.",
    )  # fmt: skip


def pairs(defenses: pd.Series) -> list[tuple[str, str]]:
    """(faithful, realistic) names of decoders of one codec, rate, seed and number of rounds, both present."""
    known = set(defenses)
    found = {(name.replace(REALISTIC, "", 1), name) for name in known if REALISTIC in name}
    return sorted((p for p in found if p[0] in known), key=lambda p: defense_order(p[0]))


def verdict(low: float | None, high: float | None, margin: float = MARGIN) -> str:
    """What an interval of (realistic minus faithful) says, given a margin stated beforehand."""
    if low is None or high is None:
        return "inconclusive: one codec seed"
    if low > margin:
        return "realism helps"
    if high < -margin:
        return "realism hurts"
    if -margin < low and high < margin:
        return f"no difference of {100 * margin:.0f} points"
    return "inconclusive"


def _seedless(name: str) -> tuple[str, int]:
    base, rounds = defense_rounds(name)
    found = SEED.match(base)
    assert found is not None
    return found["base"] + (f"-x{rounds}" if rounds > 1 else ""), int(found["seed"] or 0)


def _one(
    place: dict[str, Any], faithful: str, realistic: str, here: pd.DataFrame, rates: pd.DataFrame, clean: pd.DataFrame
) -> dict[str, Any]:
    base, seed = _seedless(faithful)
    line: dict[str, Any] = {
        **place_words(place), "threat": place["threat"], "budget": words.threat(place["threat"]), "pair": base,
        "seed": str(seed), "faithful": faithful, "realistic": realistic,
    }  # fmt: skip
    bits = [_value(first(rates, defense=name)) for name in (faithful, realistic)]
    line["bpp"] = "" if bits[0] is None or bits[1] is None else f"{bits[0]:.3f}, {bits[1]:.3f}"
    line["bpp_gap"] = None if None in bits or min(bits) <= 0 else abs(bits[0] - bits[1]) / min(bits)  # type: ignore[operator,type-var]
    for key, rows in (("clean", clean), ("robust", here)):
        put(line, key, first(rows, defense=faithful))
        put(line, f"{key}_real", first(rows, defense=realistic))
    known = line["robust"] is not None and line["robust_real"] is not None
    line["gain"] = line["robust_real"] - line["robust"] if known else None
    return line


def _value(row: pd.Series | None) -> float | None:
    return None if row is None or absent(row["value"]) else float(row["value"])


def _network(distances: pd.DataFrame, place: dict[str, Any], pair: tuple[str, str]) -> dict[str, Any] | None:
    """The network in whose features both were measured: another one than the judge where there is a choice."""
    rows = only(distances, dataset=place["dataset"], split=place["split"])
    known = []
    for (model, seed), part in rows.groupby(["model", "model_seed"], sort=True):
        if set(pair) <= set(part["defense"]):
            known.append((model == place["model"], full_name(model, seed), {"model": model, "model_seed": seed}))
    return min(known, key=lambda k: k[:2])[2] if known else None


def _distances(
    distances: pd.DataFrame, place: dict[str, Any], network: dict[str, Any] | None, faithful: str, realistic: str
) -> dict[str, Any]:
    line: dict[str, Any] = {"network": "" if network is None else full_name(network["model"], network["model_seed"])}
    rows = distances.iloc[:0] if network is None else only(
        distances, dataset=place["dataset"], split=place["split"], **network
    )  # fmt: skip
    found = [first(rows, defense=name) for name in (faithful, realistic)]
    found = [row if _value(row) is not None else None for row in found]
    put(line, "kid", found[0], why="not measured")
    put(line, "kid_real", found[1], why="not measured")
    return line


def _gap(
    measured: pd.DataFrame | None, place: dict[str, Any], network: dict[str, Any] | None, faithful: str, realistic: str
) -> dict[str, Any]:
    """KID of the faithful decoder minus that of the realistic one: mean difference of the pseudo-values of the same
    images, interval by the normal law of their mean."""
    line: dict[str, Any] = {"kid_gain": None, "kid_gain_low": None, "kid_gain_high": None}
    if measured is None or network is None:
        return line
    rows = only(measured, dataset=place["dataset"], split=place["split"], quantity="kid", **network)
    by_name = [
        only(rows, defense=name).drop_duplicates("sample_id").set_index("sample_id")["value"].astype(float)
        for name in (faithful, realistic)
    ]
    gaps = (by_name[0] - by_name[1]).dropna()
    if len(gaps) > 1:
        half = Z95 * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        mean = float(gaps.mean())
        line |= {"kid_gain": mean, "kid_gain_low": mean - half, "kid_gain_high": mean + half}
    return line


def _counts(line: dict[str, Any]) -> bool:
    """Whether a pair may say something about realism."""
    matched = line["bpp_gap"] is not None and line["bpp_gap"] <= RATE_TOLERANCE
    return matched and line["kid_gain_low"] is not None and line["kid_gain_low"] > 0 and line["gain"] is not None


def _why_not(line: dict[str, Any]) -> str:
    if line["gain"] is None:
        return "not answered: a decoder has no worst case"
    if line["bpp_gap"] is None or line["bpp_gap"] > RATE_TOLERANCE:
        return "not answered: rates not matched"
    if line["kid_gain_low"] is None:
        return "not answered: realism not measured"
    return "not answered: realism not shown to differ"


def _summary(pair: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean gain over codec seeds with its interval, and what it says."""
    shared = {k: pair[0][k] for k in ("images", "model", "threat", "budget", "pair", "network")}
    line: dict[str, Any] = {**shared, "seed": OVER_SEEDS, "bpp": "", "bpp_gap": max_or_none(pair, "bpp_gap")}
    for key in ("kid", "kid_real", "clean", "clean_real", "robust", "robust_real"):
        values = [one[key] for one in pair]
        line[key] = None if any(v is None for v in values) else sum(values) / len(values)
    found = t_interval([one["gain"] for one in pair])
    line |= {"gain": found.mean, "gain_low": found.ci_low, "gain_high": found.ci_high}
    lacking = [one["verdict"] for one in pair if not _counts(one)]
    if not lacking and len({one["seed"] for one in pair}) < LEAST_SEEDS:
        lacking = [f"not answered: fewer than {LEAST_SEEDS} codec seeds"]
    line["verdict"] = lacking[0] if lacking else verdict(found.ci_low, found.ci_high)
    return line


def max_or_none(lines: list[dict[str, Any]], key: str) -> float | None:
    """The largest of a field, None where any line lacks it."""
    values = [line[key] for line in lines]
    return None if any(v is None for v in values) else max(values)
