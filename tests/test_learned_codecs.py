"""Learned codecs: the coder gives back what it was given, bits are real, gradients are those of the smooth path."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import logistic

from windtunnel import images as image_sets
from windtunnel.backend import torch
from windtunnel.defenses.base import UnboundDefense, repeat
from windtunnel.defenses.learned_codec import HEADER_BITS, LearnedCodec, ZeroGradient
from windtunnel.metrics.quality import psnr
from windtunnel.models.base import freeze
from windtunnel.models.folder import load_card
from windtunnel.networks import _codec_entropy as entropy
from windtunnel.networks import _codec_rans as rans
from windtunnel.networks._codec_modules import DECODERS, Codec
from windtunnel.networks._codec_training import detail, weight_of, zero_gradient_share
from windtunnel.networks.base import TrainingData
from windtunnel.networks.batches import in_fixed_batches
from windtunnel.networks.factorized import Factorized
from windtunnel.networks.hyperprior import Hyperprior
from windtunnel.networks.provide import load, provide
from windtunnel.plan import Plan
from windtunnel.stages.network import network as recipe_of
from windtunnel.stages.purify import nchw

KINDS = {"factorized": Factorized, "hyperprior": Hyperprior}
SMALL = {"rate": 2, "width": 8, "latents": 6, "epochs": 1, "realism_epochs": 1, "batch": 8}
FAMILIES = ("factorized-", "hyperprior-", "hyperprior64-")
RESOURCES = Path(__file__).parents[1] / "resources" / "networks"


def pictures(n: int = 6, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colours and edges on the 8-bit grid."""
    draws = np.random.default_rng(seed)
    coarse = draws.random((n, 3, -(-height // 8), -(-width // 8)))
    x = np.kron(coarse, np.ones((8, 8)))[:, :, :height, :width] * 0.7 + 0.1
    x[:, :, height // 3 : height // 2, width // 4 : 3 * width // 4] += 0.2
    return (np.rint((x + 0.01 * draws.standard_normal(x.shape)).clip(0, 1) * 255) / 255).astype(np.float32)


@cache
def untrained(kind: str, stride: int = 4, loud: float = 60.0) -> Codec:
    """A fresh codec whose latents are ``loud`` enough to be rounded to many integers, and to be escaped at times."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        codec = KINDS[kind](**SMALL, stride=stride).build()
    with torch.no_grad():
        codec.encoder[-1].weight *= loud
    return freeze(codec)


class Teacher(torch.nn.Module):
    """Features of a fixed random convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 4, stride=4)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps(x).mean(dim=(2, 3))


def training_data() -> TrainingData:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teachers = (freeze(Teacher()),)

    def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
        x = pictures(240, seed=number)
        return np.rint(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8), np.zeros(len(x), dtype=np.int64)

    return TrainingData(epoch=epoch, held_out=pictures(20, seed=99), labels=np.zeros(20, np.int64), teachers=teachers)


# ---------------------------------------------------------------- the coder


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(rans.LOWEST, rans.HIGHEST) | st.integers(-9, 9), st.integers(0, 66)), max_size=60)
)
def test_what_was_coded_is_read_back(pairs):
    starts = np.concatenate([untrained("factorized").starts()[:3], entropy.centred_starts()])
    symbols, rows = (np.array([p[i] for p in pairs], dtype=np.int64) for i in (0, 1))
    stream = rans.encode(symbols, rows, starts)
    decoder = rans.Decoder(stream, starts)
    half = len(rows) // 2
    assert np.array_equal(np.concatenate([decoder.read(rows[:half]), decoder.read(rows[half:])]), symbols)
    decoder.finish()


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 5.0])
def test_a_stream_is_as_long_as_its_information(scale):
    """Against the entropy of the integers under the logistic law, from scipy."""
    draws = np.random.default_rng(1)
    symbols = np.rint(draws.logistic(0, scale, 4000)).astype(np.int64)
    level = int(entropy.level_of(torch.tensor(float(np.log(scale)))))
    stream = rans.encode(symbols, np.full(len(symbols), level), entropy.centred_starts())
    information = -np.log2(logistic.cdf((symbols + 0.5) / scale) - logistic.cdf((symbols - 0.5) / scale)).sum()
    assert abs(8 * len(stream) - information) < 0.01 * information + 32


