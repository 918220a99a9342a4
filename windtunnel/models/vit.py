"""A small vision transformer with a convolutional stem: timm's VisionTransformer, about 0.5 million parameters.

An Image is Worth 16x16 Words (Dosovitskiy et al., https://arxiv.org/abs/2010.11929); the stem follows Early
Convolutions Help Transformers See Better (Xiao et al., https://arxiv.org/abs/2106.14881): on a few thousand images
linear patches do not learn (accuracy .66 where the stem gives .90). Three 3x3 convolutions of stride 2 with batch
norm, then a 1x1 projection, make 4x4 tokens of a 32x32 image (four convolutions of a 64x64 one). The feature is the
mean over tokens after the last norm.

With ``activation: relu`` and ``top_k`` it is the Top-k transformer of The Lazy Neuron Phenomenon (Li et al.,
https://arxiv.org/abs/2210.06313): after the ReLU of every block's MLP the k largest activations of each token stay and
the others become 0, in training and after. The paper takes k = 128 of 3,072 hidden units (ViT-B/16) and changes no
other setting; its control is the same network with ReLU alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from windtunnel.backend import timm_models, torch

Tensor = torch.Tensor
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class ConvStem(nn.Module):
    """In the place of timm's PatchEmbed: [N, 3, H, W] -> [N, HW/64, D]."""

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 8,
        in_chans: int = 3,
        embed_dim: int = 96,
        *,
        widths: Sequence[int],
        **_: Any,
    ) -> None:
        super().__init__()
        if 2 ** len(widths) != patch_size:
            raise ValueError(f"{len(widths)} convolutions of stride 2 do not make patches of {patch_size}")
        layers: list[nn.Module] = []
        for before, after in zip((in_chans, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        side = img_size // patch_size
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (side, side)
        self.num_patches = side * side

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, D]."""
        return self.layers(x).flatten(2).transpose(1, 2)


class TopK(nn.Module):
    """ReLU, then all but the ``k`` largest values of the last dimension become 0: [..., D] -> [..., D]."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """At most k values above 0 in each row; the gradient reaches those alone."""
        values, places = x.relu().topk(self.k, dim=-1)
        return torch.zeros_like(x).scatter(-1, places, values)


class Vit(nn.Module):
    """[N, 3, H, W] normalised -> [N, D], with D the embedding's width.

    ``activation`` of the MLPs: ``gelu`` or ``relu``; ``top_k``: activations kept per token, None for all.
    """

    def __init__(
        self,
        *,
        image_size: int,
        stem_widths: Sequence[int],
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        activation: str = "gelu",
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"network.activation is '{activation}', must be one of {', '.join(ACTIVATIONS)}")
        if top_k is not None and (activation != "relu" or not 1 <= top_k <= int(width * mlp_ratio)):
            raise ValueError(f"network.top_k of {top_k} needs activation relu and lies in 1..{int(width * mlp_ratio)}")
        self.net = timm_models("vision_transformer").VisionTransformer(
            img_size=image_size,
            patch_size=2 ** len(stem_widths),
            num_classes=0,
            global_pool="avg",
            class_token=False,
            fc_norm=False,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            act_layer=ACTIVATIONS[activation] if top_k is None else partial(TopK, top_k),
            embed_layer=lambda **settings: ConvStem(**settings, widths=tuple(stem_widths)),
        )
        self.feature_dim = int(width)

    def maps(self, x: Tensor) -> Tensor:
        """[N, D, H/8, W/8] the last tokens, laid out as the patches lie in the image."""
        tokens = self.net.forward_features(x)
        side = self.net.patch_embed.grid_size[0]
        return tokens.transpose(1, 2).unflatten(2, (side, side))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] mean token."""
        return self.net.forward_features(x).mean(dim=1)
