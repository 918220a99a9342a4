"""Trained denoisers and the camera pipeline: their parts against closed forms, their training against itself."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from windtunnel import images, registry
from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, UnboundDefense, repeat
from windtunnel.defenses.bilateral import Bilateral
from windtunnel.defenses.camera_pipeline import CameraPipelineDefense
from windtunnel.defenses.denoiser import DenoiserDefense
from windtunnel.defenses.gaussian import Gaussian
from windtunnel.models.base import freeze
from windtunnel.networks import _bayer, _pairs, _training
from windtunnel.networks.autoencoder import Autoencoder
from windtunnel.networks.base import Network, TrainingData
from windtunnel.networks.camera import CameraNetwork
from windtunnel.networks.cdd_red import CddRed
from windtunnel.networks.dncnn import DnCNN
from windtunnel.networks.provide import load, provide

SHIPPED = Path("resources/networks")
QUICK = {"steps": 60, "batch": 8, "learning_rate": 2e-3}
SMALL: dict[str, Network] = {
    "dncnn": DnCNN(depth=4, width=8, **QUICK),
    "autoencoder": Autoencoder(bottleneck=4, width=8, **QUICK),
    "camera": CameraNetwork(depth=3, width=16, **QUICK),
    "cdd_red": CddRed(depth=4, width=8, attack_steps=2, **(QUICK | {"learning_rate": 1e-2})),
}


@cache
def pictures(n: int = 20, height: int = 16, width: int = 16, texture: float = 0.0) -> np.ndarray:
    """Smooth random colours with an edge, and grey texture if asked; [N, 3, H, W] float32 in [.1, .9], read-only."""
    draws = np.random.default_rng(3)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    base, slope, step = draws.uniform(-1, 1, (3, n, 3, 1, 1))
    edge = np.where(columns > draws.uniform(0.2, 0.8, (n, 1, 1, 1)), step, 0)
    grey = texture * draws.uniform(-1, 1, (n, 1, height, width))
    result = (0.5 + 0.15 * (base + slope * rows) + 0.1 * edge + grey).clip(0.1, 0.9).astype(np.float32)
    result.setflags(write=False)
    return result


class Brightness(torch.nn.Module):
    """Two classes: is the mean of a picture above its threshold?"""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = self.scale * (x.mean(dim=(1, 2, 3)) - self.threshold)
        return torch.stack([-above, above, torch.full_like(above, -10.0)], dim=1)


class Checker(Brightness):
    """Two classes: the sign of a chequered pattern, of which a smooth picture has next to nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.arange(x.shape[2])[:, None], torch.arange(x.shape[3])[None, :]
        pattern = 1.0 - 2.0 * ((rows + columns) % 2)
        return super().forward(x * pattern + self.threshold)


