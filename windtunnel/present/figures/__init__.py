"""The figures of a run, one file each: frames in, a matplotlib ``Figure`` out; ``all_figures`` draws every one."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from windtunnel.present.figures.accuracy_against_epsilon import accuracy_against_epsilon
from windtunnel.present.figures.certified import certified_against_radius
from windtunnel.present.figures.convergence import convergence
from windtunnel.present.figures.gallery import Picture, gallery
from windtunnel.present.figures.gallery_defenses import DefendedRow, DefenseGallery, gallery_defenses
from windtunnel.present.figures.landscape import landscape
from windtunnel.present.figures.ood_defended import ood_defended
from windtunnel.present.figures.perturbation import perturbation
from windtunnel.present.figures.rate_accuracy import rate_accuracy
from windtunnel.present.figures.rate_distortion import rate_distortion
from windtunnel.present.figures.reliability import reliability
from windtunnel.present.figures.roc import roc
from windtunnel.present.figures.rounds import rounds
from windtunnel.present.figures.score_histograms import score_histograms
from windtunnel.present.figures.sequential_jpeg import sequential_jpeg
from windtunnel.present.figures.transfer import transfer
from windtunnel.present.names import FIGURE_NAMES
from windtunnel.present.select import SIMPLE, Composed
from windtunnel.store import DIAGNOSTIC_FIELDS

FIGURES = FIGURE_NAMES
"""Names of all figures in the order of the report: what ``present_figures`` declares as output."""


def all_figures(
    samples: pd.DataFrame,
    metrics: pd.DataFrame,
    cells: pd.DataFrame,
    pictures: Sequence[Picture] = (),
    *,
    defended: DefenseGallery | None = None,
    diagnostics: pd.DataFrame | None = None,
    composed: Composed = SIMPLE,
    certified: pd.DataFrame | None = None,
) -> dict[str, Figure]:
    """Every figure by name. One whose rows this run lacks says so in words, so that no declared file is ever
    missing. ``composed`` says which names are batteries, ensembles and attacks that look for the nearest image.
    """
    if diagnostics is None:
        diagnostics = pd.DataFrame(columns=[name for name, _ in DIAGNOSTIC_FIELDS])
    made = {
        "sequential_jpeg": sequential_jpeg(metrics, cells),
        "rounds": rounds(metrics, cells),
        "accuracy_against_epsilon": accuracy_against_epsilon(metrics, cells),
        "convergence": convergence(samples, composed),
        "perturbation": perturbation(samples, metrics, diagnostics, composed),
        "rate_accuracy": rate_accuracy(metrics, cells),
        "rate_distortion": rate_distortion(metrics, cells),
        "certified": certified_against_radius(certified),
        "gallery": gallery(pictures),
        "gallery_defenses": gallery_defenses(defended),
        "score_histograms": score_histograms(samples, metrics),
        "roc": roc(samples, metrics),
        "ood_defended": ood_defended(metrics),
        "reliability": reliability(samples, metrics),
        "transfer": transfer(metrics, composed),
        "landscape": landscape(metrics, diagnostics),
    }
    return {name: made[name] for name in FIGURES}


__all__ = [
    "FIGURES", "DefendedRow", "DefenseGallery", "Picture", "accuracy_against_epsilon", "all_figures",
    "certified_against_radius", "convergence", "gallery", "gallery_defenses", "landscape", "ood_defended",
    "perturbation", "rate_accuracy", "rate_distortion", "reliability", "roc", "rounds", "score_histograms",
    "sequential_jpeg", "transfer",
]  # fmt: skip
