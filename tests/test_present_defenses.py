"""Tables and figures of defenses: what won, of how many, what was raised, what it costs; rounds, rates, galleries."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from present_frames import cells_of, metric_frame, metrics_of
from skimage.color import deltaE_ciede2000, rgb2lab
from synthetic import cell, samples

from windtunnel.present import figures, render, style, tables, words
from windtunnel.present.figures import DefendedRow, DefenseGallery, _rates
from windtunnel.present.figures.rounds import MAX_COMBINED
from windtunnel.stages import pictures

N = 50
BASES = {
    "jpeg-50": ("surrogate-n", "surrogate-1", "identity"),
    "hyperprior-real-2": ("surrogate-n", "surrogate-1", "other-decoder"),
    "jpeg-50-then-webp-10": (
        "surrogate-n+identity", "surrogate-n+blur", "surrogate-n+jpeg", "surrogate-1+identity", "surrogate-1+blur",
        "surrogate-1+jpeg",
    ),
}  # fmt: skip


@cache
def repeated() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three defenses in 1, 2 and 5 rounds: the gradient through all rounds masks, the others find 5, 10, ... images."""
    parts = [cell(n=N)]
    for base, rules in BASES.items():
        for place, rounds in enumerate((1, 2, 5)):
            name = base if rounds == 1 else f"{base}-x{rounds}"
            attacked = {"attack": "pgd20", "eps_255": 8, "defense": name, "n": N}
            parts += [cell(n=N, defense=name, broken=4), cell(broken=25, **attacked)]
            for k, rule in enumerate(rules):
                if rounds == 1 and "surrogate-n" in rule:
                    continue
                broken = 45 - 18 * place if "surrogate-n" in rule else 48 - 2 * k
                parts.append(cell(broken=broken, through=rule, attack_defense=name, **attacked))
    frame = samples(*parts)
    return metrics_of(frame, ()), cells_of(frame)


@cache
def rated() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three codec families at three settings, one of them learned and trained with two seeds."""
    parts = [cell(n=N)]
    for k, (family, ending) in enumerate((("jpeg", ""), ("hyperprior", ""), ("hyperprior", "-s1"), ("mine", ""))):
        for setting in (1, 2, 3):
            bits = (0.3 + 0.2 * setting) * (1 + 0.3 * k)
            common = {
                "defense": f"{family}-{setting}{ending}", "bpp_payload": bits, "psnr": 24.0 + setting + k,
                "ssim": 0.8 + 0.05 * setting, "n": N,
            }  # fmt: skip
            parts += [cell(broken=k, **common), cell(broken=20 + setting, attack="pgd20", eps_255=8, **common)]
    frame = samples(*parts)
    return metrics_of(frame, ()), cells_of(frame)


def words_of(figure: Figure) -> str:
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(Text)).replace("\u00a0", " ")


def stays_inside(figure: Figure) -> bool:
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()


def panels(figure: Figure) -> dict[str, object]:
    return {axes.get_title(loc="left").replace("\n", " "): axes for axes in figure.axes if axes.get_title(loc="left")}


def solid(axes: object) -> list[list[float]]:
    """Values of the solid lines over the rounds, rings left out."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    return sorted([round(float(v), 6) for v in line.get_ydata()] for line in lines)


# --------------------------------------------------------------------------------------------------------------- tables


def test_the_rule_that_won_is_counted_among_those_tried() -> None:
    line = tables.defenses(*repeated()).data.set_index("defense").loc["jpeg-50-x5"]
    assert (line["rule"], line["n_rules"], line["rule_of"]) == ("surrogate-1", 3, "surrogate-1 (of 3)")
    assert tables.defenses(*repeated()).data.set_index("defense").loc["jpeg-50", "n_rules"] == 2
    assert np.isnan(tables.defenses(*repeated()).data.set_index("defense").loc["none", "n_rules"])


