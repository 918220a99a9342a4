"""Is anything off the shelf stronger or faster than what is here?

    python benchmarks/attack_strength.py [--quick] [--parts pgd batteries missed autoattack] [--samples 1000]
        [--models digits-at digits-at-s1 digits-at-s2] [--eps 8] [--batch 128] [--rounds 5] [--steps 20]

pgd         PGD at equal steps, eps, step size and start (the clean image): here, torchattacks, Foolbox, ART. Time over
            ours (CPU, interleaved, one process; ours also judges the clean and the last image, two forwards more) and
            robust accuracy of the images returned, all judged by one function. Foolbox and ART twice: with the model
            frozen, and as a user would hand it over (parameters that want gradients).
batteries   pma-plus beside autoattack-standard: robust accuracy, the samples that one of them alone breaks, and compute
            in raw gradient evaluations (a forward and a backward are 1, a forward alone is its measured share). Goals:
            at most 0.5 % broken by AutoAttack alone, for at most a third of its compute.
missed      On what pma-plus leaves standing: the audited attacks of torchattacks and those of Foolbox and ART, at the
            length of the battery's own members. Every sample that one of them breaks is listed. Goal: at most 0.5 %.
autoattack  torchattacks' AutoAttack (ten steps) beside the batteries: robust accuracy and time.

The batteries come from the catalogue. Foolbox and ART (adversarial-robustness-toolbox) are needed for their own lines
only and are skipped with a word where they are not installed. Images: photodigits test (500), then fit (988), on which
no shipped model was trained; the default eps of 8/255 leaves a robust accuracy between .3 and .7 on the three shipped
adversarially trained models. Prints one line per result, writes results/benchmarks/attack_strength_<part>.parquet.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
from attack_loop import describe_machine, photodigits_images, raw, shipped, spread, timed, write

from windtunnel import registry
from windtunnel.attacks.base import Attack
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.torchattacks import TorchattacksAttack, private_randomness
from windtunnel.backend import torch
from windtunnel.catalogue import Catalogue
from windtunnel.engine import BOUND_TOLERANCE, frozen, predict, run_attack, run_battery

Data = tuple[np.ndarray, np.ndarray, list[str]]
Foreign = Callable[[torch.Tensor, torch.Tensor], Any]
ALLOWED_MISSED, ALLOWED_COMPUTE = 0.005, 1 / 3
# What a quick run cuts, wherever an attack has it.
SHORT = {"steps": 5, "queries": 20, "targets": 3}


def wanted_library(name: str, remedy: str) -> Any | None:
    """An optional library, or None and a line that says what is left out."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"attack_strength: {name} is not installed, its lines are left out ({remedy})")
        return None


def fooled(model: torch.nn.Module, x: np.ndarray, data: Data, eps: float) -> np.ndarray:
    """[N] bool: wrong in the model's own answer, inside the ball and the box in float64 (to the engine's tolerance)."""
    images, labels, _ = data
    inside = np.abs(x.astype(np.float64) - images).reshape(len(x), -1).max(1) <= eps + BOUND_TOLERANCE
    inside &= (x.reshape(len(x), -1).min(1) >= -BOUND_TOLERANCE) & (x.reshape(len(x), -1).max(1) <= 1 + BOUND_TOLERANCE)
    return inside & (predict(model, np.clip(x, 0, 1))[0].argmax(1) != labels)


def in_batches(attack: Foreign, data: Data, batch: int) -> np.ndarray:
    """[N, C, H, W] float32: a foreign attack on tensors, batch by batch, the process's random state kept."""
    images, labels, _ = data
    answers = []
    with private_randomness(0):
        for start in range(0, len(images), batch):
            x, y = (torch.from_numpy(a[start : start + batch]) for a in (images, labels))
            answer = attack(x, y)
            answers.append(answer.detach().numpy() if isinstance(answer, torch.Tensor) else np.asarray(answer))
    return np.concatenate(answers).astype(np.float32)


@contextmanager
def wanting_gradients(model: torch.nn.Module) -> Any:
    """As a user hands a model over: in eval mode, its parameters wanting gradients."""
    model.requires_grad_(True)
    try:
        yield
    finally:
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None


# ------------------------------------------------------------------------------------------------------------ libraries


