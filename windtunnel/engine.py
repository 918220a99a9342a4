"""The one loop: batches, device, per-sample seeds, counting and judging. It knows of no single method.

An attack proposes images, the *pipeline* (a defense, applied in rounds, then a model) answers, and the engine keeps
for every sample the best image asked about, the last one, and what it cost. Rows of a batch do not know of each
other: random numbers are keyed by (attack seed, sample id), so that a result depends neither on the batch size nor on
the order of the samples nor on which samples share a batch (up to the float rounding of the model's own forward
pass).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from windtunnel.attacks.base import Attack, Loss, Rows, Tensor
from windtunnel.attacks.losses import margin as margin_of
from windtunnel.backend import torch
from windtunnel.defenses.base import BackwardRule, Defense, Draw, RandomDefense, apply_draws
from windtunnel.defenses.rules import control_rules

Mode = Literal["search", "full"]
Progress = Callable[[int, int, float], None]

# Largest distance by which a float32 image may leave its ball or the box before it counts as a violation: 0.03 % of a
# grey level. The attacks of this library stay inside the l-infinity ball exactly; foreign code rounds outwards.
BOUND_TOLERANCE = 1e-6
# New samples enter when at least this share of the batch is free: one row at a time would cost more than it fills.
REFILL_SHARE = 0.125
# A random defense: the image that is handed on is chosen on so many draws, and judged on so many fresh ones elsewhere.
CHOOSING_DRAWS = 10
JUDGING_DRAWS = 20
# The progress callback is told of every further twentieth of the samples.
PROGRESS_SHARE = 0.05


class ModelNotGuarded(RuntimeError):
    """The model is in train mode or its parameters want gradients: every number made with it would be in doubt."""


def check_guarded(model: torch.nn.Module) -> None:
    """Raise ``ModelNotGuarded`` unless every module is in eval mode and no parameter requires a gradient."""
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    wanting = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if training or wanting:
        what = f"in train mode: {training[:3]}" if training else f"parameters that require a gradient: {wanting[:3]}"
        raise ModelNotGuarded(
            f"{what}; call model.eval().requires_grad_(False), or use windtunnel.engine.frozen(model)"
        )


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Eval mode and no parameter gradients inside; afterwards every module and parameter has its *own* flag back."""
    training = [(module, module.training) for module in model.modules()]
    wanting = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield model
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in wanting:
            parameter.requires_grad_(flag)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's parameters or buffers are; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


# ---------------------------------------------------------------------------------------------------------- randomness


class RowRandom:
    """One Philox stream per row, keyed by SHA-256 of (attack seed, sample id): see ``attacks.base.RowGenerators``."""

    def __init__(self, streams: Sequence[np.random.Generator], device: torch.device) -> None:
        self.streams = list(streams)
        self.device = device

    @classmethod
    def keyed(cls, seed: int, sample_ids: Sequence[Any], device: torch.device | str = "cpu") -> RowRandom:
        """The streams of these samples, at their beginning."""
        return cls([_stream(seed, sample_id) for sample_id in sample_ids], torch.device(device))

    def __len__(self) -> int:
        return len(self.streams)

    def select(self, rows: Tensor) -> RowRandom:
        """The same streams of some rows, by boolean mask or index."""
        index = torch.nonzero(rows)[:, 0] if rows.dtype == torch.bool else rows
        return RowRandom([self.streams[i] for i in index.tolist()], self.device)

    def join(self, other: RowRandom) -> RowRandom:
        """These rows, then the other's."""
        return RowRandom([*self.streams, *other.streams], self.device)

    def uniform(self, *shape: int) -> Tensor:
        """[B, *shape] float32 in [0, 1)."""
        return self._fill(shape, lambda stream, out: stream.random(dtype=np.float32, out=out))

    def normal(self, *shape: int) -> Tensor:
        """[B, *shape] float32, standard normal."""
        return self._fill(shape, lambda stream, out: stream.standard_normal(dtype=np.float32, out=out))

    def integers(self, high: Tensor | int, *shape: int) -> Tensor:
        """[B, *shape] int64 in [0, high)."""
        highs = high.tolist() if isinstance(high, torch.Tensor) else [high] * len(self)
        drawn = [stream.integers(top, size=shape) for stream, top in zip(self.streams, highs, strict=True)]
        return torch.from_numpy(np.array(drawn, dtype=np.int64).reshape(len(self), *shape)).to(self.device)

    def _fill(self, shape: tuple[int, ...], draw: Callable[[np.random.Generator, np.ndarray], Any]) -> Tensor:
        out = np.empty((len(self), *(shape or (1,))), dtype=np.float32)
        for stream, row in zip(self.streams, out, strict=True):
            draw(stream, row)
        return torch.from_numpy(out.reshape(len(self), *shape)).to(self.device)


