"""What the attacks that look for the nearest adversarial image share: the shortest way to a linearised boundary inside
the box, distances, and the record of the nearest find. Pure functions of tensors, row by row.
"""

from __future__ import annotations

from windtunnel.attacks.base import RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, unit
from windtunnel.backend import torch

NORMS = ("linf", "l2")


def shortest_step(x: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The shortest d with ``normal . d = gap`` and ``0 <= x + d <= 1``; x in the box [B, ...], gap [B], of any sign.

    Exact (Croce & Hein 2020, https://arxiv.org/abs/1907.02044, section 2.2 and its appendix, solved there too by
    sorting). With the direction of every pixel known, pixel i has the room r_i up to the box, and the shortest step of
    level s moves it by ``min(s, r_i)`` (linf) or ``min(s |w_i|, r_i)`` (l2), so that ``normal . d`` is a concave,
    piecewise linear, increasing function of s: its breakpoints are sorted and the level that reaches the gap is read
    off. Where even the whole box does not reach it, d leads to the corner that comes nearest. A zero normal gives 0.
    """
    w = normal.flatten(1).double()
    largest = w.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)  # so that no square underflows
    wanted = torch.nan_to_num(gap.double())[:, None] / scale
    w = w / scale * torch.where(wanted < 0, -1.0, 1.0)
    wanted, size = wanted.abs(), w.abs()
    flat = x.flatten(1).double()
    room = torch.where(w > 0, 1 - flat, flat).clamp_min(0)
    weight, reach = (size, room) if norm == "linf" else (size * size, room / size.clamp_min(1e-300))
    reach = torch.where(size > 0, reach, 0.0)

    reach, order = reach.sort(dim=1)
    weight = weight.gather(1, order)
    zero = torch.zeros_like(wanted)
    full = torch.cat([zero, (weight * reach).cumsum(1)], dim=1)  # won by the pixels that are at their limit
    free = torch.cat([weight.flip(1).cumsum(1).flip(1), zero], dim=1)  # won per unit of level by the others
    won = full[:, 1:] + reach * free[:, 1:]  # at the level of each breakpoint
    first = (won < wanted).sum(1, keepdim=True)
    level = (wanted - full.gather(1, first)) / free.gather(1, first).clamp_min(1e-300)
    level = torch.where(first < reach.shape[1], level, torch.inf)
    moved = torch.minimum(level if norm == "linf" else torch.where(size > 0, level * size, 0.0), room)
    return (moved * w.sign()).view_as(x).to(x.dtype)


def gap_distance(normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """[B] float64: the distance ``|gap| / |normal|_*`` of a linearised boundary, without the box; infinite where the
    normal is zero."""
    w = normal.flatten(1).double()
    dual = w.abs().sum(1) if norm == "linf" else torch.linalg.vector_norm(w, dim=1)
    return torch.where(dual > 0, gap.double().abs() / dual.clamp_min(1e-300), torch.inf)


def distance(x: Tensor, x0: Tensor, norm: str) -> Tensor:
    """[B] float64: how far each image is from its clean one."""
    flat = (x.double() - x0.double()).flatten(1)
    return flat.abs().amax(1) if norm == "linf" else torch.linalg.vector_norm(flat, dim=1)


def into_ball(x: Tensor, x0: Tensor, eps: Tensor, norm: str) -> Tensor:
    """The nearest image inside ball and box."""
    return x.clamp(*linf_bounds(x0, eps)) if norm == "linf" else project_l2(x, x0, eps)


def ranked_wrong_classes(logits: Tensor, y: Tensor, n: int) -> Tensor:
    """[B, n]: the wrong classes, the most likely first; from the beginning again where there are fewer than ``n``."""
    others = logits.scatter(1, y[:, None], float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank = torch.arange(n, device=logits.device) % max(logits.shape[1] - 1, 1)
    return others[:, rank]


def nothing_found(x0: Tensor) -> Rows:
    """The rows ``nearest`` (image) and ``distance`` (float64, infinite) before anything was found."""
    return {"nearest": x0, "distance": torch.full((len(x0),), torch.inf, dtype=torch.float64, device=x0.device)}


def keep_nearest(rows: Rows, x: Tensor, fooled: Tensor, norm: str) -> tuple[Rows, Tensor]:
    """The rows ``nearest`` and ``distance`` after a look at ``x``, and which rows improved."""
    away = distance(x, rows["x0"], norm)
    better = fooled & (away < rows["distance"])
    return {
        "nearest": torch.where(better.view(-1, *([1] * (x.dim() - 1))), x, rows["nearest"]),
        "distance": torch.where(better, away, rows["distance"]),
    }, better


def restart_point(rows: Rows, norm: str, generators: RowGenerators) -> Tensor:
    """A random image at half the distance ``min(nearest found, eps)``: the random start of FAB's public code."""
    x0 = rows["x0"]
    radius = per_row(0.5 * torch.minimum(rows["distance"], rows["eps"]), x0)
    shape = tuple(x0.shape[1:])
    if norm == "linf":
        noise = 2.0 * generators.uniform(*shape) - 1.0
        noise = noise / noise.flatten(1).abs().amax(1).view(-1, *([1] * (x0.dim() - 1)))
    else:
        noise = unit(generators.normal(*shape))
    return (x0 + radius * noise).clamp(0, 1)