@cache
def training_data(texture: float = 0.0) -> TrainingData:
    pool = np.rint(pictures(64, texture=texture) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([9, number]).permutation(len(pool))
        return pool[order], np.zeros(len(pool), dtype=np.int64)

    return TrainingData(
        epoch=epoch,
        held_out=pictures(24, texture=texture),
        labels=np.zeros(24, dtype=np.int64),
        teachers=(freeze(Checker()), freeze(Brightness())),
    )


def fresh(network: Network, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build()


def scrambled(network: Network) -> torch.nn.Module:
    """A frozen module none of whose weights is zero: answers and gradients depend on all of it."""
    module = fresh(network)
    draws = torch.Generator().manual_seed(7)
    for value in module.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=draws)
    return freeze(module)


def carrying(network: str, blend: float = 0.5) -> Defense:
    method = CameraPipelineDefense(blend=blend) if network == "camera" else DenoiserDefense()
    return method.carrying(scrambled(SMALL[network]))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("name", ["dncnn", "autoencoder", "camera"])
def test_training_lowers_the_error_on_held_out_pictures(name):
    network, data = SMALL[name], training_data(0.1 if name == "camera" else 0.0)
    before = network.measure(freeze(fresh(network)), data)
    module = fresh(network)
    module.train()
    network.train(module, data, seed=0)
    after = network.measure(freeze(module), data)
    key = {"dncnn": "psnr_denoised_25", "autoencoder": "psnr_clean", "camera": "psnr_clean"}[name]
    assert after[key] > before[key] + 0.2
    json.dumps(after)


def test_training_of_cdd_red_lowers_its_own_loss_on_fixed_pairs():
    network, data = SMALL["cdd_red"], training_data()
    pairs = next(
        _pairs.attacked_batches(
            data, data.teachers[:1], size=40, kinds=("pgd", "fgsm", "cw"), largest_eps_255=12, steps=2, seed=5
        )
    )
    module, losses = fresh(network), []
    for trained in (False, True):
        if trained:
            module.train()
            network.train(module, data, seed=0)
        freeze(module)
        losses.append(float(network.loss(module(pairs.attacked), pairs, data.teachers[-1])))
        module.requires_grad_(True)
    assert losses[1] < losses[0] - 0.001
    metrics = network.measure(freeze(module), data)
    assert metrics["psnr_denoised"] > metrics["psnr_attacked"] + 2
    assert 0 <= metrics["pa_benign"] <= 1
    assert metrics["fooled"] > 0, "the attack of the card fools its victim"
    json.dumps(metrics)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_same_recipe_writes_the_same_bytes(name, tmp_path):
    network, data = replace(SMALL[name], steps=4), training_data()
    contents = []
    for folder in ("a", "b"):
        torch.manual_seed(len(folder) + hash(folder) % 7)  # whatever the caller's random state is
        state = torch.random.get_rng_state()
        provide(
            network, tmp_path / folder, identity={"name": name}, digest="0" * 64, seed=3, origin="trained",
            data=lambda: data,
        )  # fmt: skip
        assert torch.equal(torch.random.get_rng_state(), state)
        contents.append([p.read_bytes() for p in sorted((tmp_path / folder).iterdir())])
    assert contents[0] == contents[1]
    other = fresh(network)
    other.train()
    network.train(other, data, seed=4)
    module = load(network, tmp_path / "a")
    pairs = zip(other.parameters(), module.parameters(), strict=True)
    assert any(not torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs), "the seed decides the weights"


def test_batches_go_through_epochs_without_losing_a_picture():
    data = training_data()
    supply = _training.batches(data, 40)
    seen = np.concatenate([next(supply) for _ in range(3)])
    wanted = np.concatenate([data.epoch(e)[0] for e in (0, 1)]).transpose(0, 3, 1, 2).astype(np.float32)
    assert np.array_equal(seen, (wanted / np.float32(255))[:120])


def test_noise_has_the_deviation_asked_for_per_picture_and_stays_in_the_box():
    flat = np.full((2, 3, 64, 64), 0.5, dtype=np.float32)
    noisy = _training.with_noise(flat, np.array([0.02, 0.1]), np.random.default_rng(0))
    assert np.allclose((noisy - flat).std(axis=(1, 2, 3)), [0.02, 0.1], rtol=0.03)
    assert _training.with_noise(flat, 1.0, np.random.default_rng(0)).max() == 1


def test_a_loss_that_is_not_finite_is_an_error():
    module = torch.nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="learning rate"):
        _training.descend(module, iter([0]), lambda _: module.weight.sum() * torch.nan, steps=1, learning_rate=0.1)


# ---------------------------------------------------------------- CDD-RED


def test_the_loss_of_cdd_red_equals_a_computation_by_hand():
    draws = np.random.default_rng(0)
    clean, attacked, denoised = draws.uniform(0.3, 0.7, (3, 6, 3, 4, 4)).astype(np.float32)
    attacked += np.where(np.arange(6) % 2, 0.2, -0.2).astype(np.float32)[:, None, None, None]
    f, network = freeze(Brightness()), CddRed(benign_weight=0.3, adversarial_weight=0.7)
    found = network.loss(
        torch.from_numpy(denoised), _pairs.Pairs(torch.from_numpy(clean), torch.from_numpy(attacked)), f
    )

    def logits(x: np.ndarray) -> np.ndarray:
        above = 20 * (x.mean(axis=(1, 2, 3)).astype(np.float64) - 0.5)
        return np.stack([-above, above, np.full_like(above, -10)], axis=1)

    def cross_entropy(z: np.ndarray, y: np.ndarray) -> float:
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), y]).mean())

    wanted = np.abs(denoised - clean).mean(dtype=np.float64)
    wanted += 0.3 * cross_entropy(logits(denoised), logits(clean).argmax(1))
    wanted += 0.7 * cross_entropy(logits(attacked - denoised + clean), logits(attacked).argmax(1))
    assert logits(attacked).argmax(1).tolist() != logits(clean).argmax(1).tolist()
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    bare = CddRed(benign_weight=0.0, adversarial_weight=0.0).loss(
        torch.from_numpy(denoised), _pairs.Pairs(torch.from_numpy(clean), torch.from_numpy(attacked)), f
    )
    assert float(bare) == pytest.approx(np.abs(denoised - clean).mean(dtype=np.float64), rel=1e-6)


