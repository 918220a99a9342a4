"""What the attack loop costs over the model's raw gradients, for every stepper; growth; cheaper arithmetic.

    python benchmarks/attack_loop.py [--quick] [--parts steppers growth variants] [--attacks pgd apgd ...]
        [--samples 256] [--steps 20 50] [--batch 64] [--rounds 5] [--model resnet|small] [--compile]

steppers  Gradient evaluations per second of each attack over the model's raw forward + input-backward. The floor takes
          exactly the passes that the attack is recorded to have taken (backward ones with their forward, and forward
          ones alone), on the same images, and nothing else. Goals: 0.95 for pgd, 0.90 for apgd.
growth    CPU time per sample of pgd over steps (a line) and over batch sizes (a constant).
variants  float32, bf16 autocast, channels_last, both, and with --compile a compiled model: time, and robust accuracy
          of the images re-scored in float32, on a shipped adversarially trained model. A variant is worth offering only
          where both columns say so.

Everything is interleaved in one process, so that a busy machine disturbs all alike; the ratio of CPU times is the
trustworthy one, given as median [least-most] over the rounds. Prints one line per result, writes
results/benchmarks/attack_loop.parquet and, for the other parts, attack_loop_{growth,variants}.parquet.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from windtunnel import registry  # noqa: E402
from windtunnel.attacks.apgd import APGD  # noqa: E402
from windtunnel.attacks.base import Attack  # noqa: E402
from windtunnel.attacks.losses import ce  # noqa: E402
from windtunnel.attacks.pgd import PGD  # noqa: E402
from windtunnel.backend import declare_torchvision_operators, device, torch  # noqa: E402
from windtunnel.engine import predict, run_attack  # noqa: E402

OUT = Path("results/benchmarks")
GOALS = {"pgd": 0.95, "apgd": 0.90}
# The settings that say how long an attack is, and how they are cut so that all attacks are of about one length. What is
# not named keeps its default.
LENGTHS = {"steps": 1.0, "queries": 1.0, "draws": 1.0, "candidates": 3, "searches": 1, "samples": 4, "probes": 10}


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


def settle() -> None:
    """Wait for the accelerator, where there is one."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def raw(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray, gradients: int, forwards: int) -> None:
    """The floor: so many gradients of the loss with respect to the batch, so many forwards, and nothing else."""
    x = torch.from_numpy(images).to(device()).requires_grad_()
    y = torch.from_numpy(labels).to(device())
    for _ in range(gradients):
        torch.autograd.grad(ce(model(x), y).sum(), x)
    with torch.no_grad():
        for _ in range(forwards):
            model(x)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    settle()
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: Sequence[float]) -> str:
    """median [least-most]."""
    return f"{median(values):.3f} [{min(values):.3f}-{max(values):.3f}]"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    where = torch.cuda.get_device_name() if device().type == "cuda" else "cpu"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"machine": name, "device": where, "cores": os.cpu_count(), "load": load, "torch": torch.__version__}


def describe_machine() -> str:
    m = machine()
    load = "unknown" if m["load"] is None else f"{m['load']:.1f}"
    return f"{m['machine']}, {m['cores']} cores, one thread, device {m['device']}, load {load}, torch {m['torch']}"


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """One Parquet file under results/benchmarks, the machine in every row."""
    OUT.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | machine() for row in rows]), OUT / f"{name}.parquet")


