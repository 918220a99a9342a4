"""APGD: projected gradient ascent that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Loss, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.attacks.losses import TARGETED_LOSSES, loss_named
from windtunnel.backend import torch


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD (Croce & Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks, 2020, https://arxiv.org/abs/2003.01690, algorithm 1), every quantity per row.

    ``z = P(x + s d)``, d the sign of the gradient (linf) or the unit gradient (l2); ``x' = P(x + a (z - x) + (1 -
    a)(x - x_old))`` with a = ``momentum`` = 0.75 (1 in the first step). The step s starts at 2 eps. At the
    checkpoints (windows of ``first_window`` = .22 of the steps, each shorter by ``window_decrement`` = .03, never
    below ``least_window`` = .06) s is halved and the run goes on from its best point if the loss rose in at most
    ``rho`` = .75 of the window's steps, or if neither s nor the best loss has changed since the last checkpoint. All
    defaults are the paper's.

    ``loss``: any name in ``windtunnel.attacks.losses``. The targeted ones (dlr_targeted, margin_targeted) go towards
    wrong classes of the clean image, in order of likelihood: the ``target``-th alone (1 = the runner-up), or the first
    ``targets``, one after the other (APGD-T; 9 in AutoAttack). Where there are fewer wrong classes, ``targets`` begins
    again with the first. ``restarts`` runs follow each other for each target. On saturated logits ce has an exactly
    zero gradient (rows carry ``zero_gradient``); dlr is the paper's answer.

    Deviations: the first window compares its first loss with that of the start, as the paper says, where the public
    code compares it with 0; random numbers belong to the sample, where the public code restarts one stream per batch.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    bill: ClassVar[tuple[str, ...]] = ("steps", "restarts", "targets")

    loss: str = "ce"
    target: int | None = None
    targets: int | None = None
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    first_window: float = 0.22
    least_window: float = 0.06
    window_decrement: float = 0.03
    momentum: float = 0.75

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be at least 1: {self}")
        targeted = self.loss in TARGETED_LOSSES
        if (self.target is not None) + (self.targets is not None) != targeted:
            raise ValueError(
                f"a targeted loss ({', '.join(TARGETED_LOSSES)}) wants either 'target' (1 = the runner-up) or "
                f"'targets' (how many), and no other loss does: {self}"
            )
        if any(number is not None and number < 1 for number in (self.target, self.targets)):
            raise ValueError(f"target is a rank and targets a number, 1 or more: {self}")
        if not targeted:
            loss_named(self.loss)

    @property
    def max_steps(self) -> int:
        return (self.targets or 1) * self.restarts * (self.steps + 1)

    def checkpoints(self) -> list[int]:
        """Window length at the step numbers (1 .. steps) that are checkpoints, 0 elsewhere; index 0 is the start."""
        window = max(int(self.first_window * self.steps), 1)
        least = max(int(self.least_window * self.steps), 1)
        decrement = max(int(self.window_decrement * self.steps), 1)
        table, since = [0], 0
        for _ in range(self.steps):
            since += 1
            table.append(window if since == window else 0)
            if since == window:
                since, window = 0, max(window - decrement, least)
        return table

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        zeros = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        rows = {
            "x": x0,
            "x_old": x0,
            "x_best": x0,
            "gradient": torch.zeros_like(x0),
            "gradient_best": torch.zeros_like(x0),
        }
        rows |= {"loss": zeros, "loss_best": zeros, "loss_checked": zeros, "length": zeros}
        rows |= {"rises": torch.zeros_like(y), "reduced": torch.ones_like(y, dtype=torch.bool)}
        if norm == "linf":
            rows["low"], rows["high"] = linf_bounds(x0, eps)
        if self.loss in TARGETED_LOSSES:
            wrong_classes = query.n_classes - 1
            if self.target is not None and self.target > wrong_classes:
                raise ValueError(f"no wrong class of rank {self.target} among {query.n_classes} classes")
            others = query.logits(x0).scatter(1, y[:, None], float("-inf"))
            rows["ranked"] = others.argsort(dim=1, descending=True, stable=True)[:, :wrong_classes]
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        phase = rows["t"] % (self.steps + 1)
        fresh = phase == 0
        x = rows["x"] if bool(fresh.all()) else self._move(rows, norm, phase)
        if bool(fresh.any()):
            x = x.clone()
            x[fresh] = _start({k: rows[k][fresh] for k in ("x0", "eps")}, norm, generators.select(fresh))
        _, loss, gradient = query.gradient(x, self._loss(rows))
        loss = loss.to(rows["loss"].dtype)

        better = fresh | (loss > rows["loss_best"])
        new = {
            "x_old": torch.where(_wide(fresh, x), x, rows["x"]),
            "x_best": torch.where(_wide(better, x), x, rows["x_best"]),
            "gradient_best": torch.where(_wide(better, x), gradient, rows["gradient_best"]),
            "loss_best": torch.where(better, loss, rows["loss_best"]),
            "rises": torch.where(fresh, 0, rows["rises"] + (loss > rows["loss"])),
            "length": torch.where(fresh, 2 * rows["eps"].to(x.dtype), rows["length"]),
            "reduced": fresh | rows["reduced"],
            "loss_checked": torch.where(fresh, loss, rows["loss_checked"]),
            "loss": loss,
        }
        window = torch.tensor(self.checkpoints(), device=x.device)[phase]
        check = window > 0
        if bool(check.any()):
            oscillates = new["rises"] <= self.rho * window
            stalled = ~new["reduced"] & (new["loss_checked"] >= new["loss_best"])
            reduce = check & (oscillates | stalled)
            new["length"] = torch.where(reduce, new["length"] / 2, new["length"])
            new["reduced"] = torch.where(check, reduce, new["reduced"])
            new["loss_checked"] = torch.where(check, new["loss_best"], new["loss_checked"])
            new["rises"] = torch.where(check, 0, new["rises"])
            x = torch.where(_wide(reduce, x), new["x_best"], x)
            gradient = torch.where(_wide(reduce, x), new["gradient_best"], gradient)
        return rows | new | {"x": x, "gradient": gradient}

    def _move(self, rows: Rows, norm: str, phase: Tensor) -> Tensor:
        x, length = rows["x"], per_row(rows["length"], rows["x"])
        share = per_row(torch.where(phase > 1, self.momentum, 1.0), x)
        if norm == "linf":
            z = torch.addcmul(x, rows["gradient"].sign(), length).clamp(rows["low"], rows["high"])
        else:
            z = project_l2(x + length * unit(rows["gradient"]), rows["x0"], rows["eps"])
        # x + share (z - x) + (1 - share)(x - x_old), without a new tensor for every term
        moved = (z - x).mul_(share).add_(x).add_((x - rows["x_old"]).mul_(1 - share))
        if norm == "linf":
            return moved.clamp_(rows["low"], rows["high"])
        return project_l2(moved, rows["x0"], rows["eps"])

    def _loss(self, rows: Rows) -> Loss:
        if self.loss not in TARGETED_LOSSES:
            return loss_named(self.loss)
        loss, ranked = TARGETED_LOSSES[self.loss], rows["ranked"]
        run = rows["t"] // (self.steps + 1) // self.restarts
        rank = run % ranked.shape[1] if self.target is None else torch.full_like(run, self.target - 1)
        target = ranked.gather(1, rank[:, None])[:, 0]
        return lambda logits, y: loss(logits, y, target)


def _start(rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
    """linf: uniform noise stretched so that its largest pixel reaches eps; l2: a Gaussian direction of length eps."""
    x0, eps = rows["x0"], rows["eps"]
    shape = tuple(x0.shape[1:])
    if norm == "linf":
        noise = 2.0 * generators.uniform(*shape) - 1.0
        noise = noise / noise.abs().amax(dim=(1, 2, 3), keepdim=True)
        return (x0 + per_row(eps, x0) * noise).clamp(*linf_bounds(x0, eps))
    return project_l2(x0 + per_row(eps, x0) * unit(generators.normal(*shape)), x0, eps)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *([1] * (like.dim() - 1)))
