"""Contextual fusion: two frozen experts, one for the object and one for what lies behind it, under one linear head.

Improving adversarial robustness by contextual fusion (Akumalla, Haney, Bazhenov, https://arxiv.org/abs/2011.09526): the
features of a foreground extractor (ImageNet) and a background extractor (Places365), both frozen, are concatenated late
and a linear head is trained on them; with ``foreground_penalty`` alpha the loss gains alpha * |theta_fg|^2, the squared
weights of the head on the foreground features, for an adversary who is known to attack the foreground.

Here the experts are small networks of this room, trained on composites whose photograph is drawn independently of the
digit (view ``agreement: 0.25`` of photodigits_context): the foreground expert learns the digit, the background expert
the photograph, so neither knows the context; only the head sees data in which they go together. Deviations: the paper
takes networks pre-trained on other data sets, ResNet-18s of 512 features each; the experts here are trained by the same
recipe, on the same glyphs and photographs. The penalty is on weights, not on the bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from windtunnel.backend import torch
from windtunnel.models.base import Classifier, freeze
from windtunnel.models.cnn import Cnn
from windtunnel.models.recipes import FusionTraining, Training

if TYPE_CHECKING:
    from windtunnel.models.spec import ModelSpec

Tensor = torch.Tensor
EXPERTS = ("foreground", "background")


class Fusion(nn.Module):
    """[N, 3, H, W] normalised -> [N, D_fg + D_bg], foreground first.

    ``foreground`` and ``background``: the settings of two ``Cnn`` with feature maps of one size. The experts never
    leave eval mode, so that their running statistics stand still while the head is trained.
    """

    def __init__(self, *, foreground: Mapping[str, Any], background: Mapping[str, Any]) -> None:
        super().__init__()
        self.foreground, self.background = Cnn(**foreground), Cnn(**background)
        self.feature_dim = self.foreground.feature_dim + self.background.feature_dim
        freeze(self)

    def train(self, mode: bool = True) -> Fusion:
        """Stays in eval mode, whatever is asked: nothing here is trained."""
        return super().train(False)

    def maps(self, x: Tensor) -> Tensor:
        """[N, D_fg + D_bg, h, w] the last feature maps of both."""
        return torch.cat([self.foreground.maps(x), self.background.maps(x)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D_fg + D_bg] their means over space."""
        return torch.cat([self.foreground(x), self.background(x)], dim=1)


def train_experts(
    body: Fusion,
    settings: FusionTraining,
    spec: ModelSpec,
    fit_expert: Callable[[Classifier, Training, ModelSpec], None],
) -> None:
    """Train both experts, each as a model of its own with the fusion's seed, and put their weights into ``body``.

    ``fit_expert(model, training, spec)`` moves the weights in place. The foreground expert comes out bit for bit as the
    model of architecture ``cnn`` with that network, training, data set and seed does.
    """
    from windtunnel.models.build import build_classifier

    for name in EXPERTS:
        training: Training = getattr(settings, name)
        recipe = {
            "network": spec.recipe["network"][name],
            "normalisation": spec.recipe["normalisation"],
            "training": dict(spec.recipe["training"]["fusion"][name]),
        }
        classes = spec.classes if name == "foreground" else settings.photographs
        expert = build_classifier(architecture="cnn", head="linear", recipe=recipe, classes=classes, seed=spec.seed)
        fit_expert(expert, training, dataclasses.replace(spec, name=f"{spec.name}/{name}"))
        getattr(body, name).load_state_dict(expert.body.state_dict())
    freeze(body)


def foreground_penalty(model: Classifier, alpha: float) -> Callable[[], Tensor]:
    """alpha times the sum of squares of the head's weights on the foreground features, as a term of the loss."""
    width = model.body.foreground.feature_dim
    return lambda: alpha * model.head.weight[:, :width].square().sum()
