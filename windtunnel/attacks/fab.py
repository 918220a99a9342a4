"""FAB: along the decision boundary, ever nearer to the clean image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.boundary import (
    distance,
    gap_distance,
    into_ball,
    keep_nearest,
    nothing_found,
    ranked_wrong_classes,
    restart_point,
    shortest_step,
)
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import margin, margin_targeted
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Fast Adaptive Boundary attack (Croce & Hein, Minimally Distorted Adversarial Examples with a Fast Adaptive
    Boundary Attack, 2020, https://arxiv.org/abs/1907.02044, algorithm 1), linf and l2.

    With d = the shortest step from the iterate x to the linearised boundary inside the box, d0 = that from the clean
    image x0 to the *same* plane, and ``a = min(|d| / (|d| + |d0|), alpha_max)``:
    ``x <- clip((1 - a)(x + eta d) + a (x0 + eta d0))``; where that is fooled it is a find, and the iterate goes back,
    ``x <- x0 + beta (x - x0)``. ``alpha_max`` = .1, ``eta`` = 1.05, ``beta`` = .9 and 100 ``steps`` are the paper's.

    ``targeted`` (FAB-T, the default and AutoAttack's): the ``targets`` most likely wrong classes of the clean image,
    one after the other, each ``steps`` steps (9 in AutoAttack); with fewer wrong classes the ranks begin again, from
    random starts. Not targeted (FAB): at each step the nearest of the boundaries to those classes, one gradient for
    each of them. Every run after the first of ``restarts``, for each target, starts at a random image at half the
    distance found so far, at most eps / 2, as in the public code.

    The final search, on the segment from the clean image to the nearest find: ``final_search`` points, each by
    linear interpolation of the margins between the farthest point known to be right and the nearest find, a tenth of
    the interval beyond. The paper has such a search; the code in AutoAttack has none (0 switches it off).

    It looks for the nearest adversarial image whatever eps is (``minimal_norm``). A step asks for one gradient (for
    ``targets`` of them where not targeted) and one more forward pass, which ``bill`` does not count. Logits enter
    through ratios of differences: neither shift nor scale matters.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "targets", "restarts")
    minimal_norm: ClassVar[bool] = True

    steps: int = 100
    targeted: bool = True
    targets: int = 9
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    final_search: int = 4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.targets < 1 or self.restarts < 1 or self.final_search < 0:
            raise ValueError(f"steps, targets and restarts at least 1, final_search at least 0: {self}")
        if not (0 < self.alpha_max < 1 <= self.eta and 0 < self.beta < 1):
            raise ValueError(f"alpha_max and beta lie between 0 and 1, eta is at least 1: {self}")

    @property
    def runs(self) -> int:
        """How many runs of ``steps`` steps follow each other."""
        return self.restarts * (self.targets if self.targeted else 1)

    @property
    def max_steps(self) -> int:
        # Each step asks about two images, in the final search as well.
        return self.runs * self.steps + math.ceil(self.final_search / 2)

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        logits = query.logits(x0)
        rows = {"x": x0, "point": x0, "ranked": ranked_wrong_classes(logits, y, query.n_classes - 1)}
        clean = margin(logits, y).double()
        # What the final search knows: the margin of the nearest find, and of a point short of it, a share of the way.
        rows |= {"found_margin": torch.zeros_like(clean), "low_margin": clean, "low_share": torch.zeros_like(clean)}
        return rows | nothing_found(x0)

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        searching = rows["t"] >= self.runs * self.steps
        wide = (-1, *([1] * (rows["x0"].dim() - 1)))
        some, every = bool(searching.any()), bool(searching.all())

        asked = rows["point"] if not some else torch.where(searching.view(wide), self._between(rows), rows["point"])
        logits, normal, gap = self._nearest_boundary(rows, asked, norm, query)
        rows = rows | self._note(rows, asked, logits, searching, norm)
        moved = asked if every else self._move(rows | {"point": asked}, normal, gap, norm)
        if some:
            moved = torch.where(searching.view(wide), self._between(rows), moved)
        logits = query.logits(moved)
        rows = rows | self._note(rows, moved, logits, searching, norm)

        fooled = (logits.argmax(1) != rows["y"]).view(wide)
        point = torch.where(fooled, rows["x0"] + self.beta * (moved - rows["x0"]), moved)
        point = self._next_run(rows, point, norm, generators)
        found = torch.isfinite(rows["distance"]).view(wide)
        x = into_ball(torch.where(found, rows["nearest"], point), rows["x0"], rows["eps"], norm)
        return rows | {"x": x, "point": point}

    def _nearest_boundary(self, rows: Rows, x: Tensor, norm: str, query: Query) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, gradient and value of the difference of logits) at the target's boundary, or the nearest one."""
        ranked = rows["ranked"]
        if self.targeted:
            run = (rows["t"] // self.steps).clamp_max(self.runs - 1)
            rank = run // self.restarts % ranked.shape[1]
            target = ranked.gather(1, rank[:, None])[:, 0]
            logits, gap, normal = query.gradient(x, partial(margin_targeted, target=target))
            return logits, normal, gap
        targets = ranked[:, : self.targets].unbind(1)
        logits, gap, normal = query.gradient(x, partial(margin_targeted, target=targets[0]))
        least = gap_distance(normal, gap, norm)
        for target in targets[1:]:
            _, value, gradient = query.gradient(x, partial(margin_targeted, target=target))
            away = gap_distance(gradient, value, norm)
            nearer = away < least
            normal = torch.where(nearer.view(-1, *([1] * (x.dim() - 1))), gradient, normal)
            gap, least = torch.where(nearer, value, gap), torch.minimum(away, least)
        return logits, normal, gap

    def _move(self, rows: Rows, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
        x, x0 = rows["point"], rows["x0"]
        slope = (normal.double() * (x0.double() - x.double())).flatten(1).sum(1)
        here = shortest_step(x, normal, -gap, norm)
        clean = shortest_step(x0, normal, -(gap.double() + slope), norm)
        far, near = distance(x0 + clean, x0, norm), distance(x + here, x, norm)
        share = per_row((near / (far + near).clamp_min(1e-12)).clamp_max(self.alpha_max), x)
        return ((1 - share) * (x + self.eta * here) + share * (x0 + self.eta * clean)).clamp(0, 1)

    def _note(self, rows: Rows, x: Tensor, logits: Tensor, searching: Tensor, norm: str) -> Rows:
        """Keep a find; for the final search also what a point that is right says about the way to the find."""
        fooled = logits.argmax(1) != rows["y"]
        value = margin(logits, rows["y"]).double()
        found, better = keep_nearest(rows, x, fooled, norm)
        short = searching & ~fooled & torch.isfinite(rows["distance"])
        # Shares count from the clean image to the nearest find: they are stretched when the find comes nearer.
        stretch = torch.where(searching & better, found["distance"] / rows["distance"], 1.0)
        at = distance(x, rows["x0"], norm) / rows["distance"].clamp_min(1e-300)
        return found | {
            "found_margin": torch.where(better, value, rows["found_margin"]),
            "low_margin": torch.where(short, value, rows["low_margin"]),
            "low_share": torch.where(short, at, rows["low_share"] / stretch.clamp_min(1e-300)).clamp_max(1.0),
        }

    def _between(self, rows: Rows) -> Tensor:
        """The next point of the final search (rows without a find: their iterate)."""
        low, high = rows["low_margin"].clamp_max(0), rows["found_margin"].clamp_min(0)
        root = -low / (high - low).clamp_min(1e-300)
        part = rows["low_share"] + (root + 0.1 * (1 - root)) * (1 - rows["low_share"])
        found = torch.isfinite(rows["distance"]).view(-1, *([1] * (rows["x0"].dim() - 1)))
        segment = rows["x0"] + per_row(part, rows["x0"]) * (rows["nearest"] - rows["x0"])
        return torch.where(found, segment, rows["point"])

    def _next_run(self, rows: Rows, point: Tensor, norm: str, generators: RowGenerators) -> Tensor:
        """Where a run has ended, the start of the next: the clean image for a new target, else a random one."""
        ended = rows["t"] % self.steps == self.steps - 1
        ended = ended & (rows["t"] // self.steps + 1 < self.runs)
        if not bool(ended.any()):
            return point
        run = rows["t"] // self.steps + 1
        point = torch.where(ended.view(-1, *([1] * (point.dim() - 1))), rows["x0"], point)
        again = ended & ((run % self.restarts != 0) | (run // self.restarts >= rows["ranked"].shape[1]))
        if bool(again.any()):
            kept = {name: rows[name][again] for name in ("x0", "eps", "distance")}
            point[again] = restart_point(kept, norm, generators.select(again))
        return point
