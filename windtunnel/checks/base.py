"""What a check reads and what it answers: cells as arrays, a state and a statistic per cell.

A check is a module of this package with the constants ``TITLE``, ``MEANS`` and ``REMEDY`` (words for the report), the
``THRESHOLD`` in words, and a pure function ``check(evidence) -> {cell_id: Finding}``. A cell that is absent from the
answer was not looked at (null in the table): a check never says ``ok`` of what it could not see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

NONE = "none"
BARE = "bare"
CONTROL = "noise"
"""The backward rule that hands back random signs: a control, whose cells no check takes for an informed attack."""
HUGE_LINF = 64 / 255
"""From this l-infinity budget on nothing survives honestly: such cells are probes, not results."""
SAME = 1e-6
UNKNOWN = ("error", "bound")
"""Row states of which nothing is known: the cell failed there, or the attack left its ball."""
OK: Literal["ok"] = "ok"
FLAG: Literal["flag"] = "flag"
ROUNDS = re.compile(r"^(?P<base>.+)-x(?P<rounds>[0-9]+)$")
ARRAYS = (
    "pred",
    "correct",
    "p_correct",
    "linf",
    "l2",
    "success_float",
    "zero_gradient",
    "nan_gradient",
    "n_backward",
)
COLUMNS = (
    "cell_id",
    "dataset",
    "split",
    "role",
    "shift",
    "severity",
    "sample_id",
    "source_id",
    "label",
    "model",
    "model_seed",
    "source_model",
    "attack",
    "threat",
    "norm",
    "eps",
    "attack_seed",
    "attack_defense",
    "through",
    "defense",
    "mode",
    "iterate",
    "n_draws",
    "status",
    *ARRAYS,
)
"""Columns of the samples that checks and metrics need; ``nan_gradient`` is used where a table has it."""

CONTRACT = "pipeline_contract"
MEASUREMENT_KEYS = (
    "model", "model_seed", "defense", "through", "dataset", "split", "shift", "severity", "norm", "eps", "diagnostic",
    "quantity",
)  # fmt: skip
"""Columns of the diagnostics beside ``sample_id`` and ``value``: together the identity of one measurement."""

Relation = Literal["clean", "bare", "unaware", "through", "crossed", "transfer"]


class Finding(NamedTuple):
    """What a check says of a cell: ``ok`` or ``flag``, and the number it looked at."""

    state: Literal["ok", "flag"]
    statistic: float


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell: its key, and its rows, by sample id, as float64 arrays (NaN = null).

    ``hit`` is 1 right, 0 wrong, the share of draws that were right for a random defense; a row whose status is
    ``nan`` is wrong; NaN without a label and where the status is ``error``: of such a row nothing is known.
    ``counted`` counts the errors as wrong. ``ids`` number the sample ids across the whole table; ``sources`` are the
    source ids (a row without one is its own source).
    """

    cell_id: str
    key: Mapping[str, Any]
    relation: Relation
    ids: np.ndarray
    sources: np.ndarray
    hit: np.ndarray
    status: np.ndarray
    columns: Mapping[str, np.ndarray]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["key"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        """Whether any row is known to be right or wrong."""
        return bool(self.n) and not bool(np.isnan(self.hit).all())

    @property
    def failed(self) -> bool:
        """Whether every row is an error."""
        return bool(self.n) and bool((self.status == "error").all())

    @property
    def counted(self) -> np.ndarray:
        """``hit`` with errors of labelled rows counted as wrong."""
        return np.where(np.isin(self.status, UNKNOWN) & ~np.isnan(self.columns["label"]), 0.0, self.hit)

    @property
    def is_random(self) -> bool:
        """Whether the judged defense is random: ``hit`` is then a share of draws."""
        return bool(np.isfinite(self.columns["n_draws"]).any())

    @property
    def accuracy(self) -> float:
        """Mean of ``hit`` over rows with a known outcome; NaN without any."""
        known = self.hit[~np.isnan(self.hit)]
        return float(known.mean()) if known.size else float("nan")

    @property
    def gradients(self) -> float:
        """The largest number of backward passes that a sample got; NaN where it was not recorded."""
        spent = self.columns["n_backward"]
        return float(np.nanmax(spent)) if np.isfinite(spent).any() else float("nan")

    @property
    def uses_gradient(self) -> bool | None:
        """Whether the attack follows a gradient: as its method states (cell infos), else whether a backward pass was
        counted; None where neither is known. A gradient attack that had nothing left to attack still is one.
        """
        told = self.info.get("uses_gradient")
        if told is not None:
            return bool(told)
        return None if np.isnan(self.gradients) else self.gradients > 0

    @property
    def informed(self) -> bool:
        """Whether the attack followed a gradient of the very pipeline that is judged (random signs are none)."""
        return self.on_own_pipeline and self.uses_gradient is True and self.through != CONTROL

    @property
    def is_sign_noise(self) -> bool:
        """Whether this is the noise baseline: by its method (cell infos), else by the attack's name."""
        return str(self.info.get("attack_method") or self.attack).replace("-", "_") == "sign_noise"

    @property
    def is_huge(self) -> bool:
        """Whether the budget is one at which nothing survives honestly (defined for linf alone)."""
        return self.norm == "linf" and self.eps is not None and self.eps >= HUGE_LINF * (1 - SAME)

    @property
    def images(self) -> tuple[Any, ...]:
        """The image set."""
        return (self.dataset, self.split, self.shift, self.severity)

    @property
    def judge(self) -> tuple[Any, ...]:
        """The judged pipeline on its images: model, training seed, defense, image set."""
        return (self.model, self.model_seed, self.defense, self.images)

    @property
    def on_own_pipeline(self) -> bool:
        """Whether the pipeline that was attacked is the one that is judged."""
        return self.relation in ("bare", "through")


@dataclass(frozen=True, eq=False)
class Measurement:
    """One quantity of one diagnostic on one pipeline: ``values`` by sample id, float64, NaN = undefined."""

    model: str
    model_seed: int | None
    defense: str
    through: str
    images: tuple[Any, ...]
    norm: str | None
    eps: float | None
    diagnostic: str
    quantity: str
    values: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the samples for which the quantity is defined; NaN without any."""
        known = self.values[~np.isnan(self.values)]
        return float(known.mean()) if known.size else float("nan")


@dataclass(frozen=True, eq=False)
class Evidence:
    """All cells that a check may compare, in the order of their ids, and what diagnostics measured."""

    cells: tuple[Cell, ...]
    measurements: tuple[Measurement, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        """Cells by id."""
        return {c.cell_id: c for c in self.cells}

    @cached_property
    def _clean(self) -> dict[tuple[Any, ...], Cell]:
        return {c.judge: c for c in reversed(self.cells) if c.relation == "clean"}

    def clean(self, cell: Cell, defense: str | None = None) -> Cell | None:
        """The clean cell of the same images and model, behind the same defense or the named one."""
        return self._clean.get((cell.model, cell.model_seed, cell.defense if defense is None else defense, cell.images))

    def measurement(
        self, cell: Cell, diagnostic: str, quantity: str, *, exact: bool = False, above: float = 0.0
    ) -> Measurement | None:
        """What a diagnostic found on the pipeline that the cell judges, by its backward rule, on its images and norm.

        Budget: the smallest measured one that is at least the cell's (and larger than ``above``), because a smaller
        step says nothing of a larger one; with ``exact`` only the cell's own. None where nothing was measured or the
        quantity is defined for no sample.
        """
        if cell.eps is None:
            return None
        least = cell.eps * (1 - SAME)
        found = [
            m
            for m in self._measured.get((diagnostic, quantity, *cell.judge, cell.norm, _rule(cell)), [])
            if m.eps is not None and m.eps >= least and m.eps > above * (1 + SAME)
        ]
        found = [m for m in found if not exact or m.eps <= cell.eps * (1 + SAME)]
        found = [m for m in found if not np.isnan(m.mean)]
        return min(found, key=lambda m: m.eps) if found else None

    def measured(self, cell: Cell, diagnostic: str, quantity: str, *, exact: bool = False) -> np.ndarray | None:
        """The values of ``measurement`` by sample id, or None."""
        found = self.measurement(cell, diagnostic, quantity, exact=exact)
        return None if found is None else found.values

    def fact(self, cell: Cell, quantity: str, defense: str | None = None) -> float | None:
        """A fact of ``pipeline_contract`` about the cell's model behind ``defense`` (None: behind any): the largest
        value over samples, images, rules and budgets. None where it was not looked at.
        """
        found = [
            float(np.nanmax(m.values))
            for m in self._facts.get((cell.model, cell.model_seed, quantity), [])
            if defense in (None, m.defense) and not np.isnan(m.mean)
        ]
        return max(found, default=None)

    def pipeline_fact(self, cell: Cell, quantity: str) -> float | None:
        """The same about the judged pipeline. What holds of the bare model holds behind a defense; that it does not
        hold of the bare model clears no defended pipeline.
        """
        own, bare = self.fact(cell, quantity, cell.defense), self.fact(cell, quantity, NONE)
        return max(bare, own or 0.0) if bare else own

    @cached_property
    def _measured(self) -> dict[tuple[Any, ...], list[Measurement]]:
        found: dict[tuple[Any, ...], list[Measurement]] = {}
        for m in self.measurements:
            key = (m.diagnostic, m.quantity, m.model, m.model_seed, m.defense, m.images, m.norm, m.through)
            found.setdefault(key, []).append(m)
        return found

    @cached_property
    def _facts(self) -> dict[tuple[Any, ...], list[Measurement]]:
        found: dict[tuple[Any, ...], list[Measurement]] = {}
        for m in self.measurements:
            if m.diagnostic == CONTRACT:
                found.setdefault((m.model, m.model_seed, m.quantity), []).append(m)
        return found

    def groups(self, key: Callable[[Cell], Any], where: Callable[[Cell], bool]) -> dict[Any, list[Cell]]:
        """Cells that satisfy ``where``, by key, in a fixed order."""
        found: dict[Any, list[Cell]] = {}
        for cell in self.cells:
            if where(cell):
                found.setdefault(key(cell), []).append(cell)
        return found


def own_name(model: str, model_seed: int | None, info: Mapping[str, Any] | None = None) -> str:
    """The full name of a model: ``info['own_name']`` where a run gives it, else ``<model>[-s<seed>]``, seed 0 bare."""
    given = (info or {}).get("own_name")
    return str(given) if given else (model if not model_seed else f"{model}-s{model_seed}")


def relation_of(key: Mapping[str, Any], own: str) -> Relation:
    """What a cell's attack saw, against what is judged."""
    if key["attack"] == NONE:
        return "clean"
    if key["source_model"] is not None and key["source_model"] != own:
        return "transfer"
    if key["attack_defense"] == NONE:
        return "bare" if key["defense"] == NONE else "unaware"
    return "through" if key["attack_defense"] == key["defense"] else "crossed"


def gather(
    samples: pd.DataFrame,
    cell_infos: Iterable[Mapping[str, Any]] = (),
    *,
    extra: Sequence[str] = (),
    diagnostics: pd.DataFrame | None = None,
) -> Evidence:
    """A sample table (any number of models) as evidence. Pure. ``extra`` names further numeric columns to keep.

    ``cell_infos`` adds what rows do not say; of it checks use ``own_name`` (the model's full name),
    ``adversarially_trained``, ``attack_method``, ``attack_settings`` (of a battery nested, as they stand),
    ``uses_gradient``, ``defense_is_random`` and ``source_members`` (full names of an attacked ensemble's models).
    ``diagnostics`` is the long table of what diagnostics measured (columns ``MEASUREMENT_KEYS``, ``sample_id``,
    ``value``).
    """
    infos = {str(i["cell_id"]): i for i in cell_infos}
    measurements = () if diagnostics is None else measurements_of(diagnostics)
    if not len(samples):
        return Evidence((), measurements)
    ids, _ = pd.factorize(samples["sample_id"], sort=True)
    codes, names = pd.factorize(samples["cell_id"], sort=True)
    order = np.lexsort((ids, codes))  # by cell, then by sample id: sums do not depend on the order of the table
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    absent = np.full(len(samples), np.nan)
    arrays = {name: floats(samples[name]) if name in samples else absent for name in (*ARRAYS, *extra)}
    arrays["label"] = floats(samples["label"])
    arrays["n_draws"] = floats(samples["n_draws"])
    status = samples["status"].to_numpy(dtype=object)
    sources = samples["source_id"].where(samples["source_id"].notna(), samples["sample_id"]).to_numpy(dtype=object)
    hit = hits(arrays["correct"], arrays["p_correct"], arrays["n_draws"], arrays["label"], status)
    firsts = samples.iloc[order[bounds[:-1]]]
    keys = {name: [plain(v, name in WHOLE) for v in firsts[name].tolist()] for name in KEY_COLUMNS}
    cells = []
    for place, name in enumerate(names):
        rows = order[bounds[place] : bounds[place + 1]]
        key = {column: values[place] for column, values in keys.items()}
        key["shift"] = NONE if key["shift"] is None else key["shift"]
        info = infos.get(str(name), {})
        cells.append(
            Cell(
                cell_id=str(name),
                key=key,
                relation=relation_of(key, own_name(key["model"], key["model_seed"], info)),
                ids=ids[rows],
                sources=sources[rows],
                hit=hit[rows],
                status=status[rows],
                columns={column: values[rows] for column, values in arrays.items()},
                info=info,
            )
        )
    return Evidence(tuple(cells), measurements)


def measurements_of(diagnostics: pd.DataFrame) -> tuple[Measurement, ...]:
    """The long table of diagnostics as measurements, in the order of their keys. Pure."""
    if not len(diagnostics):
        return ()
    ordered = diagnostics.sort_values("sample_id", kind="stable")
    found = []
    for key, rows in ordered.groupby(list(MEASUREMENT_KEYS), dropna=False, sort=False):
        names = dict(zip(MEASUREMENT_KEYS, key, strict=True))
        one = {name: plain(value, name in WHOLE) for name, value in names.items()}
        images = (one["dataset"], one["split"], one["shift"] or NONE, one["severity"])
        defense = one["defense"] or NONE
        found.append(
            Measurement(
                model=one["model"],
                model_seed=one["model_seed"],
                defense=defense,
                through=BARE if defense == NONE else str(one["through"]),
                images=images,
                norm=one["norm"],
                eps=one["eps"],
                diagnostic=one["diagnostic"],
                quantity=one["quantity"],
                values=floats(rows["value"]),
            )
        )
    found.sort(key=lambda m: repr((m.diagnostic, m.quantity, m.model, m.model_seed, m.defense, m.through, m.images,
                                   m.norm, m.eps)))  # fmt: skip
    return tuple(found)


def _rule(cell: Cell) -> str:
    return BARE if cell.defense == NONE else cell.through


KEY_COLUMNS = (
    "dataset", "split", "role", "shift", "severity", "model", "model_seed", "source_model", "attack", "threat", "norm",
    "eps", "attack_seed", "attack_defense", "through", "defense", "mode", "iterate",
)  # fmt: skip


WHOLE = ("severity", "model_seed", "attack_seed")


def hits(
    correct: np.ndarray, p_correct: np.ndarray, n_draws: np.ndarray, label: np.ndarray, status: np.ndarray
) -> np.ndarray:
    """What accuracy averages, per row: see ``Cell.hit``."""
    hit = np.where(np.isfinite(n_draws), p_correct, correct)
    wrong = (status == "nan") & ~np.isnan(label)
    return np.where(np.isin(status, UNKNOWN), np.nan, np.where(wrong, 0.0, hit))


def floats(column: pd.Series) -> np.ndarray:
    """A column of numbers or booleans with nulls as float64, null = NaN."""
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def plain(value: Any, whole: bool = False) -> Any:
    """A Python value: None for a null; ``whole`` gives back the int that pandas widened for the sake of nulls."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    return int(value) if whole else value


def aligned(cells: Sequence[Cell], column: str = "hit") -> tuple[np.ndarray, np.ndarray]:
    """(sample ids [S] sorted, values [cells, S]) over every sample of any of the cells; NaN where a cell lacks it."""
    ids = np.unique(np.concatenate([c.ids for c in cells])) if cells else np.zeros(0, dtype=np.int64)
    values = np.full((len(cells), len(ids)), np.nan)
    for place, cell in enumerate(cells):
        source = getattr(cell, column) if column in ("hit", "counted") else cell.columns[column]
        values[place, np.searchsorted(ids, cell.ids)] = source
    return ids, values


def broken(values: np.ndarray) -> np.ndarray:
    """[S] 1.0 where any cell is wrong, 0.0 where all that know are right, NaN where none knows. Input [cells, S]."""
    known = ~np.isnan(values)
    wrong = (known & (np.nan_to_num(values, nan=1.0) < 0.5)).any(axis=0)
    return np.where(known.any(axis=0), wrong.astype(float), np.nan)


def only_broken_by(first: Sequence[Cell], second: Sequence[Cell]) -> tuple[int, int]:
    """(samples that some of ``first`` breaks and none of ``second`` does, samples that both sides judged)."""
    if not first or not second:
        return 0, 0
    _, values = aligned([*first, *second])
    a, b = broken(values[: len(first)]), broken(values[len(first) :])
    known = ~np.isnan(a) & ~np.isnan(b)
    return int((known & (a == 1) & (b == 0)).sum()), int(known.sum())


def notable(n: int, share: float = 0.01) -> float:
    """The count from which a difference on n samples is no accident: max(3, share of n)."""
    return max(3.0, share * n)


def rounds_of(defense: str) -> tuple[str, int]:
    """``jpeg-50-x10`` -> ("jpeg-50", 10)."""
    match = ROUNDS.match(defense)
    return (match["base"], int(match["rounds"])) if match else (defense, 1)