def test_random_signs_are_a_control_and_no_rule() -> None:
    through = {"attack": "pgd20", "eps_255": 8, "defense": "jpeg-50", "attack_defense": "jpeg-50", "n": N}
    frame = samples(
        cell(n=N), cell(n=N, defense="jpeg-50"), cell(broken=30, through="identity", **through),
        cell(broken=20, through="blur", **through), cell(broken=5, through="noise", **through),
    )  # fmt: skip
    table = tables.defenses(metrics_of(frame, ()), cells_of(frame))
    assert table.data.set_index("defense").loc["jpeg-50", "rule_of"] == "identity (of 2)"


def test_many_tied_rules_are_counted_in_print_and_named_in_the_csv() -> None:
    through = {"attack": "pgd20", "eps_255": 8, "defense": "mine-1", "attack_defense": "mine-1", "broken": 9, "n": N}
    frame = samples(cell(n=N), cell(n=N, defense="mine-1"), *(cell(through=r, **through) for r in "abcd"))
    line = tables.defenses(metrics_of(frame, ()), cells_of(frame)).data.set_index("defense").loc["mine-1"]
    assert line["rule"] == "a, b, c, d"
    assert line["rule_of"] == "a, b and 2 more (of 4)"


def test_checks_of_a_row_are_those_of_all_its_cells_and_no_others() -> None:
    metrics, cells = repeated()
    cells = cells.assign(flags="")
    mine = (cells["defense"] == "jpeg-50-x5") & (cells["through"] == "surrogate-n")
    cells.loc[mine, "flags"] = "zero_gradient gradient_direction rounds_raise_accuracy"
    table = tables.defenses(metrics, cells)
    lines = table.data.set_index("defense")
    assert lines.loc["jpeg-50-x5", "flags"] == "zero_gradient gradient_direction rounds_raise_accuracy"
    titles = [words.title(name) for name in ("rounds_raise_accuracy", "zero_gradient")]
    assert lines.loc["jpeg-50-x5", "flags_of"] == f"{titles[0]}, {titles[1]} and 1 more (1 of 4 cells)"
    assert lines.loc["jpeg-50-x2", "flags_of"] == "none"
    # Another rule found less: no dagger at the number.
    assert "rounds_raise_accuracy" not in str(lines.loc["jpeg-50-x5"].get("through_notes", ""))
    assert lines.loc["none", "flags_of"] == ""


def test_a_column_of_which_nothing_is_known_is_not_printed() -> None:
    through = {"attack": "pgd20", "eps_255": 8, "defense": "median-3", "attack_defense": "median-3", "n": N}
    frame = samples(cell(n=N), cell(n=N, defense="median-3"), cell(broken=9, through="own", **through))
    printed = {c.key for c in tables.defenses(metrics_of(frame, ()), cells_of(frame)).columns}
    assert "bpp_payload" not in printed and {"psnr", "ssim", "rule_of"} <= printed
    assert "bpp_payload" in {c.key for c in tables.defenses(*repeated()).columns}


def test_rows_stand_by_family_in_the_order_of_the_palette() -> None:
    names = ["none", "wavelet", "mine-2", "jpeg-50-then-webp-10", "webp-10", "hyperprior-2", "jpeg-50-x2", "jpeg-50"]
    assert sorted(names, key=style.defense_order) == [
        "none", "jpeg-50", "jpeg-50-x2", "webp-10", "hyperprior-2", "wavelet", "mine-2", "jpeg-50-then-webp-10",
    ]  # fmt: skip


def test_time_per_image_is_the_parts_time_over_their_images() -> None:
    _, cells = repeated()
    costs = pd.DataFrame(
        [
            {"rule": "purify_shared", "part": "photodigits.test:none:jpeg-50", "cpu_seconds": 0.1, "wall_seconds": 0.2},
            {"rule": "purify_shared", "part": "photodigits.test:none:gone-1", "cpu_seconds": 9.0, "wall_seconds": 9.0},
            {"rule": "observe", "part": "photodigits.test:none:jpeg-50-x2", "cpu_seconds": 9.0, "wall_seconds": 9.0},
            {"rule": "purify_shared", "part": None, "cpu_seconds": 9.0, "wall_seconds": 9.0},
        ]
    )
    table = tables.defense_costs(cells, costs)
    assert table.data[["defense", "n", "sets"]].values.tolist() == [["jpeg-50", N, 1]]
    assert table.data.loc[0, "cpu_ms"] == pytest.approx(2.0) and table.data.loc[0, "wall_ms"] == pytest.approx(4.0)
    assert tables.defense_costs(cells).is_empty
    assert "Not in this run" in render.markdown(tables.defense_costs(cells))


