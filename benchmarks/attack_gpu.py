"""The attack loop at 224 pixels: a ResNet-50 and a ViT-S with random weights, on an accelerator if there is one.

    python benchmarks/attack_gpu.py [--quick] [--networks resnet50 vit_small_patch16_224] [--pixels 224] [--batch 64]
        [--samples 128] [--steps 10] [--rounds 5] [--compile]

For every network and variant (float32, bf16 autocast, channels_last, both): images per second and gradient evaluations
per second of pgd and apgd in the library's loop, the ratio to the model's raw forward + input-backward in the same
arithmetic, and the largest memory allocated on the device. Random weights are as fast as trained ones; they say nothing
about strength: whether bf16 finds as many adversarial images is measured by `attack_loop.py --parts variants`, on a
trained model.

Prints one line per result and writes results/benchmarks/attack_gpu.parquet. Runs on a CPU too: use --quick there.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import numpy as np
from attack_loop import describe_machine, raw, settle, spread, timed, variants_of, write

from windtunnel.attacks.apgd import APGD
from windtunnel.attacks.base import Attack
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import declare_torchvision_operators, device, torch
from windtunnel.engine import run_attack

NETWORKS = ("resnet50", "vit_small_patch16_224")
N_CLASSES = 1000


def build(name: str, pixels: int) -> torch.nn.Module:
    """A timm network with random weights, frozen, on the device."""
    declare_torchvision_operators()
    import timm

    torch.manual_seed(0)
    sized = {"img_size": pixels} if name.startswith("vit") else {}
    network = timm.create_model(name, pretrained=False, num_classes=N_CLASSES, **sized)
    return network.eval().requires_grad_(False).to(device())


def peak_memory() -> float | None:
    """Largest allocation on the device since the last reset, in MiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device().type == "cuda" else None


def measure(network: torch.nn.Module, attack: Attack, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per round: the floor, then the loop."""
    draw = np.random.default_rng(0)
    images = draw.random((options.samples, 3, options.pixels, options.pixels), dtype=np.float32)
    with torch.no_grad():  # labels that the network gives: nothing is fooled before the first step
        parts = [network(torch.from_numpy(images[i : i + options.batch]).to(device())) for i in
                 range(0, options.samples, options.batch)]  # fmt: skip
    labels = torch.cat(parts).argmax(1).cpu().numpy()
    ids = [f"s{i}" for i in range(options.samples)]
    first = (images[: options.batch], labels[: options.batch])
    result = None

    def loop() -> None:
        nonlocal result
        result = run_attack(
            network, attack, images, labels, ids, eps=4 / 255, norm="linf", mode="full", batch_size=options.batch
        )

    loop()
    if result is None:
        raise RuntimeError("the loop returned nothing")
    gradients, forwards = int(result.n_backward.sum()), int((result.n_forward - result.n_backward).sum())
    whole = [round(count / options.batch) for count in (gradients, forwards)]
    share = (gradients + forwards) / (sum(whole) * options.batch)
    rows = []
    for turn in range(options.rounds):
        floor = share * timed(lambda: raw(network, *first, *whole))[0]
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        wall, cpu = timed(loop)
        rows.append({"turn": turn, "gradients": gradients, "forwards": forwards, "raw_wall": floor, "loop_wall": wall,
                     "loop_cpu": cpu, "peak_mib": peak_memory(), "images_per_second": options.samples / wall,
                     "gradients_per_second": gradients / wall})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also a compiled model (slow to start)")
    parser.add_argument("--quick", action="store_true", help="tiny images, one round: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.pixels, options.batch, options.samples, options.steps, options.rounds = 64, 2, 2, 2, 1
    print(f"attack_gpu on {describe_machine()}")
    everything: list[dict[str, Any]] = []
    for name in options.networks:
        network = build(name, options.pixels)
        for variant, made in variants_of(network, compiled=options.compile).items():
            attacks = {"pgd": PGD(steps=options.steps), "apgd": APGD(steps=options.steps)}
            for attack_name, attack in attacks.items():
                rows = measure(made, attack, options)
                everything += [
                    {"network": name, "variant": variant, "attack": attack_name, "pixels": options.pixels,
                     "batch": options.batch, "samples": options.samples, "steps": options.steps} | row for row in rows
                ]  # fmt: skip
                peaks = [r["peak_mib"] for r in rows if r["peak_mib"] is not None]
                print(
                    f"attack_gpu {name} {options.pixels} px {variant:18s} {attack_name}{options.steps} batch "
                    f"{options.batch}: {median(r['images_per_second'] for r in rows):.1f} images/s, "
                    f"{median(r['gradients_per_second'] for r in rows):.0f} gradients/s, raw/loop "
                    f"{spread([r['raw_wall'] / r['loop_wall'] for r in rows])} (wall), peak memory "
                    f"{f'{max(peaks):.0f} MiB' if peaks else 'not measured on a CPU'}",
                    flush=True,
                )
        del network
        settle()
    write("attack_gpu", everything)


if __name__ == "__main__":
    main()
