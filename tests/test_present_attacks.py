"""Batteries, transfer from ensembles, diagnostics and checks as tables and figures: the numbers are those of the
samples and metrics, marks stand where they must, nothing is drawn that is not known."""

from __future__ import annotations

import importlib

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from present_frames import COMPOSED, PIPELINES, attacked_run, battery_cells, cells_of, metrics_of
from synthetic import cell, samples

from windtunnel.checks import CHECKS
from windtunnel.metrics.intervals import mean_estimate
from windtunnel.present import figures, render, style, tables, words, words_diagnostics
from windtunnel.present.figures._curves import share_curve
from windtunnel.present.layout import Table
from windtunnel.present.select import Composed
from windtunnel.stages.summarise import diagnostic_metrics


@pytest.fixture(scope="module")
def made() -> dict[str, Table]:
    frame, metrics, cells, _ = attacked_run()
    return tables.all_tables(metrics, cells, samples=frame, composed=COMPOSED)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    frame, metrics, _, measured = attacked_run()
    return {
        "convergence": figures.convergence(frame, COMPOSED),
        "perturbation": figures.perturbation(frame, metrics, measured, COMPOSED),
        "landscape": figures.landscape(metrics, measured),
        "transfer": figures.transfer(metrics, COMPOSED),
    }


def one(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    for name, value in wanted.items():
        frame = frame[frame[name].isna() if value is None else frame[name] == value]
    assert len(frame) == 1, f"{len(frame)} rows for {wanted}"
    return frame.iloc[0]


def words_of(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text)).replace("\u00a0", " ")


# ------------------------------------------------------------------------------------------------------------ batteries


def small_battery() -> tuple[pd.DataFrame, Composed]:
    """Ten samples: two wrong clean, the battery breaks five (3 by 'a', 2 by 'b'), PGD three of which one is missed."""
    clean = np.arange(10) < 8
    broken_by = ["a", "a", "a", "b", "b", None, None, None, None, None]
    common = {"eps_255": 8, "mode": "search", "iterate": "first"}
    return (
        samples(
            cell(correct=clean),
            cell(correct=[False] * 5 + [True] * 3 + [False] * 2, attack="both", broken_by=broken_by,
                 n_backward=None, n_forward=[2, 2, 2, 6, 6, 9, 9, 9, 1, 1], **common)
            .assign(n_backward=pd.Series([1, 1, 1, 5, 5, 8, 8, 8, 0, 0], dtype=object)),
            cell(correct=[False] * 2 + [True] * 3 + [False] + [True] * 2 + [False] * 2, attack="pgd20",
                 broken_by=["pgd20"] * 2 + [None] * 3 + ["pgd20"] + [None] * 4, **common),
            cell(correct=[False] * 10, attack="fgsm", source_model="digits-at", eps_255=8),
        ),
        Composed(batteries={"both": ("a", "unused", "b")}),
    )  # fmt: skip


def test_a_battery_counts_its_members_in_order_and_what_it_spent() -> None:
    frame, composed = small_battery()
    data = tables.batteries(metrics_of(frame, ()), cells_of(frame), frame, composed).data
    assert list(data["attack"]) == ["both", "pgd20"]  # an attack on another model is no attack of this pipeline
    battery, single = data.iloc[0], data.iloc[1]
    assert battery["broken_by"] == "a 3, unused 0, b 2"
    assert (battery["broken"], battery["robust_accuracy"], battery["n"]) == (5, 0.3, 10)
    assert (battery["gradients"], battery["forwards"]) == (3.7, 4.7)
    assert (single["missed_by_both"], single["found_by_both"], single["shared_both"]) == (1, 3, 10)
    assert single["missed_by_both_words"] == "1 of 10" and battery["missed_by_both_words"] == ""


def test_the_comparison_is_on_shared_samples_only() -> None:
    frame, composed = small_battery()
    fewer = frame[(frame["attack"] != "both") | frame["sample_id"].isin(["test-00000", "test-00003", "test-00007"])]
    line = one(tables.batteries(metrics_of(fewer, ()), cells_of(fewer), fewer, composed).data, attack="pgd20")
    assert (line["missed_by_both"], line["found_by_both"], line["shared_both"], line["n"]) == (0, 1, 3, 10)


