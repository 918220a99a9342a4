"""One defense applied several times: which rows, which lines, which references. Shared by the figures of rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.select import PLACE, Outcomes, absent, attacked_rows, clean_rows, full_name, only

KEYS = (*PLACE, "attack", "threat", "base")
ROUNDS_OF = {"surrogate-n": "surrogate-1"}
"""Rules that are another one where there is one round: that cell is stored once, under the other name."""
SOLID, DASHED, DOTTED = "-", (0, (3, 2)), (0, (1, 1.4))
PAD = 0.15


@dataclass(frozen=True)
class Series:
    """One defense in several rounds on one model under one attack: cells through it, unaware ones, clean ones."""

    key: dict[str, Any]
    through: pd.DataFrame
    unaware: pd.DataFrame
    clean: pd.DataFrame

    @property
    def base(self) -> str:
        return str(self.key["base"])

    @property
    def ticks(self) -> list[int]:
        """Numbers of rounds that were attacked through."""
        return sorted(int(r) for r in self.through["rounds"].unique())

    @property
    def rules(self) -> list[str]:
        return sorted(self.through["through"].unique(), key=style.rule_order)

    @property
    def model(self) -> str:
        return full_name(self.key["model"], self.key["model_seed"])

    @property
    def images(self) -> str:
        return words.image_set(self.key["dataset"], self.key["split"])

    @property
    def attack(self) -> str:
        return f"{words.attack(self.key['attack'])} at {words.threat(self.key['threat'])}"

    @property
    def n(self) -> str:
        """How many images: one number, or from least to most."""
        least, most = int(self.through["n"].min()), int(self.through["n"].max())
        return str(least) if least == most else f"{least} to {most}"

    def line(self, rule: str, iterate: str) -> pd.DataFrame:
        """The points of one rule and iterate, one per number of rounds."""
        part = only(self.through, through=rule, iterate=iterate)
        once = "+".join(ROUNDS_OF.get(name, name) for name in rule.split("+"))
        if once != rule and not part.empty and 1 not in set(part["rounds"]):
            part = pd.concat([only(self.through, through=once, iterate=iterate, rounds=1), part])
        return one_per_round(part)

    def last(self) -> pd.DataFrame:
        """What stands at the most rounds, last iterates left out."""
        return self.through[(self.through["rounds"] == self.ticks[-1]) & (self.through["iterate"] != "last")]


def all_series(metrics: pd.DataFrame) -> list[Series]:
    """Every series of tidy ``metrics`` with more than one number of rounds: most rounds first, then most rules."""
    rows = with_rounds(attacked_rows(metrics))
    rows = rows[rows["defense"] != "none"]
    clean = with_rounds(clean_rows(metrics))
    through = rows[rows["attack_defense"] == rows["defense"]]
    unaware = rows[rows["attack_defense"].isin(["none", ""])]
    found = []
    for values, part in through.groupby(list(KEYS), dropna=False, sort=True):
        rounds = part["rounds"].nunique()
        if rounds > 1:
            key = {k: (None if k in PLACE and absent(v) else v) for k, v in zip(KEYS, values, strict=True)}
            judged = {k: key[k] for k in (*PLACE, "base")}
            series = Series(key, part, only(unaware, **key), only(clean, **judged))
            found.append(((-rounds, -part["through"].nunique(), str(values)), series))
    return [series for _, series in sorted(found, key=lambda f: f[0])]


def with_rounds(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with columns ``base`` (the defense applied once) and ``rounds``."""
    split = [style.defense_rounds(d) for d in rows["defense"]]
    return rows.assign(base=[b for b, _ in split], rounds=[r for _, r in split])


def one_per_round(part: pd.DataFrame) -> pd.DataFrame:
    return part.drop_duplicates("rounds").sort_values("rounds", kind="stable")


@dataclass(frozen=True)
class Looks:
    """Colour and marker of every backward rule in a figure. A combined rule of a composition has the colour of its
    first stage's rule, and a marker for the rest."""

    colours: dict[str, str]
    markers: dict[str, str]


def looks(rules: Iterable[str]) -> Looks:
    rules = sorted(set(rules), key=style.rule_order)
    parts = {rule: rule.partition("+")[::2] for rule in rules}
    colours = style.rule_colours({first for first, _ in parts.values()})
    rests = [rest for rest in sorted({rest for _, rest in parts.values()}, key=style.rule_order) if rest]
    marks = {"": style.MARKERS[0]} | {
        rest: style.MARKERS[1 + i % (len(style.MARKERS) - 1)] for i, rest in enumerate(rests)
    }
    return Looks({r: colours[f] for r, (f, _) in parts.items()}, {r: marks[rest] for r, (_, rest) in parts.items()})


