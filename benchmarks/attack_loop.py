"""Gradient evaluations per second of the attack loop over the model's raw forward + input-backward.

Both run in one process on the same images and model, interleaved, so that a busy machine disturbs both alike; the
ratio of CPU times is the trustworthy one. The loop's share also pays what raw gradients do not: the clean image and
the last iterate are judged (two forwards per sample). Goal: at least 0.95 at PGD-50.

    python benchmarks/attack_loop.py [--samples 256] [--steps 50] [--batch 64] [--rounds 5] [--model resnet|small]

Prints one line per length and writes results/benchmarks/attack_loop.parquet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from windtunnel.attacks.losses import ce
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import declare_torchvision_operators, device, torch
from windtunnel.engine import run_attack

OUT = Path("results/benchmarks/attack_loop.parquet")


def build(name: str) -> torch.nn.Module:
    """A network of the size the built-in benchmark attacks (timm ResNet, 0.5 M parameters), or a smaller plain one."""
    torch.manual_seed(0)
    if name == "resnet":
        declare_torchvision_operators()
        from timm.models.resnet import BasicBlock, ResNet

        network: torch.nn.Module = ResNet(
            BasicBlock, [1, 1, 1, 1], num_classes=10, channels=(24, 48, 72, 96), stem_width=24, output_stride=8
        )
    else:
        layers: list[torch.nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            layers += [torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
        network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 10))
    return network.eval().requires_grad_(False).to(device())


def raw(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray, steps: int, batch: int) -> None:
    """The floor: as many gradients of the loss with respect to the image, and nothing else."""
    where = device()
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch]).to(where).requires_grad_()
        y = torch.from_numpy(labels[start : start + batch]).to(where)
        for _ in range(steps):
            torch.autograd.grad(ce(model(x), y).sum(), x)
    if where.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=["resnet", "small"], default="resnet")
    options = parser.parse_args()

    model = build(options.model)
    draw = np.random.default_rng(0)
    images = (draw.integers(0, 256, (options.samples, 3, 32, 32)) / 255).astype(np.float32)
    labels = draw.integers(0, 10, options.samples)
    ids = [f"s{i}" for i in range(options.samples)]
    raw(model, images, labels, 2, options.batch)
    rows: list[dict[str, object]] = []
    for steps in options.steps:
        gradients = options.samples * steps

        def loop(steps: int = steps, gradients: int = gradients) -> None:
            result = run_attack(
                model, PGD(steps=steps), images, labels, ids, eps=8 / 255, norm="linf", mode="full",
                batch_size=options.batch,
            )  # fmt: skip
            if int(result.n_backward.sum()) != gradients:
                raise RuntimeError("the loop did not take the gradients it is timed for")

        for turn in range(options.rounds):
            floor = timed(lambda steps=steps: raw(model, images, labels, steps, options.batch))
            ours = timed(loop)
            rows.append(
                {"model": options.model, "steps": steps, "batch": options.batch, "turn": turn, "gradients": gradients,
                 "device": str(device()), "raw_wall": floor[0], "raw_cpu": floor[1], "loop_wall": ours[0],
                 "loop_cpu": ours[1]}
            )  # fmt: skip
        mine = [r for r in rows if r["steps"] == steps]
        ratio = {k: median(float(r[f"raw_{k}"]) / float(r[f"loop_{k}"]) for r in mine) for k in ("cpu", "wall")}
        speed = median(gradients / float(r["loop_wall"]) for r in mine)
        print(
            f"attack_loop {options.model} pgd{steps} batch {options.batch} on {device()}: loop/raw gradients per "
            f"second {ratio['cpu']:.3f} (CPU) {ratio['wall']:.3f} (wall), {speed:.0f} gradients/s, goal 0.95"
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), OUT)


if __name__ == "__main__":
    main()
