"""Pipeline contract: facts about the pipeline that make every other number doubtful."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import by_id, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, RowRandom, device_of

SUM_TOLERANCE = 1e-5
BATCH_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class PipelineContract(Diagnostic):
    """Does the pipeline behave as a classifier under evaluation should? Facts, 1 yes and 0 no, the same in every row.

    Asked of the first ``crowd`` inputs in the order of their sample ids:

    * ``random``: ``repeats`` forward passes on one batch differ anywhere (a random defense throws new dice each time);
    * ``softmax``: all outputs lie in [0, 1] and every row sums to 1 within 1e-5: probabilities where logits belong;
    * ``train_mode``: some module is in train mode;
    * ``batch_dependence``: the answers to the first ``few`` alone and within the crowd differ by more than 1e-4 of the
      range of all answers; NaN where the pipeline is random or fewer than two inputs are given (with fewer than ``few``
      + 1, half of them are asked alone);
    * ``dynamic``: a forward pass calls autograd (a defense that optimises at test time). Seen is whatever reaches
      torch's backward engine; an optimisation by hand or in another library is not;
    * ``state_changed``: the digest of the model's parameters and buffers differs after these passes.

    The model is left as it was: its state is put back, its flags are not touched, and torch's global random state is
    kept. Unlike the other diagnostics it accepts a model that is not frozen: that is what it looks for. RobustBench
    (Croce et al., 2020, https://arxiv.org/abs/2010.09670) excludes the random and the dynamic for the same reasons; the
    thresholds are this library's. It uses neither labels nor eps.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = (
        "random", "softmax", "train_mode", "batch_dependence", "dynamic", "state_changed",
    )  # fmt: skip
    bill: ClassVar[tuple[str, ...]] = ("repeats",)

    repeats: int = 5
    few: int = 8
    crowd: int = 64

    def __post_init__(self) -> None:
        if self.repeats < 2 or not 1 <= self.few < self.crowd:
            raise ValueError(f"repeats must be at least 2 and 1 <= few < crowd: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        place = by_id(inputs)[: self.crowd]
        if not len(place):
            return out
        x = torch.from_numpy(np.ascontiguousarray(inputs.images[place])).to(device_of(pipeline.model))
        dice = RowRandom.keyed(inputs.seed, [inputs.sample_ids[i] for i in place]).streams

        def ask(first: int) -> Tensor:
            draws = pipeline.draw(dice[:first], tuple(x.shape[1:]))
            return pipeline.logits(x[:first], draws=draws).double()

        facts: dict[str, Any] = {"train_mode": any(m.training for m in pipeline.model.modules())}
        with _left_alone(pipeline.model, inputs.seed), _engine_calls() as calls:
            before = digest(pipeline.model)
            answers = [ask(len(x)) for _ in range(self.repeats)]
            facts["random"] = any(not torch.equal(answers[0], other) for other in answers[1:])
            first, facts["batch_dependence"] = answers[0], np.nan
            if len(x) > 1 and not facts["random"]:
                few = min(self.few, len(x) // 2) if len(x) <= self.few else self.few
                gap = (ask(few) - first[:few]).abs().max()
                facts["batch_dependence"] = bool(gap > BATCH_TOLERANCE * (first.max() - first.min()))
            facts["state_changed"] = digest(pipeline.model) != before
        facts["dynamic"] = bool(calls)
        facts["softmax"] = bool(
            (first >= 0).all() and (first <= 1).all() and ((first.sum(1) - 1).abs() <= SUM_TOLERANCE).all()
        )
        for name, value in facts.items():
            out[name][:] = float(value)
        return out


def digest(model: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _left_alone(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """The model's state and torch's random state as they were, afterwards; a known random state inside."""
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in model.state_dict().items():
                    tensor.copy_(kept[name])


@contextmanager
def _engine_calls() -> Iterator[list[str]]:
    """Names of the autograd calls made inside, whoever makes them."""
    calls: list[str] = []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*arguments, **named)

        return noted

    # torch's own functions look the engine up when they are called, so code that imported `grad` by name is seen, too
    places = [(torch.autograd, n) for n in ("_engine_run_backward", "grad", "backward") if hasattr(torch.autograd, n)]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    try:
        for owner, name, function in kept:
            setattr(owner, name, noting(name, function))
        yield calls
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