def test_tables_are_whole_and_nothing_is_impossible():
    for starts in (entropy.centred_starts(), untrained("factorized").starts(), untrained("hyperprior").starts()):
        assert np.all(starts[:, 0] == 0)
        assert np.all(starts[:, -1] == rans.TOTAL)
        assert np.diff(starts, axis=1).min() >= 1
    masses = np.diff(entropy.centred_starts()[20]) / rans.TOTAL
    scale = entropy.SMALLEST_SCALE * np.exp(20 * entropy.LOG_STEP)
    edges = np.arange(-entropy.REACH - 0.5, entropy.REACH + 1)
    np.testing.assert_allclose(masses[:-1], np.diff(logistic.cdf(edges / scale)), atol=130 / rans.TOTAL)


def test_a_stream_that_is_cut_or_too_long_is_refused():
    starts = entropy.centred_starts()
    symbols, rows = np.arange(-20, 20), np.full(40, 40)
    stream = rans.encode(symbols, rows, starts)
    for wrong in (b"", stream[:3]):
        with pytest.raises(rans.BadStream, match="even number"):
            rans.Decoder(wrong, starts)
    for wrong in (stream[:-2], stream + b"ab"):
        decoder = rans.Decoder(wrong, starts)
        decoder.read(rows)
        with pytest.raises(rans.BadStream, match="more"):
            decoder.finish()


def test_bits_of_the_prior_are_minus_log_of_its_mass():
    prior = untrained("factorized").prior
    y = torch.arange(-40.0, 41.0).view(1, 1, 1, -1).expand(1, prior.mean.shape[0], 1, -1)
    mass = 2.0 ** -np.array([[float(prior.bits(y[:, :, :, k : k + 1])) for k in range(81)]])
    alone = freeze(entropy.Prior(1))
    total = sum(2.0 ** -float(alone.bits(torch.full((1, 1, 1, 1), float(k)))) for k in range(-200, 201))
    assert np.all(mass > 0)
    assert total == pytest.approx(1.0, abs=1e-5)
    table = np.diff(alone.starts()[0]) / rans.TOTAL
    for k in (-3, 0, 2):
        assert table[k + entropy.REACH] == pytest.approx(2.0 ** -float(alone.bits(torch.full((1, 1, 1, 1), float(k)))),
                                                         abs=140 / rans.TOTAL)  # fmt: skip


def test_far_out_the_likelihood_is_right_and_its_gradient_alive():
    scale = torch.tensor(float(np.log(entropy.SMALLEST_SCALE)), dtype=torch.float32, requires_grad=True)
    with torch.enable_grad():
        log = entropy.log_mass(torch.tensor(30.0), scale)
        log.backward()
    lower = -29.5 / entropy.SMALLEST_SCALE  # the law's tail: the lower edge decides
    assert float(log.detach()) == pytest.approx(lower, rel=1e-5)
    assert float(scale.grad) == pytest.approx(-lower, rel=1e-5)


def test_a_scale_beyond_its_bounds_can_only_come_back():
    low, high = np.log(entropy.SMALLEST_SCALE), np.log(entropy.LARGEST_SCALE)
    for sign, wanted in ((1.0, [0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, 0.0])):
        x = torch.tensor([low - 1, 0.0, high + 1], dtype=torch.float32, requires_grad=True)
        with torch.enable_grad():
            (sign * entropy.bounded(x)).sum().backward()
        assert x.grad.tolist() == wanted
    np.testing.assert_allclose(entropy.bounded(x).detach(), [low, 0.0, high], rtol=1e-6)


