"""What a classifier is, and the guard that keeps it as it was.

Contract: images in, [N, 3, H, W] float in [0, 1]; normalisation happens inside; ``features`` is what the last layer
sees; ``forward = logits_from(features)``; eval mode; no parameter wants a gradient. Attack libraries flip the mode or
leave requires_grad behind, which silently changes every later number, so each use stands inside ``guarded(model)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from windtunnel.backend import torch
from windtunnel.scores.base import Head

Tensor = torch.Tensor


class ModelNotFrozen(RuntimeError):
    """The model is in train mode somewhere, or a parameter asks for a gradient."""


class ModelChanged(RuntimeError):
    """Something that used the model changed its mode, its parameters or its buffers."""


class HeadUnavailable(LookupError):
    """The model's last layer is not known as arrays (a user's own module without a named linear head)."""


class Classifier(nn.Module):
    """A body [N, 3, H, W] -> [N, D] behind a fixed normalisation, and a head [N, D] -> [N, K].

    ``mean`` and ``std`` (three numbers each) belong to the recipe, not to the state: they are kept in buffers that
    are not saved. ``body`` may offer ``maps(x) -> [N, C, h, w]``, the last feature maps before pooling (class
    activation maps). ``has_nan`` is set by the loader: a model whose weights are not finite is loaded and recorded,
    not refused.
    """

    has_nan: bool = False

    def __init__(self, body: nn.Module, head: nn.Module, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std, per channel."""
        return (x - self.mean) / self.std

    def features(self, x: Tensor) -> Tensor:
        """[N, D] float32: the input of the head."""
        return self.body(self.normalise(x))

    def maps(self, x: Tensor) -> Tensor:
        """[N, C, h, w]: the last feature maps before pooling, with their gradient."""
        return self.body.maps(self.normalise(x))

    def logits_from(self, features: Tensor) -> Tensor:
        """[N, K] float32 logits of penultimate features."""
        return self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] logits of images in [0, 1]."""
        return self.logits_from(self.features(x))

    def head_arrays(self) -> Head:
        """The head as numpy arrays, batch norm folded in: what scores need to replay it."""
        from windtunnel.models.arrays import fold

        arrays = {f"head.{key}": value.detach().cpu().numpy() for key, value in self.head.state_dict().items()}
        return fold(self.head.description(), arrays)


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode everywhere, no parameter asks for a gradient, no gradient left lying about. In place."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


def unfrozen_parts(model: nn.Module) -> list[str]:
    """In words, what keeps the model from being frozen; empty if nothing does."""
    trains = [name or "the model itself" for name, module in model.named_modules() if module.training]
    wants = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    problems = []
    if trains:
        problems.append(f"{len(trains)} modules in train mode (first: {trains[0]})")
    if wants:
        problems.append(f"{len(wants)} parameters require a gradient (first: {wants[0]})")
    return problems


def assert_frozen(model: nn.Module) -> None:
    """Raise ``ModelNotFrozen`` unless every module is in eval mode and no parameter requires a gradient."""
    problems = unfrozen_parts(model)
    if problems:
        raise ModelNotFrozen("the model is not frozen: " + "; ".join(problems) + "; call windtunnel.models.base.freeze")


def state_digest(model: nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer, unsaved ones too. NaN equals itself."""
    digest = hashlib.sha256()
    tensors: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{data.dtype}|{tuple(data.shape)}|".encode())
        # numpy has no bfloat16; every value of it is a float32.
        digest.update((data.float() if data.dtype == torch.bfloat16 else data).numpy().tobytes())
    return digest.hexdigest()


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}


def _restore(model: nn.Module, saved: dict[str, Tensor]) -> None:
    freeze(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved:
                tensor.copy_(saved[name])


@contextmanager
def guarded(model: nn.Module) -> Iterator[nn.Module]:
    """Use a model knowing that it comes back as it was.

    Before: asserts that it is frozen. After: asserts it again and compares the state digest. If the user of the model
    flipped its mode, asked for weight gradients or moved a parameter or a running statistic, mode and state are
    restored and ``ModelChanged`` is raised, since whatever was computed in between came from another model. An
    exception raised inside goes through unchanged, with a note if the model had been changed as well.
    """
    assert_frozen(model)
    before, saved = state_digest(model), _snapshot(model)

    def changes() -> list[str]:
        found = unfrozen_parts(model)
        if state_digest(model) != before:
            found.append("parameters or running statistics moved")
        return found

    try:
        yield model
    except BaseException as error:
        found = changes()
        if found:
            _restore(model, saved)
            error.add_note("the model had been changed too, and was restored: " + "; ".join(found))
        raise
    found = changes()
    if found:
        _restore(model, saved)
        raise ModelChanged("what used the model changed it (restored now): " + "; ".join(found))
