"""Training of the built-in models: fresh composites every epoch, one seed, one thread, the same weights every time.

Any data set of ``windtunnel.images`` will do: its module offers ``training_epoch(seed, epoch)``. The seed decides the
initial weights, the composites, their order, the noise and the random starts of adversarial training. The result is
rounded to what float16 can hold (head and one-dimensional tensors excepted) unless that costs accuracy, so that shipped
files are small and a stored model is exactly the model that was measured.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from windtunnel import images
from windtunnel.backend import torch
from windtunnel.models.augment import shear
from windtunnel.models.base import Classifier, freeze
from windtunnel.models.build import build_classifier
from windtunnel.models.consistency import VIEWS, consistency_loss, noisy_views
from windtunnel.models.recipes import AdversarialTraining, ConsistencyTraining, Training, read_recipe
from windtunnel.models.robustness import one_step, pgd_accuracy
from windtunnel.models.spec import ModelSpec
from windtunnel.models.weights import is_half, round_to_half

Tensor = torch.Tensor
Epoch = tuple[np.ndarray, np.ndarray]
logger = logging.getLogger(__name__)
# Test accuracy that rounding to float16 may cost before the weights stay float32.
ROUNDING_TOLERANCE = 0.002 + 1e-9
CARD_BUDGETS_255 = (4, 8)


@dataclass(frozen=True)
class EpochReport:
    """One line of progress: ``loss`` and ``accuracy`` are means over the epoch's (possibly attacked) batches."""

    name: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    images_per_second: float


Progress = Callable[[EpochReport], None]


def log_progress(report: EpochReport) -> None:
    """The default progress: one line of log per epoch."""
    logger.info(
        "%s: epoch %d of %d, loss %.4f, accuracy %.4f, %.0f images/s",
        report.name,
        report.epoch,
        report.epochs,
        report.loss,
        report.accuracy,
        report.images_per_second,
    )


def train(spec: ModelSpec, *, progress: Progress = log_progress) -> tuple[Classifier, dict[str, Any]]:
    """The trained, frozen model and its metrics on the data set's first test split.

    Metrics: ``split``, ``clean_accuracy``, ``n``, ``rounded`` (whether weights were rounded to float16),
    ``clean_accuracy_unrounded``; where there are several splits ``test*``, ``accuracy_by_split``; for adversarial
    training ``pgd20_accuracy`` by budget in 1/255; for training under noise ``noisy_accuracy`` by deviation (one draw
    per image). All measured on the model as stored.
    """
    recipe = read_recipe(spec.recipe)
    training, dataset = recipe.training, str(spec.dataset)
    model = build_classifier(
        architecture=spec.architecture, head=str(spec.head), recipe=spec.recipe, classes=spec.classes, seed=spec.seed
    )
    penalty = None
    if training.fusion is not None:
        from windtunnel.models import fusion

        def fit_expert(expert: Classifier, given: Training, named: ModelSpec) -> None:
            fit(expert, epochs_of(dataset, spec.seed, given), given, spec=named, progress=progress)

        fusion.train_experts(model.body, training.fusion, spec, fit_expert)
        if training.fusion.foreground_penalty:
            penalty = fusion.foreground_penalty(model, training.fusion.foreground_penalty)
    fit(model, epochs_of(dataset, spec.seed, training), training, spec=spec, progress=progress, penalty=penalty)
    freeze(model)
    return model, _measured(model, dataset, training)


def epochs_of(dataset: str, seed: int, training: Training) -> Callable[[int], Epoch]:
    """Epoch number -> images and labels of a data set, as the training views it."""
    module = images.dataset_module(dataset)
    return lambda epoch: module.training_epoch(seed, epoch, **(training.view or {}))


