"""Both directions between torchattacks and this library: theirs in our form, ours as a callable of their kind."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from windtunnel.attacks.base import Attack, Tensor
from windtunnel.attacks.torchattacks import TorchattacksAttack, library
from windtunnel.backend import torch
from windtunnel.engine import AttackResult, Mode, frozen, run_attack


def run_torchattacks(
    model: torch.nn.Module,
    class_name: str,
    arguments: dict[str, Any] | None,
    images: np.ndarray,
    labels: np.ndarray,
    sample_ids: Sequence[Any] | None = None,
    *,
    eps: float,
    norm: str = "linf",
    **options: Any,
) -> AttackResult:
    """An audited torchattacks class on arrays, with our record of it; ``options`` are those of ``engine.run_attack``.

    Everything said in ``attacks.torchattacks`` holds: unaudited classes are refused, the caller's random state and the
    model's mode stay as they were, and a result depends on ``batch_size``.
    """
    attack = TorchattacksAttack(class_name=class_name, arguments=arguments)
    ids = range(len(images)) if sample_ids is None else sample_ids
    return run_attack(model, attack, images, labels, list(ids), eps=eps, norm=norm, **options)


def as_torchattacks(
    attack: Attack,
    model: torch.nn.Module,
    eps: float,
    norm: str = "linf",
    seed: int = 0,
    mode: Mode = "full",
    **options: Any,
) -> Any:
    """``adversarial = object(images, labels)``, as torchattacks objects are called: tensors [B, C, H, W] in [0, 1].

    The object is a ``torchattacks.Attack`` where that library is installed, and a plain callable of the same convention
    where it is not. ``options`` go to ``engine.run_attack``. It returns the best images (for transfer use mode
    ``full``). The random numbers of an image are keyed by its content, so that its result does not depend on its place
    in the batch. The model is frozen for the call and every flag of it put back. What this library does not have
    (normalisation outside the model, targeted modes, attacks in train mode) is refused, not ignored.
    """
    for option, value in {"eps": eps, "mode": mode, "norm": norm}.items():
        if option == "eps" and not (isinstance(value, (int, float)) and value >= 0):
            raise ValueError(f"eps must be a number, at least 0, not {value!r}")
        if option == "mode" and value not in ("search", "full"):
            raise ValueError(f"mode must be 'search' or 'full', not {value!r}")
        if option == "norm" and value not in attack.norms:
            raise ValueError(f"{type(attack).__name__} has the norms {', '.join(attack.norms)}, not {value!r}")
    return _object_class()(attack, model, dict(options, eps=float(eps), norm=norm, seed=seed, mode=mode))


class _Ours:
    """The methods of such an object; ``_object_class`` puts torchattacks' base class behind them."""

    attack_of_ours: Attack
    options: dict[str, Any]
    model: torch.nn.Module

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        # torchattacks' own __call__ would switch the model's mode and not put every flag back.
        return self.forward(inputs, labels, *args, **kwargs)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """[B, C, H, W] on the device and in the dtype of ``inputs``, which are not written to."""
        if args or kwargs:
            raise TypeError("settings belong to the attack and to as_torchattacks, not to the call")
        if labels is None:
            raise ValueError("labels are needed: an untargeted attack leaves the true class, not the predicted one")
        array = np.ascontiguousarray(inputs.detach().cpu().float().numpy())
        ids = [hashlib.sha256(image.tobytes()).hexdigest() for image in array]
        with frozen(self.model):
            result = run_attack(
                self.model, self.attack_of_ours, array, labels.detach().cpu().numpy(), ids, **self.options
            )
        return torch.from_numpy(result.best).to(device=inputs.device, dtype=inputs.dtype)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """torchattacks' ``save``, with every flag of the model put back."""
        with frozen(self.model):
            return super().save(*args, **kwargs)  # type: ignore[misc]

    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """[B, K] logits."""
        with frozen(self.model), torch.no_grad():
            return self.model(inputs)

    def set_normalization_used(self, mean: Any, std: Any) -> None:
        """Refused."""
        raise ValueError("images are in [0, 1] here and normalisation belongs into the model: put it there")

    def set_model_training_mode(self, *args: Any, **kwargs: Any) -> None:
        """Refused."""
        raise ValueError("a model is attacked in eval mode here: train mode answers differently at every call")

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        raise ValueError(f"{mode}: attacks of this library are untargeted (apgd takes 'target', a rank)")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"as_torchattacks({self.attack_of_ours!r}, {type(self.model).__name__}, {options})"


class _Callable(_Ours):
    """Without torchattacks: the calling convention alone."""

    def __init__(self, attack: Attack, model: torch.nn.Module, options: dict[str, Any]) -> None:
        self.attack_of_ours, self.model, self.options = attack, model, options

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """torchattacks' own; says that the library is missing."""
        library()


def _object_class() -> type[_Ours]:
    """A subclass of ``torchattacks.Attack`` if that can be imported, ``_Callable`` otherwise."""
    try:
        base = importlib.import_module("torchattacks.attack").Attack
    except ImportError:
        return _Callable
    return _derived(base)


@cache
def _derived(base: type) -> type[_Ours]:
    class WindtunnelAttack(_Ours, base):  # type: ignore[misc, valid-type]
        """One of our attacks as a torchattacks object."""

        def __init__(self, attack: Attack, model: torch.nn.Module, options: dict[str, Any]) -> None:
            # Its __setattr__ compares every value with every other to find attacks inside; ours are set past it.
            super().__init__(type(attack).__name__, model)
            object.__setattr__(self, "attack_of_ours", attack)
            object.__setattr__(self, "options", options)

    return WindtunnelAttack
