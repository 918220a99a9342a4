"""A user's own model: a Python file with ``build(settings) -> torch.nn.Module`` and a safetensors file.

The catalogue entry says ``architecture: file`` and, under ``recipe``, ``file`` (path of the module), ``weights``
(path of the safetensors file, whose names are those of the module's state dict), ``settings`` (handed to ``build``;
may be left out) and ``head`` (the dotted name of the last ``torch.nn.Linear``; may be left out). ``classes`` and
``class_names`` stand in the entry.

The module takes [N, 3, H, W] in [0, 1] and returns [N, K] logits: *normalisation is its own business*, as are image
size and softmax (there must be none). Without ``head`` the model can be attacked and defended, but has no features:
scores that need them are null. With ``head`` the features are the input of that layer, which must be the last thing
that happens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from windtunnel.backend import torch
from windtunnel.models.arrays import fold
from windtunnel.models.base import Classifier, HeadUnavailable, freeze
from windtunnel.scores.base import Head

Tensor = torch.Tensor


class BadModule(ValueError):
    """A user's module file that cannot be used; the message says what is wrong with it."""


class OwnModel(Classifier):
    """The user's module behind the interface of ``Classifier``. ``mean`` and ``std`` do not exist here."""

    def __init__(self, module: nn.Module, *, head: str | None) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.head_name = head
        self._seen: Tensor | None = None
        if head is not None:
            self._last_layer().register_forward_pre_hook(self._catch)

    def _catch(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def _last_layer(self) -> nn.Linear:
        layers = dict(self.module.named_modules())
        layer = layers.get(str(self.head_name))
        if not isinstance(layer, nn.Linear):
            linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
            raise BadModule(f"head '{self.head_name}' is no Linear layer of the module; there are: {', '.join(linear)}")
        return layer

    @property
    def feature_dim(self) -> int | None:
        """D, or None without a named head."""
        return None if self.head_name is None else self._last_layer().in_features

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] logits, exactly the module's."""
        logits = self.module(x)
        self._seen = None
        return logits

    def features(self, x: Tensor) -> Tensor:
        """[N, D] input of the last layer; refused if that layer is not the last thing that happens."""
        if self.head_name is None:
            raise HeadUnavailable("this model's entry names no 'head', so its features are not known")
        logits = self.module(x)
        seen, self._seen = self._seen, None
        if seen is None or seen.dim() != 2:
            raise BadModule(f"the layer '{self.head_name}' was not used on [N, D] features")
        if not torch.allclose(self.logits_from(seen), logits, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise BadModule(f"the module changes its logits after the layer '{self.head_name}': it is not the head")
        return seen

    def maps(self, x: Tensor) -> Tensor:
        """Not known of a user's module."""
        raise HeadUnavailable("the feature maps of a user's own model are not known")

    def logits_from(self, features: Tensor) -> Tensor:
        """[N, K] logits of features."""
        if self.head_name is None:
            raise HeadUnavailable("this model's entry names no 'head'")
        layer = self._last_layer()
        return nn.functional.linear(features, layer.weight, layer.bias)

    def description(self) -> dict[str, Any] | None:
        """The card's ``head``: names of the tensors in the weights file, or None."""
        if self.head_name is None:
            return None
        bias = None if self._last_layer().bias is None else f"{self.head_name}.bias"
        return {"kind": "linear", "cosine": False, "weight": f"{self.head_name}.weight", "bias": bias}

    def head_arrays(self) -> Head:
        """The last layer as arrays."""
        description = self.description()
        if description is None:
            raise HeadUnavailable("this model's entry names no 'head'")
        state = self.module.state_dict()
        return fold(description, {k: v.cpu().numpy() for k, v in state.items() if k in description.values()})


def build_own(path: Path, settings: Mapping[str, Any], state: Mapping[str, Tensor], *, head: str | None) -> OwnModel:
    """Import ``path``, call its ``build(settings)``, load the weights (all of them, no others), freeze."""
    location = importlib.util.spec_from_file_location(f"windtunnel_user_model_{path.stem}", path)
    if location is None or location.loader is None or not path.is_file():
        raise BadModule(f"cannot import '{path}'")
    code = importlib.util.module_from_spec(location)
    location.loader.exec_module(code)
    if not callable(getattr(code, "build", None)):
        raise BadModule(f"'{path}' has no function build(settings) -> torch.nn.Module")
    module = code.build(dict(settings))
    if not isinstance(module, nn.Module):
        raise BadModule(f"build(settings) of '{path}' returned {type(module).__name__}, not a torch.nn.Module")
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise BadModule(f"the weights do not fit the module that '{path}' builds: {error}") from None
    model = OwnModel(module.float(), head=head)
    freeze(model)
    return model
