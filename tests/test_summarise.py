"""Metrics and cells from sample tables: each kind of row against arithmetic done by hand or by another library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from synthetic import SCORES, cell, infos, run, samples, table

from windtunnel import store
from windtunnel.checks import CHECKS
from windtunnel.metrics import detection, intervals
from windtunnel.metrics.trivial import trivial_statistics
from windtunnel.stages.summarise import cell_metrics, cells_table, group_metrics, metrics_table

N = 100
RNG = np.random.default_rng(5)


def lost(*groups: range, n: int = N) -> np.ndarray:
    outcome = np.ones(n, dtype=bool)
    for group in groups:
        outcome[list(group)] = False
    return outcome


def pgd(**settings: Any) -> pd.DataFrame:
    return cell(**{"attack": "pgd20", "eps_255": 8, "n": N, **settings})


def metrics(*cells: pd.DataFrame, scores: tuple[str, ...] = (), **settings: Any) -> list[dict[str, Any]]:
    settings.setdefault("replicates", 200)
    return cell_metrics(samples(*cells, scores=scores), scores=scores, **settings)


def pick(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    found = [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]
    assert len(found) == 1, f"{len(found)} rows for {wanted}"
    return found[0]


def one_id(rows: pd.DataFrame) -> str:
    return str(rows["cell_id"].iloc[0])


# ------------------------------------------------------------------------------------------------------------ one cell


def test_accuracy_is_wilson_for_unique_sources_and_counts_nan_and_error_rows_as_wrong():
    rows = metrics(cell(n=N, broken=6, status=["ok"] * 96 + ["nan"] * 3 + ["error"]))
    assert pick(rows, metric="worst_class_accuracy")["value"] is not None
    found = pick(rows, metric="accuracy")
    assert (found["value"], found["n"], found["n_clusters"], found["ci_method"]) == (0.9, 100, 100, "wilson")
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert "3 of 100 rows nan" in found["note"] and "1 of 100 rows error" in found["note"]


def test_a_cell_that_failed_has_no_accuracy():
    some = pick(metrics(cell(n=N, broken=6, status=["ok"] * 96 + ["error"] * 4)), metric="accuracy")
    assert some["value"] is None and some.get("ci_low") is None
    assert "between 0.9000 and 0.9400" in some["note"]
    rows = metrics(cell(n=N, status="error", conf=None))
    assert pick(rows, metric="accuracy")["value"] is None and not [
        r for r in rows if r["metric"] == "worst_class_accuracy"
    ]


def test_repeated_sources_take_the_cluster_bootstrap():
    found = pick(metrics(cell(n=N, broken=20, sources=[f"glyph-{i // 4}" for i in range(N)])), metric="accuracy")
    assert (found["ci_method"], found["n_clusters"]) == ("cluster_bootstrap", 25)
    assert found["ci_high"] - found["ci_low"] > 0.25  # Wilson on 100 would be .156 wide: five whole glyphs are wrong


def test_means_of_a_cell_leave_absent_and_infinite_values_out():
    rows = metrics(
        pgd(psnr=[np.inf, None, *[30.0] * 49, *[32.0] * 49], bpp_file=None, success_float=[True] * 25 + [False] * 75)
    )
    assert pick(rows, metric="psnr")["value"] == pytest.approx(31.0)
    assert pick(rows, metric="psnr")["n"] == 98 and "1 infinite" in pick(rows, metric="psnr")["note"]
    assert not [r for r in rows if r["metric"] == "bpp_file"]
    assert pick(rows, metric="success_float")["value"] == 0.25


def test_calibration_of_one_confidence_is_the_gap():
    rows = metrics(cell(n=N, broken=40, conf=0.8))
    assert pick(rows, metric="ece15")["value"] == pytest.approx(0.2, abs=1e-6)
    assert pick(rows, metric="brier_top")["value"] == pytest.approx(0.6 * 0.04 + 0.4 * 0.64, abs=1e-6)
    assert pick(rows, metric="mean_confidence")["value"] == pytest.approx(0.8, abs=1e-6)
    gone = metrics(cell(n=N, conf=[None] + [0.8] * 99, status=["nan"] + ["ok"] * 99))
    assert pick(gone, metric="ece15")["value"] is None and pick(gone, metric="accuracy")["value"] == 0.99


def test_worst_class_and_unlabelled_sets():
    rows = metrics(
        cell(n=N, correct=lost(range(3, 93, 10))), cell(n=N, split="letters", role="near_ood", labelled=False)
    )
    worst = pick(rows, metric="worst_class_accuracy")
    assert worst["value"] == pytest.approx(0.1) and worst["note"] == "class 3"
    assert {r["split"] for r in rows if r["metric"] == "accuracy"} == {"test"}


# ----------------------------------------------------------------------------------------------------------- detection


def scored(distance: float, n: int = N, **settings: Any) -> pd.DataFrame:
    return cell(
        n=n, scores={"msp": RNG.normal(distance, 1.0, n), "energy": RNG.normal(2 * distance, 1.0, n)}, **settings
    )


OOD: dict[str, Any] = {"role": "near_ood", "labelled": False}


def test_detection_against_the_id_cell_of_the_same_defense():
    clean, jpeg = scored(0.0), scored(0.0, defense="jpeg-50")
    letters, behind = scored(1.0, split="letters", **OOD), scored(1.5, split="letters", defense="jpeg-50", **OOD)
    rows = metrics(clean, jpeg, letters, behind, scores=("msp", "energy"))
    for inside, outside in ((clean, letters), (jpeg, behind)):
        for score in ("msp", "energy"):
            a, b = (c[f"score_{score}"].to_numpy(float) for c in (inside, outside))
            found = pick(rows, cell_id=one_id(outside), score=score, metric="auroc")
            assert found["value"] == pytest.approx(roc_auc_score([0] * N + [1] * N, np.concatenate([a, b])), abs=1e-12)
            assert found["reference_cell_id"] == one_id(inside)
            assert found["ci_low"] < found["value"] < found["ci_high"] and found["ci_method"] == "cluster_bootstrap"
            assert (found["n_id"], found["n_ood"], found["n_clusters"], found["against"]) == (N, N, 2 * N, None)
            fpr = pick(rows, cell_id=one_id(outside), score=score, metric="fpr95_id_positive")
            assert fpr["value"] == np.mean(b <= np.sort(a)[94]) and fpr["higher_is_better"] is False
            area = pick(rows, cell_id=one_id(outside), score=score, metric="aupr_out_trapezoid")
            assert area["ci_low"] is None and area["ci_method"] is None
            assert pick(rows, cell_id=one_id(outside), score=score, metric="tie_share")["value"] == 0.0


def test_adversarial_and_shifted_images_are_detected_against_clean_and_search_images_are_not():
    attacked = [
        pgd(scores={"msp": RNG.normal(1, 1, N)}, mode=m, iterate=i) for m, i in (("full", "best"), ("search", "first"))
    ]
    shifted = cell(n=N, shift="blur", severity=1, role="shifted", scores={"msp": RNG.normal(1, 1, N)})
    validation = cell(n=N, split="val_ood", role="validation", labelled=False, scores={"msp": RNG.normal(1, 1, N)})
    rows = metrics(scored(0.0), *attacked, shifted, validation, scores=("msp",))
    assert pick(rows, cell_id=one_id(attacked[0]), metric="auroc")["against"] == "clean"
    assert (
        pick(rows, cell_id=one_id(attacked[0]), metric="auroc")["n_clusters"] == N
    )  # the same sources, drawn together
    assert pick(rows, cell_id=one_id(shifted), metric="auroc")["against"] == "clean"
    assert not [
        r for r in rows if r.get("cell_id") in (one_id(attacked[1]), one_id(validation)) and r["metric"] == "auroc"
    ]


def test_a_score_that_does_not_apply_has_no_rows_and_a_nan_score_no_value():
    clean, letters = scored(0.0), scored(1.0, split="letters", **OOD)
    letters.loc[3, "score_msp"] = None
    rows = metrics(clean, letters, scores=("msp", "energy", "abet"))
    assert not [r for r in rows if r.get("score") == "abet"]
    assert pick(rows, score="msp", metric="auroc", cell_id=one_id(letters))["value"] is None
    assert "1 rows without a score" in pick(rows, score="msp", metric="auroc", cell_id=one_id(letters))["note"]
    assert pick(rows, score="energy", metric="auroc", cell_id=one_id(letters))["value"] is not None


def test_role_mean_shares_one_resample_of_the_id_set():
    clean = scored(0.0)
    sets = [scored(d, split=f"near{i}", **OOD) for i, d in enumerate((0.5, 1.0, 1.5))]
    rows = metrics(clean, *sets, scores=("msp",), replicates=2000)
    mean = pick(rows, metric="auroc", against="mean of sets")
    single = [pick(rows, metric="auroc", cell_id=one_id(s)) for s in sets]
    assert mean["value"] == pytest.approx(np.mean([r["value"] for r in single]), abs=1e-12)
    assert (mean["split"], mean["role"], mean["members"]) == ("near_ood", "near_ood", sorted(map(one_id, sets)))
    assert mean["cell_id"] is None and mean["n_ood"] == 3 * N and mean["reference_cell_id"] == one_id(clean)
    width = mean["ci_high"] - mean["ci_low"]
    apart = np.sqrt(sum((r["ci_high"] - r["ci_low"]) ** 2 for r in single)) / 3
    assert width > 1.15 * apart  # independent resamples of the ID set would give the narrow one
    a = clean["score_msp"].to_numpy(float)
    weights = detection.detection_weights(
        clean["source_id"].to_numpy(), {one_id(s): s["source_id"].to_numpy() for s in sets}, 2000, 0
    )
    drawn = [detection.auroc_weighted(a, s["score_msp"].to_numpy(float), weights[""], weights[one_id(s)]) for s in sets]
    assert (mean["ci_low"], mean["ci_high"]) == pytest.approx(np.quantile(np.mean(drawn, axis=0), [0.025, 0.975]))


def test_role_mean_is_null_when_a_set_failed_and_areas_are_not_averaged_over_unequal_sets():
    sets = [scored(1.0, split="near0", **OOD), scored(1.0, n=60, split="near1", **OOD)]
    frame = samples(scored(0.0), *sets, scores=("msp",))
    rows = cell_metrics(frame, scores=("msp",), replicates=100)
    assert pick(rows, metric="aupr_in_trapezoid", against="mean of sets")["value"] is None
    assert pick(rows, metric="auroc", against="mean of sets")["value"] is not None
    entries = infos(frame, has_scores=True)
    gone = {**pick(entries, split="near1"), "cell_id": "f" * 12, "split": "near2", "status": "error", "reason": "boom"}
    rows = cell_metrics(frame, scores=("msp",), cell_infos=[*entries, gone], replicates=100)
    mean = pick(rows, metric="auroc", against="mean of sets")
    assert mean["value"] is None and "cell ffffffffffff failed" in mean["note"]


def test_the_id_set_of_another_data_set_is_used_only_if_it_is_the_only_one():
    own, other = scored(0.0), scored(0.0, dataset="scenes")
    foreign = scored(1.0, dataset="mine", split="ood", **OOD)
    assert pick(metrics(own, foreign, scores=("msp",)), cell_id=one_id(foreign), metric="auroc")[
        "reference_cell_id"
    ] == one_id(own)
    rows = metrics(own, other, foreign, scores=("msp",))
    assert not [r for r in rows if r.get("cell_id") == one_id(foreign) and r["metric"] == "auroc"]


# ----------------------------------------------------------------------------------------------------- robust accuracy


def robust(rows: list[dict[str, Any]], against: str, **more: Any) -> dict[str, Any]:
    return pick(rows, metric="robust_accuracy", against=against, **more)


def test_robust_is_right_on_the_clean_image_and_under_every_candidate():
    seen = {"defense": "jpeg-50", "attack_defense": "jpeg-50"}
    clean, noise = (
        cell(n=N, defense="jpeg-50", broken=5),
        pgd(attack="sign-noise", n_backward=0, defense="jpeg-50", broken=8),
    )
    unaware = [
        pgd(defense="jpeg-50", correct=lost(range(20, 30))),
        pgd(defense="jpeg-50", correct=lost(range(28, 35)), iterate="last"),
    ]
    through = [
        pgd(correct=lost(range(30, 60)), through="identity", **seen),
        pgd(correct=lost(range(50, 62)), through="surrogate-1", **seen),
    ]
    transfer = pgd(defense="jpeg-50", correct=lost(range(90, 95)), source_model="digits-vit")
    strayed = pgd(defense="jpeg-50", broken=100, mode="search", iterate="first")
    rows = metrics(clean, noise, *unaware, *through, transfer, strayed)
    assert robust(rows, "unaware")["value"] == pytest.approx(1 - (8 + 15) / N)
    assert robust(rows, "through")["value"] == pytest.approx(1 - (5 + 32) / N)
    everything = robust(rows, "all")
    assert everything["value"] == pytest.approx(1 - (8 + 42 + 5) / N)
    assert set(everything["members"]) == {one_id(c) for c in (clean, noise, *unaware, *through, transfer)}
    assert everything["note"].startswith("lowest: pgd20 identity best") and one_id(through[0]) in everything["note"]
    assert (everything["n"], everything["ci_method"], everything["attack"], everything["through"]) == (
        N,
        "wilson",
        None,
        None,
    )
    by_rule = pick(rows, metric="robust_accuracy_by_attack", against="through", through="surrogate-1")
    assert by_rule["value"] == pytest.approx(1 - (5 + 12) / N) and by_rule["attack"] == "pgd20"
    by_attack = pick(rows, metric="robust_accuracy_by_attack", against="unaware", attack="pgd20")
    assert by_attack["value"] == pytest.approx(1 - (5 + 15) / N)


def test_bare_counts_search_images_and_all_adds_transfer():
    cells = [
        cell(n=N, broken=2),
        pgd(mode="search", iterate="first", broken=50),
        pgd(correct=lost(range(45, 55))),
        pgd(correct=lost(range(60, 63)), source_model="digits-cnn-s1"),
    ]
    rows = metrics(*cells)
    assert robust(rows, "bare")["value"] == pytest.approx(0.45) and robust(rows, "all")["value"] == pytest.approx(0.42)
    assert not [r for r in rows if r["metric"] == "robust_accuracy" and r["against"] in ("unaware", "through")]
    other = robust(metrics(cell(n=N), pgd(source_model="digits-vit")), "all")
    assert other["value"] is None and "not attacked itself" in other["note"]


def test_only_samples_in_every_member_count_and_n_says_so():
    rows = metrics(cell(n=N), pgd(n=60, broken=6), pgd(attack="square", n=40, broken=0, n_backward=0))
    found = robust(rows, "bare")
    assert (found["n"], found["value"]) == (40, pytest.approx(34 / 40)) and "on the 40 samples" in found["note"]
    alone = pick(rows, metric="robust_accuracy_by_attack", attack="pgd20")
    assert (alone["n"], alone["value"]) == (60, pytest.approx(54 / 60)) and "samples in every" not in alone["note"]


def test_nan_is_wrong_and_many_errors_leave_no_number():
    rows = metrics(cell(n=N), pgd(status=["nan"] * 7 + ["ok"] * 93))
    assert robust(rows, "bare")["value"] == pytest.approx(0.93)
    rows = metrics(cell(n=N), pgd(status=["error"] + ["ok"] * 99))
    assert robust(rows, "bare")["value"] == pytest.approx(0.99)
    found = robust(metrics(cell(n=N), pgd(status=["error"] * 5 + ["ok"] * 95)), "bare")
    assert found["value"] is None and found["ci_low"] is None and "between 0.9500 and 1.0000" in found["note"]


def test_a_failed_cell_with_rows_is_neither_a_candidate_nor_a_witness_nor_left_out():
    planted = pgd(attack="apgd", status="error", n_backward=None, zero_gradient=None, success_float=None, linf=None)
    rows = metrics(cell(n=N), pgd(), planted)
    for against in ("bare", "all"):
        found = robust(rows, against)
        assert found["value"] is None and f"cell {one_id(planted)} failed" in found["note"]
        assert one_id(planted) not in found["members"]
    assert not [r for r in rows if r["metric"] == "accuracy_difference"]
    sets = [scored(1.0, split="near0", **OOD), cell(n=N, split="near1", status="error", conf=None, **OOD)]
    frame = samples(scored(0.0), *sets, scores=("msp",))
    rows = cell_metrics(frame, scores=("msp",), cell_infos=infos(frame, has_scores=True), replicates=100)
    assert pick(rows, metric="auroc", against="mean of sets")["value"] is None
    rows = cell_metrics(frame, scores=("msp",), cell_infos=infos(frame, has_scores=False), replicates=100)
    assert pick(rows, metric="auroc", against="mean of sets")["value"] is not None


def test_a_failed_cell_without_rows_is_not_passed_over():
    frame = samples(cell(n=N), pgd())
    gone = {
        **pick(infos(frame), attack="pgd20"),
        "cell_id": "e" * 12,
        "attack": "apgd",
        "status": "error",
        "reason": "boom",
    }
    rows = cell_metrics(frame, scores=(), cell_infos=[*infos(frame), gone], replicates=100)
    for against in ("bare", "all"):
        assert robust(rows, against)["value"] is None and "cell eeeeeeeeeeee failed" in robust(rows, against)["note"]
    assert pick(rows, metric="robust_accuracy_by_attack", attack="pgd20")["value"] == 1.0
    elsewhere = {**gone, "threat": "linf-4"}
    rows = cell_metrics(frame, scores=(), cell_infos=[*infos(frame), elsewhere], replicates=100)
    assert robust(rows, "bare", threat="linf-8")["value"] == 1.0
    assert robust(rows, "bare", threat="linf-4")["value"] is None
    assert metrics_table(rows).num_rows == len(rows)


def test_a_defense_that_was_not_attacked_through_is_null_not_robust():
    rows = metrics(cell(n=N, defense="wavelet"), pgd(defense="wavelet", broken=30))
    assert robust(rows, "unaware")["value"] == pytest.approx(0.7)
    for against in ("through", "all"):
        assert robust(rows, against)["value"] is None and "not attacked through" in robust(rows, against)["note"]
    assert robust(metrics(pgd(broken=3)), "bare")["note"] == "no clean cell of this pipeline"


@pytest.mark.parametrize("generic", [True, False, None])
def test_generic_rules_carry_the_dagger(generic: bool | None):
    frame = samples(
        cell(n=N, defense="tv"), pgd(defense="tv"), pgd(defense="tv", attack_defense="tv", through="identity")
    )
    rows = cell_metrics(frame, scores=(), cell_infos=infos(frame, rule_is_generic=generic), replicates=100)
    assert {a: "upper bound" in robust(rows, a)["note"] for a in ("unaware", "through", "all")} == {
        "unaware": False,
        "through": bool(generic),
        "all": bool(generic),
    }


def test_random_defenses_take_the_least_p_correct():
    def draws(p: list[float], **settings: Any) -> pd.DataFrame:
        rows = (pgd if settings else cell)(n=4, p_correct=p, n_draws=20, defense="resize", **settings)
        rows["correct"] = None
        return rows

    cells = [
        draws([1.0, 1.0, 0.5, 1.0]),
        draws([0.5, 1.0, 1.0, 0.0], attack_defense="resize", through="identity"),
        draws([0.75, 1.0, 1.0, 1.0], attack_defense="none"),
    ]
    rows = metrics(*cells)
    assert robust(rows, "all")["value"] == pytest.approx((0.5 + 1.0 + 0.5 + 0.0) / 4)
    assert "least p(correct)" in robust(rows, "all")["note"]
    clean = pick(rows, metric="accuracy", attack="none")
    assert clean["value"] == pytest.approx(0.875) and "draws" in clean["note"]


# -------------------------------------------------------------------------------------------------------------- paired


def test_defense_against_none_is_paired_on_the_same_images():
    clean = [cell(n=N, correct=lost(range(10))), cell(n=N, defense="jpeg-50", correct=lost(range(5, 25)))]
    attacked = [
        pgd(n=80, broken=70),
        pgd(n=60, broken=20, defense="jpeg-50"),
        pgd(broken=1, defense="jpeg-50", attack_defense="jpeg-50", through="identity"),
    ]
    rows = [r for r in metrics(*clean, *attacked) if r["metric"] == "accuracy_difference"]
    assert {r["cell_id"] for r in rows} == {one_id(clean[1]), one_id(attacked[1])}
    found = pick(rows, attack="none")
    assert found["baseline_cell_id"] == one_id(clean[0]) and found["value"] == pytest.approx(-0.10)
    assert found["p_value"] == pytest.approx(stats.binomtest(5, 20, 0.5).pvalue)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(intervals.tango(5, 15, 100))
    unaware = pick(rows, attack="pgd20")
    assert (unaware["n"], unaware["value"]) == (60, pytest.approx((40 - 0) / 60))


# ---------------------------------------------------------------------------------------------------------- over seeds


def seeds_of(values: dict[tuple[str, str, int], float], metric: str = "auroc", **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "model": m,
            "score": s,
            "model_seed": k,
            "metric": metric,
            "value": v,
            "dataset": "d",
            "split": "near_ood",
            "role": "near_ood",
            "shift": "none",
            "against": "mean of sets",
            "attack": "none",
            "threat": "none",
            "defense": "none",
            "group_id": f"{m}{s}{k}",
            "n_id": 500,
            "higher_is_better": True,
            **more,
        }
        for (m, s, k), v in values.items()
    ]


def test_seed_means_have_student_intervals():
    rows = group_metrics(seeds_of({("net", "msp", k): v for k, v in enumerate((0.90, 0.94, 0.98))}), pairs=())
    found = pick(rows, metric="auroc")
    low, high = stats.t.interval(0.95, 2, loc=0.94, scale=0.04 / np.sqrt(3))
    assert (found["value"], found["seed_sd"], found["seeds"]) == (pytest.approx(0.94), pytest.approx(0.04), 3)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((low, high))
    assert found["model_seed"] is None if "model_seed" in found else True
    assert found["members"] == ["netmsp0", "netmsp1", "netmsp2"] and found["n_id"] == 500
    assert group_metrics(seeds_of({("net", "msp", 0): 0.9}), pairs=()) == []
    missing = group_metrics(seeds_of({("net", "msp", 0): 0.9, ("net", "msp", 1): None}), pairs=())
    assert missing[0]["value"] is None and missing[0]["seeds"] == 2


def test_differences_are_paired_over_seeds():
    ours, theirs = (0.95, 0.97, 0.96), (0.90, 0.93, 0.92)
    values = {("a", "abet", k): v for k, v in enumerate(ours)} | {("b", "energy", k): v for k, v in enumerate(theirs)}
    values[("b", "energy", 3)] = 0.1  # a seed that the other side does not have
    rows = group_metrics(seeds_of(values), pairs=[(("a", "abet"), ("b", "energy")), (("a", "abet"), ("c", "msp"))])
    found = pick(rows, metric="auroc_difference")
    test = stats.ttest_rel(ours, theirs)
    assert found["value"] == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert found["p_value"] == pytest.approx(test.pvalue) and found["seeds"] == 3
    assert (found["model"], found["score"], found["against"]) == ("a", "abet", "b:energy")
    interval = test.confidence_interval(0.95)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((interval.low, interval.high))


def test_equal_gaps_have_no_t_and_fpr_is_compared_the_right_way():
    values = {("a", "x", k): 0.5 for k in range(3)} | {("b", "x", k): 0.75 for k in range(3)}
    rows = seeds_of(values, metric="fpr95_id_positive", higher_is_better=False)
    found = pick(group_metrics(rows, pairs=[(("a", "x"), ("b", "x"))]), metric="fpr95_id_positive_difference")
    assert (found["value"], found["p_value"], found["higher_is_better"]) == (-0.25, 0.0, False)


def test_attacks_on_the_own_seed_share_a_key_and_transfers_do_not():
    own = [
        {**r, "source_model": "net" if r["model_seed"] == 0 else f"net-s{r['model_seed']}"}
        for r in seeds_of({("net", "msp", k): 0.5 + k / 10 for k in range(2)})
    ]
    transfer = [{**r, "source_model": "net"} for r in seeds_of({("net", "msp", 1): 0.9, ("net", "msp", 2): 0.7})]
    rows = group_metrics([*own, *transfer], pairs=())
    assert {(r["source_model"], round(r["value"], 3)) for r in rows} == {(None, 0.55), ("net", 0.8)}


# -------------------------------------------------------------------------------------------------------------- tables


def whole() -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    frame = run(seeds=2, n=30, n_attacked=20)
    rows: list[dict[str, Any]] = []
    for _, part in frame.groupby(["model", "model_seed"]):
        rows += cell_metrics(part, scores=SCORES, cell_infos=infos(part), replicates=50)
    return frame, rows + group_metrics(rows)


@pytest.fixture(scope="module")
def everything() -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    return whole()


def test_a_whole_run_fits_the_schema_and_holds_every_kind(everything: tuple[pd.DataFrame, list[dict[str, Any]]]):
    _, rows = everything
    found = metrics_table(rows)
    assert found.schema.equals(store.schema(store.METRIC_FIELDS))
    frame = found.to_pandas()
    assert (frame["cell_id"].notna() ^ frame["group_id"].notna()).all()
    values = frame[~frame["metric"].isin(["psnr", "bpp_file", "bpp_payload", "distinct_values"])]["value"].dropna()
    assert values.between(-1, 1).all()
    both = frame.dropna(subset=["value", "ci_low"])
    both = both[~both["metric"].isin(["robust_accuracy"])]
    assert (both["ci_low"] <= both["value"] + 1e-9).all() and (both["value"] <= both["ci_high"] + 1e-9).all()
    assert set(frame["metric"]) >= {
        "accuracy",
        "ece15",
        "auroc",
        "robust_accuracy",
        "accuracy_difference",
        "auroc_difference",
        "fpr95_id_positive_difference",
        "fpr95_ood_positive",
        "bpp_payload",
    }
    assert (
        frame[frame["group_id"].notna()]["group_id"]
        .groupby([frame["metric"], frame["group_id"], frame["through"].fillna("")])
        .size()
        .max()
        == 1
    )


def test_tables_do_not_depend_on_the_order_of_rows(everything: tuple[pd.DataFrame, list[dict[str, Any]]]):
    frame, rows = everything
    shuffled = frame.sample(frac=1.0, random_state=1).reset_index(drop=True)
    again: list[dict[str, Any]] = []
    for _, part in reversed(list(shuffled.groupby(["model", "model_seed"]))):
        again += cell_metrics(part, scores=SCORES, cell_infos=infos(part)[::-1], replicates=50)
    again += group_metrics(again)
    assert store.table_bytes(metrics_table(rows)) == store.table_bytes(metrics_table(again[::-1]))
    assert cells_table(frame, infos(frame)).equals(cells_table(shuffled, infos(frame)[::-1]))


def test_rows_read_back_from_a_file_give_the_same_groups(everything: tuple[pd.DataFrame, list[dict[str, Any]]]):
    _, rows = everything
    single = [r for r in rows if r.get("model_seed") is not None]
    back = metrics_table(single).to_pylist()
    assert metrics_table([*back, *group_metrics(back)]).equals(metrics_table(rows))


def test_holm_runs_within_a_family():
    base = {"model": "m", "metric": "accuracy_difference", "attack": "none"}
    rows: list[dict[str, Any]] = [{**base, "cell_id": f"c{i}", "p_value": p} for i, p in enumerate((0.01, 0.04, 0.03))]
    pair = {"model": "m", "metric": "auroc_difference", "attack": "none", "p_value": 0.02}
    rows += [
        {**pair, "group_id": "g1", "note": "mean of sets; paired t"},
        {**pair, "group_id": "g2", "note": "paired t"},
        {**pair, "group_id": "g3", "note": "paired t", "p_value": None},
        {"model": "m", "metric": "accuracy", "cell_id": "c0"},
    ]
    found = metrics_table(rows).to_pandas()
    adjusted = found[found["metric"] == "accuracy_difference"].set_index("cell_id")["p_adjusted"]
    assert adjusted.to_dict() == pytest.approx({"c0": 0.03, "c1": 0.06, "c2": 0.06})
    assert found.set_index("group_id").loc[["g1", "g2"], "p_adjusted"].tolist() == [0.02, 0.02]
    assert found["p_adjusted"].isna().sum() == 2


def test_cells_table_counts_rows_and_raises_flags():
    planted = pgd(status=["nan"] * 2 + ["bound"] + ["ok"] * 97, linf=[0.0, 0.0, 0.5, *[8 / 255] * 97])
    frame = samples(cell(n=N), planted)
    gone = {**infos(frame)[0], "cell_id": "0" * 12, "status": "error", "reason": "ValueError: boom", "attack": "apgd"}
    found = cells_table(frame, [*infos(frame), gone])
    assert found.schema.names[0] == "cell_id" and found.schema.names[-1] == "flags"
    assert {f"{kind}_{name}" for name in CHECKS for kind in ("check", "stat")} <= set(found.schema.names)
    rows = {r["cell_id"]: r for r in found.to_pylist()}
    attacked = rows[one_id(planted)]
    assert [attacked[f"n{s}"] for s in ("", "_ok", "_nan", "_bound", "_error")] == [100, 97, 2, 1, 0]
    assert attacked["flags"] == "nan_gradient bound_violation" and attacked["check_nan_gradient"] == "flag"
    assert attacked["stat_nan_gradient"] == pytest.approx(0.02) and attacked["eps_255"] == 8
    assert attacked["check_rounds_raise_accuracy"] is None and attacked["stat_rounds_raise_accuracy"] is None
    failed = rows["0" * 12]
    assert (failed["n"], failed["status"], failed["reason"], failed["flags"]) == (0, "error", "ValueError: boom", "")
    assert failed["check_nan_gradient"] is None
    with pytest.raises(ValueError, match="no entry in the plan"):
        cells_table(frame, [gone])


def test_null_shift_and_the_word_none_are_the_same():
    rows = cell(n=N)
    rows["shift"] = None
    found = metrics(rows, pgd())
    assert robust(found, "bare")["value"] == 1.0 and pick(found, metric="accuracy", attack="none")["shift"] == "none"


def test_empty_table_and_synthetic_schema():
    frame = samples(cell(n=2)).iloc[:0]
    assert cell_metrics(frame, scores=()) == [] and metrics_table([]).num_rows == 0
    assert table(cell(n=3, scores={"msp": np.zeros(3)}), scores=("msp",)).schema.equals(store.samples_schema(["msp"]))


# --------------------------------------------------------------------------------------------------- trivial statistics


def test_trivial_statistics_of_known_images():
    flat = np.full((4, 4, 3), 51, dtype=np.uint8)
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    stripes = np.zeros((4, 4, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    found = trivial_statistics(np.stack([flat, red, stripes]))
    assert found["range"].tolist() == [0.0, 1.0, 1.0]
    assert found["saturation"].tolist() == [0.0, 1.0, 0.0]
    assert found["total_variation"] == pytest.approx([0.0, 0.0, 0.5])
    with pytest.raises(ValueError, match="uint8"):
        trivial_statistics(np.zeros((1, 4, 4, 3)))


def test_consistency_is_the_share_of_answers_that_a_shift_leaves_alone():
    plain, shifted = cell(n=N, broken=10), cell(n=N, broken=20, shift="pixel_shift", severity=1, role="shifted")
    found = pick(metrics(plain, shifted), metric="consistency")
    assert (found["value"], found["n"], found["against"]) == (0.9, N, "unshifted")  # ten are wrong in the same way
    assert found["cell_id"] == one_id(shifted) and found["baseline_cell_id"] == one_id(plain)
    assert found["ci_low"] < 0.9 < found["ci_high"]
    assert not [r for r in metrics(shifted) if r["metric"] == "consistency"]
