"""Learned codecs of CompressAI with random weights from a file: loading, rounding, bits, gradients that are there."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_defenses import noise, photographs

from windtunnel import registry
from windtunnel.backend import declare_torchvision_operators, torch
from windtunnel.defenses.base import UnboundDefense, repeat
from windtunnel.defenses.compressai_codec import (
    CompressAIPurification,
    NoGradient,
    dithered,
    quantizing,
    straight_through,
)
from windtunnel.models.base import freeze
from windtunnel.networks._extras import MissingExtra
from windtunnel.networks.base import NoTraining
from windtunnel.networks.compressai_codec import CLASSES, CompressAICodec
from windtunnel.networks.provide import BadNetwork, load, provide

WIDTHS = {
    "factorized": (16, 24), "hyperprior": (16, 24), "mbt2018-mean": (16, 24), "mbt2018": (16, 16),
    "cheng2020-anchor": (12,), "elic2022-official": (16, 144), "elic2022-chandelier": (16, 144),
}  # fmt: skip
"""As narrow as they can be: the layout is the real one."""


@pytest.fixture
def compressai() -> Any:
    declare_torchvision_operators()
    return pytest.importorskip(
        "compressai.models", reason="CompressAI is optional: docs/defenses_optional.md", exc_type=ImportError
    )


def codec(architecture: str) -> CompressAICodec:
    return CompressAICodec(architecture=architecture, widths=WIDTHS[architecture])


def module_of(architecture: str, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return freeze(codec(architecture).build())


def bound(architecture: str) -> CompressAIPurification:
    return CompressAIPurification().carrying(module_of(architecture))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ------------------------------------------------------------------------------------------------- without the package


def test_without_compressai_one_is_told_how_to_get_it(monkeypatch):
    for name in ("compressai", "compressai.models"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match="'compressai' is not installed.*--no-deps compressai torch-geometric"):
        codec("factorized").build()


def test_settings_are_checked_before_anything_is_imported():
    with pytest.raises(ValueError, match="unknown architecture 'elic'; known: factorized"):
        CompressAICodec(architecture="elic")
    with pytest.raises(ValueError, match="quality starts at 1"):
        CompressAICodec(architecture="mbt2018", quality=0)
    with pytest.raises(UnboundDefense):
        CompressAIPurification().purify(photographs())
    with pytest.raises(NoTraining, match="give its weights"):
        codec("factorized").train(torch.nn.Identity(), None, seed=0)  # type: ignore[arg-type]
    card = registry.card("defense", "compressai_codec")
    assert card.constants["rules"] == CompressAIPurification.rules and card.constants["is_learned"] is True
    assert set(WIDTHS) == set(CLASSES)


def test_quantisers_by_hand():
    x = torch.tensor([[0.4, 0.6, -1.2]], requires_grad=True)
    means = torch.tensor([[0.2, 0.2, 0.2]], requires_grad=True)
    found = straight_through(x, "dequantize", means)
    torch.testing.assert_close(found.detach(), torch.tensor([[0.2, 0.2, -0.8]]))
    gradients = torch.autograd.grad(found.sum(), (x, means), allow_unused=True)
    assert gradients[0].tolist() == [[1.0, 1.0, 1.0]] and (gradients[1] is None or not gradients[1].any())
    wide = torch.zeros(3, 4, 20, 20)
    seen = dithered(wide, "dequantize")
    assert torch.equal(seen[0], seen[2]) and float(seen.min()) >= -0.5 and float(seen.max()) < 0.5
    assert abs(float(seen[0].var()) - 1 / 12) < 0.005


# --------------------------------------------------------------------------------------------------- defense, gradients


@pytest.mark.parametrize("architecture", sorted(CLASSES))
def test_hard_rounding_has_no_gradient_and_the_rules_have_one(compressai, architecture):
    defense, images = bound(architecture), photographs(2)
    x = torch.tensor(np.pad(images, ((0, 0), (0, 0), (0, 32), (0, 32)), mode="edge"), requires_grad=True)
    (bare,) = torch.autograd.grad(defense.module(x)["x_hat"].square().sum(), x, allow_unused=True)
    rounds_itself = architecture.startswith("elic")
    assert bool((bare != 0).any()) == rounds_itself, "the reason for the rules"
    real = defense.purify(images).images
    rules = defense.backward_rules()
    assert tuple(rules) == defense.rules
    gradients = {}
    for name, rule in rules.items():
        x = torch.tensor(images, requires_grad=True)
        value = rule(x)
        assert value.shape == x.shape
        if name == "straight-through":
            np.testing.assert_allclose(value.detach().numpy(), real, atol=1e-6)
        (gradient,) = torch.autograd.grad((value - 0.5).square().sum(), x)
        assert bool(torch.isfinite(gradient).all()) and bool((gradient.flatten(1).abs().amax(1) > 0).all()), name
        gradients[name] = gradient
        alone = torch.tensor(images[1:], requires_grad=True)
        (by_itself,) = torch.autograd.grad((rule(alone) - 0.5).square().sum(), alone)
        torch.testing.assert_close(by_itself[0], gradient[1], rtol=1e-3, atol=1e-6, msg=f"{name} knows its neighbours")
    assert torch.equal(gradients["straight-through"], gradients["dither"]) == rounds_itself
    assert not any("quantize" in part.__dict__ for part in defense.module.modules()), "put back"
    assert np.array_equal(defense.purify(images).images, real)


def test_contract_of_purify(compressai):
    defense, images = bound("mbt2018-mean"), photographs(18)
    before = images.copy()
    whole = defense.purify(images)
    assert whole.images.dtype == np.float32 and whole.images.shape == images.shape and np.array_equal(images, before)
    assert whole.images.flags.c_contiguous and whole.images.min() >= 0 and whole.images.max() <= 1
    assert whole.file_bits is None and whole.payload_bits.dtype == np.int64 and (whole.payload_bits > 0).all()
    order = np.random.default_rng(0).permutation(18)
    mixed = defense.purify(np.ascontiguousarray(images[order]))
    assert np.array_equal(mixed.images, whole.images[order])
    assert np.array_equal(mixed.payload_bits, whole.payload_bits[order])
    alone = defense.purify(images[17:])
    assert np.array_equal(alone.images[0], whole.images[17]) and alone.payload_bits[0] == whole.payload_bits[17]
    empty = defense.purify(images[:0])
    assert empty.images.shape == (0, 3, 32, 32) and empty.payload_bits.shape == (0,)
    assert repeat(defense, noise(2, 21, 70), 2).images.shape == (2, 3, 21, 70)
    with pytest.raises(ValueError, match="a defense takes"):
        defense.purify(images + np.float32(1))


def test_a_codec_without_a_gradient_is_refused(compressai):
    module = module_of("factorized")
    with torch.no_grad():
        module.g_s[-1].weight.zero_()  # whatever comes in, one colour comes out
    with pytest.raises(NoGradient, match="straight-through"):
        CompressAIPurification().carrying(module).backward_rules()


def test_other_models_are_left_alone_even_after_an_error(compressai):
    one, two = module_of("hyperprior"), module_of("hyperprior", seed=1)
    with pytest.raises(RuntimeError, match="on the way"), quantizing(one, straight_through):
        changed = [m for m in one.modules() if "quantize" in m.__dict__]
        assert len(changed) == 2 and not any("quantize" in m.__dict__ for m in two.modules())
        raise RuntimeError("on the way")
    assert not any("quantize" in m.__dict__ for m in one.modules())


@pytest.mark.parametrize("architecture", ["factorized", "mbt2018-mean"])
def test_the_coder_writes_what_was_estimated_and_decodes_to_the_same_picture(compressai, architecture):
    """With the numpy that is installed here, whatever the package's metadata ask for."""
    defense = bound(architecture)
    defense.module.update(force=True)
    images = noise(1, 192, 128)
    found = defense.purify(images)
    packed = defense.module.compress(torch.from_numpy(images))
    written = 8 * sum(len(part[0]) for part in packed["strings"])
    assert abs(written - found.payload_bits[0]) < 0.03 * written + 128
    decoded = defense.module.decompress(packed["strings"], packed["shape"])["x_hat"].clamp(0, 1).numpy()
    np.testing.assert_allclose(decoded, found.images, atol=1e-5)


