"""Total variation: the smoothest picture that stays near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._arrays import each
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import Defense, Images, Purified


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Defense):
    """Total-variation denoising with Chambolle's algorithm (``skimage.restoration.denoise_tv_chambolle``).

    Papers: Guo et al., Countering Adversarial Images using Input Transformations, https://arxiv.org/abs/1711.00117
    (the defense, there with random pixel dropout, which is left out here: this one is deterministic); Chambolle, An
    Algorithm for Total Variation Minimization and Applications, https://doi.org/10.1023/B:JMIV.0000011325.36760.1e.

    ``weight``: larger = smoother; ``tolerance`` and ``max_iterations`` are scikit-image's defaults. Each picture
    alone (the stopping rule looks at one picture). Output is float32 clipped to [0, 1], not rounded to 8 bits. No
    file, hence no bits. All backward rules are generic.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ("scikit-image",)

    weight: float
    tolerance: float = 2e-4
    max_iterations: int = 200

    def __post_init__(self) -> None:
        require_range("weight", self.weight, 1e-6, 100)

    def purify(self, images: Images) -> Purified:
        from skimage.restoration import denoise_tv_chambolle

        def denoise(picture: np.ndarray) -> np.ndarray:
            return denoise_tv_chambolle(
                picture, weight=self.weight, eps=self.tolerance, max_num_iter=self.max_iterations, channel_axis=-1
            )

        return Purified(each(images, denoise))
