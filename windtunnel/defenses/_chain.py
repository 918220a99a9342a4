"""Several defenses, one after the other, as one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified, RandomDefense

JOINER = "+"


@dataclass(frozen=True, kw_only=True)
class Chain(Defense):
    """``stages[-1](... stages[0](x))``: a composition of deterministic defenses.

    Bits are those of the last stage that has any: what would be stored. A backward rule names one rule per stage,
    joined by ``+`` in the order of the stages (``surrogate-1+blur``); ``rules`` are all such names, the first choices
    of all stages first, and a name is generic where every part is. ``backward_rules(rounds)`` gives every stage the
    rounds of the chain and composes the results (``rules.compose_rules``): exact in order for one round; for more, n
    rounds of the first stage stand before n of the second, where the defense alternates.

    No entry of the registry: a catalogue name says which stages there are, and this class holds them. Random stages
    are refused: their dice are drawn per round, which a chain of purifiers does not know.
    """

    stages: tuple[Defense, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a chain needs at least one stage")
        for stage in self.stages:
            if isinstance(stage, RandomDefense) or stage.is_random:
                raise ValueError(f"{type(stage).__name__} is random and cannot be a stage of a deterministic chain")

    @property
    def rules(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(JOINER.join(names) for names in self._names())

    @property
    def generic_rules(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(
            JOINER.join(names)
            for names in self._names()
            if all(name in stage.generic_rules for name, stage in zip(names, self.stages, strict=True))
        )

    @property
    def libraries(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted({library for stage in self.stages for library in stage.libraries}))

    def purify(self, images: Images) -> Purified:
        result = Purified(images)
        file_bits = payload_bits = None  # a codec may know its payload only
        for stage in self.stages:
            result = stage.purify(result.images)
            if result.file_bits is not None or result.payload_bits is not None:
                file_bits, payload_bits = result.file_bits, result.payload_bits
        return Purified(result.images, file_bits=file_bits, payload_bits=payload_bits)

    def cleaned(self, images: Images) -> Images:
        for stage in self.stages:
            images = stage.cleaned(images)
        return images

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import compose_rules

        known = [stage.backward_rules(rounds) for stage in self.stages]
        return {
            JOINER.join(names): compose_rules([rules[name] for rules, name in zip(known, names, strict=True)])
            for names in self._names()
        }

    def _names(self) -> list[tuple[str, ...]]:
        """All combinations, ordered by how far down each stage's own list they reach, then as the product runs."""
        ranked = product(*(enumerate(stage.rules) for stage in self.stages))
        ordered = sorted(ranked, key=lambda parts: sum(rank for rank, _ in parts))
        return [tuple(name for _, name in parts) for parts in ordered]
