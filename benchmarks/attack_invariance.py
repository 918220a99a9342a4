"""Do batch size, order and shard count change what an attack decides?

    python benchmarks/attack_invariance.py [--quick] [--samples 1000] [--attacks pgd apgd square pma]
        [--model digits-at] [--eps 8] [--batches 17 64 250 500] [--shards 2 3 7]

The reference is one run at batch 128. Rows do not know of each other here, so what is left is float rounding in the
model's own forward pass, whose kernels depend on the shape of the batch. Claimed: at most 0.2 % of the decisions
change, and the same run again is the same to the byte. For every case the share of changed decisions, of changed
images, and of images that differ by more than one level of 255 is printed; results/benchmarks/attack_invariance.parquet
holds the same, with the samples whose decision changed. Exits with 1 if a claim does not hold (not with --quick).

Images: photodigits test (500) and fit (988), on which no shipped model was trained.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from attack_loop import describe_machine, photodigits_images, shipped, write

from windtunnel import registry
from windtunnel.attacks.base import Attack
from windtunnel.engine import run_attack

REFERENCE_BATCH = 128
ALLOWED = 0.002
SETTINGS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 50},
    "apgd": {"steps": 50},
    "square": {"queries": 500},
    "pma": {"steps": 50},
}
QUICK: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 10},
    "apgd": {"steps": 10},
    "square": {"queries": 30},
    "pma": {"steps": 10},
}


def cases(n: int, batches: list[int], shards: list[int]) -> list[tuple[str, int, list[np.ndarray], bool]]:
    """(name, batch size, the parts it is run in, whether the same bytes are promised)."""
    everything = np.arange(n)
    order = np.random.default_rng(0).permutation(n)
    found = [("again", REFERENCE_BATCH, [everything], True)]
    found += [(f"batch {batch}", batch, [everything], False) for batch in batches]
    found += [
        ("other order", REFERENCE_BATCH, [order], False),
        ("reversed", REFERENCE_BATCH, [everything[::-1]], False),
    ]
    found += [(f"{count} shards", REFERENCE_BATCH, np.array_split(everything, count), False) for count in shards]
    return found


def run(
    model: Any, attack: Attack, data: tuple[np.ndarray, np.ndarray, list[str]], eps: float, batch: int,
    parts: list[np.ndarray], mode: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(success [N], best [N, C, H, W]) in the samples' own order, whatever order and parts they were run in."""
    images, labels, ids = data
    success, best = np.zeros(len(images), dtype=bool), np.empty_like(images)
    for part in parts:
        result = run_attack(
            model, attack, images[part], labels[part], [ids[i] for i in part], eps=eps, norm="linf", mode=mode,
            batch_size=batch,
        )  # fmt: skip
        success[part], best[part] = result.success, result.best
    return success, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--attacks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--model", default="digits-at")
    parser.add_argument("--eps", type=float, default=8.0, help="in 255ths")
    parser.add_argument("--batches", type=int, nargs="+", default=[17, 64, 250, 500])
    parser.add_argument("--shards", type=int, nargs="+", default=[2, 3, 7])
    parser.add_argument("--mode", choices=["search", "full"], default="search")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it runs, measures little")
    options = parser.parse_args()
    settings = SETTINGS
    if options.quick:
        options.samples, options.batches, options.shards, settings = 60, [17, 64], [3], QUICK

    print(f"attack_invariance on {describe_machine()}")
    model, data = shipped(options.model), photodigits_images(options.samples)
    n, rows, broken = len(data[0]), [], []
    for name in options.attacks:
        attack = registry.load("attack", name)(**settings[name])
        reference = run(model, attack, data, options.eps / 255, REFERENCE_BATCH, [np.arange(n)], options.mode)
        for case, batch, parts, same_bytes in cases(n, options.batches, options.shards):
            success, best = run(model, attack, data, options.eps / 255, batch, parts, options.mode)
            changed = np.flatnonzero(success != reference[0])
            difference = np.abs(best - reference[1]).reshape(n, -1).max(1)
            row = {
                "attack": name, "settings": str(settings[name]), "model": options.model, "eps_255": options.eps,
                "mode": options.mode, "case": case, "batch": batch, "n": n,
                "robust_accuracy": float(1 - success.mean()), "changed_decisions": len(changed) / n,
                "changed_images": float((difference > 0).mean()),
                "images_off_by_a_level": float((difference > 1 / 255).mean()),
                "samples": [data[2][i] for i in changed],
            }  # fmt: skip
            rows.append(row)
            holds = row["changed_decisions"] <= ALLOWED and not (same_bytes and row["changed_images"])
            if not holds:
                broken.append(f"{name}, {case}")
            print(
                f"attack_invariance {name:6s} {case:12s} n {n}: changed decisions {row['changed_decisions']:.4f} "
                f"(allowed {ALLOWED}), images {row['changed_images']:.4f}, by more than a level "
                f"{row['images_off_by_a_level']:.4f}; robust accuracy {row['robust_accuracy']:.4f}"
                f"{'' if holds else '  DOES NOT HOLD'}",
                flush=True,
            )
    write("attack_invariance", rows)
    if broken and not options.quick:
        sys.exit(f"attack_invariance: does not hold for {'; '.join(broken)}")


if __name__ == "__main__":
    main()