def test_a_battery_and_its_singles_equal_the_metrics(made: dict[str, Table]) -> None:
    _, metrics, _, _ = attacked_run()
    data = made["batteries"].data
    for attack in ("autoattack-standard", "apgd-ce-100", "square-300"):
        line = one(data, model="digits-at", threat="linf-8", attack=attack)
        row = one(metrics, model="digits-at", threat="linf-8", attack=attack, metric="robust_accuracy_by_attack")
        assert (line["robust_accuracy"], line["robust_accuracy_low"]) == (row["value"], row["ci_low"])
    first = data[(data["model"] == "digits-at") & (data["threat"] == "linf-8")]["attack"].tolist()
    assert first[:2] == ["autoattack-standard", "pma-plus"] and len(first) == len(set(first))


def test_search_cells_pay_and_full_ones_stand_in() -> None:
    rows = [cell(n=20), cell(n=20, attack="both", eps_255=8, n_backward=40, broken_by=["a"] * 20)]
    both = [*rows, cell(n=20, attack="both", eps_255=8, n_backward=7, mode="search", iterate="first")]
    for parts, mode, spent in ((rows, "full", 40), (both, "search", 7)):
        frame = samples(*parts)
        made = tables.batteries(metrics_of(frame, ()), cells_of(frame), frame, Composed(batteries={"both": ("a", "b")}))
        assert (made.data.iloc[0]["mode"], made.data.iloc[0]["gradients"]) == (mode, spent)


def test_through_a_defense_the_rule_is_part_of_the_pipeline() -> None:
    parts = [cell(n=20), cell(n=20, defense="jpeg-50")]
    for rule, broken in (("identity", 5), ("surrogate-1", 12)):
        seen = {"defense": "jpeg-50", "attack_defense": "jpeg-50", "through": rule, "eps_255": 8, "attack": "both"}
        parts.append(cell(n=20, broken=broken, broken_by=["a"] * broken + [None] * (20 - broken), **seen))
    frame = samples(*parts)
    table = tables.batteries(metrics_of(frame, ()), cells_of(frame), frame, Composed(batteries={"both": ("a", "b")}))
    assert list(table.data["robust_accuracy"]) == [0.75, 0.4]
    assert list(table.data["rule_words"]) == ["identity", "surrogate, one round"]
    assert "| through | rule |" in render.markdown(table)


def test_without_a_battery_the_table_says_so() -> None:
    frame, metrics, cells, _ = attacked_run()
    assert tables.batteries(metrics, cells, frame).is_empty
    assert "Not in this run" in render.markdown(tables.batteries(metrics, cells, frame))


# ------------------------------------------------------------------------------------------------------ robust accuracy


def test_batteries_stand_first_and_the_lowest_attack_is_named(made: dict[str, Table]) -> None:
    _, metrics, _, _ = attacked_run()
    table = made["robust_accuracy"]
    headers = [c.header for c in table.columns]
    assert headers[4:7] == ["worst case", "AutoAttack (standard)", "PMA+"]
    line = one(table.data, model="digits-cnn", threat="linf-4")
    assert line["lowest"] == "AutoAttack (standard)"
    row = one(metrics, model="digits-cnn", threat="linf-4", attack="autoattack-standard", metric="worst_class_accuracy")
    assert (line["worst_class"], line["worst_class_low"]) == (row["value"], row["ci_low"])
    assert f"class {line['worst_class_label']}" == row["note"]


def test_of_many_single_attacks_the_printed_forms_keep_those_that_matter() -> None:
    parts = [cell(n=50), cell(n=50, attack="both", eps_255=8, broken=40)]
    parts += [cell(n=50, attack=f"mine-{i:02d}", eps_255=8, broken=i) for i in range(12)]
    frame = samples(*parts)
    table = tables.robust_accuracy(metrics_of(frame, ()), cells_of(frame), Composed(batteries={"both": ("a", "b")}))
    shown = [c.key for c in table.columns if c.key.startswith("attack_")]
    assert shown == ["attack_both", "attack_mine-11"]
    assert {f"attack_mine-{i:02d}" for i in range(12)} <= set(table.data.columns)
    assert "11 single attacks that were nowhere the lowest are in the CSV only" in table.caption


# ------------------------------------------------------------------------------------------------------------- transfer


