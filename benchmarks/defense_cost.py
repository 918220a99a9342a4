"""What each defense costs and does at 32x32: CPU milliseconds per image, PSNR, bits per pixel, cost of each backward
rule.

One process, one thread, the defenses interleaved so that a busy machine slows all alike; the least of the repeats
counts. One line per defense, and results/benchmarks/defense_cost.parquet. Run from the repository root:

    python benchmarks/defense_cost.py [--images 100] [--repeats 5] [--rules]

The column ``ms`` is what ``milliseconds_per_image`` in windtunnel/catalogue/defenses.yaml says.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from windtunnel import registry  # noqa: E402
from windtunnel.images import photodigits  # noqa: E402
from windtunnel.metrics.quality import bits_per_pixel, psnr, ssim  # noqa: E402

STRENGTHS = {
    "jpeg": (25, 50, 75, 90), "jpeg420": (50, 75), "webp": (10, 50, 75), "avif": (10, 50, 75), "jpeg2000": (27, 30, 35),
    "bits": (3, 4), "gaussian": (5, 10), "median": (3, 5), "tv": (5, 10, 20), "wavelet": (None,), "nlmeans": (5, 10),
    "bilateral": (10, 20), "lowpass": (30, 50), "highpass": (5, 10), "blindspot": (3, 5), "robustcrop": (85, 95),
}  # fmt: skip


def build(entry: dict, value: int | None):
    settings = dict(entry["settings"])
    if value is not None:
        settings[entry["argument"]] = round(value * entry["scale"], 9) if "scale" in entry else value
    return registry.load("defense", entry["method"])(**settings)


def milliseconds(call, n: int) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start) / n


def rule_call(rule, images: np.ndarray):
    from windtunnel.backend import torch

    def call() -> None:
        x = torch.tensor(images, requires_grad=True)
        rule(x).sum().backward()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rules", action="store_true", help="time the backward rules too (imports torch)")
    asked = parser.parse_args()

    catalogue = yaml.safe_load((ROOT / "windtunnel" / "catalogue" / "defenses.yaml").read_text())["defenses"]
    pictures = photodigits.build("test").images[: asked.images].transpose(0, 3, 1, 2)
    images = np.ascontiguousarray(pictures).astype(np.float32) / np.float32(255)
    names = [(f, v, f if v is None else f"{f}-{v}") for f in catalogue for v in STRENGTHS[f]]
    defenses = {name: build(catalogue[family], value) for family, value, name in names}

    calls = {(name, "purify"): (lambda d=d: d.purify(images)) for name, d in defenses.items()}
    if asked.rules:
        rules = ((name, rule, f) for name, d in defenses.items() for rule, f in d.backward_rules(1).items())
        calls |= {(name, f"rule {rule}"): rule_call(f, images) for name, rule, f in rules}
    for call in calls.values():  # imports, caches
        call()
    times = {key: [] for key in calls}
    for _ in range(asked.repeats):
        for key, call in calls.items():
            times[key].append(milliseconds(call, len(images)))

    rows = []
    for name, defense in defenses.items():
        result = defense.purify(images)
        rates = [bits_per_pixel(bits, images) for bits in (result.file_bits, result.payload_bits)]
        row = {
            "defense": name,
            "n": len(images),
            "ms": min(times[name, "purify"]),
            "psnr": float(psnr(images, result.images).mean()),
            "ssim": float(ssim(images, result.images).mean()),
            "bpp_file": None if rates[0] is None else float(rates[0].mean()),
            "bpp_payload": None if rates[1] is None else float(rates[1].mean()),
            "rules_ms": {r: min(t) for (d, r), t in times.items() if d == name and r != "purify"} or None,
        }
        rows.append(row)
        rate = "" if rates[0] is None else f"  {row['bpp_file']:5.2f} bpp file {row['bpp_payload']:5.2f} payload"
        costs = "".join(f"  {r[5:]} {t:.2f}" for r, t in (row["rules_ms"] or {}).items())
        print(f"{name:14s} {row['ms']:6.3f} ms  {row['psnr']:6.2f} dB  ssim {row['ssim']:.3f}{rate}{costs}", flush=True)

    target = ROOT / "results" / "benchmarks" / "defense_cost.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(
        [("defense", pa.string()), ("n", pa.int64())]
        + [(name, pa.float64()) for name in ("ms", "psnr", "ssim", "bpp_file", "bpp_payload")]
        + [("rules_ms", pa.map_(pa.string(), pa.float64()))]
    )
    table = [row | {"rules_ms": list(row["rules_ms"].items()) if row["rules_ms"] else None} for row in rows]
    pq.write_table(pa.Table.from_pylist(table, schema=schema), target)
    print(f"written: {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