def foolbox_attacks(model: torch.nn.Module, names: dict[str, Any], eps: float) -> dict[str, Foreign]:
    """Foolbox attacks by the names of their classes, with settings."""
    library = wanted_library("foolbox", "pip install foolbox")
    if library is None:
        return {}
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def one(name: str, settings: dict[str, Any]) -> Foreign:
        attack = getattr(library.attacks, name)(**settings)
        return lambda x, y: attack(wrapped, x, y, epsilons=eps)[1]

    return {f"foolbox {name}": one(name, settings) for name, settings in names.items()}


def art_attacks(
    model: torch.nn.Module, names: dict[str, Any], eps: float, n_classes: int, batch: int
) -> dict[str, Foreign]:
    """ART attacks by the names of their classes, with settings."""
    evasion = wanted_library("art.attacks.evasion", "pip install adversarial-robustness-toolbox")
    if evasion is None:
        return {}
    estimator = importlib.import_module("art.estimators.classification").PyTorchClassifier(
        model=model, loss=torch.nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=n_classes,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip

    def one(name: str, settings: dict[str, Any]) -> Foreign:
        attack = getattr(evasion, name)(estimator, eps=eps, batch_size=batch, verbose=False, **settings)
        return lambda x, y: attack.generate(x.numpy(), y.numpy())

    return {f"art {name}": one(name, settings) for name, settings in names.items()}


# ------------------------------------------------------------------------------------------------------------------ pgd


def pgd(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    torchattacks = importlib.import_module("torchattacks")
    steps, eps = options.steps, options.eps / 255
    name = options.models[0]
    model = shipped(name)
    data = photodigits_images(min(options.samples, 40 if options.quick else 500))
    images, labels, ids = data
    theirs = {"torchattacks PGD": torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps, random_start=False)}
    theirs |= foolbox_attacks(model, {"LinfPGD": {"rel_stepsize": 0.25, "steps": steps, "random_start": False}}, eps)
    theirs |= art_attacks(
        model, {"ProjectedGradientDescentPyTorch": {"eps_step": eps / 4, "max_iter": steps, "num_random_init": 0}},
        eps, 10, options.batch,
    )  # fmt: skip
    ours = PGD(steps=steps, random_start=False)
    settings: dict[str, Any] = {"eps": eps, "norm": "linf", "batch_size": options.batch}
    found: dict[str, np.ndarray] = {}
    runs: dict[str, Callable[[], None]] = {}

    def keep(label: str, work: Callable[[], np.ndarray]) -> Callable[[], None]:
        def call() -> None:
            found[label] = work()

        return call

    runs["windtunnel pgd, last iterate"] = keep(
        "windtunnel pgd, last iterate",
        lambda: run_attack(model, ours, images, labels, ids, mode="full", **settings).last,
    )
    runs["windtunnel pgd, search"] = keep(
        "windtunnel pgd, search",
        lambda: run_attack(model, ours, images, labels, ids, mode="search", **settings).best,
    )
    for label, attack in theirs.items():
        runs[label] = keep(label, lambda attack=attack: in_batches(attack, data, options.batch))
        if not label.startswith("torchattacks"):
            runs[f"{label}, unfrozen"] = keep(
                f"{label}, unfrozen", lambda attack=attack: unfrozen(model, attack, data, options.batch)
            )
    seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in runs}
    for turn in range(options.rounds + 1):
        for label, work in runs.items():
            spent = timed(work)
            if turn:  # the first round warms up
                seconds[label].append(spent)
    base = seconds["windtunnel pgd, last iterate"]
    for label in runs:
        ratio = [t[1] / b[1] for t, b in zip(seconds[label], base, strict=True)]
        accuracy = float(1 - fooled(model, found[label], data, eps).mean())
        cpu = median(t[1] for t in seconds[label])
        rows.append(row("pgd", name, options, len(images), label, accuracy, cpu, ratio=median(ratio)))
        print(
            f"attack_strength pgd {name} n {len(images)} {label:52s}: time / ours {spread(ratio)} (CPU), "
            f"robust accuracy {accuracy:.4f}",
            flush=True,
        )


def unfrozen(model: torch.nn.Module, attack: Foreign, data: Data, batch: int) -> np.ndarray:
    """The same on a model whose parameters want gradients."""
    with wanting_gradients(model):
        return in_batches(attack, data, batch)


