"""What an explainer is: a model, images and a class each in, one small map per image out.

All explainers here look at the last feature maps before global average pooling (``Classifier.maps``), so the logits
are a function of those maps, ``logits_from(maps.mean over places)``, and their derivative costs one pass through the
head, not through the network. A model whose head does not see that mean is refused, not explained wrongly.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from windtunnel.attacks.base import RowGenerators, Tensor
from windtunnel.backend import torch

EXPLAINERS = ("grad_cam", "eigen_cam", "smooth_grad_cam_pp")
# The mean of the maps and the features are the same sums in another order: float32 rounding may part them, no more.
POOLING_TOLERANCE = 1e-3


class NotExplainable(ValueError):
    """The model has no feature maps, or its head sees something else than their mean over places."""


class Explainer(ABC):
    """One way to make maps. Subclasses are frozen keyword-only dataclasses: fields are the settings.

    ``needs_noise``: the explainer draws random numbers, from the given stream of each row.
    """

    needs_noise: ClassVar[bool] = False

    @abstractmethod
    def explain(
        self, model: torch.nn.Module, images: Tensor, classes: Tensor, random: RowGenerators | None = None
    ) -> np.ndarray:
        """[N, h, w] float64 in [0, 1]: each map divided by its maximum, a map without evidence all zero.

        ``images`` [N, 3, H, W] in [0, 1], ``classes`` [N] int64: whose logit is explained. Rows are independent;
        ``model`` is frozen (``windtunnel.models.base``) and left as it was. A row that is not finite gives NaN.
        """


def explainer_named(name: str, **settings: Any) -> Explainer:
    """The explainer of the file ``windtunnel/explain/<name>.py``, with its settings."""
    if name not in EXPLAINERS:
        raise ValueError(f"unknown explainer '{name}'; known: {', '.join(EXPLAINERS)}")
    module = importlib.import_module(f"windtunnel.explain.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Explainer) and value.__module__ == module.__name__
    ]
    return found[0](**settings)


def feature_maps(model: torch.nn.Module, images: Tensor) -> Tensor:
    """[N, C, h, w] the last feature maps, without a graph; ``NotExplainable`` where the head does not see their mean.

    Whether it does is asked of the first image only.
    """
    if not (hasattr(model, "maps") and hasattr(model, "features") and hasattr(model, "logits_from")):
        raise NotExplainable(f"{type(model).__name__} offers no maps(x), features(x) and logits_from(features)")
    with torch.no_grad():
        try:
            found = model.maps(images)
        except LookupError as error:  # windtunnel.models.base.HeadUnavailable
            raise NotExplainable(str(error)) from error
        if len(images):
            seen, pooled = model.features(images[:1]).double(), found[:1].double().mean((2, 3))
            size = seen.abs().amax().clamp_min(1.0)
            if seen.shape != pooled.shape or bool(((seen - pooled).abs() > POOLING_TOLERANCE * size).any()):
                raise NotExplainable("the features of this model are not the mean of its maps over places")
    return found.detach()


def slopes(model: torch.nn.Module, maps: Tensor, classes: Tensor) -> Tensor:
    """[N, C, h, w] float64: the derivative of each row's logit (before softmax) by its own maps."""
    leaf = maps.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model.logits_from(leaf.mean((2, 3)))
        (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), leaf)
    return gradient.double()


def weighted(maps: Tensor, weights: Tensor) -> np.ndarray:
    """[N, h, w] ``ReLU(sum_k weights_k maps_k)`` with ``weights`` [N, C], divided by its maximum."""
    return normalised((maps.double() * weights.double()[:, :, None, None]).sum(1).cpu().numpy())


def normalised(maps: np.ndarray) -> np.ndarray:
    """[N, h, w] float64 in [0, 1]: negative evidence cut off, each map divided by its maximum; all-zero stays zero."""
    positive = np.maximum(np.asarray(maps, dtype=np.float64), 0.0)
    if not positive.size:
        return positive
    top = positive.max(axis=(1, 2), keepdims=True)
    return positive / np.where(top == 0, 1.0, top)


def enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[N, height, width] float64 in [0, 1]: maps [N, h, w] at the size of a picture, bilinear (corners not aligned)."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))[:, None]
    size = (height, width)
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
