"""What became of every class of torchattacks 3.5.1: audited, wrapped with a fix, or refused and why.

``VERDICTS`` is read by ``attacks.torchattacks`` (what runs, and how its arguments are named) and by ``page`` (the
table in docs/attacks/torchattacks.md). Every verdict comes from reading the installed source and is backed by a test in
tests/test_attacks_torchattacks.py; a class of the library without a verdict fails there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

VERSION = "3.5.1"
MOST_TARGETS = 9  # of the targeted attacks: AutoAttack's number, where the library's is the number of classes - 1
FREEZE = (
    "divides the gradient by its mean absolute value: on saturated logits 0 / 0, after which the image never moves, "
    "without a warning"
)
FLAGGED = "one more gradient at the clean image shows it as `zero_gradient`"
NO_BALL = "it has no eps: what it returns lies outside any ball of a threat model"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One class. ``norms`` is empty for a refused one.

    ``why``: what was found. ``fix``: what the adapter does about it (wrapped only). ``instead``: what to use here
    (refused only). ``budget``, ``length``, ``step``: its names for eps, for the number of steps (must be given) and for
    the step size, null where it has none. ``step_share``: the step size in parts of eps, if none is given.
    ``channels``: the only number of channels it takes. ``fewest_classes``: it fails below. ``uses_gradient``: whether
    its direction comes from the model's gradient. ``forbidden``: values of arguments that are refused, with the reason.
    ``ignored``: arguments that its code never reads.
    """

    verdict: Literal["audited", "wrapped", "refused"]
    why: str
    norms: tuple[str, ...] = ()
    fix: str = ""
    instead: str = ""
    budget: str = "eps"
    length: str | None = "steps"
    step: str | None = "alpha"
    step_share: float = 0.25
    channels: int | None = None
    fewest_classes: int = 2
    uses_gradient: bool = True
    forbidden: dict[str, dict[object, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def _audited(why: str, norms: tuple[str, ...] = ("linf",), **options: object) -> Verdict:
    return Verdict(verdict="audited", why=why, norms=norms, **options)  # type: ignore[arg-type]


def _wrapped(why: str, fix: str, norms: tuple[str, ...] = ("linf",), **options: object) -> Verdict:
    return Verdict(verdict="wrapped", why=why, fix=fix, norms=norms, **options)  # type: ignore[arg-type]


def _refused(why: str, instead: str) -> Verdict:
    return Verdict(verdict="refused", why=why, instead=instead)


VERDICTS: dict[str, Verdict] = {
    "FGSM": _audited("equal to `fgsm` here to float rounding", length=None, step=None),
    "BIM": _audited("PGD without a random start; the name is kept from the paper"),
    "RFGSM": _audited("PGD from a random corner of a ball of size alpha"),
    "PGD": _audited("equal to `pgd` here to float rounding; returns the last iterate, not the best"),
    "APGD": _audited(
        "follows the public code line by line; 10 steps by default where the paper has 100; returns failed images "
        "clean; restarts torch's random stream at every call",
        ("linf", "l2"),
        step=None,
    ),
    "Square": _audited(
        "black-box; its schedule is stretched to `n_queries` (`resc_schedule`), which AutoAttack's is not",
        ("linf", "l2"),
        length="n_queries",
        step=None,
        uses_gradient=False,
    ),
    "PGDL2": _wrapped(
        "equal to `pgd` here under l2; stops with an error where a model's gradient is not contiguous (channels_last)",
        "it is handed contiguous gradients",
        ("l2",),
    ),
    "FFGSM": _wrapped(
        "one step from a random start; its 10/255 fits one budget only, and eps / 4 would leave it inside the ball",
        "the step is 1.25 eps if none is given, the paper's",
        length=None,
        step_share=1.25,
    ),
    "APGDT": _wrapped(
        "one run per wrong class, 999 of them on ImageNet; its loss needs four classes",
        "at most nine targets, AutoAttack's number; fewer than four classes are refused",
        ("linf", "l2"),
        step=None,
        fewest_classes=4,
    ),
    "FAB": _wrapped(
        "10 steps by default where AutoAttack has 100; with `multi_targeted` one run per wrong class; it calls "
        "backward, which fills the gradients of parameters",
        "at most nine targets; it sees a module without the model's parameters",
        ("linf", "l2"),
        step=None,
    ),
    "MIFGSM": _wrapped(FREEZE, FLAGGED),
    "NIFGSM": _wrapped(FREEZE, FLAGGED),
    "VMIFGSM": _wrapped(FREEZE, FLAGGED),
    "VNIFGSM": _wrapped(FREEZE, FLAGGED),
    "SINIFGSM": _wrapped(FREEZE + "; the scaled copies often have a gradient still", FLAGGED),
    "DIFGSM": _wrapped(FREEZE + "; one random size and place for the whole batch", FLAGGED),
    "TIFGSM": _wrapped(
        FREEZE + "; one random size and place for the whole batch; its kernel of 15 pixels is meant for 299, and works "
        "on three channels only",
        FLAGGED + "; another number of channels is refused; give `len_kernel` for small images",
        channels=3,
    ),
    "UPGD": _wrapped(
        FREEZE + "; its margin loss masks logits by multiplying with 0, so that negative ones become the largest",
        FLAGGED + "; `loss: margin` is refused, ce and dlr run",
        forbidden={
            "loss": {"margin": "it masks logits by multiplying with 0 and freezes where they are negative; use dlr"}
        },
    ),
    "PIFGSM": _wrapped(
        "other names for eps and steps; never reads its arguments momentum and prob; three channels only; stands still "
        "on saturated logits",
        "eps and `steps` go by their usual names; momentum and prob are refused, and another number of channels; "
        + FLAGGED,
        budget="max_epsilon",
        length="num_iter_set",
        step=None,
        channels=3,
        ignored=("momentum", "prob"),
    ),
    "SPSA": _wrapped(
        "one iteration at eps 0.3 by default; black-box by finite differences, margin loss; all images of a batch "
        "share the drawn directions",
        "the budget is the threat's, `nb_iter` must be given, `lr` is eps / 4 if it is not",
        length="nb_iter",
        step="lr",
        uses_gradient=False,
    ),
    "VANILA": _refused("it returns the clean image", "`clean_correct`, which every result carries"),
    "GN": _refused("Gaussian noise of a standard deviation, in no ball", "`sign_noise`, which fills the ball"),
    "TPGD": _refused(
        "the inner step of TRADES training: it ignores the label and starts at the minimum of its own loss, so that on "
        "a linear model it takes the wrong direction for about half of the images",
        "`pgd`",
    ),
    "EOTPGD": _refused(
        "on a pipeline that draws nothing it is PGD at `eot_iter` times the price, to the bit; one that draws is not "
        "judged by one draw here",
        "`pgd` with the engine's own draws",
    ),
    "Jitter": _refused(
        "it divides the logits by the largest, so that adding a number to all of them (the same classifier) changes "
        "its strength, and its noise drowns what is left",
        "`pgd` or `apgd` with the loss dlr",
    ),
    "PGDRS": _refused(
        "it attacks the model under noise that it draws itself (standard deviation 0.5, images outside [0, 1]), not "
        "the judged pipeline",
        "`pgd` on the random defense, with the engine's draws",
    ),
    "PGDRSL2": _refused(
        "it attacks the model under noise that it draws itself (standard deviation 0.5, images outside [0, 1]), not "
        "the judged pipeline",
        "`pgd` under l2 on the random defense, with the engine's draws",
    ),
    "PIFGSMPP": _refused(
        "the axes of its Gaussian kernel are swapped: colours are weighted differently and gradients are smeared "
        "along rows",
        "`PIFGSM`, or `TIFGSM`",
    ),
    "CW": _refused(
        "it masks logits by multiplying with 0, so that an image whose logits are negative never moves; its early stop "
        "couples the batch; pixels at 0 or 1 cannot move; it has no eps",
        "`cw`",
    ),
    "DeepFool": _refused(
        "it clips at every step, which eats its overshoot: where pixels are at 0 or 1 it comes ever nearer to the "
        "boundary and never crosses it; it has no eps",
        "`deepfool`",
    ),
    "EADL1": _refused(
        NO_BALL + "; it multiplies logits with 0, so that a shift of all of them changes its answer; its early stop "
        "couples the batch",
        "a threat under linf or l2",
    ),
    "EADEN": _refused(
        NO_BALL + "; it multiplies logits with 0, so that a shift of all of them changes its answer; its early stop "
        "couples the batch",
        "a threat under linf or l2",
    ),
    "JSMA": _refused(
        NO_BALL + "; its default target (label + 1) % 10 holds for ten classes only; its map is the square of the "
        "number of pixels",
        "a threat under linf or l2",
    ),
    "SparseFool": _refused(NO_BALL + "; built on the library's DeepFool", "a threat under linf or l2"),
    "OnePixel": _refused(NO_BALL + "; it sets single pixels to any value", "a threat under linf or l2"),
    "Pixle": _refused(NO_BALL + "; it moves pixels about", "a threat under linf or l2"),
    "AutoAttack": _refused(
        "it is not AutoAttack: its APGD, APGD-T and FAB run 10 iterations instead of 100, and its Square has another "
        "schedule",
        "the battery `autoattack-standard`",
    ),
    "MultiAttack": _refused("it is a container; list its attacks one by one", "a battery"),
    "LGV": _refused(
        "it trains copies of the model on a data loader of its own: a way to make sources, not an attack on this model",
        "transfer from an ensemble of provided models",
    ),
}


def page() -> str:
    """docs/attacks/torchattacks.md, in full; a test holds the file to it."""
    parts = [_HEAD]
    for verdict, heading in _HEADINGS.items():
        rows = [(name, v) for name, v in VERDICTS.items() if v.verdict == verdict]
        last = {"audited": "Norms", "wrapped": "Fix here", "refused": "Use instead"}[verdict]
        lines = [f"## {heading} ({len(rows)})", "", f"| Class | Found | {last} |", "|---|---|---|"]
        for name, v in rows:
            norms = ", ".join(v.norms)
            end = {"audited": norms, "wrapped": f"{v.fix} ({norms})", "refused": v.instead}[verdict]
            lines.append(f"| {name} | {v.why} | {end} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


_HEADINGS = {"audited": "Audited: runs as it is", "wrapped": "Wrapped with a fix", "refused": "Refused"}
_HEAD = f"""# torchattacks and Windtunnel

Written from `windtunnel/attacks/_torchattacks_audit.py`; a test keeps the two in step. Library version {VERSION}.

## Theirs here

    pgd-torchattacks:
      method: torchattacks
      settings: {{class_name: PGD, arguments: {{steps: 20}}}}

`class_name` is an audited or a wrapped class of the tables below; a refused one stops with its reason and with what to
use here. `arguments` go to its constructor, apart from what the threat and the engine decide (eps, norm, seed, number
of classes). The number of steps must be given, the library's defaults have changed between versions; the step size may
be given as `step_size`, a fraction of eps.

For all of them: the class sees a facade, so that it can switch no mode of the model and fill no gradient of a
parameter; the process-wide random states are put back; the image it returns is judged like any other, in float64
for the ball and the box. Not promised, unlike for the attacks of this library: one stream is drawn per batch, so a
result depends on the batch size and on which images share a batch.

## Ours there

    from windtunnel.attacks.torchattacks_adapter import as_torchattacks

    attack = as_torchattacks(APGD(loss="dlr"), model, eps=8 / 255)
    adversarial = attack(images, labels)

The object is a `torchattacks.Attack` where that library is installed (it can stand in a `MultiAttack`, and has its
`save`), and a plain callable where it is not. Images are tensors in [0, 1], labels are needed, the model answers logits
and holds its own normalisation: `set_normalization_used`, the targeted modes and `set_model_training_mode` say so
instead of being ignored. Every flag of the model is as it was after a call. Random numbers are keyed by an image's
content, so that its result does not depend on its place in the batch.
"""
