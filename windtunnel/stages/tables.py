"""The four tables: what each cell is, what every number is, what it cost. I/O around ``stages.summarise``."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.checks.base import COLUMNS
from windtunnel.metrics import detection
from windtunnel.metrics.trivial import trivial_statistics
from windtunnel.plan import Cell, Plan, Wanted, versions
from windtunnel.stages import diagnose, summarise
from windtunnel.stages import images as image_stage
from windtunnel.stages.attack import key_name, weights_digest
from windtunnel.stages.observe import attacked_manifest, key_columns, manifest_of

TABLE_METADATA = {"schema_version": store.SCHEMA_VERSION}


def write_group_metrics(plan: Plan, group: str, output: Path) -> None:
    """Every number of the models of one group, each training seed for itself."""
    samples = _samples(plan, [(g, b) for g, b in plan.score_jobs if g == group], summarise.SAMPLE_COLUMNS, scores=True)
    rows: list[dict[str, Any]] = []
    for model in plan.judges:
        if plan.group_of(model) != group:
            continue
        mine = samples[samples["model_seed"] == plan.catalogue.model(model).seed]
        infos = [cell_info(plan, w) for w in plan.cells if w.cell.model == model]
        rows += summarise.cell_metrics(mine, scores=plan.run.scores, cell_infos=infos, replicates=plan.run.replicates)
    store.write_table(output, summarise.metrics_table(rows), TABLE_METADATA)


def write_metrics(plan: Plan, output: Path) -> None:
    """All models' numbers, with means over training seeds and paired tests between models."""
    tables = [store.read_table(Path("results/metrics") / f"{m}.parquet") for m in plan.groups]
    rows = [row for table in tables for row in table.to_pylist()]
    measured = summarise.diagnostic_metrics(_diagnostics(), replicates=plan.run.replicates)
    whole = [*rows, *summarise.group_metrics(rows), *measured]
    store.write_table(output, summarise.metrics_table(whole), TABLE_METADATA)


def write_diagnostics(plan: Plan, output: Path) -> None:
    """Every measurement around single images, sample by sample; without any an empty table."""
    schema = store.schema(store.DIAGNOSTIC_FIELDS)
    tables = [schema.empty_table()]
    for keys in plan.diagnostic_jobs.values():
        for key in keys:
            manifest = diagnose.manifest_of(key)
            part = store.read_manifest(manifest)[diagnose.key_name(key)]
            if part.status != "ok":
                continue  # the verdict names it
            measured = store.part_table(manifest, part)
            choice, model = plan.set_choice(key.images), plan.catalogue.model(key.model)
            threat = plan.catalogue.threat(key.threat)
            shared = {
                "dataset": choice.dataset, "split": choice.split, "shift": NONE, "severity": None,
                "model": model.family, "model_seed": model.seed, "defense": key.defense, "through": key.rule,
                "threat": key.threat, "norm": threat.norm, "eps": threat.budget, "diagnostic": key.diagnostic,
                "method": plan.catalogue.diagnostic(key.diagnostic)[1].name,
            }  # fmt: skip
            columns = {name: measured.column(name) for name in measured.column_names}
            tables.append(store.table_from_columns(shared | columns, schema))
    store.write_table(output, pa.concat_tables(tables), TABLE_METADATA)


def write_cells(plan: Plan, output: Path) -> None:
    """One row per cell: settings, counts, checks, digests, versions, status."""
    samples = _samples(plan, plan.score_jobs, (*COLUMNS, "eps_255"), scores=False)
    infos = [_recorded(plan, cell_info(plan, w), w) for w in plan.cells]
    store.write_table(
        output,
        summarise.cells_table(samples, infos, _by_method(plan)),
        TABLE_METADATA,
    )


