"""A small residual network for 32x32 images: timm's ResNet with output stride 8, about 0.5 million parameters.

Deep Residual Learning for Image Recognition (He et al., https://arxiv.org/abs/1512.03385) as built by timm, one basic
block per stage, a stem of three 3x3 convolutions and, instead of striding in the last stages, dilation: the last
feature maps of a 32x32 image are 4x4, not 1x1, so that class activation maps are more than a constant. Memory is
channels-last, which is a fifth faster on a CPU at the same results.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from windtunnel.backend import timm_models, torch

Tensor = torch.Tensor


class Cnn(nn.Module):
    """[N, 3, H, W] normalised -> [N, D], with D the last of ``channels``.

    ``channels``: widths of the four stages; ``blocks``: basic blocks per stage; ``stem_width``: of the deep stem;
    ``output_stride``: 8 gives 4x4 maps on 32x32 images.
    """

    def __init__(
        self, *, channels: Sequence[int], blocks: Sequence[int], stem_width: int, output_stride: int = 8
    ) -> None:
        super().__init__()
        resnet = timm_models("resnet")
        self.net = resnet.ResNet(
            resnet.BasicBlock,
            tuple(blocks),
            num_classes=0,
            channels=tuple(channels),
            stem_width=stem_width,
            stem_type="deep",
            output_stride=output_stride,
        )
        self.feature_dim = int(channels[-1])
        self.to(memory_format=torch.channels_last)

    def maps(self, x: Tensor) -> Tensor:
        """[N, D, H/8, W/8] the last feature maps."""
        return self.net.forward_features(x.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] mean of the last feature maps over space."""
        return self.maps(x).mean(dim=(2, 3))
