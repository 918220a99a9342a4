"""Certificates: each smoothed classifier of one job on one share of the samples, one part each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.jobs import Made, Making, make_parts
from windtunnel.plan import JOB_VERSIONS, CertifiedKey, Plan
from windtunnel.stages import attack as attack_stage
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage

SEED = 0


def certify(plan: Plan, model: str, name: str, shard: int, manifest: Path, *, attempt: int = 1) -> None:
    """All certificates of one (model, image set), for the samples i with ``i % certify_shards == shard``."""
    weights = attack_stage.weights_digest(plan, model)
    makings = [
        Making(
            key=key_name(key), identity=_identity(plan, key, shard, weights), make=partial(_certify, plan, key, shard)
        )
        for key in plan.certify_jobs[(model, name)]
    ]
    make_parts(
        manifest,
        plan.digest("certify", model=model, set=name, shard=str(shard)),
        makings,
        attempt=attempt,
        prepare=partial(attack_stage.classifier, model),
    )


def manifest_of(key: CertifiedKey, shard: int) -> Path:
    """The manifest that lists one share of a certificate."""
    return Path("results/certified") / key.model / key.images / f"{shard}.json"


def key_name(key: CertifiedKey) -> str:
    """The manifest key of a certificate, readable."""
    looks = "-".join(str(n) for n in key.looks) or "fixed"
    return ":".join([
        key.defense, f"sigma{key.sigma!r}", f"n0-{key.choose_draws}", f"n-{key.draws}", f"alpha{key.alpha!r}", looks
    ])  # fmt: skip


def _identity(plan: Plan, key: CertifiedKey, shard: int, weights: str) -> dict[str, Any]:
    return {
        "job": JOB_VERSIONS["certify"],
        "settings": plan.certified_settings(key),
        "weights": weights,
        "networks": purify_stage.network_digests(plan, key.defense),
        "images": image_stage.content(plan, key.images, NONE),
        "shard": [shard, plan.run.certify_shards],
        "batch_size": plan.run.batch_size,
        "seed": SEED,
    }


def _certify(plan: Plan, key: CertifiedKey, shard: int) -> Made:
    from windtunnel import engine
    from windtunnel.certify.sampling import Smoothed
    from windtunnel.certify.smoothing import check_radii

    whole = image_stage.read(plan, key.images, NONE, plan.certified_n(key))
    image_set = whole.take(np.arange(shard, len(whole), plan.run.certify_shards))
    defense, rounds = purify_stage.build(plan, key.defense) if key.defense != NONE else (None, 1)
    pipeline = engine.Pipeline(attack_stage.classifier(key.model), defense=defense, rounds=rounds)
    smoothed = Smoothed(pipeline, sigma=key.sigma, seed=SEED, batch_size=plan.run.batch_size)
    found = [
        smoothed.certify(
            image, sample_id, choose_draws=key.choose_draws, draws=key.draws, alpha=key.alpha, looks=key.looks
        )
        for image, sample_id in zip(purify_stage.nchw(image_set.images), image_set.sample_ids, strict=True)
    ]
    check_radii([c.radius for c in found], key.draws, key.alpha, key.sigma, key.looks)
    labels = [int(label) for label in np.asarray(image_set.labels)]
    columns = {
        "sample_id": list(image_set.sample_ids),
        "source_id": list(image_set.source_ids),
        "label": labels,
        "predicted": [c.predicted for c in found],
        "radius": [c.radius for c in found],
        "correct": [c.predicted == label for c, label in zip(found, labels, strict=True)],
        "chosen": [c.chosen for c in found],
        "agreeing": [c.agreeing for c in found],
        "n_used": [c.n_used for c in found],
    }
    return store.table_from_columns(columns, store.schema(store.CERTIFICATE_FIELDS)), {"sigma": key.sigma}, None
