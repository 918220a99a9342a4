"""Square: random search with squares, no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.geometry import L2_SHRINK, TINY, linf_bounds, per_row, project_l2, row_norm, unit
from windtunnel.attacks.losses import margin
from windtunnel.backend import torch

# (queries at a budget of 10,000, by how much the initial share of changed pixels is divided): the paper, section 5.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
L2_TILES = 5  # the l2 start is a grid of 5 x 5 bumps: the public code
L2_LEAST_SIDE = 3


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Square Attack (Andriushchenko et al., Square Attack: a Query-efficient Black-box Adversarial Attack via Random
    Search, 2020, https://arxiv.org/abs/1912.00049, algorithms 1 to 3), linf and l2.

    A query changes one square of the image and is kept if the margin ``max_{j != y} z_j - z_y`` grows. The square
    covers the share p of the pixels: p starts at ``p_init`` = .8 and is halved at the queries 10, 50, 200, 500, 1000,
    2000, 4000, 6000, 8000 of 10,000, stretched to the budget where ``rescale`` (the paper's). AutoAttack is
    ``queries=5000, rescale=False``. ``queries`` counts the start too.

    linf: the start is vertical stripes of +-eps; a query adds +-2 eps per channel inside the square, clipped to the
    ball. l2: the start is a grid of bumps, scaled to eps; a query empties a second square of the same size and gives
    its mass, and what clipping to the box left unused of eps, to the first, as a bump of random sign per channel plus
    what was there; the side is odd and at least 3. A bump is two halves of opposite sign, side by side or one above
    the other, each falling off from its centre by rings: sum over k >= ring of 1 / (k + 1)^2, of length 1.

    The paper stops at the first success; so does mode ``search``. Mode ``full`` goes on raising the margin.

    Deviations: squares may touch the last row and column, as in the paper's text, which the public code never does;
    square and orientation are the sample's own, where the public code shares them in the batch; the mass of the two
    squares is counted per channel (paper and its code), where AutoAttack's copy counts the whole image.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    uses_gradient: ClassVar[bool] = False
    bill: ClassVar[tuple[str, ...]] = ("queries",)

    queries: int = 1000
    p_init: float = 0.8
    rescale: bool = True

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.p_init <= 1:
            raise ValueError(f"queries must be at least 1 and p_init in (0, 1]: {self}")

    @property
    def max_steps(self) -> int:
        return self.queries

    def share(self, age: Tensor) -> Tensor:
        """[B] float64: the share p of pixels that a row changes at its ``age``-th query after the start."""
        if self.rescale:
            age = age * 10_000 // self.queries
        edges = torch.tensor(HALVINGS, device=age.device)
        return self.p_init / 2.0 ** (age[:, None] > edges).sum(1).double()

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        worst = torch.full((len(x0),), float("-inf"), dtype=x0.dtype, device=x0.device)
        if norm == "l2":
            return {"x": _to_sphere(_bump_grid(x0, generators), x0, eps), "margin": worst}
        low, high = linf_bounds(x0, eps)
        stripes = generators.uniform(x0.shape[1], 1, x0.shape[3]) < 0.5
        return {"x": torch.where(stripes, low, high), "margin": worst, "low": low, "high": high}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        x, first = rows["x"], rows["t"] == 0
        _, _, height, width = x.shape
        side = (self.share(rows["t"] - 1) * height * width).sqrt().round().long().clamp(1, min(height, width))
        moved = _linf_moved(rows, side, generators) if norm == "linf" else _l2_moved(rows, side, generators)
        candidate = torch.where(first.view(-1, 1, 1, 1), x, moved)

        gain = margin(query.logits(candidate), rows["y"]).to(x.dtype)
        accept = gain > rows["margin"]
        return rows | {
            "x": torch.where(accept.view(-1, 1, 1, 1), candidate, x),
            "margin": torch.where(accept, gain, rows["margin"]),
        }


def _linf_moved(rows: Rows, side: Tensor, generators: RowGenerators) -> Tensor:
    """[B, C, H, W]: +-2 eps per channel inside one square of each row, clipped to the ball."""
    x = rows["x"]
    _, channels, height, width = x.shape
    draw = generators.uniform(2 + channels)
    top, left = _place(draw[:, 0], height, side), _place(draw[:, 1], width, side)
    inside = _square(top, left, side, x)
    sign = torch.where(draw[:, 2:] < 0.5, -1.0, 1.0)[:, :, None, None]
    return (x + inside * sign * (2.0 * per_row(rows["eps"], x))).clamp(rows["low"], rows["high"])


def _l2_moved(rows: Rows, side: Tensor, generators: RowGenerators) -> Tensor:
    """[B, C, H, W]: the mass of a second square and the unused rest of eps moved into a bump in the first."""
    x, x0 = rows["x"], rows["x0"]
    _, channels, height, width = x.shape
    side = (side.clamp_min(L2_LEAST_SIDE) // 2 * 2 + 1).clamp_max(min(height, width))
    draw = generators.uniform(5 + channels)
    top, left = _place(draw[:, 0], height, side), _place(draw[:, 1], width, side)
    inside = _square(top, left, side, x)
    emptied = _square(_place(draw[:, 2], height, side), _place(draw[:, 3], width, side), side, x)
    sign = torch.where(draw[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
    peak = torch.where(inside, _bumps_at(top, left, side, draw[:, 4] < 0.5, x), 0.0) * sign

    delta = x - x0
    unused = ((per_row(rows["eps"], x) * L2_SHRINK).square() - row_norm(delta).square()).clamp_min(0.0)
    mass = (delta * (inside | emptied)).square().sum((2, 3), keepdim=True)
    before = delta * inside
    shape = peak + before / _channel_norm(before).clamp_min(TINY)
    filled = shape / _channel_norm(shape).clamp_min(TINY) * (mass + unused / channels).sqrt()
    return _to_sphere(delta.masked_fill(emptied, 0.0).masked_fill(inside, 0.0) + filled, x0, rows["eps"])


def _to_sphere(delta: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """``x0`` moved by eps along ``delta``, then clipped to the box."""
    return project_l2(x0 + per_row(eps, x0) * unit(delta), x0, eps)


def _channel_norm(x: Tensor) -> Tensor:
    return x.square().sum((2, 3), keepdim=True).sqrt()


def _place(uniform: Tensor, size: int, side: Tensor) -> Tensor:
    """[B] int64: where a square of that side begins, every place in 0 .. size - side alike."""
    return (uniform * (size - side + 1)).long().minimum(size - side)


def _square(top: Tensor, left: Tensor, side: Tensor, x: Tensor) -> Tensor:
    """[B, 1, H, W] bool: the pixels of each row's square."""
    down = torch.arange(x.shape[2], device=x.device) - top[:, None]
    across = torch.arange(x.shape[3], device=x.device) - left[:, None]
    inside = [(offset >= 0) & (offset < side[:, None]) for offset in (down, across)]
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