def write_costs(plan: Plan, output: Path) -> None:
    """Seconds, memory and gradient evaluations of every part that this results folder holds."""
    jobs: list[tuple[str, str, Path]] = []
    jobs += [("images_build", d, Path(f"results/images/{d}/manifest.json")) for d in plan.datasets]
    jobs += [("images_shift", s, Path(f"results/images/{s}/shifted.json")) for s in plan.shifted_sets]
    jobs += [("purify_shared", f"{d}/{f}", Path(f"results/defended/{d}/{f}.json")) for d, f in plan.purified]
    jobs += [("diagnose", f"{m}/{s}", Path(f"results/diagnosed/{m}/{s}.json")) for m, s in plan.diagnostic_jobs]
    jobs += [
        ("certify", f"{m}/{s}/{i}", Path(f"results/certified/{m}/{s}/{i}.json"))
        for m, s in plan.certify_jobs
        for i in range(plan.run.certify_shards)
    ]
    jobs += [("attack", f"{m}/{s}/{b}", Path(f"results/attacked/{m}/{s}/{b}.json")) for m, s, b in plan.attack_jobs]
    jobs += [("observe", f"{m}/{b}", Path(f"results/observed/{m}/{b}.json")) for m, b in plan.observe_jobs]
    cells = {plan.cell_id(w.cell) for w in plan.cells}
    rows: list[dict[str, Any]] = []
    for rule, job, manifest in jobs:
        for key, costs in _costs_of(manifest):
            rows.append(
                {
                    "rule": rule,
                    "job": job,
                    "part": key,
                    "cell_id": key if key in cells else None,
                    "wall_seconds": costs.get("wall_seconds"),
                    "cpu_seconds": costs.get("cpu_seconds"),
                    "gpu_seconds": costs.get("gpu_seconds"),
                    "peak_memory_mb": costs.get("peak_memory_mb"),
                    "gradient_evaluations": costs.get("gradient_evaluations"),
                    "device": costs.get("device"),
                }
            )
    for path in sorted(Path("results/costs").glob("**/*.json")):
        whole = store.read_json(path)
        pieces = path.relative_to("results/costs").with_suffix("").parts
        rows.append(
            {**dict.fromkeys(n for n, _ in store.COST_FIELDS), "rule": pieces[0], "job": "/".join(pieces[1:]), **whole}
        )
    names = [name for name, _ in store.COST_FIELDS]
    table = store.table_from_columns({n: [r[n] for r in rows] for n in names}, store.schema(store.COST_FIELDS))
    store.write_table(output, table, TABLE_METADATA)


def cell_info(plan: Plan, wanted: Wanted) -> dict[str, Any]:
    """What the plan alone knows of a cell, for summaries and checks."""
    cell = wanted.cell
    choice = plan.catalogue.model(cell.model)
    defense = plan.catalogue.defense(cell.defense) if cell.defense != NONE else None
    return {
        **key_columns(plan, cell),
        "own_name": choice.name,
        "has_scores": bool(wanted.scores),
        "fit_on": plan.run.fit_on if wanted.scores else None,
        "rule_is_generic": defense.is_generic(cell.through) if defense else None,
        "adversarially_trained": bool((choice.entry.recipe.get("training") or {}).get("adversarial")),
        "defense_is_random": defense.is_random if defense else False,
        **_attack_info(plan, cell),
    }


