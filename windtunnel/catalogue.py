"""The typed, frozen description of everything a run can select: the only schema of configs and catalogue files.

The catalogue defines each thing once under a unique name; a run only selects names. Built-in entries lie in
``windtunnel/catalogue/*.yaml``; a config may add its own under the key ``catalogue``. Derived names have one grammar:

    model     <name>[-s<seed>]                   digits-cnn, digits-cnn-s3       (seed 0 has no suffix)
    defense   <family>[-<integer>][-s<seed>][-x<rounds>]   jpeg-50, jpeg-50-x10, wavelet; hyperprior-2-s1 (learned)
    network   <family>[-<integer>][-s<seed>]     hyperprior-2-s1: the trained part of a defense
    threat    as listed: linf-8 (= 8/255), l2-50 (= 0.50)
    images    <dataset>.<split>[@<shift>-<severity>]
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from windtunnel import images, registry
from windtunnel.registry import MethodCard, did_you_mean

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NONE = "none"
BARE = "bare"
if TYPE_CHECKING:
    from windtunnel.attacks._torchattacks_audit import Verdict

FOLDER = Path(__file__).parent / "catalogue"
THEN = "-then-"
"""Joins the stages of a composition in a defense's name, in the order in which they are applied."""
LEARNED = "unet"
"""The backward rule of a surrogate that the workflow trains on pairs of images and the real defense's answers."""
EXTRA_RULES = ("noise", LEARNED)
"""Rules that every defense has when a block names them; ``through: all`` means the defense's own."""

NAME = re.compile(r"^[a-z][a-z0-9_]*(-[a-z0-9_]+)*$")
SEEDED = re.compile(r"^(?P<family>.+)-s(?P<seed>[0-9]+)$")
STRENGTH = re.compile(r"^(?P<rest>.+)-(?P<value>[0-9]+)$")
ROUNDS = re.compile(r"^(?P<rest>.+)-x(?P<rounds>[0-9]+)$")

Role = Literal[
    "train", "fit", "id", "near_ood", "far_ood", "shifted", "no_object", "ambiguous", "sanity", "validation"
]  # fmt: skip
OOD_ROLES = ("near_ood", "far_ood", "no_object", "ambiguous", "sanity")


class ConfigError(ValueError):
    """Everything that is wrong with a config, at once: each problem names the file, the path in it and the remedy."""

    def __init__(self, problems: list[str]):
        self.problems = list(dict.fromkeys(problems))
        plural = "problem" if len(self.problems) == 1 else "problems"
        super().__init__(f"{len(self.problems)} {plural} in the config:\n  - " + "\n  - ".join(self.problems))


class Entry(BaseModel):
    """Base of all catalogue entries: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""


class Threat(Entry):
    """A norm with its budget, the unit in the key: ``eps_255`` in 255ths of the pixel range, ``eps`` as a fraction."""

    norm: Literal["linf", "l2"]
    eps_255: int | None = Field(default=None, ge=0, le=255)
    eps: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_unit(self) -> Threat:
        if (self.eps_255 is None) == (self.eps is None):
            raise ValueError(
                "a budget needs its unit: give exactly one of eps_255 (255ths of the pixel range) or eps (fraction)"
            )
        if self.norm == "linf" and self.eps is not None and self.eps > 1:
            raise ValueError(
                f"eps is a fraction of the pixel range, got {self.eps}: did you mean eps_255: {self.eps:g}?"
            )
        return self

    @property
    def budget(self) -> float:
        """The budget as a fraction of the pixel range."""
        return self.eps_255 / 255 if self.eps_255 is not None else float(self.eps or 0.0)


class AttackEntry(Entry):
    """An attack with all its settings; ``method`` is a built-in name or a path to a user's file.

    Or a battery: ``members`` are names of other attacks, run in this order on what the ones before left standing.
    ``eot`` is how many draws of a random defense every answer is the mean of.
    """

    method: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    members: tuple[str, ...] = ()
    eot: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_or_many(self) -> AttackEntry:
        if (self.method is None) == (not self.members):
            raise ValueError("an attack has either a method (with settings) or members (names of other attacks)")
        if self.members and self.settings:
            raise ValueError("a battery has no settings of its own: they stand in the entries of its members")
        if len(set(self.members)) != len(self.members):
            raise ValueError(f"duplicate name in members {list(self.members)}")
        return self


class DefenseEntry(Entry):
    """A family of defenses: one method whose ``argument`` is the integer in the name, times ``scale``.

    A learned one names its ``network``; the training seed stands in the defense's name (``-s1``). Where the argument is
    that of the network (the rate of a codec), the integer decides which weights are carried.
    """

    method: str
    network: str | None = None
    argument: str | None = None
    scale: float = 1.0
    minimum: int = 0
    maximum: int = 1_000_000
    step: int = Field(default=1, ge=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    milliseconds_per_image: float = 1.0


class NetworkEntry(Entry):
    """The trained part of defenses: a method of ``windtunnel/networks`` with its recipe and training seeds.

    ``argument`` is a setting that the integer in a defense's name decides (times ``scale``), so that each rate of a
    codec has its own weights. Trained on ``dataset`` with the help of ``teachers`` (names of models), or read from the
    file ``weights`` with its declared ``sha256``.
    """

    method: str
    argument: str | None = None
    scale: float = 1.0
    settings: dict[str, Any] = Field(default_factory=dict)
    dataset: str | None = None
    teachers: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    weights: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    seconds_to_train: float = Field(default=120.0, ge=0)

    @model_validator(mode="after")
    def _one_origin(self) -> NetworkEntry:
        if (self.dataset is None) == (self.weights is None):
            raise ValueError("a network is trained on a dataset or read from weights: give exactly one of the two")
        if (self.weights is None) != (self.sha256 is None):
            raise ValueError("weights from a file need their digest: give weights and sha256 together")
        return self


class ScoreEntry(Entry):
    """A score with its settings and the label that tables print."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    label: str = ""