def verdict(held: bool, options: argparse.Namespace) -> str:
    """In words; a quick run has none, its attacks are cut short."""
    return "no verdict, attacks cut short" if options.quick else "reached" if held else "NOT REACHED"


def row(
    part: str, model: str, options: argparse.Namespace, n: int, name: str, robust_accuracy: float | None,
    cpu: float | None, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A row of the table; absent is None."""
    empty = {"ratio": None, "compute": None, "n_forward": None, "n_backward": None, "only_this": None, "samples": None}
    return {
        "part": part, "model": model, "eps_255": float(options.eps), "n": n, "name": name,
        "robust_accuracy": robust_accuracy, "cpu_seconds": cpu, "quick": bool(options.quick),
    } | empty | more  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ batteries


def members(battery: str, quick: bool) -> list[tuple[str, Attack]]:
    """A battery of the catalogue; with ``quick`` everything in it is short."""
    made = []
    for name, settings, cls in catalogue_members(battery):
        cut = {k: v for k, v in SHORT.items() if settings.get(k) is not None} if quick else {}
        made.append((name, cls(**(settings | cut))))
    return made


def catalogue_members(battery: str) -> list[tuple[str, dict[str, Any], type[Attack]]]:
    """(name, complete settings, class) of every member."""
    chosen = Catalogue().attack(battery).members
    return [(m.name, dict(m.settings), registry.load("attack", m.method)) for m in chosen]


def forward_share(model: torch.nn.Module, batch: int) -> float:
    """CPU time of a forward alone over that of a forward and a backward: median of nine interleaved pairs."""
    images, labels, _ = photodigits_images(batch)
    raw(model, images, labels, 1, 1)
    pairs = [
        (timed(lambda: raw(model, images, labels, 0, 4))[1], timed(lambda: raw(model, images, labels, 4, 0))[1])
        for _ in range(9)
    ]
    return median(forward / both for forward, both in pairs)


_BATTERIES: dict[tuple[str, str], Any] = {}


def battery_result(options: argparse.Namespace, name: str, battery: str) -> Any:
    """(result, what broke each sample, CPU seconds) of a battery on a model, run once."""
    if (name, battery) not in _BATTERIES:
        images, labels, ids = photodigits_images(options.samples)
        start = time.process_time()
        result, broken_by = run_battery(
            shipped(name), members(battery, options.quick), images, labels, ids, eps=options.eps / 255, norm="linf",
            seed=options.seed, mode="search", batch_size=options.batch,
        )  # fmt: skip
        _BATTERIES[(name, battery)] = (result, broken_by, time.process_time() - start)
    return _BATTERIES[(name, battery)]


def batteries(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    n, only_aa, computes = 0, 0, []
    for name in options.models:
        share = forward_share(shipped(name), options.batch)
        ids = photodigits_images(options.samples)[2]
        wrong, compute = {}, {}
        for battery in ("pma-plus", "autoattack-standard"):
            result, broken_by, cpu = battery_result(options, name, battery)
            forwards, backwards = int(result.n_forward.sum()), int(result.n_backward.sum())
            compute[battery] = backwards + share * (forwards - backwards)
            wrong[battery] = result.success
            accuracy = float(1 - result.success.mean())
            rows.append(row("batteries", name, options, len(ids), battery, accuracy, cpu, compute=compute[battery],
                            n_forward=forwards, n_backward=backwards))  # fmt: skip
            by = {member: broken_by.count(member) for member, _ in members(battery, options.quick)}
            print(
                f"attack_strength batteries {name} n {len(ids)} {battery:19s}: robust accuracy {accuracy:.4f}, "
                f"{compute[battery] / len(ids):.0f} gradient evaluations per sample ({forwards} forwards, {backwards} "
                f"backwards, a forward alone is {share:.2f}), {cpu:.0f} s CPU; broken by {by}",
                flush=True,
            )
        for one, other in (("pma-plus", "autoattack-standard"), ("autoattack-standard", "pma-plus")):
            alone = np.flatnonzero(wrong[one] & ~wrong[other])
            for r in rows:
                if (r["part"], r["model"], r["name"]) == ("batteries", name, one):
                    r |= {"only_this": len(alone) / len(ids), "samples": [ids[i] for i in alone]}
            print(
                f"attack_strength batteries {name}: broken by {one} alone {len(alone) / len(ids):.4f} "
                f"{[ids[i] for i in alone]}"
            )
        n, only_aa = n + len(ids), only_aa + int((wrong["autoattack-standard"] & ~wrong["pma-plus"]).sum())
        computes.append(compute["pma-plus"] / compute["autoattack-standard"])
        print(f"attack_strength batteries {name}: compute of pma-plus over autoattack-standard {computes[-1]:.3f}")
    held = only_aa / n <= ALLOWED_MISSED and max(computes) <= ALLOWED_COMPUTE
    print(
        f"attack_strength batteries, all models: broken by autoattack-standard alone {only_aa / n:.4f} of {n} (goal at "
        f"most {ALLOWED_MISSED}), compute at most {max(computes):.3f} (goal {ALLOWED_COMPUTE:.3f}): "
        f"{verdict(held, options)}"
    )


# --------------------------------------------------------------------------------------------------------------- missed


def off_the_shelf(model: torch.nn.Module, options: argparse.Namespace) -> dict[str, Attack | Foreign]:
    """Attacks of other libraries, at the length of the battery's members: 100 steps, 5000 queries."""
    steps, queries = (5, 20) if options.quick else (100, 5000)
    eps = options.eps / 255

    def audited(name: str, **arguments: Any) -> TorchattacksAttack:
        return TorchattacksAttack(class_name=name, arguments=arguments)

    found: dict[str, Attack | Foreign] = {
        "torchattacks PGD": audited("PGD", steps=steps),
        "torchattacks APGD ce": audited("APGD", steps=steps, loss="ce"),
        "torchattacks APGD dlr": audited("APGD", steps=steps, loss="dlr"),
        "torchattacks APGDT": audited("APGDT", steps=steps),
        "torchattacks FAB": audited("FAB", steps=steps, multi_targeted=True),
        "torchattacks Square": audited("Square", n_queries=queries, resc_schedule=False),
        "torchattacks UPGD dlr": audited("UPGD", steps=steps, loss="dlr"),
        "torchattacks MIFGSM": audited("MIFGSM", steps=steps, step_size=0.1),
        "torchattacks NIFGSM": audited("NIFGSM", steps=steps, step_size=0.1),
        "torchattacks VMIFGSM": audited("VMIFGSM", steps=max(1, steps // 5), step_size=0.1),
        "torchattacks PIFGSM": audited("PIFGSM", steps=steps),
    }
    found |= foolbox_attacks(
        model,
        {
            "LinfPGD": {"rel_stepsize": 0.1, "steps": steps},
            "LinfAdamPGD": {"rel_stepsize": 0.1, "steps": steps},
            "LinfDeepFoolAttack": {"steps": steps},
            "LinfMomentumIterativeFastGradientMethod": {"rel_stepsize": 0.1, "steps": steps},
        },
        eps,
    )
    loss = {"loss_type": "difference_logits_ratio"}
    short = {"max_iter": steps, "eps_step": eps / 4}
    found |= art_attacks(
        model, {"ProjectedGradientDescentPyTorch": short | {"num_random_init": 1}, "AutoProjectedGradientDescent":
                short | {"nb_random_init": 1, "eps_step": 2 * eps} | loss}, eps, 10, options.batch,
    )  # fmt: skip
    return found


def missed(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    total, exceptions = 0, []
    for name in options.models:
        model = shipped(name)
        images, labels, ids = photodigits_images(options.samples)
        result = battery_result(options, name, "pma-plus")[0]
        left = np.flatnonzero(result.clean_correct & ~result.success)
        data: Data = (images[left], labels[left], [ids[i] for i in left])
        found: set[str] = set()
        for label, attack in off_the_shelf(model, options).items():
            start = time.process_time()
            try:
                if isinstance(attack, Attack):
                    x = run_attack(model, attack, *data, eps=options.eps / 255, norm="linf", mode="full",
                                   seed=options.seed, batch_size=options.batch).last  # fmt: skip
                else:
                    x = in_batches(attack, data, options.batch)
            except Exception as error:  # another library's failure is a result: it is said, and nothing is claimed
                print(f"attack_strength missed {name} {label}: stopped, {type(error).__name__}: {str(error)[:120]}")
                rows.append(row("missed", name, options, len(ids), f"{label} (stopped)", None, None))
                continue
            hit = [data[2][i] for i in np.flatnonzero(fooled(model, x, data, options.eps / 255))]
            found |= set(hit)
            cpu = time.process_time() - start
            rows.append(row("missed", name, options, len(ids), label, (len(left) - len(hit)) / len(ids), cpu,
                            only_this=len(hit) / len(ids), samples=hit))  # fmt: skip
            print(
                f"attack_strength missed {name} {label:45s}: {len(hit)} of the {len(left)} left by pma-plus "
                f"({len(hit) / len(ids):.4f} of {len(ids)}), {cpu:.0f} s CPU {hit}",
                flush=True,
            )
        total += len(ids)
        exceptions += [f"{name}:{i}" for i in sorted(found)]
        share = len(found) / len(ids)
        other = ""
        if (name, "autoattack-standard") in _BATTERIES:
            broken = _BATTERIES[(name, "autoattack-standard")][0].success
            also = sum(bool(broken[i]) for i in range(len(ids)) if ids[i] in found)
            other = f", {also} of these {len(found)} broken by autoattack-standard"
        print(f"attack_strength missed {name}: {share:.4f} by any of them (goal at most {ALLOWED_MISSED}){other}")
        rows.append(row("missed", name, options, len(ids), "any", (len(left) - len(found)) / len(ids), None,
                        only_this=share, samples=sorted(found)))  # fmt: skip
    share = len(exceptions) / total
    print(
        f"attack_strength missed, all models: {share:.4f} of {total}: {verdict(share <= ALLOWED_MISSED, options)}; "
        f"exceptions {exceptions}"
    )


# ----------------------------------------------------------------------------------------------------------- autoattack


def autoattack(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    torchattacks = importlib.import_module("torchattacks")
    for name in options.models:
        model = shipped(name)
        data = photodigits_images(options.samples)
        theirs = torchattacks.AutoAttack(model, eps=options.eps / 255, n_classes=10, seed=options.seed)
        if options.quick:
            for member in theirs._autoattack.attacks:
                if hasattr(member, "n_queries"):
                    member.n_queries = SHORT["queries"]
        start = time.process_time()
        with frozen(model):
            x = in_batches(theirs, data, options.batch)
        cpu = time.process_time() - start
        wrong = fooled(model, x, data, options.eps / 255)
        rows.append(
            row("autoattack", name, options, len(wrong), "torchattacks AutoAttack", float(1 - wrong.mean()), cpu)
        )
        print(
            f"attack_strength autoattack {name} n {len(wrong)} torchattacks AutoAttack (10 steps): robust accuracy "
            f"{1 - wrong.mean():.4f}, {cpu:.0f} s CPU",
            flush=True,
        )
        for battery in ("pma-plus", "autoattack-standard"):
            result, _, seconds = battery_result(options, name, battery)
            alone = np.flatnonzero(wrong & ~result.success)
            rows.append(row("autoattack", name, options, len(wrong), f"torchattacks AutoAttack, not {battery}",
                            float(1 - result.success.mean()), seconds, only_this=len(alone) / len(wrong),
                            samples=[data[2][i] for i in alone]))  # fmt: skip
            print(
                f"attack_strength autoattack {name} n {len(wrong)} {battery}: robust accuracy "
                f"{1 - result.success.mean():.4f}, {seconds:.0f} s CPU; torchattacks alone breaks "
                f"{len(alone) / len(wrong):.4f} {[data[2][i] for i in alone]}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--samples", type=int, default=1000, help="at most 1488")
    parser.add_argument("--models", nargs="+", default=["digits-at", "digits-at-s1", "digits-at-s2"])
    parser.add_argument("--eps", type=float, default=8.0, help="in 255ths")
    parser.add_argument("--steps", type=int, default=20, help="of the part pgd")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default="", help="of the written files, for runs of some models each")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it runs, measures little")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.models, options.steps, options.rounds = 32, options.models[:1], 5, 1
    print(f"attack_strength on {describe_machine()}")
    for part in options.parts:
        rows: list[dict[str, Any]] = []
        PARTS[part](options, rows)
        write(f"attack_strength_{part}{options.suffix}", rows)


PARTS = {"pgd": pgd, "batteries": batteries, "missed": missed, "autoattack": autoattack}

if __name__ == "__main__":
    main()
