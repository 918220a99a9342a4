"""Names of the results tables in the words of a reader: threats, cells, checks with meaning and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from windtunnel.present.select import absent, full_name
from windtunnel.present.style import defense_rounds


def threat(name: str) -> str:
    """``linf-8`` is '8/255 (L∞)', ``l2-0.5`` is '0.5 (L2)'."""
    norm, _, size = name.partition("-")
    if norm == "linf" and size:
        return f"{size}/255 (L∞)"
    if norm == "l2" and size:
        return f"{size} (L2)"
    return name


_ACRONYMS = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG2000", "tv": "TV", "nlmeans": "NL-means"}
_ATTACKS = {"pgd": "PGD", "fgsm": "FGSM", "apgd": "APGD", "cw": "CW", "square": "Square"}
SCORES = {
    "msp": "MSP", "maxlogit": "MaxLogit", "energy": "energy", "entropy": "entropy", "abet": "AbeT",
    "abet-unablated": "AbeT un-ablated", "mahalanobis": "Mahalanobis", "knn": "KNN", "vim": "ViM",
    "react-energy": "ReAct + energy", "react_energy": "ReAct + energy",
}  # fmt: skip
_RULES = {
    "surrogate-n": "surrogate, all rounds",
    "surrogate-1": "surrogate, one round",
    "identity": "identity",
    "blur": "blur",
    "bare": "saw no defense",
}


def defense(name: str) -> str:
    """``jpeg-50-x10`` is 'JPEG-50 applied 10 times'."""
    base, rounds = defense_rounds(name)
    family, dash, rest = base.partition("-")
    text = _ACRONYMS.get(family, family) + dash + rest
    return text if rounds == 1 else f"{text} applied {rounds} times"


def attack(name: str) -> str:
    """``pgd20`` is 'PGD-20', ``apgd-ce`` is 'APGD-CE'."""
    for stem in sorted(_ATTACKS, key=len, reverse=True):
        if name.startswith(stem):
            rest = name[len(stem) :].replace("-", " ").strip().replace(" ", "-").upper()
            return _ATTACKS[stem] + (f"-{rest}" if rest else "")
    return name


def score(name: str) -> str:
    """``abet`` is 'AbeT'."""
    return SCORES.get(name, name)


def rule(name: str) -> str:
    """A backward rule in words."""
    return _RULES.get(name, name)


def image_set(dataset: str, split: str) -> str:
    """``photodigits.test``."""
    return f"{dataset}.{split}" if split else dataset


def cell(row: pd.Series) -> str:
    """One cell as a sentence part: what was attacked how, and what judged it."""
    text = f"{full_name(row['model'], row['model_seed'])} on {image_set(row['dataset'], row['split'])}"
    shift = row.get("shift", "")
    if shift and shift != "none":
        severity = row.get("severity")
        text += f", {shift}" + ("" if absent(severity) else f" {int(severity)}")
    if row["attack"] not in ("", "none"):
        text += f", {attack(row['attack'])} at {threat(row['threat'])}"
        if row["attack_defense"] not in ("", "none"):
            text += f" through {defense(row['attack_defense'])} (rule: {rule(row['through'])})"
        source = row.get("source_model", "")
        if source and source != full_name(row["model"], row["model_seed"]):
            text += f" made on {source}"
        if row.get("iterate", "") not in ("", "none"):
            text += f", {row['iterate']} iterate"
    if row["defense"] not in ("", "none"):
        text += f", judged behind {defense(row['defense'])}"
    return text


# --------------------------------------------------------------------------------------------------------------- checks


@dataclass(frozen=True)
class Check:
    """A way of fooling oneself: its title, what it means that the check was raised, and what to do."""

    title: str
    meaning: str
    remedy: str


UPPER_BOUND = "upper_bound"

CHECKS: dict[str, Check] = {
    UPPER_BOUND: Check(
        "upper bound",
        "Attacked with generic backward rules only (identity, blur, another codec's surrogate); an attack that knows this "
        "defense would find less accuracy.",
        "Give the defense a differentiable form of its own, or train a surrogate, and attack again.",
    ),
    "undefended_falls": Check(
        "the undefended model does not fall",
        "At twice the largest reported budget a standard-trained undefended model keeps more than 1 % accuracy. The attack, "
        "not the model, is weak.",
        "More steps, a larger step size, restarts; read the loss of single samples.",
    ),
    "zero_gradient": Check(
        "gradients vanish",
        "On more than 1 % of the correctly classified samples every entry of the gradient is exactly zero: the attack could "
        "not move there.",
        "Attack with a margin loss (DLR, CW) instead of cross-entropy, or through another backward rule.",
    ),
    "nan_gradient": Check(
        "gradients are NaN",
        "The gradient is not a number on some samples: the attack could not move there.",
        "Look for divisions and logarithms of zero in the model or in the backward rule.",
    ),
    "single_step": Check(
        "a single step beats many",
        "FGSM fools samples that the iterative attack never fools. That is the mark of a masked gradient.",
        "Attack through another backward rule; use random starts.",
    ),
    "black_box": Check(
        "black-box beats white-box",
        "An attack without gradients (or one made on another model) fools samples that the gradient attack does not.",
        "The worst case over both is the honest number; look for a masked gradient.",
    ),
    "through_weaker": Check(
        "through is weaker than unaware",
        "The attack that differentiates the defense fools fewer samples than one that ignores it: the backward rule hides "
        "the gradient rather than follows it.",
        "Do not read this accuracy as robustness; see the lowest rule of the same defense.",
    ),
    "more_rounds": Check(
        "more rounds raise accuracy",
        "Repeating a codec that hardly changes its own output raised the accuracy under attack. The images do not change, "
        "so the gain lies in the gradient, not in the defense.",
        "Differentiate one round only, or use the identity; see the opening figure.",
    ),
    "gradient_direction": Check(
        "the gradient points nowhere",
        "On the real defense a step along the gradient raises the loss no more than steps along random signs, for more than "
        "a tenth of the samples.",
        "Use another backward rule.",
    ),
    "bound": Check(
        "the attack left its ball",
        "Some adversarial images are further from the clean ones than the budget allows; they are recorded with status bound.",
        "Repair the projection; for l2 store float32, rounding to 8 bits leaves the ball.",
    ),
    "eight_bit_loss": Check(
        "8-bit storage undoes the attack",
        "More samples than expected were fooled before rounding to 8 bits and are correct afterwards.",
        "Attack on the 8-bit grid, or read success_float beside the accuracy.",
    ),
    "huge_epsilon": Check(
        "a huge budget does not destroy the model",
        "At 64/255 the accuracy is far above what random sign noise of that size leaves room for: the attack is stuck.",
        "Attack with a margin loss, more steps and restarts.",
    ),
    "more_steps": Check(
        "not converged",
        "Twice as many steps fool noticeably more samples.",
        "Raise the number of steps until the accuracy stands still.",
    ),
    "surrogate_gap": Check(
        "the surrogate is not the codec",
        "Accuracy on the differentiable stand-in and on the real defense differ by more than five points.",
        "Judge on the real defense only (this tool does); improve the surrogate.",
    ),
}
"""The words of every known check; ``check_words`` finds those of a name that is not here."""


def check_words(name: str) -> Check:
    """The words of a check; an unknown one is said to be raised, under its own name."""
    known = CHECKS.get(name)
    if known:
        return known
    title = name.replace("_", " ")
    return Check(title, f"The check '{name}' was raised.", "See the documentation of that check.")


def percent(value: Any, decimals: int = 1) -> str:
    """A fraction as printed: 0.942 is '94.2 %'."""
    return "-" if absent(value) else f"{100 * float(value):.{decimals}f} %"