def _stream(seed: int, sample_id: Any) -> np.random.Generator:
    digest = hashlib.sha256(f"{int(seed)}\0{sample_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


# ------------------------------------------------------------------------------------------------------------ pipeline


class _ForwardReal(torch.autograd.Function):
    """Forward: the real defense's images. Backward: the gradient goes to the stand-in, unchanged (straight-through)."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, real: Tensor) -> Tensor:
        return real.view_as(real)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Pipeline:
    """The attacked pipeline: the real defense applied ``rounds`` times, then the model.

    The value is always the real one. The gradient at x is ``J_rule(x)^T grad_model(purified(x))``: straight through the
    backward rule, which is only run where it is not the identity. ``rule`` is a name among the defense's
    ``backward_rules(rounds)``, or a callable x -> x.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        defense: Defense | None = None,
        rounds: int = 1,
        rule: str | BackwardRule = "identity",
    ) -> None:
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {rounds}")
        if defense is None and rule != "identity":
            raise ValueError(f"there is no defense for the backward rule {rule!r} to stand for")
        self.model = model
        self.defense = defense
        self.rounds = rounds
        ensemble = getattr(model, "is_ensemble", False) is True
        self.members: tuple[torch.nn.Module, ...] = tuple(model.members) if ensemble else (model,)  # type: ignore[arg-type]
        self.rule: BackwardRule | None = None
        self._drawn_rule: str | None = None
        if callable(rule):
            self.rule = rule
        elif defense is not None and rule != "identity":
            own = dict.fromkeys(defense.rules) if isinstance(defense, RandomDefense) else defense.backward_rules(rounds)
            known: dict[str, Any] = control_rules() | own
            if rule not in known:
                raise ValueError(f"unknown backward rule '{rule}'; this defense has: {', '.join(sorted(known))}")
            self.rule = known[rule]
            if rule in own and isinstance(defense, RandomDefense):
                self._drawn_rule = rule

    @property
    def is_random(self) -> bool:
        """Whether two questions about one image may be answered differently."""
        return isinstance(self.defense, RandomDefense)

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> list[Draw] | None:
        """The dice of every round for rows of [C, H, W] ``shape``; None for a defense without dice."""
        if not isinstance(self.defense, RandomDefense):
            return None
        return [self.defense.draw(generators, shape) for _ in range(self.rounds)]

    def purified(self, x: Tensor, draws: list[Draw] | None = None) -> Tensor:
        """[B, C, H, W]: the real defense's answer, without a graph."""
        if self.defense is None:
            return x
        images = np.array(x.detach().to("cpu", torch.float32).numpy())  # a copy: a defense may write into its input
        if isinstance(self.defense, RandomDefense):
            if draws is None:
                raise TypeError(f"{type(self.defense).__name__} is random: draw its dice first")
            found = apply_draws(self.defense, images, draws).images
        else:
            found = images
            for _ in range(self.rounds):
                found = self.defense.cleaned(found)
        cleaned = np.ascontiguousarray(found, dtype=np.float32)
        if cleaned.shape != images.shape:
            raise ValueError(f"the defense changed the shape from {images.shape} to {cleaned.shape}")
        return torch.from_numpy(cleaned).to(device=x.device, dtype=x.dtype)

    def logits(self, x: Tensor, member: int | None = None, draws: list[Draw] | None = None) -> Tensor:
        """[B, K] of the real pipeline (or of one member behind the real defense), without a graph."""
        with torch.no_grad():
            return self._answering(member)(self.purified(x, draws))

    def differentiable(self, x: Tensor, member: int | None = None, draws: list[Draw] | None = None) -> Tensor:
        """[B, K] of the real pipeline (or of one member), with the straight-through graph back to ``x``."""
        return self._answering(member)(self.seen(x, draws))

    def seen(self, x: Tensor, draws: list[Draw] | None = None) -> Tensor:
        """[B, C, H, W]: what the model sees of ``x``, with the straight-through graph back to it."""
        if self.defense is None:
            return x
        return _ForwardReal.apply(self.stand_in(x, draws), self.purified(x, draws))

    def stand_in(self, x: Tensor, draws: list[Draw] | None = None) -> Tensor:
        """[B, C, H, W]: what the backward rule makes of ``x``, which is ``x`` itself for the identity."""
        rule = self.rule
        if self._drawn_rule is not None:
            rule = self.defense.backward_rules_drawn(draws)[self._drawn_rule]  # type: ignore[union-attr, arg-type]
        return x if rule is None else rule(x)

    def _answering(self, member: int | None) -> torch.nn.Module:
        return self.model if member is None else self.members[member]


# -------------------------------------------------------------------------------------------------------------- judging


