"""DeepFool: straight to the nearest linearised boundary, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.boundary import (
    gap_distance,
    into_ball,
    keep_nearest,
    nothing_found,
    ranked_wrong_classes,
    restart_point,
    shortest_step,
)
from windtunnel.attacks.losses import margin_targeted
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Moosavi-Dezfooli, Fawzi & Frossard, DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks (2016,
    https://arxiv.org/abs/1511.04599, algorithm 2), l2, and linf as in its section on other norms.

    With ``f_k = z_k - z_y`` and its gradient ``w_k``: k is the class of the smallest ``|f_k| / |w_k|_*``, the step r is
    the shortest with ``w_k . r = -f_k``, and the steps *accumulate*: ``total <- total + r``. The image asked about is
    ``x0 + (1 + overshoot) total`` with ``overshoot`` = .02, as in the paper's public code, which linearises there too.
    A row stops at its first fooled image. ``candidates``: how many wrong classes are looked at, the most likely of the
    clean image: 9 as in that code, all of them in the paper; each costs a query, in every one of the ``steps`` (at
    most 50, as there; a handful is usual) and once more for the image after the last.

    Deviation: r is the shortest step *inside the box* (``boundary.shortest_step``). The paper knows no box, and
    clipping its steps stops them where pixels are saturated; here what such a pixel cannot give is taken from the
    others, and a pixel at 0 or 1 moves inwards freely.

    It looks for the nearest adversarial image whatever eps is (``minimal_norm``). ``restarts``: every further run
    starts at a random image at half the distance found so far, at most eps / 2 (ours; not in the paper). Logits enter
    through ratios of differences, so neither their shift nor their scale matters.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "candidates", "restarts")
    minimal_norm: ClassVar[bool] = True

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.candidates < 1 or self.restarts < 1 or self.overshoot <= 0:
            raise ValueError(f"steps, candidates and restarts must be at least 1 and overshoot above 0: {self}")

    @property
    def max_steps(self) -> int:
        return self.restarts * (self.steps + 1)

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        n = min(self.candidates, query.n_classes - 1)
        ranked = ranked_wrong_classes(query.logits(x0), y, n)
        return {"x": x0, "asked": x0, "total": torch.zeros_like(x0), "ranked": ranked, **nothing_found(x0)}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x0, asked = rows["x0"], rows["asked"]
        wide = (-1, *([1] * (x0.dim() - 1)))
        logits, normal, gap, least = None, torch.zeros_like(x0), None, None
        for target in rows["ranked"].unbind(1):
            logits, value, gradient = query.gradient(asked, partial(margin_targeted, target=target))
            away = gap_distance(gradient, value, norm)
            nearer = torch.ones_like(target, dtype=torch.bool) if least is None else away < least
            normal = torch.where(nearer.view(wide), gradient, normal)
            gap = value if gap is None else torch.where(nearer, value, gap)
            least = away if least is None else torch.where(nearer, away, least)

        fooled = logits.argmax(1) != rows["y"]
        found, _ = keep_nearest(rows, asked, fooled, norm)
        step = shortest_step(asked, normal, -gap, norm)
        total = (x0 + rows["total"] + step).clamp(0, 1) - x0
        moved = (x0 + (1 + self.overshoot) * total).clamp(0, 1)
        asked = torch.where(fooled.view(wide), asked, moved)
        total = torch.where(fooled.view(wide), rows["total"], total)
        # Where a run has found something nearer than this row's own end, the nearest is where the row stands.
        best = torch.isfinite(found["distance"])
        x = into_ball(torch.where(best.view(wide), found["nearest"], asked), x0, rows["eps"], norm)
        ended = rows["t"] % (self.steps + 1) == self.steps
        if bool(ended.any()) and self.restarts > 1:
            kept = {name: (rows | found)[name][ended] for name in ("x0", "eps", "distance")}
            asked[ended] = restart_point(kept, norm, generators.select(ended))
            total[ended] = asked[ended] - x0[ended]
        return found | {"x": x, "asked": asked, "total": total}
