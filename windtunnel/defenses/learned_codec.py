"""A learned codec as a defense: the real thing with its bits, and its own gradient where rounding has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from windtunnel.defenses._arrays import from_8bit, require_images, to_8bit
from windtunnel.defenses.base import BackwardRule, Images, LearnedDefense, Purified

if TYPE_CHECKING:
    import torch

HEADER_BITS = 32
"""What a file would need beside the stream: height and width, 16 bits each."""


class ZeroGradient(RuntimeError):
    """A gradient reached the codec and none came out: an attack through it would be blind."""


@dataclass(frozen=True, kw_only=True)
class LearnedCodec(LearnedDefense):
    """Encode, round, entropy-code, decode, clip, store at 8 bits. Carries ``networks/factorized`` or ``hyperprior``.

    Papers: Raeber et al., Human Aligned Compression for Robust Models, https://arxiv.org/abs/2504.12255; Keep It Real:
    Challenges in Attacking Compression-Based Adversarial Purification, https://arxiv.org/abs/2508.05489 (there with
    ELIC, HiFiC, MRIC, CRDR on ImageNet; here with small codecs trained on the benchmark's own pictures).

    ``decoder``: 'distortion' (rate and squared error) or 'realism' (a copy tuned to look real): both decode the same
    code, so at equal images their bits are equal to the bit. ``payload_bits`` is the length of the range coder's
    stream, really coded, 32 bits of its state included; ``file_bits`` adds a header of 32 bits for the size. Nothing is
    subtracted for a constant picture: the weights, which a decoder must have, are counted nowhere.

    Rules: ``surrogate-n`` goes through codec, clipping and storage as often as the cell applies it, ``surrogate-1``
    once. Their forward value is the real one; all roundings and the clipping have gradient 1 (straight-through), the
    rest is exact. Hard rounding would have gradient 0 everywhere, which looks like robustness (a known trap of
    CompressAI's models in eval mode); a batch whose gradient vanishes all the same raises ``ZeroGradient``.
    ``other-decoder`` is the gradient of one round with the other decoder (ARA in Keep It Real).
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    is_learned: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("surrogate-n", "surrogate-1", "other-decoder", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

    decoder: str = "distortion"

    def __post_init__(self) -> None:
        if self.decoder not in ("distortion", "realism"):
            raise ValueError(f"decoder must be 'distortion' or 'realism', not '{self.decoder}'")

    def purify(self, images: Images) -> Purified:
        decoded, answer = self._decoded(images)
        if not len(decoded):
            return Purified(decoded, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        symbols, rows = np.split(answer[:, decoded[0].size :], 2, axis=1)
        bits = np.array([8 * len(stream) for stream in self._codec().streams(symbols, rows)], dtype=np.int64)
        return Purified(decoded, file_bits=bits + HEADER_BITS, payload_bits=bits)

    def cleaned(self, images: Images) -> Images:
        """The same images without the range coder, which is half of the time."""
        return self._decoded(images)[0]

    def _decoded(self, images: Images) -> tuple[Images, np.ndarray]:
        """What comes out, at 8 bits, and everything that ``_answers`` says."""
        images = require_images(images)
        if not len(images):
            return images.copy(), images
        answer = self._answers(self._codec(), images)
        decoded = np.clip(answer[:, : images[0].size].reshape(images.shape), 0.0, 1.0)
        return from_8bit(to_8bit(decoded)), answer

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import repeated, with_generic

        other = "realism" if self.decoder == "distortion" else "distortion"
        once = self._through(self.decoder)
        own = {
            "surrogate-n": repeated(once, rounds),
            "surrogate-1": once,
            "other-decoder": self._through(other),
        }
        return with_generic(self.rules, **{name: _watched(rule, name) for name, rule in own.items()})

    def _codec(self) -> Any:
        from windtunnel.networks._codec_modules import Codec

        if not isinstance(self.module, Codec):
            raise TypeError(
                f"learned_codec carries a network of 'factorized' or 'hyperprior', not a {type(self.module).__name__}"
            )
        return self.module

    def _answers(self, codec: Any, images: Images) -> np.ndarray:
        """[N, pixels + 2 K]: the decoded image, the coded integers and their tables."""
        from windtunnel.backend import torch
        from windtunnel.networks.batches import in_fixed_batches

        def everything(part: torch.Tensor) -> torch.Tensor:
            decoded, code = codec.reconstruct(part, self.decoder)
            return torch.cat([decoded.flatten(1), code.symbols, code.rows], dim=1)

        return in_fixed_batches(everything, images)

    def _through(self, decoder: str) -> BackwardRule:
        """One round with one decoder: the value that ``purify`` has, straight-through at what has no gradient."""
        codec = self._codec()

        def rule(x: torch.Tensor) -> torch.Tensor:
            decoded, _ = codec.reconstruct(x, decoder)
            stored = (decoded.detach().clamp(0.0, 1.0) * 255.0).round() / 255.0
            return stored + (decoded - decoded.detach())

        return rule


def _watched(rule: BackwardRule, name: str) -> BackwardRule:
    """The rule, which raises ``ZeroGradient`` when a whole batch's gradient goes in and nothing comes out."""

    def watched(x: torch.Tensor) -> torch.Tensor:
        entering = x.view_as(x)
        leaving = rule(entering)
        if not leaving.requires_grad:
            return leaving
        arrived: list[bool] = []
        leaving.register_hook(lambda gradient: arrived.append(bool(gradient.any())))

        def check(gradient: torch.Tensor) -> None:
            if arrived and arrived.pop() and not gradient.any():
                raise ZeroGradient(
                    f"'{name}': the gradient through the learned codec is exactly 0 for the whole batch; its latents "
                    f"are dead (train longer or raise the rate), or something in it rounds without a straight-through"
                )

        entering.register_hook(check)
        return leaving

    return watched