def test_transfer_holds_ensembles_and_marks_what_is_no_transfer(made: dict[str, Table]) -> None:
    _, metrics, _, _ = attacked_run()
    table = made["transfer"]
    line = one(table.data, attack="mi-cwa", threat="linf-8", source="ens-three")
    row = one(metrics, attack="mi-cwa", source_model="ens-three", model="digits-at", metric="accuracy")
    assert (line["target_digits-at"], line["target_digits-at_high"]) == (row["value"], row["ci_high"])
    assert line["target_digits-at_notes"] == ""
    assert "contains_target" in line["target_digits-cnn_notes"].split()
    assert line["source_words"] == "ens-three (digits-cnn + digits-abet + digits-coslin)"
    own = one(table.data, attack="mi-cwa", source="digits-cnn")
    assert "white_box" in own["target_digits-cnn_notes"].split()
    assert list(table.data["source"][:5]) == ["digits-at", "digits-cnn", "digits-cnn-s1", "ens-cnn-at", "ens-three"]
    text = render.markdown(table)
    assert "† White box:" in text and "‡ The judged model is a member" in text


def test_search_images_never_stand_in_the_transfer_table() -> None:
    frame = samples(
        cell(n=20), cell(n=20, attack="pgd20", eps_255=8, source_model="other", mode="search", iterate="first"),
        cell(n=20, attack="fgsm", eps_255=8, source_model="other", broken=5),
    )  # fmt: skip
    data = tables.transfer(metrics_of(frame, ()), cells_of(frame)).data
    assert list(data["attack"]) == ["fgsm"] and list(data["target_digits-cnn"]) == [0.75]


def test_transfer_behind_a_defense_is_a_row_of_its_own() -> None:
    attacked = {"attack": "pgd20", "eps_255": 8, "source_model": "digits-cnn-s1", "n": 20}
    frame = samples(cell(n=20), cell(n=20, defense="jpeg-50"), cell(broken=10, **attacked),
                    cell(broken=4, defense="jpeg-50", **attacked))  # fmt: skip
    data = tables.transfer(metrics_of(frame, ()), cells_of(frame)).data
    assert list(zip(data["defense"], data["target_digits-cnn"], strict=True)) == [("none", 0.5), ("jpeg-50", 0.8)]


def test_the_transfer_figure_frames_white_boxes_and_members(drawn: dict[str, Figure]) -> None:
    figure = drawn["transfer"]
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [a.get_title(loc="left") for a in panels] == [f"{a} at 8/255 (L∞)" for a in ("AdaEA", "MI-CWA", "PGD-20")]
    for axes in panels:
        frames = [p for p in axes.patches if isinstance(p, matplotlib.patches.Rectangle)]
        dashed = [p for p in frames if p.get_linestyle() != "-" and p.get_linestyle() != "solid"]
        assert (len(frames) - len(dashed), len(dashed)) == (2, 4)
    assert "n = 100" in words_of(figure) and "Dashed frame" in words_of(figure)


# ---------------------------------------------------------------------------------------------------------- diagnostics


def test_diagnostics_equal_the_metrics_and_are_explained(made: dict[str, Table]) -> None:
    _, metrics, _, measured = attacked_run()
    table = made["diagnostics"]
    known = words_diagnostics.known_quantities()
    assert len(table.data) == len(PIPELINES) * sum(map(len, known.values()))
    line = one(table.data, diagnostic="min-perturbation", quantity="distance", model="digits-at")
    row = one(metrics, metric="min-perturbation.distance", model="digits-at")
    assert (line["mean"], line["mean_low"], line["mean_high"], line["n"]) == (
        row["value"], row["ci_low"], row["ci_high"], 36,
    )  # fmt: skip
    own = measured[(measured["diagnostic"] == "min-perturbation") & (measured["quantity"] == "distance")]
    assert line["mean"] == pytest.approx(own[own["model"] == "digits-at"]["value"].mean())
    assert (table.data["reading"] != "").all()
    rules = table.data[table.data["defense"] == "jpeg-50"]["rule_words"].unique().tolist()
    assert rules == ["surrogate, one round"]
    html = render.html_page(table)
    for name in known:
        assert f"<h2>{render.html.escape(words_diagnostics.TITLES[name])}</h2>" in html
    assert html.count("<table>") == len(known)


