"""Checks on real tiny pipelines that were built to trigger them, and on their clean twins.

One small trained network throughout; planted are its logits, its layers, its defense or its backward rule. What is
asserted is who fires and on which cell, and that the honest twin raises nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
from attack_samples import Scaled, digits_net
from check_cells import Behind, Bench, Rule

from windtunnel.attacks.fgsm import FGSM
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.attacks.square import Square
from windtunnel.backend import torch
from windtunnel.checks.base import Finding
from windtunnel.defenses.base import BackwardRule, Defense, Purified
from windtunnel.defenses.jpeg import Jpeg
from windtunnel.defenses.rules import blur, noise
from windtunnel.engine import ModelNotGuarded, run_attack

FACTS = {"softmax_output", "train_mode", "random_forward", "dynamic_defense"}


class Rounded(torch.nn.Module):
    """A classifier behind a hard rounding of its input to a few levels: no gradient passes."""

    def __init__(self, model: torch.nn.Module, levels: int = 4) -> None:
        super().__init__()
        self.model, self.levels = model, levels
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model((x * self.levels).round() / self.levels)


def attacked(model: torch.nn.Module, loss: str = "ce") -> Bench:
    """Every kind of bare attack and both kinds of measurement: a whole evaluation in small."""
    bench = Bench(model, *digits_net()[1:])
    bench.clean()
    for eps in (16, 56, 64):
        bench.attack("pgd", PGD(steps=8, loss=loss), eps)
    bench.attack("fgsm", FGSM(loss=loss), 16)
    bench.attack("square", Square(queries=100), 16)
    for eps in (16, 64):
        bench.attack("sign-noise", SignNoise(), eps)
    bench.measure("gradient_direction", 16)
    bench.measure("pipeline_contract", 16)
    return bench


# ------------------------------------------------------------------------------------------------ saturated and rounded


@pytest.mark.parametrize("twin", ["as it is", "logits - 100", "logits x 1000, margin loss"])
def test_an_honest_evaluation_raises_nothing(twin: str) -> None:
    model = digits_net()[0]
    planted = {
        "as it is": model, "logits - 100": Scaled(model, shift=-100.0),
        "logits x 1000, margin loss": Scaled(model, 1000.0),
    }  # fmt: skip
    bench = attacked(planted[twin], "margin" if "margin" in twin else "ce")
    assert bench.raised() == {}
    ran = {name for name, of in bench.findings().items() if of}
    assert ran >= FACTS | {
        "undefended_falls", "huge_eps", "zero_gradient", "gradient_direction", "single_step_beats_iterative",
        "black_box_beats_white_box",
    }  # fmt: skip


def test_saturated_logits_flag_the_attack_and_not_the_model() -> None:
    """x 1000: the cross-entropy's gradient is exactly zero. The margin's direction is sound, and so says its check."""
    bench = attacked(Scaled(digits_net()[0], 1000.0))
    raised = bench.raised()
    assert set(raised) == {"undefended_falls", "huge_eps", "zero_gradient", "black_box_beats_white_box"}
    assert {bench.name(i) for i in raised["zero_gradient"]} == {"pgd 16", "pgd 56", "pgd 64", "fgsm 16"}
    assert {bench.name(i) for i in raised["huge_eps"]} == {"pgd 16", "pgd 56", "pgd 64"}
    assert min(f.statistic for f in bench.findings()["huge_eps"].values()) > 0.7


def test_hard_rounding_flags_the_model_too() -> None:
    bench = attacked(Rounded(digits_net()[0]))
    raised = bench.raised()
    assert set(raised) == {
        "undefended_falls", "huge_eps", "zero_gradient", "gradient_direction", "black_box_beats_white_box",
    }  # fmt: skip
    assert {bench.name(i) for i in raised["gradient_direction"]} == {"pgd 16", "fgsm 16"}
    assert all(f.statistic == 0.0 for f in bench.findings()["gradient_direction"].values())


# ------------------------------------------------------------------------------------------------------- repeated codec

ROUNDS = 10


@cache
def repeated_jpeg() -> Bench:
    """JPEG-50 once and ten times, attacked through all rounds, through one, by the identity, a blur and the control."""
    model, images, labels = digits_net()
    bench = Bench(model, images[:58], labels[:58])
    bench.clean()
    for rounds in (1, ROUNDS):
        name = "jpeg-50" if rounds == 1 else f"jpeg-50-x{rounds}"
        rules: dict[str, Rule] = {"surrogate-1": "surrogate-1", "identity": "identity"}
        rules |= {"surrogate-n": "surrogate-n"} if rounds > 1 else {"blur": blur, "noise": noise}
        for through, rule in rules.items():
            behind = Behind(name=name, defense=Jpeg(quality=50), rounds=rounds, rule=rule, through=through)
            bench.attack("pgd", PGD(steps=6), 28, through=behind)
            if rounds > 1 and through != "identity":
                bench.measure("gradient_direction", 28, behind, first=20)
            if rounds == 1 and through in ("surrogate-1", "blur"):
                bench.measure("surrogate_gap", 28, behind)
        bench.clean(behind)
        bench.attack("pgd", PGD(steps=6), 28, judge=behind)
    return bench


def rules_with(bench: Bench, check: str, state: str, defense: str) -> set[str]:
    rows = {str(c["cell_id"].iloc[0]): c.iloc[0] for c in bench.cells}
    found = bench.findings()[check]
    return {rows[i]["through"] for i, f in found.items() if f.state == state and rows[i]["defense"] == defense}


@pytest.mark.parametrize(
    "check",
    [
        "gradient_direction", "gradient_gain", "rounds_raise_accuracy", "through_weaker_than_unaware",
        "black_box_beats_white_box",
    ],
)  # fmt: skip
def test_ten_rounds_of_jpeg_mask_the_rule_through_all_and_no_other(check: str) -> None:
    defense = f"jpeg-50-x{ROUNDS}"
    assert rules_with(repeated_jpeg(), check, "flag", defense) == {"surrogate-n"}
    measured = check.startswith("gradient")  # by diagnostics, which were not run for the identity
    assert rules_with(repeated_jpeg(), check, "ok", defense) == {"surrogate-1"} | (set() if measured else {"identity"})


def test_a_stand_in_of_the_codec_is_near_and_a_blur_is_not() -> None:
    assert rules_with(repeated_jpeg(), "surrogate_gap", "flag", "jpeg-50") == {"blur"}
    assert rules_with(repeated_jpeg(), "surrogate_gap", "ok", "jpeg-50") == {"surrogate-1"}


def test_gradients_through_the_codec_do_better_than_random_signs() -> None:
    assert rules_with(repeated_jpeg(), "noise_control", "ok", "jpeg-50") == {"surrogate-1", "identity", "blur"}


# ------------------------------------------------------------------------------------------- a rule without information


@dataclass(frozen=True, kw_only=True)
class Coarse(Defense):
    """Rounds every pixel to a few levels; the rule ``exact`` differentiates just that and gets nothing."""

    rules: ClassVar[tuple[str, ...]] = ("identity", "exact", "noise")
    levels: int = 3

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(np.rint(images * self.levels).astype(np.float32) / np.float32(self.levels))

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        return {"identity": lambda x: x, "exact": lambda x: (x * self.levels).round() / self.levels, "noise": noise}


def test_random_signs_do_as_well_as_a_rule_without_information() -> None:
    bench = Bench(*digits_net())
    for rule in ("identity", "exact", "noise"):
        behind = Behind(name="coarse-3", defense=Coarse(), rule=rule, through=rule)
        bench.attack("pgd", PGD(steps=12), 90, through=behind)
    bench.clean(behind)
    assert rules_with(bench, "noise_control", "flag", "coarse-3") == {"exact"}
    assert rules_with(bench, "noise_control", "ok", "coarse-3") == {"identity"}


# --------------------------------------------------------------------------------------------------------- convergence


@pytest.mark.parametrize(("steps", "step_size", "state"), [(4, 0.05, "flag"), (20, 0.25, "ok")])
def test_twice_the_steps_still_move_a_slow_attack(steps: int, step_size: float, state: str) -> None:
    bench = Bench(*digits_net())
    short = bench.attack("short", PGD(steps=steps, step_size=step_size, random_start=False), 28)
    bench.attack("long", PGD(steps=2 * steps, step_size=step_size, random_start=False), 28)
    assert {i: f.state for i, f in bench.findings()["not_converged"].items()} == {short: state}


# ------------------------------------------------------------------------------------------------------- pipeline facts


class Softmaxed(torch.nn.Module):
    """The same classifier with probabilities for an answer."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).softmax(1)


