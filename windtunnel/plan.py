"""Config -> cells -> what one job must make. Pure, no torch; the same function in the rule and in its script.

``Plan.of(config)`` validates everything, expands the blocks into the set of cells, and answers, for one job, which
parts it must make from what. ``digest`` of that answer is the one string that rules put into ``params``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from windtunnel import RESOURCES, __version__, images
from windtunnel.catalogue import (
    BARE,
    LEARNED,
    NONE,
    OOD_ROLES,
    AttackMember,
    Block,
    Catalogue,
    CertifiedBlock,
    ConfigError,
    DefenseChoice,
    DiagnosticBlock,
    ModelChoice,
    RunConfig,
    SetChoice,
    read_config,
    readable_part,
)
from windtunnel.models.folder import CARD, load_card
from windtunnel.models.spec import ALGORITHM_VERSION as MODELS_VERSION
from windtunnel.models.spec import ModelSpec, data_identity, recipe_digest
from windtunnel.registry import did_you_mean
from windtunnel.store import digest, file_digest, short_id

CLEAN = "clean"


@dataclass(frozen=True)
class AttackKey:
    """What identifies a set of attacked images, apart from how many."""

    images: str
    shift: str
    model: str
    attack: str
    threat: str
    seed: int
    mode: str
    defense: str
    rule: str


@dataclass(frozen=True)
class Cell:
    """One row of the cells table: which images, seen by which model, behind which defense."""

    images: str
    shift: str
    model: str
    defense: str
    attack: AttackKey | None
    iterate: str

    @property
    def through(self) -> str:
        """The backward rule, ``bare`` for an attack that saw no defense, ``none`` without an attack."""
        return self.attack.rule if self.attack else NONE


@dataclass(frozen=True)
class DiagnosticKey:
    """One measurement: which diagnostic, on which images, of which pipeline, at which budget."""

    images: str
    model: str
    defense: str
    rule: str
    diagnostic: str
    threat: str


@dataclass(frozen=True)
class CertifiedKey:
    """One certificate: which smoothed classifier (a denoiser may stand between noise and model), on which images."""

    images: str
    model: str
    defense: str
    sigma: float
    choose_draws: int
    draws: int
    alpha: float
    looks: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """A cell with what blocks ask of it beyond its identity."""

    cell: Cell
    n: int | None
    scores: tuple[str, ...]
    batch: str


class Plan:
    """A validated run, expanded. Build with ``Plan.of``."""

    def __init__(self, run: RunConfig, catalogue: Catalogue, source: str):
        self.run = run
        self.catalogue = catalogue
        self.source = source
        self._wanted: dict[Cell, Wanted] = {}
        self._attack_n: dict[AttackKey, int | None] = {}
        self._attack_batch: dict[AttackKey, str] = {}
        self._diagnostics: dict[DiagnosticKey, int | None] = {}
        self._certified: dict[CertifiedKey, int | None] = {}
        self._network_digests: dict[str, str] = {}

    @classmethod
    def of(cls, config: dict[str, Any], *, source: str = "config", base: Path | None = None) -> Plan:
        """Read, check and expand a config. Raises ConfigError listing every problem."""
        problems: list[str] = []
        try:
            run, places = read_config(config, source), None
        except ConfigError as error:
            problems = error.problems
            readable = readable_part(config)
            if readable is None:
                raise
            run, places = readable
        try:
            catalogue = Catalogue(run.catalogue, base)
        except ConfigError as error:
            raise ConfigError([*problems, *(f"{source}: {p}" for p in error.problems)]) from error
        plan = cls(run, catalogue, source)
        problems += [f"{source}: {p}" for p in plan._expand(places)]
        if problems:
            raise ConfigError(problems)
        return plan

    # ------------------------------------------------------------------------------------------------------- expansion

    def _expand(self, places: list[int] | None = None) -> list[str]:
        """Check and expand every block; ``places`` are the blocks' numbers in the file where some could not be read."""
        problems: list[str] = []
        for i, name in enumerate(self.run.scores):
            self._lookup(problems, f"scores[{i}]", self.catalogue.score, name)
        if len(set(self.run.scores)) != len(self.run.scores):
            problems.append(f"scores: duplicate name in {list(self.run.scores)}")
        for name in self.run.catalogue.attacks:
            self._lookup(problems, f"catalogue.attacks.{name}", self.catalogue.attack, name)
        for name in self.run.catalogue.models:
            self._lookup(problems, f"catalogue.models.{name}", self.catalogue.members, name)
        for name, entry in self.run.catalogue.networks.items():
            if entry.argument is None:
                self._lookup(problems, f"catalogue.networks.{name}", self.catalogue.network, name)
        for section, kind in (
            ("defenses", "defense"), ("scores", "score"), ("diagnostics", "diagnostic"), ("networks", "network"),
        ):  # fmt: skip
            for name, entry in getattr(self.run.catalogue, section).items():
                self._lookup(problems, f"catalogue.{section}.{name}.method", self.catalogue._card, kind, entry.method)
        names = [b.name for b in self.run.blocks if b.name]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(f"blocks: duplicate name '{name}'")
        for index, block in enumerate(self.run.blocks):
            here = f"blocks[{places[index] if places else index}]" + (f" ({block.name})" if block.name else "")
            before = len(problems)
            self._check_block(problems, here, block)
            if len(problems) == before:
                count = 0
                for wanted in self._cells_of(problems, here, block):
                    count += 1
                    self._add(wanted)
                if count == 0 and len(problems) == before:
                    problems.append(
                        f"{here}: selects nothing; check attacks against threats and defenses against through"
                    )
        for index, block in enumerate(self.run.diagnostics):
            self._add_diagnostics(problems, f"diagnostics[{index}]" + (f" ({block.name})" if block.name else ""), block)
        for index, block in enumerate(self.run.certified):
            self._add_certified(problems, f"certified[{index}]" + (f" ({block.name})" if block.name else ""), block)
        if not problems:
            for name in self.networks:
                self._check_network(problems, name)
            self._check_teachers(problems)
        for (dataset, defense), _ in self.surrogates.items():
            self._lookup(problems, f"the learned surrogate of '{defense}'", self.surrogate_set, dataset)
        return problems

    def _add_diagnostics(self, problems: list[str], here: str, block: DiagnosticBlock) -> None:
        catalogue, before = self.catalogue, len(problems)
        for key, resolve in (
            ("images", catalogue.images), ("models", catalogue.model), ("diagnostics", catalogue.diagnostic),
            ("threats", catalogue.threat),
        ):  # fmt: skip
            for i, name in enumerate(getattr(block, key)):
                self._lookup(problems, f"{here}.{key}[{i}]", resolve, name)
        for i, name in enumerate(block.defenses):
            choice = self._lookup(problems, f"{here}.defenses[{i}]", catalogue.defense, name) if name != NONE else None
            for j, rule in enumerate(block.through if choice and block.through != "all" else ()):
                if rule not in choice.allowed_rules:
                    known = ", ".join(choice.allowed_rules)
                    problems.append(f"{here}.through[{j}]: '{name}' has no backward rule '{rule}'. It has: {known}")
        if len(problems) > before:
            return
        for i, name in enumerate(block.images):
            if catalogue.images(name).role not in ("id", "shifted"):
                problems.append(f"{here}.images[{i}]: '{name}' has no labels to measure against")
        for i, name in enumerate(block.models):
            if len(catalogue.members(name)) > 1:
                problems.append(f"{here}.models[{i}]: '{name}' is an ensemble; name its members")
        for i, name in enumerate(block.diagnostics):
            norms = catalogue.diagnostic(name)[1].constants.get("norms", ("linf", "l2"))
            for threat in block.threats:
                if catalogue.threat(threat).norm not in norms:
                    problems.append(
                        f"{here}.diagnostics[{i}]: '{name}' is defined for {', '.join(norms)}, not '{threat}'"
                    )
        if len(problems) > before:
            return
        for images_name in block.images:
            for model in block.models:
                for defense in block.defenses:
                    for rule in self._diagnostic_rules(block, defense):
                        for diagnostic in block.diagnostics:
                            for threat in block.threats:
                                key = DiagnosticKey(
                                    images_name, catalogue.model(model).name, defense, rule, diagnostic, threat
                                )
                                old = self._diagnostics.get(key, block.n)
                                larger = None if old is None or block.n is None else max(old, block.n)
                                self._diagnostics[key] = larger

    def _add_certified(self, problems: list[str], here: str, block: CertifiedBlock) -> None:
        catalogue, before = self.catalogue, len(problems)
        for i, name in enumerate(block.images):
            found = self._lookup(problems, f"{here}.images[{i}]", catalogue.images, name)
            if found and found.role not in ("id", "shifted"):
                problems.append(f"{here}.images[{i}]: '{name}' has no labels to certify against")
        for i, name in enumerate(block.models):
            self._lookup(problems, f"{here}.models[{i}]", catalogue.model, name)
            if len(self._lookup([], "", catalogue.members, name) or ()) > 1:
                problems.append(f"{here}.models[{i}]: '{name}' is an ensemble; name its members")
        for i, name in enumerate(block.defenses):
            choice = self._lookup(problems, f"{here}.defenses[{i}]", catalogue.defense, name) if name != NONE else None
            if choice and choice.is_random:
                problems.append(f"{here}.defenses[{i}]: '{name}' throws its own dice; the certificate has its noise")
        if len(problems) > before:
            return
        for images_name in block.images:
            for model in block.models:
                for defense in block.defenses:
                    for sigma in block.sigmas:
                        key = CertifiedKey(
                            images_name, catalogue.model(model).name, defense, sigma, block.choose_draws, block.draws,
                            block.alpha, block.looks,
                        )  # fmt: skip
                        old = self._certified.get(key, block.n)
                        self._certified[key] = None if old is None or block.n is None else max(old, block.n)

    def _check_network(self, problems: list[str], name: str) -> None:
        """A network whose file of weights is missing, or whose data set cannot train it, is named before any job."""
        choice = self.catalogue.network(name)
        for library in choice.card.constants.get("libraries", ()):
            if installed(library) is None:
                remedy = choice.card.constants.get("install", f"pip install {library}")
                problems.append(f"network '{name}' needs the package '{library}': {remedy}")
        if choice.entry.weights is not None:
            path = self.catalogue.base / choice.entry.weights
            if not path.is_file():
                problems.append(f"catalogue.networks.{choice.family}.weights: no file '{path}'")
        elif choice.entry.dataset is not None and choice.entry.dataset not in images.DATASETS:
            for split in ("train", "fit"):
                self._lookup(
                    problems, f"catalogue.networks.{choice.family}.dataset", self.catalogue.images,
                    f"{choice.entry.dataset}.{split}",
                )  # fmt: skip

    def _check_teachers(self, problems: list[str]) -> None:
        """A model that taught a defense may not judge it, nor measure it: its answer says how well it was taught."""
        pairs = {(w.cell.defense, w.cell.model) for w in self._wanted.values()}
        pairs |= {(k.defense, k.model) for k in (*self._diagnostics, *self._certified)}
        for defense, model in sorted(pairs):
            networks = self.catalogue.defense(defense).networks if defense != NONE else ()
            for network in networks:
                choice = self.catalogue.network(network)
                measures = bool(choice.card.constants.get("last_teacher_measures", False))
                taught = choice.entry.teachers[:-1] if measures else choice.entry.teachers
                if model in {self.catalogue.model(t).name for t in taught}:
                    problems.append(
                        f"'{defense}' may not be judged by '{model}', which taught its network '{network}': "
                        f"judge it by another model or training seed"
                    )

    def _diagnostic_rules(self, block: DiagnosticBlock, defense: str) -> tuple[str, ...]:
        if defense == NONE:
            return (NONE,)
        return self.catalogue.defense(defense).rules_named(block.through)

    @staticmethod
    def _lookup(problems: list[str], path: str, resolve: Any, *arguments: Any) -> Any:
        """What ``resolve`` finds; null and one more problem where it finds nothing."""
        try:
            return resolve(*arguments)
        except LookupError as error:
            problems.append(f"{path}: {error}")
            return None

    def _check_block(self, problems: list[str], here: str, block: Block) -> None:
        catalogue = self.catalogue
        for key, resolve in (("images", catalogue.images), ("models", catalogue.model), ("sources", catalogue.model)):
            for i, name in enumerate(getattr(block, key)):
                self._lookup(problems, f"{here}.{key}[{i}]", resolve, name)
        for i, name in enumerate(block.shifts):
            kind = self._lookup(problems, f"{here}.shifts[{i}]", split_shift, name) if name != NONE else None
            for set_name in block.images if kind and kind[0] in images.CANVAS_SHIFTS else ():
                found = self._lookup([], "", catalogue.images, set_name)
                if found and not found.canvas:
                    problems.append(
                        f"{here}.shifts[{i}]: '{set_name}' has no margin to shift from; use cyclic_shift-{kind[1]}"
                    )
        defenses = [
            self._lookup(problems, f"{here}.defenses[{i}]", catalogue.defense, name) if name != NONE else None
            for i, name in enumerate(block.defenses)
        ]
        for i, name in enumerate(block.models):
            if len(self._lookup([], "", catalogue.members, name) or ()) > 1:
                problems.append(
                    f"{here}.models[{i}]: '{name}' is an ensemble, which is attacked but judges nothing: "
                    f"name it under sources"
                )
        attacking = [a for a in block.attacks if a != NONE]
        threats = [t for t in block.threats if t != NONE]
        for i, name in enumerate(block.attacks):
            if name != NONE:
                found = self._lookup(problems, f"{here}.attacks[{i}]", catalogue.attack, name)
                if found and found.needs_defense and not (block.through and NONE not in block.defenses):
                    problems.append(
                        f"{here}.attacks[{i}]: '{name}' attacks a defense, not a model: give defenses (without "
                        f"none) and through"
                    )
                for j, threat in enumerate(block.threats):
                    budget = self._lookup([], "", catalogue.threat, threat) if threat != NONE else None
                    norms = found.norms if found else ()
                    known_norms = ", ".join(norms) or "no norm"
                    if found and budget and budget.norm not in norms:
                        problems.append(
                            f"{here}.threats[{j}]: attack '{name}' is defined for {known_norms}, not for the "
                            f"{budget.norm} threat '{threat}'; put it in a block of its own"
                        )
        for i, name in enumerate(block.threats):
            if name != NONE:
                self._lookup(problems, f"{here}.threats[{i}]", catalogue.threat, name)
        if attacking and not threats:
            problems.append(
                f"{here}.threats: the attacks {attacking} need a threat; known: {', '.join(catalogue.names('threats'))}"
            )
        if threats and not attacking:
            problems.append(
                f"{here}.attacks: the threats {threats} need an attack; known: {', '.join(catalogue.names('attacks'))}"
            )
        self._check_through(problems, here, block, defenses, bool(attacking))
        if block.seeds not in (None, "all"):
            for name in block.models:
                model = self._lookup([], "", catalogue.model, name)
                missing = sorted(set(block.seeds) - set(model.entry.seeds)) if model else []
                if missing:
                    problems.append(
                        f"{here}.seeds: '{name}' has no training seeds {missing}; it has {list(model.entry.seeds)}"
                    )
        if block.scores != "all":
            for i, name in enumerate(block.scores):
                if name not in self.run.scores:
                    problems.append(
                        f"{here}.scores[{i}]: '{name}' is not among the run's scores {list(self.run.scores)}"
                    )
        elif not self.run.scores:
            problems.append(f"{here}.scores: 'all', but the run's own list 'scores' is empty")
        if block.role is not None:
            for i, name in enumerate(block.images):
                found = self._lookup([], "", catalogue.images, name)
                allowed = OOD_ROLES if block.role == "ood" else (block.role,)
                if found and found.role not in allowed:
                    problems.append(
                        f"{here}.images[{i}]: '{name}' has role {found.role}, but the block says {block.role}"
                    )
        for i, name in enumerate(block.images):
            found = self._lookup([], "", catalogue.images, name)
            if found and attacking and found.role not in ("id", "shifted"):
                problems.append(f"{here}.images[{i}]: '{name}' (role {found.role}) has no labels to attack")
        if block.mode == "search" and attacking:
            self._check_search(problems, here, block)

    def _check_through(
        self, problems: list[str], here: str, block: Block, defenses: list[DefenseChoice | None], attacking: bool
    ) -> None:
        if not block.through:
            if block.made_behind:
                problems.append(f"{here}.made_behind: say by which backward rules under through")
            return
        if not attacking:
            problems.append(f"{here}.through: no attack to go through a defense; add attacks and threats")
        known = [d for d in defenses if d]
        if not known and not block.made_behind:
            problems.append(f"{here}.through: no defense to go through; add defenses")
        if block.sources:
            problems.append(f"{here}.sources: a transfer block cannot go through a defense; use two blocks")
        if block.made_behind:
            if block.mode == "search":
                problems.append(
                    f"{here}.mode: 'search' images may not be judged behind another defense; use mode: full"
                )
            found = (
                self._lookup(problems, f"{here}.made_behind[{i}]", self.catalogue.defense, name)
                for i, name in enumerate(block.made_behind)
            )
            known = [d for d in found if d]
        if block.through != "all":
            for i, rule in enumerate(block.through):
                for defense in known:
                    rules = defense.allowed_rules
                    if rule not in rules:
                        problems.append(
                            f"{here}.through[{i}]: defense '{defense.name}' has no backward rule '{rule}'"
                            f"{did_you_mean(rule, rules)} It has: {', '.join(rules)}; or write through: all"
                        )

    def _check_search(self, problems: list[str], here: str, block: Block) -> None:
        reason = "an image that left at its first success is weak against every other pipeline; use mode: full"
        if not block.through and any(d != NONE for d in block.defenses):
            problems.append(f"{here}.mode: 'search' images may not enter defenses they were not made on: {reason}")
        if block.sources:
            problems.append(f"{here}.mode: 'search' images may not be transferred: {reason}")
        if block.scores:
            problems.append(f"{here}.mode: 'search' images may not be scored: {reason}")
        for name in block.defenses:
            choice = self._lookup([], "", self.catalogue.defense, name) if name != NONE else None
            if choice and choice.is_random:
                problems.append(
                    f"{here}.mode: the random defense '{name}' cannot be searched (one lucky draw would count)"
                )
        if block.iterates != ("best",):
            problems.append(
                f"{here}.iterates: 'search' keeps one image per sample; leave iterates out or use mode: full"
            )

    def _models_of(self, block: Block, names: tuple[str, ...]) -> list[ModelChoice]:
        found = []
        for name in names:
            choice = self.catalogue.model(name)
            if block.seeds is None:
                found.append(choice)
                continue
            seeds = choice.entry.seeds if block.seeds == "all" else block.seeds
            found += [self.catalogue.model(f"{choice.family}-s{s}") for s in seeds]
        return found

    def _cells_of(self, problems: list[str], here: str, block: Block) -> Iterator[Wanted]:
        scores = self.run.scores if block.scores == "all" else block.scores
        for name in block.images:
            for shift in block.shifts:
                for model in self._models_of(block, block.models):
                    for attack in self._attacks_of(block, name, shift, model):
                        for defense in block.defenses:
                            yield from self._judged(block, name, shift, model, attack, defense, tuple(scores))

    def _attacks_of(self, block: Block, images: str, shift: str, model: ModelChoice) -> Iterator[AttackKey | None]:
        """Bare attacks of a block, before the defense is known; ``none`` crossed with threats is one clean image."""
        sources = [self.catalogue.model(s).name for s in block.sources] or [model.name]
        for name in block.attacks:
            if name == NONE:
                yield None
                continue
            for threat in block.threats:
                for seed in block.attack_seeds:
                    for source in sources:
                        if threat != NONE:
                            yield AttackKey(images, shift, source, name, threat, seed, block.mode, NONE, BARE)

    def _judged(
        self, block: Block, images: str, shift: str, model: ModelChoice, attack: AttackKey | None, defense: str,
        scores: tuple[str, ...],
    ) -> Iterator[Wanted]:  # fmt: skip
        if attack is None:
            yield Wanted(Cell(images, shift, model.name, defense, None, NONE), block.n, scores, CLEAN)
            return
        iterates = ("first",) if block.mode == "search" else block.iterates
        if not block.through or (defense == NONE and not block.made_behind):
            batch = block.batch or BARE
            for iterate in iterates:
                yield Wanted(Cell(images, shift, model.name, defense, attack, iterate), block.n, scores, batch)
            return
        batch = block.batch or "through"
        for seen in block.made_behind or (defense,):
            for rule in self.catalogue.defense(seen).rules_named(block.through):
                key = dataclasses.replace(attack, defense=seen, rule=rule)
                for iterate in iterates:
                    yield Wanted(Cell(images, shift, model.name, defense, key, iterate), block.n, scores, batch)

    def _add(self, new: Wanted) -> None:
        old = self._wanted.get(new.cell)
        if old:
            n = None if old.n is None or new.n is None else max(old.n, new.n)
            scores = tuple(s for s in self.run.scores if s in old.scores or s in new.scores)
            new = Wanted(new.cell, n, scores, old.batch)
        key = new.cell.attack
        if key is not None:
            batch = self._attack_batch.setdefault(key, new.batch)
            new = dataclasses.replace(new, batch=batch)
            if key in self._attack_n:
                a = self._attack_n[key]
                self._attack_n[key] = None if a is None or new.n is None else max(a, new.n)
            else:
                self._attack_n[key] = new.n
        self._wanted[new.cell] = new

    # --------------------------------------------------------------------------------------------------------- settings

    @cached_property
    def cells(self) -> list[Wanted]:
        """All cells, in the order of the blocks; a cell of an attack has the attack's sample count."""
        found = []
        for wanted in self._wanted.values():
            n = self._attack_n[wanted.cell.attack] if wanted.cell.attack else wanted.n
            found.append(dataclasses.replace(wanted, n=n))
        return found

    def set_choice(self, name: str) -> SetChoice:
        """The image set of a cell."""
        return self.catalogue.images(name)

    def defense_settings(self, name: str) -> dict[str, Any]:
        """Everything that can move a defense's output, as JSON."""
        if name == NONE:
            return {"defense": NONE}
        choice = self.catalogue.defense(name)
        files = [self._user_file(c.entry.method) for c in choice.stages or (choice,) if c.entry.method.endswith(".py")]
        return {
            "defense": name,
            "method": choice.card.name,
            "settings": choice.settings,
            "rounds": choice.rounds,
            "algorithm_version": choice.card.algorithm_version,
            "libraries": {lib: installed(lib) for lib in choice.card.constants.get("libraries", ())},
            **({"codecs": codec_versions(choice.codecs)} if choice.codecs else {}),
            **({"files": files} if files else {}),
            **({"networks": {n: self.network_digest(n) for n in choice.networks}} if choice.networks else {}),
        }

    def network_settings(self, name: str) -> dict[str, Any]:
        """Everything that decides a network's weights, as JSON; its digest is the network's recipe digest."""
        choice = self.catalogue.network(name)
        entry = choice.entry
        found: dict[str, Any] = {
            "method": choice.card.name,
            "settings": choice.settings,
            "algorithm_version": choice.card.algorithm_version,
            **self._user_file(entry.method),
        }
        if entry.weights is not None:
            return {**found, "sha256": entry.sha256}
        dataset = entry.dataset or ""
        if dataset in images.DATASETS:
            data: Any = data_identity(dataset)
        else:
            sets = [self.set_choice(f"{dataset}.{split}") for split in ("train", "fit")]
            data = {s.name: file_digest(self.catalogue.base / (s.file or "")) for s in sets}
        teachers = [recipe_digest(self.model_spec(t)) for t in entry.teachers]
        return {**found, "seed": choice.seed, "data": data, "teachers": teachers}

    def network_digest(self, name: str) -> str:
        """The recipe digest of a network: shipped weights are used where their card bears it."""
        if name not in self._network_digests:
            self._network_digests[name] = digest(self.network_settings(name))
        return self._network_digests[name]

    def attack_settings(self, key: AttackKey) -> dict[str, Any]:
        """Everything that can move an attack's images, as JSON; the digests of its inputs come on top at run time."""
        choice = self.catalogue.attack(key.attack)
        threat = self.catalogue.threat(key.threat)
        return {
            "images": self.images_settings(key.images, key.shift),
            "n": self._attack_n[key],
            "model": key.model,
            "attack": key.attack,
            "members": [self._member_settings(m) for m in choice.members],
            "eot": choice.entry.eot,
            "threat": {"norm": threat.norm, "eps": threat.budget},
            "seed": key.seed,
            "mode": key.mode,
            "through": key.rule,
            "seen": self.defense_settings(key.defense),
        }

    def _member_settings(self, member: AttackMember) -> dict[str, Any]:
        return {
            "attack": member.name,
            "method": member.card.name,
            "settings": member.settings,
            "algorithm_version": member.card.algorithm_version,
            **self._user_file(member.method),
        }

    def images_settings(self, name: str, shift: str) -> dict[str, Any]:
        """Name, version and shift of an image set, as JSON."""
        choice = self.set_choice(name)
        found: dict[str, Any] = {"images": name, "shift": shift}
        if choice.file:
            found["file"] = choice.file
        else:
            found["recipe_version"] = images.recipe_version(choice.dataset)
        if shift != NONE:
            found["shift_version"] = images.SHIFT_VERSION
        return found

    def model_settings(self, name: str) -> dict[str, Any]:
        """Everything that decides a model's weights, as JSON."""
        choice = self.catalogue.model(name)
        entry = choice.entry.model_dump(
            mode="json",
            exclude={"description", "label", "seeds", "milliseconds_per_forward", "milliseconds_per_gradient"},
        )
        found: dict[str, Any] = {"model": name, "family": choice.family, "seed": choice.seed, **entry}
        if choice.entry.architecture == "file":
            found["files"] = {
                key: file_digest(self.catalogue.base / choice.entry.recipe[key]) for key in ("file", "weights")
            }
        else:
            found["recipe_version"] = images.recipe_version(choice.entry.dataset or "")
            found["algorithm_version"] = MODELS_VERSION
        return found

    def model_spec(self, name: str) -> ModelSpec:
        """What the model rooms are asked for."""
        choice = self.catalogue.model(name)
        entry = choice.entry
        recipe = dict(entry.recipe)
        if entry.architecture == "file":
            recipe |= {key: str(self.catalogue.base / recipe[key]) for key in ("file", "weights")}
        return ModelSpec(
            name=choice.name, architecture=entry.architecture, head=entry.head, recipe=recipe, dataset=entry.dataset,
            classes=entry.classes, seed=choice.seed, class_names=entry.class_names,
        )  # fmt: skip

    def cell_settings(self, cell: Cell) -> dict[str, Any]:
        """The identity of a cell, as JSON."""
        return {
            "images": self.images_settings(cell.images, cell.shift),
            "model": self.model_settings(cell.model),
            "defense": self.defense_settings(cell.defense),
            "attack": {k: v for k, v in self.attack_settings(cell.attack).items() if k != "n"} if cell.attack else None,
            "iterate": cell.iterate,
        }

    def cell_id(self, cell: Cell) -> str:
        """The 12 hex digits that name a cell."""
        return self._cell_ids[cell]

    @cached_property
    def _cell_ids(self) -> dict[Cell, str]:
        return {w.cell: short_id(self.cell_settings(w.cell)) for w in self.cells}

    def _user_file(self, method: str) -> dict[str, str]:
        if not method.endswith(".py"):
            return {}
        return {"file_sha256": file_digest(self.catalogue.base / method)}

    # ------------------------------------------------------------------------------------------------------------- jobs

    @cached_property
    def models(self) -> list[str]:
        """Every single model that some job needs, judging, attacked or measured; of ensembles the members."""
        keys = (*self._attack_n, *self._diagnostics, *self._certified)
        named = {w.cell.model for w in self.cells} | {k.model for k in keys}
        named |= {teacher for name in self.trained_networks for teacher in self.catalogue.network(name).entry.teachers}
        return sorted({member for name in named for member in self.catalogue.members(name)})

    @cached_property
    def networks(self) -> list[str]:
        """Every network that some defense of the run carries."""
        keys = (*self._attack_n, *self._diagnostics, *self._certified)
        named = {w.cell.defense for w in self.cells} | {k.defense for k in keys}
        return sorted({n for name in named - {NONE} for n in self.catalogue.defense(name).networks})

    @cached_property
    def shipped_networks(self) -> list[str]:
        """Networks whose shipped weights are of their recipe, seed, data and teachers."""
        found = []
        for name in self.networks:
            folder = RESOURCES / "networks" / name
            if (folder / CARD).is_file() and load_card(folder).get("recipe_digest") == self.network_digest(name):
                found.append(name)
        return found

    @cached_property
    def trained_networks(self) -> list[str]:
        """Networks that a job of this run trains."""
        shipped = set(self.shipped_networks)
        return [n for n in self.networks if n not in shipped and self.catalogue.network(n).entry.dataset is not None]

    def networks_of(self, *defenses: str) -> list[str]:
        """Weights and cards of the networks that these defenses carry."""
        names = {n for d in defenses if d != NONE for n in self.catalogue.defense(d).networks}
        return [f"results/networks/{n}/{file}" for n in sorted(names) for file in ("card.json", "weights.safetensors")]

    def network_inputs(self, name: str) -> list[str]:
        """Which files a network's job reads: its teachers, and a user's own images."""
        entry = self.catalogue.network(name).entry
        found = [path for t in entry.teachers for files in self.weights_of(t).values() for path in files]
        if entry.dataset is not None and entry.dataset not in images.DATASETS:
            found.append(f"results/images/{entry.dataset}/manifest.json")
        return found

    def weights_of(self, model: str) -> dict[str, list[str]]:
        """Weights and cards of a model's members (of a single model: its own)."""
        members = self.catalogue.members(model)
        return {
            "weights": [f"results/models/{m}/weights.safetensors" for m in members],
            "cards": [f"results/models/{m}/card.json" for m in members],
        }

    @cached_property
    def surrogates(self) -> dict[tuple[str, str], str]:
        """(data set, defense) -> the folder of each learned surrogate that an attack or a measurement goes through."""
        keys = (*self._attack_n, *self._diagnostics)
        found = {(self.set_choice(k.images).dataset, k.defense) for k in keys if k.rule == LEARNED}
        return {(d, name): f"results/surrogates/{d}/{name}" for d, name in sorted(found)}

    def surrogate_of(self, images: str, defense: str) -> str:
        """The folder of the learned surrogate of a defense for images of that data set."""
        return self.surrogates[(self.set_choice(images).dataset, defense)]

    def surrogate_set(self, dataset: str) -> str:
        """The image set that a data set's surrogates are trained on."""
        name = f"{dataset}.{self.run.fit_on}"
        try:
            self.catalogue.images(name)
        except LookupError:
            raise LookupError(
                f"it is trained on '{name}', which the data set does not have; use another rule"
            ) from None
        return name

    @cached_property
    def diagnostic_jobs(self) -> dict[tuple[str, str], list[DiagnosticKey]]:
        """(model, image set) -> measurements."""
        found: dict[tuple[str, str], list[DiagnosticKey]] = {}
        for key in self._diagnostics:
            found.setdefault((key.model, key.images), []).append(key)
        return found

    def diagnostic_n(self, key: DiagnosticKey) -> int | None:
        """How many samples a measurement is made on."""
        return self._diagnostics[key]

    def diagnostic_settings(self, key: DiagnosticKey) -> dict[str, Any]:
        """Everything that can move a measurement, as JSON; the digests of its inputs come on top at run time."""
        entry, card, settings = self.catalogue.diagnostic(key.diagnostic)
        threat = self.catalogue.threat(key.threat)
        return {
            "images": self.images_settings(key.images, NONE),
            "n": self._diagnostics[key],
            "model": key.model,
            "diagnostic": key.diagnostic,
            "method": card.name,
            "settings": settings,
            "algorithm_version": card.algorithm_version,
            "threat": {"norm": threat.norm, "eps": threat.budget},
            "through": key.rule,
            "seen": self.defense_settings(key.defense),
            **self._user_file(entry.method),
        }

    def diagnostic_inputs(self, model: str, images: str) -> list[str]:
        """Which image manifests and surrogates a measuring job reads."""
        keys = self.diagnostic_jobs[(model, images)]
        manifest = f"results/images/{self.set_choice(images).dataset}/manifest.json"
        return [manifest, *self._surrogate_files(keys), *self.networks_of(*(k.defense for k in keys))]

    @cached_property
    def certify_jobs(self) -> dict[tuple[str, str], list[CertifiedKey]]:
        """(model, image set) -> certificates; each job is made in ``run.certify_shards`` shards of the samples."""
        found: dict[tuple[str, str], list[CertifiedKey]] = {}
        for key in self._certified:
            found.setdefault((key.model, key.images), []).append(key)
        return found

    def certified_n(self, key: CertifiedKey) -> int | None:
        """How many samples a certificate is made for."""
        return self._certified[key]

    def certified_settings(self, key: CertifiedKey) -> dict[str, Any]:
        """Everything that can move a certificate, as JSON; the digests of its inputs come on top at run time."""
        return {
            "images": self.images_settings(key.images, NONE),
            "n": self._certified[key],
            "model": key.model,
            "defense": self.defense_settings(key.defense),
            "sigma": key.sigma,
            "choose_draws": key.choose_draws,
            "draws": key.draws,
            "alpha": key.alpha,
            "looks": list(key.looks),
        }

    def certify_inputs(self, model: str, images: str) -> list[str]:
        """Which image manifests and networks a certifying job reads."""
        keys = self.certify_jobs[(model, images)]
        manifest = f"results/images/{self.set_choice(images).dataset}/manifest.json"
        return [manifest, *self.networks_of(*(k.defense for k in keys))]

    def _surrogate_files(self, keys: Iterable[AttackKey | DiagnosticKey]) -> list[str]:
        folders = {self.surrogate_of(k.images, k.defense) for k in keys if k.rule == LEARNED}
        return [f"{folder}/{file}" for folder in sorted(folders) for file in ("card.json", "weights.safetensors")]

    @cached_property
    def shipped_models(self) -> list[str]:
        """Models whose shipped weights are of their recipe, seed and training data; the others are trained or read.

        Weights are tied to what decides them (``recipe_digest``), not to the last bits that another CPU would give.
        """
        found = []
        for name in self.models:
            folder, spec = RESOURCES / "models" / name, self.model_spec(name)
            if spec.architecture == "file" or not (folder / CARD).is_file():
                continue
            if load_card(folder).get("recipe_digest") == recipe_digest(spec):
                found.append(name)
        return found

    @cached_property
    def judges(self) -> list[str]:
        """Models that have cells."""
        return sorted({w.cell.model for w in self.cells})

    @cached_property
    def datasets(self) -> dict[str, list[str]]:
        """Data sets and the splits of each that the run needs, the fitting split included."""
        found: dict[str, set[str]] = {}
        for wanted in self.cells:
            choice = self.set_choice(wanted.cell.images)
            found.setdefault(choice.dataset, set()).add(choice.split)
        others = [k.images for k in (*self._diagnostics, *self._certified)]
        others += [self.surrogate_set(d) for d, _ in self.surrogates]
        for name in self.trained_networks:
            dataset = self.catalogue.network(name).entry.dataset
            if dataset not in images.DATASETS:
                others += [f"{dataset}.train", f"{dataset}.fit"]
        for name in others:
            choice = self.set_choice(name)
            found.setdefault(choice.dataset, set()).add(choice.split)
        for model in self.fitted_models:
            name = self.fit_set(model)
            if name:
                choice = self.set_choice(name)
                found.setdefault(choice.dataset, set()).add(choice.split)
        return {d: sorted(s) for d, s in sorted(found.items())}

    @cached_property
    def shifted_sets(self) -> dict[str, list[str]]:
        """Image sets and the shifts of each."""
        found: dict[str, set[str]] = {}
        for wanted in self.cells:
            if wanted.cell.shift != NONE:
                found.setdefault(wanted.cell.images, set()).add(wanted.cell.shift)
        return {k: sorted(v) for k, v in sorted(found.items())}

    @cached_property
    def fitted_models(self) -> list[str]:
        """Models with scored cells: their fitting split is observed too."""
        return sorted({w.cell.model for w in self.cells if w.scores})

    def fit_set(self, model: str) -> str | None:
        """The image set on which a model's scores are fitted: never test."""
        dataset = self.catalogue.model(model).entry.dataset or self._judged_dataset(model)
        name = f"{dataset}.{self.run.fit_on}"
        try:
            self.catalogue.images(name)
        except LookupError:
            return None
        return name

    def _judged_dataset(self, model: str) -> str:
        """The data set of the ID images that a user's own model judges."""
        sets = [self.set_choice(w.cell.images) for w in self.cells if w.cell.model == model]
        return next((s.dataset for s in sets if s.role == "id"), sets[0].dataset)

    def _is_purified(self, cell: Cell) -> bool:
        """Whether the cell's images are purified once for all models: clean ones, by a defense without dice."""
        return cell.attack is None and cell.defense != NONE and not self.catalogue.defense(cell.defense).is_random

    @cached_property
    def purified(self) -> dict[tuple[str, str], list[tuple[str, str, str, int | None]]]:
        """(data set, defense family) -> the (image set, shift, defense, n) to purify once for all models."""
        found: dict[tuple[str, str], dict[tuple[str, str, str], int | None]] = {}
        for w in self.cells:
            if self._is_purified(w.cell):
                job = (self.set_choice(w.cell.images).dataset, self.catalogue.defense(w.cell.defense).family)
                entry = found.setdefault(job, {})
                key = (w.cell.images, w.cell.shift, w.cell.defense)
                old = entry.get(key, w.n)
                entry[key] = None if old is None or w.n is None else max(old, w.n)
        return {k: [(*key, n) for key, n in sorted(v.items())] for k, v in sorted(found.items())}

    @cached_property
    def attack_jobs(self) -> dict[tuple[str, str, str], list[AttackKey]]:
        """(attacked model, image set, batch) -> attacks."""
        found: dict[tuple[str, str, str], list[AttackKey]] = {}
        for key, batch in self._attack_batch.items():
            found.setdefault((key.model, key.images, batch), []).append(key)
        return found

    def group_of(self, model: str) -> str:
        """The name under which a judging model's jobs run: its family, or with ``group_seeds: false`` itself."""
        return self.catalogue.model(model).family if self.run.group_seeds else model

    @cached_property
    def groups(self) -> list[str]:
        """Groups of judging models."""
        return sorted({self.group_of(m) for m in self.judges})

    @cached_property
    def observe_jobs(self) -> dict[tuple[str, str], list[Wanted]]:
        """(group, batch) -> cells, model by model. Batch ``clean`` also observes the fitting split."""
        found: dict[tuple[str, str], list[Wanted]] = {}
        for wanted in self.cells:
            found.setdefault((self.group_of(wanted.cell.model), wanted.batch), []).append(wanted)
        for model in self.fitted_models:
            found.setdefault((self.group_of(model), CLEAN), [])
        return {key: sorted(cells, key=lambda w: w.cell.model) for key, cells in found.items()}

    @cached_property
    def score_jobs(self) -> list[tuple[str, str]]:
        """(group, batch) pairs with cells."""
        return [key for key, cells in self.observe_jobs.items() if cells]

    def fitted_in(self, group: str, batch: str) -> list[str]:
        """Models whose fitting split this observe job looks at."""
        return [m for m in self.fitted_models if batch == CLEAN and self.group_of(m) == group and self.fit_set(m)]

    def fit_inputs(self, group: str) -> list[str]:
        """The manifest that holds a group's fitting split, if it has one."""
        return [f"results/observed/{group}/{CLEAN}.json"] if self.fitted_in(group, CLEAN) else []

    def observed_models(self, group: str, batch: str) -> list[str]:
        """Models that an observe job loads."""
        return sorted({w.cell.model for w in self.observe_jobs[(group, batch)]} | set(self.fitted_in(group, batch)))

    def observe_inputs(self, group: str, batch: str) -> dict[str, list[str]]:
        """Which files an observe job reads: image, shifted, purified and attacked sets, weights and cards."""
        images: set[str] = set()
        shifted: set[str] = set()
        purified: set[tuple[str, str]] = set()
        attacked: set[tuple[str, str, str]] = set()
        for wanted in self.observe_jobs[(group, batch)]:
            cell = wanted.cell
            images.add(self.set_choice(cell.images).dataset)
            if cell.shift != NONE:
                shifted.add(cell.images)
            if self._is_purified(cell):
                purified.add((self.set_choice(cell.images).dataset, self.catalogue.defense(cell.defense).family))
            if cell.attack is not None:
                attacked.add((cell.attack.model, cell.attack.images, self._attack_batch[cell.attack]))
        for model in self.fitted_in(group, batch):
            images.add(self.set_choice(self.fit_set(model) or "").dataset)
        models = self.observed_models(group, batch)
        return {
            "images": [f"results/images/{d}/manifest.json" for d in sorted(images)],
            "shifted": [f"results/images/{s}/shifted.json" for s in sorted(shifted)],
            "purified": [f"results/defended/{d}/{f}.json" for d, f in sorted(purified)],
            "attacked": [f"results/attacked/{m}/{s}/{b}.json" for m, s, b in sorted(attacked)],
            "networks": self.networks_of(*(w.cell.defense for w in self.observe_jobs[(group, batch)])),
            "weights": [f"results/models/{m}/weights.safetensors" for m in models],
            "cards": [f"results/models/{m}/card.json" for m in models],
        }

    def purify_inputs(self, dataset: str, family: str) -> list[str]:
        """Which image manifests a purify job reads."""
        wanted = self.purified[(dataset, family)]
        clean = [f"results/images/{dataset}/manifest.json"] if any(s == NONE for _, s, _, _ in wanted) else []
        shifted = [f"results/images/{i}/shifted.json" for i in sorted({i for i, s, _, _ in wanted if s != NONE})]
        return clean + shifted + self.networks_of(*(d for _, _, d, _ in wanted))

    def attack_inputs(self, model: str, images: str, batch: str) -> list[str]:
        """Which image manifests an attack job reads."""
        keys = self.attack_jobs[(model, images, batch)]
        found = [f"results/images/{self.set_choice(images).dataset}/manifest.json"]
        if any(k.shift != NONE for k in keys):
            found.append(f"results/images/{images}/shifted.json")
        return found + self._surrogate_files(keys) + self.networks_of(*(k.defense for k in keys))

    def batch_of(self, key: AttackKey) -> str:
        """The job batch in which an attack is made."""
        return self._attack_batch[key]

    def n_of(self, key: AttackKey) -> int | None:
        """How many samples an attack is run on."""
        return self._attack_n[key]

    def job(self, rule: str, **wildcards: str) -> dict[str, Any]:
        """Everything that decides what one job makes, as JSON. Its digest is the rule's ``params.plan``."""
        return {"rule": rule, "wildcards": wildcards, "version": JOB_VERSIONS[rule], **self._job(rule, wildcards)}

    def _job(self, rule: str, w: dict[str, str]) -> dict[str, Any]:
        run = self.run
        if rule == "images_build":
            return {
                "splits": [self.images_settings(f"{w['dataset']}.{s}", NONE) for s in self.datasets[w["dataset"]]],
                "on_bad_image": run.on_bad_image,
            }
        if rule == "images_shift":
            return {"shifts": [self.images_settings(w["set"], s) for s in self.shifted_sets[w["set"]]]}
        if rule == "model_provide":
            return {"model": self.model_settings(w["model"])}
        if rule == "network_provide":
            return {"network": self.network_digest(w["network"])}
        if rule == "certify":
            keys = self.certify_jobs[(w["model"], w["set"])]
            return {
                "parts": [self.certified_settings(k) for k in keys],
                "shards": run.certify_shards,
                "batch_size": run.batch_size,
            }
        if rule == "purify_shared":
            wanted = self.purified[(w["dataset"], w["family"])]
            return {"parts": [[self.images_settings(i, s), self.defense_settings(d), n] for i, s, d, n in wanted]}
        if rule == "surrogate_train":
            trained_on = self.images_settings(self.surrogate_set(w["dataset"]), NONE)
            return {"defense": self.defense_settings(w["defense"]), "images": trained_on}
        if rule == "diagnose":
            keys = self.diagnostic_jobs[(w["model"], w["set"])]
            return {"parts": [self.diagnostic_settings(k) for k in keys], "batch_size": run.batch_size}
        if rule == "attack":
            keys = self.attack_jobs[(w["model"], w["set"], w["batch"])]
            return {"parts": [self.attack_settings(k) for k in keys], "batch_size": run.batch_size}
        if rule == "observe":
            cells = self.observe_jobs[(w["group"], w["batch"])]
            fitted = self.fitted_in(w["group"], w["batch"])
            return {
                "cells": [[self.cell_id(c.cell), c.n, bool(c.scores)] for c in cells],
                "fit": [[m, self.images_settings(self.fit_set(m) or "", NONE)] for m in fitted],
                "batch_size": run.batch_size,
            }
        if rule == "score":
            cells = self.observe_jobs[(w["group"], w["batch"])]
            return {
                "cells": [[self.cell_id(c.cell), list(c.scores)] for c in cells],
                "scores": [self.score_settings(s) for s in run.scores],
                "fit_on": run.fit_on,
            }
        if rule == "summarise_group":
            return {"replicates": run.replicates, "scores": list(run.scores), "cells": self._cells_json(w["group"])}
        if rule in (
            "summarise_cells",
            "summarise_metrics",
            "summarise_costs",
            "present_tables",
            "present_figures",
            "verdict",
            "summarise_diagnostics",
            "summarise_certified",
        ):
            measured = digest([self.diagnostic_settings(k) for k in self._diagnostics])
            certified = digest([self.certified_settings(k) for k in self._certified])
            cells = digest(self._cells_json(None))
            return {
                "name": run.name, "cells": cells, "scores": list(run.scores), "diagnostics": measured,
                "certified": certified,
            }  # fmt: skip
        raise KeyError(rule)

    def score_settings(self, name: str) -> dict[str, Any]:
        """Everything that can move a score, as JSON."""
        entry, card, settings = self.catalogue.score(name)
        return {
            "score": name, "method": card.name, "settings": settings, "algorithm_version": card.algorithm_version,
            **self._user_file(entry.method),
        }  # fmt: skip

    def _cells_json(self, group: str | None) -> list[Any]:
        wanted = [w for w in self.cells if group is None or self.group_of(w.cell.model) == group]
        return [[self.cell_id(w.cell), w.n, list(w.scores)] for w in wanted]

    def digest(self, rule: str, **wildcards: str) -> str:
        """The one string that a rule puts into ``params``."""
        return digest(self.job(rule, **wildcards))

    # ------------------------------------------------------------------------------------------------------------- bill

    def bill(self) -> dict[str, float | int]:
        """What the run asks for, before it runs: counts exact, seconds and bytes estimated from measured unit costs."""
        gradients = forwards = queries = 0.0
        seconds = 0.0
        size = 0.0
        for key in self._attack_n:
            n = self._count(key.images, self._attack_n[key])
            defense = self.catalogue.defense(key.defense).entry if key.defense != NONE else None
            rounds = self.catalogue.defense(key.defense).rounds if key.defense != NONE else 0
            evaluations = n
            attack = self.catalogue.attack(key.attack)
            singles = [self.catalogue.model(m).entry for m in self.catalogue.members(key.model)]
            draws = attack.entry.eot if key.defense != NONE and self.catalogue.defense(key.defense).is_random else 1
            for member in attack.members:
                asked = n * member.queries * draws * int(member.constant("asks_per_step", 1))
                evaluations += asked
                if member.uses_gradient:
                    gradients += asked * len(singles)
                    seconds += asked * sum(e.milliseconds_per_gradient for e in singles) / 1e3
                else:
                    queries += asked * len(singles)
                    seconds += asked * sum(e.milliseconds_per_forward for e in singles) / 1e3
            if defense:
                seconds += evaluations * rounds * defense.milliseconds_per_image / 1e3
            size += n * 3_500
        for wanted in self.cells:
            n = self._count(wanted.cell.images, wanted.n)
            entry = self.catalogue.model(wanted.cell.model).entry
            forwards += n
            seconds += n * entry.milliseconds_per_forward / 1e3
            if wanted.cell.defense != NONE and wanted.cell.attack is not None:
                choice = self.catalogue.defense(wanted.cell.defense)
                seconds += n * choice.rounds * choice.entry.milliseconds_per_image / 1e3
            size += n * (700 if wanted.scores else 250)
        for diagnostic, n_wanted in self._diagnostics.items():
            n = self._count(diagnostic.images, n_wanted)
            _, card, settings = self.catalogue.diagnostic(diagnostic.diagnostic)
            asked = n * math.prod(int(settings[name]) for name in card.constants.get("bill", ()))
            gradients += asked
            seconds += asked * self.catalogue.model(diagnostic.model).entry.milliseconds_per_gradient / 1e3
        for certificate, n_wanted in self._certified.items():
            n = self._count(certificate.images, n_wanted)
            asked = n * (certificate.choose_draws + certificate.draws)
            forwards += asked
            cost = self.catalogue.model(certificate.model).entry.milliseconds_per_forward
            if certificate.defense != NONE:
                choice = self.catalogue.defense(certificate.defense)
                cost += choice.rounds * choice.entry.milliseconds_per_image
            seconds += asked * cost / 1e3
            size += n * 60
        jobs = self.count_jobs()
        torch_jobs = sum(jobs[rule] for rule in ("attack", "observe", "diagnose", "surrogate_train", "certify"))
        torch_jobs += len(self.networks) - len(self.shipped_networks)
        seconds += SECONDS_PER_SURROGATE * jobs["surrogate_train"]
        seconds += sum(self.catalogue.network(n).entry.seconds_to_train for n in self.trained_networks)
        return {
            "cells": len(self.cells),
            "attacks": len(self._attack_n),
            "jobs": sum(jobs.values()),
            "jobs_that_import_torch": torch_jobs,
            "gradient_evaluations": int(gradients),
            "black_box_queries": int(queries),
            "forward_passes": int(forwards),
            "core_seconds": round(seconds + 3.5 * torch_jobs + 1.0 * sum(jobs.values()), 1),
            "megabytes": round(size / 1e6, 1),
        }

    def bill_lines(self) -> list[str]:
        """The bill, for a person."""
        bill = self.bill()
        hours = float(bill["core_seconds"]) / 3600
        seconds = f"{bill['core_seconds']:,.0f} core-seconds" + (f" ({hours:.1f} core-hours)" if hours > 1 else "")
        return [
            f"The bill of '{self.run.name}', before anything runs (finished parts are not deducted):",
            f"  {bill['cells']:>12,} cells from {bill['attacks']:,} attacks",
            f"  {bill['jobs']:>12,} jobs, {bill['jobs_that_import_torch']:,} of which import torch",
            f"  {bill['gradient_evaluations']:>12,} gradient evaluations at most (search mode stops early)",
            f"  {bill['black_box_queries']:>12,} black-box queries at most",
            f"  {bill['forward_passes']:>12,} forward passes to observe",
            f"  about {seconds}, from unit costs measured on one core; models that must be trained come on top",
            f"  about {bill['megabytes']:,.0f} MB on disk",
        ]

    def count_jobs(self) -> dict[str, int]:
        """Jobs by rule."""
        return {
            "images_build": len(self.datasets),
            "images_shift": len(self.shifted_sets),
            "model_provide": len(self.models),
            "network_provide": len(self.networks),
            "purify_shared": len(self.purified),
            "surrogate_train": len(self.surrogates),
            "attack": len(self.attack_jobs),
            "diagnose": len(self.diagnostic_jobs),
            "certify": len(self.certify_jobs) * self.run.certify_shards,
            "observe": len(self.observe_jobs),
            "score": len(self.score_jobs),
            "summarise": len(self.groups) + 5,
            "present": 4,
        }

    def _count(self, images: str, n: int | None) -> int:
        size = self.set_choice(images).n or 1000
        return size if n is None else min(n, size)


