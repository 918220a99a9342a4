"""HopSkipJump: walk along the decision boundary, seeing nothing but the predicted class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.backend import torch

START, SHRINK, PROBE, LEAP = 0, 1, 2, 3  # what a row asks next
FIRST_PROBE = 0.1  # length of the probes at the first boundary point: the public code
FINEST = 2.0**-25  # a float32 pixel near 1 has no finer steps: a binary search ends there at the latest
LEAST_LEAP = 2.0**-20  # share of the first leap at which the search for a step gives up
TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """HopSkipJumpAttack (Chen, Jordan, Wainwright, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack, 2020,
    https://arxiv.org/abs/1904.02144, algorithm 2), linf and l2, untargeted. Of every answer it uses only whether the
    predicted class is wrong: any increasing function of the logits gives the same run.

    START: random images until one is misclassified. SHRINK: binary search towards the clean image x0, along the line
    (l2) or by clipping to smaller cubes (linf), down to theta = ``gamma`` d^(-3/2) (l2) or ``gamma`` d^(-2) (linf) of
    the distance D before. PROBE: ``B = min(probes sqrt(t), most_probes)`` random images around the boundary point b at
    ``gamma D / d`` (.1 in the first round) estimate the direction ``v = sum (phi - mean phi) u`` with phi = +-1 for
    wrong or right, u normal (l2) or uniform (linf), of length 1. LEAP: ``b + s v / |v|`` (sign v under linf) with s =
    D / sqrt(t), halved until it is misclassified; then SHRINK again. ``probes`` = 100, ``most_probes`` = 10,000 and
    ``gamma`` = 1 are the paper's. A step is one query; ``queries`` is the whole budget (the paper reports 1,000 to
    25,000), whatever round a row is then in.

    It minimises the distance, so it asks outside the ball, which counts for nothing; ``x`` is the last boundary point
    carried along its own direction to the surface of the ball, where it is further behind the boundary (or, if it is
    not near enough, pulled back to it), so that the last image survives rounding better than the nearest one.

    Deviations: after uniform noise fails as a start, noise in cells of 2, 4, 8 .. pixels up to a single colour is tried
    in turn (to a classifier all uniform noise is one class, and samples of that class would have no start); the first
    search goes from there straight to theta, without the public code's blend to .001 before it; no search goes finer
    than float32 does; a leap that does not succeed in 20 halvings ends the round at the same boundary point.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    uses_gradient: ClassVar[bool] = False
    bill: ClassVar[tuple[str, ...]] = ("queries",)
    minimal_norm: ClassVar[bool] = True

    queries: int = 1000
    probes: int = 100
    most_probes: int = 10_000
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.queries < 1 or self.probes < 1 or self.most_probes < self.probes or self.gamma <= 0:
            raise ValueError(f"queries and probes must be at least 1, most_probes no fewer, gamma above 0: {self}")

    @property
    def max_steps(self) -> int:
        return self.queries

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        rows = {"x": x0, "far": x0, "edge": x0, "push": torch.zeros_like(x0), "drift": torch.zeros_like(x0)}
        rows |= {name: torch.zeros_like(y) for name in ("phase", "count", "wrongs", "turn")}
        for name in ("low", "high", "reach", "distance", "length"):
            rows[name] = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
        return rows

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        phases = (
            (START, self._start, self._started),
            (SHRINK, self._shrink, self._shrunk),
            (PROBE, self._probe, self._probed),
            (LEAP, self._leap, self._leapt),
        )
        here = {phase: torch.nonzero(rows["phase"] == phase)[:, 0] for phase, _, _ in phases}
        asked = rows["edge"].clone()
        for phase, propose, _ in phases:
            if len(here[phase]):
                asked[here[phase]] = propose(_of(rows, here[phase]), norm, generators.select(here[phase]))
        logits = query.logits(asked)
        wrong = (logits.argmax(1) != rows["y"]) | logits.isnan().any(1)
        new = dict(rows)
        for phase, _, learn in phases:
            index = here[phase]
            if len(index):
                learnt = learn(_of(rows, index), asked[index], wrong[index], norm)
                for name, values in learnt.items():
                    new[name] = new[name].index_put((index,), values.to(new[name].dtype))
        return new

    # Each phase: the image to ask about, then what the answer ``wrong`` [B] teaches.

    def _start(self, rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
        _, channels, height, width = rows["x0"].shape
        noise = generators.uniform(channels, height, width)
        sizes = min(height, width).bit_length()  # cells of 1, 2, 4 .. pixels, the last larger than the image
        cell = 2 ** (rows["count"] % (sizes + 1))[:, None]
        down = (torch.arange(height, device=noise.device) // cell)[:, None, :, None]
        across = (torch.arange(width, device=noise.device) // cell)[:, None, None, :]
        coarse = noise.gather(2, down.expand(-1, channels, -1, width))
        return coarse.gather(3, across.expand(-1, channels, height, -1))

    def _started(self, rows: Rows, asked: Tensor, wrong: Tensor, norm: str) -> Rows:
        return _choose(wrong, _to_shrink(rows, asked, norm), rows) | {"count": rows["count"] + 1}

    def _shrink(self, rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
        x0, away = rows["x0"], rows["far"] - rows["x0"]
        middle = per_row((rows["low"] + rows["high"]) / 2, x0)
        return (x0 + (away.clamp(-middle, middle) if norm == "linf" else away * middle)).clamp(0.0, 1.0)

    def _shrunk(self, rows: Rows, asked: Tensor, wrong: Tensor, norm: str) -> Rows:
        middle = (rows["low"] + rows["high"]) / 2
        low, high = torch.where(wrong, rows["low"], middle), torch.where(wrong, middle, rows["high"])
        edge = torch.where(wrong.view(-1, 1, 1, 1), asked, rows["edge"])
        size = rows["x0"][0].numel()
        close = self.gamma * (size**-1.5 if norm == "l2" else rows["reach"].clamp_max(1.0) * size**-2.0)
        done = high - low <= torch.as_tensor(close, dtype=high.dtype, device=high.device).clamp_min(FINEST)
        probing = _choose(done, self._to_probe(rows | {"edge": edge}, norm), rows)
        return probing | {"low": low, "high": high, "edge": edge}

    def _to_probe(self, rows: Rows, norm: str) -> Rows:
        """A round of probes around ``edge``; round 1 after the first search."""
        turn = rows["turn"] + 1
        length = torch.where(turn == 1, FIRST_PROBE, self.gamma * rows["reach"] / rows["x0"][0].numel())
        none = torch.zeros_like(rows["edge"])
        found = {"phase": torch.full_like(turn, PROBE), "count": 0 * turn, "wrongs": 0 * turn, "turn": turn}
        found |= {"push": none, "drift": none, "length": length.clamp_min(TINY)}
        distance = _distance(rows["edge"], rows["x0"], norm)
        return found | {"distance": distance, "x": _on_ball(rows["edge"], rows["x0"], rows["eps"], distance, norm)}

    def _probe(self, rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
        shape = tuple(rows["x0"].shape[1:])
        noise = generators.normal(*shape) if norm == "l2" else 2.0 * generators.uniform(*shape) - 1.0
        return (rows["edge"] + per_row(rows["length"], noise) * unit(noise)).clamp(0.0, 1.0)

    def _probed(self, rows: Rows, asked: Tensor, wrong: Tensor, norm: str) -> Rows:
        tried = (asked - rows["edge"]) / per_row(rows["length"], asked)
        sign = torch.where(wrong, 1.0, -1.0)
        count = rows["count"] + 1
        wanted = (self.probes * rows["turn"].double().sqrt()).clamp_max(self.most_probes).floor()
        done = count >= wanted
        leap = rows["distance"] / rows["turn"].double().sqrt()
        return {
            "push": rows["push"] + per_row(sign, tried) * tried,
            "drift": rows["drift"] + tried,
            "wrongs": rows["wrongs"] + wrong,
            "count": count,  # kept while leaping: the number of probes behind ``push``
            "phase": torch.where(done, LEAP, PROBE),
            "length": torch.where(done, leap, rows["length"]),
        }

    def _leap(self, rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
        mean = 2.0 * rows["wrongs"] / rows["count"] - 1.0
        # All probes alike: the mean is no baseline, it is all there is.
        baseline = torch.where(mean.abs() == 1.0, 0.0, mean)
        direction = rows["push"] - per_row(baseline, rows["push"]) * rows["drift"]
        direction = direction.sign() if norm == "linf" else unit(direction)
        return (rows["edge"] + per_row(rows["length"], direction) * direction).clamp(0.0, 1.0)

    def _leapt(self, rows: Rows, asked: Tensor, wrong: Tensor, norm: str) -> Rows:
        shorter = rows["length"] / 2
        least = rows["distance"] / rows["turn"].double().sqrt() * LEAST_LEAP
        given_up = ~wrong & (shorter < least)
        again = rows | _choose(given_up, self._to_probe(rows, norm), rows | {"length": shorter})
        return again | _choose(wrong, _to_shrink(rows, asked, norm), again)


def _of(rows: Rows, index: Tensor) -> Rows:
    return rows if len(index) == len(rows["t"]) else {name: values[index] for name, values in rows.items()}


def _choose(mask: Tensor, yes: Rows, no: Rows) -> Rows:
    """For the names of ``yes``: its value where ``mask``, that of ``no`` elsewhere."""
    wide = {name: mask.view(-1, *([1] * (value.dim() - 1))) for name, value in yes.items()}
    return {name: torch.where(wide[name], value.to(no[name].dtype), no[name]) for name, value in yes.items()}


def _to_shrink(rows: Rows, far: Tensor, norm: str) -> Rows:
    """A binary search between the clean image and the misclassified image ``far``."""
    reach = _distance(far, rows["x0"], norm)
    high = reach if norm == "linf" else torch.ones_like(reach)
    found = {"far": far, "edge": far, "reach": reach, "low": torch.zeros_like(high), "high": high}
    return found | {"phase": torch.full_like(rows["phase"], SHRINK)}


def _distance(x: Tensor, x0: Tensor, norm: str) -> Tensor:
    """[B] float64."""
    away = (x.double() - x0.double()).flatten(1)
    return away.abs().amax(1) if norm == "linf" else away.square().sum(1).sqrt()


def _on_ball(edge: Tensor, x0: Tensor, eps: Tensor, distance: Tensor, norm: str) -> Tensor:
    """The boundary point carried outwards to the surface of the ball, or pulled back to it; inside the box."""
    outwards = (eps / distance.clamp_min(TINY)).clamp_min(1.0)
    carried = x0 + (edge - x0) * per_row(outwards, x0)
    return carried.clamp(*linf_bounds(x0, eps)) if norm == "linf" else project_l2(carried, x0, eps)
