"""The adapter: audited classes run, and each known trap of the library is planted and closed."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_samples import Scaled, digits_net, linear_samples

from windtunnel import registry
from windtunnel.attacks._torchattacks_audit import VERDICTS, VERSION, page
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.attacks.torchattacks import AUDITED, REFUSED, TorchattacksAttack, private_randomness
from windtunnel.attacks.torchattacks_adapter import as_torchattacks, run_torchattacks
from windtunnel.backend import torch
from windtunnel.defenses.jpeg import Jpeg
from windtunnel.engine import predict, run_attack

torchattacks = pytest.importorskip("torchattacks")


def length(class_name: str, n: int) -> dict[str, Any]:
    verdict = VERDICTS[class_name]
    quick: dict[str, Any] = {"SPSA": {"nb_sample": 16}, "FAB": {"multi_targeted": True}}.get(class_name, {})
    return quick if verdict.length is None else quick | {verdict.length: n}


RUNNING = [(name, norm) for name, norms in AUDITED.items() for norm in norms]
# Whose last image is a corner of the ball on a linear model: they reach the worst case itself.
EXACT = {"FGSM", "BIM", "RFGSM", "PGD", "PGDL2", "APGD", "APGDT", "FAB", "MIFGSM", "NIFGSM", "VMIFGSM"}
EXACT |= {"VNIFGSM", "SINIFGSM", "UPGD"}


class Float32(torch.nn.Module):
    """A model's logits as float32, which these classes want, and a parameter, where they look for the device."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.anchor = model, torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).float()


