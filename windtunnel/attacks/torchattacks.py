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

from windtunnel.attacks.base import Attack, Query, RowGenerators, Rows, Tensor
from windtunnel.attacks.losses import ce
from windtunnel.backend import torch
from windtunnel.registry import did_you_mean

AUDITED: dict[str, tuple[str, ...]] = {  # class -> its norms
    "FGSM": ("linf",),
    "BIM": ("linf",),
    "PGD": ("linf",),
    "PGDL2": ("l2",),
    "APGD": ("linf", "l2"),
    "APGDT": ("linf", "l2"),
    "Square": ("linf", "l2"),
    "MIFGSM": ("linf",),
    "NIFGSM": ("linf",),
    "DIFGSM": ("linf",),
    "TIFGSM": ("linf",),
    "VMIFGSM": ("linf",),
    "SINIFGSM": ("linf",),
}
REFUSED: dict[str, str] = {
    "AutoAttack": "it is not AutoAttack: its APGD, APGD-T and FAB run 10 iterations instead of 100, and its Square has "
    "another schedule",
    "MultiAttack": "it is a container; list its attacks one by one",
    "CW": "it masks logits by multiplying with 0, so it never moves an image whose logits are negative; its early stop "
    "couples the batch; pixels at 0 or 1 cannot move",
    "UPGD": "its margin loss masks logits by multiplying with 0 and fails on negative logits",
    "DeepFool": "it left 62 to 75 % of the images correct where PGD leaves none: clipping at each step eats its "
    "overshoot",
    "JSMA": "its default target (label + 1) % 10 holds for ten classes only, and it takes one image at a time",
    "FAB": "it writes gradients into the model's parameters and runs 10 iterations by default",
    "SPSA": "it runs one iteration at eps 0.3 by default and has not been audited",
    "EOTPGD": "it sums over draws of a randomised model, and no random pipeline is judged by one draw here",
}


@dataclass(frozen=True, kw_only=True)
class TorchattacksAttack(Attack):
    """A class of torchattacks 3.5.1 (Kim, Torchattacks: A PyTorch Repository for Adversarial Attacks, 2020,
    https://arxiv.org/abs/2010.01950) run whole, inside ``init``; the image it returns is judged like any other.

    ``class_name`` is one of ``AUDITED``; any other is refused with the reason. ``arguments`` go to its constructor,
    apart from what the threat and the engine decide (eps, norm, seed, n_classes). ``steps`` (``n_queries`` for
    Square) must be given: the library's defaults have changed between versions. ``alpha`` may be given as
    ``step_size``, a fraction of eps, and is eps / 4 if it is not given (the library's 2/255 fits one budget only).

    Traps closed: the class sees a facade, so it cannot switch the model's mode; the process-wide random states of
    torch, NumPy and Python are put back; a frozen run (0/0 in the momentum attacks on saturated logits: the image
    never moves) shows as ``zero_gradient``, for which one more gradient per sample is asked, at the clean image.

    Not promised, unlike for our own attacks: independence of the batch. These classes draw one stream per batch, so a
    result depends on the batch size and on which samples share a batch. Only the returned image is a candidate.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    class_name: str
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.class_name in AUDITED:
            return
        reason = REFUSED.get(self.class_name, f"it has not been audited{did_you_mean(self.class_name, tuple(AUDITED))}")
        raise ValueError(f"torchattacks.{self.class_name} is refused: {reason}. Audited: {', '.join(AUDITED)}")

    @property
    def max_steps(self) -> int:
        return 0

    def init(self, x0: Tensor, y: Tensor, eps: Tensor, norm: str, generators: RowGenerators, query: Query) -> Rows:
        module = query.module()
        seed = int(generators.integers(2**31 - 1).sum()) % (2**31 - 1)
        attack = self.build(module, eps=float(eps[0]), norm=norm, seed=seed, n_classes=query.n_classes)
        with private_randomness(seed), torch.enable_grad():
            x = attack(x0.clone(), y.clone()).detach()
        if self.class_name != "Square":
            query.gradient(x0, ce)  # for the record: shows whether there is a direction at all
        return {"x": x}

    def step(self, rows: Rows, norm: str, generators: RowGenerators, query: Query) -> Rows:
        raise NotImplementedError("torchattacks classes run whole, in init")

    def build(self, module: torch.nn.Module, *, eps: float, norm: str, seed: int, n_classes: int) -> Any:
        """The library's own object, with every setting explicit that changes its numbers."""
        if norm not in AUDITED[self.class_name]:
            allowed = ", ".join(AUDITED[self.class_name])
            raise ValueError(f"torchattacks.{self.class_name} has the norm {allowed}, not {norm}")
        constructor = getattr(library(), self.class_name)
        known = set(inspect.signature(constructor.__init__).parameters) - {"self", "model"}
        decided = {"eps": eps, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": seed, "n_classes": n_classes}
        decided = {name: value for name, value in decided.items() if name in known}

        given = dict(self.arguments or {})
        if "step_size" in given and "alpha" in known:
            if "alpha" in given:
                raise ValueError("alpha and step_size name the same thing; give one")
            given["alpha"] = given.pop("step_size") * eps
        for name in given:
            if name not in known or name in decided:
                free = sorted(known - set(decided))
                raise ValueError(
                    f"torchattacks.{self.class_name} takes no argument '{name}' here; it takes: {', '.join(free)}"
                )
        length = "n_queries" if self.class_name == "Square" else "steps"
        if length in known and length not in given:
            raise ValueError(
                f"torchattacks.{self.class_name}: give '{length}', the library's default differs by version"
            )
        if "alpha" in known:
            given.setdefault("alpha", eps / 4)
        return constructor(module, **decided, **given)


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
