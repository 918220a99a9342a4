"""Cells and measurements of real tiny pipelines, in the schema that checks read: for planted failures and their twins.

Everything goes the way of a run: ``engine.run_attack`` (mode full), storage on the 8-bit grid, the real defense as
judge; diagnostics through ``engine.Pipeline``. ``Bench`` holds the images and one model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from synthetic import cell, infos, measured, samples

from windtunnel import checks, registry
from windtunnel.attacks.base import Attack
from windtunnel.backend import torch
from windtunnel.checks.base import Finding, gather
from windtunnel.defenses.base import Defense
from windtunnel.diagnostics.base import Inputs
from windtunnel.engine import Pipeline, as_stored, run_attack, store_linf

Rule = str | Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Behind:
    """A defense under a name, applied ``rounds`` times; ``rule`` (a name or a map x -> x) is called ``through``."""

    name: str
    defense: Defense
    rounds: int = 1
    rule: Rule = "identity"
    through: str = "identity"


class Bench:
    """One model on some images: collects cells and measurements, then asks the checks."""

    def __init__(self, model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.ids = [f"test-{i:05d}" for i in range(len(images))]
        self.cells: list[pd.DataFrame] = []
        self.told: dict[str, dict[str, Any]] = {}
        self.measurements: list[pd.DataFrame] = []

    def clean(self, behind: Behind | None = None) -> None:
        """The cell of the clean images."""
        predicted = self._answers(self.images, behind).argmax(1)
        self.cells.append(
            cell(
                correct=predicted == self.labels,
                pred=predicted,
                label=self.labels,
                ids=self.ids,
                defense=behind.name if behind else "none",
            )
        )

    def attack(
        self, name: str, attack: Attack, eps_255: int, *, through: Behind | None = None, judge: Behind | None = None
    ) -> str:
        """Attack ``through`` a defense (or bare), judge behind the same or behind ``judge``; the cell's id."""
        result = run_attack(
            self.model, attack, self.images, self.labels, self.ids, eps=eps_255 / 255, norm="linf", mode="full",
            **({} if through is None else
               {"defense": through.defense, "rounds": through.rounds, "rule": through.rule}),
        )  # fmt: skip
        stored = as_stored(store_linf(result.best, self.images, eps_255 / 255))
        judging = judge or through
        predicted = self._answers(stored, judging).argmax(1)
        rows = cell(
            correct=predicted == self.labels,
            pred=predicted,
            label=self.labels,
            ids=self.ids,
            attack=name,
            eps_255=eps_255,
            defense=judging.name if judging else "none",
            attack_defense=through.name if through else "none",
            through=through.through if through else None,
            success_float=result.success,
            n_backward=None,
            zero_gradient=result.zero_gradient,
            linf=np.abs(stored.astype(np.float64) - self.images).max((1, 2, 3)),
        )
        rows["n_backward"] = result.n_backward.tolist()
        self.cells.append(rows)
        self.told[str(rows["cell_id"].iloc[0])] = {
            "attack_method": registry.card("attack", type(attack).__module__.rsplit(".", 1)[-1]).name,
            "attack_settings": asdict(attack),  # type: ignore[call-overload]
            "uses_gradient": type(attack).uses_gradient,
        }
        return str(rows["cell_id"].iloc[0])

    def measure(self, diagnostic: str, eps_255: int = 16, behind: Behind | None = None, *, first: int = 64) -> None:
        """The numbers of a diagnostic on the pipeline, on the first so many images."""
        method = registry.load("diagnostic", diagnostic)()
        part = slice(first)
        inputs = Inputs(
            images=self.images[part], labels=self.labels[part], sample_ids=self.ids[part], eps=eps_255 / 255,
            norm="linf", batch_size=64,
        )  # fmt: skip
        self.measurements.append(
            measured(
                diagnostic,
                defense=behind.name if behind else "none",
                through=behind.through if behind else "bare",
                eps=eps_255 / 255,
                **method.measure(self._pipeline(behind), inputs),
            )
        )

    def findings(self) -> dict[str, dict[str, Finding]]:
        """What every check says of every cell."""
        frame = samples(*self.cells)
        entries = [i | self.told.get(i["cell_id"], {}) for i in infos(frame)]
        table = pd.concat(self.measurements, ignore_index=True) if self.measurements else None
        return checks.run_checks(gather(frame, entries, diagnostics=table))

    def raised(self) -> dict[str, set[str]]:
        """Ids of the cells on which each check that fired fired."""
        found = {name: {i for i, f in of.items() if f.state == "flag"} for name, of in self.findings().items()}
        return {name: ids for name, ids in found.items() if ids}

    def name(self, cell_id: str) -> str:
        """A bare cell's attack and budget in 255ths."""
        row = next(c.iloc[0] for c in self.cells if c["cell_id"].iloc[0] == cell_id)
        return f"{row['attack']} {row['eps_255']}"

    def _pipeline(self, behind: Behind | None) -> Pipeline:
        if behind is None:
            return Pipeline(self.model)
        return Pipeline(self.model, defense=behind.defense, rounds=behind.rounds, rule=behind.rule)

    def _answers(self, images: np.ndarray, behind: Behind | None) -> np.ndarray:
        return self._pipeline(behind).logits(torch.from_numpy(images)).numpy()
