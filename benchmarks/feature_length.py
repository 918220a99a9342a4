"""Mean length of the penultimate features by image set, from a finished run: start it where `results` lies.

It explains why Mahalanobis distance in raw features can rank far images the wrong way round (docs/photodigits.md).
Prints one line per model family and split, training seed 0; writes results/benchmarks/feature_length.parquet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from windtunnel import store
from windtunnel.stages.score import matrix


def main() -> None:
    """Read every clean, undefended, scored cell of seed 0; print; write."""
    rows = []
    for manifest in sorted(Path("results/observed").glob("*/clean.json")):
        for part in store.read_manifest(manifest).values():
            if part.status != "ok" or part.key.startswith("fit:"):
                continue
            table = store.part_table(manifest, part, ["model", "model_seed", "split", "shift", "defense", "features"])
            first = table.slice(0, 1).to_pylist()[0]
            if (
                first["features"] is None
                or first["model_seed"] != 0
                or (first["shift"], first["defense"]) != ("none", "none")
            ):
                continue
            length = np.linalg.norm(matrix(table.column("features")).astype(np.float64), axis=1)
            rows.append(
                {
                    "model": first["model"],
                    "split": first["split"],
                    "mean_length": float(length.mean()),
                    "n": len(length),
                }
            )
    rows.sort(key=lambda r: (r["model"], -r["mean_length"]))
    for row in rows:
        print(f"{row['model']:16s} {row['split']:12s} mean feature length {row['mean_length']:6.2f}  (n = {row['n']})")
    store.write_table(Path("results/benchmarks/feature_length.parquet"), pa.Table.from_pylist(rows))


if __name__ == "__main__":
    main()