def test_a_quantity_without_a_value_is_words_and_a_new_one_has_its_own_name() -> None:
    _, metrics, _, _ = attacked_run()
    row = metrics[metrics["metric"] == "landscape.roughness"].iloc[:1]
    row = row.assign(metric="mine.some_number", value=None, ci_low=None, ci_high=None, n=0)
    table = tables.diagnostics(row)
    assert table.data.iloc[0]["quantity_words"] == "some number" and table.data.iloc[0]["diagnostic_words"] == "mine"
    assert "not defined here" in render.markdown(table) and "not defined here" in render.html_page(table)
    labelled = tables.diagnostics(row, Composed(diagnostics={"mine": "my measurement"}))
    assert "<h2>my measurement</h2>" in render.html_page(labelled)
    assert tables.diagnostics(metrics.iloc[:0]).is_empty


def test_every_built_in_quantity_has_words() -> None:
    for method, quantities in words_diagnostics.known_quantities().items():
        module = importlib.import_module(f"windtunnel.diagnostics.{method}")
        name = "".join(part.title() for part in method.split("_"))
        assert set(getattr(module, name).quantities) == set(quantities)


def test_catalogue_names_of_diagnostics_keep_what_they_add() -> None:
    assert words_diagnostics.diagnostic("sparsity-64") == "adversarial sparsity (64)"
    assert words_diagnostics.diagnostic("local-linearity") == "local linearity"
    assert words_diagnostics.diagnostic("sparsityish") == "sparsityish"
    assert words_diagnostics.quantity("min-perturbation-l2", "distance").title == "distance"


def boxes_of(figure: Figure) -> list[matplotlib.axes.Axes]:
    """The panels of quartiles: those without a picture."""
    return [a for a in figure.axes if a.get_title(loc="left").startswith(("roughness", "monotone", "wrong"))]


def test_the_landscape_shows_quantiles_and_the_metrics_mean(drawn: dict[str, Figure]) -> None:
    _, metrics, _, measured = attacked_run()
    values = measured[(measured["diagnostic"] == "landscape") & (measured["quantity"] == "roughness")]
    values = values[values["model"] == "digits-at"]["value"].dropna().to_numpy(float)
    axes = boxes_of(drawn["landscape"])[0]
    box = axes.patches[0]
    assert (box.get_x(), box.get_x() + box.get_width()) == pytest.approx(tuple(np.quantile(values, [0.25, 0.75])))
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    row = one(metrics, metric="landscape.roughness", model="digits-at")
    assert dots[0].get_xdata()[0] == row["value"]
    assert "digits-cnn, JPEG-50\n(surrogate, one round)" in words_of(drawn["landscape"])
    assert not slices_of(drawn["landscape"]) and "Slices" not in words_of(drawn["landscape"])


POINTS, SPAN = 5, 2.0


