"""One run with a battery, an ensemble, a random defense, a composition, a learned stand-in and diagnostics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workflow import SNAKEMAKE, Run, planned_rules

import windtunnel

pytestmark = pytest.mark.workflow
CHAIN = "jpeg-50-then-median-3"
SHARED: dict[str, Any] = {"images": "photodigits.test", "models": "digits-cnn", "n": 8}
CONFIG: dict[str, Any] = {
    "name": "many",
    "replicates": 100,
    "fit_on": "fit",
    "catalogue": {
        "attacks": {
            "two-steps": {"method": "pgd", "settings": {"steps": 2, "step_size": 0.2}},
            "ten-steps": {"method": "pgd", "settings": {"steps": 10, "loss": "margin"}},
            "both": {"members": ["two-steps", "ten-steps"]},
            "mean": {"method": "pgd", "settings": {"steps": 4}, "eot": 3},
        }
    },
    "blocks": [
        {**SHARED, "n": 24, "defenses": ["none", "jpeg-50", "random-pad", CHAIN]},
        {**SHARED, "n": 24, "attacks": ["both", "two-steps", "ten-steps"], "threats": "linf-4", "mode": "search"},
        {**SHARED, "sources": ["ens-cnn-vit", "digits-cnn-s1"], "attacks": ["mi", "ensemble-loss"],
         "threats": "linf-8"},
        {**SHARED, "attacks": "mean", "threats": "linf-8", "defenses": "random-pad", "through": ["identity", "exact"]},
        {**SHARED, "attacks": "two-steps", "threats": "linf-8", "defenses": CHAIN, "through": "surrogate-1+own"},
        {**SHARED, "attacks": "ten-steps", "threats": "linf-8", "defenses": "jpeg-50",
         "through": ["surrogate-1", "unet", "noise"]},
    ],
    "diagnostics": [
        {**SHARED, "diagnostics": ["pipeline-contract", "gradient-direction"], "threats": "linf-8",
         "defenses": ["none", "jpeg-50"], "through": "surrogate-1"},
        {**SHARED, "diagnostics": "min-perturbation", "threats": "linf-4"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("many")).configure(CONFIG)
    run.snakemake("tables")
    return run


def test_a_battery_says_which_member_broke_what_and_is_as_strong_as_both(finished: Run) -> None:
    samples = windtunnel.load(finished.folder / "results").set_index("sample_id").sort_index()
    samples = samples[samples["defense"] == "none"]
    by = {name: samples[samples["attack"] == name] for name in ("both", "two-steps", "ten-steps")}
    clean = samples[samples["attack"] == "none"]["correct"].astype(bool)
    first = ~by["two-steps"]["correct"].astype(bool) & clean
    second = ~by["ten-steps"]["correct"].astype(bool) & clean & ~first
    expected = np.where(first, "two-steps", np.where(second, "ten-steps", "nobody"))
    assert by["both"]["broken_by"].fillna("nobody").tolist() == expected.tolist()
    assert first.any() and second.any(), "the planted case no longer tells the members apart"
    spent = by["both"]["n_backward"]
    assert (spent[second] > by["ten-steps"]["n_backward"][second]).all()


def test_an_ensemble_is_a_source_like_any_other(finished: Run) -> None:
    samples = windtunnel.load(finished.folder / "results")
    found = samples[samples["source_model"] == "ens-cnn-vit"]
    assert set(found["attack"]) == {"mi", "ensemble-loss"} and (found["status"] == "ok").all()
    single = samples[(samples["source_model"] == "digits-cnn-s1") & (samples["attack"] == "mi")]
    pair = found[found["attack"] == "mi"]
    assert (pair["n_backward"].to_numpy() == 2 * single["n_backward"].to_numpy()).all()
    cells = windtunnel.load(finished.folder / "results", "cells")
    digests = cells.set_index("source_model")["source_weights_sha256"].to_dict()
    assert len({digests["ens-cnn-vit"], digests["digits-cnn-s1"]}) == 2


def test_a_random_defense_is_judged_on_twenty_fresh_draws(finished: Run) -> None:
    samples = windtunnel.load(finished.folder / "results")
    random = samples[samples["defense"] == "random-pad"]
    assert (random["n_draws"] == 20).all()
    steps = random["p_correct"].to_numpy(dtype=float) * 20
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)
    assert samples.loc[samples["defense"] != "random-pad", "n_draws"].isna().all()
    clean = random[random["attack"] == "none"]["p_correct"].astype(float).mean()
    attacked = random[random["attack"] == "mean"].groupby("through")
    assert attacked.size().to_dict() == {"exact": 8, "identity": 8}
    right = attacked["p_correct"].mean()
    assert right["exact"] < clean - 0.2 and right["exact"] < right["identity"] <= clean
    assert (random.loc[random["attack"] == "mean", "n_backward"] == 4 * 3).all()
    metrics = windtunnel.load(finished.folder / "results", "metrics")
    accuracy = metrics[(metrics["metric"] == "accuracy") & (metrics["defense"] == "random-pad")]
    assert abs(accuracy[accuracy["attack"] == "none"]["value"].iloc[0] - clean) < 1e-6


def test_a_composition_is_purified_attacked_and_judged(finished: Run) -> None:
    samples = windtunnel.load(finished.folder / "results")
    found = samples[samples["defense"] == CHAIN]
    assert set(found["through"]) == {"none", "surrogate-1+own"}
    assert found["bpp_file"].notna().all()
    jpeg = samples[(samples["defense"] == "jpeg-50") & (samples["attack"] == "none")]
    clean = found[found["attack"] == "none"]
    assert (clean["psnr"].to_numpy() != jpeg["psnr"].to_numpy()).all(), "the second stage changed nothing"
    assert (clean["bpp_file"].to_numpy() == jpeg["bpp_file"].to_numpy()).all(), "bits are those of the codec"


def test_a_learned_stand_in_is_trained_once_and_attacked_through(finished: Run, tmp_path: Path) -> None:
    folder = finished.folder / "results/surrogates/photodigits/jpeg-50"
    assert {p.name for p in folder.iterdir()} == {"weights.safetensors", "card.json"}
    samples = windtunnel.load(finished.folder / "results")
    through = samples[(samples["defense"] == "jpeg-50") & (samples["attack"] == "ten-steps")]
    margins = through.groupby("through")["margin"].mean()
    assert margins["unet"] < margins["noise"], "the stand-in's gradient is no better than random signs"
    assert "Nothing to be done" in finished.snakemake("tables")
    # without the stand-in the attacks through it cannot be made again
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    copy = Run(tmp_path / "copy")
    for name in ("weights.safetensors", "card.json"):
        (copy.folder / "results/surrogates/photodigits/jpeg-50" / name).unlink()
    (copy.folder / "results/attacked/digits-cnn/photodigits.test/through.json").unlink()
    planned = planned_rules(copy.snakemake("--dry-run", "attacks"))
    assert {"surrogate_train", "attack"} <= planned and not planned & {"model_copy", "images_build"}


def test_measurements_have_a_table_numbers_with_intervals_and_feed_the_checks(finished: Run) -> None:
    measured = windtunnel.load(finished.folder / "results", "diagnostics")
    assert set(measured["diagnostic"]) == {"pipeline-contract", "gradient-direction", "min-perturbation"}
    distance = measured[measured["quantity"] == "distance"]["value"].dropna()
    assert len(distance) and (distance > 0).all()
    metrics = windtunnel.load(finished.folder / "results", "metrics").set_index("metric")
    row = metrics.loc["min-perturbation.distance"]
    assert abs(row["value"] - distance.mean()) < 1e-12
    assert row["ci_low"] < row["value"] < row["ci_high"]
    cells = windtunnel.load(finished.folder / "results", "cells")
    probed = cells[(cells["defense"] == "jpeg-50") & (cells["through"] == "surrogate-1")]
    assert probed["check_gradient_direction"].tolist() == ["ok"]
    assert cells.loc[cells["defense"] == CHAIN, "check_gradient_direction"].isna().all()


@pytest.mark.parametrize(
    ("target", "name"), [("attacks_full", "all attacks"), ("defenses_full", "all defenses"), ("realism", "realism")]
)
def test_a_full_run_is_a_target_with_a_bill_and_a_folder_of_its_own(target: str, name: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [*SNAKEMAKE, "--dry-run", "--quiet", "rules", "--", target],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["runs"] and (tmp_path / "runs" / target).is_dir()
    assert f"The bill of '{name}'" in found.stderr
    assert "gradient evaluations" in found.stderr
