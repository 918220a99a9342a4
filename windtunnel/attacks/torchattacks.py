"""Audited classes of the torchattacks library, each with its known trap closed."""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from windtunnel.attacks._torchattacks_audit import MOST_TARGETS, VERDICTS
from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.losses import ce
from windtunnel.backend import torch
from windtunnel.registry import did_you_mean

# class -> its norms, and class -> why not: two readings of the table of verdicts
AUDITED: dict[str, tuple[str, ...]] = {name: v.norms for name, v in VERDICTS.items() if v.verdict != "refused"}
REFUSED: dict[str, str] = {name: v.why for name, v in VERDICTS.items() if v.verdict == "refused"}


@dataclass(frozen=True, kw_only=True)
class TorchattacksAttack(Attack):
    """A class of torchattacks 3.5.1 (Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020,
    https://arxiv.org/abs/2010.01950) run whole, inside ``init``; the image it returns is judged like any other.

    ``class_name`` is one of ``AUDITED``; any other is refused with the reason and with what to use here
    (docs/attacks/torchattacks.md lists every class). ``arguments`` go to its constructor, apart from what the threat
    and the engine decide (eps, norm, seed, n_classes). Its number of steps must be given (``steps``; ``n_queries`` for
    Square, ``nb_iter`` for SPSA): the library's defaults have changed between versions. The step size may be given as
    ``step_size``, a fraction of eps, and is eps / 4 if it is not (1.25 eps for the one step of FFGSM; the library's
    2/255 fits one budget only).

    Traps closed: the class sees a facade, so it cannot switch the model's mode; the process-wide random states of
    torch, NumPy and Python are put back; a frozen run (0/0 in the momentum attacks on saturated logits: the image
    never moves) shows as ``zero_gradient``, for which one more gradient per sample is asked, at the clean image.

    Not promised, unlike for our own attacks: independence of the batch. These classes draw one stream per batch, so a
    result depends on the batch size and on which samples share a batch. Only the returned image is a candidate.
    """

    algorithm_version: ClassVar[int] = 2
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    class_name: str
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.class_name in AUDITED:
            return
        listed = f"Audited: {', '.join(AUDITED)}"
        if self.class_name in REFUSED:
            verdict = VERDICTS[self.class_name]
            raise ValueError(
                f"torchattacks.{self.class_name} is refused: {verdict.why}. Use {verdict.instead}. {listed}"
            )
        unknown = f"it has not been audited{did_you_mean(self.class_name, tuple(AUDITED))}"
        raise ValueError(f"torchattacks.{self.class_name} is refused: {unknown} {listed}")

    @property
    def max_steps(self) -> int:
        return 0

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        verdict = VERDICTS[self.class_name]
        if verdict.channels not in (None, x0.shape[1]):
            raise ValueError(
                f"torchattacks.{self.class_name} takes {verdict.channels} channels only, the images have {x0.shape[1]}"
            )
        module = _Contiguous(query.module())
        seed = int(generators.integers(2**31 - 1).sum()) % (2**31 - 1)
        attack = self.build(module, eps=float(eps[0]), norm=norm, seed=seed, n_classes=query.n_classes)
        with private_randomness(seed), torch.enable_grad():
            x = attack(x0.clone(), y.clone()).detach().to(x0.dtype)
        if verdict.uses_gradient:
            query.gradient(x0, ce)  # for the record: shows whether there is a direction at all
        return {"x": x}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        raise NotImplementedError("torchattacks classes run whole, in init")

    def build(self, module: torch.nn.Module, *, eps: float, norm: str, seed: int, n_classes: int) -> Any:
        """The library's own object, with every setting explicit that changes its numbers."""
        verdict, where = VERDICTS[self.class_name], f"torchattacks.{self.class_name}"
        if norm not in verdict.norms:
            raise ValueError(f"{where} has the norm {', '.join(verdict.norms)}, not {norm}")
        if n_classes < verdict.fewest_classes:
            raise ValueError(f"{where} needs {verdict.fewest_classes} classes, the model has {n_classes}")
        constructor = getattr(library(), self.class_name)
        known = set(inspect.signature(constructor.__init__).parameters) - {"self", "model", *verdict.ignored}
        decided = {verdict.budget: eps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": seed}
        # The library runs one attack per wrong class and reads their number from here.
        decided["n_classes"] = min(n_classes, MOST_TARGETS + 1)
        decided = {name: value for name, value in decided.items() if name in known}

        given = dict(self.arguments or {})
        if verdict.step is not None and "step_size" in given:
            if verdict.step in given:
                raise ValueError(f"{verdict.step} and step_size name the same thing; give one")
            given[verdict.step] = given.pop("step_size") * eps
        if verdict.length is not None and "steps" in given and "steps" not in known:
            given[verdict.length] = given.pop("steps")
        for name, value in given.items():
            if name not in known or name in decided:
                free = sorted(known - set(decided))
                raise ValueError(f"{where} takes no argument '{name}' here; it takes: {', '.join(free)}")
            if isinstance(value, str) and value in verdict.forbidden.get(name, {}):
                raise ValueError(f"{where} with {name}: {value} is refused: {verdict.forbidden[name][value]}")
        if verdict.length is not None and given.get(verdict.length, 0) < 1:
            raise ValueError(f"{where}: give '{verdict.length}', the library's default differs by version")
        if verdict.step is not None:
            given.setdefault(verdict.step, verdict.step_share * eps)
        return constructor(module, **decided, **given)


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class _Contiguous(torch.nn.Module):
    """The facade with contiguous gradients: the library flattens them by ``view``."""

    def __init__(self, facade: torch.nn.Module) -> None:
        super().__init__()
        self.facade = facade
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.facade(_ContiguousGradient.apply(x))


def library() -> ModuleType:
    """torchattacks, imported now; a clear sentence where it is not installed."""
    try:
        return importlib.import_module("torchattacks")
    except ImportError as error:
        raise ImportError(
            "torchattacks is not installed: run 'pip install --no-deps torchattacks==3.5.1' (without --no-deps its old "
            "pin on requests cannot be resolved; it is not needed at run time)"
        ) from error


@contextmanager
def private_randomness(seed: int) -> Iterator[None]:
    """Seed the process-wide generators of torch, NumPy and Python inside, and put back afterwards what they were."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