class _Judge:
    """``attacks.base.Query`` for the rows of one batch; whatever is asked is written into ``book``, row by row.

    ``nearest`` is (x0 [B, C, H, W], eps [B] float64, norm) for an attack that looks for the nearest adversarial image;
    with ``stored`` only an image that fools as it will be stored (8 bits, inside ``ball``: x0, eps) counts.
    A random defense answers with the mean over ``eot`` draws from ``dice``, in logits, loss and gradient alike.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        y: Tensor,
        book: Rows,
        n_classes: int,
        nearest: tuple[Tensor, Tensor, str] | None = None,
        ball: tuple[Tensor, Tensor] | None = None,
        dice: RowRandom | None = None,
        eot: int = 1,
    ) -> None:
        self.dice = dice
        self.eot = eot if pipeline.is_random else 1
        self.pipeline = pipeline
        self.y = y
        self.book = book
        self.n_classes = n_classes
        self.n_members = len(pipeline.members)
        self.nearest = nearest
        self.ball = ball

    def logits(self, x: Tensor, *, member: int | None = None) -> Tensor:
        self._check(x)
        logits = _mean([self.pipeline.logits(x, member, draws) for draws in self._draws(x)])
        if member is None:
            self._record(x, logits)
        self.book["forward"] = self.book["forward"] + self._share(member)
        return logits

    def gradient(self, x: Tensor, loss: Loss, *, member: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        self._check(x)
        found = [self._differentiate(x, loss, member, draws) for draws in self._draws(x)]
        logits, values, gradient = (_mean(parts) for parts in zip(*found, strict=True))
        wrong = judged(logits, self.y)[1] if member is not None else self._record(x, logits)
        self.book["forward"] = self.book["forward"] + self._share(member)
        self.book["backward"] = self.book["backward"] + self._share(member)
        return logits, values, self._examine(gradient, wrong)

    def _differentiate(
        self, x: Tensor, loss: Loss, member: int | None, draws: list[Draw] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.pipeline.differentiable(leaf, member, draws)
            values = loss(logits, self.y)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return logits.detach(), values.detach(), gradient

    def defense_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._check(x)
        if self.pipeline.defense is None:
            raise ValueError("there is no defense whose error could be raised: attack through one")
        found = []
        for draws in self._draws(x):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                error = (self.pipeline.seen(leaf, draws) - leaf).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(error.sum(), leaf)
            found.append((error.detach(), gradient))
        error, gradient = (_mean(parts) for parts in zip(*found, strict=True))
        self.book["forward"] = self.book["forward"] + self.eot
        self.book["backward"] = self.book["backward"] + self.eot
        return error, self._examine(gradient, torch.zeros_like(self.y, dtype=torch.bool))

    def _draws(self, x: Tensor) -> list[list[Draw] | None]:
        if not self.pipeline.is_random or self.dice is None:
            return [None]
        return [self.pipeline.draw(self.dice.streams, tuple(x.shape[1:])) for _ in range(self.eot)]

    def _share(self, member: int | None) -> int:
        """What a question costs, in passes through one model."""
        return (self.n_members if member is None else 1) * self.eot

    def module(self) -> torch.nn.Module:
        return _Facade(self)

    def _check(self, x: Tensor) -> None:
        if len(x) != len(self.y):
            raise ValueError(f"the attack asked about {len(x)} images, its batch has {len(self.y)} rows")
        if x.dtype != self.book["best"].dtype:
            raise ValueError(
                f"the attack proposed {x.dtype} images, the clean ones are {self.book['best'].dtype}: eps is float64, "
                f"bring it to the images with windtunnel.attacks.geometry.per_row(eps, x0)"
            )

    def _record(self, x: Tensor, logits: Tensor) -> Tensor:
        """Judge candidates: wrong beats right, then the larger margin (or the smaller distance). Returns who is wrong.

        Where the nearest is looked for, a wrong image outside the ball counts for nothing.
        """
        book = self.book
        margin, wrong, nan = judged(logits, self.y)
        inside = torch.ones_like(wrong)
        if self.nearest is not None:
            x0, eps, norm = self.nearest
            inside = distances(x, x0, norm) <= eps + BOUND_TOLERANCE
            wrong = wrong & inside
        if self.ball is not None and bool(wrong.any()):
            x, margin, wrong = self._as_stored(x, margin, wrong)
        rank = margin
        if self.nearest is not None:
            distance = distances(x, x0, norm)
            # a right answer keeps its (negative) margin; a wrong one ranks by nearness, whatever its margin
            rank = torch.where(wrong, -distance.to(margin.dtype), torch.where(inside, margin, -torch.inf))
        better = (wrong & ~book["wrong"]) | ((wrong == book["wrong"]) & (rank > book["rank"]))
        if bool(better.any()):
            book["best"] = torch.where(better.view(-1, 1, 1, 1), x.detach(), book["best"])
            book["rank"] = torch.where(better, rank, book["rank"])
            book["margin"] = torch.where(better, margin, book["margin"])
        book["first"] = torch.where(wrong & ~book["wrong"], book["asked"], book["first"])
        book["wrong"] = book["wrong"] | wrong
        book["nan"] = book["nan"] | nan
        book["asked"] = book["asked"] + 1
        return wrong

    def _as_stored(self, x: Tensor, margin: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(images, margins, which are still wrong) after rounding the wrong ones to 8 bits inside their balls."""
        x0, eps = self.ball  # type: ignore[misc]
        rows = torch.nonzero(wrong)[:, 0]
        levels = store_linf(x[rows].cpu().numpy(), x0[rows].cpu().numpy(), float(eps[0]))
        stored = torch.from_numpy(as_stored(levels)).to(x)
        again, still, _ = judged(self.pipeline.logits(stored), self.y[rows])
        self.book["forward"] = self.book["forward"] + self.n_members * wrong
        return (
            x.detach().index_copy(0, rows, stored),
            margin.index_copy(0, rows, again),
            wrong.index_copy(0, rows, still),
        )

    def _examine(self, gradient: Tensor, wrong: Tensor) -> Tensor:
        """Note rows without a direction (exactly zero) and with NaN or infinity (set to 0)."""
        book = self.book
        book["gradients"] = book["gradients"] + 1
        # One pass finds the rows worth a look: a zero row sums to 0, one with NaN or infinity to nothing finite.
        total = gradient.flatten(1).sum(1)
        suspect = (total == 0) | ~torch.isfinite(total)
        if not bool(suspect.any()):
            return gradient
        rows = torch.nonzero(suspect)[:, 0]
        part = gradient[rows]
        broken = ~torch.isfinite(part).flatten(1).all(1)
        zero = (part == 0).flatten(1).all(1)
        book["nan_gradient"] = book["nan_gradient"].index_put((rows,), book["nan_gradient"][rows] | broken)
        book["zero"] = book["zero"].index_put((rows,), book["zero"][rows] | (zero & ~wrong[rows]))
        book["zeros"] = book["zeros"].index_add(0, rows, zero.to(book["zeros"].dtype))
        if bool(broken.any()):
            gradient = torch.where(torch.isfinite(gradient), gradient, torch.zeros_like(gradient))
        return gradient