def test_pairs_whose_label_an_augmentation_changes_are_dropped():
    """A bright picture cropped to a half is dark; a dark one stays dark; x' counts as much as x."""
    bright, dark = 0.6, 0.3
    clean = torch.tensor([bright, dark, dark])[:, None, None, None].expand(3, 3, 8, 8)
    attacked = torch.tensor([bright, dark, bright])[:, None, None, None].expand(3, 3, 8, 8)
    pairs = _pairs.Pairs(clean, attacked)
    half = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    half[..., :4] = True
    changed = _pairs.crop_and_pad(pairs, half)
    assert torch.equal(changed.clean[..., :4], clean[..., :4])
    assert float(changed.attacked[..., 4:].abs().max()) == 0
    assert _pairs.surviving(Brightness(), pairs, changed).tolist() == [False, True, False]


def test_what_survives_is_all_that_the_training_sees(monkeypatch):
    """With a classifier that the augmentation always sways, the network sees the unchanged pairs and no other."""
    seen = []
    network = CddRed(depth=3, width=4, steps=2, batch=8, attack_steps=1)
    for kept in (0, 3):
        rows = torch.arange(8) < kept
        monkeypatch.setattr("windtunnel.networks.cdd_red.surviving", lambda f, a, b, rows=rows: rows)
        module = fresh(network)
        module.register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
        network.train(module, training_data(), seed=0)
    assert seen == [8, 8, 11, 11]


def test_augmentations_treat_both_pictures_alike():
    x = torch.from_numpy(pictures(8).copy())
    shifted = _pairs.Pairs(x, x + 0.05)
    changed = _pairs.augmented(shifted, np.random.default_rng(1))
    inside = changed.clean != 0
    assert torch.allclose(changed.attacked[inside] - changed.clean[inside], torch.tensor(0.05), atol=1e-6)
    assert bool((changed.attacked[~inside] == 0).all())
    assert bool((changed.clean[1::2] != 0).all()), "mixed pictures have no empty part"
    assert not torch.equal(changed.clean[1::2], x[1::2])


def test_cut_mix_takes_the_window_from_one_and_the_rest_from_the_other():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 3, 6, 6)
    keep = _pairs.windows(3, 6, 6, np.random.default_rng(0))
    mixed = _pairs.cut_mix(_pairs.Pairs(x, x + 10), keep, torch.tensor([1, 2, 0]))
    for row, other in enumerate((1, 2, 0)):
        whole = keep[row].expand(3, 6, 6)
        assert bool((mixed.clean[row][whole] == row).all())
        assert bool((mixed.clean[row][~whole] == other).all())
        assert bool((mixed.attacked[row][~whole] == other + 10).all())


def test_windows_are_rectangles_of_at_least_half_a_side():
    for keep in _pairs.windows(50, 10, 16, np.random.default_rng(2)).numpy()[:, 0]:
        rows, columns = np.flatnonzero(keep.any(1)), np.flatnonzero(keep.any(0))
        assert len(rows) >= 5
        assert len(columns) >= 8
        assert keep.sum() == len(rows) * len(columns)
        assert np.array_equal(rows, np.arange(rows[0], rows[-1] + 1))


@pytest.mark.parametrize("kind", ["pgd", "fgsm", "cw"])
def test_training_attacks_stay_in_the_ball_fool_and_know_rows_by_name(kind):
    victim, x = freeze(Brightness()), pictures(20)
    near = (
        x
        - x.mean(axis=(1, 2, 3), keepdims=True)
        + np.float32(0.5)
        + np.linspace(-0.02, 0.02, 20)[:, None, None, None].astype(np.float32)
    )
    settings = {"kind": kind, "eps": 8 / 255, "steps": 5, "seed": 0}
    moved = _pairs.attacked(victim, near, name="a", **settings)
    assert np.abs(moved - near).max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        before, after = (victim(torch.from_numpy(v)).argmax(1) for v in (near, moved))
    assert bool((before != after).all())
    assert np.array_equal(_pairs.attacked(victim, near, name="a", **settings), moved)


# ---------------------------------------------------------------- the camera


def test_the_mosaic_keeps_one_colour_per_pixel_in_rggb():
    colours = torch.arange(3.0)[None, :, None, None].expand(1, 3, 6, 8) + 1
    raw = _bayer.mosaic(colours)[0, 0]
    assert raw[:2, :2].tolist() == [[1, 2], [2, 3]]
    assert torch.equal(raw, raw[:2, :2].repeat(3, 4))
    assert torch.equal(_bayer.colour_filter(6, 8, raw).sum(0), torch.ones(6, 8))


