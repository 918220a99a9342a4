"""Diffusion purification: the walk against the textbook's posterior and diffusers' own sampler, and the contract."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from test_defenses import noise, photographs
from test_defenses_random import generators

from windtunnel import registry
from windtunnel.backend import torch
from windtunnel.catalogue import Catalogue
from windtunnel.defenses.base import apply_draws, repeat
from windtunnel.defenses.diffusion import DiffusionPurification, _coarser
from windtunnel.models.base import freeze
from windtunnel.networks._extras import MissingExtra, require
from windtunnel.networks.base import TrainingData
from windtunnel.networks.diffusion import Diffusion
from windtunnel.networks.provide import load, provide

SHIPPED = Path("resources/networks/diffusion")
TINY = Diffusion(channels=(16, 16), epochs=2, batch_size=16, learning_rate=3e-3)


# ------------------------------------------------------------------------------------------------- without the package


def test_without_diffusers_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"'diffusers' is not installed.*pip install 'windtunnel\[diffusion\]'"):
        TINY.build()
    assert registry.card("network", "diffusion").constants["libraries"] == ("diffusers",)


def test_what_a_package_lacks_is_named_too():
    with pytest.raises(MissingExtra, match="'no_such_package' is not installed.*run: pip install it"):
        require("no_such_package.part", "pip install it")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"t": 0.0}, "fraction"),
        ({"t": 10}, "fraction of the schedule"),
        ({"t": 0.1, "eta": 2.0}, "eta"),
        ({"t": 0.1, "stride": 50, "attack_stride": 25}, "multiple of stride"),
        ({"t": 0.1, "stride": 20, "attack_stride": 50}, "multiple of stride"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DiffusionPurification(**settings)


def test_the_catalogue_s_integer_is_percent_of_the_schedule():
    for percent in (5, 10, 30):
        choice = Catalogue().defense(f"diffusion-{percent}")
        assert choice.is_random and choice.network == "diffusion"
        assert choice.settings["t"] == pytest.approx(percent / 100)
        assert round(choice.settings["t"] * 1000) % choice.settings["attack_stride"] == 0
    assert choice.rules == DiffusionPurification.rules
    assert not choice.is_generic("exact") and choice.is_generic("identity")
    assert Catalogue().network("diffusion").settings["trained_up_to"] >= 0.3


def test_noises_of_longer_steps_have_the_same_law():
    dice = np.random.default_rng(0).standard_normal((500, 8, 3, 4, 4), dtype=np.float32)
    coarse = _coarser(dice, 4)
    assert coarse.shape == (500, 2, 3, 4, 4)
    assert np.array_equal(coarse[:, 0], dice[:, 0]), "the noise forwards is the same"
    np.testing.assert_allclose(coarse[:, 1], dice[:, 1:5].sum(1) / 2, rtol=1e-6)
    assert abs(coarse[:, 1].std() - 1) < 0.02
    assert _coarser(dice, 1) is dice


# ---------------------------------------------------------------------------------------------------- the walk, exactly


class GaussianModel(torch.nn.Module):
    """The best possible denoiser of pixels that are independent normal (mean, deviation in the scale [-1, 1])."""

    def __init__(self, mean: float, deviation: float, timesteps: int = 1000) -> None:
        super().__init__()
        diffusers = pytest.importorskip("diffusers")
        self.scheduler = diffusers.DDIMScheduler(num_train_timesteps=timesteps, clip_sample=False)
        self.trained_up_to = timesteps
        self.mean, self.deviation = mean, deviation

    def forward(self, x: torch.Tensor, t: int) -> torch.Tensor:
        a = self.scheduler.alphas_cumprod[t].double()
        spread = a * self.deviation**2 + 1 - a
        return ((1 - a).sqrt() * (x.double() - a.sqrt() * self.mean) / spread).float()


def by_hand(model: GaussianModel, images: np.ndarray, dice: np.ndarray, stride: int) -> np.ndarray:
    """Ho et al., equations 4, 6 and 7, in float64: forwards, then draws from the posterior given the estimate of x."""
    betas = np.linspace(1e-4, 0.02, 1000)
    kept = np.cumprod(1 - betas)
    t = stride * dice.shape[1] - 1
    y = math.sqrt(kept[t]) * (2 * images.astype(np.float64) - 1) + math.sqrt(1 - kept[t]) * dice[:, 0]
    for step in range(1, dice.shape[1] + 1):
        now, before = kept[t], kept[t - stride] if t >= stride else 1.0
        beta = 1 - now / before
        estimate = model.mean + math.sqrt(now) * model.deviation**2 * (y - math.sqrt(now) * model.mean) / (
            now * model.deviation**2 + 1 - now
        )
        mean = math.sqrt(before) * beta / (1 - now) * estimate + math.sqrt(now / before) * (1 - before) / (1 - now) * y
        y = mean
        if step < dice.shape[1]:
            y = mean + math.sqrt((1 - before) / (1 - now) * beta) * dice[:, step]
        t -= stride
    return (y + 1) / 2


@pytest.mark.parametrize("t, stride", [(0.1, 25), (0.3, 50), (0.05, 1)])
def test_the_walk_is_the_posterior_of_the_textbook(t, stride):
    model = GaussianModel(0.1, 0.3)
    defense = DiffusionPurification(t=t, stride=stride, attack_stride=stride).carrying(model)
    images = (0.35 + 0.3 * noise(3, 8, 8)).astype(np.float32)
    draw = defense.draw(generators(3), (3, 8, 8))
    assert draw["noise"].shape == (3, round(t * 1000) // stride, 3, 8, 8)
    wanted = by_hand(model, images, draw["noise"].astype(np.float64), stride)
    assert wanted.min() > 0 and wanted.max() < 1, "nothing is clipped, or this says nothing"
    np.testing.assert_allclose(defense.purify_drawn(images, draw).images, wanted, atol=2e-5)


def test_pictures_of_the_right_law_keep_it():
    model = GaussianModel(0.0, 0.25)
    defense = DiffusionPurification(t=0.1, stride=1, attack_stride=1).carrying(model)
    right = np.random.default_rng(0).normal(0.5, 0.125, (48, 3, 16, 16)).clip(0, 1).astype(np.float32)
    seen = repeat(defense, right, 1, generators(48)).images
    assert abs(seen.mean() - 0.5) < 0.003 and abs(seen.std() - 0.125) < 0.003
    brighter = np.clip(right + np.float32(0.2), 0, 1)
    moved = brighter.mean() - repeat(defense, brighter, 1, generators(48)).images.mean()
    assert 0.05 < moved < 0.2, "others are drawn towards it"


def test_at_stride_1_it_is_diffusers_ancestral_sampler():
    diffusers = pytest.importorskip("diffusers")
    model, steps = GaussianModel(0.1, 0.4, timesteps=20), 8
    images = (0.35 + 0.3 * noise(2, 8, 8)).astype(np.float32)
    defense = DiffusionPurification(t=steps / 20, stride=1, attack_stride=1).carrying(model)
    generator = torch.Generator().manual_seed(3)
    forwards = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(4))
    sampler = diffusers.DDPMScheduler(num_train_timesteps=20, clip_sample=False)
    y = sampler.add_noise(2 * torch.tensor(images) - 1, forwards, torch.tensor([steps - 1, steps - 1]))
    for t in range(steps - 1, -1, -1):
        y = sampler.step(model(y, t), t, y, generator=generator).prev_sample
    replay = torch.Generator().manual_seed(3)
    dice = [forwards, *(torch.randn((2, 3, 8, 8), generator=replay) for _ in range(steps - 1))]
    found = defense.purify_drawn(images, {"noise": torch.stack(dice, 1).numpy()}).images
    np.testing.assert_allclose(found, ((y + 1) / 2).clamp(0, 1).numpy(), atol=1e-5)


# --------------------------------------------------------------------------------------------------------- the contract


@pytest.fixture(scope="module")
def tiny() -> DiffusionPurification:
    pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = freeze(TINY.build())
    return DiffusionPurification(t=0.1).carrying(module)


def test_shape_type_range_rows_and_dice(tiny):
    images = photographs(18)[:18]
    before = images.copy()
    whole = repeat(tiny, images, 2, generators(18))
    assert whole.file_bits is None and whole.payload_bits is None
    assert whole.images.shape == images.shape and whole.images.dtype == np.float32 and np.array_equal(images, before)
    assert whole.images.min() >= 0 and whole.images.max() <= 1
    assert np.array_equal(whole.images, repeat(tiny, images, 2, generators(18)).images)
    other = repeat(tiny, images, 2, generators(18, seed=1)).images
    assert (np.abs(other - whole.images).reshape(18, -1).max(1) > 0.01).all()
    order = np.random.default_rng(0).permutation(18)
    streams = generators(18)
    mixed = repeat(tiny, np.ascontiguousarray(images[order]), 2, [streams[i] for i in order]).images
    assert np.array_equal(mixed, whole.images[order])
    for row in (0, 17):
        alone = repeat(tiny, images[row : row + 1], 2, [generators(18)[row]]).images
        assert np.array_equal(alone[0], whole.images[row])
    assert repeat(tiny, images[:0], 1, []).images.shape == (0, 3, 32, 32)
    assert repeat(tiny, noise(2, 21, 34), 1, generators(2)).images.shape == (2, 3, 21, 34)
    with pytest.raises(ValueError, match="a defense takes"):
        tiny.purify_drawn(images[:2] + np.float32(1), tiny.draw(generators(2), (3, 32, 32)))


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_exact_rule_is_the_defense_with_the_same_dice(tiny, rounds):
    images, streams = photographs(18)[:18], generators(18)
    draws = [tiny.draw(streams, (3, 32, 32)) for _ in range(rounds)]
    rules = tiny.backward_rules_drawn(draws)
    assert tuple(rules) == tiny.rules
    real = apply_draws(tiny, images, draws).images
    np.testing.assert_allclose(rules["exact"](torch.tensor(images)).numpy(), real, atol=1e-5)
    fewer = rules["fewer-steps"](torch.tensor(images)).numpy()
    assert np.abs(fewer - real).max() > 1e-3, "another, shorter walk"
    for rule in rules.values():
        x = torch.tensor(images, requires_grad=True)
        (gradient,) = torch.autograd.grad(rule(x).square().sum(), x)
        assert bool(torch.isfinite(gradient).all()) and bool((gradient.flatten(1).abs().amax(1) > 0).all())


def test_the_gradient_of_the_exact_rule_is_that_of_its_value(tiny):
    """Central differences in float64; that the value is the real defense's, the test before says."""
    defense = tiny.carrying(copy.deepcopy(tiny.module).double())
    generator = np.random.default_rng(3)
    images = torch.from_numpy(
        0.45 + 0.1 * generator.random((18, 3, 16, 16))
    )  # more rows than are differentiated at once
    draws = [defense.draw(generators(18), (3, 16, 16))]
    draws[0]["noise"] *= np.float32(0.2)  # so that nothing comes near the edge of the range
    weights, direction = (torch.from_numpy(generator.normal(size=images.shape)) for _ in range(2))
    for name in ("exact", "fewer-steps"):
        rule = defense.backward_rules_drawn(draws)[name]
        x = images.clone().requires_grad_()
        value = rule(x)
        assert float(value.detach().min()) > 0 and float(value.detach().max()) < 1
        (gradient,) = torch.autograd.grad(value, x, weights)
        high, low = (rule(images + s * 1e-5 * direction) for s in (1, -1))
        wanted = ((high - low) / 2e-5 * weights).sum((1, 2, 3))
        torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), wanted, rtol=1e-4, atol=1e-4)


