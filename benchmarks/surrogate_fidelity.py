"""How near a learned surrogate comes to its defense, and what an attack through it breaks.

For each defense: a surrogate is trained on photodigits ``train`` with the default recipe and compared with the real
defense on held-out images (mean absolute difference in 1/255, clean and perturbed); then PGD-20 (margin loss) attacks a
shipped model through every backward rule, judged on the real defense. One line per defense, and
results/benchmarks/surrogate_fidelity/<defense>.parquet. Run from the repository root:

    python benchmarks/surrogate_fidelity.py [--defenses jpeg-50 webp-50 ...] [--images 200] [--eps 4]
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
from windtunnel.attacks.pgd import PGD  # noqa: E402
from windtunnel.defenses.rules import control_rules  # noqa: E402
from windtunnel.engine import run_attack  # noqa: E402
from windtunnel.images import photodigits  # noqa: E402
from windtunnel.models.load import load_model  # noqa: E402
from windtunnel.surrogates.provide import LearnedRule  # noqa: E402
from windtunnel.surrogates.train import train_surrogate  # noqa: E402
from windtunnel.surrogates.unet import UNet  # noqa: E402

DEFENSES = ("jpeg-50", "webp-50", "median-3", "tv-10", "bits-3", "nlmeans-5")
MODEL = "digits-cnn"


def build(name: str):
    entries = yaml.safe_load((ROOT / "windtunnel" / "catalogue" / "defenses.yaml").read_text())["defenses"]
    family, _, value = name.rpartition("-")
    entry = entries[family]
    amount = round(int(value) * entry["scale"], 9) if "scale" in entry else int(value)
    return registry.load("defense", entry["method"])(**entry["settings"], **{entry["argument"]: amount})


def floats(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defenses", nargs="+", default=list(DEFENSES))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--eps", type=float, default=4.0, help="in 1/255")
    asked = parser.parse_args()

    train, test = floats(photodigits.build("train").images), photodigits.build("test")
    images, labels = floats(test.images[: asked.images]), test.labels[: asked.images].astype(np.int64)
    model = load_model(ROOT / "resources" / "models" / MODEL)
    for name in asked.defenses:
        defense = build(name)
        start = time.process_time()
        state, metrics = train_surrogate(defense, 1, train)
        seconds = time.process_time() - start
        network = UNet()
        network.load_state_dict(state)
        rules = {**defense.backward_rules(1), **control_rules(), "unet": LearnedRule(network)}
        rules.pop("surrogate-n", None)  # one round: the same as surrogate-1
        robust = {}
        for rule, call in rules.items():
            result = run_attack(
                model, PGD(steps=20, loss="margin"), images, labels, test.sample_ids[: asked.images],
                eps=asked.eps / 255, norm="linf", defense=defense, rule=call,
            )  # fmt: skip
            robust[rule] = float(1 - result.success.mean())
        row = {"defense": name, "model": MODEL, "n": len(images), "eps_255": asked.eps, "train_seconds": seconds}
        row |= {k: float(v) for k, v in metrics.items() if k.endswith("_255")} | {"robust": list(robust.items())}
        shown = "  ".join(f"{rule} {value:.3f}" for rule, value in robust.items())
        errors = " / ".join(f"{metrics[k + 'error_255']:.2f}" for k in ("", "identity_", "blur_"))
        moved = " / ".join(f"{metrics['perturbed_' + k + 'error_255']:.2f}" for k in ("", "identity_", "blur_"))
        print(
            f"{name:10s} {seconds:5.1f} s  unet/identity/blur {errors}  perturbed {moved}  robust: {shown}", flush=True
        )
        target = ROOT / "results" / "benchmarks" / "surrogate_fidelity" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema(
            [("defense", pa.string()), ("model", pa.string()), ("n", pa.int64())]
            + [(key, pa.float64()) for key in row if key not in ("defense", "model", "n", "robust")]
            + [("robust", pa.map_(pa.string(), pa.float64()))]
        )
        pq.write_table(pa.Table.from_pylist([row], schema=schema), target)


if __name__ == "__main__":
    main()