@cache
def bump(side: int) -> Tensor:
    """[side, side] float64, length 1: a positive half above a negative one (paper, eq. 2)."""
    halves = []
    for height in (side // 2, side - side // 2):
        down = (torch.arange(height) - height // 2).abs()[:, None]
        across = (torch.arange(side) - side // 2).abs()[None, :]
        rings = torch.arange(max(height, side) // 2 + 1)
        tails = (1.0 / (rings.double() + 1).square()).flip(0).cumsum(0).flip(0)
        half = tails[torch.maximum(down, across)]
        halves.append(half / torch.linalg.vector_norm(half).clamp_min(TINY))
    whole = torch.cat([halves[0], -halves[1]])
    return whole / torch.linalg.vector_norm(whole)


def _bumps_at(top: Tensor, left: Tensor, side: Tensor, turned: Tensor, x: Tensor) -> Tensor:
    """[B, 1, H, W]: one bump per row in its square, anything around it; ``turned`` ones have halves side by side."""
    sides, which = torch.unique(side, return_inverse=True)
    largest = int(sides.max())
    table = torch.zeros(len(sides), largest, largest, dtype=x.dtype)
    for number, length in enumerate(sides.tolist()):
        table[number, :length, :length] = bump(length)
    down = (torch.arange(x.shape[2], device=x.device) - top[:, None])[:, :, None].clamp(0, largest - 1)
    across = (torch.arange(x.shape[3], device=x.device) - left[:, None])[:, None, :].clamp(0, largest - 1)
    turned = turned[:, None, None]
    row, column = torch.where(turned, across, down), torch.where(turned, down, across)
    return table.to(x.device)[which[:, None, None], row, column][:, None]


def _bump_grid(x0: Tensor, generators: RowGenerators) -> Tensor:
    """[B, C, H, W]: the l2 start, a centred grid of bumps with a random sign per bump and channel."""
    _, channels, height, width = x0.shape
    side = max(min(height, width) // L2_TILES, 1)
    down, across = height // side, width // side
    draw = generators.uniform(down, across, 1 + channels)
    upright = bump(side).to(x0)
    tile = torch.where((draw[..., :1, None, None] < 0.5), upright.T, upright)  # [B, down, across, 1, side, side]
    tile = tile * torch.where(draw[..., 1:, None, None] < 0.5, -1.0, 1.0).to(x0)
    grid = tile.permute(0, 3, 1, 4, 2, 5).reshape(len(x0), channels, down * side, across * side)
    delta = torch.zeros_like(x0)
    first, begin = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, first : first + down * side, begin : begin + across * side] = grid
    return delta
