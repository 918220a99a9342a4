"""The workflow as a user sees it: a tiny run, then what a second run, a new defense, a new score, a kill do to it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from workflow import ROOT, Run, planned_rules, tiny

import windtunnel
from windtunnel import store
from windtunnel.present.names import FIGURE_NAMES, TABLE_NAMES

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One complete tiny run; tests that change it take a copy."""
    run = Run(tmp_path_factory.mktemp("finished") / "run").configure(tiny())
    run.snakemake()
    return run


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, times kept."""
    shutil.copytree(finished.folder, tmp_path / "run", symlinks=True)
    return Run(tmp_path / "run")


def test_a_run_leaves_what_the_documentation_promises(finished: Run) -> None:
    for name in FIGURE_NAMES:
        assert (finished.folder / f"results/figures/{name}.svg").stat().st_size > 1000
        assert (finished.folder / f"results/figures/{name}.png").read_bytes()[:4] == b"\x89PNG"
    for name in TABLE_NAMES:
        for form in ("md", "csv", "tex", "html"):
            assert (finished.folder / f"results/tables/printed/{name}.{form}").is_file()
    report = (finished.folder / "results/report.html").read_text()
    assert "sequential_jpeg" in report
    assert 'src="http' not in report
    assert (finished.folder / "results/verdict.ok").read_text() == "ok\n"
    for rule in ("attack", "observe", "score", "purify_shared", "images_build", "model_copy"):
        assert list((finished.folder / f"results/logs/{rule}").glob("**/*.log")), rule
        assert list((finished.folder / f"results/benchmarks/{rule}").glob("**/*.tsv")), rule


def test_the_tables_hold_together(finished: Run) -> None:
    samples = windtunnel.load(finished.folder / "results")
    cells = windtunnel.load(finished.folder / "results", "cells").set_index("cell_id")
    metrics = windtunnel.load(finished.folder / "results", "metrics")
    assert list(samples.columns) == store.samples_schema(tiny()["scores"]).names
    assert set(samples["cell_id"]) == set(cells.index)
    assert samples.groupby("cell_id").size().to_dict() == cells["n"].to_dict()
    assert (samples["status"] == "ok").all()
    assert set(cells["status"]) == {"ok"}
    # accuracy is the mean of the samples it is said to be
    accuracy = metrics[(metrics["metric"] == "accuracy") & metrics["cell_id"].notna()].set_index("cell_id")["value"]
    labelled = samples[samples["label"].notna()]
    recomputed = labelled.groupby("cell_id")["correct"].apply(lambda c: c.astype(float).mean())
    assert (accuracy - recomputed.loc[accuracy.index]).abs().max() < 1e-12
    assert len(accuracy) == labelled["cell_id"].nunique()
    # every attacked image, as stored, lies in its ball
    attacked = samples[samples["attack"] != "none"]
    assert (attacked["linf"] <= attacked["eps"] + 1e-7).all()
    # scores only where they apply
    assert samples.loc[samples["model"] == "digits-cnn", "score_abet"].isna().all()
    assert samples.loc[(samples["model"] == "digits-abet"), "score_abet"].notna().all()
    # a robust accuracy is at most that of each member on the same samples
    robust = metrics[metrics["metric"] == "robust_accuracy"]
    assert len(robust)
    for row in robust.itertuples():
        for member in row.members:
            rows = samples[samples["cell_id"] == member]
            assert row.n <= len(rows)
    assert (robust["ci_low"] <= robust["value"] + 1e-12).all()
    assert (robust["value"] <= robust["ci_high"] + 1e-12).all()


def test_the_science_shows(finished: Run) -> None:
    """Loose on purpose (32 images): a bare model falls, noise does not fool it, JPEG helps if it is ignored."""
    samples = windtunnel.load(finished.folder / "results")
    samples = samples[(samples["model"] == "digits-cnn") & (samples["split"] == "test")]

    def accuracy(**wanted: str) -> float:
        rows = samples
        for column, value in wanted.items():
            rows = rows[rows[column] == value]
        assert len(rows), wanted
        return float(rows["correct"].astype(float).mean())

    clean = accuracy(attack="none", defense="none", shift="none")
    assert clean > 0.85
    assert accuracy(attack="pgd20", threat="linf-8", mode="search") < 0.15
    assert accuracy(attack="sign-noise", threat="linf-4", defense="none") > clean - 0.15
    fooled = accuracy(attack="pgd20", threat="linf-4", defense="none", attack_defense="none")
    unaware = accuracy(attack="pgd20", threat="linf-4", defense="jpeg-50", attack_defense="none")
    assert unaware > fooled + 0.15
    assert accuracy(attack="pgd20", threat="linf-4", through="surrogate-1", iterate="best") < unaware - 0.1


def test_a_second_run_does_nothing(finished: Run) -> None:
    before = finished.data()
    out = finished.snakemake("all")
    assert "Nothing to be done" in out
    assert finished.data() == before


def test_the_same_bytes_on_one_core(finished: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "one").configure(tiny())
    other.snakemake("tables", cores=1)
    assert other.data() == finished.data()


def test_adding_a_defense_computes_only_its_parts(copied: Run) -> None:
    before = copied.parts()
    config = tiny()
    config["blocks"][0]["defenses"].append("jpeg-75")
    config["blocks"][3]["defenses"].append("median-3")
    copied.configure(config).snakemake("tables")
    after = copied.parts()
    assert all(after.get(path) == stamp for path, stamp in before.items())
    new = sorted(set(after) - set(before))
    # jpeg-75: one purified set, seen clean by two models; median-3: two attacks behind it
    assert len([p for p in new if "/defended/" in p]) == 1
    assert len([p for p in new if "/attacked/" in p]) == 0
    assert len([p for p in new if "/observed/" in p]) == 4


def test_adding_a_score_runs_no_model(copied: Run) -> None:
    before = copied.parts()
    config = tiny()
    config["scores"].append("maxlogit")
    copied.configure(config)
    planned = planned_rules(copied.snakemake("--dry-run"))
    assert "score" in planned
    assert not planned & {"attack", "observe", "purify_shared", "images_build", "model_copy", "model_provide"}
    copied.snakemake("scores")
    assert copied.parts() == before
    samples = windtunnel.load(copied.folder / "results")
    assert samples.loc[samples["model"] == "digits-abet", "score_maxlogit"].notna().all()


def test_the_documented_methods_of_the_users_own(tmp_path: Path) -> None:
    """The folder that the documentation shows, copied and run as it says: one file, one catalogue entry each."""
    run = Run(tmp_path / "study")
    shutil.copytree(ROOT / "docs" / "examples" / "own_methods", run.folder)
    run.snakemake("results/tables/metrics.parquet")
    samples = windtunnel.load(run.folder / "results")
    upward = samples[samples["attack"] == "upward"]
    assert len(upward) == 16 and (upward["linf"] <= 4.51 / 255).all()
    assert (samples.loc[samples["split"] == "letters", "score_size"] < 0).all()
    metrics = windtunnel.load(run.folder / "results", "metrics")
    clean = metrics[(metrics["metric"] == "accuracy") & (metrics["attack"] == "none")].set_index("defense")["value"]
    assert clean["mirror"] < clean["none"] - 0.3  # a mirrored digit is another one
    assert clean["smoother"] > 0.8
    through = metrics[(metrics["metric"] == "accuracy") & (metrics["attack"] == "pgd20")]
    assert set(through.loc[through["defense"] == "mirror", "through"]) == {"own", "identity", "blur"}
    exact, guessed = (through.loc[through["through"] == rule, "value"].iloc[0] for rule in ("own", "identity"))
    assert exact < guessed, "the exact rule of the mirror is no stronger than a wrong one"
    cards = {n: json.loads((run.folder / f"results/networks/{n}/card.json").read_text()) for n in
             ("smoothing-filter", "smoothing-filter-s1")}  # fmt: skip
    assert [card["seed"] for card in cards.values()] == [0, 1]
    assert all(card["metrics"]["mse"] < card["metrics"]["mse_of_noise"] for card in cards.values())
    weights = {card["weights"]["sha256"] for card in cards.values()}
    assert len(weights) == 2
    # another file, another identity: exactly what carries the network is made again
    source = run.folder / "mine" / "smoothing_filter.py"
    source.write_text(source.read_text().replace("sigma: float = 0.1", "sigma: float = 0.2"))
    planned = planned_rules(run.snakemake("--dry-run", "results/tables/metrics.parquet"))
    assert {"network_provide", "purify_shared", "attack", "observe"} <= planned
    assert not planned & {"images_build", "model_copy", "model_provide"}


def test_the_bill_and_a_bad_config(copied: Run) -> None:
    out = copied.snakemake("bill")
    assert "gradient evaluations" in out
    assert "jobs" in out
    config = tiny()
    config["scores"][0] = "mps"
    config["blocks"][3]["threats"] = "linf-9000"
    config["blocks"][4]["defences"] = "jpeg-50"
    config["blocks"][5]["n"] = "many"
    out = copied.configure(config).snakemake("--dry-run", ok=False)
    for piece in ("run.yaml", "blocks[4].defences", "did you mean 'defenses'", "blocks[5].n", "unknown score 'mps'"):
        assert piece in out, piece
    config["blocks"][4].pop("defences")
    config["blocks"][5]["n"] = 16
    out = copied.configure(config).snakemake("--dry-run", ok=False)
    for piece in (
        "scores[0]: unknown score 'mps'; did you mean 'msp'?",
        "blocks[3].threats[0]: unknown threat 'linf-9000'",
    ):
        assert piece in out, piece
    assert "Traceback" not in out


def test_killed_at_random_moments_then_the_same_bytes(finished: Run, tmp_path: Path) -> None:
    """The whole process group, ten times; every start must get past the stale lock, and nothing may differ."""
    run = Run(tmp_path / "killed").configure(tiny())
    rng = random.Random(20261120)
    kept: list[int] = []
    for _ in range(10):
        process = subprocess.Popen(
            run.command("tables"),
            cwd=run.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        time.sleep(rng.uniform(2.0, 6.0))  # a moment of the run, not a wait for something
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept.append(len(run.parts()))
    assert kept == sorted(kept), "a kill must not lose finished parts"
    run.snakemake()
    assert run.data() == finished.data()
    assert not list(run.folder.glob("results/**/.*.tmp"))


def test_two_runs_on_one_folder(copied: Run) -> None:
    config = tiny()
    config["blocks"][3]["attacks"].append("pgd50")
    copied.configure(config)
    first = subprocess.Popen(
        copied.command("attacks"),
        cwd=copied.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        locks = copied.folder / ".snakemake" / "locks"
        for _ in range(600):
            if locks.is_dir() and any(locks.glob("*.lock")):
                break
            time.sleep(0.05)
        out = copied.snakemake("attacks", ok=False)
        assert "another run (process" in out
        assert "wait for it or stop it" in out
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_a_flipped_bit_is_found_and_made_again(copied: Run) -> None:
    before = copied.data()
    parts = sorted(p for p in copied.parts() if "/attacked/" in p)
    path = copied.folder / parts[0]
    content = bytearray(path.read_bytes())
    original = bytes(content)
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))
    out = copied.snakemake("tables")
    assert "was damaged or missing and will be made again" in out
    assert path.read_bytes() == original
    assert copied.data() == before