def shifted() -> pd.DataFrame:
    parts = [cell(n=N), cell(n=N, broken=5, defense="jpeg-50")]
    for severity in (2, 1):
        parts.append(cell(n=N, broken=10 * severity, shift="pixel_shift", severity=severity, role="shifted"))
    return metrics_of(samples(*parts), ())


def test_shifts_hold_the_metrics_and_say_how_often_the_answer_stayed() -> None:
    metrics = shifted()
    table = tables.shifts(metrics, pd.DataFrame())
    assert table.data["severity"].tolist() == [1, 2]
    assert table.data["accuracy"].tolist() == [0.8, 0.6]
    assert table.data["unshifted"].tolist() == [1.0, 1.0]
    assert table.data["consistency"].tolist() == [0.8, 0.6]  # wrong answers are other answers here
    assert "answer unchanged" in render.markdown(table)


def test_shifts_stand_without_consistency() -> None:
    metrics = shifted()
    table = tables.shifts(metrics[metrics["metric"] != "consistency"], pd.DataFrame())
    assert table.data["accuracy"].tolist() == [0.8, 0.6]
    assert "answer unchanged" not in render.markdown(table)
    assert tables.shifts(metric_frame([]), pd.DataFrame()).is_empty


# --------------------------------------------------------------------------------------------------------------- rounds


def test_every_repeated_defense_has_a_panel_with_its_rules() -> None:
    figure = figures.rounds(*repeated())
    found = panels(figure)
    assert list(found) == ["JPEG-50", "hyperprior codec (realism) 2", "JPEG-50 then WebP-10"]
    # broken through all rounds: 27, then 9 of 50, through one: 46; at one round both are the stored surrogate-1 cell
    values = solid(found["JPEG-50"])
    assert [0.08, 0.08, 0.08] in values
    assert [0.08, 0.46, 0.82] in values
    assert stays_inside(figure)
    assert style.svg_bytes(figure) == style.svg_bytes(figures.rounds(*repeated()))


def test_of_many_combined_rules_the_lowest_and_the_highest_are_drawn() -> None:
    figure = figures.rounds(*repeated())
    drawn = solid(panels(figure)["JPEG-50 then WebP-10"])
    assert len(drawn) == MAX_COMBINED
    metrics, _ = repeated()
    last = metrics[(metrics["metric"] == "accuracy") & (metrics["attack_defense"] == "jpeg-50-then-webp-10-x5")]
    ends = sorted(last["value"])
    assert sorted(line[-1] for line in drawn) == pytest.approx([*ends[: MAX_COMBINED - 1], ends[-1]])
    # one round of a combined rule is stored under the name with surrogate-1
    assert all(len(line) == 3 for line in drawn)
    assert "those that end lowest" in words_of(figure)


def test_one_repeated_base_is_one_panel_and_none_is_words() -> None:
    metrics, cells = repeated()
    others = [
        style.defense_family(name) in ("hyperprior-real", "jpeg-then-webp") for name in metrics["defense"].fillna("")
    ]
    assert list(panels(figures.rounds(metrics[~np.array(others)], cells))) == ["JPEG-50"]
    once = metrics[~metrics["defense"].fillna("").str.contains("-x")]
    assert "Not in this run" in words_of(figures.rounds(once, cells))


def test_rules_of_a_composition_share_the_colour_of_the_first_stage() -> None:
    from windtunnel.present.figures import _rounds

    look = _rounds.looks(["surrogate-1+blur", "surrogate-1+identity", "identity+blur", "surrogate-1"])
    assert look.colours["surrogate-1+blur"] == look.colours["surrogate-1"] == style.RULES["surrogate-1"]
    assert look.markers["surrogate-1+blur"] == look.markers["identity+blur"] != look.markers["surrogate-1+identity"]
    assert look.markers["surrogate-1"] == "o"


# ---------------------------------------------------------------------------------------------------------------- rates