class _Facade(torch.nn.Module):
    """The pipeline as foreign code wants to see a model. The real model is no submodule: train() and eval() stop here.

    Foreign code may ask about some rows only, unnamed, so its calls are shared out evenly over the rows of the batch.
    """

    def __init__(self, judge: _Judge) -> None:
        super().__init__()
        object.__setattr__(self, "_judge", judge)
        anchor = torch.zeros(1, device=judge.y.device)
        self.anchor = torch.nn.Parameter(anchor, requires_grad=False)  # foreign code looks for the device here
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        judge: _Judge = self._judge  # type: ignore[assignment]
        if judge.pipeline.is_random:
            raise ValueError("foreign attacks cannot go through a random defense: its dice belong to the samples")
        self._count("forward", len(x))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return judge.pipeline.logits(x)
        logits = judge.pipeline.differentiable(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._count("backward", len(gradient)))
        return logits

    def _count(self, key: str, rows: int) -> None:
        book = self._judge.book  # type: ignore[union-attr]
        book[key] = book[key] + self._judge.n_members * rows / len(book[key])  # type: ignore[union-attr]


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """The mean of equal shapes; a single part is itself, bit for bit."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)


def distances(x: Tensor, x0: Tensor, norm: str) -> Tensor:
    """[B] float64: the distance of each image from its clean one."""
    flat = (x.double() - x0.double()).flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def judged(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(margin ``max_{j != y} z_j - z_y`` [B], wrong [B], nan [B]). NaN logits are wrong, by an infinite margin."""
    margin = margin_of(logits, y).float()
    nan = torch.isnan(logits).any(1) | torch.isnan(margin)
    wrong = (logits.argmax(1) != y) | nan
    return torch.where(nan, torch.inf, margin), wrong, nan