def test_qualities_are_those_of_compressai(compressai):
    assert CompressAICodec(architecture="factorized", quality=1).build().N == 128
    with pytest.raises(ValueError, match="has qualities 1 to 6, not 7"):
        CompressAICodec(architecture="cheng2020-anchor", quality=7).build()


# ---------------------------------------------------------------------------------------------------- weights of a file


def stored(tmp_path: Path, network: CompressAICodec, state: dict[str, Any], **change: Any) -> tuple[Path, dict]:
    file = tmp_path / "weights.pth.tar"
    torch.save({"state_dict": state}, file)
    card = provide(
        network, tmp_path / "network", identity={}, digest="0" * 64, seed=0, origin="file", file=file,
        **{"sha256": digest(file), **change},
    )  # fmt: skip
    return tmp_path / "network", card


@pytest.mark.parametrize("architecture", ["factorized", "mbt2018", "elic2022-official"])
@pytest.mark.parametrize("updated", [False, True])
def test_weights_of_a_file_are_the_module_s(compressai, tmp_path, architecture, updated):
    module = module_of(architecture, seed=7)
    if updated:  # tables of the entropy coder: buffers that a fresh model has with length zero
        module.update(force=True)
    folder, card = stored(tmp_path, codec(architecture), module.state_dict())
    assert card["origin"] == "file" and card["metrics"] == {}
    found = CompressAIPurification().carrying(load(codec(architecture), folder)).purify(photographs(2))
    wanted = CompressAIPurification().carrying(module).purify(photographs(2))
    assert np.array_equal(found.images, wanted.images) and np.array_equal(found.payload_bits, wanted.payload_bits)