class ModelEntry(Entry):
    """A model family: architecture, head and training recipe, with its training seeds.

    ``architecture: file`` is the user's own: ``recipe: {file: model.py, weights: model.safetensors}``;
    ``architecture: ensemble`` is several models attacked as one: ``recipe: {members: [model, model]}``.
    """

    architecture: Literal["cnn", "vit", "fusion", "file", "ensemble"]
    head: Literal["linear", "abet", "cosine_global"] | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    dataset: str | None = None
    classes: int = Field(default=10, ge=2)
    class_names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    label: str = ""
    milliseconds_per_forward: float = 0.3
    milliseconds_per_gradient: float = 0.95

    @model_validator(mode="after")
    def _complete(self) -> ModelEntry:
        if self.architecture == "ensemble":
            members = self.recipe.get("members")
            if not isinstance(members, list) or len(members) < 2 or not all(isinstance(m, str) for m in members):
                raise ValueError("architecture 'ensemble' needs recipe.members: a list of at least two model names")
            return self
        wanted = ("file", "weights") if self.architecture == "file" else ()
        missing = [key for key in wanted if key not in self.recipe]
        if missing:
            raise ValueError(
                f"architecture 'file' needs recipe.{' and recipe.'.join(missing)}: paths from the config's folder"
            )
        if self.architecture != "file" and (self.head is None or self.dataset is None):
            raise ValueError("a trained architecture needs head and dataset")
        return self


class DiagnosticEntry(Entry):
    """A measurement around single images, with its settings and the label that tables print."""

    method: str
    settings: dict[str, Any] = Field(default_factory=dict)
    label: str = ""


class ImagesEntry(Entry):
    """One split of a user's own data: a Parquet file in the image format, its role and (for labels) its classes."""

    file: str
    role: Role = "id"
    classes: int | None = None


class CatalogueSection(BaseModel):
    """A user's additions, under ``catalogue`` in a config; same form as the built-in files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threats: dict[str, Threat] = Field(default_factory=dict)
    attacks: dict[str, AttackEntry] = Field(default_factory=dict)
    defenses: dict[str, DefenseEntry] = Field(default_factory=dict)
    networks: dict[str, NetworkEntry] = Field(default_factory=dict)
    scores: dict[str, ScoreEntry] = Field(default_factory=dict)
    models: dict[str, ModelEntry] = Field(default_factory=dict)
    diagnostics: dict[str, DiagnosticEntry] = Field(default_factory=dict)
    images: dict[str, ImagesEntry] = Field(default_factory=dict)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, (str, int)) and not isinstance(value, bool) else value


class Block(BaseModel):
    """A cross product of names with a sample count. See config/README.md for every key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, description="a name for messages")
    images: tuple[str, ...] = Field(description="image sets, <dataset>.<split>")
    shifts: tuple[str, ...] = Field(default=(NONE,), description="none or <shift>-<severity>")
    n: int | None = Field(default=None, ge=1, description="how many samples (a fixed nested subset); all where absent")
    models: tuple[str, ...] = Field(description="models that judge")
    seeds: Literal["all"] | tuple[int, ...] | None = Field(
        default=None, description="training seeds; the named one where absent"
    )
    attacks: tuple[str, ...] = (NONE,)
    threats: tuple[str, ...] = (NONE,)
    attack_seeds: tuple[int, ...] = (0,)
    mode: Literal["search", "full"] = "full"
    iterates: tuple[Literal["best", "last"], ...] = ("best",)
    sources: tuple[str, ...] = Field(
        default=(), description="models that are attacked instead of the judging ones (transfer)"
    )
    defenses: tuple[str, ...] = (NONE,)
    through: Literal["all"] | tuple[str, ...] = Field(
        default=(), description="backward rules by which attacks see the defense"
    )
    made_behind: tuple[str, ...] = Field(
        default=(), description="defenses that the attack sees instead of the judged ones"
    )
    role: Literal["ood"] | Role | None = Field(default=None, description="asserts the role of the image sets")
    scores: Literal["all"] | tuple[str, ...] = ()
    batch: str | None = Field(
        default=None, pattern=r"^[a-z][a-z0-9_]*$", description="execution choice: which job makes these cells"
    )

    @field_validator(
        "images",
        "shifts",
        "models",
        "attacks",
        "threats",
        "attack_seeds",
        "iterates",
        "sources",
        "defenses",
        "made_behind",
        mode="before",
    )
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("through", "scores", "seeds", mode="before")
    @classmethod
    def _as_list_or_all(cls, value: Any) -> Any:
        return value if value == "all" else _listed(value)

    @field_validator("images", "models", "attacks", "threats", "defenses", "shifts", "iterates", "attack_seeds")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("an empty list makes the block select nothing: name at least one, or leave the key out")
        if len(set(value)) != len(value):
            raise ValueError(f"duplicate name in {list(value)}")
        return value