# ---------------------------------------------------------------- the modules


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride, size", [(4, (32, 32)), (8, (64, 64)), (4, (21, 34))])
def test_the_stream_alone_gives_the_latents(kind, stride, size):
    codec, images = untrained(kind, stride), pictures(3, *size)
    latents = in_fixed_batches(lambda x: codec.code(codec.padded(x), rounded=True).latents, images)

    def integers(x: torch.Tensor) -> torch.Tensor:
        code = codec.code(codec.padded(x), rounded=True)
        return torch.stack([code.symbols, code.rows], dim=1)

    symbols, rows = in_fixed_batches(integers, images).transpose(1, 0, 2)
    assert len(np.unique(symbols)) > 10, "the latents say something"
    with torch.no_grad():
        for k, stream in enumerate(codec.streams(symbols, rows)):
            decoder = rans.Decoder(stream, codec.starts())
            read = codec.read(decoder, *size)
            decoder.finish()
            assert np.array_equal(read[0].numpy(), latents[k])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loud", [2.0, 20.0])
def test_coded_bits_are_the_estimated_ones(kind, loud):
    codec, images = untrained(kind, 4, loud), pictures(12)
    estimated = in_fixed_batches(lambda x: codec.code(x, rounded=True).bits, images)
    coded = LearnedCodec().carrying(codec).purify(images).payload_bits
    # scales are quantised, tables have whole 65536ths, a stream whole words
    assert np.all(np.abs(coded - estimated) < 0.02 * estimated + 32)


def test_both_decoders_have_the_same_bits_and_other_pictures():
    codec, images = untrained("hyperprior"), pictures()
    one, other = (LearnedCodec(decoder=d).carrying(codec).purify(images) for d in DECODERS)
    assert np.array_equal(one.payload_bits, other.payload_bits)
    assert np.array_equal(one.file_bits, one.payload_bits + HEADER_BITS)
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_smooth_paths_at_the_rounded_latents(kind):
    """In double: of w . decode(encode(x') - encode(x) + rounded(x)), by central differences."""
    codec = copy.deepcopy(untrained(kind)).double()
    x = torch.from_numpy(pictures(1)).double()
    draws = np.random.default_rng(4)
    weights = torch.from_numpy(draws.standard_normal(x.shape))
    with torch.enable_grad():
        start = x.clone().requires_grad_(True)
        (found,) = torch.autograd.grad((codec.reconstruct(start, "distortion")[0] * weights).sum(), start)
    with torch.no_grad():
        shift = codec.code(x, rounded=True).latents - codec.encoder(x - 0.5)

        def smooth(at: torch.Tensor) -> float:
            return float((codec.decode(codec.encoder(at - 0.5) + shift, "distortion", (32, 32)) * weights).sum())

        for _ in range(5):
            direction = torch.from_numpy(draws.standard_normal(x.shape))
            step = 1e-7
            wanted = (smooth(x + step * direction) - smooth(x - step * direction)) / (2 * step)
            assert float((found * direction).sum()) == pytest.approx(wanted, rel=1e-3, abs=1e-3 * float(found.norm()))
    assert zero_gradient_share(untrained(kind), pictures(), "distortion") == 0


# ---------------------------------------------------------------- the defense


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (21, 34)])
def test_purify_keeps_the_contract(kind, size):
    defense, images = LearnedCodec().carrying(untrained(kind)), pictures(18, *size)
    before, result = images.copy(), defense.purify(images)
    assert np.array_equal(images, before)
    assert result.images.shape == images.shape
    assert result.images.dtype == np.float32
    assert result.images.flags.c_contiguous
    assert np.array_equal(np.rint(result.images * np.float32(255)) / np.float32(255), result.images)
    assert result.payload_bits.dtype == result.file_bits.dtype == np.int64
    again = defense.purify(images)
    assert np.array_equal(again.images, result.images)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = defense.purify(np.ascontiguousarray(images[order]))
    assert np.array_equal(shuffled.images, result.images[order])
    assert np.array_equal(shuffled.payload_bits, result.payload_bits[order])
    for row in (0, 17):
        alone = defense.purify(images[row : row + 1])
        assert np.array_equal(alone.images[0], result.images[row])
        assert alone.payload_bits[0] == result.payload_bits[row]
    for wrong in (images.astype(np.float64), images[0], images + np.float32(1)):
        with pytest.raises(ValueError, match="a defense takes"):
            defense.purify(wrong)
    empty = defense.purify(images[:0])
    assert empty.images.shape == (0, 3, *size)
    assert empty.payload_bits.shape == (0,)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_rules_have_the_real_value_and_a_gradient(decoder, rounds):
    codec = untrained("hyperprior", 4, 2.0)  # gentle latents: a last bit seldom decides
    defense, images = LearnedCodec(decoder=decoder).carrying(codec), pictures(16)
    rules = defense.backward_rules(rounds)
    assert tuple(rules) == LearnedCodec.rules
    real = repeat(defense, images, rounds).images
    gradients = {}
    with torch.enable_grad():
        for name, rule in rules.items():
            x = torch.from_numpy(images).requires_grad_(True)
            y = rule(x)
            (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, 32)).sum(), x)
            assert y.shape == x.shape
            assert bool(gradient.isfinite().all())
            assert bool((gradient.flatten(1).abs().amax(1) > 0).all()), name
            gradients[name] = gradient
            if name == "surrogate-n":
                off = np.abs(y.detach().numpy() - real) > 1e-6
                assert off.mean() < 0.01
    assert torch.equal(gradients["surrogate-n"], gradients["surrogate-1"]) == (rounds == 1)
    assert not torch.equal(gradients["other-decoder"], gradients["surrogate-1"])
    other = LearnedCodec(decoder=DECODERS[1 - DECODERS.index(decoder)]).carrying(codec)
    with torch.enable_grad():
        x = torch.from_numpy(images).requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            (other.backward_rules()["surrogate-1"](x) * torch.linspace(-1, 1, 32)).sum(), x
        )
    assert torch.equal(gradient, gradients["other-decoder"])


