"""Figures: they stand on what the run holds, say what it lacks, keep colours by name and come out the same bytes
twice."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from present_frames import cells_of, metrics_of, whole_run
from sklearn.metrics import roc_auc_score
from synthetic import cell, samples

from windtunnel.present import figures, render, style
from windtunnel.present.figures import Picture, _scored
from windtunnel.present.names import FIGURE_NAMES

UNMEASURED = {"perturbation", "landscape", "certified", "gallery_defenses"}
"""Figures of what the whole synthetic run does not hold: see the other tests of figures."""


def pictures(n: int = 2) -> list[Picture]:
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        clean = rng.integers(0, 256, (8, 8, 3)) / 255
        adversarial = np.clip(clean + rng.choice([-8, 8], clean.shape) / 255, 0, 1)
        made.append(Picture(clean=clean, adversarial=adversarial, defended=clean if i else None, label="3",
                            clean_pred="3", clean_conf=0.9, adversarial_pred="8", adversarial_conf=0.8,
                            defended_pred="3", defended_conf=0.7, left="digits-cnn", under="linf 8/255"))  # fmt: skip
    return made


def words_of(figure: Figure) -> str:
    """Every text of a figure, titles and labels included."""
    figure.draw_without_rendering()
    found = figure.findobj(matplotlib.text.Text)
    return "\n".join(t.get_text() for t in found).replace("\u00a0", " ")


def lines_of(figure: Figure) -> list[matplotlib.lines.Line2D]:
    return [line for axes in figure.axes for line in axes.get_lines()]


@pytest.fixture(scope="module")
def made() -> dict[str, Figure]:
    return figures.all_figures(*whole_run(), pictures())


def test_every_declared_figure_is_drawn(made: dict[str, Figure]) -> None:
    assert tuple(made) == FIGURE_NAMES
    missing = {name for name, figure in made.items() if "Not in this run" in words_of(figure)}
    assert missing == UNMEASURED


def test_no_text_leaves_its_figure(made: dict[str, Figure]) -> None:
    for name, figure in made.items():
        figure.draw_without_rendering()
        box, width, height = figure.get_tightbbox(), figure.get_figwidth(), figure.get_figheight()
        assert box.x0 >= 0 and box.y0 >= 0, f"{name} is cut off at the left or the foot"
        assert box.x1 <= width and box.y1 <= height, f"{name} is cut off at the right or the top"


@pytest.mark.parametrize("name", ["transfer", "gallery", "roc"])
def test_svg_and_png_are_the_same_bytes_twice(name: str, made: dict[str, Figure]) -> None:
    frame, metrics, _ = whole_run()
    draw = {
        "transfer": lambda: figures.transfer(metrics),
        "gallery": lambda: figures.gallery(pictures()),
        "roc": lambda: figures.roc(frame, metrics),
    }
    first, second = made[name], draw[name]()
    assert style.png_bytes(first) == style.png_bytes(second)
    svg = style.svg_bytes(first)
    assert svg == style.svg_bytes(second)
    assert b"<dc:date>" not in svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_files_are_written_under_their_names(tmp_path, made: dict[str, Figure]) -> None:
    chosen = {name: made[name] for name in ("transfer", "reliability")}
    paths = render.write_figures(tmp_path, chosen)
    assert [p.name for p in paths] == ["transfer.svg", "transfer.png", "reliability.svg", "reliability.png"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_the_callers_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    figures.transfer(whole_run()[1])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("drop", ["attacks", "scores", "everything"])
def test_missing_kinds_are_said_in_words(drop: str) -> None:
    frame, metrics, cells = whole_run()
    if drop == "attacks":
        frame, metrics, cells = (f[f["attack"].isin(["none"])] for f in (frame, metrics, cells))
    elif drop == "scores":
        frame = frame.drop(columns=[c for c in frame.columns if c.startswith("score_")])
        metrics = metrics[metrics["score"].isna()]
    else:
        frame, metrics, cells = frame.iloc[:0], metrics.iloc[:0], cells.iloc[:0]
    drawn = figures.all_figures(frame, metrics, cells)
    expected = {
        "attacks": {
            "sequential_jpeg", "rounds", "accuracy_against_epsilon", "transfer", "gallery", "convergence", *UNMEASURED,
        },
        "scores": {"score_histograms", "roc", "ood_defended", "gallery", *UNMEASURED},
        "everything": set(FIGURE_NAMES),
    }[drop]  # fmt: skip
    assert {name for name, figure in drawn.items() if "Not in this run" in words_of(figure)} == expected
    for figure in drawn.values():
        assert style.svg_bytes(figure)


# ------------------------------------------------------------------------------------------------------ sequential JPEG


def sequence(n: int = 100, rounds: tuple[int, ...] = (1, 3, 10)) -> tuple[pd.DataFrame, pd.DataFrame]:
    """JPEG-50 in several rounds with a masking rule, a sound one, and reference lines."""
    parts = [cell(n=n)]
    for place, r in enumerate(rounds):
        defense = "jpeg-50" if r == 1 else f"jpeg-50-x{r}"
        attacked = {"attack": "pgd20", "eps_255": 8, "defense": defense, "n": n}
        parts += [cell(n=n, defense=defense, broken=10), cell(broken=50, **attacked)]
        for iterate, more in (("best", 0), ("last", 3)):
            own = {**attacked, "attack_defense": defense, "iterate": iterate}
            parts.append(cell(broken=95 - more, through="surrogate-1", **own))
            if r > 1:
                parts.append(cell(broken=90 - 40 * place - more, through="surrogate-n", **own))
    frame = samples(*parts)
    return metrics_of(frame, ()), cells_of(frame)


def test_one_round_is_drawn_on_both_surrogate_lines() -> None:
    metrics, cells = sequence()
    figure = figures.sequential_jpeg(metrics, cells)
    for rule, values in (("surrogate-n", [0.05, 0.5, 0.9]), ("surrogate-1", [0.05, 0.05, 0.05])):
        solid = [
            line for line in lines_of(figure)
            if line.get_color() == style.rule_colour(rule) and line.get_linestyle() == "-" and len(line.get_xdata()) > 1
        ]  # fmt: skip
        assert [list(np.round(line.get_ydata(), 9)) for line in solid] == [values]


def test_reference_lines_and_statement() -> None:
    metrics, cells = sequence()
    figure = figures.sequential_jpeg(metrics, cells)
    text = words_of(figure)
    assert "JPEG-50 applied 10 times: 5 % or 90 % accuracy under one attack, by backward rule" in text
    assert "n = 100" in text and "clean" in text and "attack that ignores it" in text
    dotted = [line for line in lines_of(figure) if line.get_color() in (style.CURVES["clean"], style.CURVES["unaware"])]
    assert {round(float(line.get_ydata()[0]), 6) for line in dotted if len(line.get_xdata()) > 1} == {0.9, 0.5}


def test_rings_stand_where_the_checks_were_raised() -> None:
    metrics, cells = sequence()
    raised = cells[cells["flags"] != ""]
    assert {"rounds_raise_accuracy"} <= {name for text in raised["flags"] for name in text.split()}
    rings = [line for line in lines_of(figures.sequential_jpeg(metrics, cells)) if line.get_markersize() == 10]
    shown = raised[(raised["attack_defense"] != "none")]
    assert len(rings) == len(shown)
    assert "More rounds" not in words_of(figures.sequential_jpeg(metrics, cells.assign(flags="")))


def test_a_single_round_is_no_sequence() -> None:
    metrics, cells = sequence(rounds=(1,))
    assert "Not in this run" in words_of(figures.sequential_jpeg(metrics, cells))


# ----------------------------------------------------------------------------------------------------------------- rest


def test_budget_curve_starts_clean_and_holds_the_metrics(made: dict[str, Figure]) -> None:
    _, metrics, _ = whole_run()
    own = metrics[
        (metrics["metric"] == "robust_accuracy") & (metrics["against"] == "all") & (metrics["defense"] == "none")
    ]
    own = own[(own["model"] == "digits-at") & (own["model_seed"] == 0)].sort_values("eps")
    clean = metrics[(metrics["metric"] == "accuracy") & (metrics["attack"] == "none") & (metrics["defense"] == "none")]
    clean = clean[(clean["model"] == "digits-at") & (clean["model_seed"] == 0) & (clean["shift"] == "none")]
    line = next(
        line for line in lines_of(made["accuracy_against_epsilon"])
        if line.get_color() == style.MODELS["digits-at"] and line.get_linestyle() == "-"
    )  # fmt: skip
    assert np.allclose(line.get_ydata(), [*clean["value"], *own["value"]])
    assert np.allclose(line.get_xdata(), [0, 1, 2, 4, 8, 16])


def test_the_drawn_roc_has_the_area_of_the_mean_auroc() -> None:
    frame, _, _ = whole_run()
    found = _scored.scored(frame)
    assert found is not None and found.model == "digits-abet"
    inside, outside = found.group("id", "abet"), found.group("far_ood", "abet")
    x, y = _scored.curve(inside, outside)
    rows = found.frame[found.frame["role"] == "far_ood"]
    areas = []
    for _, part in rows.groupby("split"):
        values = np.concatenate([inside.values, part["score_abet"].to_numpy(float)])
        areas.append(roc_auc_score(np.repeat([0, 1], [len(inside.values), len(part)]), values))
    assert np.trapezoid(y, x) == pytest.approx(np.mean(areas), abs=1e-12)


def test_roc_moves_ties_together() -> None:
    inside = _scored.Group(np.array([0.0, 1.0, 1.0, 2.0]), np.full(4, 0.25), ("test",))
    outside = _scored.Group(np.array([1.0, 2.0]), np.full(2, 0.5), ("a",))
    x, y = _scored.curve(inside, outside)
    assert list(x) == [0, 0.25, 0.75, 1] and list(y) == [0, 0.5, 1, 1]


def test_score_figures_take_fully_driven_images_only() -> None:
    frame, _, _ = whole_run()
    found = _scored.scored(frame)
    assert found is not None
    assert set(found.adversarial["mode"]) == {"full"} and set(found.adversarial["iterate"]) == {"best"}
    assert found.threat == "linf-8"
    assert set(found.adversarial["source_model"]) == {"digits-abet"}


def test_gallery_enlarges_by_the_largest_factor_that_clips_nothing() -> None:
    assert "perturbation × 15" in words_of(figures.gallery(pictures()))
    assert "no defense" in words_of(figures.gallery(pictures()))
    assert len(figures.gallery(pictures(9)).axes) == 4 * 6


def test_reliability_counts_every_sample(made: dict[str, Figure]) -> None:
    frame, _, _ = whole_run()
    clean = frame[(frame["attack"] == "none") & (frame["defense"] == "none") & (frame["role"] == "id")]
    clean = clean[(clean["model_seed"] == 0) & (clean["model"] == "digits-cnn")]
    assert f"digits-cnn (n = {len(clean)})" in words_of(made["reliability"])
    bars = [p for axes in made["reliability"].axes for p in axes.patches]
    assert sum(b.get_data().values.sum() for b in bars) == 4 * len(clean)


# -------------------------------------------------------------------------------------------------------------- colours


def test_a_colour_belongs_to_a_name_not_to_a_place() -> None:
    assert style.defense_colour("jpeg-50") == style.defense_colour("jpeg-50-x10")
    assert style.defense_colour("jpeg-50") != style.defense_colour("jpeg-75") != style.defense_colour("webp-75")
    few, many = style.model_colours(["digits-at"]), style.model_colours(["mine", "digits-cnn", "digits-at"])
    assert few["digits-at"] == many["digits-at"] == style.GREEN
    assert style.model_colours(["b", "a"]) == style.model_colours(["a", "b"])
    names = [f"model-{i}" for i in range(10)]
    assert len(set(style.model_colours(names).values())) == 10


def test_unknown_names_keep_their_colour_between_processes() -> None:
    # The hash is SHA-256 of the text: Python's own is salted per process, so these are fixed numbers.
    assert [style.stable_index(n, 10) for n in ("denoiser", "diffusion", "mine")] == [
        int.from_bytes(__import__("hashlib").sha256(n.encode()).digest()[:4], "big") % 10
        for n in ("denoiser", "diffusion", "mine")
    ]
    assert style.defense_colour("denoiser-5") == style.defense_colour("denoiser-5")


def test_builtin_families_models_and_groups_have_distinct_colours() -> None:
    for table in (style.DEFENSES, style.MODELS, style.SCORES, style.ATTACKS, style.GROUPS, style.CURVES):
        assert len(set(table.values())) == len(table)


def test_labels_keep_order_distance_and_centre() -> None:
    placed = style.spread([0.5, 0.52, 0.9, 0.51], 0.1)
    assert placed[2] == 0.9
    ordered = sorted(placed)
    assert min(np.diff(ordered)) >= 0.1 - 1e-12
    assert np.argsort(placed).tolist() == [0, 3, 1, 2]
    assert np.mean([placed[i] for i in (0, 1, 3)]) == pytest.approx(0.51)
    assert style.spread([], 0.1) == []