def test_a_walk_that_the_model_does_not_know_is_refused(tiny):
    for settings, said in [
        ({"t": 0.35}, "trained up to 300 of 1000"),
        ({"t": 0.12}, "do not divide timestep 120"),
        ({"t": 0.12, "stride": 60, "attack_stride": 60}, "do not divide timestep 120 .* of 1000"),
    ]:
        with pytest.raises(ValueError, match=said):
            DiffusionPurification(**settings).carrying(tiny.module)


# --------------------------------------------------------------------------------------------------------- the training


def small_data() -> TrainingData:
    from windtunnel import images
    from windtunnel.stages.purify import nchw

    few = images.build("photodigits", "fit")
    assert len(few.images) >= 224
    return TrainingData(
        epoch=lambda epoch: (few.images[64:224], few.labels[64:224]),
        held_out=nchw(few.images[:64]),
        labels=few.labels[:64],
    )


def test_training_learns_and_gives_the_same_bytes_twice(tmp_path, tiny):
    cards = [
        provide(TINY, tmp_path / name, identity={}, digest="0" * 64, seed=1, origin="trained", data=small_data)
        for name in ("one", "two")
    ]
    assert cards[0] == cards[1]
    metrics = cards[0]["metrics"]
    assert metrics["noise_error"] < 0.85 * TINY.measure(tiny.module, small_data())["noise_error"]
    with torch.no_grad():
        x, t = torch.tensor(photographs()[:2]), torch.tensor([3, 99])
        one, two = (load(TINY, tmp_path / name)(x, t) for name in ("one", "two"))
    assert torch.equal(one, two) and bool(one.std() > 0)


@pytest.mark.skipif(not (SHIPPED / "card.json").is_file(), reason="no trained diffusion model beside the code")
def test_the_shipped_model_takes_noise_away():
    pytest.importorskip("diffusers")
    from windtunnel import images
    from windtunnel.metrics.quality import psnr
    from windtunnel.stages.purify import nchw

    clean = nchw(images.build("photodigits", "test").images[:32])
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.08, clean.shape), 0, 1).astype(np.float32)
    defense = DiffusionPurification(t=0.05).carrying(load(Diffusion(), SHIPPED))
    seen = repeat(defense, noisy, 1, generators(32)).images
    assert psnr(clean, seen).mean() > psnr(clean, noisy).mean() + 1.0