def test_a_codec_without_gradient_is_not_attacked_in_silence():
    codec = copy.deepcopy(untrained("factorized"))
    with torch.no_grad():
        for parameter in codec.distortion[0].parameters():
            parameter.zero_()
    rule = LearnedCodec().carrying(codec).backward_rules()["surrogate-1"]
    x = torch.from_numpy(pictures(2)).requires_grad_(True)
    with torch.enable_grad(), pytest.raises(ZeroGradient, match="exactly 0"):
        rule(x).sum().backward()
    with torch.enable_grad():  # nothing came in: that is not the codec's doing
        (0.0 * rule(x)).sum().backward()


def test_a_defense_without_its_network_says_so():
    with pytest.raises(UnboundDefense, match="carrying"):
        LearnedCodec().purify(pictures(1))
    with pytest.raises(TypeError, match="'factorized' or 'hyperprior', not a Conv2d"):
        LearnedCodec().carrying(torch.nn.Conv2d(3, 3, 1)).purify(pictures(1))
    for wrong in (lambda: LearnedCodec(decoder="best"), lambda: Factorized(rate=0), lambda: Hyperprior(rate=5),
                  lambda: Hyperprior(rate=1, epochs=0), lambda: Factorized(rate=1, stride=6).build()):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            wrong()


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_gives_the_same_bytes_again(kind, tmp_path):
    network, data = KINDS[kind](**SMALL), training_data()
    common = {"identity": {"kind": kind}, "digest": "0" * 64, "seed": 1, "origin": "trained", "data": lambda: data}
    card = provide(network, tmp_path / "a", **common)
    assert provide(network, tmp_path / "b", **common) == card
    for file in ("card.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fresh = freeze(network.build())

    def loss(codec: Codec) -> float:
        x = torch.from_numpy(data.held_out)
        decoded, code = codec.reconstruct(x, "distortion")
        error = (decoded - x).square().mean()
        return float(code.bits.mean() / 1024 + weight_of(network.rate) * 255**2 * error)

    trained = load(network, tmp_path / "a")
    with torch.no_grad():
        assert loss(trained) < 0.9 * loss(fresh)
        x = torch.from_numpy(data.held_out)
        assert not torch.equal(trained.reconstruct(x, "realism")[0], trained.reconstruct(x, "distortion")[0])
    metrics = card["metrics"]
    assert metrics["distortion"]["psnr"] > metrics["realism"]["psnr"] - 0.5
    assert metrics["distortion"]["zero_gradient"] == 0
    assert metrics["bpp"] == pytest.approx(metrics["bpp_estimated"], rel=0.02, abs=32 / 1024)


def test_the_second_phase_moves_decoders_only(tmp_path):
    data = training_data()
    states = []
    for realism_epochs in (0, 1):
        network = Factorized(**{**SMALL, "realism_epochs": realism_epochs}, stride=8)
        folder = tmp_path / str(realism_epochs)
        provide(network, folder, identity={}, digest="0" * 64, seed=1, origin="trained", data=lambda: data)
        states.append(load(network, folder).state_dict())
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {name for name in states[0] if name.startswith(("realism.", "distortion."))}
    copies = [name for name in changed if name.startswith("realism.")]
    assert all(torch.equal(states[0][n], states[0][n.replace("realism", "distortion")]) for n in copies)


def test_detail_of_a_blurred_picture_is_less():
    images = pictures(4)
    blurred = (images + np.roll(images, 1, 2) + np.roll(images, 1, 3)) / 3
    assert 0 < detail(blurred) < detail(images)
    assert detail(np.full((1, 3, 8, 8), 0.4, np.float32)) == 0


# ---------------------------------------------------------------- what is shipped


def shipped() -> list[str]:
    return sorted(p.parent.name for p in RESOURCES.glob("*/card.json") if p.parent.name.startswith(FAMILIES))


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_codec_is_what_its_card_says(name):
    plan = Plan.of({"blocks": [{"images": "photodigits.test", "models": "digits-cnn"}]}, source="test")
    card = load_card(RESOURCES / name)
    assert card["recipe_digest"] == plan.network_digest(name), f"python -m windtunnel.networks.ship {name}"
    metrics, codec = card["metrics"], load(recipe_of(plan, name), RESOURCES / name)
    assert metrics["bpp"] == pytest.approx(metrics["bpp_estimated"], rel=0.02, abs=32 / 1024)
    assert metrics["realism"]["psnr"] < metrics["distortion"]["psnr"]
    # at fine rates both are near the originals: the realistic decoder may not be *clearly* farther than the other
    error = sum(metrics[d]["kid_error"] ** 2 for d in ("realism", "distortion")) ** 0.5
    assert metrics["realism"]["kid"] < metrics["distortion"]["kid"] + 2 * error
    assert metrics["realism"]["detail"] > metrics["distortion"]["detail"]
    dataset = plan.catalogue.network(name).entry.dataset
    x = nchw(image_sets.build(dataset, "fit").images)[:64]
    for decoder in DECODERS:
        assert metrics[decoder]["zero_gradient"] == 0
        purified = LearnedCodec(decoder=decoder).carrying(codec).purify(x)
        assert psnr(x, purified.images).mean() == pytest.approx(metrics[decoder]["psnr"], abs=1.0)
        assert purified.payload_bits.mean() / x[0, 0].size == pytest.approx(metrics["bpp"], rel=0.1)


def test_rate_and_fidelity_rise_together():
    """Over every two shipped rates of one family, first seed."""
    cards = {name: load_card(RESOURCES / name)["metrics"] for name in shipped() if "-s" not in name}
    pairs = 0
    for low, high in itertools.combinations(sorted(cards), 2):
        if low.rsplit("-", 1)[0] == high.rsplit("-", 1)[0]:
            pairs += 1
            assert cards[low]["bpp"] < cards[high]["bpp"]
            assert cards[low]["distortion"]["psnr"] < cards[high]["distortion"]["psnr"]
    if not pairs:
        pytest.skip("no family is shipped at two rates")


def test_catalogue_names_lead_to_networks():
    plan = Plan.of({"blocks": [{"images": "photodigits.test", "models": "digits-cnn"}]}, source="test")
    carried = {
        "hyperprior-2-s1-x3": "hyperprior-2-s1",
        "hyperprior-real-2": "hyperprior-2",
        "factorized-3": "factorized-3",
        "hyperprior64-real-1-s2": "hyperprior64-1-s2",
    }
    for name, network in carried.items():
        choice = plan.catalogue.defense(name)
        assert choice.network == network
        assert choice.settings["decoder"] == ("realism" if "-real-" in name else "distortion")
    for name in ("factorized", "hyperprior", "hyperprior64"):
        entry = plan.catalogue.network(f"{name}-1").entry
        assert "digits-cnn" not in entry.teachers, "the judged model teaches no codec"
