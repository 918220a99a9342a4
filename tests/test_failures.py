"""What breaks is recorded, the rest goes on: failed cells, killed jobs, NaN weights, bad images, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from workflow import ROOT, Run, planned_rules

import windtunnel

pytestmark = pytest.mark.workflow

ATTACK = '''"""An attack that ends badly while the file '{flag}' exists."""
import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from windtunnel.attacks.base import Attack


@dataclass(frozen=True, kw_only=True)
class Bad(Attack):
    """See above."""

    norms: ClassVar[tuple[str, ...]] = ("linf",)

    @property
    def max_steps(self):
        return 1

    def init(self, x0, y, eps, norm, generators, query):
        if os.path.exists("{flag}"):
            {end}
        return {{"x": x0}}

    def step(self, rows, norm, generators, query):
        return rows
'''


def config(**more: object) -> dict:
    """One model, one clean cell, one good attack."""
    return {
        "name": "failing",
        "scores": ["msp", "mahalanobis"],
        "fit_on": "fit",
        "replicates": 100,
        "blocks": [
            {"images": "photodigits.test", "n": 16, "models": "digits-cnn", "scores": "all"},
            {"images": "photodigits.test", "n": 16, "models": "digits-cnn", "attacks": "fgsm", "threats": "linf-8"},
        ],
        **more,
    }


def test_cells_that_raise_or_kill_their_job_are_rows(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    bad = config(
        catalogue={"attacks": {"raising": {"method": "raising.py"}, "killing": {"method": "killing.py"}}},
    )
    bad["blocks"][1]["attacks"] = ["raising", "killing", "fgsm"]
    run.configure(bad)
    (run.folder / "raising.py").write_text(
        ATTACK.format(flag="broken", end='raise ValueError("this attack is broken")')
    )
    (run.folder / "killing.py").write_text(ATTACK.format(flag="broken", end="os.kill(os.getpid(), signal.SIGKILL)"))
    (run.folder / "broken").touch()
    out = run.snakemake(ok=False)

    last = [line for line in out.splitlines() if line.strip()][-6:]
    assert any("raising" in line and "this attack is broken" in line for line in last), last
    assert any("killing" in line and "was killed" in line for line in last), last
    assert (run.folder / "results/report.html").is_file()
    assert not (run.folder / "results/verdict.ok").exists()
    cells = {c["attack"]: c for c in run.table("cells")}
    assert cells["fgsm"]["status"] == "ok"
    assert cells["none"]["status"] == "ok"
    for name in ("raising", "killing"):
        assert cells[name]["status"] == "error"
        assert cells[name]["n_error"] == 16
    samples = windtunnel.load(run.folder / "results")
    failed = samples[samples["status"] == "error"]
    assert len(failed) == 32
    assert not failed["correct"].astype(bool).any()
    robust = [m for m in run.table("metrics") if m["metric"] == "robust_accuracy" and m["against"] == "bare"]
    assert robust
    assert all(m["value"] is None for m in robust), "a robust accuracy with a failed attack must not look like a number"

    stamps = run.parts()
    (run.folder / "broken").unlink()
    run.snakemake()
    assert all(run.parts().get(p) == stamp for p, stamp in stamps.items()), "only failed cells are tried again"
    assert {c["status"] for c in run.table("cells")} == {"ok"}
    assert not (run.folder / "results/failed.txt").exists()


def test_nan_weights_are_recorded_rows(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shipped = ROOT / "resources/models/digits-cnn/weights.safetensors"
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / "own.py").write_text(
        "from windtunnel.backend import torch\n\n\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.head = torch.nn.Linear(48, 10)\n\n"
        "    def features(self, x):\n        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)\n\n"
        "    def forward(self, x):\n        return self.head(self.features(x))\n\n\n"
        "def build(settings):\n    return Net()\n"
    )
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(10, 48)).astype(np.float32)
    weight[3, 5] = np.nan
    save_file({"head.weight": weight, "head.bias": np.zeros(10, np.float32)}, run.folder / "own.safetensors")
    assert load_file(shipped), "the shipped model is readable"
    own = {"architecture": "file", "recipe": {"file": "own.py", "weights": "own.safetensors"}, "classes": 10}
    bad = config(catalogue={"models": {"own-net": own}})
    bad["scores"] = ["msp"]
    for block in bad["blocks"]:
        block["models"] = ["own-net", "digits-cnn"]
        block.pop("scores", None)
    run.configure(bad)
    run.snakemake()
    samples = windtunnel.load(run.folder / "results")
    own_rows = samples[samples["model"] == "own-net"]
    assert (own_rows["status"] == "nan").all()
    assert not own_rows["correct"].astype(bool).any()
    assert own_rows["pred"].isna().all()
    assert (samples[samples["model"] == "digits-cnn"]["status"] == "ok").all()
    flags = {c["model"]: c["check_nan_gradient"] for c in run.table("cells") if c["attack"] == "fgsm"}
    assert flags["own-net"] == "flag"
    assert flags["digits-cnn"] == "ok"


def test_bad_images_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from windtunnel import images
    from windtunnel.images import write_images

    run = Run(tmp_path / "run")
    run.folder.mkdir()
    good = images.build("photodigits", "test").take(np.arange(20))
    write_images(run.folder / "mine.parquet", good, metadata={})
    table = pq.read_table(run.folder / "mine.parquet")
    labels = table.column("label").to_pylist()
    labels[7] = 10
    rows = table.column("image").to_pylist()
    rows[3] = {"bytes": b"not an image", "path": "x.png"}
    broken = table.set_column(0, table.schema.field("image"), pa.array(rows, type=table.schema.field("image").type))
    pq.write_table(broken, run.folder / "unreadable.parquet")
    pq.write_table(
        table.set_column(1, table.schema.field("label"), pa.array(labels, pa.int32())), run.folder / "label.parquet"
    )

    def wanted(file: str, **more: str) -> dict:
        own = {"mine.test": {"file": file, "role": "id", "classes": 10}}
        found = config(catalogue={"images": own}, scores=[], **more)
        found["blocks"] = [{"images": "mine.test", "models": "digits-cnn"}]
        return found

    out = run.configure(wanted("unreadable.parquet")).snakemake(ok=False)
    assert "unreadable.parquet" in out
    assert "row 3" in out
    out = run.configure(wanted("label.parquet")).snakemake(ok=False)
    assert "label 10 is out of range" in out
    assert "row 7" in out
    out = run.configure(wanted("absent.parquet")).snakemake(ok=False)
    assert "catalogue.images.mine.test.file" in out
    run.configure(wanted("unreadable.parquet", on_bad_image="skip")).snakemake("scores")
    assert len(windtunnel.load(run.folder / "results")) == 19
    assert "skipped" in (run.folder / "results/logs/images_build/mine.log").read_text()


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from windtunnel.jobs import Making, make_parts
from windtunnel.store import StoreError

def part(rows):
    return lambda: (pa.table({"x": np.random.default_rng(rows).random(rows)}), {}, None)

small, large = Making("small", ["small"], part(10)), Making("large", ["large"], part(200_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    make_parts(Path("results/x/job.json"), "plan", [small, large])
except StoreError as error:
    print(error)
    sys.exit(3)
"""