def test_rate_and_distortion_hold_the_metrics() -> None:
    metrics, cells = rated()
    figure = figures.rate_distortion(metrics, cells)
    psnr, ssim = (axes for axes in figure.axes if axes.get_xscale() == "log")
    curves = [line for line in psnr.get_lines() if len(line.get_xdata()) == 3 and line.get_alpha() == 1]
    families = {line.get_color(): line for line in curves}
    jpeg = families[style.DEFENSES["jpeg"]]
    assert np.allclose(jpeg.get_xdata(), [0.5, 0.7, 0.9]) and np.allclose(jpeg.get_ydata(), [25, 26, 27])
    assert len(families) == 3
    assert "SSIM" in ssim.get_title(loc="left")
    assert stays_inside(figure)


def test_training_seeds_are_lines_of_their_own_and_unlabelled() -> None:
    figure = figures.rate_accuracy(*rated())
    clean = figure.axes[0]
    colour = style.DEFENSES["hyperprior"]
    lines = [line for line in clean.get_lines() if line.get_color() == colour and len(line.get_xdata()) == 3]
    assert sorted(line.get_alpha() for line in lines) == [0.5, 1.0]
    assert sum(text.get_color() == colour for text in clean.texts) == 2
    assert "hyperprior codec" in words_of(figure) and stays_inside(figure)


def test_a_codec_in_one_setting_has_no_curve() -> None:
    metrics, cells = rated()
    few = metrics[metrics["defense"].isin(["none", "jpeg-1"]) | metrics["defense"].isna()]
    for draw in (figures.rate_distortion, figures.rate_accuracy):
        assert "Not in this run" in words_of(draw(few, cells))


def test_labels_leave_points_and_each_other_free() -> None:
    axes = style.new_figure(height=2.0).subplots()
    _rates.x_axis(axes, [1.0, 10.0])
    axes.set_ylim(0, 1)
    points = [(2.0, 0.5), (2.05, 0.52), (2.1, 0.5)]
    _rates._label(axes, points, [(p, "50", "k") for p in points], (2.0, 1.8))
    places = [text.xyann for text in axes.texts]
    assert len({(round(x, 3), round(y, 3)) for x, y in places}) == 3


# -------------------------------------------------------------------------------------------------------------- gallery


def gallery(rows: int = 3) -> DefenseGallery:
    rng = np.random.default_rng(0)
    clean = rng.integers(60, 200, (8, 8, 3)) / 255
    adversarial = clean + rng.choice([-8, 8], clean.shape) / 255
    made = [
        DefendedRow(
            defense=f"mine-{i}", clean=clean, clean_pred="3", clean_conf=0.9,
            adversarial=clean + i * (adversarial - clean), adversarial_pred="3" if i == 0 else "8",
            adversarial_conf=0.7, under="1.10 bpp",
        )
        for i in range(rows)
    ]  # fmt: skip
    return DefenseGallery(
        clean=clean, clean_pred="3", clean_conf=0.95, adversarial=adversarial, adversarial_pred="8",
        adversarial_conf=0.99, label="3", model="digits-cnn", images="photodigits.test", attack="pgd20",
        threat="linf-8", rows=tuple(made),
    )  # fmt: skip


def test_the_gallery_has_a_row_per_defense_and_says_right_and_wrong() -> None:
    figure = figures.gallery_defenses(gallery())
    assert len(figure.axes) == 5 * 4
    text = words_of(figure)
    assert "mine-2" in text and "PGD-20 at 8/255" in text and "true class 3" in text
    # the rows leave nothing, the whole and twice the perturbation; 31 enlarges 8/255 to just below white
    assert "left of it × 31" in text
    assert text.count("mean 8.0/255") == 2 and text.count("mean 0.0/255") == 1 and text.count("mean 16.0/255") == 1
    below = [t for t in figure.findobj(Text) if t.get_text().startswith("3 (")]
    assert {t.get_color() for t in below} == {style.GREEN}
    assert {t.get_color() for t in figure.findobj(Text) if t.get_text().startswith("8 (")} == {style.VERMILION}
    assert stays_inside(figure)
    assert style.png_bytes(figure) == style.png_bytes(figures.gallery_defenses(gallery()))