def test_names_of_old_releases_and_of_several_devices_are_understood(compressai, tmp_path):
    module = module_of("hyperprior", seed=7)
    old = {}
    for name, tensor in module.state_dict().items():
        for new, was in (("matrices.", "_matrices."), ("biases.", "_biases."), ("factors.", "_factors.")):
            name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{was}")
        old[f"module.{name}"] = tensor
    folder, _ = stored(tmp_path, codec("hyperprior"), old)
    wanted = module.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in load(codec("hyperprior"), folder).state_dict().items())


def test_the_public_elic_re_implementation_loads(compressai, tmp_path):
    """Its names, written down from its source: flat lists, one bottleneck and one Gaussian coder for all groups."""
    module = module_of("elic2022-chandelier", seed=7)
    module.update(force=True)
    flat, codec_of_y = {}, "latent_codec.y.latent_codec.y"
    for name, tensor in module.state_dict().items():
        part = name.split(".")
        if part[0] in ("g_a", "g_s"):
            flat[name] = tensor
        elif part[:2] == ["latent_codec", "hyper"]:
            flat[".".join(part[2:])] = tensor
        elif part[2] == "channel_context":  # y1 .. y4
            flat[".".join(["cc_transforms", str(int(part[3][1:]) - 1), *part[4:]])] = tensor
        elif part[4] in ("context_prediction", "entropy_parameters"):  # y0 .. y4
            there = {"entropy_parameters": "ParamAggregation"}.get(part[4], part[4])
            flat[".".join([there, part[3][1:], *part[5:]])] = tensor
        else:
            assert name.startswith(codec_of_y) and part[5] == "gaussian_conditional"
            flat[".".join(part[5:])] = tensor
    kinds = Counter(name.split(".")[0] for name in flat)
    assert kinds["cc_transforms"] == 4 * 6 and kinds["ParamAggregation"] == 5 * 6 and kinds["h_a"] == kinds["h_s"] == 6
    folder, _ = stored(tmp_path, codec("elic2022-chandelier"), flat)
    found, wanted = load(codec("elic2022-chandelier"), folder).state_dict(), module.state_dict()
    assert set(found) == set(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_a_file_that_is_not_the_declared_one_is_refused(compressai, tmp_path):
    state = module_of("factorized").state_dict()
    with pytest.raises(BadNetwork, match="expected " + "0" * 64):
        stored(tmp_path, codec("factorized"), state, sha256="0" * 64)
    with pytest.raises(BadNetwork, match="need their digest"):
        stored(tmp_path, codec("factorized"), state, sha256=None)
    with pytest.raises(BadNetwork, match="does not hold weights of CompressAICodec"):
        stored(tmp_path, CompressAICodec(architecture="factorized", widths=(8, 24)), state)
    with pytest.raises(BadNetwork, match="does not hold weights of CompressAICodec"):
        stored(tmp_path, codec("hyperprior"), state)
    assert not (tmp_path / "network" / "card.json").exists()


class Trap:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code from a file of weights was run')",))


def test_pickled_code_is_refused(compressai, tmp_path):
    file = tmp_path / "weights.pth"
    with file.open("wb") as stream:
        pickle.dump({"state_dict": Trap()}, stream, protocol=2)
    with pytest.raises(BadNetwork, match="more than tensors, which is refused"):
        provide(
            codec("factorized"), tmp_path / "n", identity={}, digest="0" * 64, seed=0, origin="file", file=file,
            sha256=digest(file),
        )  # fmt: skip


def test_from_a_config_to_a_purified_picture(compressai, tmp_path):
    """The way of a user: a file beside the config, its digest in it."""
    from windtunnel.plan import Plan
    from windtunnel.stages.network import network, provide_or_raise

    module = module_of("mbt2018-mean", seed=5)
    torch.save(module.state_dict(), tmp_path / "mine.pth")
    config = {
        "catalogue": {
            "networks": {
                "mine": {
                    "method": "compressai_codec", "weights": "mine.pth", "sha256": digest(tmp_path / "mine.pth"),
                    "settings": {"architecture": "mbt2018-mean", "widths": [16, 24]},
                }
            },
            "defenses": {"mine": {"method": "compressai_codec", "network": "mine"}},
        },
        "blocks": [{"images": "photodigits.test", "n": 10, "models": "digits-cnn", "defenses": "mine"}],
    }  # fmt: skip
    plan = Plan.of(config, base=tmp_path)
    provide_or_raise(plan, "mine", tmp_path / "out", origin="trained")
    found = CompressAIPurification().carrying(load(network(plan, "mine"), tmp_path / "out")).purify(photographs(2))
    wanted = CompressAIPurification().carrying(module).purify(photographs(2))
    assert np.array_equal(found.images, wanted.images)
