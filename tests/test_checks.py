"""Every check fires on its planted case and stays silent on the clean twin, at the level of sample tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import cell, infos, run, samples

from windtunnel import checks
from windtunnel.checks import base

N = 200


def states(frame: pd.DataFrame, name: str, cell_infos: list[dict[str, Any]] | None = None) -> dict[str, base.Finding]:
    evidence = checks.gather(frame, infos(frame) if cell_infos is None else cell_infos)
    return checks.CHECKS[name].check(evidence)


def one_id(rows: pd.DataFrame) -> str:
    return str(rows["cell_id"].iloc[0])


def lost(*indices: range | list[int], n: int = N) -> np.ndarray:
    """Outcomes of n samples, those indexed wrong."""
    outcome = np.ones(n, dtype=bool)
    for group in indices:
        outcome[list(group)] = False
    return outcome


def pgd(**settings: Any) -> pd.DataFrame:
    return cell(**{"attack": "pgd20", "eps_255": 8, "n": N, **settings})


# ------------------------------------------------------------------------------------------------------ the list itself


def test_one_file_per_check_with_words():
    files = {p.stem for p in Path(checks.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(checks.CHECKS)
    for module in checks.CHECKS.values():
        for words in (module.TITLE, module.MEANS, module.REMEDY, module.THRESHOLD):
            assert isinstance(words, str) and len(words) > 8
        assert "\n" not in module.MEANS


def test_every_check_has_its_row_in_the_documentation():
    text = (Path(checks.__file__).parents[2] / "docs/attacks/checks.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert rows == list(checks.CHECKS)


def test_clean_cells_alone_raise_nothing():
    findings = checks.run_checks(checks.gather(samples(cell(n=N), cell(n=N, defense="jpeg-50"))))
    assert {name for name, of in findings.items() if of} == {"nan_gradient"}
    assert {f.state for f in findings["nan_gradient"].values()} == {"ok"}


def test_empty_table():
    frame = samples(cell(n=3)).iloc[:0]
    assert all(not found for found in checks.run_checks(checks.gather(frame)).values())


def test_whole_run_in_small_flags_only_the_masked_rule():
    frame = run(seeds=1, models=("digits-cnn",), n=200, n_attacked=200)
    findings = checks.run_checks(checks.gather(frame, infos(frame)))
    first = frame.drop_duplicates("cell_id").set_index("cell_id")
    raised = {i for i, f in findings["through_weaker_than_unaware"].items() if f.state == "flag"}
    assert raised and {first.loc[i, "through"] for i in raised} == {"surrogate-n"}
    assert {first.loc[i, "defense"] for i in raised} >= {"jpeg-50-x5", "jpeg-50-x10"}


# ----------------------------------------------------------------------------------------------------- undefended falls


@pytest.mark.parametrize(("right", "state"), [(0, "ok"), (2, "ok"), (3, "flag"), (100, "flag")])
def test_undefended_falls(right: int, state: str):
    probe = pgd(eps_255=16, broken=N - right)
    judged = [pgd(eps_255=8, broken=150), pgd(eps_255=8, broken=90, defense="jpeg-50")]
    found = states(samples(cell(n=N), probe, *judged), "undefended_falls")
    assert {found[one_id(c)].state for c in [probe, *judged]} == {state}
    assert found[one_id(probe)].statistic == pytest.approx(right / N)


def test_undefended_falls_needs_a_probe_at_twice_the_largest_reported_budget():
    ladder = [pgd(eps_255=e, broken=b) for e, b in ((1, 60), (2, 100), (4, 150), (8, 190))]
    defended = pgd(eps_255=8, broken=100, defense="jpeg-50")
    assert states(samples(*ladder, defended), "undefended_falls") == {}
    found = states(samples(*ladder, defended, pgd(eps_255=16, broken=N)), "undefended_falls")
    assert {f.state for f in found.values()} == {"ok"} and len(found) == 6


def test_undefended_falls_judges_a_hardened_model_by_its_twin():
    hardened = [pgd(model="digits-at", eps_255=8, broken=70), pgd(model="digits-at", eps_255=16, broken=150)]
    twin = [pgd(eps_255=8, broken=195), pgd(eps_255=16, broken=N)]
    frame = samples(*hardened, *twin)
    assert {f.state for f in states(frame, "undefended_falls").values()} == {"ok"}
    unmarked = [{**i, "adversarially_trained": None} for i in infos(frame)]
    assert states(frame, "undefended_falls", unmarked)[one_id(hardened[0])].state == "flag"
    assert states(samples(*hardened), "undefended_falls") == {}


def test_undefended_falls_leaves_single_steps_and_black_boxes_out():
    frame = samples(
        pgd(attack="fgsm", eps_255=8, n_backward=1),
        pgd(attack="fgsm", eps_255=16, n_backward=1),
        pgd(attack="square", eps_255=8, n_backward=0),
        pgd(attack="square", eps_255=16, n_backward=0),
    )
    assert states(frame, "undefended_falls") == {}


# ------------------------------------------------------------------------------------------------ zero and NaN gradient


@pytest.mark.parametrize(("zeros", "state"), [(0, "ok"), (2, "ok"), (3, "flag")])
def test_zero_gradient(zeros: int, state: str):
    attacked = pgd(zero_gradient=[i >= N - zeros for i in range(N)])
    found = states(samples(cell(n=N), attacked), "zero_gradient")
    assert found == {one_id(attacked): base.Finding(state, zeros / N)}


def test_zero_gradient_counts_only_what_the_attacked_pipeline_gets_right():
    attacked = pgd(
        zero_gradient=[i < 100 for i in range(N)], defense="jpeg-50", attack_defense="jpeg-50", through="identity"
    )
    clean = [cell(n=N), cell(n=N, defense="jpeg-50", broken=99)]
    found = states(samples(*clean, attacked), "zero_gradient")
    assert found[one_id(attacked)] == base.Finding("ok", 1 / 101)
    without = states(samples(attacked), "zero_gradient")
    assert without[one_id(attacked)] == base.Finding("flag", 0.5)


def test_zero_gradient_is_not_asked_of_black_boxes_and_transfers():
    frame = samples(
        pgd(attack="square", n_backward=0, zero_gradient=True), pgd(source_model="digits-vit", zero_gradient=True)
    )
    assert states(frame, "zero_gradient") == {}


def test_nan_gradient():
    planted = pgd(status=["nan"] + ["ok"] * (N - 1))
    found = states(samples(pgd(attack="apgd"), planted), "nan_gradient")
    assert found[one_id(planted)] == base.Finding("flag", 1 / N)
    assert sorted(f.state for f in found.values()) == ["flag", "ok"]


def test_nan_gradient_reads_its_own_column_where_there_is_one_and_skips_failed_cells():
    frame = samples(pgd())
    frame["nan_gradient"] = [True] * 4 + [False] * (N - 4)
    assert [f.state for f in states(frame, "nan_gradient").values()] == ["flag"]
    assert states(samples(pgd(status="error")), "nan_gradient") == {}


# ------------------------------------------------------------------------------------------- attacks against each other


@pytest.mark.parametrize(("extra", "state"), [(0, "ok"), (2, "ok"), (3, "flag")])
def test_single_step_beats_iterative(extra: int, state: str):
    single = pgd(attack="fgsm", n_backward=1, correct=lost(range(50), range(100, 100 + extra)))
    iterative = [pgd(correct=lost(range(60)), iterate=i) for i in ("best", "last")]
    found = states(samples(cell(n=N), single, *iterative), "single_step_beats_iterative")
    assert found == {one_id(c): base.Finding(state, extra / N) for c in iterative}


def test_single_step_is_covered_by_any_iterate_and_another_rule_is_another_matter():
    single = pgd(attack="fgsm", n_backward=1, correct=lost(range(50)))
    best, last = pgd(correct=lost(range(40))), pgd(correct=lost(range(30, 60)), iterate="last")
    assert {f.state for f in states(samples(single, best, last), "single_step_beats_iterative").values()} == {"ok"}
    seen = {"defense": "jpeg-50", "attack_defense": "jpeg-50"}
    other = pgd(correct=lost(range(0)), through="identity", **seen)
    single_through = pgd(attack="fgsm", n_backward=1, correct=lost(range(50)), through="surrogate-1", **seen)
    assert states(samples(other, single_through), "single_step_beats_iterative") == {}


@pytest.mark.parametrize(("n", "extra", "state"), [(200, 2, "ok"), (200, 3, "flag"), (500, 4, "ok"), (500, 5, "flag")])
@pytest.mark.parametrize("kind", ["square", "sign-noise", "transfer", "unaware"])
def test_black_box_beats_white_box(kind: str, n: int, extra: int, state: str):
    seen = {"defense": "jpeg-50", "attack_defense": "jpeg-50", "through": "surrogate-n"} if kind == "unaware" else {}
    white = pgd(n=n, correct=lost(range(100), n=n), **seen)
    black = pgd(
        correct=lost(range(90, 100), range(150, 150 + extra), n=n),
        attack=kind if kind in ("square", "sign-noise") else "pgd20",
        n_backward=20 if kind in ("transfer", "unaware") else 0,
        source_model="digits-vit" if kind == "transfer" else None,
        defense=seen.get("defense", "none"),
    )
    found = states(samples(cell(n=n), white, black), "black_box_beats_white_box")
    assert found == {one_id(white): base.Finding(state, extra / n)}


def test_black_box_check_keeps_rules_apart_and_knows_other_seeds_as_other_models():
    seen = {"defense": "jpeg-50-x10", "attack_defense": "jpeg-50-x10"}
    masked, sound = (
        pgd(correct=lost(range(48)), through="surrogate-n", **seen),
        pgd(broken=198, through="surrogate-1", **seen),
    )
    unaware = pgd(correct=lost(range(98)), defense="jpeg-50-x10")
    found = states(samples(masked, sound, unaware), "black_box_beats_white_box")
    assert (found[one_id(masked)].state, found[one_id(sound)].state) == ("flag", "ok")
    assert found[one_id(masked)].statistic == pytest.approx(0.25)
    own, other = pgd(model_seed=1, broken=0), pgd(model_seed=1, broken=50, source_model="digits-cnn")
    assert states(samples(own, other), "black_box_beats_white_box")[one_id(own)].state == "flag"


def test_search_images_of_another_pipeline_are_no_witness():
    white = pgd(broken=0, defense="jpeg-50", attack_defense="jpeg-50", through="identity")
    strayed = pgd(broken=50, defense="jpeg-50", mode="search", iterate="first")
    assert states(samples(white, strayed), "black_box_beats_white_box") == {}


@pytest.mark.parametrize(("more", "state"), [(-20, "ok"), (0, "ok"), (2, "ok"), (3, "flag"), (50, "flag")])
def test_through_weaker_than_unaware(more: int, state: str):
    unaware = pgd(broken=100, defense="jpeg-50")
    through = pgd(broken=100 - more, defense="jpeg-50", attack_defense="jpeg-50", through="surrogate-1")
    found = states(samples(cell(n=N, defense="jpeg-50"), unaware, through), "through_weaker_than_unaware")
    assert found == {one_id(through): base.Finding(state, pytest.approx(more / N))}


def test_through_is_compared_with_the_same_attack_iterate_and_samples():
    seen = {"defense": "jpeg-50", "attack_defense": "jpeg-50", "through": "identity"}
    through = pgd(n=100, broken=60, iterate="last", **seen)
    unaware = [
        pgd(broken=50, defense="jpeg-50", iterate="last"),
        pgd(broken=190, defense="jpeg-50", iterate="best"),
        pgd(attack="apgd", broken=199, defense="jpeg-50", iterate="last"),
    ]
    found = states(samples(through, *unaware), "through_weaker_than_unaware")
    assert found[one_id(through)] == base.Finding("ok", pytest.approx(-0.1))
    assert states(samples(through, unaware[2]), "through_weaker_than_unaware") == {}


# --------------------------------------------------------------------------------------------------------------- rounds


def sequential(levels: dict[int, int], rule: str, *, disagree: int = 0, **settings: Any) -> list[pd.DataFrame]:
    """Clean and through cells of jpeg-50 applied so many times; ``levels`` = right under attack, by rounds."""
    found = []
    for place, (rounds, right) in enumerate(levels.items()):
        defense = "jpeg-50" if rounds == 1 else f"jpeg-50-x{rounds}"
        predictions = np.arange(N) % 10
        predictions[: disagree * place] += 1
        found.append(cell(n=N, defense=defense, pred=predictions % 10))
        used = "surrogate-1" if rounds == 1 and rule == "surrogate-n" else rule
        found.append(pgd(broken=N - right, defense=defense, attack_defense=defense, through=used, **settings))
    return found


def test_rounds_raise_accuracy_fires_on_the_classic_trap_and_not_on_its_twin():
    masked = sequential({1: 2, 2: 24, 3: 122, 5: 140, 10: 156}, "surrogate-n")
    sound = sequential({2: 2, 3: 3, 5: 2, 10: 2}, "surrogate-1")
    frame = samples(*masked, *[c for c in sound if c["attack"].iloc[0] != "none"])
    found = states(frame, "rounds_raise_accuracy")
    assert {found[one_id(c)].state for c in masked[3::2]} == {"flag"}
    assert {found[one_id(c)].state for c in sound[1::2]} == {"ok"}
    assert found[one_id(masked[-1])].statistic == pytest.approx(0.77)


@pytest.mark.parametrize(("rise", "state"), [(9, "ok"), (13, "flag")])
def test_rounds_need_five_points_and_significance(rise: int, state: str):
    cells = sequential({1: 20, 2: 20 + rise}, "identity")
    assert states(samples(*cells), "rounds_raise_accuracy")[one_id(cells[3])] == base.Finding(
        state, pytest.approx(rise / N)
    )


def test_rounds_insignificant_rise_is_silent():
    """+6 points made of 62 gains and 50 losses: McNemar p = .3."""
    before, after = lost(range(0, 62)), lost(range(62, 112))
    cells = [c for c in sequential({1: 0, 2: 0}, "identity") if c["attack"].iloc[0] == "none"]
    for defense, outcome in (("jpeg-50", before), ("jpeg-50-x2", after)):
        cells.append(pgd(correct=outcome, defense=defense, attack_defense=defense, through="identity"))
    assert states(samples(*cells), "rounds_raise_accuracy")[one_id(cells[-1])] == base.Finding(
        "ok", pytest.approx(0.06)
    )


def test_rounds_that_change_predictions_or_have_no_clean_cell_are_not_compared():
    different = sequential({1: 0, 2: 150}, "identity", disagree=5)
    assert states(samples(*different), "rounds_raise_accuracy") == {}
    near = sequential({1: 0, 2: 150}, "identity", disagree=4)
    assert states(samples(*near), "rounds_raise_accuracy")[one_id(near[-1])].state == "flag"
    attacked = [c for c in near if c["attack"].iloc[0] != "none"]
    assert states(samples(*attacked), "rounds_raise_accuracy") == {}


# --------------------------------------------------------------------------------------------------- bounds and storage


@pytest.mark.parametrize(("distance", "state"), [(8 / 255, "ok"), (8 / 255 + 1e-7, "ok"), (9 / 255, "flag")])
def test_bound_violation(distance: float, state: str):
    attacked = pgd(linf=[distance] + [8 / 255] * (N - 1))
    found = states(samples(cell(n=N), attacked), "bound_violation")
    assert found == {one_id(attacked): base.Finding(state, 1 / N if state == "flag" else 0.0)}


def test_bound_violation_reads_the_norm_of_the_threat_and_the_status():
    l2 = pgd(threat="l2-50", norm="l2", eps=0.5, eps_255=None, l2=[0.51] + [0.5] * (N - 1), linf=0.4)
    assert states(samples(l2), "bound_violation")[one_id(l2)] == base.Finding("flag", 1 / N)
    said = pgd(status=["bound"] * 2 + ["ok"] * (N - 2), linf=None)
    assert states(samples(said), "bound_violation")[one_id(said)].state == "flag"


@pytest.mark.parametrize(
    ("n", "count", "state"), [(200, 3, "ok"), (200, 4, "flag"), (1000, 5, "ok"), (1000, 6, "flag")]
)
def test_eight_bit_loss(n: int, count: int, state: str):
    attacked = pgd(n=n, broken=100, success_float=[i < 100 + count for i in range(n)])
    assert states(samples(attacked), "eight_bit_loss") == {one_id(attacked): base.Finding(state, count / n)}


def test_eight_bit_loss_is_only_asked_of_the_attacked_pipeline_in_linf():
    planted: dict[str, Any] = {"broken": 0, "success_float": True}
    frame = samples(
        pgd(defense="jpeg-50", **planted),
        pgd(iterate="last", **planted),
        pgd(source_model="digits-vit", **planted),
        pgd(threat="l2-50", norm="l2", eps=0.5, eps_255=None, l2=0.4, **planted),
    )
    assert states(frame, "eight_bit_loss") == {}


# ------------------------------------------------------------------------------------------------------------- evidence


def test_failed_cells_are_no_witnesses():
    failed = {"status": "error", "n_backward": None, "zero_gradient": None, "success_float": None, "linf": None}
    frame = samples(
        cell(n=N), pgd(), pgd(attack="square", **failed), pgd(attack="fgsm", **failed), pgd(eps_255=16, **failed)
    )
    findings = checks.run_checks(checks.gather(frame, infos(frame)))
    assert not [f for of in findings.values() for f in of.values() if f.state == "flag"]
    assert not findings["black_box_beats_white_box"] and not findings["undefended_falls"]


def test_failed_rows_are_wrong_and_random_defenses_count_their_draws():
    rows = cell(n=4, status=["ok", "nan", "error", "ok"], correct=[True, True, True, False])
    rows["correct"] = [True, None, True, False]
    found = base.gather(samples(rows)).cells[0]
    assert found.counted.tolist() == [1.0, 0.0, 0.0, 0.0] and np.isnan(found.hit).tolist() == [
        False,
        False,
        True,
        False,
    ]
    random = cell(n=3, p_correct=[0.25, 1.0, 0.0], n_draws=20)
    random["correct"] = None
    found = base.gather(samples(random)).cells[0]
    assert found.is_random and found.accuracy == pytest.approx(1.25 / 3)
    unlabelled = base.gather(samples(cell(n=3, labelled=False, status=["ok", "nan", "ok"]))).cells[0]
    assert not unlabelled.labelled and np.isnan(unlabelled.accuracy)


@pytest.mark.parametrize(
    ("key", "relation"),
    [
        ({"attack": "none"}, "clean"),
        ({}, "bare"),
        ({"defense": "d"}, "unaware"),
        ({"defense": "d", "attack_defense": "d"}, "through"),
        ({"defense": "d", "attack_defense": "e"}, "crossed"),
        ({"attack_defense": "e"}, "crossed"),
        ({"source_model": "net"}, "transfer"),
        ({"source_model": "net-s2"}, "transfer"),
    ],
)
def test_relation(key: dict[str, str], relation: str):
    full = {"attack": "pgd", "attack_defense": "none", "defense": "none", "source_model": "net-s1", **key}
    assert base.relation_of(full, base.own_name("net", 1)) == relation
    assert base.own_name("net", 0) == "net" and base.own_name("net", 3, {"own_name": "net"}) == "net"