@dataclass(frozen=True)
class Drawn:
    """What a panel shows: ends of its lines (y, text, colour) and names of the checks raised at its rings."""

    labels: list[tuple[float, str, str]]
    flagged: set[str]


def draw(axes: Axes, series: Series, outcomes: Outcomes, rules: Iterable[str], look: Looks) -> Drawn:
    """A line per rule (solid best iterate with its band, dashed last), the references dotted, rings where a check was
    raised."""
    at = {r: i for i, r in enumerate(series.ticks)}
    labels: list[tuple[float, str, str]] = []
    flagged: set[str] = set()
    for rule in rules:
        colour, marker = look.colours[rule], look.markers[rule]
        for iterate, dash in (("best", SOLID), ("first", SOLID), ("last", DASHED)):
            line = series.line(rule, iterate)
            if line.empty:
                continue
            x, y = [at[r] for r in line["rounds"]], line["value"].to_numpy(float)
            axes.plot(x, y, color=colour, linestyle=dash, marker=marker if dash == SOLID else None, zorder=3)
            if dash == SOLID:
                low, high = line["ci_low"].to_numpy(float), line["ci_high"].to_numpy(float)
                axes.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
                labels.append((y[-1], words.rule(rule), colour))
            for xi, (_, row) in zip(x, line.iterrows(), strict=True):
                names = outcomes.raised(row["cell_id"])
                if names:
                    flagged.update(names)
                    axes.plot(xi, row["value"], "o", ms=10, mfc="none", mec=style.INK, mew=1.1, zorder=4)
    labels += _level(axes, series.clean, at, "clean", style.CURVES["clean"])
    labels += _level(axes, series.unaware, at, "attack that ignores it", style.CURVES["unaware"])
    style.percent_axis(axes)
    axes.set_xticks(range(len(at)), [str(t) for t in at])
    axes.set_xlim(-PAD, len(at) - 1 + PAD)
    return Drawn(labels, flagged)


def _level(axes: Axes, rows: pd.DataFrame, at: dict[int, int], text: str, colour: str) -> list[tuple[float, str, str]]:
    """A reference: a line over the rounds, or a horizontal one where only one number of rounds was judged."""
    rows = one_per_round(rows[rows["rounds"].isin(list(at))])
    if rows.empty:
        return []
    x, y = [at[r] for r in rows["rounds"]], rows["value"].to_numpy(float)
    low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
    if len(x) == 1:
        x, y, low, high = [-PAD, len(at) - 1 + PAD], [y[0]] * 2, [low[0]] * 2, [high[0]] * 2
    axes.plot(x, y, color=colour, linestyle=DOTTED, lw=1.4, zorder=2)
    axes.fill_between(x, low, high, color=colour, alpha=0.08, lw=0)
    return [(float(y[-1]), text, colour)]


def handles(through: pd.DataFrame, rings: bool) -> list[Line2D]:
    """Legend entries of the ways a line is drawn: best and last iterate, and the ring."""
    made = []
    if (through["iterate"] != "last").any():
        made.append(Line2D([], [], color=style.MUTED, marker="o", label="best iterate"))
    if (through["iterate"] == "last").any():
        made.append(Line2D([], [], color=style.MUTED, linestyle=DASHED, label="last iterate"))
    if rings:
        made.append(
            Line2D([], [], color="none", marker="o", ms=9, mfc="none", mec=style.INK, label="a check was raised")
        )
    return made


def statement(series: Series) -> str:
    """What the last number of rounds says: one accuracy, or two by backward rule."""
    last = series.last()
    low, high = last["value"].min(), last["value"].max()
    rounds = series.ticks[-1]
    name = words.defense(f"{series.base}-x{rounds}" if rounds > 1 else series.base)
    if last["through"].nunique() < 2 or high - low < 0.005:
        return f"{name}: {100 * high:.0f} % accuracy under attack through it"
    return f"{name}: {100 * low:.0f} % or {100 * high:.0f} % accuracy under one attack, by backward rule"


def flag_note(flagged: set[str]) -> str:
    """The checks raised at the rings, in words."""
    if not flagged:
        return ""
    titles = dict.fromkeys(words.title(name) for name in words.in_order(flagged))
    return "Checks raised at the ringed points: " + "; ".join(titles) + "."