def first_epoch_digest(spec: ModelSpec) -> str:
    """SHA-256 of the images and labels of a model's first epoch, for the card.

    Not part of any identity: it shows, by a test, that a change of pixels raised the data's recipe version.
    """
    pixels, labels = epochs_of(str(spec.dataset), spec.seed, read_recipe(spec.recipe).training)(0)
    return hashlib.sha256(pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def _measured(model: Classifier, dataset: str, training: Training) -> dict[str, Any]:
    """Round the weights if that is harmless, then measure."""
    tests = [name for name in images.splits(dataset) if name.startswith("test")]
    data = {}
    for name in tests:
        built = images.build(dataset, name)
        data[name] = as_tensors(built.images, built.labels)
    x, y = data[tests[0]]
    metrics: dict[str, Any] = {"split": tests[0], "n": len(y)}
    metrics["clean_accuracy_unrounded"] = accuracy(model, x, y)
    metrics |= _round_if_harmless(model, x, y, metrics["clean_accuracy_unrounded"])
    if len(tests) > 1:
        metrics["accuracy_by_split"] = {name: accuracy(model, *pair) for name, pair in data.items()}
    if training.adversarial is not None:
        metrics["pgd20_accuracy"] = {str(b): pgd_accuracy(model, x, y, eps_255=b) for b in CARD_BUDGETS_255}
    if training.noise is not None:
        noisy = noisy_views(x, sigma=training.noise, views=1, generator=torch.Generator().manual_seed(0))
        metrics["noisy_accuracy"] = {str(training.noise): accuracy(model, noisy, y)}
    return metrics


def fit(
    model: Classifier,
    epoch_data: Callable[[int], Epoch],
    training: Training,
    *,
    spec: ModelSpec,
    progress: Progress,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Move the weights: ``epoch_data(e)`` gives uint8 images [N, H, W, 3] and labels [N] of epoch e. In place.

    ``penalty``: a further term of the loss. Parameters that want no gradient stay as they are.
    """
    optimiser = _optimiser(model, training)
    generator = torch.Generator().manual_seed(spec.seed)
    for epoch in range(training.epochs):
        pixels, labels = epoch_data(epoch)
        pixels = shear(pixels, slope_64=training.shear_64, seed=spec.seed, epoch=epoch)
        started, total, right = time.monotonic(), 0.0, 0.0
        batches = torch.randperm(len(labels), generator=generator).split(training.batch)
        for index, rows in enumerate(batches):
            # A last batch of a single row has no batch statistics.
            if len(rows) < 2:
                continue
            rate = training.learning_rate * schedule(epoch + index / len(batches), training)
            for group in optimiser.param_groups:
                group["lr"] = rate
            x, y = as_tensors(pixels[rows.numpy()], labels[rows.numpy()])
            if training.adversarial is not None:
                x = _attacked(model, x, y, training.adversarial, epoch + index / len(batches), generator)
            if training.noise is not None:
                views = VIEWS if training.consistency is not None else 1
                x = noisy_views(x, sigma=training.noise, views=views, generator=generator)
            loss, hits = _step(model, x, y, optimiser, consistency=training.consistency, penalty=penalty)
            total += loss * len(y)
            right += hits
        seconds = max(time.monotonic() - started, 1e-9)
        if not math.isfinite(total):
            raise FloatingPointError(f"{spec.name}: the loss of epoch {epoch + 1} is {total}; lower the learning rate")
        n = len(labels)
        progress(EpochReport(spec.name, epoch + 1, training.epochs, total / n, right / n, n / seconds))


def schedule(epoch: float, training: Training) -> float:
    """Share of the peak learning rate at a (fractional) epoch: linear warm-up, then half a cosine down to 0."""
    if epoch < training.warmup_epochs:
        return (epoch + 1e-3) / training.warmup_epochs
    done = (epoch - training.warmup_epochs) / (training.epochs - training.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def accuracy(model: torch.nn.Module, x: Tensor, y: Tensor, *, batch: int = 125) -> float:
    """Share of correct predictions; NaN logits are wrong."""
    right = 0
    with torch.no_grad():
        for a, b in zip(x.split(batch), y.split(batch), strict=True):
            logits = model(a)
            right += int(((logits.argmax(1) == b) & logits.isfinite().all(1)).sum())
    return right / len(y)


def as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [N, H, W, 3] and integers [N] as float32 [N, 3, H, W] in [0, 1] and int64."""
    # Copied: images read from Arrow are not writable, and torch shares memory.
    x = torch.from_numpy(np.array(images, dtype=np.float32)).permute(0, 3, 1, 2).contiguous() / 255
    return x, torch.from_numpy(np.array(labels, dtype=np.int64))


def _attacked(
    model: Classifier, x: Tensor, y: Tensor, budget: AdversarialTraining, epoch: float, generator: torch.Generator
) -> Tensor:
    share = min(1.0, epoch / budget.ramp_epochs) if budget.ramp_epochs else 1.0
    eps, step = share * budget.eps_255 / 255, share * budget.step_255 / 255
    model.train()
    return one_step(model, x, y, eps=eps, step=step, generator=generator)


def _step(
    model: Classifier,
    x: Tensor,
    y: Tensor,
    optimiser: torch.optim.Optimizer,
    *,
    consistency: ConsistencyTraining | None,
    penalty: Callable[[], Tensor] | None,
) -> tuple[float, float]:
    """One step on a batch, or on several views of it (``x`` holds them one after the other); the loss and how many of
    the batch were right, in the mean over views."""
    model.train()
    logits = model(x)
    views = len(x) // len(y)
    target = y if views == 1 else y.repeat(views)
    loss = torch.nn.functional.cross_entropy(logits, target)
    if consistency is not None:
        pairs = logits.unflatten(0, (views, len(y)))
        loss = loss + consistency_loss(pairs, weight=consistency.weight, eta=consistency.eta)
    if penalty is not None:
        loss = loss + penalty()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return float(loss.detach()), int((logits.detach().argmax(1) == target).sum()) / views


def _optimiser(model: Classifier, training: Training) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if training.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(training.momentum, 0.999))


def _round_if_harmless(model: Classifier, x: Tensor, y: Tensor, before: float) -> dict[str, Any]:
    exact = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: round_to_half(name, value) for name, value in exact.items()})
    after = accuracy(model, x, y)
    if abs(after - before) <= ROUNDING_TOLERANCE:
        return {"clean_accuracy": after, "rounded": True}
    changed = sum(is_half(name, value) for name, value in exact.items())
    logger.warning("rounding %d tensors to float16 moved accuracy from %.4f to %.4f: kept", changed, before, after)
    model.load_state_dict(exact)
    return {"clean_accuracy": before, "rounded": False}
