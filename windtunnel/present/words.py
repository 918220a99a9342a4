"""Names of the results tables in the words of a reader: threats, cells, checks with meaning and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from windtunnel.checks import CHECKS
from windtunnel.present.select import absent, full_name
from windtunnel.present.style import THEN, defense_family, defense_rounds, defense_setting, known_family


def threat(name: str) -> str:
    """``linf-8`` is '8/255 (L∞)', ``l2-50`` is '0.5 (L2)': names count 255ths and hundredths. Other names stay."""
    norm, _, size = name.partition("-")
    if norm == "linf" and size.isdigit():
        return f"{size}/255 (L∞)"
    if norm == "l2" and size.isdigit():
        return f"{int(size) / 100:g} (L2)"
    return name


_FAMILIES = {
    "jpeg": "JPEG", "jpeg420": "JPEG 4:2:0", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG2000",
    "hyperprior": "hyperprior codec", "hyperprior-real": "hyperprior codec (realism)",
    "factorized": "factorised codec", "factorized-real": "factorised codec (realism)",
    "tv": "TV", "nlmeans": "NL-means", "lowpass": "low-pass", "highpass": "high-pass", "dncnn": "DnCNN",
    "cdd-red": "CDD-RED", "camera": "camera pipeline", "diffusion": "diffusion purification",
    "blind-spot": "blind-spot denoising", "robust-crop": "robust crop", "random-pad": "random padding",
    "random-noise": "random noise",
}  # fmt: skip
_ATTACKS = {
    "pgd": "PGD", "fgsm": "FGSM", "apgd": "APGD", "cw": "CW", "square": "Square", "fab": "FAB", "mim": "MIM",
    "deepfool": "DeepFool", "pma": "PMA", "spsa": "SPSA", "hopskipjump": "HopSkipJump", "boundary": "Boundary",
    "adaea": "AdaEA", "cwa": "CWA", "mi-cwa": "MI-CWA", "svre": "SVRE", "ni": "NI", "di": "DI", "ti": "TI", "si": "SI",
    "mi": "MI", "vmi": "VMI", "vni": "VNI",
}  # fmt: skip
_BATTERIES = {
    "autoattack-standard": "AutoAttack (standard)", "autoattack-rand": "AutoAttack (rand)", "pma-plus": "PMA+",
}  # fmt: skip
SCORES = {
    "msp": "MSP", "maxlogit": "MaxLogit", "energy": "energy", "entropy": "entropy", "abet": "AbeT",
    "abet-unablated": "AbeT un-ablated", "mahalanobis": "Mahalanobis", "knn": "KNN", "vim": "ViM",
    "react-energy": "ReAct + energy", "react_energy": "ReAct + energy",
}  # fmt: skip
_RULES = {
    "surrogate-n": "surrogate, all rounds",
    "surrogate-1": "surrogate, one round",
    "unet": "learned surrogate",
    "noise": "random signs (control)",
    "identity": "identity",
    "blur": "blur",
    "jpeg": "JPEG's surrogate",
    "own": "its own stand-in",
    "exact": "exact gradient",
    "other-decoder": "the other decoder",
    "fewer-steps": "fewer steps",
    "through-fit": "through the fit",
    "fixed-fit": "fit held fixed",
    "bare": "saw no defense",
}


def defense(name: str) -> str:
    """``jpeg-50-x10`` is 'JPEG-50 applied 10 times', ``jpeg-50-then-webp-10`` 'JPEG-50 then WebP-10'."""
    base, rounds = defense_rounds(name)
    text = " then ".join(_stage(part) for part in base.split(THEN))
    if rounds == 1:
        return text
    return f"{f'({text})' if THEN in base else text} applied {rounds} times"


def _stage(name: str) -> str:
    family, setting = defense_family(name), defense_setting(name)
    known = known_family(family)
    text = _FAMILIES.get(known, family)
    if known and known != family and (size := re.search(r"^[a-z]+(\d+)", family)):
        text = f"{text} for {size[1]} px"
    if not setting:
        return text
    return f"{text}{' ' if ' ' in text else '-'}{setting}"


def attack(name: str) -> str:
    """``pgd20`` is 'PGD-20', ``apgd-ce`` is 'APGD-CE', ``autoattack-standard`` is 'AutoAttack (standard)'."""
    if name in _BATTERIES:
        return _BATTERIES[name]
    for stem in sorted(_ATTACKS, key=len, reverse=True):
        if re.match(rf"{stem}(?![a-z])", name):
            rest = name[len(stem) :].replace("-", " ").strip().replace(" ", "-").upper()
            return _ATTACKS[stem] + (f"-{rest}" if rest else "")
    return name


def score(name: str) -> str:
    """``abet`` is 'AbeT'."""
    return SCORES.get(name, name)


def rule(name: str) -> str:
    """A backward rule in words; of a composition those of its stages, joined by +."""
    return " + ".join(_RULES.get(part, part) for part in name.split("+"))


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
    """A way of fooling oneself: its title, what it means that the check was raised, what to do, when it is raised."""

    title: str
    meaning: str
    remedy: str
    threshold: str = ""


UPPER_BOUND = "upper_bound"
_UPPER_BOUND = Check(
    "Upper bound",
    "Attacked with generic backward rules only (identity, blur, another codec's surrogate); an attack that knows this "
    "defense would find less accuracy.",
    "Give the defense a differentiable form of its own, or train a surrogate, and attack again.",
)


def is_upper_bound(note: str) -> bool:
    """Whether a row's note says that only generic backward rules were tried."""
    return "upper bound" in note.split("; ")


def check_names() -> list[str]:
    """Every note that a number may bear, in the order of footnotes: the upper bound, then the checks."""
    return [UPPER_BOUND, *CHECKS]


def check_words(name: str) -> Check:
    """The words of a check, which are its module's; an unknown one is said to be raised, under its own name."""
    if name == UPPER_BOUND:
        return _UPPER_BOUND
    module = CHECKS.get(name)
    if module is None:
        title = name.replace("_", " ")
        return Check(title, f"The check '{name}' was raised.", "See the documentation of that check.")
    return Check(module.TITLE, module.MEANS, module.REMEDY, module.THRESHOLD)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of notes in the order of footnotes, each once; unknown ones last by name."""
    wanted, known = set(names), check_names()
    return [*(n for n in known if n in wanted), *sorted(wanted - set(known))]


def title(name: str) -> str:
    """The title of a check within a sentence."""
    text = check_words(name).title
    return text[:1].lower() + text[1:]


def percent(value: Any, decimals: int = 1) -> str:
    """A fraction as printed: 0.942 is '94.2 %'."""
    return "-" if absent(value) else f"{100 * float(value):.{decimals}f} %"
