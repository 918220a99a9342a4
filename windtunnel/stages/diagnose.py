"""Measurements around single images: each diagnostic of one job on one pipeline and budget, one part each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel import registry, store
from windtunnel.catalogue import NONE
from windtunnel.jobs import Made, Making, make_parts
from windtunnel.plan import JOB_VERSIONS, DiagnosticKey, Plan
from windtunnel.stages import attack as attack_stage
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage

SEED = 0


def diagnose(plan: Plan, model: str, name: str, manifest: Path, *, attempt: int = 1) -> None:
    """All measurements of one (model, image set)."""
    weights = attack_stage.weights_digest(plan, model)
    makings = [
        Making(key=key_name(key), identity=_identity(plan, key, weights), make=partial(_measure, plan, key))
        for key in plan.diagnostic_jobs[(model, name)]
    ]
    make_parts(
        manifest,
        plan.digest("diagnose", model=model, set=name),
        makings,
        attempt=attempt,
        prepare=partial(attack_stage.classifier, model),
    )


def manifest_of(key: DiagnosticKey) -> Path:
    """The manifest that lists a measurement."""
    return Path("results/diagnosed") / key.model / f"{key.images}.json"


def key_name(key: DiagnosticKey) -> str:
    """The manifest key of a measurement, readable."""
    return ":".join([key.diagnostic, key.threat, key.defense, key.rule])


def _identity(plan: Plan, key: DiagnosticKey, weights: str) -> dict[str, Any]:
    return {
        "job": JOB_VERSIONS["diagnose"],
        "settings": plan.diagnostic_settings(key),
        "weights": weights,
        "networks": purify_stage.network_digests(plan, key.defense),
        "surrogate": attack_stage.surrogate_digest(plan, key.images, key.defense, key.rule),
        "images": image_stage.content(plan, key.images, NONE),
        "batch_size": plan.run.batch_size,
    }


def _measure(plan: Plan, key: DiagnosticKey) -> Made:
    from windtunnel import engine
    from windtunnel.diagnostics.base import Inputs

    image_set = image_stage.read(plan, key.images, NONE, plan.diagnostic_n(key))
    entry, _, settings = plan.catalogue.diagnostic(key.diagnostic)
    threat = plan.catalogue.threat(key.threat)
    method = registry.load("diagnostic", entry.method, plan.catalogue.base)(**settings)
    defense, rounds = purify_stage.build(plan, key.defense) if key.defense != NONE else (None, 1)
    rule = attack_stage.backward_rule(plan, key.images, key.defense, key.rule)
    pipeline = engine.Pipeline(attack_stage.classifier(key.model), defense=defense, rounds=rounds, rule=rule)
    found = method.measure(
        pipeline,
        Inputs(
            images=purify_stage.nchw(image_set.images),
            labels=np.asarray(image_set.labels, dtype=np.int64),
            sample_ids=image_set.sample_ids,
            eps=threat.budget,
            norm=threat.norm,
            seed=SEED,
            batch_size=plan.run.batch_size,
        ),
    )
    quantities = list(found)
    n = len(image_set.sample_ids)
    values = np.concatenate([np.asarray(found[q], dtype=np.float64) for q in quantities])
    columns = {
        "sample_id": list(image_set.sample_ids) * len(quantities),
        "source_id": list(image_set.source_ids) * len(quantities),
        "quantity": [q for q in quantities for _ in range(n)],
        "value": np.ma.masked_array(np.nan_to_num(values), mask=np.isnan(values)),
    }
    return store.table_from_columns(columns, store.schema(store.MEASURED_FIELDS)), {"diagnostic": key.diagnostic}, None
