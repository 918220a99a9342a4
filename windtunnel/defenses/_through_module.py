"""A trained module as a defense and as its own backward rule: one function, with and without its graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses.base import BackwardRule, Images, Purified

if TYPE_CHECKING:
    import torch

Picture = Callable[["torch.nn.Module", "torch.Tensor"], "torch.Tensor"]
"""(module, [N, 3, H, W]) -> [N, 3, H, W], any range."""


def purified_by(module: torch.nn.Module, picture: Picture, images: Images) -> Purified:
    """The module's pictures clipped to [0, 1], in batches of the one fixed size, without a graph. No file, no bits."""
    from windtunnel.networks.batches import in_fixed_batches

    images = require_images(images)
    found = in_fixed_batches(lambda x: picture(module, x).clamp(0, 1), images)
    return Purified(np.array(found, dtype=np.float32, order="C"))


def rule_through(module: torch.nn.Module, picture: Picture) -> BackwardRule:
    """The same clipped pictures with their graph, hence the exact gradient; on the device of its input, for which the
    module is copied where it lies elsewhere."""
    there: dict[str, torch.nn.Module] = {}

    def rule(x: torch.Tensor) -> torch.Tensor:
        device = str(x.device)
        if device not in there:
            here = all(str(p.device) == device for p in module.parameters())
            there[device] = module if here else copy.deepcopy(module).to(x.device)
        return picture(there[device], x.float()).clamp(0, 1).to(x.dtype)

    return rule
