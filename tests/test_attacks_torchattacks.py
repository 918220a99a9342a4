"""The adapter: audited classes run, and each known trap of the library is planted and closed."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
from attack_samples import Scaled, digits_net

from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.torchattacks import AUDITED, REFUSED, TorchattacksAttack
from windtunnel.attacks.torchattacks_adapter import as_torchattacks, run_torchattacks
from windtunnel.backend import torch
from windtunnel.engine import predict, run_attack

torchattacks = pytest.importorskip("torchattacks")


def length(class_name: str, n: int) -> dict[str, Any]:
    return {} if class_name == "FGSM" else {"n_queries" if class_name == "Square" else "steps": n}


@pytest.mark.parametrize(("class_name", "norm"), [(name, norm) for name, norms in AUDITED.items() for norm in norms])
def test_every_audited_class_runs_in_the_ball_and_is_judged_by_us(class_name: str, norm: str) -> None:
    model, images, labels = digits_net()
    images, labels = images[:30], labels[:30]
    eps = 0.08 if norm == "linf" else 1.0
    result = run_torchattacks(
        model, class_name, length(class_name, 12), images, labels, eps=eps, norm=norm, mode="full", batch_size=30
    )
    assert not result.bound_violation.any() and not result.zero_gradient.any()
    assert result.success.sum() > (~result.clean_correct).sum()
    assert np.array_equal(predict(model, result.best)[0].argmax(1) != labels, result.success)
    assert (result.n_forward >= (3 if class_name == "FGSM" else 12)).all()
    assert (result.n_backward == 0).all() if class_name == "Square" else (result.n_backward >= 2).all()


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


def test_a_frozen_run_is_flagged_and_a_sound_one_is_not() -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.08, "mode": "full", "batch_size": 100}
    sound = run_torchattacks(model, "MIFGSM", {"steps": 10}, images, labels, **options)
    frozen = run_torchattacks(Scaled(model, 1000.0), "MIFGSM", {"steps": 10}, images, labels, **options)
    assert not sound.zero_gradient.any()
    unmoved = (frozen.last == images).all(axis=(1, 2, 3)) & frozen.clean_correct
    assert unmoved.sum() > 50, "the trap is gone: saturated logits no longer freeze the momentum attacks"
    assert frozen.zero_gradient[unmoved].all()
    assert frozen.success.mean() < sound.success.mean()
    assert not frozen.nan.any() and np.isfinite(frozen.last).all()


@pytest.mark.parametrize("class_name", sorted(REFUSED))
def test_unaudited_classes_are_refused_with_the_reason(class_name: str) -> None:
    with pytest.raises(ValueError, match="is refused") as error:
        TorchattacksAttack(class_name=class_name)
    assert REFUSED[class_name] in str(error.value) and "Audited: FGSM" in str(error.value)


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