def library_classes() -> set[str]:
    """Every attack of the installed package: what it exports, and every subclass of its base in any module."""
    found = set(torchattacks.__all__)
    base = importlib.import_module("torchattacks.attack").Attack
    for info in pkgutil.walk_packages(torchattacks.__path__, "torchattacks."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(value) and issubclass(value, base) and value is not base:
                found.add(name)
    return found


def test_every_class_of_the_library_has_a_verdict_and_no_other() -> None:
    assert torchattacks.__version__ == VERSION
    assert library_classes() == set(VERDICTS) and len(VERDICTS) >= 39
    for name, verdict in VERDICTS.items():
        running = verdict.verdict != "refused"
        assert verdict.why and bool(verdict.norms) == running, name
        assert bool(verdict.fix) == (verdict.verdict == "wrapped") and bool(verdict.instead) == (not running), name
        if running:  # the names it gives are the names of the constructor
            known = set(inspect.signature(getattr(torchattacks, name).__init__).parameters)
            assert {verdict.budget, *verdict.ignored, *verdict.forbidden} <= known, name
            assert {verdict.length or "model", verdict.step or "model"} <= known, name


def test_the_page_is_the_table() -> None:
    written = (Path(__file__).parents[1] / "docs/attacks/torchattacks.md").read_text()
    assert written == page(), "write windtunnel.attacks._torchattacks_audit.page() to docs/attacks/torchattacks.md"


@pytest.mark.parametrize(("class_name", "norm"), RUNNING)
def test_every_running_class_stays_in_the_ball_and_is_judged_by_us(class_name: str, norm: str) -> None:
    model, images, labels = digits_net()
    images, labels = images[:30], labels[:30]
    eps = 0.08 if norm == "linf" else 1.0
    options: dict[str, Any] = {"eps": eps, "norm": norm, "mode": "full", "batch_size": 30}
    result = run_torchattacks(model, class_name, length(class_name, 12), images, labels, **options)
    assert not result.bound_violation.any() and not result.zero_gradient.any()
    assert result.success.sum() > (~result.clean_correct).sum()
    assert np.array_equal(predict(model, result.best)[0].argmax(1) != labels, result.success)
    uses_gradient = VERDICTS[class_name].uses_gradient
    assert (result.n_forward >= (3 if VERDICTS[class_name].length is None else 12)).all()
    assert (result.n_backward >= 2).all() if uses_gradient else (result.n_backward == 0).all()


@pytest.mark.parametrize(("class_name", "norm"), RUNNING)
def test_no_running_class_beats_the_worst_case_of_a_linear_model(class_name: str, norm: str) -> None:
    """Below the closed-form distance nothing can succeed (a ball overstepped would); above it the exact ones must."""
    model, images, labels = linear_samples(12)
    w = model.w.numpy()
    critical = 4.0 / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    settings, wrapped = length(class_name, 20), Float32(model)
    options: dict[str, Any] = {"norm": norm, "mode": "full", "batch_size": 12}
    miss = run_torchattacks(wrapped, class_name, settings, images, labels, eps=0.98 * critical, **options)
    assert miss.clean_correct.all() and not miss.success.any() and not miss.bound_violation.any()
    assert np.abs(miss.last - images).max() > 0.1 * critical / w.size ** (norm == "l2") or class_name in ALL_OR_NOTHING
    near, far = 1.02 * critical, 10 * critical
    exact = class_name in EXACT
    settings |= {"n_queries": 150} if class_name == "Square" else {}
    hit = run_torchattacks(wrapped, class_name, settings, images, labels, eps=near if exact else far, **options)
    noise = run_attack(wrapped, SignNoise(draws=5), images, labels, list(range(12)), eps=far, norm="linf")
    assert (hit.success.all() or class_name == "Square") and not hit.bound_violation.any()
    assert norm == "l2" or noise.success.mean() <= hit.success.mean(), (noise.success.mean(), hit.success.mean())


ALL_OR_NOTHING = {"APGD", "APGDT", "FAB", "Square"}  # what does not succeed comes back clean


@pytest.mark.parametrize(("class_name", "norm"), RUNNING)
def test_every_running_class_is_at_least_as_strong_as_noise_on_a_shipped_model(class_name: str, norm: str) -> None:
    model, images, labels = shipped()
    options: dict[str, Any] = {"eps": 4 / 255 if norm == "linf" else 0.5, "norm": norm, "mode": "full"}
    result = run_torchattacks(model, class_name, length(class_name, 3), images, labels, batch_size=12, **options)
    noise = run_attack(model, SignNoise(draws=5), images, labels, list(range(12)), eps=4 / 255, norm="linf")
    assert not result.bound_violation.any()
    assert result.success.sum() >= noise.success.sum()
    assert result.success.sum() > noise.success.sum() or class_name in {"SPSA", "Square"}


@cache
def shipped() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    from windtunnel.images import photodigits
    from windtunnel.models.load import load_model

    model = load_model(Path(__file__).parents[1] / "resources/models/digits-cnn")
    images = photodigits.build("test")
    pixels = np.ascontiguousarray(images.images[:12].transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    return model, pixels, images.labels[:12].astype(np.int64)


def test_the_adapter_returns_what_the_library_returns() -> None:
    model, images, labels = digits_net()
    settings = {"steps": 7, "alpha": 0.02, "decay": 1.0}
    theirs = torchattacks.MIFGSM(model, eps=0.06, **settings)(torch.from_numpy(images), torch.from_numpy(labels))
    ours = run_torchattacks(model, "MIFGSM", settings, images, labels, eps=0.06, mode="full", batch_size=100)
    assert np.array_equal(ours.last, theirs.numpy())


def test_the_model_keeps_its_mode() -> None:
    model, images, labels = digits_net()
    wrapper = torch.nn.Sequential(
        model
    )  # a fresh wrapper says training = True while the network inside is in eval mode
    model.eval()
    torchattacks.FGSM(wrapper)(torch.from_numpy(images[:2]), torch.from_numpy(labels[:2]))
    assert model.training, "the trap is gone: the library no longer switches the inner network"
    model.eval()
    run_torchattacks(model, "FGSM", None, images[:4], labels[:4], eps=0.05)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("class_name", ["APGD", "Square", "DIFGSM"])
def test_the_callers_random_state_is_untouched(class_name: str) -> None:
    model, images, labels = digits_net()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    if class_name == "APGD":
        with torch.random.fork_rng(devices=[]):
            torchattacks.APGD(model, steps=1)(torch.from_numpy(images[:2]), torch.from_numpy(labels[:2]))
            assert not torch.equal(torch.get_rng_state(), before), "the trap is gone: the library no longer reseeds"
    random.seed(5)
    np.random.seed(5)
    python, legacy = random.getstate(), np.random.get_state()[1].copy()
    one = run_torchattacks(model, class_name, length(class_name, 3), images[:8], labels[:8], eps=0.05, mode="full")
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python and np.array_equal(np.random.get_state()[1], legacy)
    torch.manual_seed(77)  # and the result does not depend on it
    two = run_torchattacks(model, class_name, length(class_name, 3), images[:8], labels[:8], eps=0.05, mode="full")
    assert np.array_equal(one.last, two.last)
    assert two.n_forward.sum() == one.n_forward.sum()


FREEZING = ["MIFGSM", "NIFGSM", "VMIFGSM", "VNIFGSM", "DIFGSM", "TIFGSM", "UPGD", "PIFGSM"]


@pytest.mark.parametrize("class_name", FREEZING)
def test_a_frozen_run_is_flagged_and_a_sound_one_is_not(class_name: str) -> None:
    model, images, labels = digits_net()
    images, labels = images[:50], labels[:50]
    options: dict[str, Any] = {"eps": 0.08, "mode": "full", "batch_size": 50}
    sound = run_torchattacks(model, class_name, {"steps": 8}, images, labels, **options)
    frozen = run_torchattacks(Scaled(model, 1000.0), class_name, {"steps": 8}, images, labels, **options)
    assert not sound.zero_gradient.any()
    unmoved = (frozen.last == images).all(axis=(1, 2, 3)) & frozen.clean_correct
    assert unmoved.sum() > 20, "the trap is gone: saturated logits no longer freeze it"
    assert frozen.zero_gradient[unmoved].all()
    assert frozen.success.mean() < sound.success.mean()
    assert not frozen.nan.any() and np.isfinite(frozen.last).all()


@pytest.mark.parametrize("class_name", sorted(REFUSED))
def test_refused_classes_say_why_and_what_to_use(class_name: str) -> None:
    with pytest.raises(ValueError, match="is refused") as error:
        TorchattacksAttack(class_name=class_name)
    said = str(error.value)
    assert REFUSED[class_name] in said and VERDICTS[class_name].instead in said and "Audited: FGSM" in said


def test_an_unknown_class_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'MIFGSM'"):
        TorchattacksAttack(class_name="MI-FGSM")


@pytest.mark.parametrize(
    ("class_name", "arguments", "norm", "message"),
    [
        ("APGD", {}, "linf", "give 'steps'"),
        ("APGD", {"loss": "dlr"}, "linf", "give 'steps'"),
        ("Square", {}, "linf", "give 'n_queries'"),
        ("PGD", {"steps": 3, "eps": 0.1}, "linf", "no argument 'eps'"),
        ("PGD", {"steps": 3, "nonsense": 1}, "linf", "it takes: alpha, random_start, steps"),
        ("PGD", {"steps": 3, "alpha": 0.1, "step_size": 0.1}, "linf", "give one"),
        ("PGD", {"steps": 3}, "l2", "has the norm linf"),
        ("PGDL2", {"steps": 3}, "linf", "has the norm l2"),
    ],
)
def test_arguments_are_checked(class_name: str, arguments: dict[str, Any], norm: str, message: str) -> None:
    model, images, labels = digits_net()
    with pytest.raises(ValueError, match=message):
        run_torchattacks(model, class_name, arguments, images[:2], labels[:2], eps=0.1, norm=norm, mode="full")


def test_step_size_is_a_fraction_of_eps_and_never_the_librarys_default() -> None:
    model, images, labels = digits_net()
    for arguments, alpha in (({}, 0.01), ({"step_size": 0.5}, 0.02), ({"alpha": 0.003}, 0.003)):
        attack = TorchattacksAttack(class_name="PGD", arguments={"steps": 3} | arguments)
        built = attack.build(model, eps=0.04, norm="linf", seed=1, n_classes=10)
        assert built.alpha == pytest.approx(alpha) and built.eps == 0.04
    built = TorchattacksAttack(class_name="APGDT", arguments={"steps": 3}).build(
        model, eps=0.04, norm="l2", seed=9, n_classes=7
    )
    assert (built.norm, built.seed, built.n_target_classes) == ("L2", 9, 6)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = digits_net()
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks==3.5.1"):
        run_torchattacks(model, "FGSM", None, images[:2], labels[:2], eps=0.1, mode="full")


def test_targets_are_limited_and_too_few_classes_are_named() -> None:
    model, images, labels = digits_net()
    for name in ("APGDT", "FAB"):
        built = TorchattacksAttack(class_name=name, arguments={"steps": 3}).build(
            model, eps=0.04, norm="linf", seed=9, n_classes=1000
        )
        assert built.n_target_classes == 9
    with pytest.raises(ValueError, match="needs 4 classes, the model has 3"):
        TorchattacksAttack(class_name="APGDT", arguments={"steps": 3}).build(
            model, eps=0.04, norm="linf", seed=9, n_classes=3
        )
    grey = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)).eval().requires_grad_(False)
    for name in ("TIFGSM", "PIFGSM"):
        with pytest.raises(ValueError, match="takes 3 channels only, the images have 1"):
            run_torchattacks(grey, name, {"steps": 2}, np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, int), eps=0.1)


