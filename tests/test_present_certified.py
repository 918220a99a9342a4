"""The table and the figure of certificates: numbers are those of the summaries, curves those of the samples."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest

from windtunnel import store
from windtunnel.certify.smoothing import asked_radius
from windtunnel.present import figures, render, style, tables
from windtunnel.stages.summarise_certified import accuracy_rows, accuracy_table


def certificates(**key: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """Made-up certificates of 40 samples: every tenth abstains, every seventh is wrong; radii fill what is allowed."""
    shared = {
        "dataset": "photodigits", "split": "test", "model": "digits-cnn", "model_seed": 0, "defense": "none",
        "sigma": 0.25, "choose_draws": 100, "draws": 1000, "alpha": 0.001, "looks": [], "mode": "fixed",
    } | key  # fmt: skip
    largest = asked_radius(shared["draws"], shared["alpha"], shared["sigma"], shared["looks"])
    number = np.arange(40)
    abstains, wrong = number % 10 == 3, number % 7 == 2
    radius = np.minimum(np.linspace(0.01, 1.3, 40) * (largest or 0.0), largest or 0.0)
    frame = pd.DataFrame({
        "sample_id": [f"s{i:02d}" for i in number], "source_id": [f"g{i:02d}" for i in number], "label": number % 10,
        "predicted": [None if a else int((i + w) % 10) for i, a, w in zip(number, abstains, wrong, strict=True)],
        "radius": [None if a else float(r) for a, r in zip(abstains, radius, strict=True)],
        "correct": ~abstains & ~wrong, "chosen": (number + wrong) % 10, "agreeing": 900, "n_used": shared["draws"],
    })  # fmt: skip
    return shared | {"largest_radius": largest}, frame


def tables_of(*made: tuple[dict[str, Any], pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(certified, certified_accuracy) as ``windtunnel.load`` gives them."""
    schema = store.schema(store.CERTIFIED_FIELDS)
    samples = []
    for shared, frame in made:
        columns = {c: [None if pd.isna(v) else v for v in frame[c].tolist()] for c in frame.columns}
        repeated = {name: [value] * len(frame) for name, value in shared.items()}
        samples.append(store.table_from_columns(repeated | columns, schema).to_pandas())
    rows = [row for shared, frame in made for row in accuracy_rows(frame, shared)]
    return pd.concat(samples, ignore_index=True), accuracy_table(rows).to_pandas()


@pytest.fixture(scope="module")
def run() -> tuple[pd.DataFrame, pd.DataFrame]:
    made = [certificates(model=m, sigma=s) for m in ("digits-cnn", "digits-at") for s in (0.12, 0.25, 0.5)]
    made.append(certificates(sigma=0.25, defense="gaussian-1"))
    made.append(certificates(sigma=0.25, looks=[100, 300, 1000], mode="sequential"))
    return tables_of(*made)


def words_of(figure: Any) -> str:
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text)).replace("\u00a0", " ")


def test_the_table_prints_the_summaries(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    samples, accuracy = run
    table = tables.certificates(accuracy)
    assert len(table.data) == 8
    line = table.data[(table.data["sigma"] == 0.25) & (table.data["model"] == "digits-at")].iloc[0]
    part = samples[(samples["sigma"] == 0.25) & (samples["model"] == "digits-at")]
    for radius in (0.0, 0.25, 0.5):
        share = (part["correct"] & (part["radius"] >= radius)).mean()
        assert line[f"certified_{radius:g}"] == pytest.approx(share)
        assert line[f"certified_{radius:g}_low"] < share < line[f"certified_{radius:g}_high"]
    assert line["average_radius"] == pytest.approx(part["radius"].where(part["correct"], 0.0).fillna(0).mean())
    assert line["abstained"] == pytest.approx(part["predicted"].isna().mean()) and line["n"] == 40
    text = render.markdown(table)
    assert "0 (no reach)" in text and "looks 100, 300, 1000" in text and "nan" not in text
    small = table.data[table.data["sigma"] == 0.12].iloc[0]
    assert pd.isna(small["certified_0.5"]) and not pd.isna(small["certified_0.25"])
    looked = table.data[table.data["looks"] != ""].iloc[0]
    assert looked["largest_radius"] < line["largest_radius"]


def test_a_run_without_certificates_says_so() -> None:
    for frame in (None, tables_of(certificates())[1].iloc[:0]):
        table = tables.certificates(frame)
        assert table.is_empty and "Not in this run" in render.markdown(table)
    for frame in (None, tables_of(certificates())[0].iloc[:0]):
        assert "Not in this run" in words_of(figures.certified_against_radius(frame))


def test_curves_are_the_samples_own_and_end_at_what_the_draws_allow(run: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    samples, _ = run
    figure = figures.certified_against_radius(samples)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["σ = 0.12", "σ = 0.25", "σ = 0.5"]
    axes = figure.axes[1]
    largest = asked_radius(1000, 0.001, 0.25)
    mark, *curves = sorted(axes.get_lines(), key=lambda line: line.get_color() != style.FAINT)
    assert list(mark.get_xdata()) == [largest, largest]
    assert len(curves) == 3, "two models and one denoiser; the sequential twin is left to the table"
    part = samples[(samples["sigma"] == 0.25) & (samples["model"] == "digits-at")]
    colour = style.model_colours(["digits-at", "digits-cnn"])["digits-at"]
    curve = next(line for line in curves if line.get_color() == colour)
    x, y = curve.get_xdata(), curve.get_ydata()
    expected = [(part["correct"] & (part["radius"] >= r)).mean() for r in x[:-1]]
    np.testing.assert_allclose(y[:-1], expected)
    assert x[-1] == largest and y[-1] == 0 and curve.get_drawstyle() == "steps-pre"
    text = words_of(figure)
    assert "n = 40" in text and "100 + 1000 draws" in text and "no denoiser" in text
    assert style.svg_bytes(figure) == style.svg_bytes(figures.certified_against_radius(samples))


def test_draws_that_can_certify_nothing_leave_an_empty_curve() -> None:
    shared, frame = certificates(draws=5)
    assert shared["largest_radius"] is None
    frame = frame.assign(predicted=None, radius=None, correct=False)
    samples, accuracy = tables_of((shared, frame))
    line = tables.certificates(accuracy).data.iloc[0]
    assert line["certified_0"] == 0 and line["abstained"] == 1 and pd.isna(line["largest_radius"])
    assert "σ = 0.25" in words_of(figures.certified_against_radius(samples))
