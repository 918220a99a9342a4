"""The default run's wall time over its useful compute: `python benchmarks/overhead.py [config] [--cores N]`.

Useful compute is the CPU time that parts took to make (attacks, observations, purification, image sets: imports and
model
loading left out) plus that of the score, summary and presentation jobs from their first piece of work on. Everything
else is
overhead: Snakemake, process starts, imports. The run is made in a temporary folder from nothing; one line is printed
and one row written to results/benchmarks/overhead.parquet. On a machine that others use, read the CPU columns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from windtunnel import store

ROOT = Path(__file__).resolve().parents[1]
WHOLE_JOBS = (
    "score",
    "summarise_group",
    "summarise_metrics",
    "summarise_cells",
    "summarise_costs",
    "present_tables",
    "present_figures",
)


def useful_seconds(folder: Path) -> dict[str, float]:
    """CPU seconds of useful work by rule."""
    found: dict[str, float] = {}
    costs = pq.read_table(folder / "results/tables/costs.parquet").to_pylist()
    for row in costs:
        if row["part"] is not None and row["cpu_seconds"] is not None:
            found[row["rule"]] = found.get(row["rule"], 0.0) + row["cpu_seconds"]
    for path in (folder / "results/costs").glob("**/*.json"):
        rule = path.relative_to(folder / "results/costs").with_suffix("").parts[0]
        if rule in WHOLE_JOBS:
            found[rule] = found.get(rule, 0.0) + json.loads(path.read_text())["cpu_seconds"]
    return found


def main() -> None:
    """Run, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=str(ROOT / "config/config.yaml"))
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    wanted = parser.parse_args()
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--cores",
        str(wanted.cores),
    ]
    with tempfile.TemporaryDirectory() as name:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(
            [*command, "--configfile", str(Path(wanted.config).resolve()), "--quiet", "all"], cwd=name, check=True
        )
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        useful = useful_seconds(Path(name))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    total = sum(useful.values())
    ratio_wall, ratio_cpu = wall * wanted.cores / total, cpu / total
    print(
        f"overhead: wall {wall:.0f} s on {wanted.cores} cores, CPU {cpu:.0f} s, useful {total:.0f} s: "
        f"wall x cores / useful = {ratio_wall:.2f}, CPU / useful = {ratio_cpu:.2f}"
    )
    for rule, seconds in sorted(useful.items(), key=lambda kv: -kv[1]):
        print(f"  {rule:20s} {seconds:8.1f} s useful")
    row = {
        "wall": wall,
        "cores": wanted.cores,
        "cpu": cpu,
        "useful": total,
        "ratio_wall": ratio_wall,
        "ratio_cpu": ratio_cpu,
    }
    store.write_table(Path("results/benchmarks/overhead.parquet"), pa.Table.from_pylist([row]))


if __name__ == "__main__":
    main()