def test_bilinear_demosaic_equals_means_of_the_nearest_seen_neighbours():
    raw = torch.from_numpy(np.random.default_rng(0).random((1, 1, 6, 7)))
    found = _bayer.demosaic_bilinear(raw)[0].numpy()
    seen = _bayer.colour_filter(6, 7, raw).numpy().astype(bool)
    values = raw[0, 0].numpy()
    for colour in range(3):
        for row in range(6):
            for column in range(7):
                if seen[colour, row, column]:
                    wanted = values[row, column]
                else:
                    near = [
                        (abs(r - row) + abs(c - column), values[r, c])
                        for r in range(max(row - 1, 0), min(row + 2, 6))
                        for c in range(max(column - 1, 0), min(column + 2, 7))
                        if seen[colour, r, c]
                    ]
                    least = min(d for d, _ in near)
                    wanted = np.mean([v for d, v in near if d == least])
                assert found[colour, row, column] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (32, 32)])
def test_a_constant_picture_survives_the_conventional_camera(size):
    module = fresh(SMALL["camera"])
    colour = torch.tensor([0.1, 0.55, 0.93]).view(1, 3, 1, 1).expand(1, 3, *size)
    with torch.no_grad():
        assert torch.allclose(module(colour, blend=0.0), colour, atol=1e-6)
        assert torch.allclose(module(colour), colour, atol=1e-6), "untrained, the learned one is the conventional one"
        raw = _bayer.mosaic(colour)
    assert torch.allclose(_bayer.demosaic_bilinear(raw), colour, atol=1e-7)


def test_the_transfer_curve_is_srgb_and_invertible_with_finite_slopes():
    values = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    linear = _bayer.linear_light(values)
    assert torch.allclose(_bayer.display_light(linear), values, atol=1e-6)
    assert float(linear[500].detach()) == pytest.approx(((0.5 + 0.055) / 1.055) ** 2.4)
    for curve in (_bayer.linear_light, _bayer.display_light):
        (slope,) = torch.autograd.grad(curve(values).sum(), values)
        assert bool(torch.isfinite(slope).all())
        assert float(slope.min()) > 0
        assert float(slope.max()) < 13


def test_raw_bits_quantise_to_levels_and_let_the_gradient_through():
    module = freeze(fresh(replace(SMALL["camera"], raw_bits=3)))
    x = torch.from_numpy(pictures(2).copy()).requires_grad_()
    raw = module.raw(x)
    assert torch.allclose(raw * 7, (raw * 7).round(), atol=1e-5)
    smooth = freeze(fresh(SMALL["camera"]))
    ours, exact = (torch.autograd.grad(m.raw(x).sum(), x)[0] for m in (module, smooth))
    assert torch.equal(ours, exact)
    assert float(exact.abs().max()) > 0


def test_blend_is_the_share_of_the_learned_picture():
    x = pictures(3)
    learned, conventional, mixed = (carrying("camera", b).purify(x).images for b in (1.0, 0.0, 0.25))
    assert np.abs(learned - conventional).max() > 0.01
    np.testing.assert_allclose(mixed, 0.25 * learned + 0.75 * conventional, atol=1e-5)
    with pytest.raises(ValueError, match="must"):
        CameraPipelineDefense(blend=1.5)


# ---------------------------------------------------------------- the defenses


