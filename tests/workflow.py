"""Run the workflow on small configs, each in a folder of its own, as a user would: by the command ``snakemake``."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
TINY = yaml.safe_load((ROOT / "config" / "tiny.yaml").read_text())
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
DATA_TABLES = ("results/tables/cells.parquet", "results/tables/metrics.parquet")


def tiny() -> dict[str, Any]:
    """A fresh copy of config/tiny.yaml."""
    return copy.deepcopy(TINY)


@dataclass
class Run:
    """A folder with a config in which the workflow is run."""

    folder: Path

    def configure(self, config: dict[str, Any]) -> Run:
        """Write the config."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return self

    def command(self, *targets: str, cores: int = 2) -> list[str]:
        """The command line."""
        return [*SNAKEMAKE, "--configfile", "run.yaml", "--cores", str(cores), *targets]

    def snakemake(self, *targets: str, cores: int = 2, ok: bool = True, env: dict[str, str] | None = None) -> str:
        """Run to the end; returns everything it printed. ``ok``: whether success is expected."""
        done = subprocess.run(
            self.command(*targets, cores=cores),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
            check=False,
        )
        logs = "" if (done.returncode == 0) == ok else self.logs()
        assert (done.returncode == 0) == ok, done.stdout[-6000:] + logs
        return done.stdout

    def logs(self) -> str:
        """The ends of all job logs, for a failing test's message."""
        return "".join(f"\n--- {p}\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("results/logs/**/*.log")))

    def parts(self) -> dict[str, tuple[int, int]]:
        """Every part: path -> (modification time in ns, size)."""
        found = {}
        for kind in ("attacked", "observed", "defended"):
            for path in sorted((self.folder / "results" / kind).glob("**/*.parquet")):
                found[str(path.relative_to(self.folder))] = (path.stat().st_mtime_ns, path.stat().st_size)
        return found

    def data(self) -> dict[str, bytes]:
        """The bytes of samples, cells and metrics: what must not depend on cores, order, kills or resumes."""
        paths = [
            *sorted((self.folder / "results/tables/samples").glob("*.parquet")),
            *(self.folder / t for t in DATA_TABLES),
        ]
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in paths}

    def table(self, name: str) -> list[dict[str, Any]]:
        """A table's rows."""
        return pq.read_table(self.folder / "results/tables" / f"{name}.parquet").to_pylist()


def planned_rules(output: str) -> set[str]:
    """Rule names in the job table of a dry run."""
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("job ") and "count" in line]
    if not starts:
        return set()
    rules = set()
    for line in lines[starts[0] + 2 :]:
        if not line.strip() or line.startswith("total"):
            break
        rules.add(line.split()[0])
    return rules