# -------------------------------------------------------------------- what the verdicts of refusal and repair rest on


def tensors(n: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Digits that the network gets right."""
    model, images, labels = digits_net()
    right = np.flatnonzero(predict(model, images)[0].argmax(1) == labels)[:n]
    return model, torch.from_numpy(images[right]), torch.from_numpy(labels[right])


def correct(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize(
    ("class_name", "settings"), [("CW", {"steps": 50}), ("UPGD", {"loss": "margin", "eps": 0.1, "alpha": 0.025})]
)
def test_a_shift_of_the_logits_stops_cw_and_the_margin_of_upgd(class_name: str, settings: dict[str, Any]) -> None:
    model, x, y = tensors(24)
    plain = getattr(torchattacks, class_name)(model, **settings)(x, y)
    shifted = getattr(torchattacks, class_name)(Scaled(model, shift=-100.0), **settings)(x, y)
    assert correct(model, plain, y) < 1 and torch.equal(shifted, x), "the trap is gone"


def test_the_margin_of_upgd_is_refused_and_its_dlr_runs() -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.08, "mode": "full", "batch_size": 100}
    with pytest.raises(ValueError, match="loss: margin is refused: it masks logits"):
        run_torchattacks(model, "UPGD", {"steps": 5, "loss": "margin"}, images, labels, **options)
    plain = run_torchattacks(model, "UPGD", {"steps": 5, "loss": "dlr"}, images, labels, **options)
    shifted = run_torchattacks(
        Scaled(model, shift=-100.0), "UPGD", {"steps": 5, "loss": "dlr"}, images, labels, **options
    )
    assert abs(int(plain.success.sum()) - int(shifted.success.sum())) <= 1 < plain.success.sum()


@pytest.mark.parametrize("class_name", ["Jitter", "EADL1", "EADEN"])
def test_a_shift_of_the_logits_changes_these(class_name: str) -> None:
    model, x, y = tensors(24)
    settings: dict[str, Any] = {"eps": 0.08, "alpha": 0.02} if class_name == "Jitter" else {"max_iterations": 20}
    answers = []
    for shift in (0.0, -1000.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            answers.append(getattr(torchattacks, class_name)(Scaled(model, shift=shift), **settings)(x, y).detach())
    one, two = ((a - x).flatten(1) for a in answers)
    if class_name == "Jitter":
        assert correct(model, answers[1], y) > correct(model, answers[0], y)
    else:
        assert (two.norm(dim=1) > 1.1 * one.norm(dim=1)).float().mean() > 0.5, "farther for the same classifier"


@pytest.mark.parametrize("class_name", ["EADL1", "EADEN", "JSMA", "SparseFool", "OnePixel", "Pixle", "GN"])
def test_these_know_no_ball(class_name: str) -> None:
    model, x, y = tensors(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        constructor = getattr(torchattacks, class_name)
        assert "eps" not in inspect.signature(constructor.__init__).parameters
        with private_randomness(0):
            moved = (constructor(model)(x, y).detach() - x).abs().amax()
    assert moved > 64 / 255


def test_eotpgd_is_pgd_to_the_bit_at_twice_the_price() -> None:
    model, x, y = tensors(24)
    calls = {"EOTPGD": 0, "PGD": 0}
    answers = []
    for name in calls:
        handle = model.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        answers.append(getattr(torchattacks, name)(model, eps=0.08, alpha=0.02, steps=5, random_start=False)(x, y))
        handle.remove()
    assert torch.equal(*answers) and calls == {"EOTPGD": 10, "PGD": 5} and not torch.equal(answers[0], x)


@pytest.mark.parametrize("class_name", ["PGDRS", "PGDRSL2"])
def test_the_smoothing_attacks_ask_about_images_outside_the_box(class_name: str) -> None:
    model, x, y = tensors(4)
    seen: list[float] = []
    handle = model.register_forward_hook(lambda _, inputs, __: seen.append(float(inputs[0].detach().abs().max())))
    with private_randomness(0):
        getattr(torchattacks, class_name)(model, steps=2)(x, y)
    handle.remove()
    assert min(seen) > 1.5


def test_the_kernel_of_pifgsmpp_has_its_axes_swapped() -> None:
    kernel = torchattacks.PIFGSMPP(digits_net()[0]).gaussian_kern(3, 3)[:, 0]
    assert not torch.allclose(kernel[0], kernel[1]), "the trap is gone: all colours have one kernel"
    assert torch.equal(kernel[1, 1], kernel[1, 1, :1].expand(3)), "the trap is gone: the kernel is peaked along rows"


def test_deepfool_comes_nearer_and_does_not_cross() -> None:
    model, x, y = tensors(8)
    steps = [torchattacks.DeepFool(model, steps=n)(x, y) for n in (5, 20)]
    assert correct(model, steps[1], y) >= 0.25, "the trap is gone"
    left = model(steps[1]).argmax(1) == y
    gaps = [torch.from_numpy(np.sort(model(s[left]).numpy(), axis=1)) for s in steps]
    first, last = ((g[:, -1] - g[:, -2]).numpy() for g in gaps)
    assert (last < 0.5 * first).all() and (last > 0).all()
    fooled = run_attack(model, PGD(), x.numpy(), y.numpy(), list(range(8)), eps=0.5, norm="linf")
    assert fooled.success.all()


def test_their_autoattack_runs_ten_steps() -> None:
    model, x, y = tensors(4)
    members = torchattacks.AutoAttack(model, eps=0.01, seed=0)._autoattack.attacks
    assert [getattr(m, "steps", None) for m in members] == [10, 10, 10, None], "the trap is gone"
    assert members[3].rescale_schedule


def test_tpgd_goes_either_way_on_a_linear_model() -> None:
    model, images, labels = linear_samples(40)
    wrapped, x, y = Float32(model), torch.from_numpy(images), torch.from_numpy(labels)
    eps = 2 * 4.0 / float(model.w.abs().sum())  # twice what is needed
    with private_randomness(0):
        theirs = torchattacks.TPGD(wrapped, eps=eps, alpha=eps / 4, steps=20)(x, y)
    pgd = torchattacks.PGD(wrapped, eps=eps, alpha=eps / 4, steps=20)(x, y)
    assert correct(wrapped, pgd, y) == 0 and 0.2 < correct(wrapped, theirs, y) < 0.8


def test_gradients_are_contiguous_where_pgdl2_stops_without() -> None:
    model, x, y = tensors(6)
    odd = torch.nn.Sequential(Transposed(), model).eval()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        torchattacks.PGDL2(odd, steps=2)(x, y)
    model.eval()
    result = run_torchattacks(odd, "PGDL2", {"steps": 5}, x.numpy(), y.numpy(), eps=1.0, norm="l2", mode="full")
    assert np.abs(result.last - x.numpy()).max() > 0.05


class Transposed(torch.nn.Module):
    """The identity on symmetric questions: its gradient comes back with swapped strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def test_a_step_of_ffgsm_reaches_the_ball() -> None:
    built = TorchattacksAttack(class_name="FFGSM").build(digits_net()[0], eps=0.04, norm="linf", seed=0, n_classes=10)
    assert built.alpha == pytest.approx(0.05)


# ---------------------------------------------------------------------------------------------------- ours as theirs


def quick_settings(name: str) -> dict[str, Any]:
    """Settings that make any registered attack short."""
    if name == "torchattacks":
        return {"class_name": "PGD", "arguments": {"steps": 3}}
    short = {"steps": 4, "queries": 20, "draws": 2, "restarts": 1, "iterations": 4, "samples": 4, "evaluations": 30}
    settings = registry.card("attack", name).settings
    return {key: value for key, value in short.items() if isinstance(settings.get(key), int)}


def our_attacks() -> list[Any]:
    found = []
    for name in registry.names("attack"):
        for norm in registry.card("attack", name).constants.get("norms", ("linf",)):
            if (name, norm) != ("torchattacks", "l2"):
                found.append(pytest.param(name, norm, id=f"{name}-{norm}"))
    return found


@pytest.mark.parametrize(("name", "norm"), our_attacks())
def test_every_attack_of_ours_is_a_torchattacks_object(name: str, norm: str) -> None:
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images[:8]), torch.from_numpy(labels[:8])
    attack = registry.load("attack", name)(**quick_settings(name))
    eps = 0.08 if norm == "linf" else 1.0
    # One attack raises a codec's error and has nothing to do without a codec.
    through: dict[str, Any] = (
        {"defense": Jpeg(quality=50), "rule": "blur"}
        if registry.card("attack", name).constants.get("needs_defense")
        else {}
    )
    made = as_torchattacks(attack, model, eps, norm, **through)
    assert isinstance(made, importlib.import_module("torchattacks.attack").Attack)
    kept = x.clone()
    adversarial = made(x, y)
    assert torch.equal(x, kept) and adversarial.shape == x.shape and adversarial.dtype == x.dtype
    delta = (adversarial.double() - x.double()).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert (size <= eps + 1e-6).all() and adversarial.min() >= 0 and adversarial.max() <= 1
    assert torch.equal(made(x, y), adversarial), "the same call gives the same images"
    ids = [hashlib.sha256(image.tobytes()).hexdigest() for image in images[:8]]
    direct = run_attack(model, attack, images[:8], labels[:8], ids, eps=eps, norm=norm, mode="full", **through)
    assert np.array_equal(direct.best, adversarial.numpy())