SECONDS_PER_SURROGATE = 40.0
JOB_VERSIONS = {
    "surrogate_train": 1,
    "diagnose": 1,
    "summarise_diagnostics": 1,
    "network_provide": 1,
    "certify": 1,
    "summarise_certified": 1,
    "images_build": 1,
    "images_shift": 1,
    "model_provide": 1,
    "purify_shared": 1,
    "attack": 2,
    "observe": 2,
    "score": 1,
    "summarise_group": 1,
    "summarise_cells": 1,
    "summarise_metrics": 1,
    "summarise_costs": 1,
    "present_tables": 2,
    "present_figures": 2,
    "verdict": 1,
}
"""Raised by hand when what a job writes changes for the same plan: its parts are then made again.

Part of the identity of every part (stages attack, observe, diagnose, purify): a changed engine is a changed number.
"""


def split_shift(name: str) -> tuple[str, int]:
    """``gaussian_noise-2`` -> ("gaussian_noise", 2); LookupError with the known shifts."""
    shift, _, severity = name.rpartition("-")
    known = images.SHIFTS
    if shift not in known:
        raise LookupError(
            f"unknown shift '{name}'{did_you_mean(shift or name, list(known))} "
            f"Known, each with -<severity>: {', '.join(known)}"
        )
    if not severity.isdigit() or int(severity) not in known[shift]:
        raise LookupError(f"shift '{name}': severity must be one of {list(known[shift])}")
    return shift, int(severity)


@cache
def codec_versions(features: tuple[str, ...]) -> dict[str, str | None]:
    """The libraries behind Pillow's codecs, with their versions: another one writes other bytes."""
    from windtunnel.defenses import _codec

    return _codec.codec_versions(features)


def installed(package: str) -> str | None:
    """The installed version of a package, null where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """The versions that a cell records."""
    wanted = ("torch", "torchvision", "timm", "numpy", "pillow", "kornia", "scikit-image", "torchattacks", "pyarrow")
    return {"windtunnel": __version__, **{name: installed(name) for name in wanted}}