# ------------------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """What an attack did to N samples, in their order.

    ``best`` is fooled if and only if any image asked about was (``success``); among equals it has the largest margin.
    It may be the clean image itself. ``last`` is the image after the last step (mode full), or the image on which a
    fooled sample left (mode search). ``first_success`` counts the images judged before the first fooled one, the
    clean image being number 0; masked where there was none. ``n_forward`` includes the clean image; for foreign code
    it is the batch's total, shared out evenly and rounded up. ``zero_gradient``: some gradient was exactly zero where
    the image was still classified correctly, so the attack had nowhere to go; ``zero_gradient_share`` of all
    gradients of the row, masked for an attack that asked for none. ``nan``: the pipeline answered NaN (counts as
    wrong). ``bound_violation``: best or last lies outside the ball or the box (float64), or is not finite; such a row
    is neither robust nor fooled. ``p_correct``: of a random pipeline, the share of the choosing draws that get ``best``
    right; masked for any other.
    """

    best: np.ndarray
    last: np.ndarray
    success: np.ndarray
    first_success: np.ma.MaskedArray
    clean_correct: np.ndarray
    best_margin: np.ndarray
    n_forward: np.ndarray
    n_backward: np.ndarray
    zero_gradient: np.ndarray
    zero_gradient_share: np.ma.MaskedArray
    nan_gradient: np.ndarray
    nan: np.ndarray
    bound_violation: np.ndarray
    p_correct: np.ma.MaskedArray

    def __len__(self) -> int:
        return len(self.success)

    def __getitem__(self, rows: Any) -> AttackResult:
        """The same record of some samples."""
        return AttackResult(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def run_attack(
    model: torch.nn.Module,
    attack: Attack,
    images: np.ndarray,
    labels: np.ndarray,
    sample_ids: Sequence[Any],
    *,
    eps: float,
    norm: str,
    seed: int = 0,
    mode: Mode = "search",
    defense: Defense | None = None,
    rounds: int = 1,
    rule: str | BackwardRule = "identity",
    eot: int = 1,
    to_be_stored: bool = False,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> AttackResult:
    """Attack every sample of ``images`` [N, C, H, W] float32 in [0, 1] with its label, against the whole pipeline.

    ``eps`` is a fraction of the pixel range. ``search``: a sample leaves at its first success, and one that is wrong
    on the clean image is not attacked; the images answer only whether *this* pipeline is fooled. ``full``: every
    sample takes all steps. The success flags of both are the same. ``eps`` 0 is the identity. ``progress(done, total,
    robust)`` is called about twenty times, with the share of robust samples among those done.

    A random defense: every answer is the mean over ``eot`` draws, and of the clean, best and last images the one that
    is right on the fewest of ten paired draws becomes ``best``; ``success`` is then "right on fewer than half". The
    number to report comes from fresh draws elsewhere. For a defense without dice ``eot`` means nothing.

    ``to_be_stored``: the images go through ``store_linf``. In mode ``search``, and for an attack for the nearest image,
    only what still fools when rounded to 8 bits counts then: just over the boundary, rounding would take many successes
    back. The rounded image is kept; clean images must be on the 8-bit grid.

    The model must be frozen (eval mode, no parameter gradients), before and after; inputs are not written to; the
    global random state is neither read nor changed.
    """
    images, labels = _checked_inputs(images, labels, sample_ids, eps)
    _check_attack(attack, norm, mode, defense, batch_size, eot)
    check_guarded(model)
    pipeline = Pipeline(model, defense=defense, rounds=rounds, rule=rule)
    with torch.inference_mode(False), torch.no_grad():
        run = _Run(
            pipeline, attack, images, labels, sample_ids, eps, norm, seed, mode, eot, to_be_stored, batch_size, progress
        )
        result = run.result()
    check_guarded(model)
    return result


def run_battery(
    model: torch.nn.Module,
    members: Sequence[tuple[str, Attack]],
    images: np.ndarray,
    labels: np.ndarray,
    sample_ids: Sequence[Any],
    *,
    mode: Mode = "search",
    **settings: Any,
) -> tuple[AttackResult, list[str | None]]:
    """Several attacks in order, as one: (the merged result, for every sample the member that broke it).

    ``members`` are (name, attack) pairs; ``settings`` are those of ``run_attack``, the same for all. In mode
    ``search`` each member sees only what the ones before it left standing (so the order decides the cost, not the
    outcome); in mode ``full`` every member takes every sample to its end and the fooling image with the largest
    margin is kept. ``first_success`` counts within the member that broke the sample; the passes are what all members
    spent on it. A member gives what it would give alone: all start from the same seed.
    """
    if not members:
        raise ValueError("a battery needs at least one member")
    total: AttackResult | None = None
    broken_by: list[str | None] = [None] * len(images)
    waiting = np.arange(len(images))
    progress = settings.pop("progress", None)
    for name, attack in members:
        told = progress and (lambda done, n, robust, name=name: progress(done, n, robust))
        part = run_attack(
            model, attack, images[waiting], np.asarray(labels)[waiting], [sample_ids[i] for i in waiting],
            mode=mode, progress=told, **settings,
        )  # fmt: skip
        for i in waiting[part.success & part.clean_correct]:
            broken_by[i] = broken_by[i] or name
        total = part if total is None else _merged(total, part, waiting)
        if mode == "search":
            waiting = np.flatnonzero(total.clean_correct & ~total.success)
            if not len(waiting):
                break
    assert total is not None
    return total, broken_by


def _merged(total: AttackResult, part: AttackResult, rows: np.ndarray) -> AttackResult:
    """``part``, the result of some rows, taken into the total: the better image of each, the sum of what was spent."""
    old = total[rows]
    # a random pipeline: fewest right draws first, on the same dice for every member
    new_right, old_right = np.ma.filled(part.p_correct, 0.0), np.ma.filled(old.p_correct, 0.0)
    tied = (new_right == old_right) & (part.success == old.success)
    better = (part.success & ~old.success) | (new_right < old_right) | (tied & (part.best_margin > old.best_margin))
    new: dict[str, Any] = {field.name: getattr(total, field.name).copy() for field in fields(total)}
    taken = rows[better]
    for name in ("best", "last", "best_margin", "p_correct", "bound_violation"):
        new[name][taken] = getattr(part, name)[better]
    first = rows[part.success & ~old.success]
    new["first_success"][first] = part.first_success[part.success & ~old.success]
    for name in ("success", "zero_gradient", "nan_gradient", "nan"):
        new[name][rows] = getattr(old, name) | getattr(part, name)
    for name in ("n_forward", "n_backward"):
        new[name][rows] = getattr(old, name) + getattr(part, name)
    share = [np.ma.filled(r.zero_gradient_share, 0.0) * r.n_backward for r in (old, part)]
    spent = new["n_backward"][rows]
    new["zero_gradient_share"][rows] = np.ma.MaskedArray(sum(share) / np.maximum(spent, 1), mask=spent == 0)
    return AttackResult(**new)


class _Run:
    """One call of ``run_attack``: the waiting samples, the active rows, and the record."""

    def __init__(
        self,
        pipeline: Pipeline,
        attack: Attack,
        images: np.ndarray,
        labels: np.ndarray,
        sample_ids: Sequence[Any],
        eps: float,
        norm: str,
        seed: int,
        mode: Mode,
        eot: int,
        to_be_stored: bool,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self.pipeline, self.attack = pipeline, attack
        self.images, self.labels, self.sample_ids = images, labels, sample_ids
        self.eps, self.norm, self.seed, self.mode = float(eps), norm, seed, mode
        self.eot, self.batch_size, self.progress = eot, batch_size, progress
        self.device = device_of(pipeline.model)
        self.n_classes = 0
        n = len(images)
        self.record: dict[str, np.ndarray] = {
            "best": images.copy(),
            "last": images.copy(),
            "wrong": np.zeros(n, dtype=bool),
            "nan": np.zeros(n, dtype=bool),
            "margin": np.full(n, -np.inf, dtype=np.float32),
            "rank": np.full(n, -np.inf, dtype=np.float32),
            "first": np.full(n, -1, dtype=np.int64),
            "asked": np.zeros(n, dtype=np.int64),
            "forward": np.zeros(n, dtype=np.float64),
            "backward": np.zeros(n, dtype=np.float64),
            "gradients": np.zeros(n, dtype=np.int64),
            "zeros": np.zeros(n, dtype=np.int64),
            "zero": np.zeros(n, dtype=bool),
            "nan_gradient": np.zeros(n, dtype=bool),
            "right": np.zeros(n, dtype=np.float64),
        }
        self.done = np.zeros(n, dtype=bool)
        self.told = 0
        self.clean_correct = np.zeros(n, dtype=bool)
        # The active rows: which samples, the attack's tensors, the book kept on them, their random streams.
        self.index = np.zeros(0, dtype=np.int64)
        self.rows: Rows = {}
        self.book: Rows = {}
        self.random = RowRandom([], self.device)
        self.dice = RowRandom([], self.device)
        # Images on which a sample leaves, and nearest ones, sit just over the boundary, where rounding takes many back.
        at_the_edge = mode == "search" or attack.minimal_norm
        self.stored = to_be_stored and at_the_edge and norm == "linf" and not pipeline.is_random

    def result(self) -> AttackResult:
        self._judge_clean()
        waiting = np.arange(len(self.images))
        if self.mode == "search":
            waiting = waiting[self.clean_correct]
        if self.eps == 0:
            waiting = waiting[:0]
        self._finish(np.setdiff1d(np.arange(len(self.images)), waiting))
        while len(waiting) or len(self.index):
            self._leave_finished()
            free = self.batch_size - len(self.index)
            if len(waiting) and (not len(self.index) or free >= max(1, REFILL_SHARE * self.batch_size)):
                self._enter(waiting[:free])
                waiting = waiting[free:]
                self._leave_fooled()
                if self.attack.max_steps == 0:
                    continue
            if len(self.index):
                new = self.attack.step(
                    self.rows, self.norm, self.random, self._judge_of(self.rows, self.book, self.dice)
                )
                self.rows = self.rows | new | {"t": self.rows["t"] + 1}
                self._leave_fooled()
        if self.pipeline.is_random:
            self._choose()
        return self._assemble()

    def _choose(self) -> None:
        """A random defense: of the clean, best and last images the one that is right on the fewest paired draws."""
        for start in range(0, len(self.images), self.batch_size):
            part = np.arange(start, min(start + self.batch_size, len(self.images)))
            y = self._tensor(self.labels[part])
            candidates = (self.images[part], self.record["best"][part], self.record["last"][part])
            found = [self._tried(part, images, y) for images in candidates]
            right = torch.stack([share for share, _ in found])
            margin = torch.stack([mean for _, mean in found])
            # fewest right draws first; among equals the larger mean margin, then the earlier candidate
            chosen = torch.where(right == right.amin(0), margin, -torch.inf).argmax(0)
            for place, images in enumerate(candidates):
                rows = (chosen == place).cpu().numpy()
                self.record["best"][part[rows]] = images[rows]
            self.record["right"][part] = right.gather(0, chosen[None])[0].cpu().numpy()
            self.record["wrong"][part] = self.record["right"][part] < 0.5
            self.record["margin"][part] = margin.gather(0, chosen[None])[0].float().cpu().numpy()
            self.record["forward"][part] += len(found) * CHOOSING_DRAWS * len(self.pipeline.members)
            self.clean_correct[part] = (right[0] >= 0.5).cpu().numpy()

    def _tried(self, part: np.ndarray, images: np.ndarray, y: Tensor) -> tuple[Tensor, Tensor]:
        """(share of draws that are right [B], mean margin [B]) on dice that are the same for every candidate."""
        x, dice = self._tensor(images), self._keyed(part, "choose")
        right, margins = [], []
        for _ in range(CHOOSING_DRAWS):
            logits = self.pipeline.logits(x, None, self.pipeline.draw(dice.streams, tuple(x.shape[1:])))
            margin, wrong, _ = judged(logits, y)
            right.append(~wrong)
            margins.append(margin.double())
        return torch.stack(right).double().mean(0), torch.stack(margins).mean(0)

    def _judge_clean(self) -> None:
        for start in range(0, len(self.images), self.batch_size):
            part = np.arange(start, min(start + self.batch_size, len(self.images)))
            self.index = part
            self.book = self._book(part)
            y = self._tensor(self.labels[part])
            logits = self._clean_logits(part)
            if logits.dim() != 2 or len(logits) != len(part):
                raise ValueError(
                    f"the model answered {tuple(logits.shape)} to {len(part)} images: [N, K] logits wanted"
                )
            self.n_classes = logits.shape[1]
            if int(y.max()) >= self.n_classes:
                raise ValueError(f"label {int(y.max())} is out of range: the model has {self.n_classes} classes")
            eps = torch.full((len(part),), self.eps, dtype=torch.float64, device=self.device)
            judge = self._judge(y, self.book, self.book["best"], eps)
            judge.ball = None  # a clean image is stored as it is
            judge._record(self.book["best"], logits)
            self.book["forward"] = self.book["forward"] + judge.n_members * judge.eot
            self._write(part, self.book)
        self.index, self.book = self.index[:0], {}
        self.clean_correct = ~self.record["wrong"]

    def _clean_logits(self, part: np.ndarray) -> Tensor:
        x, dice = self.book["best"], self._keyed(part, "clean")
        shape = tuple(x.shape[1:])
        rolls = [self.pipeline.draw(dice.streams, shape) for _ in range(self.eot if self.pipeline.is_random else 1)]
        return _mean([self.pipeline.logits(x, None, draws) for draws in rolls])

    def _keyed(self, part: np.ndarray, purpose: str) -> RowRandom:
        """Dice of some samples for one purpose: other streams than those of the attack itself."""
        ids = [f"{self.sample_ids[i]}\0{purpose}" for i in part]
        return RowRandom.keyed(self.seed, ids if self.pipeline.is_random else [], self.device)

    def _book(self, part: np.ndarray) -> Rows:
        return {name: self._tensor(values[part]) for name, values in self.record.items() if name != "last"}

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _judge(self, y: Tensor, book: Rows, x0: Tensor, eps: Tensor, dice: RowRandom | None = None) -> _Judge:
        nearest = (x0, eps, self.norm) if self.attack.minimal_norm else None
        ball = (x0, eps) if self.stored else None
        return _Judge(self.pipeline, y, book, self.n_classes, nearest, ball, dice, self.eot)

    def _judge_of(self, rows: Rows, book: Rows, dice: RowRandom) -> _Judge:
        return self._judge(rows["y"], book, rows["x0"], rows["eps"], dice)

    def _enter(self, part: np.ndarray) -> None:
        """New samples join the batch, at age 0."""
        x0, y = self._tensor(self.images[part]), self._tensor(self.labels[part])
        eps = torch.full((len(part),), self.eps, dtype=torch.float64, device=self.device)
        book = self._book(part)
        random = RowRandom.keyed(self.seed, [self.sample_ids[i] for i in part], self.device)
        dice = self._keyed(part, "dice")
        judge = self._judge(y, book, x0, eps, dice)
        rows = dict(self.attack.init(x0, y, eps, self.norm, random, judge))
        rows |= {"x0": x0, "y": y, "eps": eps, "t": torch.zeros_like(y)}
        if len(self.index):
            rows = {name: torch.cat([self.rows[name], rows[name]]) for name in rows}
            book = {name: torch.cat([self.book[name], book[name]]) for name in book}
        self.index = np.concatenate([self.index, part])
        self.rows, self.book, self.random, self.dice = rows, book, self.random.join(random), self.dice.join(dice)

    def _leave_fooled(self) -> None:
        if self.mode == "search" and len(self.index):
            fooled = self.book["wrong"]
            if bool(fooled.any()):
                self._leave(fooled, self.book["best"])

    def _leave_finished(self) -> None:
        """Rows that have taken all their steps: where they ended is judged too, then they leave."""
        if not len(self.index):
            return
        ended = self.rows["t"] >= self.attack.max_steps
        if not bool(ended.any()):
            return
        if bool(ended.all()):
            self._judge_of(self.rows, self.book, self.dice).logits(self.rows["x"])
        else:
            book = {name: values[ended] for name, values in self.book.items()}
            rows = {name: self.rows[name][ended] for name in ("x", "y", "x0", "eps")}
            dice = self.dice.select(ended) if len(self.dice) else self.dice
            self._judge_of(rows, book, dice).logits(rows["x"])
            self.book = {name: values.index_put((ended,), book[name]) for name, values in self.book.items()}
        last = self.rows["x"]
        if self.mode == "search":  # fooled by its very last image: that one is the answer
            last = torch.where(self.book["wrong"].view(-1, 1, 1, 1), self.book["best"], last)
        self._leave(ended, last)

    def _leave(self, leaving: Tensor, last: Tensor) -> None:
        mask = leaving.cpu().numpy()
        part, stay = self.index[mask], ~leaving
        self._write(part, {name: values[leaving] for name, values in self.book.items()} | {"last": last[leaving]})
        self.index = self.index[~mask]
        self.rows = {name: values[stay] for name, values in self.rows.items()}
        self.book = {name: values[stay] for name, values in self.book.items()}
        self.random = self.random.select(stay)
        self.dice = self.dice.select(stay) if len(self.dice) else self.dice
        self._finish(part)

    def _write(self, part: np.ndarray, values: Rows) -> None:
        for name, tensor in values.items():
            self.record[name][part] = tensor.detach().cpu().numpy()

    def _finish(self, part: np.ndarray) -> None:
        self.done[part] = True
        done, n = int(self.done.sum()), len(self.done)
        if self.progress is not None and len(part) and (done == n or done >= self.told + PROGRESS_SHARE * n):
            self.told = done
            self.progress(done, n, float((~self.record["wrong"][self.done]).mean()))

    def _assemble(self) -> AttackResult:
        r = self.record
        backward = r["backward"]
        share = r["zeros"] / np.maximum(r["gradients"], 1)
        outside = _outside(r["best"], self.images, self.eps, self.norm)
        outside |= _outside(r["last"], self.images, self.eps, self.norm)
        return AttackResult(
            best=r["best"],
            last=r["last"],
            success=r["wrong"],
            first_success=np.ma.MaskedArray(r["first"].astype(np.int32), mask=~r["wrong"] | (r["first"] < 0)),
            clean_correct=self.clean_correct,
            best_margin=r["margin"],
            n_forward=np.ceil(r["forward"] - 1e-9).astype(np.int32),
            n_backward=np.ceil(backward - 1e-9).astype(np.int32),
            zero_gradient=r["zero"],
            zero_gradient_share=np.ma.MaskedArray(share.astype(np.float32), mask=r["gradients"] == 0),
            nan_gradient=r["nan_gradient"],
            nan=r["nan"],
            bound_violation=outside,
            p_correct=np.ma.MaskedArray(r["right"], mask=np.full(len(outside), not self.pipeline.is_random)),
        )


def _outside(x: np.ndarray, x0: np.ndarray, eps: float, norm: str) -> np.ndarray:
    """[N] bool: outside the ball or the box by more than the tolerance, in float64; NaN is outside."""
    outside = np.zeros(len(x), dtype=bool)
    for start in range(0, len(x), 256):
        part = slice(start, start + 256)
        flat = x[part].reshape(len(x[part]), -1).astype(np.float64)
        delta = flat - x0[part].reshape(len(flat), -1).astype(np.float64)
        distance = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
        inside = (distance <= eps + BOUND_TOLERANCE) & (flat.min(1) >= -BOUND_TOLERANCE)
        outside[part] = ~(inside & (flat.max(1) <= 1 + BOUND_TOLERANCE))
    return outside


def _checked_inputs(
    images: np.ndarray, labels: np.ndarray, sample_ids: Sequence[Any], eps: float
) -> tuple[np.ndarray, np.ndarray]:
    if images.ndim != 4 or images.dtype != np.float32:
        raise ValueError(f"images must be [N, C, H, W] float32, not {images.shape} {images.dtype}")
    labels = np.asarray(labels)
    if not (len(images) == len(labels) == len(sample_ids)):
        raise ValueError(
            f"{len(images)} images, {len(labels)} labels, {len(sample_ids)} sample ids: not the same number"
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must lie in [0, 1], not in [{images.min()}, {images.max()}]")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"label {labels.min()} is negative")
    if not (np.isfinite(eps) and eps >= 0):
        raise ValueError(f"eps must be a number, at least 0, not {eps}")
    return images, labels.astype(np.int64)


def _check_attack(attack: Attack, norm: str, mode: str, defense: Defense | None, batch_size: int, eot: int) -> None:
    if norm not in attack.norms:
        raise ValueError(f"{type(attack).__name__} has the norms {', '.join(attack.norms)}, not '{norm}'")
    if mode not in ("search", "full"):
        raise ValueError(f"mode must be 'search' or 'full', not '{mode}'")
    if mode == "search" and defense is not None and defense.is_random:
        raise ValueError("a random defense is never searched: one lucky draw would count; use mode 'full'")
    if batch_size < 1 or eot < 1:
        raise ValueError(f"batch_size and eot must be at least 1, not {batch_size} and {eot}")


# -------------------------------------------------------------------------------------------------- looking and storing


def predict(
    model: torch.nn.Module, images: np.ndarray, *, batch_size: int = 256, with_features: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """(logits [N, K] float32, features [N, D] float32 or None): the one inference loop, one forward per image.

    With features the model must offer ``features(x)`` and ``logits_from(features)``.
    """
    check_guarded(model)
    device = device_of(model)
    logits: list[np.ndarray] = []
    features: list[np.ndarray] = []
    with torch.inference_mode():
        # An empty set still tells its shapes, so at least one (empty) batch is looked at.
        for start in range(0, max(len(images), 1), batch_size):
            x = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
            if with_features:
                seen = model.features(x)  # type: ignore[operator]
                features.append(seen.float().cpu().numpy())
                logits.append(model.logits_from(seen).float().cpu().numpy())  # type: ignore[operator]
            else:
                logits.append(model(x).float().cpu().numpy())
    check_guarded(model)
    return np.concatenate(logits), np.concatenate(features) if with_features else None


def store_linf(x_adv: np.ndarray, x0: np.ndarray, eps: float) -> np.ndarray:
    """[N, C, H, W] uint8: the nearest 8-bit image inside the l-infinity ball of an 8-bit clean image ``x0``.

    Rounding to the nearest level could leave the ball where eps is no multiple of 1/255; the level is then the last
    one inside. A pixel that is not finite is stored as the clean one (the engine flags such a row). An l2 image has
    no such rounding (most rounded ones leave the ball): it is stored as float32.
    """
    clean = np.rint(x0.astype(np.float64) * 255)
    if not _on_grid(x0):
        raise ValueError(
            "the clean images are not on the 8-bit grid: their adversarial versions cannot be stored in 8 bits"
        )
    reach = np.floor(eps * 255 + 1e-6)
    levels = np.where(np.isfinite(x_adv), np.rint(x_adv.astype(np.float64) * 255), clean)
    return np.clip(np.clip(levels, clean - reach, clean + reach), 0, 255).astype(np.uint8)


def _on_grid(images: np.ndarray) -> bool:
    levels = images.astype(np.float64) * 255
    return bool(np.abs(levels - np.rint(levels)).max(initial=0) <= 1e-3)


def as_stored(stored: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of a stored image: uint8 levels over 255, float32 as it is."""
    return stored.astype(np.float32) / np.float32(255) if stored.dtype == np.uint8 else stored.astype(np.float32)