def test_it_works_where_torchattacks_objects_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, x, y = tensors(24)
    ours = as_torchattacks(PGD(steps=10), model, eps=0.08)
    weak = torchattacks.FGSM(model, eps=0.01)
    both = torchattacks.MultiAttack([weak, ours])(x, y)
    assert torch.equal(
        model(both).argmax(1) == y, (model(weak(x, y)).argmax(1) == y) & (model(ours(x, y)).argmax(1) == y)
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=12)
    wrapper = torch.nn.Sequential(model)  # its own flag says training; the network inside is frozen
    accuracy, _, _ = as_torchattacks(PGD(steps=10), wrapper, eps=0.08).save(
        loader, str(tmp_path / "saved.pt"), verbose=False, return_verbose=True
    )
    assert wrapper.training and not any(module.training for module in model.modules())
    saved = torch.load(tmp_path / "saved.pt")["adv_inputs"]
    assert accuracy == pytest.approx(100 * correct(model, saved, y)) and torch.allclose(saved, ours(x, y), atol=1e-6)
    assert "PGD(steps=10" in repr(ours) and "eps=0.08" in repr(ours)
    assert capsys.readouterr().out == ""


def test_what_does_not_exist_here_is_refused_and_not_ignored() -> None:
    model, x, y = tensors(2)
    made = as_torchattacks(PGD(steps=2), model, 0.1)
    for wrong, message in (
        (lambda: made.set_normalization_used([0.5], [0.5]), "normalisation belongs into the model"),
        (made.set_mode_targeted_random, "untargeted"),
        (made.set_mode_targeted_by_label, "untargeted"),
        (lambda: made.set_model_training_mode(model_training=True), "attacked in eval mode"),
        (lambda: made(x), "labels are needed"),
        (lambda: made(x * 2 - 1, y), r"must lie in \[0, 1\]"),
        (lambda: as_torchattacks(PGD(), model, -1.0), "eps must be"),
        (lambda: as_torchattacks(SignNoise(), model, 0.1, "l1"), "has the norms"),
        (lambda: as_torchattacks(PGD(), model, 0.1, mode="both"), "mode must be"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="not to the call"):
        made(x, y, steps=3)


def test_without_the_library_it_is_a_callable(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = tensors(4)
    with_library = as_torchattacks(PGD(steps=2), model, 0.1)(x, y)
    monkeypatch.setitem(sys.modules, "torchattacks.attack", None)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    made = as_torchattacks(PGD(steps=2), model, 0.1)
    assert type(made).__mro__[1:] != () and not any(
        "torchattacks" in c.__module__.split(".")[0] for c in type(made).__mro__
    )
    assert torch.equal(made(x, y), with_library)
    with pytest.raises(ValueError, match="normalisation belongs"):
        made.set_normalization_used([0.5], [0.5])
    with pytest.raises(ImportError, match="torchattacks is not installed"):
        made.save([])


def test_ours_as_theirs() -> None:
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images[:30]), torch.from_numpy(labels[:30])
    model.train()  # as a user's model may come
    model[1].eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    try:
        attack = as_torchattacks(PGD(steps=5), model, eps=0.06, batch_size=30)
        adversarial = attack(x, y)
        assert model.training and not model[1].training and all(p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())
        order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(attack(x[order], y[order]), adversarial[order], atol=1e-6)
    finally:
        model.eval().requires_grad_(False)
    assert (
        adversarial.shape == x.shape and adversarial.dtype == x.dtype and (adversarial - x).abs().max() <= 0.06 + 1e-7
    )
    broken = model(adversarial).argmax(1).ne(y).sum()
    assert broken > model(x).argmax(1).ne(y).sum()
    ids = list(range(30))
    direct = run_attack(model, PGD(steps=5), images[:30], labels[:30], ids, eps=0.06, norm="linf", mode="full")
    assert abs(int(direct.success.sum()) - int(broken)) <= 2