def test_the_gallery_takes_one_setting_per_family_then_rounds_then_the_rest() -> None:
    names = ["jpeg-25", "jpeg-50", "jpeg-50-x2", "jpeg-50-x5", *(f"mine{chr(97 + i)}-1" for i in range(10)), "webp-10"]
    used = [*names, "jpeg-50"]
    plan = SimpleNamespace(cells=[SimpleNamespace(cell=SimpleNamespace(defense=name)) for name in used])
    chosen = pictures._chosen(plan, names)
    assert len(chosen) == pictures.DEFENSES == 14
    assert {"jpeg-50", "jpeg-50-x5", "jpeg-25", "webp-10"} <= set(chosen) and "jpeg-50-x2" not in chosen
    assert chosen == sorted(chosen, key=style.defense_order)
    many = [f"mine{chr(97 + i)}-1" for i in range(15)]
    plan = SimpleNamespace(cells=[SimpleNamespace(cell=SimpleNamespace(defense=name)) for name in [*many, *many[5:]]])
    assert set(many[5:]) <= set(pictures._chosen(plan, many))  # those that the run has most cells of


def test_without_a_defense_the_gallery_is_words() -> None:
    for nothing in (None, gallery(0)):
        assert "Not in this run" in words_of(figures.gallery_defenses(nothing))


# ---------------------------------------------------------------------------------------------------- names and colours


def test_names_are_split_into_family_setting_and_rounds() -> None:
    found = {
        name: (style.defense_family(name), style.defense_setting(name), style.defense_rounds(name)[1])
        for name in ("hyperprior-real-2-s1-x3", "jpeg-50-then-webp-10-x2", "cdd-red", "random-noise-8", "jpeg2000-27")
    }
    assert found == {
        "hyperprior-real-2-s1-x3": ("hyperprior-real", "2-s1", 3),
        "jpeg-50-then-webp-10-x2": ("jpeg-then-webp", "50+10", 2),
        "cdd-red": ("cdd-red", "", 1),
        "random-noise-8": ("random-noise", "8", 1),
        "jpeg2000-27": ("jpeg2000", "27", 1),
    }
    assert words.defense("jpeg-50-then-webp-10-x2") == "(JPEG-50 then WebP-10) applied 2 times"
    assert words.defense("hyperprior64-real-2") == "hyperprior codec (realism) for 64 px 2"
    assert style.known_family("blindspot") == "blind-spot" and style.known_family("jpeg2000") == "jpeg2000"
    assert style.known_family("mine") == "" and style.known_family("jpeg-then-webp") == ""


def test_every_new_rule_has_words_and_a_colour_of_its_own() -> None:
    names = ("other-decoder", "exact", "surrogate-n", "surrogate-1", "fewer-steps", "through-fit", "fixed-fit")
    assert all(words.rule(name) != name for name in names)
    assert words.rule("surrogate-1+blur") == "surrogate, one round + blur"
    assert len({style.RULES[name] for name in style.RULES}) == len(style.RULES)


def test_families_can_be_told_apart() -> None:
    """CIEDE2000: about 2 is just seen side by side; codecs share a figure, so theirs stand further apart."""
    lab = {name: rgb2lab(np.array(to_rgb(colour))[None, None])[0, 0] for name, colour in style.DEFENSES.items()}
    distance = {(a, b): float(deltaE_ciede2000(lab[a], lab[b])) for a, b in combinations(lab, 2)}
    assert min(distance.values()) > 10
    codecs = list(style.DEFENSES)[1:10]
    assert {"jpeg", "webp", "avif", "jpeg2000", "hyperprior", "hyperprior-real", "factorized"} <= set(codecs)
    assert min(v for pair, v in distance.items() if set(pair) <= set(codecs)) > 14
    assert len({style.defense_marker(name) for name in codecs}) == len(codecs)


def test_unknown_families_of_one_figure_get_different_colours() -> None:
    given = style.family_colours(["jpeg", "hyperprior64", "jpeg-then-webp", "mine", "yours", "theirs"])
    assert given["jpeg"] == style.DEFENSES["jpeg"] and given["hyperprior64"] == style.DEFENSES["hyperprior"]
    assert len(set(given.values())) == 6
