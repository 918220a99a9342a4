"""What is asked of a model: architecture, head, recipe, seed, data. No torch, so that the plan can read it.

A model's identity is its *recipe digest*: the SHA-256 of the canonical JSON of everything that decides which weights
come out, up to the last bits of floating point, which differ between CPU types and are deliberately not part of it.
Shipped weights are taken when their card bears the wanted digest; recipe or data changed means trained again.

Name grammar: an entry ``digits-cnn`` with ``seeds: [0, 1, 3]`` names the models ``digits-cnn`` (seed 0),
``digits-cnn-s1`` and ``digits-cnn-s3``. An entry's own name never ends in ``-s<number>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from windtunnel import images
from windtunnel.store import digest, file_digest

# Raised by hand whenever the trainer, an architecture or a head changes the weights that come out.
ALGORITHM_VERSION = 1
ARCHITECTURES = ("cnn", "vit", "fusion", "file")
HEADS = ("linear", "abet", "cosine_global")
DATASETS = tuple(images.DATASETS)
CATALOGUE = Path(__file__).parent.parent / "catalogue" / "models.yaml"
# Keys of a catalogue entry that describe the family and decide no weights.
NOT_IDENTITY = ("seeds", "description", "label", "milliseconds_per_forward", "milliseconds_per_gradient")
_SEEDED = re.compile(r"^(?P<base>.+)-s(?P<seed>[1-9]\d*)$")


class UnknownModel(LookupError):
    """A model name that the catalogue does not hold; the message lists the known names and the nearest one."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: a catalogue entry at one seed.

    ``architecture``: a file of this folder (``cnn``, ``vit``, ``fusion``) or ``file`` (the user's own, see
    ``windtunnel.models.load``); ``head``: ``linear``, ``abet`` or ``cosine_global``, ignored (None) for ``file``;
    ``recipe``: every number of the architecture and its training, as JSON values; ``dataset``: what it is trained on,
    None for ``file``; ``class_names``: by default the class numbers as words.
    """

    name: str
    architecture: str
    head: str | None
    recipe: dict[str, Any]
    dataset: str | None
    classes: int
    seed: int = 0
    class_names: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        problems = []
        if self.architecture not in ARCHITECTURES:
            problems.append(f"architecture '{self.architecture}' is not one of {', '.join(ARCHITECTURES)}")
        if self.architecture != "file" and self.head not in HEADS:
            problems.append(f"head '{self.head}' is not one of {', '.join(HEADS)}")
        if self.architecture != "file" and self.dataset not in DATASETS:
            problems.append(f"dataset '{self.dataset}' is not one of {', '.join(DATASETS)}")
        if self.classes < 2:
            problems.append(f"classes is {self.classes}, at least 2 are needed")
        if self.class_names and len(self.class_names) != self.classes:
            problems.append(f"{len(self.class_names)} class names for {self.classes} classes")
        if problems:
            raise ValueError(f"model '{self.name}': " + "; ".join(problems))
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(str(k) for k in range(self.classes)))


def model_name(entry: str, seed: int) -> str:
    """``digits-cnn`` for seed 0, ``digits-cnn-s3`` for seed 3."""
    return entry if seed == 0 else f"{entry}-s{seed}"


def split_name(name: str) -> tuple[str, int]:
    """The inverse of ``model_name``: entry and seed."""
    found = _SEEDED.match(name)
    return (found["base"], int(found["seed"])) if found else (name, 0)


def specs_of_entry(entry: str, settings: Mapping[str, Any]) -> dict[str, ModelSpec]:
    """The models of one catalogue entry, by name, in the order of its seeds."""
    if _SEEDED.match(entry):
        raise ValueError(f"model entry '{entry}': a name ending in -s<number> is kept for seeds")
    common = {key: value for key, value in settings.items() if key not in NOT_IDENTITY}
    common.setdefault("head", None)
    common.setdefault("dataset", None)
    common["class_names"] = tuple(common.get("class_names") or ())
    return {
        model_name(entry, seed): ModelSpec(name=model_name(entry, seed), seed=seed, **common)
        for seed in settings.get("seeds", [0])
    }


def read_catalogue(path: Path = CATALOGUE) -> dict[str, ModelSpec]:
    """Every model of a catalogue file (top key ``models``), by name."""
    import yaml

    entries = yaml.safe_load(path.read_text())["models"]
    specs: dict[str, ModelSpec] = {}
    for entry, settings in entries.items():
        specs.update(specs_of_entry(entry, settings))
    return specs


def find_spec(name: str, path: Path = CATALOGUE) -> ModelSpec:
    """The model of that name in a catalogue file."""
    from windtunnel.registry import did_you_mean

    specs = read_catalogue(path)
    if name not in specs:
        raise UnknownModel(f"unknown model '{name}'{did_you_mean(name, list(specs))} Known: {', '.join(specs)}")
    return specs[name]


def data_identity(dataset: str | None) -> dict[str, Any] | None:
    """What the training data is: name, recipe version, digest of the arrays it is made of. Imports no torch."""
    return None if dataset is None else dict(_data_identity(dataset))


@cache
def _data_identity(dataset: str) -> tuple[tuple[str, Any], ...]:
    if dataset not in DATASETS:
        raise ValueError(f"no training data called '{dataset}'; known: {', '.join(DATASETS)}")
    module = images.dataset_module(dataset)
    return (
        ("dataset", dataset),
        ("recipe_version", module.RECIPE_VERSION),
        ("training_digest", module.training_digest()),
    )


def recipe_digest(spec: ModelSpec) -> str:
    """SHA-256 of what decides the weights. The name is not part of it; neither are class names nor last bits.

    For the user's own files the digest covers their bytes, so that an edited file is a new model.
    """
    identity: dict[str, Any] = {
        "algorithm_version": ALGORITHM_VERSION,
        "architecture": spec.architecture,
        "head": spec.head,
        "recipe": spec.recipe,
        "classes": spec.classes,
        "seed": spec.seed,
        "data": data_identity(spec.dataset),
    }
    if spec.architecture == "file":
        identity["files"] = {key: file_digest(Path(spec.recipe[key])) for key in ("file", "weights")}
    return digest(identity)