class Shaken(Softmaxed):
    """The same classifier with noise on its logits, from torch's global random state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return logits + 0.1 * torch.randn_like(logits)


class Adapting(Softmaxed):
    """The same classifier after one step on its input that makes it surer of itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.model(leaf).amax(1).sum(), leaf)
        return self.model(x + 0.01 * gradient.sign())


class Normalised(Softmaxed):
    """The same classifier less the mean logits of the batch: depends on its neighbours in eval mode, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return logits - logits.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("planted", "check"),
    [
        (Softmaxed, "softmax_output"), (Shaken, "random_forward"), (Adapting, "dynamic_defense"),
        (Normalised, "train_mode"),
    ],
)  # fmt: skip
def test_facts_of_a_planted_model(planted: type[Softmaxed], check: str) -> None:
    bench = Bench(planted(digits_net()[0]).requires_grad_(False), *digits_net()[1:])
    bench.clean()
    bench.attack("sign-noise", SignNoise(draws=1), 8)
    bench.measure("pipeline_contract")
    findings = bench.findings()
    assert set(bench.raised()) == {check} and len(bench.raised()[check]) == 2
    for name in FACTS - {check}:
        assert {f.state for f in findings[name].values()} == {"ok"}


def test_softmax_outputs_break_the_contract_and_need_not_weaken_the_attack() -> None:
    """Cross-entropy on probabilities: accuracy under PGD stays within a few points, so no other check may fire."""
    bench = attacked(Softmaxed(digits_net()[0]).requires_grad_(False))
    assert set(bench.raised()) <= {"softmax_output", "undefended_falls"}
    assert len(bench.raised()["softmax_output"]) == len(bench.cells)


def test_a_model_in_train_mode_is_refused_by_attacks_and_found_by_its_contract() -> None:
    model, images, labels = digits_net()
    bench = Bench(model, images, labels)
    bench.clean()
    try:
        model.train()
        with pytest.raises(ModelNotGuarded, match="train mode"):
            run_attack(model, PGD(steps=1), images, labels, bench.ids, eps=0.1, norm="linf")
        bench.measure("pipeline_contract")
    finally:
        model.eval()
    clean = str(bench.cells[0]["cell_id"].iloc[0])
    assert bench.findings()["train_mode"] == {clean: Finding("flag", 3.0)}  # the flag, the state and the batch
    healthy = Bench(model, images, labels)
    healthy.clean()
    healthy.measure("pipeline_contract")
    assert healthy.findings()["train_mode"] == {clean: Finding("ok", 0.0)}