class DiagnosticBlock(BaseModel):
    """A cross product of names for measurements around single images. See config/README.md for every key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, description="a name for messages")
    images: tuple[str, ...] = Field(description="image sets with labels, <dataset>.<split>")
    n: int | None = Field(default=None, ge=1, description="how many samples (a fixed nested subset); all where absent")
    models: tuple[str, ...]
    diagnostics: tuple[str, ...] = Field(description="what to measure")
    threats: tuple[str, ...] = Field(description="the budgets at which to measure")
    defenses: tuple[str, ...] = (NONE,)
    through: Literal["all"] | tuple[str, ...] = Field(
        default=("identity",), description="backward rules by which the defense is seen"
    )

    @field_validator("images", "models", "diagnostics", "threats", "defenses", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("through", mode="before")
    @classmethod
    def _as_list_or_all(cls, value: Any) -> Any:
        return value if value == "all" else _listed(value)

    @field_validator("images", "models", "diagnostics", "threats", "defenses", "through")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == "all":
            return value
        if not value:
            raise ValueError("an empty list makes the block select nothing: name at least one, or leave the key out")
        if len(set(value)) != len(value):
            raise ValueError(f"duplicate name in {list(value)}")
        return value


class CertifiedBlock(BaseModel):
    """A cross product of names for certificates by randomised smoothing. See config/README.md for every key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, description="a name for messages")
    images: tuple[str, ...] = Field(description="image sets with labels, <dataset>.<split>")
    n: int | None = Field(default=None, ge=1, description="how many samples (a fixed nested subset); all where absent")
    models: tuple[str, ...] = Field(description="base classifiers, best trained with noise")
    defenses: tuple[str, ...] = Field(default=(NONE,), description="denoisers between the noise and the model")
    sigmas: tuple[float, ...] = Field(description="standard deviations of the noise, as fractions of the pixel range")
    choose_draws: int = Field(default=100, ge=1, description="n0: draws that choose the class")
    draws: int = Field(default=1000, ge=1, description="n: fresh draws that certify it")
    alpha: float = Field(default=0.001, gt=0, lt=0.5, description="allowed probability of a wrong certificate")
    looks: tuple[int, ...] = Field(
        default=(), description="draws after which to look, each at alpha / number of looks; the last is draws"
    )

    @field_validator("images", "models", "defenses", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("sigmas", mode="before")
    @classmethod
    def _as_numbers(cls, value: Any) -> Any:
        return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("images", "models", "defenses", "sigmas")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if not value:
            raise ValueError("an empty list makes the block select nothing: name at least one, or leave the key out")
        if len(set(value)) != len(value):
            raise ValueError(f"duplicate in {list(value)}")
        return value

    @field_validator("sigmas")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for sigma in value:
            if not 0 < sigma <= 4:
                raise ValueError(f"sigma is a fraction of the pixel range, in (0, 4], got {sigma}")
        return value

    @model_validator(mode="after")
    def _looks_rise(self) -> CertifiedBlock:
        if self.looks and (list(self.looks) != sorted(set(self.looks)) or self.looks[-1] != self.draws):
            raise ValueError(f"looks must rise and end with draws ({self.draws}), got {list(self.looks)}")
        return self


class RunConfig(BaseModel):
    """A run: what to select, and how to summarise it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="run", description="printed in the report")
    catalogue: CatalogueSection = Field(default_factory=CatalogueSection)
    scores: tuple[str, ...] = Field(default=(), description="score columns of the run, in this order")
    fit_on: Literal["train", "fit"] = Field(
        default="train", description="the split on which scores are fitted; never test"
    )
    replicates: int = Field(default=1000, ge=100, le=100_000, description="bootstrap replicates of the intervals")
    batch_size: int = Field(default=250, ge=1, description="images at once; changes float rounding only")
    group_seeds: bool = Field(default=True, description="one observe and score job for all training seeds of a model")
    on_bad_image: Literal["error", "skip"] = "error"
    verify_parts_up_to_mb: int = Field(
        default=4000, ge=0, description="check the digests of finished parts at every start"
    )
    blocks: tuple[Block, ...] = Field(min_length=1)
    diagnostics: tuple[DiagnosticBlock, ...] = Field(default=(), description="measurements around single images")
    certified: tuple[CertifiedBlock, ...] = Field(default=(), description="certificates by randomised smoothing")
    certify_shards: int = Field(
        default=1, ge=1, le=1000, description="jobs among which the samples of a certificate are shared"
    )


@dataclass(frozen=True)
class ModelChoice:
    """A model by name: family and training seed."""

    name: str
    family: str
    seed: int
    entry: ModelEntry


@dataclass(frozen=True)
class AttackMember:
    """One method of an attack: its name in the catalogue, its card and its complete settings."""

    name: str
    method: str
    card: MethodCard
    settings: dict[str, Any]

    def constant(self, name: str, default: Any) -> Any:
        """A literal class constant of the method."""
        return self.card.constants.get(name, default)

    @property
    def verdict(self) -> Verdict | None:
        """Of a foreign attack what is known of its class; a class without a verdict is refused when it is built."""
        if self.method != "torchattacks":
            return None
        from windtunnel.attacks._torchattacks_audit import VERDICTS

        return VERDICTS.get(str(self.settings.get("class_name")))

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that it is defined for."""
        return self.verdict.norms if self.verdict else tuple(self.constant("norms", ("linf",)))

    @property
    def uses_gradient(self) -> bool:
        """Whether its direction comes from a gradient."""
        return self.verdict.uses_gradient if self.verdict else bool(self.constant("uses_gradient", True))

    @property
    def queries(self) -> int:
        """Queries per sample: the product of the settings that the method's ``bill`` names (null counts as 1)."""
        if self.verdict:
            length = self.settings.get("arguments", {}).get(self.verdict.length)
            return length if isinstance(length, int) else 10
        return math.prod(int(self.settings[name] or 1) for name in self.constant("bill", ()))


@dataclass(frozen=True)
class AttackChoice:
    """An attack by name: one member, or a battery's."""

    name: str
    entry: AttackEntry
    members: tuple[AttackMember, ...]

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that every member is defined for."""
        return tuple(norm for norm in ("linf", "l2") if all(norm in m.norms for m in self.members))

    @property
    def needs_defense(self) -> bool:
        """Whether any member attacks the defense itself, so that it must go through one."""
        return any(m.constant("needs_defense", False) for m in self.members)

    @property
    def uses_gradient(self) -> bool:
        """Whether any member asks for gradients."""
        return any(m.uses_gradient for m in self.members)


@dataclass(frozen=True)
class NetworkChoice:
    """The trained part of a defense by name: family, integer and training seed, with card and complete settings."""

    name: str
    family: str
    seed: int
    entry: NetworkEntry
    card: MethodCard
    settings: dict[str, Any]


@dataclass(frozen=True)
class DefenseChoice:
    """A defense by name: family, strength, rounds, with its method's card and complete settings."""

    name: str
    family: str
    rounds: int
    entry: DefenseEntry
    card: MethodCard
    settings: dict[str, Any]
    stages: tuple[DefenseChoice, ...] = ()
    network: str | None = None

    @property
    def codecs(self) -> tuple[str, ...]:
        """Pillow's names of the codecs that it runs: its own, or those of its stages."""
        own = self.card.constants.get("pillow_feature")
        return tuple(sorted({*([own] if own else []), *(c for stage in self.stages for c in stage.codecs)}))

    @property
    def networks(self) -> tuple[str, ...]:
        """The trained parts that this defense carries: its own, or those of its stages."""
        own = (self.network,) if self.network else ()
        return tuple(dict.fromkeys((*own, *(n for stage in self.stages for n in stage.networks))))

    @property
    def rules(self) -> tuple[str, ...]:
        """The backward rules; with one round ``surrogate-n`` is ``surrogate-1`` and only that is listed.

        A composition has every combination of its stages' rules, joined by ``+``.
        """
        if self.stages:
            stages = [dataclasses.replace(s, rounds=self.rounds).rules for s in self.stages]
            return tuple("+".join(names) for names in itertools.product(*stages))
        rules = tuple(self.card.constants.get("rules", ("identity", "blur")))
        return tuple(r for r in rules if r != "surrogate-n") if self.rounds == 1 else rules

    @property
    def allowed_rules(self) -> tuple[str, ...]:
        """Every rule that a block may name: the defense's own, the control ``noise`` and the learned ``unet``."""
        rules = (*self.rules, "surrogate-n") if "surrogate-1" in self.rules else self.rules
        extra = (r for r in EXTRA_RULES if not (self.is_random and r == LEARNED))
        return tuple(dict.fromkeys((*rules, *extra)))

    def rules_named(self, wanted: str | tuple[str, ...]) -> tuple[str, ...]:
        """The rules that a block means: ``all`` or a list; with one round ``surrogate-n`` is ``surrogate-1``."""
        rules = self.rules if isinstance(wanted, str) else wanted
        if self.rounds == 1:
            rules = tuple("+".join("surrogate-1" if r == "surrogate-n" else r for r in n.split("+")) for n in rules)
        return tuple(dict.fromkeys(rules))

    def is_generic(self, rule: str) -> bool:
        """Whether a backward rule knows nothing of this defense: robust accuracy found so alone is an upper bound.

        A composition's rule knows it only if every part does.
        """
        if self.stages:
            parts = rule.split("+")
            if len(parts) == len(self.stages):
                return any(stage.is_generic(part) for stage, part in zip(self.stages, parts, strict=True))
        return rule in self.card.constants.get("generic_rules", ("identity", "blur", "jpeg"))

    @property
    def is_random(self) -> bool:
        """Whether two calls may differ."""
        return bool(self.card.constants.get("is_random", False))


@dataclass(frozen=True)
class SetChoice:
    """An image set by name, with its role and whether a user's file holds it."""

    name: str
    dataset: str
    split: str
    role: str
    n: int | None
    file: str | None
    classes: int | None
    canvas: bool = False


class Catalogue:
    """Built-in and user entries, and the grammar of names. Every ``resolve_*`` raises LookupError with a remedy."""

    def __init__(self, user: CatalogueSection | None = None, base: Path | None = None):
        built_in = builtin()
        self.base = base or Path.cwd()
        problems: list[str] = []
        self.sections: dict[str, dict[str, Any]] = {}
        for section in CatalogueSection.model_fields:
            own = getattr(user, section) if user else {}
            known = getattr(built_in, section)
            for name in own:
                if name in known:
                    problems.append(
                        f"catalogue.{section}.{name}: duplicate name, the built-in catalogue has it; choose another"
                    )
                if section != "images" and not NAME.match(name):
                    problems.append(f"catalogue.{section}.{name}: names are lower-case words joined by hyphens")
                if section == "images" and not re.match(r"^[a-z0-9_]+\.[a-z0-9_]+$", name):
                    problems.append(f"catalogue.images.{name}: an image set is named <dataset>.<split>")
            self.sections[section] = {**known, **own}
        if problems:
            raise ConfigError(problems)

    def names(self, section: str) -> list[str]:
        """Known names of a section, sorted."""
        return sorted(self.sections[section])

    def _get(self, section: str, name: str, what: str, extra: str = "") -> Any:
        if name in self.sections[section]:
            return self.sections[section][name]
        known = self.names(section)
        raise LookupError(f"unknown {what} '{name}'{did_you_mean(name, known)} Known: {', '.join(known)}{extra}")

    def threat(self, name: str) -> Threat:
        """A threat by name."""
        return self._get("threats", name, "threat")

    def attack(self, name: str) -> AttackChoice:
        """An attack by name, with the cards and complete settings of its one method or of a battery's members."""
        entry: AttackEntry = self._get("attacks", name, "attack")
        members = []
        for member in entry.members or (name,):
            found: AttackEntry = self._get("attacks", member, "attack")
            if found.method is None:
                raise LookupError(f"battery '{name}': its member '{member}' is a battery; name the attacks themselves")
            if entry.members and found.eot != 1:
                raise LookupError(f"battery '{name}': its member '{member}' states eot; only the battery may")
            card = self._card("attack", found.method)
            settings = self._settings(f"attack '{member}'", card, found.settings)
            members.append(AttackMember(member, found.method, card, settings))
        return AttackChoice(name, entry, tuple(members))

    def diagnostic(self, name: str) -> tuple[DiagnosticEntry, MethodCard, dict[str, Any]]:
        """A diagnostic's entry, card and complete settings."""
        entry = self._get("diagnostics", name, "diagnostic")
        card = self._card("diagnostic", entry.method)
        return entry, card, self._settings(f"diagnostic '{name}'", card, entry.settings)

    def members(self, name: str) -> list[str]:
        """The single models behind a model's name: an ensemble's members, else the model itself."""
        choice = self.model(name)
        if choice.entry.architecture != "ensemble":
            return [choice.name]
        found = []
        for member in choice.entry.recipe["members"]:
            single = self.model(member)
            if single.entry.architecture == "ensemble":
                raise LookupError(
                    f"ensemble '{name}': its member '{member}' is an ensemble; name the models themselves"
                )
            found.append(single.name)
        if len(set(found)) != len(found):
            raise LookupError(f"ensemble '{name}': a model stands twice among its members {found}")
        return found

    def score(self, name: str) -> tuple[ScoreEntry, MethodCard, dict[str, Any]]:
        """A score's entry, card and complete settings."""
        entry = self._get("scores", name, "score")
        card = self._card("score", entry.method)
        return entry, card, self._settings(f"score '{name}'", card, entry.settings)

    def model(self, name: str) -> ModelChoice:
        """A model by name, seed included."""
        if name in self.sections["models"]:
            entry = self.sections["models"][name]
            return ModelChoice(name, name, entry.seeds[0], entry)
        match = SEEDED.match(name)
        if match and match["family"] in self.sections["models"]:
            entry = self.sections["models"][match["family"]]
            seed = int(match["seed"])
            if seed in entry.seeds:
                canonical = seeded_name(match["family"], seed, entry)
                return ModelChoice(canonical, match["family"], seed, entry)
            raise LookupError(f"model '{match['family']}' has no training seed {seed}; it has {list(entry.seeds)}")
        return self._get("models", name, "model", " (a training seed is named <model>-s<seed>)")

    def defense(self, name: str) -> DefenseChoice:
        """A defense by name: ``jpeg-50-x10`` is ten rounds of quality 50."""
        rest, rounds = name, 1
        match = ROUNDS.match(name)
        if match and name not in self.sections["defenses"]:
            rest, rounds = match["rest"], int(match["rounds"])
            if rounds < 2:
                raise LookupError(f"defense '{name}': '-x<rounds>' starts at 2; write '{rest}'")
        if THEN in rest and rest not in self.sections["defenses"]:
            return self._composition(name, rest.split(THEN), rounds)
        whole, seed = rest, None
        match = SEEDED.match(rest)
        if match and rest not in self.sections["defenses"]:
            rest, seed = match["family"], int(match["seed"])
        family, value = rest, None
        if rest not in self.sections["defenses"]:
            match = STRENGTH.match(rest)
            if match:
                family, value = match["rest"], int(match["value"])
        if seed is not None:
            self._check_seed(name, whole, rest, family, seed)
        entry: DefenseEntry = self._get("defenses", family, "defense", "; grammar: <family>-<integer>[-x<rounds>]")
        settings = dict(entry.settings)
        if entry.argument is None and value is not None:
            raise LookupError(f"defense '{name}': '{family}' takes no number; write '{family}'")
        if entry.argument is not None:
            if value is None:
                raise LookupError(
                    f"defense '{name}' needs a number: {family}-<{entry.argument}>, {entry.minimum} to {entry.maximum}"
                )
            if not entry.minimum <= value <= entry.maximum:
                raise LookupError(f"defense '{name}': {entry.argument} must be {entry.minimum} to {entry.maximum}")
            if (value - entry.minimum) % entry.step:
                raise LookupError(
                    f"defense '{name}': {entry.argument} goes from {entry.minimum} in steps of {entry.step}"
                )
            settings[entry.argument] = value if entry.scale == 1.0 else round(value * entry.scale, 9)
        card = self._card("defense", entry.method)
        if feature := card.constants.get("pillow_feature"):
            from windtunnel.defenses._codec import missing_codec

            if reason := missing_codec(str(feature)):
                raise LookupError(f"defense '{name}': {reason}")
        learned = bool(card.constants.get("is_learned", False))
        if learned != (entry.network is not None):
            raise LookupError(
                f"defense '{name}': '{entry.method}' carries a trained network, so its entry needs network: <name>"
                if learned
                else f"defense '{name}': '{entry.method}' carries no trained network; leave network out"
            )
        network = self._network_of(entry, value, seed) if learned else None
        if network and entry.argument not in card.types and self.network(network).entry.argument == entry.argument:
            settings.pop(str(entry.argument), None)  # the integer decides the weights, not what is done with them
        settings = self._settings(f"defense '{name}'", card, settings)
        return DefenseChoice(name, family, rounds, entry, card, settings, network=network)

    def _check_seed(self, name: str, whole: str, rest: str, family: str, seed: int) -> None:
        """A seed needs a trained family; the first seed has no suffix, or one network would be two defenses."""
        entry: DefenseEntry = self._get("defenses", family, "defense")
        if entry.network is None:
            raise LookupError(f"defense '{whole}': '{family}' is not trained and has no seeds; write '{rest}'")
        if seed == self._get("networks", entry.network, "network").seeds[0]:
            raise LookupError(f"defense '{name}': the first training seed has no suffix; write '{rest}'")

    def _network_of(self, entry: DefenseEntry, value: int | None, seed: int | None) -> str:
        """The name of the network that a learned defense carries, checked."""
        wanted: NetworkEntry = self._get("networks", entry.network or "", "network")
        name = f"{entry.network}-{value}" if wanted.argument is not None and value is not None else str(entry.network)
        seed = wanted.seeds[0] if seed is None else seed
        return self.network(name if seed == wanted.seeds[0] else f"{name}-s{seed}").name

    def network(self, name: str) -> NetworkChoice:
        """The trained part of a defense by name: ``hyperprior-2-s1`` is the second rate, training seed 1."""
        rest, seed = name, None
        match = SEEDED.match(name)
        if match and name not in self.sections["networks"]:
            rest, seed = match["family"], int(match["seed"])
        family, value = rest, None
        match = STRENGTH.match(rest)
        if match and rest not in self.sections["networks"]:
            family, value = match["rest"], int(match["value"])
        entry: NetworkEntry = self._get("networks", family, "network")
        if (entry.argument is None) != (value is None):
            wanted = f"{family}-<{entry.argument}>" if entry.argument else family
            raise LookupError(f"network '{name}': write '{wanted}'")
        seed = entry.seeds[0] if seed is None else seed
        if seed not in entry.seeds:
            raise LookupError(f"network '{family}' has no training seed {seed}; it has {list(entry.seeds)}")
        settings = dict(entry.settings)
        if entry.argument is not None:
            settings[entry.argument] = value if entry.scale == 1.0 else round(value * entry.scale, 9)
        card = self._card("network", entry.method)
        for teacher in entry.teachers:
            if self.model(teacher).entry.architecture == "ensemble":
                raise LookupError(f"network '{name}': its teacher '{teacher}' is an ensemble; name single models")
        least = int(card.constants.get("teachers", 0))
        if entry.dataset is not None and len(entry.teachers) < least:
            raise LookupError(
                f"network '{name}': '{entry.method}' needs {least} teachers, it has {list(entry.teachers)}"
            )
        return NetworkChoice(name, family, seed, entry, card, self._settings(f"network '{name}'", card, settings))

    def _composition(self, name: str, parts: list[str], rounds: int) -> DefenseChoice:
        """``jpeg-50-then-median-3``: one defense after the other; ``-x<rounds>`` at the end repeats the whole."""
        stages = tuple(self.defense(part) for part in parts)
        for part, stage in zip(parts, stages, strict=True):
            if stage.rounds > 1:
                raise LookupError(f"defense '{name}': rounds stand at the end and repeat the whole, not '{part}' alone")
            if stage.is_random:
                raise LookupError(f"defense '{name}': the random '{part}' cannot be part of a composition")
        libraries = sorted({lib for s in stages for lib in s.card.constants.get("libraries", ())})
        card = MethodCard(
            kind="defense", name="chain", path=FOLDER, class_name="Chain", docstring="", settings={}, types={},
            required=(), constants={"libraries": tuple(libraries), "algorithm_version": 1},
        )  # fmt: skip
        settings = {
            "stages": [
                {
                    "method": s.card.name, "settings": s.settings, "algorithm_version": s.card.algorithm_version,
                    **({"network": s.network} if s.network else {}),
                }
                for s in stages
            ]
        }  # fmt: skip
        cost = sum(s.entry.milliseconds_per_image for s in stages)
        entry = DefenseEntry(method=stages[0].entry.method, milliseconds_per_image=cost)
        return DefenseChoice(name, THEN.join(s.family for s in stages), rounds, entry, card, settings, stages)

    def images(self, name: str) -> SetChoice:
        """An image set by name."""
        if name in self.sections["images"]:
            own: ImagesEntry = self.sections["images"][name]
            dataset, split = name.split(".")
            return SetChoice(name, dataset, split, own.role, None, own.file, own.classes)
        dataset, _, split = name.partition(".")
        if dataset not in images.DATASETS:
            known = sorted({*images.DATASETS, *(n.split(".")[0] for n in self.sections["images"])})
            raise LookupError(
                f"unknown data set '{dataset}' in '{name}'{did_you_mean(dataset, known)} Known: {', '.join(known)}"
            )
        splits = images.splits(dataset)
        if split not in splits:
            raise LookupError(
                f"unknown split in '{name}'{did_you_mean(split, list(splits))} Known: {', '.join(splits)}"
            )
        info = splits[split]
        return SetChoice(name, dataset, split, info.role, info.n, None, images.CLASSES.get(dataset), info.canvas)

    def _card(self, kind: str, method: str) -> MethodCard:
        try:
            return registry.card(kind, method, self.base)
        except SyntaxError as error:
            raise LookupError(f"the {kind} file '{method}' does not parse: {error}") from error

    @staticmethod
    def _settings(what: str, card: MethodCard, given: dict[str, Any]) -> dict[str, Any]:
        known = list(card.types)
        for key in given:
            if key not in card.types:
                raise LookupError(
                    f"{what}: unknown setting '{key}'{did_you_mean(key, known)} Known: {', '.join(known) or 'none'}"
                )
        missing = [key for key in card.required if key not in given]
        if missing:
            raise LookupError(f"{what}: missing settings {missing}")
        return {**card.settings, **given}


def seeded_name(family: str, seed: int, entry: ModelEntry) -> str:
    """The one name of a model with a training seed: the first seed has no suffix."""
    return family if seed == entry.seeds[0] else f"{family}-s{seed}"


@cache
def builtin() -> CatalogueSection:
    """The built-in catalogue, from ``windtunnel/catalogue/*.yaml``."""
    merged: dict[str, dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.load(path.read_text(), Loader=_YAML) or {}
        for section, entries in content.items():
            target = merged.setdefault(section, {})
            for name in entries or {}:
                if name in target:
                    raise ConfigError([f"{path.name}: {section}.{name}: duplicate name"])
            target.update(entries or {})
    try:
        return CatalogueSection.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(problems_of(error, "windtunnel/catalogue")) from error


def read_config(config: dict[str, Any], source: str = "config") -> RunConfig:
    """A validated run, or ConfigError with every problem found by type and key."""
    try:
        return RunConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError(problems_of(error, source)) from error


def readable_part(config: dict[str, Any]) -> tuple[RunConfig, list[int]] | None:
    """What can be read of a config with mistakes, and the places of its readable blocks; null if nothing can.

    So that wrong names are reported beside wrong keys: unknown top-level keys and unreadable blocks are left out.
    """
    kept = {key: value for key, value in config.items() if key in RunConfig.model_fields}
    blocks, places = [], []
    for place, block in enumerate(config.get("blocks") or []):
        try:
            blocks.append(Block.model_validate(block))
            places.append(place)
        except ValidationError:
            continue
    try:
        return RunConfig.model_validate({**kept, "blocks": blocks}), places
    except ValidationError:
        return None


def problems_of(error: ValidationError, source: str) -> list[str]:
    """pydantic's findings as sentences: file, path inside it, what was given, what is allowed."""
    found = []
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(
            other["loc"][: len(item["loc"])] == item["loc"] for other in items if other is not item
        ):
            continue  # an invalid item was dropped: its own line says why
        path = ""
        for piece in item["loc"]:
            if isinstance(piece, str) and piece.startswith(("literal[", "tuple[", "function-")):
                continue
            path += f"[{piece}]" if isinstance(piece, int) else f"{'.' if path else ''}{piece}"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _keys_at(item["loc"])
            message = f"unknown key{did_you_mean(str(item['loc'][-1]), known)} Known: {', '.join(known)}"
        elif item["type"] not in ("missing", "value_error"):
            message = f"{message}, got {item['input']!r}"
        found.append(f"{source}: {path or 'top level'}: {message}")
    return found


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    kinds: dict[str, type[BaseModel]] = {
        "threats": Threat, "attacks": AttackEntry, "defenses": DefenseEntry, "scores": ScoreEntry,
        "models": ModelEntry, "images": ImagesEntry, "diagnostics": DiagnosticEntry, "networks": NetworkEntry,
    }  # fmt: skip
    pieces = [p for p in location if isinstance(p, str)]
    if pieces[:1] == ["diagnostics"]:
        return list(DiagnosticBlock.model_fields)
    if pieces[:1] == ["certified"]:
        return list(CertifiedBlock.model_fields)
    if "blocks" in pieces:
        return list(Block.model_fields)
    if "catalogue" in pieces or any(p in kinds for p in pieces[:-1]):
        for piece in pieces[:-1]:
            if piece in kinds:
                return list(kinds[piece].model_fields)
        return list(CatalogueSection.model_fields)
    return list(RunConfig.model_fields)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config, for editors: kept in config/config.schema.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}
