"""Tables: the numbers are those of the metrics, daggers stand where they must, every printed form escapes its signs."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from present_frames import cells_of, metric_frame, metrics_of, whole_run
from synthetic import cell, samples

from windtunnel.checks import CHECKS
from windtunnel.present import layout, render, tables, words
from windtunnel.present.layout import Column, Table
from windtunnel.present.names import TABLE_NAMES

PLACE = {
    "dataset": "photodigits",
    "split": "test",
    "role": "id",
    "shift": "none",
    "model": "digits-cnn",
    "model_seed": 0,
}


@pytest.fixture(scope="module")
def made() -> dict[str, Table]:
    _, metrics, cells = whole_run()
    return tables.all_tables(metrics, cells)


def one(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    """The only row that matches."""
    for name, value in wanted.items():
        frame = frame[frame[name].isna() if value is None else frame[name] == value]
    assert len(frame) == 1, f"{len(frame)} rows for {wanted}"
    return frame.iloc[0]


def test_every_declared_table_is_made_and_filled(made: dict[str, Table]) -> None:
    assert tuple(made) == TABLE_NAMES
    assert [name for name, table in made.items() if table.is_empty] == [
        "batteries", "defense_costs", "realism", "certified", "diagnostics", "failed",
    ]  # fmt: skip


def test_worst_case_and_single_attacks_equal_the_metrics(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    lines = made["robust_accuracy"].data
    undefended = {"split": "test", "shift": "none", "model": "digits-at", "model_seed": 0, "defense": "none"}
    for threat in ("linf-1", "linf-8"):
        line = one(lines, model="digits-at", threat=threat)
        worst = one(metrics, **undefended, threat=threat, metric="robust_accuracy", against="all")
        pgd = one(
            metrics, **undefended, threat=threat, metric="robust_accuracy_by_attack", against="bare", attack="pgd20"
        )
        clean = one(metrics, **undefended, metric="accuracy", attack="none")
        for key, row in (("worst_case", worst), ("attack_pgd20", pgd), ("clean", clean)):
            assert line[key] == row["value"]
            assert (line[f"{key}_low"], line[f"{key}_high"]) == (row["ci_low"], row["ci_high"])
        assert line["n"] == worst["n"]
        assert line["worst_case"] <= line["attack_pgd20"]


def test_clean_accuracy_over_seeds_is_the_seed_mean(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    mean = one(
        metrics, metric="accuracy", attack="none", defense="none", model="digits-cnn", model_seed=None, shift="none"
    )
    line = made["robust_accuracy"].data.query("model == 'digits-cnn'").iloc[0]
    assert (line["clean_over_seeds"], line["clean_over_seeds_sd"], line["seeds"]) == (mean["value"], mean["seed_sd"], 2)


def test_defenses_equal_the_metrics_and_name_the_rule_that_won(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    line = one(made["defenses"].data, model="digits-cnn", threat="linf-8", defense="jpeg-50-x10")
    group = {
        "model": "digits-cnn",
        "model_seed": 0,
        "defense": "jpeg-50-x10",
        "threat": "linf-8",
        "metric": "robust_accuracy",
    }
    for key, against in (("unaware", "unaware"), ("through", "through"), ("worst_case", "all")):
        assert line[key] == one(metrics, **group, against=against)["value"]
    rules = metrics[(metrics["metric"] == "accuracy") & (metrics["attack_defense"] == "jpeg-50-x10")]
    assert line["rule"] == rules.sort_values("value").iloc[0]["through"] == "surrogate-1"
    paired = metrics[(metrics["metric"] == "accuracy_difference") & (metrics["defense"] == "jpeg-50-x10")]
    clean = one(paired, attack="none")
    assert (line["clean_difference"], line["clean_p_holm"]) == (clean["value"], clean["p_adjusted"])
    best = one(paired, attack="pgd20", iterate="best")
    assert (line["unaware_difference"], line["unaware_p_holm"]) == (best["value"], best["p_adjusted"])
    rate = one(metrics, metric="bpp_payload", defense="jpeg-50-x10", attack="none")
    assert line["bpp_payload"] == rate["value"]


def test_not_attacked_through_is_words_not_a_number(made: dict[str, Table]) -> None:
    table = made["defenses"]
    line = one(table.data, model="digits-cnn", threat="linf-8", defense="wavelet")
    assert np.isnan(line["through"]) and np.isnan(line["worst_case"])
    row = next(r for r in render.markdown(table).splitlines() if "| digits-cnn | 8/255" in r and "| wavelet |" in r)
    assert row.count("not attacked here") == 2


def test_upper_bound_dagger_only_where_all_rules_are_generic(made: dict[str, Table]) -> None:
    table = made["defenses"]
    rows = table.data[(table.data["model"] == "digits-cnn") & (table.data["threat"] == "linf-8")].set_index("defense")
    assert words.UPPER_BOUND in rows.loc["webp-25", "through_notes"].split()
    assert words.UPPER_BOUND not in rows.loc["jpeg-25", "through_notes"].split()
    assert table.symbols()[words.UPPER_BOUND] == "†"
    text = render.markdown(table)
    assert "† Upper bound: " in text


def test_a_masking_rule_daggers_itself_but_not_the_worst_case_that_another_rule_found() -> None:
    n = 100
    wrong = {"surrogate-n": 20, "surrogate-1": 99}
    common = {"attack": "pgd20", "eps_255": 8, "defense": "jpeg-50-x10", "attack_defense": "jpeg-50-x10"}
    parts = [cell(n=n, defense="jpeg-50-x10"), cell(n=n)]
    parts += [cell(n=n, broken=k, through=rule, **common) for rule, k in wrong.items()]
    frame = samples(*parts)
    metrics, cells = metrics_of(frame, ()), cells_of(frame)
    masked, honest = (cells["through"] == rule for rule in wrong)
    cells.loc[masked, "flags"], cells.loc[honest, "flags"] = "rounds_raise_accuracy", ""
    through = one(tables.defenses(metrics, cells).data, defense="jpeg-50-x10")
    assert through["through"] == pytest.approx(0.01)
    assert "through_notes" not in through.index or not through["through_notes"]
    cells.loc[honest, "flags"] = "zero_gradient"
    table = tables.defenses(metrics, cells)
    assert one(table.data, defense="jpeg-50-x10")["through_notes"] == "zero_gradient"
    assert list(table.symbols()) == ["zero_gradient"]
    assert f"† {CHECKS['zero_gradient'].TITLE}" in render.markdown(table)


def test_cells_own_flags_reach_the_attack_columns(made: dict[str, Table]) -> None:
    frame = samples(cell(), cell(attack="pgd20", eps_255=8, broken=150))
    metrics, cells = metrics_of(frame, ()), cells_of(frame)
    cells["flags"] = ["nan_gradient zero_gradient" if a == "pgd20" else "" for a in cells["attack"]]
    table = tables.robust_accuracy(metrics, cells)
    line = table.data.iloc[0]
    assert line["attack_pgd20_notes"] == line["worst_case_notes"] == "nan_gradient zero_gradient"
    # Footnotes come in the order of the checks, whatever order the flags have.
    assert table.symbols() == {"zero_gradient": "†", "nan_gradient": "‡"}
    assert "25.0 [19.5, 31.4] ‡ †" in render.markdown(table)


def test_ood_shows_seed_means_and_both_conventions(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    line = one(made["ood"].data, model="digits-abet", score="abet")
    for metric in ("auroc", "fpr95_id_positive", "fpr95_ood_positive"):
        row = one(
            metrics, metric=metric, model="digits-abet", score="abet", split="far_ood", model_seed=None, defense="none",
            against="mean of sets",
        )  # fmt: skip
        assert (line[f"far_ood_{metric}"], line[f"far_ood_{metric}_sd"]) == (row["value"], row["seed_sd"])
    assert line["seeds"] == 2
    headers = [c.header for c in made["ood"].columns]
    assert "near FPR95 (ID positive)" in headers and "far FPR95 (OOD positive)" in headers


def test_ood_sets_hold_the_sanity_set_and_no_mean(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    data = made["ood_sets"].data
    line = one(data, metric="auroc", model="digits-cnn", score="energy")
    row = one(
        metrics, metric="auroc", model="digits-cnn", score="energy", split="noise", model_seed=None, defense="none"
    )
    assert line["set_noise"] == row["value"]
    assert "set_near_ood" not in data.columns
    assert any(c.header == "noise (sanity)" for c in made["ood_sets"].columns)


def test_best_trivial_statistic_is_the_best_per_number() -> None:
    _, metrics, cells = whole_run()
    trivial = pd.DataFrame(
        [
            ("photodigits", "near_ood", "range", "auroc", 0.6),
            ("photodigits", "near_ood", "saturation", "auroc", 0.7),
            ("photodigits", "near_ood", "range", "fpr95_id_positive", 0.8),
            ("photodigits", "near_ood", "saturation", "fpr95_id_positive", 0.9),
            ("photodigits", "noise", "range", "auroc", 1.0),
        ],
        columns=["dataset", "group", "statistic", "metric", "value"],
    )
    line = one(tables.ood(metrics, cells, trivial).data, score="trivial")
    assert (line["near_ood_auroc"], line["near_ood_fpr95_id_positive"]) == (0.7, 0.8)
    assert np.isnan(line["far_ood_auroc"])
    assert line["score_words"] == "best trivial statistic (saturation, range)"
    assert one(tables.ood_sets(metrics, cells, trivial).data, score="trivial", metric="auroc")["set_noise"] == 1.0


def test_paired_differences_say_no_more_than_they_show(made: dict[str, Table]) -> None:
    def row(low: float, high: float, p: float, metric: str) -> dict[str, object]:
        return {"group_id": "g", "dataset": "photodigits", "split": "near_ood", "model": "digits-abet", "score": "abet",
                "against": "digits-cnn:energy", "metric": metric, "value": (low + high) / 2, "ci_low": low,
                "ci_high": high,
                "seeds": 5, "seed_sd": 0.01, "p_adjusted": p, "attack": "none", "defense": "none"}  # fmt: skip

    def read(*rows: dict[str, object]) -> pd.Series:
        return tables.ood_paired(metric_frame(list(rows)), cells).data.iloc[0]

    _, _, cells = whole_run()
    both = read(row(0.01, 0.05, 0.01, "auroc_difference"), row(-0.3, -0.1, 0.01, "fpr95_id_positive_difference"))
    assert (both["auroc_verdict"], both["fpr95_id_positive_verdict"]) == ("better", "better")
    assert read(row(-0.05, -0.01, 0.01, "auroc_difference"))["auroc_verdict"] == "worse"
    assert read(row(-0.01, 0.05, 0.2, "auroc_difference"))["auroc_verdict"] == "no difference shown"
    assert read(row(0.01, 0.05, 0.2, "auroc_difference"))["auroc_verdict"] == "no difference shown"
    assert set(made["ood_paired"].data["split"]) >= {"near_ood", "far_ood", "letters"}


def test_ood_defended_is_one_seed_against_the_same_defense(made: dict[str, Table]) -> None:
    _, metrics, _ = whole_run()
    line = one(made["ood_defended"].data, model="digits-cnn", split="near_ood", score="energy")
    for defense in ("none", "jpeg-50", "median-3"):
        row = one(
            metrics, metric="auroc", model="digits-cnn", score="energy", split="near_ood", model_seed=0, defense=defense
        )
        assert line[f"defense_{defense}"] == row["value"]


def test_checks_page_says_raised_silent_and_not_run() -> None:
    frame = samples(cell(), cell(attack="pgd20", eps_255=8, broken=150, zero_gradient=True))
    cells = cells_of(frame)
    table = tables.checks(cells)
    assert list(table.data["check"][table.data["raised"] > 0]) == ["zero_gradient"]
    page = render.html_page(table)
    raised, silent, unrun = (
        page.split("<h2>Ran and found")[0],
        *page.split("<h2>Ran and found")[1].split("<h2>Not run here"),
    )
    assert CHECKS["zero_gradient"].REMEDY.split("'")[0] in raised and "PGD-20 at 8/255" in raised
    assert CHECKS["bound_violation"].TITLE in silent
    assert CHECKS["through_weaker_than_unaware"].TITLE in unrun
    for text in (CHECKS["through_weaker_than_unaware"].TITLE, CHECKS["bound_violation"].TITLE):
        assert text not in raised


def test_failed_lists_cells_and_bad_rows_with_their_reason() -> None:
    frame = samples(cell(), cell(attack="pgd20", eps_255=8, status=["nan"] * 3 + ["ok"] * 197))
    cells = cells_of(frame)
    cells.loc[cells["attack"] == "none", ["status", "reason"]] = ["error", "out of memory: lower the batch size"]
    table = tables.failed(cells)
    assert sorted(table.data["n_nan"]) == [0, 3]
    assert "out of memory: lower the batch size" in render.markdown(table)
    assert tables.failed(cells_of(samples(cell()))).is_empty


@pytest.mark.parametrize("drop", ["attack", "score", "everything"])
def test_missing_kinds_give_words_instead_of_failures(drop: str) -> None:
    _, metrics, cells = whole_run()
    if drop == "attack":
        metrics, cells = metrics[metrics["attack"] == "none"], cells[cells["attack"] == "none"]
    elif drop == "score":
        metrics = metrics[metrics["score"].isna()]
    else:
        metrics, cells = metrics.iloc[:0], cells.iloc[:0]
    made = tables.all_tables(metrics, cells, pd.DataFrame(columns=["dataset", "group", "statistic", "metric", "value"]))
    gone = {"attack": {"robust_accuracy", "transfer"}, "score": {"ood", "ood_sets", "ood_paired", "ood_defended"}}
    expected = gone.get(
        drop, {"robust_accuracy", "defenses", "ood", "ood_sets", "ood_paired", "ood_defended", "transfer"}
    )
    for name in expected:
        assert made[name].is_empty
        for form in (render.markdown, render.tex, render.html_page):
            assert "ot in this run" in form(made[name])


# ------------------------------------------------------------------------------------------------------- printed forms


def tricky() -> Table:
    data = pd.DataFrame(
        {"name": ["a|b_c*", "50 % & <x>"], "x": [0.12345, None], "x_low": [0.1, None], "x_high": [0.2, None],
         "x_notes": ["second first", ""], "x_why": ["", "not attacked here"], "d": [-0.0001, 0.25], "p": [0.0002, 0.04],
         "m": [0.5, 0.6], "m_sd": [0.01, 0.02]}
    )  # fmt: skip
    columns = (Column("name", "na_me"), Column("x", "x", "percent"), Column("d", "d", "difference"),
               Column("p", "p", "p"), Column("m", "mean ± sd", "percent"))  # fmt: skip
    return Table(
        "tricky", "Tricky 100 %", data, columns, {"first": "first_note", "second": "50 %", "third": "never borne"}
    )


def test_markdown_prints_percent_intervals_daggers_and_escapes() -> None:
    text = render.markdown(tricky())
    assert r"| a\|b\_c\* | 12.3 [10.0, 20.0] ‡ † | 0.0 | \< 0.001 | 50.0 ± 1.0 |" in text
    assert r"| 50 % & \<x\> | not attacked here | +25.0 | 0.040 | 60.0 ± 2.0 |" in text
    assert "† first\\_note" in text and "never borne" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {6}


def test_latex_escapes_every_special_sign() -> None:
    text = render.tex(tricky())
    assert r"a|b\_c* & 12.3 [10.0, 20.0]\textsuperscript{\textdaggerdbl{} \textdagger{}} & 0.0 & $<$ 0.001" in text
    assert r"50 \% \& $<$x$>$ & not attacked here & +25.0" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"\caption{Tricky 100 \%" in text and text.count("{") == text.count("}")
    assert r"mean $\pm$ sd" in text


def test_html_is_escaped_standalone_and_without_script(made: dict[str, Table]) -> None:
    page = render.html_page(tricky())
    assert "&lt;x&gt;" in page and "<x>" not in page
    for table in made.values():
        text = render.html_page(table)
        assert text.startswith("<!doctype html>") and "<script" not in text and "http" not in text


def test_csv_holds_fractions_and_every_bound() -> None:
    frame = pd.read_csv(io.StringIO(render.csv(tricky())))
    assert frame["x"].tolist()[0] == 0.12345 and np.isnan(frame["x"].tolist()[1])
    assert frame["x_low"].tolist()[0] == 0.1 and frame["m_sd"].tolist() == [0.01, 0.02]


def test_written_files_are_the_same_bytes_twice(tmp_path, made: dict[str, Table]) -> None:
    _, metrics, cells = whole_run()
    first = render.write_tables(tmp_path / "a", made)
    shuffled = metrics.sample(frac=1.0, random_state=1)
    second = render.write_tables(tmp_path / "b", tables.all_tables(shuffled, cells))
    assert [p.name for p in first] == [f"{n}.{f}" for n in TABLE_NAMES for f in render.FORMS]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_more_footnotes_than_symbols_go_on_with_numbers() -> None:
    names = [f"n{i}" for i in range(14)]
    data = pd.DataFrame({"x": [0.5] * 14, "x_notes": names})
    symbols = Table("t", "t", data, (Column("x", "x", "percent"),), {n: n for n in names}).symbols()
    assert len(set(symbols.values())) == 14
    assert symbols["n0"] == layout.SYMBOLS[0] and symbols["n13"] == "(14)"


def test_names_in_words() -> None:
    assert [words.threat(t) for t in ("linf-8", "l2-50", "l2-100", "mine")] == [
        "8/255 (L∞)",
        "0.5 (L2)",
        "1 (L2)",
        "mine",
    ]
    assert [words.attack(a) for a in ("pgd20", "apgd-ce-30", "square-300", "sign-noise")] == [
        "PGD-20", "APGD-CE-30", "Square-300", "sign-noise",
    ]  # fmt: skip
    assert [words.defense(d) for d in ("jpeg-50", "jpeg-50-x10", "median-3")] == [
        "JPEG-50", "JPEG-50 applied 10 times", "median-3",
    ]  # fmt: skip
