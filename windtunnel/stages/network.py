"""Networks that defenses carry: trained from their recipe, taken from a file, or copied where shipped weights fit."""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from windtunnel import images, registry, store
from windtunnel.catalogue import NONE
from windtunnel.models.folder import CARD, WEIGHTS
from windtunnel.plan import Plan

if TYPE_CHECKING:
    from windtunnel.networks.base import Network, TrainingData


def network(plan: Plan, name: str) -> Network:
    """The recipe of a network, by name."""
    choice = plan.catalogue.network(name)
    return registry.load("network", choice.entry.method, plan.catalogue.base)(**choice.settings)


def provide(plan: Plan, name: str, folder: Path, *, origin: str = "trained") -> None:
    """Train a network or take its file. One that fails is a card that says why: its cells fail, the others go on."""
    try:
        provide_or_raise(plan, name, folder, origin=origin)
    except OSError as error:
        raise store.StoreError(f"cannot write '{folder}': {error}") from error
    except Exception as error:
        traceback.print_exc()
        store.write_atomic(folder / WEIGHTS, b"")
        store.write_json(folder / CARD, {"status": "error", "reason": f"{type(error).__name__}: {error}"[:500]})


def provide_or_raise(plan: Plan, name: str, folder: Path, *, origin: str, models: Path | None = None) -> None:
    """Train a network or take its file into ``folder``; ``models`` is where the teachers lie."""
    from windtunnel.networks import provide as room

    choice = plan.catalogue.network(name)
    common = {
        "identity": plan.network_settings(name), "digest": plan.network_digest(name), "seed": choice.seed,
        "origin": origin,
    }  # fmt: skip
    if choice.entry.weights is not None:
        path = plan.catalogue.base / choice.entry.weights
        common["origin"] = "file"
        room.provide(network(plan, name), folder, **common, file=path, sha256=choice.entry.sha256)
    else:
        teachers = models or Path("results/models")
        room.provide(network(plan, name), folder, **common, data=partial(training_data, plan, name, teachers))


def training_data(plan: Plan, name: str, models: Path) -> TrainingData:
    """What a network learns from: its data set's own epochs (a user's images in a new order each), its teachers."""
    from windtunnel.models.load import load_model
    from windtunnel.networks.base import TrainingData
    from windtunnel.stages import images as image_stage
    from windtunnel.stages.purify import nchw

    choice = plan.catalogue.network(name)
    dataset = str(choice.entry.dataset)
    if dataset in images.DATASETS:
        epoch = partial(images.dataset_module(dataset).training_epoch, choice.seed)
        held_out = images.build(dataset, "fit")
    else:
        train = image_stage.read(plan, f"{dataset}.train", NONE, None)
        held_out = image_stage.read(plan, f"{dataset}.fit", NONE, None)

        def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
            order = np.random.default_rng([choice.seed, number]).permutation(len(train.sample_ids))
            return train.images[order], _labels(train)[order]

    return TrainingData(
        epoch=epoch,
        held_out=nchw(held_out.images),
        labels=_labels(held_out),
        teachers=tuple(load_model(models / plan.catalogue.model(t).name) for t in choice.entry.teachers),
    )


def _labels(image_set: images.ImageSet) -> np.ndarray:
    if image_set.labels is None:
        return np.full(len(image_set.sample_ids), -1, dtype=np.int64)
    return np.asarray(image_set.labels, dtype=np.int64)
