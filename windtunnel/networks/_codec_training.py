"""Training and measuring of the learned codecs: first rate and distortion, then a second decoder that looks real.

Phase 1 (Balle et al. 2018, https://arxiv.org/abs/1802.01436): uniform noise in place of rounding, Adam,

    bits / pixels + lambda(rate) * 255^2 * MSE,

half a cosine down to 0. Phase 2: encoder and entropy model stand still and round; the realistic decoder starts as a
copy of the other and minimises

    distortion_weight * lambda(rate) * 255^2 * MSE + adversarial_weight * hinge + feature_weight * features

on the same batches on which the other goes on with MSE alone: so the two differ in their loss and in nothing else, not
in how long they were trained nor in what roundings they saw. The hinge is that of a critic that sees image and code
(HiFiC, Mentzer et al., https://arxiv.org/abs/2006.09965, there non-saturating); the features are the squared difference
of the first teacher's last feature maps over their variance, in place of
LPIPS. The teacher must not be the judged classifier, nor the network that measures realism: a decoder taught by the
judge would keep what the judge looks at, and its accuracy would say nothing of realism; a decoder measured by its own
teacher would look realistic to it alone. So the second teacher takes no part in training and measures on the card.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from windtunnel.backend import torch
from windtunnel.metrics.quality import psnr
from windtunnel.metrics.realism import kid_rows
from windtunnel.networks._codec_layers import Critic
from windtunnel.networks._codec_modules import CENTRE, DECODERS, Codec
from windtunnel.networks.base import Network, TrainingData
from windtunnel.networks.batches import in_fixed_batches

Tensor = torch.Tensor
LOWEST_LAMBDA = 0.0015
FACTOR = 3.0
RATES = 4
ADVERSARIAL_BETAS = (0.5, 0.9)
HEAD_START = 0.1
"""The share of the second phase in which the decoder does not hear the critic yet: an untrained one would spoil it."""


def weight_of(rate: int) -> float:
    """lambda of a rate: .0015, .0045, .0135, .0405 for 1 to 4; CompressAI's published models have .0018 to .18."""
    return LOWEST_LAMBDA * FACTOR ** (rate - 1)