def test_a_full_disk_names_the_file_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "cannot write 'results/x/job/" in done.stdout
    assert "finished parts are kept" in done.stdout
    assert len(list(tmp_path.glob("results/x/job/*.parquet"))) == 1
    assert not list(tmp_path.glob("results/x/job/.*.tmp"))
    assert not (tmp_path / "results/x/job.json").exists()


NETWORK = '''"""A network whose training fails while the file '{flag}' exists."""
import os
from dataclasses import dataclass

from windtunnel.backend import torch
from windtunnel.networks.base import Network


@dataclass(frozen=True, kw_only=True)
class Bad(Network):
    """See above."""

    def build(self):
        return torch.nn.Conv2d(3, 3, 1)

    def train(self, module, data, *, seed):
        if os.path.exists("{flag}"):
            raise ArithmeticError("the training went wrong")
'''


def test_a_network_that_cannot_be_trained_costs_its_own_cells_only_and_is_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "fail"
    flag.touch()
    run = Run(tmp_path / "run").configure(
        config(
            catalogue={
                "networks": {"bad": {"method": "bad.py", "dataset": "photodigits"}},
                "defenses": {"hopeless": {"method": "smoother.py", "network": "bad"}},
            },
            blocks=[
                {"images": "photodigits.test", "n": 16, "models": "digits-cnn", "attacks": ["none", "fgsm"],
                 "threats": ["none", "linf-8"], "defenses": ["none", "bits-3", "hopeless"]},
            ],
        )
    )  # fmt: skip
    (run.folder / "bad.py").write_text(NETWORK.format(flag=flag))
    example = ROOT / "docs" / "examples" / "own_methods" / "mine" / "smoother.py"
    (run.folder / "smoother.py").write_text(example.read_text())
    out = run.snakemake(ok=False)
    assert "the training went wrong" in out[-3000:] and (run.folder / "results" / "report.html").exists()
    cells = windtunnel.load(run.folder / "results", "cells").set_index("defense")
    assert set(cells.loc["hopeless", "status"]) == {"error"} and set(cells.loc["bits-3", "status"]) == {"ok"}
    assert "network_provide" in planned_rules(run.snakemake("--dry-run"))
    flag.unlink()
    run.snakemake()
    cells = windtunnel.load(run.folder / "results", "cells")
    assert set(cells["status"]) == {"ok"}