def _attack_info(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What checks want to know of the attack behind a cell: of a battery its members' methods and settings."""
    if cell.attack is None:
        return {}
    choice = plan.catalogue.attack(cell.attack.attack)
    members = [{"method": m.method, "settings": m.settings} for m in choice.members]
    single = members[0] if len(members) == 1 else {"method": "battery", "settings": {"members": members}}
    return {
        "attack_method": single["method"],
        "attack_settings": {**single["settings"], "eot": choice.entry.eot},
        "uses_gradient": choice.uses_gradient,
        "source_members": plan.catalogue.members(cell.attack.model),
    }


def _recorded(plan: Plan, info: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """What the run left behind about a cell: digests, versions, how it went."""
    cell = wanted.cell
    observed = store.read_manifest(manifest_of(plan, wanted))[plan.cell_id(cell)]
    settings = {**plan.cell_settings(cell), "n": wanted.n}
    if cell.attack is not None:
        settings["attack"] = plan.attack_settings(cell.attack)
        attacked = store.read_manifest(attacked_manifest(plan, cell))[key_name(cell.attack)]
        settings["attacked_part"] = attacked.sha256
    return {
        **info,
        "config_json": store.canonical_json(settings),
        "weights_sha256": weights_digest(plan, cell.model),
        "source_weights_sha256": weights_digest(plan, cell.attack.model) if cell.attack else None,
        "versions_json": store.canonical_json(versions()),
        "commit": _commit(),
        "status": observed.status,
        "reason": observed.reason,
    }


@functools.cache
def _commit() -> str | None:
    """The commit of the workflow's repository, null outside of one; ``+`` where its files were changed since."""
    root = Path(__file__).resolve().parents[2]
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _costs_of(manifest: Path) -> list[tuple[str, dict[str, Any]]]:
    wanted = store.read_manifest(manifest)
    notes = [store.read_json(p) for p in sorted((store.parts_folder(manifest) / ".made").glob("*.json"))]
    by_key = {n["key"]: n.get("costs") or {} for n in notes if n["key"] in wanted}
    return [(key, by_key.get(key, {})) for key in wanted]


def _by_method(plan: Plan) -> pd.DataFrame:
    """Measurements under their method's name, which checks ask for: of several entries of one method the one with the
    method's own settings, else the first by name."""

    def rank(name: str) -> tuple[bool, str]:
        _, card, settings = plan.catalogue.diagnostic(name)
        return settings != card.settings, name

    measured = _diagnostics()
    chosen: dict[str, str] = {}
    for name in sorted(set(measured["diagnostic"]), key=rank):
        chosen.setdefault(plan.catalogue.diagnostic(name)[1].name, name)
    kept = measured[measured["diagnostic"].isin(chosen.values())]
    return kept.drop(columns="diagnostic").rename(columns={"method": "diagnostic"})


def _diagnostics() -> pd.DataFrame:
    return store.read_table("results/tables/diagnostics.parquet").to_pandas()


def _samples(plan: Plan, jobs: Sequence[tuple[str, str]], columns: Sequence[str], *, scores: bool) -> pd.DataFrame:
    schema = store.samples_schema(plan.run.scores)
    names = [n for n in schema.names if n in columns or (scores and n.startswith("score_"))]
    files = [Path("results/tables/samples") / f"{m}.{b}.parquet" for m, b in sorted(jobs)]
    return pa.concat_tables([store.read_table(f, names) for f in files]).to_pandas()


def trivial_rows(plan: Plan) -> pd.DataFrame:
    """What image statistics that know of no model reach as OOD scores: columns dataset, group, statistic, metric,
    value.

    A statistic separates in one direction or the other; the better of the two is shown, which flatters it: it is the
    bar.
    """
    references = sorted({w.cell.images for w in plan.cells if w.scores and plan.set_choice(w.cell.images).role == "id"})
    others = sorted(
        {
            w.cell.images
            for w in plan.cells
            if w.scores
            and w.cell.attack is None
            and w.cell.shift == NONE
            and plan.set_choice(w.cell.images).role not in ("id", "train", "fit", "validation")
        }
    )
    rows: list[dict[str, Any]] = []
    for reference in references:
        inside = trivial_statistics(image_stage.read(plan, reference, NONE, None).images)
        dataset = plan.set_choice(reference).dataset
        by_role: dict[tuple[str, str, str], list[float]] = {}
        for name in others:
            choice = plan.set_choice(name)
            outside = trivial_statistics(image_stage.read(plan, name, NONE, None).images)
            if choice.dataset != dataset:
                continue
            for statistic in inside:
                for metric, value in _both_directions(inside[statistic], outside[statistic]).items():
                    rows.append(
                        {
                            "dataset": dataset,
                            "group": choice.split,
                            "statistic": statistic,
                            "metric": metric,
                            "value": value,
                        }
                    )
                    by_role.setdefault((choice.role, statistic, metric), []).append(value)
        for (role, statistic, metric), values in by_role.items():
            rows.append(
                {
                    "dataset": dataset,
                    "group": role,
                    "statistic": statistic,
                    "metric": metric,
                    "value": float(np.mean(values)),
                }
            )
    return pd.DataFrame(rows, columns=["dataset", "group", "statistic", "metric", "value"])


def _both_directions(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    up = detection.auroc(inside, outside) or 0.0
    sign = 1.0 if up >= 0.5 else -1.0
    a, b = sign * inside, sign * outside
    return {
        "auroc": max(up, 1.0 - up),
        "fpr95_id_positive": detection.fpr95_id_positive(a, b),
        "fpr95_ood_positive": detection.fpr95_ood_positive(a, b),
    }


__all__ = [
    "cell_info",
    "trivial_rows",
    "write_cells",
    "write_costs",
    "write_diagnostics",
    "write_group_metrics",
    "write_metrics",
]
