"""A number that moves when the attack runs twice as long is where the attack stopped, not where the model stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from windtunnel.checks.base import FLAG, OK, Cell, Evidence, Finding, only_broken_by
from windtunnel.metrics.intervals import clopper_pearson

TITLE = "Not converged"
THRESHOLD = (
    "samples broken only with at least twice the steps: lower bound of the 95 % Clopper-Pearson interval above 0.5 %"
)
MEANS = (
    "The same attack from the same starts with at least twice the steps breaks further samples. The attack had not "
    "converged: its accuracy is an upper bound. This says nothing of masking."
)
REMEDY = "Quote the longer attack, and go on doubling until this reads ok."
LIMIT = 0.005
LENGTHS = ("steps", "iterations", "queries")


def check(evidence: Evidence) -> dict[str, Finding]:
    """For attacks on the judged pipeline of which a longer twin was run: the share of samples that only the twin
    breaks.

    The twin is the same method with all settings equal but its length (``steps``, ``iterations`` or ``queries``; of a
    battery every member's that differs), which is at least twice as long, on the same pipeline, threat and backward
    rule, with the same attack seed, hence from the same starts; of several twins the shortest. Compared are the best
    iterates. Not run without a twin or without settings in the cell infos.
    """
    groups = evidence.groups(
        key=lambda c: (c.judge, c.threat, c.attack_defense, c.through, c.attack_seed, c.info.get("attack_method")),
        where=lambda c: c.on_own_pipeline and c.labelled and c.iterate != "last" and _settings(c) is not None,
    )
    found = {}
    for cells in groups.values():
        for cell in cells:
            longer = [(ratio, c) for c in cells if (ratio := _times_longer(cell, c)) is not None]
            if not longer:
                continue
            shortest = min(ratio for ratio, _ in longer)
            twins = [c for ratio, c in longer if ratio == shortest]
            count, n = only_broken_by(twins, [cell])
            low, _ = clopper_pearson(count, n)
            if low is not None:
                found[cell.cell_id] = Finding(FLAG if low > LIMIT else OK, count / n)
    return found


def _settings(cell: Cell) -> Mapping[str, Any] | None:
    found = cell.info.get("attack_settings")
    return found if isinstance(found, Mapping) and found else None


def _times_longer(short: Cell, long: Cell) -> float | None:
    """By how much the second attack is longer, the least over its members; None if it is no longer twin."""
    first, second = dict(_leaves(_settings(short) or {})), dict(_leaves(_settings(long) or {}))
    if first.keys() != second.keys():
        return None
    differing = [path for path in first if first[path] != second[path]]
    if not differing or not all(_is_length(path, first[path]) and _is_length(path, second[path]) for path in differing):
        return None
    ratio = min(second[path] / first[path] for path in differing)
    return ratio if ratio >= 2 else None


def _is_length(path: tuple[object, ...], value: Any) -> bool:
    return path[-1] in LENGTHS and isinstance(value, int) and not isinstance(value, bool) and value > 0


def _leaves(settings: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any]]:
    """Every single setting with its path, through nested mappings and lists (the members of a battery)."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(settings, (list, tuple)):
        for place, value in enumerate(settings):
            yield from _leaves(value, (*path, place))
    else:
        yield path, settings