@pytest.mark.parametrize("name", sorted(SMALL))
def test_contract_of_purify(name):
    defense = carrying(name)
    for x in (pictures(), pictures(3, 21, 34), np.zeros((1, 3, 8, 8), np.float32), np.ones((1, 3, 8, 8), np.float32)):
        before = x.copy()
        result = defense.purify(x)
        assert result.images.shape == x.shape
        assert result.images.dtype == np.float32
        assert result.images.flags.c_contiguous
        assert result.images.min() >= 0
        assert result.images.max() <= 1
        assert np.array_equal(x, before)
        assert not np.shares_memory(result.images, x)
        assert result.file_bits is None
    assert defense.purify(np.zeros((0, 3, 16, 16), np.float32)).images.shape == (0, 3, 16, 16)
    with pytest.raises(ValueError, match="a defense takes"):
        defense.purify(pictures()[:, :2])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_rows_do_not_know_of_each_other(name):
    defense, x = carrying(name), pictures(20)
    whole = defense.purify(x).images
    assert np.array_equal(defense.purify(x).images, whole)
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(defense.purify(np.ascontiguousarray(x[order])).images, whole[order])
    parts = [defense.purify(x[a:b]).images for a, b in ((0, 1), (1, 4), (4, 20))]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_rules_are_the_exact_gradient(name):
    """Against central differences in float64 of what purify computes, one and two rounds; a float32 difference would
    be blurred by the ReLUs that switch within its step."""
    defense, x = carrying(name), pictures(2)
    exact = scrambled(SMALL[name]).double()
    draws = np.random.default_rng(1)
    weight, direction = (torch.from_numpy(draws.standard_normal(x.shape)) for _ in range(2))

    def objective(images: torch.Tensor, rounds: int) -> torch.Tensor:
        for _ in range(rounds):
            images = (exact(images, blend=0.5) if name == "camera" else exact(images)).clamp(0, 1)
        return (images * weight).sum((1, 2, 3))

    for rounds, rule in ((1, "surrogate-1"), (1, "surrogate-n"), (2, "surrogate-n")):
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        seen = defense.backward_rules(rounds)[rule](leaf)
        np.testing.assert_allclose(seen.detach().numpy(), repeat(defense, x, rounds).images, atol=1e-5)
        (gradient,) = torch.autograd.grad((seen * weight.float()).sum(), leaf)
        step = 1e-7 * direction
        with torch.no_grad():
            up, down = (objective(torch.from_numpy(x.copy()).double() + sign * step, rounds) for sign in (1, -1))
        along = (gradient.double() * direction).sum((1, 2, 3))
        assert torch.allclose((up - down) / 2e-7, along, rtol=1e-3, atol=1e-3)
    rules = defense.backward_rules(1)
    assert tuple(rules) == type(defense).rules
    for rule in rules.values():
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        (gradient,) = torch.autograd.grad(rule(leaf).square().sum(), leaf)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) > 0


def test_a_defense_without_its_network_says_so():
    with pytest.raises(UnboundDefense, match="carrying"):
        DenoiserDefense().purify(pictures())


def test_the_plan_reads_rules_and_networks_without_torch():
    for method in ("denoiser", "camera_pipeline"):
        card = registry.card("defense", method)
        assert card.constants["is_learned"] is True
        assert "surrogate-1" in card.constants["rules"]
    assert registry.card("network", "cdd_red").constants["teachers"] == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: DnCNN(largest_sigma=0.0),
        lambda: DnCNN(depth=2).build(),
        lambda: Autoencoder(noise=-1.0),
        lambda: CameraNetwork(red_gain=0.5),
        lambda: CameraNetwork(raw_bits=0),
        lambda: CddRed(attacks=("pgd", "deepfool")),
        lambda: CddRed(benign_weight=-0.1),
    ],
)
def test_settings_outside_their_range_are_refused(build):
    with pytest.raises(ValueError, match="must"):
        build()


# ---------------------------------------------------------------- shipped weights


def shipped(name: str, network: Network) -> torch.nn.Module:
    if not (SHIPPED / name / "card.json").is_file():
        pytest.skip(f"{name} is not shipped")
    return load(network, SHIPPED / name)


def test_the_shipped_denoiser_beats_the_best_gaussian_and_bilateral_filter():
    clean = images.build("photodigits", "fit").images[:40].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    defense = DenoiserDefense().carrying(shipped("dncnn", DnCNN()))
    for sigma_255 in (15, 25, 50):
        noisy = _training.with_noise(clean, sigma_255 / 255, np.random.default_rng(11))
        rivals = [Gaussian(sigma=s) for s in (0.5, 0.7, 1.0, 1.4)]
        rivals += [Bilateral(sigma_color=s) for s in (0.1, 0.2, 0.4, 0.8)]
        best = max(_training.mean_psnr(clean, r.purify(noisy).images) for r in rivals)
        ours = _training.mean_psnr(clean, defense.purify(noisy).images)
        assert ours > best + 0.5
        assert ours > _training.mean_psnr(clean, noisy) + 2


def test_the_shipped_learned_demosaic_beats_the_conventional_one():
    clean = images.build("photodigits", "fit").images[:40].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    module = shipped("camera", CameraNetwork())
    found = {b: CameraPipelineDefense(blend=b).carrying(module).purify(clean).images for b in (0.0, 1.0)}
    assert _training.mean_psnr(clean, found[1.0]) > _training.mean_psnr(clean, found[0.0]) + 1