def sliced_run(norm: str = "linf") -> pd.DataFrame:
    """The measurements with slices: margins that rise by 1 (digits-at) or 4 per step along the gradient, from a value
    per sample; 'digits-cnn' has none of the first sample, behind JPEG-50 none of the second.
    """
    _, _, _, measured = attacked_run()
    base = measured[(measured["diagnostic"] == "landscape") & (measured["quantity"] == "roughness")]
    base = base.assign(norm=norm)
    missing = {("digits-cnn", "none"): "test-00000", ("digits-cnn", "jpeg-50"): "test-00001"}
    none = [missing.get((m, d)) == i for m, d, i in zip(base["model"], base["defense"], base["sample_id"], strict=True)]
    number = base["sample_id"].str[-5:].astype(int).to_numpy(float)
    steep = np.where(base["model"] == "digits-at", 1.0, 4.0)
    parts = [measured.assign(norm=norm), base.assign(quantity="slice_span", value=np.where(none, np.nan, SPAN))]
    for row in range(POINTS):
        for column in range(POINTS):
            values = steep * (row - POINTS // 2) + 0.1 * column - 0.05 * number
            parts.append(base.assign(quantity=f"slice_{row}_{column}", value=np.where(none, np.nan, values)))
    return pd.concat(parts, ignore_index=True)


def slices_of(figure: Figure) -> list[matplotlib.collections.QuadMesh]:
    """The pictures of slices in the order of drawing; the colour bar is one, too, and left out."""
    return [
        mesh for axes in figure.axes if axes.get_label() != "<colorbar>" for mesh in axes.collections
        if isinstance(mesh, matplotlib.collections.QuadMesh)
    ]  # fmt: skip


def test_slices_are_no_rows_of_metrics_nor_of_the_table() -> None:
    _, metrics, _, measured = attacked_run()
    sliced = diagnostic_metrics(sliced_run(), replicates=20)
    assert len(sliced_run()) > len(measured) and sliced == diagnostic_metrics(measured, replicates=20)
    assert not metrics["metric"].str.contains("slice_").any()
    assert diagnostic_metrics(measured.iloc[:0]) == []


def test_the_landscape_draws_the_mean_slice_and_the_first_samples_that_all_have() -> None:
    _, metrics, _, _ = attacked_run()
    measured = sliced_run()
    figure = figures.landscape(metrics, measured.sample(frac=1, random_state=0))
    drawn = slices_of(figure)
    assert len(drawn) == 3 * len(PIPELINES)  # mean, two samples; rows: digits-at, digits-cnn, digits-cnn with JPEG-50
    titles = [a.get_title() for a in figure.axes if a.get_title()]
    assert titles == ["mean", "test-00002", "test-00003"]
    names = [f"slice_{r}_{c}" for r in range(POINTS) for c in range(POINTS)]
    rows = (("digits-at", "none"), ("digits-cnn", "none"), ("digits-cnn", "jpeg-50"))
    for place, (model, defense) in enumerate(rows):
        own = measured[(measured["model"] == model) & (measured["defense"] == defense)]
        own = own[own["diagnostic"] == "landscape"]  # other diagnostics share names of quantities
        wide = own.pivot(index="sample_id", columns="quantity", values="value")[names].dropna().astype(float)
        assert len(wide) == (40 if model == "digits-at" else 39) and f"mean of {len(wide)}" in words_of(figure)
        shown = [np.asarray(mesh.get_array()).ravel() for mesh in drawn[3 * place : 3 * place + 3]]
        assert shown[0] == pytest.approx(wide.mean().to_numpy())
        assert shown[1] == pytest.approx(wide.loc["test-00002"].to_numpy())
        assert shown[2] == pytest.approx(wide.loc["test-00003"].to_numpy())
    limits = {mesh.get_clim() for mesh in drawn}
    ((low, high),) = limits  # one scale for all, around 0
    assert low == -high < 0
    assert boxes_of(figure)[0].patches and len(boxes_of(figure)) == 3
    assert style.svg_bytes(figure) == style.svg_bytes(figures.landscape(metrics, measured))


def test_the_zero_line_stands_where_the_margin_is_zero_and_nowhere_else() -> None:
    _, metrics, _, _ = attacked_run()
    measured = sliced_run()
    figure = figures.landscape(metrics, measured)
    panels = [mesh.axes for mesh in slices_of(figure)]
    for place, steep in ((1, 1.0), (4, 4.0)):  # sample 2: steep * (a / step) + 0.1 * column - 0.1 = 0
        (line,) = [c for c in panels[place].collections if isinstance(c, matplotlib.contour.ContourSet)]
        vertices = np.concatenate([path.vertices for path in line.get_paths()])
        column = vertices[:, 0] + SPAN  # one step of the grid is one eps here
        assert np.abs(steep * vertices[:, 1] + 0.1 * column - 0.1).max() < 1e-6
        assert vertices[:, 0].min() == -SPAN and vertices[:, 0].max() == SPAN
    is_slice = measured["quantity"].str.startswith("slice_") & (measured["quantity"] != "slice_span")
    never = measured.assign(value=measured["value"].where(~is_slice, -measured["value"].abs() - 1))
    for mesh in slices_of(figures.landscape(metrics, never)):
        assert not [c for c in mesh.axes.collections if isinstance(c, matplotlib.contour.ContourSet)]


@pytest.mark.parametrize(("norm", "kind"), [("linf", matplotlib.patches.Polygon), ("l2", matplotlib.patches.Circle)])
def test_the_budget_is_marked_as_the_square_and_as_the_ball(norm: str, kind: type) -> None:
    _, metrics, _, _ = attacked_run()
    for mesh in slices_of(figures.landscape(metrics, sliced_run(norm))):
        square, ball = mesh.axes.patches
        assert square.get_bbox().extents.tolist() == [-1, -1, 1, 1]
        assert isinstance(ball, kind)
        corners = ball.get_path().transformed(ball.get_patch_transform()).vertices
        assert np.abs(corners).max() == pytest.approx(1.0)


# --------------------------------------------------------------------------------------------------------------- curves


def test_share_curve_agrees_with_the_interval_of_every_table() -> None:
    drops = np.array([0.0, 1.0, 3.0, np.inf, 3.0, np.inf, 2.0, 8.0])
    places = np.array([0.5, 1.0, 3.0, 7.9, 8.0])
    unique, shared = np.array([f"s{i}" for i in range(8)]), np.array(["a", "a", "b", "b", "c", "d", "e", "e"])
    value, low, high = share_curve(drops, places, unique)
    assert list(value) == [7 / 8, 6 / 8, 3 / 8, 3 / 8, 2 / 8]
    for place, *found in zip(places, value, low, high, strict=True):
        expected = mean_estimate((drops > place).astype(float), unique)
        assert found == pytest.approx([expected.value, expected.ci_low, expected.ci_high])
    value, low, high = share_curve(drops, places, shared)
    for place, *found in zip(places, value, low, high, strict=True):
        expected = mean_estimate((drops > place).astype(float), shared, replicates=400)
        assert found == pytest.approx([expected.value, expected.ci_low, expected.ci_high])


def steps_of(figure: Figure, colour: str) -> list[matplotlib.lines.Line2D]:
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return [line for line in lines if line.get_color() == colour and len(line.get_xdata()) > 1]


def test_convergence_steps_down_where_samples_fell_and_ends_at_the_robust_accuracy() -> None:
    frame, composed = small_battery()
    figure = figures.convergence(frame, composed)
    (line,) = steps_of(figure, style.attack_colours(["both", "pgd20"])["both"])
    assert list(line.get_xdata()) == [0.5, 1, 5, 8]
    assert list(line.get_ydata()) == pytest.approx([0.8, 0.5, 0.3, 0.3])
    assert "n = 10" in words_of(figure) and "digits-cnn, 8/255 (L∞)" in words_of(figure)


def test_convergence_leaves_out_what_has_no_place_on_its_axis() -> None:
    gradient_free = cell(n=20, attack="square-300", eps_255=8, n_backward=0, mode="search", iterate="first")
    full = cell(n=20, attack="pgd20", eps_255=8)
    assert "Not in this run" in words_of(figures.convergence(samples(cell(n=20), gradient_free, full)))


def test_convergence_takes_the_pipelines_with_most_attacks_and_says_so() -> None:
    parts = [p for i in range(7) for p in battery_cells(f"m{i}", n=20)[: 3 if i else 5]]
    figure = figures.convergence(samples(*parts), COMPOSED)
    shown = [a.get_title(loc="left") for a in figure.axes if a.get_visible()]
    assert len(shown) == 6 and shown[0] == "m0, 8/255 (L∞)"
    assert "The 6 of 7 pipelines and threats with most attacks" in words_of(figure).replace("\n", " ")


def test_perturbation_curve_of_an_attack_is_the_distribution_of_its_distances(drawn: dict[str, Figure]) -> None:
    frame, _, _, _ = attacked_run()
    rows = frame[(frame["attack"] == "fab-t") & (frame["norm"] == "l2") & (frame["model"] == "digits-at")]
    axes = drawn["perturbation"].axes[1]
    line = next(line for line in axes.get_lines() if line.get_color() == style.MODELS["digits-at"])
    x, y = line.get_xdata(), line.get_ydata()
    for e in (0.0, 0.25, 0.6, 1.0):
        expected = float(((rows["l2"] <= e) & ~rows["correct"].astype(bool)).mean())
        assert y[np.searchsorted(x, e, side="right") - 1] == pytest.approx(expected)
    assert x[-1] == 1.0  # beyond its budget the attack knows nothing


def perturbed(distance: list[float | None], found: list[float | None], eps: float = 4 / 255) -> pd.DataFrame:
    rows = [
        {"dataset": "photodigits", "split": "test", "shift": "none", "model": "digits-cnn", "model_seed": 0,
         "defense": "none", "through": "none", "threat": "linf-4", "norm": "linf", "eps": eps,
         "diagnostic": "min_perturbation", "sample_id": f"test-{i}", "source_id": None, "quantity": quantity,
         "value": value}
        for quantity, values in (("distance", distance), ("found", found)) for i, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_perturbation_counts_wrong_as_lost_and_not_found_as_standing() -> None:
    measured = perturbed([None, 1 / 255, 2 / 255, None], [None, 1.0, 1.0, 0.0])
    _, metrics, _, _ = attacked_run()
    figure = figures.perturbation(samples(cell(n=4)), metrics.iloc[:0], measured)
    (line,) = steps_of(figure, style.MODELS["digits-cnn"])
    assert list(line.get_xdata()) == pytest.approx([0, 1, 2])
    assert list(line.get_ydata()) == [0.25, 0.5, 0.75]


def test_circles_are_what_all_attacks_broke_at_fixed_budgets(drawn: dict[str, Figure]) -> None:
    _, metrics, _, _ = attacked_run()
    worst = one(metrics, model="digits-at", threat="linf-4", metric="robust_accuracy", against="all")
    markers = [line for line in drawn["perturbation"].axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    points = {(round(float(m.get_xdata()[0]), 6), round(float(m.get_ydata()[0]), 6)) for m in markers}
    assert (4.0, round(1 - worst["value"], 6)) in points


def test_new_figures_stay_in_their_frame_and_keep_their_bytes(drawn: dict[str, Figure]) -> None:
    frame, metrics, _, measured = attacked_run()
    for name, figure in drawn.items():
        box = figure.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight(), name
    again = figures.perturbation(frame.sample(frac=1.0, random_state=1), metrics, measured, COMPOSED)
    assert style.svg_bytes(again) == style.svg_bytes(drawn["perturbation"])


# --------------------------------------------------------------------------------------------------------------- checks


def test_the_checks_table_has_every_check_with_counts_and_where() -> None:
    frame = samples(cell(), cell(attack="pgd20", eps_255=8, broken=150, zero_gradient=True))
    cells = cells_of(frame)
    data = tables.checks(cells).data
    assert set(data["check"]) == set(CHECKS)
    assert (data["raised"] + data["ok"] + data["not_run"] == len(cells)).all()
    line = data.iloc[0]
    assert (line["check"], line["raised"], line["remedy"]) == ("zero_gradient", 1, CHECKS["zero_gradient"].REMEDY)
    assert "PGD-20 at 8/255" in line["where"] and "(statistic" in line["where"]
    for name in CHECKS:
        counted = one(data, check=name)
        assert counted["ok"] == (cells[f"check_{name}"] == "ok").sum()
        assert counted["threshold"] == CHECKS[name].THRESHOLD


def test_many_raised_cells_are_counted_in_print_and_all_named_on_the_page() -> None:
    parts = [cell(attack=f"pgd{i}", eps_255=8, zero_gradient=True, broken=9) for i in range(8)]
    table = tables.checks(cells_of(samples(cell(), *parts)))
    line = one(table.data, check="zero_gradient")
    assert line["raised"] == 8 and line["where"].endswith("; and 3 more") and len(line["cell_ids"].split()) == 8
    assert render.html_page(table).count(" at 8/255") >= 8


def test_a_check_that_the_library_does_not_know_is_listed_too() -> None:
    cells = cells_of(samples(cell())).assign(check_mine="flag", stat_mine=0.5, flags="mine")
    line = tables.checks(cells).data.iloc[0]
    assert (line["check"], line["raised"], line["title"]) == ("mine", 1, "mine")


def test_flags_of_any_check_become_daggers() -> None:
    frame = samples(cell(), cell(attack="pgd20", eps_255=8, broken=150))
    metrics, cells = metrics_of(frame, ()), cells_of(frame)
    for name in CHECKS:
        flagged = cells.assign(flags=[name if a == "pgd20" else "" for a in cells["attack"]])
        table = tables.robust_accuracy(metrics, flagged)
        assert list(table.symbols()) == [name]
        assert f"† {words.check_words(name).title}: " in render.markdown(table).replace("\\", "")