def noise_images(n: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random images and labels, and their ids: enough for timing."""
    draw = np.random.default_rng(0)
    images = (draw.integers(0, 256, (n, 3, 32, 32)) / 255).astype(np.float32)
    return images, draw.integers(0, 10, n), [f"s{i}" for i in range(n)]


def photodigits_images(n: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labelled photodigits that no shipped model was trained on: the test split (500), then the fit split (988).

    The fit split shows other writers' digits than training, over other parts of the photographs; each of its digits
    appears four times.
    """
    from windtunnel.images import photodigits

    sets = [photodigits.build(split) for split in ("test", "fit")]
    pixels = np.concatenate([s.images for s in sets]).transpose(0, 3, 1, 2)[:n]
    images = np.ascontiguousarray(pixels).astype(np.float32) / np.float32(255)
    labels = np.concatenate([s.labels for s in sets])[:n].astype(np.int64)
    return images, labels, [i for s in sets for i in s.sample_ids][:n]


def shipped(name: str) -> torch.nn.Module:
    """A shipped model, frozen, on the benchmark's device."""
    from windtunnel.models.load import load_model

    return load_model(ROOT / "resources" / "models" / name).to(device())


# ------------------------------------------------------------------------------------------------------------ steppers


def stepper(name: str, length: int) -> Attack | None:
    """An attack of about so many steps, or None for one without a loop of its own or without a model to attack."""
    card = registry.card("attack", name)
    if card.required or card.constants.get("needs_defense"):
        return None
    cut = {k: max(1, int(length * v)) if isinstance(v, float) else v for k, v in LENGTHS.items() if k in card.settings}
    return registry.load("attack", name)(**cut)


def attacked(name: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model, or an ensemble of three of it for an attack that asks its members one by one."""
    if not registry.card("attack", name).constants.get("per_member"):
        return model
    from windtunnel.models.ensemble import Ensemble

    return Ensemble([model, model, model])


def steppers(options: argparse.Namespace) -> None:
    model = build(options.model)
    images, labels, ids = noise_images(options.samples)
    names = options.attacks or registry.names("attack")
    cases: list[tuple[str, int, Attack]] = []
    for name in names:
        # Lengths matter only where the loop's fixed share is claimed: the named ones run at all of them.
        for steps in options.steps if name in GOALS else options.steps[:1]:
            attack = stepper(name, steps)
            if attack is None:
                print(f"attack_loop steppers {name}: left out, it attacks no model in a loop of this library")
                continue
            cases.append((name, steps, attack))
    raw(model, images[: options.batch], labels[: options.batch], 2, 2)
    rows: list[dict[str, Any]] = []
    for name, steps, attack in cases:
        victim = attacked(name, model)
        norm = "linf" if "linf" in attack.norms else attack.norms[0]
        eps = 8 / 255 if norm == "linf" else 0.5
        result = None

        def loop(attack: Attack = attack, victim: torch.nn.Module = victim, eps: float = eps, norm: str = norm) -> None:
            nonlocal result
            result = run_attack(
                victim, attack, images, labels, ids, eps=eps, norm=norm, mode="full", batch_size=options.batch
            )

        loop()  # counted here, timed below
        if result is None:
            raise RuntimeError("the loop returned nothing")
        gradients, forwards = int(result.n_backward.sum()), int((result.n_forward - result.n_backward).sum())
        # The floor in whole batches; what rounding leaves over is put right in the ratio.
        whole = [round(count / options.batch) for count in (gradients, forwards)]
        share = (gradients + forwards) / (sum(whole) * options.batch)

        def floor(whole: list[int] = whole) -> None:
            raw(model, images[: options.batch], labels[: options.batch], *whole)

        mine: list[dict[str, Any]] = []
        for turn in range(options.rounds):
            base, ours = [share * t for t in timed(floor)], timed(loop)
            mine.append(
                {"attack": name, "steps": steps, "batch": options.batch, "samples": options.samples, "turn": turn,
                 "network": options.model, "gradients": gradients, "forwards": forwards,
                 "raw_wall": base[0], "raw_cpu": base[1], "loop_wall": ours[0], "loop_cpu": ours[1]}
            )  # fmt: skip
        rows += mine
        cpu = [r["raw_cpu"] / r["loop_cpu"] for r in mine]
        wall = [r["raw_wall"] / r["loop_wall"] for r in mine]
        speed = median((gradients + forwards) / r["loop_wall"] for r in mine)
        goal = f", goal {GOALS[name]:.2f}" if name in GOALS else ""
        print(
            f"attack_loop steppers {name} {steps} steps, {gradients} gradients and {forwards} forwards on "
            f"{options.samples}: raw/loop {spread(cpu)} (CPU) {spread(wall)} (wall), {speed:.0f} passes/s{goal}",
            flush=True,
        )
    write("attack_loop", rows)


# -------------------------------------------------------------------------------------------------------------- growth


def growth(options: argparse.Namespace) -> None:
    model = build(options.model)
    lengths = (5, 10, 20) if options.quick else (10, 20, 40, 80)
    batches = (8, 16, 32) if options.quick else (16, 64, 128, 256)
    n = max(batches) if options.quick else max(options.samples, *batches)
    images, labels, ids = noise_images(n)
    # One batch size for the lengths, one length for the batch sizes.
    cases = [(steps, batches[1]) for steps in lengths] + [(lengths[1], batch) for batch in batches]
    cases = list(dict.fromkeys(cases))
    rows: list[dict[str, Any]] = []
    for turn in range(options.rounds + 1):
        for steps, batch in cases:
            wall, cpu = timed(
                lambda steps=steps, batch=batch: run_attack(
                    model,
                    PGD(steps=steps),
                    images,
                    labels,
                    ids,
                    eps=8 / 255,
                    norm="linf",
                    mode="full",
                    batch_size=batch,
                )  # fmt: skip
            )
            if turn:  # the first round warms up
                rows.append({"steps": steps, "batch": batch, "turn": turn, "samples": n, "wall": wall, "cpu": cpu})

    def milliseconds(steps: int, batch: int) -> float:
        return 1000 * median(r["cpu"] for r in rows if (r["steps"], r["batch"]) == (steps, batch)) / n

    for steps, batch in cases:
        per = milliseconds(steps, batch)
        print(f"attack_loop growth pgd{steps} batch {batch}: {per:.2f} ms CPU per sample, {per / steps:.3f} per step")
    times = np.array([milliseconds(steps, batches[1]) for steps in lengths])
    slope, start = np.polyfit(lengths, times, 1)
    off = float(np.abs(times - (slope * np.array(lengths) + start)).max() / times.max())
    each = [milliseconds(lengths[1], batch) for batch in batches]
    print(
        f"attack_loop growth over steps: {start:.2f} + {slope:.3f} x steps ms per sample, farthest from the line "
        f"{off:.1%} of the longest; over batch sizes {batches}: most / least {max(each) / min(each):.2f}"
    )
    write("attack_loop_growth", rows)


# ------------------------------------------------------------------------------------------------------------ variants


class Variant(torch.nn.Module):
    """The same network in another arithmetic or memory order; its logits are float32."""

    def __init__(self, model: torch.nn.Module, *, half: bool = False, channels_last: bool = False) -> None:
        super().__init__()
        self.model, self.half, self.channels_last = model, half, channels_last
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.model(x).float()


def variants_of(model: torch.nn.Module, *, compiled: bool = False) -> dict[str, torch.nn.Module]:
    """float32 first. A channels_last variant has its own copy of the weights."""
    from copy import deepcopy

    last = deepcopy(model).to(memory_format=torch.channels_last)
    found = {
        "float32": Variant(model),
        "bf16": Variant(model, half=True),
        "channels_last": Variant(last, channels_last=True),
        "channels_last bf16": Variant(last, half=True, channels_last=True),
    }
    if compiled:
        found["compiled"] = torch.compile(Variant(deepcopy(model)))  # type: ignore[assignment]
    return found


def variants(options: argparse.Namespace) -> None:
    model = shipped("digits-at")
    n = min(options.samples, 64) if options.quick else max(options.samples, 500)
    images, labels, ids = photodigits_images(n)
    steps = 10 if options.quick else 50
    attacks = {"pgd": PGD(steps=steps), "apgd": APGD(steps=steps, loss="dlr")}
    networks = variants_of(model, compiled=options.compile)
    rows: list[dict[str, Any]] = []
    for attack_name, attack in attacks.items():
        for turn in range(-1, options.rounds):
            for name, network in networks.items():
                result = None

                def work(network: torch.nn.Module = network, attack: Attack = attack) -> None:
                    nonlocal result
                    result = run_attack(
                        network, attack, images, labels, ids, eps=8 / 255, norm="linf", mode="full",
                        batch_size=options.batch,
                    )  # fmt: skip

                wall, cpu = timed(work)
                if turn < 0 or result is None:  # the first round warms up
                    continue
                # Its own word counts for nothing: the images are judged by the float32 network.
                wrong = predict(model, result.best)[0].argmax(1) != labels
                wrong |= predict(model, images)[0].argmax(1) != labels
                rows.append(
                    {"attack": attack_name, "steps": steps, "variant": name, "turn": turn, "n": n, "wall": wall,
                     "cpu": cpu, "robust_accuracy": float(1 - wrong.mean()),
                     "robust_accuracy_own_word": float(1 - result.success.mean())}
                )  # fmt: skip
        base = [r for r in rows if (r["attack"], r["variant"]) == (attack_name, "float32")]
        for name in networks:
            mine = [r for r in rows if (r["attack"], r["variant"]) == (attack_name, name)]
            cpu = [r["cpu"] / b["cpu"] for r, b in zip(mine, base, strict=True)]
            wall = [r["wall"] / b["wall"] for r, b in zip(mine, base, strict=True)]
            print(
                f"attack_loop variants {attack_name}{steps} {name:18s} | time / float32 {spread(cpu)} (CPU) "
                f"{spread(wall)} (wall) | robust accuracy {mine[0]['robust_accuracy']:.4f}, in its own words "
                f"{mine[0]['robust_accuracy_own_word']:.4f} (n = {n})",
                flush=True,
            )
    write("attack_loop_variants", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--attacks", nargs="+", help="only these, by registered name")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=["resnet", "small"], default="resnet")
    parser.add_argument("--compile", action="store_true", help="also a compiled model (slow to start)")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it runs, measures little")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.steps, options.batch, options.rounds, options.model = 32, [4, 8], 32, 1, "small"
    print(f"attack_loop on {describe_machine()}")
    for part in options.parts:
        PARTS[part](options)


PARTS = {"steppers": steppers, "growth": growth, "variants": variants}

if __name__ == "__main__":
    main()
