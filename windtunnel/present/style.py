"""One look for every figure: colour-blind palette, one colour per defense, model, score and rule wherever it appears.

A colour belongs to a *name*, not to a place in a list: leaving a defense out of a run must not recolour the others.
Names of the built-in catalogue have fixed colours; an unknown name takes one by the hash of its text, and within one
run ``model_colours`` moves colliding names on, in alphabetical order.

Bytes are reproducible: no date, no version text, ids of SVG elements from a fixed salt, text as outlines so that a
report looks the same on a machine without these fonts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 7.2
"""Inches: the text width of a report page; fonts are chosen for figures of about this width."""

INK = "#222222"
MUTED = "#666666"
FAINT = "#bbbbbb"
PALETTE: tuple[str, ...] = tuple(to_hex(c) for c in seaborn.color_palette("colorblind"))
BLUE, ORANGE, GREEN, VERMILION, PINK, BROWN, ROSE, GREY, YELLOW, SKY = PALETTE
SEQUENTIAL = seaborn.light_palette(SKY, as_cmap=True)
OCHRE, VIOLET = "#a89000", "#6a4c93"
THEN = "-then-"
"""Between the stages of a composition in a defense's name."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p", "*")

DEFENSES = {
    "none": INK,
    "jpeg": BLUE,
    "webp": ORANGE,
    "avif": GREEN,
    "jpeg2000": VERMILION,
    "hyperprior": "#882255",
    "hyperprior-real": "#ee4d86",
    "factorized": "#332288",
    "factorized-real": "#8f83e0",
    "jpeg420": "#16425b",
    "median": PINK,
    "gaussian": BROWN,
    "bits": SKY,
    "tv": GREY,
    "nlmeans": OCHRE,
    "bilateral": ROSE,
    "wavelet": VIOLET,
    "lowpass": "#5f7f1f",
    "highpass": "#b5c334",
    "dncnn": "#0b5345",
    "cdd-red": "#c0182b",
    "autoencoder": "#45b8ac",
    "camera": "#5d6d7e",
    "diffusion": "#b0189a",
    "blind-spot": "#6b3a10",
    "robust-crop": "#e6b422",
    "random-pad": "#f08a70",
    "random-noise": "#b8b890",
}
"""In the order of tables and rows: codecs, learned codecs, filters, denoisers and reconstruction, random ones."""
MODELS = {
    "digits-cnn": BLUE,
    "digits-abet": ORANGE,
    "digits-at": GREEN,
    "digits-vit": PINK,
    "digits-coslin": VERMILION,
    "scenes-cnn": SKY,
}
RULES = {
    "surrogate-n": VERMILION,
    "surrogate-1": BLUE,
    "identity": GREEN,
    "blur": PINK,
    "jpeg": BROWN,
    "own": ORANGE,
    "unet": VIOLET,
    "exact": "#0b5345",
    "other-decoder": SKY,
    "fewer-steps": OCHRE,
    "through-fit": ROSE,
    "fixed-fit": "#882255",
    "noise": GREY,
    "bare": INK,
}
SCORES = {
    "msp": BLUE,
    "energy": GREEN,
    "abet": ORANGE,
    "abet-unablated": BROWN,
    "maxlogit": SKY,
    "entropy": GREY,
    "mahalanobis": PINK,
    "knn": VIOLET,
    "vim": VERMILION,
    "react-energy": OCHRE,
}
ATTACKS = {
    "autoattack-standard": INK,
    "autoattack-rand": GREY,
    "pma-plus": VERMILION,
    "pma-100": ORANGE,
    "apgd-ce-100": BLUE,
    "apgd-dlr-100": SKY,
    "apgd-t-100": VIOLET,
    "apgd-margin-100": GREEN,
    "pgd20": BROWN,
    "mim-20": PINK,
    "fgsm": OCHRE,
}
GROUPS = {"id": INK, "near_ood": SKY, "far_ood": BLUE, "adversarial": VERMILION}
CURVES = {"clean": INK, "unaware": ORANGE, "through": VERMILION}

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "savefig.facecolor": "white",
    "svg.hashsalt": "windtunnel",
    "svg.fonttype": "path",
    "path.simplify": True,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorator: the figure is drawn under ``RC``; the caller's matplotlib settings neither matter nor change.

    The layout is computed here once and frozen: constrained layout moves a little with every further drawing, and the
    bytes of a file must not depend on how often the figure was drawn before.
    """

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return wrapped


def new_figure(*, width: float = WIDTH, height: float) -> Figure:
    """An empty figure with constrained layout, outside pyplot: nothing to close, no global state."""
    return Figure(figsize=(width, height), layout="constrained")


def heading(figure: Figure, title: str, subtitle: str = "", note: str = "") -> None:
    """The statement of what is shown, under it how (model, attack, n), and a note at the foot; axes keep clear of
    both.
    """
    height, width = figure.get_figheight(), figure.get_figwidth()
    top = 0.06
    for text, size, weight, colour in ((title, 10.0, "bold", INK), (subtitle, 8.5, "normal", MUTED)):
        if not text:
            continue
        wrapped = wrap(text, width, size * (1.12 if weight == "bold" else 1.0))
        figure.text(
            0.06 / width, 1 - top / height, wrapped, ha="left", va="top", fontsize=size, fontweight=weight,
            color=colour, linespacing=1.25,
        )  # fmt: skip
        top += (wrapped.count("\n") + 1) * size * 1.3 / 72 + 0.03
    foot = 0.0
    if note:
        wrapped = wrap(note, width, 7.5)
        figure.text(
            0.06 / width, 0.05 / height, wrapped, ha="left", va="bottom", fontsize=7.5, color=MUTED, linespacing=1.25
        )
        foot = 0.05 + (wrapped.count("\n") + 1) * 7.5 * 1.3 / 72 + 0.03
    figure.get_layout_engine().set(rect=(0, foot / height, 1, 1 - (top + foot) / height))


def wrap(text: str, width: float, size: float) -> str:
    """Lines that fit ``width`` inches at ``size`` points; DejaVu Sans is about 0.54 em wide on average."""
    letters = max(20, int((width - 0.12) * 72 / (0.54 * size)))
    glued = re.sub(r"(\d) %", "\\1\u00a0%", text)
    return "\n".join("\n".join(textwrap.wrap(line, letters)) for line in glued.splitlines())


def not_in_this_run(title: str, what: str) -> Figure:
    """The figure of a run that lacks these rows: says so in words, so that a report never has a hole in it."""
    figure = new_figure(height=0.75)
    heading(figure, title, f"Not in this run: {what}.")
    return figure


def percent_axis(axes: Axes, *, axis: str = "y", low: float = 0.0, high: float = 1.0) -> None:
    """Fractions on the axis, printed in percent."""
    from matplotlib.ticker import PercentFormatter

    (axes.yaxis if axis == "y" else axes.xaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    pad = 0.02 * (high - low)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(low - pad, high + pad)


def spread(values: list[float], gap: float) -> list[float]:
    """Positions of direct labels: as near to ``values`` as a distance of ``gap`` between neighbours allows.

    Pool-adjacent-violators on the sorted values, so labels never overlap and never change order. Pure.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    pools: list[list[float]] = []  # [sum of (value - rank * gap), count]
    for rank, i in enumerate(order):
        pools.append([values[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    flat = [total / count for total, count in pools for _ in range(int(count))]
    placed = [0.0] * len(values)
    for rank, i in enumerate(order):
        placed[i] = flat[rank] + rank * gap
    return placed


def label_ends(axes: Axes, labels: list[tuple[float, str, str]], *, x: float = 1.01, gap: float = 0.055) -> None:
    """Direct labels at the right edge: (y in data, text, colour), moved apart where they would overlap.

    ``gap`` is a share of the axis height.
    """
    low, high = axes.get_ylim()
    at = spread([y for y, _, _ in labels], gap * (high - low))
    over = max([*at, high]) - high
    for (_, text, colour), y in zip(labels, at, strict=True):
        axes.annotate(
            text,
            (x, (y - min(over, 0.5 * gap * (high - low)) - low) / (high - low)),
            xycoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            ha="left",
            annotation_clip=False,
        )


# -------------------------------------------------------------------------------------------------------------- colours


def stable_index(name: str, size: int) -> int:
    """A place in a list of ``size`` that depends on the text alone (Python's own hash differs between processes)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % size


def defense_family(name: str) -> str:
    """``jpeg-50-x10`` is of the family ``jpeg``, ``hyperprior-real-2-s1`` of ``hyperprior-real``, a composition
    ``jpeg-50-then-webp-10`` of ``jpeg-then-webp``: the name without strength, training seed and rounds.
    """
    return THEN.join(_family_and_setting(part)[0] for part in defense_rounds(name)[0].split(THEN))


def defense_setting(name: str) -> str:
    """What a name adds to its family, rounds left out: ``50``, ``2-s1``, ``50+10`` of a composition, else ''."""
    return "+".join(_family_and_setting(part)[1] for part in defense_rounds(name)[0].split(THEN)).strip("+")


def _family_and_setting(name: str) -> tuple[str, str]:
    found = re.fullmatch(r"(?P<family>.+?)(?P<setting>(-\d+(?:\.\d+)?)?(-s\d+)?)", name)
    return (name, "") if found is None else (found["family"], found["setting"].lstrip("-"))


def defense_rounds(name: str) -> tuple[str, int]:
    """``jpeg-50-x10`` is (``jpeg-50``, 10); ``jpeg-50`` is (``jpeg-50``, 1)."""
    found = re.fullmatch(r"(?P<base>.+)-x(?P<rounds>\d+)", name)
    return (found["base"], int(found["rounds"])) if found else (name, 1)


def defense_strength(name: str) -> float:
    """The first number in a defense's name, 0 without one: what its siblings are sorted by."""
    found = re.search(r"-(\d+(?:\.\d+)?)", name)
    return float(found[1]) if found else 0.0


def defense_order(name: str) -> tuple[int, str, float, int, str]:
    """Sorts defenses by family (built-in ones in the order of ``DEFENSES``, then the others), strength, rounds."""
    base, rounds = defense_rounds(name)
    family, known = defense_family(base), list(DEFENSES)
    plain = known_family(family)
    place = known.index(plain) if plain else len(known) + (THEN in family)
    return (place, family, defense_strength(base), rounds, name)


def known_family(family: str) -> str:
    """The built-in family whose look a family has, else ''. Hyphens do not count, nor an image size after the first
    word: ``blindspot`` is ``blind-spot``, ``hyperprior64-real`` looks like ``hyperprior-real`` at another size.
    """
    if family in DEFENSES:
        return family
    plain = {name.replace("-", ""): name for name in DEFENSES}
    bare = re.sub(r"[-_]", "", family)
    return plain.get(bare) or plain.get(re.sub(r"^([a-z]+?)(?:32|64|128|224)(?=[a-z]|$)", r"\1", bare), "")


def defense_colour(name: str) -> str:
    """The colour of a defense: hue by family, lighter with the number in its name."""
    family = defense_family(name)
    base = DEFENSES.get(known_family(family)) or PALETTE[stable_index(family, len(PALETTE))]
    return _lighter(base, defense_strength(defense_rounds(name)[0]))


def family_colours(families: Iterable[str]) -> dict[str, str]:
    """Colours of all defense families of a figure; built-in ones are fixed, others hashed, collisions moved on."""
    wanted = set(families)
    fixed = {f: DEFENSES[known_family(f)] for f in wanted if known_family(f)}
    return _assign(wanted, fixed, (*(c for c in PALETTE if c != YELLOW), OCHRE, VIOLET))


def _lighter(base: str, strength: float) -> str:
    share = 0.35 * min(strength, 100.0) / 100.0
    return to_hex(tuple(c + (1 - c) * share for c in to_rgb(base)))


def defense_marker(name: str) -> str:
    """The marker of a defense's family: the second channel beside colour."""
    family = defense_family(name)
    known, plain = list(DEFENSES), known_family(family)
    return MARKERS[known.index(plain) % len(MARKERS)] if plain else MARKERS[stable_index(family, len(MARKERS))]


def model_colours(names: Iterable[str]) -> dict[str, str]:
    """Colours of all models of a run; built-in names are fixed, others hashed, collisions moved on alphabetically."""
    return _assign(names, MODELS, (*PALETTE, OCHRE, VIOLET))


def model_markers(names: Iterable[str]) -> dict[str, str]:
    """Markers of all models of a run, by the same rule as their colours."""
    return _assign(names, dict(zip(MODELS, MARKERS, strict=False)), MARKERS)


def score_colours(names: Iterable[str]) -> dict[str, str]:
    """Colours of all scores of a run."""
    return _assign(names, SCORES, (*PALETTE, OCHRE, VIOLET))


def attack_colours(names: Iterable[str]) -> dict[str, str]:
    """Colours of all attacks of a run; no yellow, which a thin line on white cannot carry."""
    return _assign(names, ATTACKS, (INK, *(c for c in PALETTE if c != YELLOW), OCHRE, VIOLET))


def attack_markers(names: Iterable[str]) -> dict[str, str]:
    """Markers of all attacks of a run, by the same rule."""
    return _assign(names, dict(zip(ATTACKS, MARKERS, strict=False)), MARKERS)


def rule_colour(name: str) -> str:
    """The colour of a backward rule."""
    return RULES.get(name) or PALETTE[stable_index(name, len(PALETTE))]


def rule_colours(names: Iterable[str]) -> dict[str, str]:
    """Colours of all backward rules of a figure; built-in ones are fixed, others hashed, collisions moved on."""
    return _assign(names, RULES, (*(c for c in PALETTE if c != YELLOW), OCHRE, VIOLET))


def rule_order(name: str) -> tuple[int, str]:
    """Sorts backward rules as ``RULES`` does, unknown ones last."""
    known = list(RULES)
    return (known.index(name) if name in known else len(known), name)


def _assign(names: Iterable[str], fixed: dict[str, str], choices: tuple[str, ...]) -> dict[str, str]:
    wanted = sorted(set(names))
    given = {name: fixed[name] for name in wanted if name in fixed}
    for name in wanted:
        if name in given:
            continue
        start = stable_index(name, len(choices))
        turns = [choices[(start + i) % len(choices)] for i in range(len(choices))]
        given[name] = next((c for c in turns if c not in given.values()), turns[0])
    return given


# ---------------------------------------------------------------------------------------------------------------- bytes


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG; equal figures give equal bytes."""
    return _bytes(figure, "svg", {"Date": None, "Creator": None})


def png_bytes(figure: Figure, *, dpi: int = 160) -> bytes:
    """The figure as PNG; equal figures give equal bytes with one version of matplotlib."""
    return _bytes(figure, "png", {"Software": None}, dpi=dpi)


def _bytes(figure: Figure, form: str, metadata: dict[str, None], **more: Any) -> bytes:
    sink = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        figure.savefig(sink, format=form, metadata=metadata, **more)
    return sink.getvalue()
