"""The checks that read budgets, twins, controls and diagnostics: planted tables and their clean twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import cell, infos, measured, samples
from test_checks import N, lost, one_id, pgd

from windtunnel import checks
from windtunnel.checks.base import Finding, gather

JPEG = {"defense": "jpeg-50", "attack_defense": "jpeg-50"}


def check(
    name: str,
    *cells: pd.DataFrame,
    diagnostics: list[pd.DataFrame] | None = None,
    told: dict[str, dict[str, Any]] | None = None,
    **everywhere: Any,
) -> dict[str, Finding]:
    """Findings of one check; ``told`` adds infos by attack name, ``everywhere`` to every cell."""
    frame = samples(*cells)
    entries = [i | (told or {}).get(i["attack"], {}) for i in infos(frame, **everywhere)]
    table = pd.concat(diagnostics, ignore_index=True) if diagnostics else None
    return checks.CHECKS[name].check(gather(frame, entries, diagnostics=table))


# ------------------------------------------------------------------------------------------------------- huge budget


@pytest.mark.parametrize(
    ("right", "noise_right", "state"),
    [(0, 20, "ok"), (2, 20, "ok"), (3, 20, "flag"), (20, 200, "ok"), (21, 200, "flag"), (146, 190, "flag")],
)
def test_huge_eps(right: int, noise_right: int, state: str):
    """Bar: max(1 %, a tenth of the accuracy under sign noise); all budgets of the attack bear the finding."""
    probe, reported = pgd(eps_255=64, broken=N - right), pgd(eps_255=8, broken=100)
    noise = pgd(attack="sign-noise", eps_255=64, n_backward=0, broken=N - noise_right)
    found = check("huge_eps", cell(n=N), probe, reported, noise)
    assert found == {one_id(c): Finding(state, pytest.approx(right / N)) for c in (probe, reported)}


@pytest.mark.parametrize(("right", "state"), [(2, "ok"), (3, None), (20, None), (21, "flag")])
def test_huge_eps_without_noise_says_only_what_holds_for_any_noise(right: int, state: str | None):
    probe = pgd(eps_255=64, broken=N - right)
    expected = {} if state is None else {one_id(probe): Finding(state, pytest.approx(right / N))}
    assert check("huge_eps", probe) == expected


def test_huge_eps_keeps_rules_and_attacks_apart_and_takes_the_worst_budget():
    seen = {"eps_255": 64, **JPEG}
    noise = [pgd(attack="sign-noise", n_backward=0, broken=100, **seen, through="identity")]
    noise += [pgd(attack="sign-noise", n_backward=0, broken=100, **JPEG, eps_255=128, through="identity")]
    sound, masked = pgd(broken=N, through="surrogate-1", **seen), pgd(broken=60, through="surrogate-n", **seen)
    further = pgd(broken=80, through="surrogate-n", eps_255=128, **JPEG)
    other = pgd(attack="apgd", broken=N, through="surrogate-n", **seen)
    found = check("huge_eps", sound, masked, further, other, *noise)
    assert [found[one_id(c)].state for c in (sound, masked, further, other)] == ["ok", "flag", "flag", "ok"]
    assert found[one_id(further)].statistic == pytest.approx(0.7) and len(found) == 4


def test_huge_eps_counts_iterates_together_and_leaves_others_out():
    best, last = pgd(eps_255=64, correct=lost(range(150))), pgd(eps_255=64, correct=lost(range(N)), iterate="last")
    assert set(check("huge_eps", best, last).values()) == {Finding("ok", 0.0)}
    assert check("huge_eps", pgd(eps_255=63, broken=0)) == {}
    assert check("huge_eps", pgd(attack="square", n_backward=0, eps_255=64)) == {}
    assert check("huge_eps", pgd(eps_255=64, source_model="digits-vit")) == {}
    assert check("huge_eps", pgd(eps_255=64, through="noise", **JPEG)) == {}
    l2 = pgd(threat="l2-9000", norm="l2", eps=90.0, eps_255=None, l2=80.0)
    assert check("huge_eps", l2) == {}


def test_huge_eps_knows_the_noise_baseline_by_its_method_and_not_by_its_name():
    probe = pgd(eps_255=64, broken=N - 10)
    noise = pgd(attack="corners", eps_255=64, n_backward=0, broken=0)
    assert check("huge_eps", probe, noise) == {}
    found = check("huge_eps", probe, noise, told={"corners": {"attack_method": "sign_noise", "uses_gradient": False}})
    assert found == {one_id(probe): Finding("ok", pytest.approx(0.05))}


def test_probing_budgets_do_not_hide_that_the_undefended_model_stands():
    """A cell at 64/255 is a probe of its own: it neither replaces the one at twice the largest budget nor counts."""
    ladder = [pgd(eps_255=e, broken=b) for e, b in ((4, 100), (8, 150), (16, 150), (64, N))]
    found = check("undefended_falls", *ladder)
    assert {f.state for f in found.values()} == {"flag"} and len(found) == 4
    defended = pgd(eps_255=16, broken=150, defense="jpeg-50")
    assert {f.state for f in check("undefended_falls", *ladder, defended).values()} == {"ok"}


# ------------------------------------------------------------------------------------------------ gradient direction


def direction(beats: int, n: int = 64, gain: float = 5.0, **settings: Any) -> pd.DataFrame:
    """n samples of which so many beat all random steps, and as many again that are not defined."""
    flags = np.r_[np.arange(n) < beats, [np.nan] * n].astype(float)
    return measured("gradient_direction", beats_all=flags, gain=np.where(np.isnan(flags), np.nan, gain), **settings)


@pytest.mark.parametrize(("beats", "state"), [(64, "ok"), (58, "ok"), (57, "flag"), (26, "flag"), (3, "flag")])
def test_gradient_direction(beats: int, state: str):
    through = pgd(through="surrogate-n", **JPEG)
    table = direction(beats, defense="jpeg-50", through="surrogate-n")
    found = check("gradient_direction", cell(n=N), through, diagnostics=[table])
    assert found == {one_id(through): Finding(state, beats / 64)}


def test_gradient_direction_takes_the_step_of_the_budget_or_a_larger_one_and_never_a_tiny_one():
    attacked = {e: pgd(eps_255=e) for e in (1, 2, 4, 8, 16)}
    steps = [direction(b, eps=e / 255) for e, b in ((2, 0), (4, 60), (8, 64))]
    found = check("gradient_direction", *attacked.values(), diagnostics=steps)
    shares = {e: found[one_id(c)].statistic for e, c in attacked.items() if one_id(c) in found}
    assert shares == {1: 60 / 64, 2: 60 / 64, 4: 60 / 64, 8: 1.0}
    assert check("gradient_direction", attacked[1], diagnostics=steps[:1]) == {}
    l2 = pgd(threat="l2-50", norm="l2", eps=0.5, eps_255=None, l2=0.4)
    assert check("gradient_direction", l2, diagnostics=steps) == {}
    assert len(check("gradient_direction", l2, diagnostics=[direction(64, norm="l2", eps=0.5)])) == 1


@pytest.mark.parametrize(
    "other",
    [{"model": "digits-vit"}, {"model_seed": 1}, {"split": "letters"}, {"defense": "jpeg-50", "through": "identity"}],
)
def test_gradient_direction_of_another_pipeline_says_nothing(other: dict[str, Any]):
    assert check("gradient_direction", pgd(), diagnostics=[direction(0, **other)]) == {}


def test_gradient_direction_is_asked_of_informed_attacks_on_the_judged_pipeline():
    table = [direction(0), direction(0, defense="jpeg-50", through="noise")]
    cells = [
        cell(n=N), pgd(attack="square", n_backward=0), pgd(source_model="digits-vit"), pgd(defense="jpeg-50"),
        pgd(through="noise", **JPEG), pgd(eps_255=4, status="error"),
    ]  # fmt: skip
    assert check("gradient_direction", *cells, diagnostics=table) == {}


def test_gradient_direction_spells_a_pipeline_without_defense_in_any_way():
    for through in ("bare", "none", "identity", None):
        assert len(check("gradient_direction", pgd(), diagnostics=[direction(64, through=through)])) == 1


def test_gradient_gain():
    rules = {"surrogate-1": 8.56, "identity": 4.28, "blur": 4.27, "surrogate-n": 1.19, "jpeg": -2.0}
    cells = {rule: pgd(through=rule, **JPEG) for rule in rules}
    table = [direction(64, gain=g, defense="jpeg-50", through=rule) for rule, g in rules.items()]
    found = check("gradient_gain", *cells.values(), pgd(), diagnostics=table)
    states = {rule: found[one_id(c)].state for rule, c in cells.items()}
    assert states == {"surrogate-1": "ok", "identity": "ok", "blur": "flag", "surrogate-n": "flag", "jpeg": "flag"}
    assert found[one_id(cells["surrogate-n"])].statistic == pytest.approx(1.19 / 8.56)
    assert found[one_id(cells["surrogate-1"])].statistic == 1.0 and len(found) == 5


def test_gradient_gain_needs_a_second_rule_at_the_same_step_and_something_to_gain():
    one = pgd(through="identity", **JPEG)
    seen = {"defense": "jpeg-50"}
    own = direction(64, gain=1.0, through="identity", **seen)
    assert check("gradient_gain", one, diagnostics=[own]) == {}
    assert check("gradient_gain", one, diagnostics=[own, direction(64, eps=16 / 255, through="blur", **seen)]) == {}
    falling = [direction(0, gain=-1.0, through=r, **seen) for r in ("identity", "blur")]
    assert check("gradient_gain", one, diagnostics=falling) == {}


# ------------------------------------------------------------------------------------------------------- surrogate gap


def gap(fooled_stand_in: int, fooled_real: int, n: int = 100, **settings: Any) -> pd.DataFrame:
    places = np.arange(n)
    return measured(
        "surrogate_gap",
        fooled_stand_in=(places < fooled_stand_in).astype(float),
        fooled_real=(places < fooled_real).astype(float),
        **{"defense": "jpeg-50", "through": "surrogate-1", **settings},
    )


@pytest.mark.parametrize(
    ("stand_in", "real", "state"), [(90, 90, "ok"), (90, 85, "ok"), (90, 84, "flag"), (40, 46, "flag")]
)
def test_surrogate_gap(stand_in: int, real: int, state: str):
    through = pgd(through="surrogate-1", **JPEG)
    found = check("surrogate_gap", through, diagnostics=[gap(stand_in, real)])
    assert found == {one_id(through): Finding(state, pytest.approx((stand_in - real) / 100))}


def test_surrogate_gap_is_asked_at_the_cells_own_budget_of_rules_that_claim_something():
    through = pgd(through="surrogate-1", **JPEG)
    assert check("surrogate_gap", through, diagnostics=[gap(90, 0, eps=16 / 255)]) == {}
    for rule in ("identity", "noise"):
        assert check("surrogate_gap", pgd(through=rule, **JPEG), diagnostics=[gap(90, 0, through=rule)]) == {}
    assert check("surrogate_gap", pgd(defense="jpeg-50"), diagnostics=[gap(90, 0)]) == {}
    undefined = gap(90, 0)
    undefined["value"] = np.nan
    assert check("surrogate_gap", through, diagnostics=[undefined]) == {}


# ------------------------------------------------------------------------------------------------------- noise control


@pytest.mark.parametrize(
    ("informed", "control", "state"),
    [(150, 20, "ok"), (150, 146, "ok"), (150, 147, "flag"), (20, 60, "flag"), (7, 4, "flag"), (7, 3, "ok")],
)
def test_noise_control(informed: int, control: int, state: str):
    real, noise = pgd(broken=informed, through="identity", **JPEG), pgd(broken=control, through="noise", **JPEG)
    found = check("noise_control", cell(n=N, defense="jpeg-50"), real, noise)
    assert found == {one_id(real): Finding(state, pytest.approx((control - informed) / N))}


@pytest.mark.parametrize(("informed", "control"), [(0, 0), (6, 6), (N, N), (N - 3, N - 1)])
def test_noise_control_is_silent_where_nothing_or_everything_breaks(informed: int, control: int):
    """A small budget breaks nothing by any gradient, a huge one everything without: neither says anything."""
    cells = [pgd(broken=informed, through="identity", **JPEG), pgd(broken=control, through="noise", **JPEG)]
    assert check("noise_control", *cells) == {}


def test_noise_control_compares_each_rule_of_the_same_attack_on_clean_right_samples():
    clean = cell(n=N, defense="jpeg-50", broken=100)
    masked, sound = pgd(broken=120, through="surrogate-n", **JPEG), pgd(broken=190, through="surrogate-1", **JPEG)
    noise = pgd(broken=118, through="noise", **JPEG)
    found = check("noise_control", clean, masked, sound, noise)
    assert (found[one_id(masked)].state, found[one_id(sound)].state) == ("flag", "ok")
    assert found[one_id(masked)].statistic == pytest.approx(-0.02)  # of the 100 that are right on the clean image
    other = pgd(attack="apgd", broken=0, through="identity", **JPEG)
    assert check("noise_control", other, noise) == {}


def test_the_noise_control_is_no_attack_that_other_checks_judge():
    noise = pgd(broken=0, through="noise", zero_gradient=True, **JPEG)
    single = pgd(attack="fgsm", n_backward=1, broken=100, through="noise", **JPEG)
    unaware = pgd(broken=100, defense="jpeg-50")
    frame = samples(cell(n=N, defense="jpeg-50"), noise, single, unaware)
    findings = checks.run_checks(gather(frame, infos(frame)))
    raised = {name for name, of in findings.items() if any(f.state == "flag" for f in of.values())}
    assert raised == set()


# --------------------------------------------------------------------------------------------------------- convergence

SHORT = {"attack_method": "pgd", "attack_settings": {"steps": 20, "step_size": 0.25, "loss": "ce"}}


def longer(steps: int = 40, **settings: Any) -> dict[str, Any]:
    return {"attack_method": "pgd", "attack_settings": {**SHORT["attack_settings"], "steps": steps, **settings}}


@pytest.mark.parametrize(
    ("n", "further", "state"), [(200, 0, "ok"), (200, 3, "ok"), (200, 4, "flag"), (1000, 10, "ok"), (1000, 11, "flag")]
)
def test_not_converged(n: int, further: int, state: str):
    """Lower Clopper-Pearson bounds: 3 of 200 .0031, 4 .0055; 10 of 1000 .0048, 11 .0055."""
    short = pgd(n=n, correct=lost(range(100), n=n))
    long = pgd(n=n, correct=lost(range(10, 100 + further), n=n), attack="pgd40")
    found = check("not_converged", cell(n=n), short, long, told={"pgd20": SHORT, "pgd40": longer()})
    assert found == {one_id(short): Finding(state, further / n)}


@pytest.mark.parametrize(
    "told",
    [
        longer(39), longer(10), longer(loss="margin"), longer(restarts=2), {}, {"attack_settings": {}},
        {**longer(), "attack_method": "apgd"},
    ],
)  # fmt: skip
def test_not_converged_takes_no_other_attack_for_a_twin(told: dict[str, Any]):
    cells = [pgd(broken=0), pgd(attack="other", broken=100)]
    found = check("not_converged", *cells, told={"pgd20": SHORT, "other": told})
    assert one_id(cells[0]) not in found


def test_not_converged_wants_the_same_starts_and_the_nearest_twin():
    short, seeded = pgd(broken=0), pgd(attack="pgd40", broken=100, attack_seed=1)
    told = {"pgd20": SHORT, "pgd40": longer(), "pgd80": longer(80)}
    assert check("not_converged", short, seeded, told=told) == {}
    twin, far = pgd(attack="pgd40", broken=1), pgd(attack="pgd80", broken=100)
    found = check("not_converged", short, twin, far, told=told)
    assert found == {one_id(short): Finding("ok", 1 / N), one_id(twin): Finding("flag", 99 / N)}


def test_not_converged_reads_batteries_and_black_boxes():
    def battery(steps: int, queries: int) -> dict[str, Any]:
        members = [
            {"method": "apgd", "settings": {"steps": steps}},
            {"method": "square", "settings": {"queries": queries}},
        ]
        return {"attack_method": "battery", "attack_settings": {"members": members}}

    short, long = pgd(broken=50), pgd(attack="long", broken=60)
    for queries, expected in ((200, {"flag"}), (100, {"flag"}), (150, set())):
        found = check("not_converged", short, long, told={"pgd20": battery(50, 100), "long": battery(100, queries)})
        assert {f.state for f in found.values()} == expected


# ------------------------------------------------------------------------------------------------------ pipeline facts


def facts(n: int = 4, defense: str = "none", model: str = "digits-cnn", **values: float) -> pd.DataFrame:
    return measured("pipeline_contract", defense=defense, model=model, **{k: [v] * n for k, v in values.items()})


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("softmax_output", "softmax"), ("train_mode", "train_mode"), ("train_mode", "state_changed"),
        ("train_mode", "batch_dependence"), ("random_forward", "random"), ("dynamic_defense", "dynamic"),
    ],
)  # fmt: skip
def test_pipeline_facts(name: str, fact: str):
    cells = [cell(n=N), pgd(), pgd(source_model="digits-vit"), pgd(attack="square", n_backward=0)]
    ids = {one_id(c) for c in cells}
    assert check(name, *cells, diagnostics=[facts(**{fact: 0.0})]) == {i: Finding("ok", 0.0) for i in ids}
    assert check(name, *cells, diagnostics=[facts(**{fact: 1.0})]) == {i: Finding("flag", 1.0) for i in ids}
    assert check(name, *cells) == {}
    assert check(name, *cells, diagnostics=[facts(**{fact: np.nan})]) == {}
    assert check(name, *cells, diagnostics=[facts(model="digits-vit", **{fact: 1.0})]) == {}


@pytest.mark.parametrize(
    ("name", "fact", "of_model"),
    [("softmax_output", "softmax", True), ("train_mode", "train_mode", True), ("dynamic_defense", "dynamic", False),
     ("random_forward", "random", False)],
)  # fmt: skip
def test_what_is_known_of_the_model_and_what_of_the_pipeline(name: str, fact: str, of_model: bool):
    defended = pgd(through="identity", **JPEG)
    bare = {value: check(name, defended, diagnostics=[facts(**{fact: value})]) for value in (0.0, 1.0)}
    assert bare[1.0][one_id(defended)].state == "flag"
    assert bare[0.0] == ({one_id(defended): Finding("ok", 0.0)} if of_model else {})
    both = [facts(**{fact: 0.0}), facts(defense="jpeg-50", **{fact: 1.0})]
    assert check(name, defended, diagnostics=both)[one_id(defended)].state == "flag"
    assert check(name, pgd(), diagnostics=both)[one_id(pgd())].state == ("flag" if of_model else "ok")


def test_train_mode_counts_what_holds_and_ignores_the_batch_of_a_random_pipeline():
    table = [facts(train_mode=1.0, state_changed=1.0, batch_dependence=5e-5)]
    assert check("train_mode", pgd(), diagnostics=table)[one_id(pgd())] == Finding("flag", 2.0)
    dice = [facts(train_mode=0.0, state_changed=0.0, batch_dependence=1.0, random=1.0, defense="noise-8")]
    defended = pgd(defense="noise-8", attack_defense="noise-8", through="identity")
    assert check("train_mode", defended, diagnostics=dice)[one_id(defended)] == Finding("ok", 0.0)


def test_random_forward_is_ok_where_it_is_declared_and_drawn():
    dice = facts(random=1.0, defense="noise-8")
    drawn = pgd(defense="noise-8", p_correct=0.5, n_draws=20)
    once = pgd(defense="noise-8", attack="apgd")
    found = check("random_forward", drawn, once, diagnostics=[dice], defense_is_random=True)
    assert (found[one_id(drawn)].state, found[one_id(once)].state) == ("ok", "flag")
    found = check("random_forward", drawn, diagnostics=[dice], defense_is_random=False)
    assert found[one_id(drawn)] == Finding("flag", 1.0)
    model = facts(random=1.0)
    assert (
        check("random_forward", drawn, diagnostics=[dice, model], defense_is_random=True)[one_id(drawn)].state == "flag"
    )


# ------------------------------------------------------------------------------ who saw the gradient, by the method


def test_black_boxes_are_told_by_their_method_and_not_by_counts_or_names():
    white, black = pgd(broken=50), pgd(attack="hop", broken=90, n_backward=300)
    silent = {"hop": {"uses_gradient": False}}
    assert check("black_box_beats_white_box", white, black) == {}
    found = check("black_box_beats_white_box", white, black, told=silent)
    assert found == {one_id(white): Finding("flag", 40 / N)}
    # a gradient attack that found every sample wrong on the clean image took no backward pass: still no black box
    idle = pgd(attack="apgd", broken=90, n_backward=0)
    assert check("black_box_beats_white_box", white, idle)[one_id(white)].state == "flag"
    told = check("black_box_beats_white_box", white, idle, told={"apgd": {"uses_gradient": True}})
    assert told == {}  # two informed attacks by one rule: nothing without a gradient to compare with


def test_an_ensemble_is_a_black_box_only_without_the_judged_model():
    white, ensemble = pgd(broken=50), pgd(attack="cwa", broken=90, source_model="committee")
    for members, state in ((["digits-vit", "digits-abet"], "flag"), (["digits-vit", "digits-cnn"], None)):
        found = check("black_box_beats_white_box", white, ensemble, told={"cwa": {"source_members": members}})
        assert {f.state for f in found.values()} == ({state} if state else set())
    behind = [pgd(broken=50, through="identity", **JPEG), pgd(attack="cwa", broken=90, source_model="committee",
                                                             defense="jpeg-50")]  # fmt: skip
    found = check("black_box_beats_white_box", *behind, told={"cwa": {"source_members": ["digits-cnn"]}})
    assert found[one_id(behind[0])].state == "flag"  # it knew the model and not the defense


# ----------------------------------------------------------------------------------------------- evidence: measurements


def test_measured_is_by_sample_id_whatever_the_order_of_the_table():
    table = measured("gradient_direction", gain=np.arange(6.0))
    shuffled = table.sample(frac=1, random_state=3)
    frame = samples(pgd())
    for one in (table, shuffled):
        evidence = gather(frame, infos(frame), diagnostics=one)
        found = evidence.measured(evidence.cells[0], "gradient_direction", "gain")
        assert found is not None and found.tolist() == list(range(6))
        assert evidence.measured(evidence.cells[0], "gradient_direction", "beats_all") is None
        assert evidence.measured(evidence.cells[0], "sparsity", "gain") is None
    empty = gather(frame, infos(frame), diagnostics=table.iloc[:0])
    assert empty.measurements == () and gather(frame.iloc[:0], diagnostics=table).measurements


def test_order_of_the_diagnostics_changes_no_finding():
    cells = [pgd(through=r, **JPEG) for r in ("identity", "blur", "surrogate-1")]
    parts = [direction(60, gain=g, defense="jpeg-50", through=r)
             for g, r in ((1.0, "identity"), (3.0, "blur"), (8.0, "surrogate-1"))]  # fmt: skip
    parts += [facts(random=0.0, softmax=0.0, defense="jpeg-50"), facts(random=0.0, dynamic=0.0)]
    table = pd.concat(parts, ignore_index=True)
    frame = samples(*cells)
    first = checks.run_checks(gather(frame, infos(frame), diagnostics=table))
    second = checks.run_checks(gather(frame, infos(frame), diagnostics=table.sample(frac=1, random_state=5)))
    assert first == second and any(first[name] for name in ("gradient_gain", "random_forward"))