class CodecNetwork(Network):
    """What the recipes of both codecs share; subclasses state the settings.

    ``prior_speed``: how many times faster the factorised densities learn than the rest. Their means and log-scales move
    by the learning rate a step, whatever the loss: at 1 a density over all latents is still wide when training ends.
    """

    prior_speed: ClassVar[float] = 1.0

    if TYPE_CHECKING:
        rate: int
        epochs: int
        realism_epochs: int
        batch: int
        learning_rate: float
        distortion_weight: float
        adversarial_weight: float
        feature_weight: float

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= RATES:
            raise ValueError(f"rate must lie in [1, {RATES}], not {self.rate}")
        if self.epochs < 1 or self.realism_epochs < 0 or self.batch < 1:
            raise ValueError("epochs and batch must be at least 1, realism_epochs at least 0")

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        assert isinstance(module, Codec)
        draws = np.random.default_rng([seed, self.rate])
        self._compress(module, data, draws)
        module.realism.load_state_dict(module.distortion.state_dict())
        if self.realism_epochs:
            self._finish_decoders(module, data, draws)

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        """On held-out images, through the defense itself: ``bpp`` (coded, headers aside) and ``bpp_estimated``; per
        decoder ``psnr``, ``kid`` (features of the last teacher; absent without one), ``detail`` (squared differences of
        neighbouring pixels over those of the originals: 1 is as crisp), ``zero_gradient`` (share of images of which
        some output's gradient is 0 everywhere)."""
        from windtunnel.defenses.learned_codec import LearnedCodec

        assert isinstance(module, Codec)
        x = data.held_out
        pixels = x.shape[2] * x.shape[3]
        found: dict[str, Any] = {"n": len(x), "lambda": weight_of(self.rate)}
        judge = data.teachers[-1] if data.teachers else None
        before = in_fixed_batches(judge.features, x) if judge is not None else None
        for decoder in DECODERS:
            purified = LearnedCodec(decoder=decoder).carrying(module).purify(x)
            found["bpp"] = float(purified.payload_bits.mean() / pixels)
            found[decoder] = {
                "psnr": float(np.mean(psnr(x, purified.images))),
                "detail": detail(purified.images) / detail(x),
                "zero_gradient": zero_gradient_share(module, x[:64], decoder),
            }
            if judge is not None and before is not None:
                rows = kid_rows(before, in_fixed_batches(judge.features, purified.images))
                found[decoder] |= {"kid": float(rows.mean()), "kid_error": float(rows.std(ddof=1) / math.sqrt(len(x)))}
        estimated = in_fixed_batches(lambda part: module.code(module.padded(part), rounded=True).bits, x)
        found["bpp_estimated"] = float(estimated.mean() / pixels)
        return found

    def _compress(self, module: Codec, data: TrainingData, draws: np.random.Generator) -> None:
        weight = weight_of(self.rate)
        named = [(name, p) for name, p in module.named_parameters() if not name.startswith("realism.")]
        fast = [p for name, p in named if name.startswith("prior.") and self.prior_speed != 1.0]
        slow = [p for name, p in named if not (name.startswith("prior.") and self.prior_speed != 1.0)]
        optimiser = torch.optim.Adam([{"params": slow}, *([{"params": fast}] if fast else [])], lr=self.learning_rate)
        for x, done in batches(data, range(self.epochs), self.batch, draws):
            for group, speed in zip(optimiser.param_groups, (1.0, self.prior_speed), strict=False):
                group["lr"] = speed * self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
            code = module.code(module.padded(x), rounded=False)
            error = (module.decode(code.latents, "distortion", (x.shape[2], x.shape[3])) - x).square().mean()
            loss = code.bits.mean() / (x.shape[2] * x.shape[3]) + weight * 255**2 * error
            _step(optimiser, loss, clip=1.0)

    def _finish_decoders(self, module: Codec, data: TrainingData, draws: np.random.Generator) -> None:
        weight, rate = weight_of(self.rate) * 255**2, self.learning_rate / 3
        teacher = data.teachers[0]
        critic = Critic(latents=module.channels, stride=module.stride)
        exact = torch.optim.Adam(module.distortion.parameters(), lr=rate)
        crisp = torch.optim.Adam(module.realism.parameters(), lr=rate, betas=ADVERSARIAL_BETAS)
        judging = torch.optim.Adam(critic.parameters(), lr=rate, betas=ADVERSARIAL_BETAS)
        epochs = range(self.epochs, self.epochs + self.realism_epochs)
        for x, done in batches(data, epochs, self.batch, draws):
            for optimiser in (exact, crisp, judging):
                optimiser.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
            x = module.padded(x)  # whole latents: the critic sees what the decoder makes, borders too
            size = (x.shape[2], x.shape[3])
            with torch.no_grad():
                latents = module.code(x, rounded=True).latents
            _step(exact, weight * (module.decode(latents, "distortion", size) - x).square().mean())
            made = module.decode(latents, "realism", size)
            real, false = critic(torch.cat([x, made.detach()]) - CENTRE, latents.repeat(2, 1, 1, 1)).chunk(2)
            _step(judging, torch.relu(1 - real).mean() + torch.relu(1 + false).mean())
            critic.requires_grad_(False)  # a third of its backward pass is for weights that do not move now
            wanted, seen = teacher.maps(x), teacher.maps(made)
            loss = self.distortion_weight * weight * (made - x).square().mean()
            loss = loss + self.feature_weight * (seen - wanted).square().mean() / wanted.var()
            if done >= HEAD_START:
                loss = loss - self.adversarial_weight * critic(made - CENTRE, latents).mean()
            _step(crisp, loss)
            critic.requires_grad_(True)


def batches(data: TrainingData, epochs: range, size: int, draws: np.random.Generator) -> Iterator[tuple[Tensor, float]]:
    """Shuffled batches [size, 3, H, W] in [0, 1] of these epochs, with the share of them that is done; what is left of
    an epoch after its last whole batch is dropped."""
    for index, epoch in enumerate(epochs):
        pixels, _ = data.epoch(epoch)
        order = draws.permutation(len(pixels))
        whole = max(len(pixels) // size, 1)
        for k in range(whole):
            x = np.ascontiguousarray(pixels[order[k * size : (k + 1) * size]].transpose(0, 3, 1, 2))
            yield torch.from_numpy(x.astype(np.float32) / np.float32(255)), (index + k / whole) / len(epochs)


def detail(images: np.ndarray) -> float:
    """Mean squared difference of neighbouring pixels, down and right."""
    down, right = np.diff(images, axis=2), np.diff(images, axis=3)
    return float(np.mean(down.astype(np.float64) ** 2) + np.mean(right.astype(np.float64) ** 2))


def zero_gradient_share(module: Codec, x: np.ndarray, decoder: str) -> float:
    """Share of images whose input gradient, of a fixed weighted sum of the output, is 0 in every pixel."""
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal(x.shape[1:]).astype(np.float32))
    with torch.enable_grad():
        start = torch.from_numpy(x).clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((module.reconstruct(start, decoder)[0] * weights).sum(), start)
    return float((gradient.flatten(1).abs().amax(1) == 0).double().mean())


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, clip: float | None = None) -> None:
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError("the codec's loss is not finite; lower learning_rate")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], clip)
    optimiser.step()
