"""Learned image codecs of the library CompressAI, with weights from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from windtunnel.backend import torch
from windtunnel.networks._extras import require
from windtunnel.networks.base import Network, State

CLASSES = {
    "factorized": ("FactorizedPrior", "bmshj2018-factorized"),
    "hyperprior": ("ScaleHyperprior", "bmshj2018-hyperprior"),
    "mbt2018-mean": ("MeanScaleHyperprior", "mbt2018-mean"),
    "mbt2018": ("JointAutoregressiveHierarchicalPriors", "mbt2018"),
    "cheng2020-anchor": ("Cheng2020Anchor", "cheng2020-anchor"),
    "elic2022-official": ("Elic2022Official", None),
    "elic2022-chandelier": ("Elic2022Chandelier", None),
}
"""Architecture: CompressAI's class, and its name in CompressAI's table of widths (none for ELIC, whose are fixed)."""
CHANDELIER = (
    (r"^(h_a|h_s|entropy_bottleneck)\.", r"latent_codec.hyper.\1."),
    (r"^context_prediction\.(\d+)\.", r"latent_codec.y.latent_codec.y\1.context_prediction."),
    (r"^ParamAggregation\.(\d+)\.", r"latent_codec.y.latent_codec.y\1.entropy_parameters."),
)
"""Names in the state dict of the ELIC re-implementation whose weights are public, and where they go."""


@dataclass(frozen=True, kw_only=True)
class CompressAICodec(Network):
    """A model of CompressAI (Begaint et al., https://arxiv.org/abs/2011.03029): picture, latents, rounded, picture.

    ``architecture``: ``factorized`` and ``hyperprior`` (Balle et al. 2018, https://arxiv.org/abs/1802.01436),
    ``mbt2018-mean`` and ``mbt2018`` (Minnen et al. 2018, https://arxiv.org/abs/1809.02736), ``cheng2020-anchor`` (Cheng
    et al. 2020, https://arxiv.org/abs/2001.01568), ``elic2022-official`` and ``elic2022-chandelier`` (He et al. 2022,
    https://arxiv.org/abs/2203.10886; the second is the layout of a re-implementation whose weights are public).
    ``quality`` is CompressAI's, 1 the coarsest: it decides the widths (N, M) as in CompressAI's own table; which
    trade-off of rate and distortion it is, the weights know. ``widths`` overrides the table.

    Not trained here: weights come from a file with a declared digest. ``adopt`` takes state dicts of CompressAI's
    releases (also those trained on several devices, and its older names) and, for ``elic2022-chandelier``, those of
    the re-implementation (https://github.com/VincentChandelier/ELiC-ReImplemetation); CompressAI's own
    ``load_state_dict`` gives the tables of the entropy coder their size.

    CompressAI asks for numpy < 2 in its metadata only; with numpy 2.3 and 2.4 its coder answers as its forward pass
    does (a test says so). Hence ``install``.
    """

    algorithm_version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("compressai",)
    install: ClassVar[str] = (
        "pip install 'windtunnel[compressai]' && pip install --no-deps compressai torch-geometric pytorch-msssim"
    )

    architecture: str
    quality: int = 1
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.architecture not in CLASSES:
            raise ValueError(f"unknown architecture '{self.architecture}'; known: {', '.join(CLASSES)}")
        if self.quality < 1 or len(self.widths) > 2:
            raise ValueError("quality starts at 1, and widths are at most two numbers (N, M)")

    def build(self) -> torch.nn.Module:
        models = require("compressai.models", self.install)
        class_name, listed = CLASSES[self.architecture]
        widths = self.widths
        if not widths and listed is not None:
            table = require("compressai.zoo.image", self.install).cfgs[listed]
            if self.quality not in table:
                raise ValueError(
                    f"'{self.architecture}' has qualities {min(table)} to {max(table)}, not {self.quality}"
                )
            widths = table[self.quality]
        return getattr(models, class_name)(*widths)

    def adopt(self, state: State) -> State:
        renamed: dict[str, Any] = require("compressai.zoo.pretrained", self.install).load_pretrained(state)
        if self.architecture != "elic2022-chandelier" or any(name.startswith("latent_codec.") for name in renamed):
            return renamed
        groups = sorted({int(n.split(".")[1]) for n in renamed if n.startswith("context_prediction.")})
        found: dict[str, Any] = {}
        for name, tensor in renamed.items():
            if name.startswith("gaussian_conditional."):  # one coder there, one with the same tables per group here
                found.update({f"latent_codec.y.latent_codec.y{k}.y.{name}": tensor.clone() for k in groups})
                continue
            # the first group has no other to look back at: numbers of this list begin with the second
            if match := re.match(r"^cc_transforms\.(\d+)\.(.*)$", name):
                name = f"latent_codec.y.channel_context.y{int(match[1]) + 1}.{match[2]}"
            for pattern, replacement in CHANDELIER:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
        return found
