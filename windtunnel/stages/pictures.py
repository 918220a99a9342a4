"""Images of a run for its galleries: the stored attacked images, purified again, with what the models said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.jobs import log
from windtunnel.plan import Cell, Plan
from windtunnel.stages import attack as attack_stage
from windtunnel.stages import images as image_stage
from windtunnel.stages import observe as observe_stage
from windtunnel.stages import purify as purify_stage

if TYPE_CHECKING:
    from windtunnel.present.figures import DefenseGallery, Picture

PICTURES = 6
DEFENSES = 14
SURE = 0.9


@dataclass(frozen=True)
class Shown:
    """The fully driven bare attack that the galleries show, with its images and rows of ``samples`` in one order."""

    cell: Cell
    ids: list[str]
    labels: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    plain_rows: pd.DataFrame
    attacked_rows: pd.DataFrame
    class_names: tuple[str, ...]

    def word(self, k: float) -> str:
        """A class in words."""
        return "?" if pd.isna(k) else self.class_names[int(k)] if self.class_names else str(int(k))


def attacked(plan: Plan, samples: pd.DataFrame) -> list[Picture]:
    """Samples for the gallery: clean-correct, one per class in order, behind the first defense that was judged on the
    same images without the attack knowing of it. The first samples by id are shown, not the prettiest.
    """
    from windtunnel.present.figures import Picture

    shown = _shown(plan, samples)
    if shown is None:
        return []
    key = shown.cell.attack
    chosen = _one_per_class(shown.plain_rows, shown.labels)
    judged = ((cell, _rows_of(plan, samples, cell, shown.ids)) for cell in _judged_behind(plan, shown.cell))
    behind, rows = next(((cell, rows) for cell, rows in judged if rows is not None), (None, None))
    seen = None
    if behind is not None and rows is not None:
        seen = _purified_or_none(plan, behind.defense, shown.attacked[chosen], [shown.ids[i] for i in chosen])
    found = []
    for place, i in enumerate(chosen):
        after = rows.iloc[i] if seen is not None and rows is not None else None
        found.append(
            Picture(
                clean=_hwc(shown.clean[i]),
                adversarial=_hwc(shown.attacked[i]),
                defended=_hwc(seen[place]) if seen is not None else None,
                label=shown.word(shown.labels[i]),
                clean_pred=shown.word(shown.plain_rows.iloc[i]["pred"]),
                clean_conf=float(shown.plain_rows.iloc[i]["conf"]),
                adversarial_pred=shown.word(shown.attacked_rows.iloc[i]["pred"]),
                adversarial_conf=float(shown.attacked_rows.iloc[i]["conf"]),
                defended_pred=shown.word(after["pred"]) if after is not None else "",
                defended_conf=float(after["conf"]) if after is not None else float("nan"),
                left=f"{shown.cell.model}\n{key.attack} {key.threat}" + (f"\n{behind.defense}" if behind else ""),
                under=f"linf {float(shown.attacked_rows.iloc[i]['linf']) * 255:.0f}/255",
                under_defended=_rate(after),
            )
        )
    return found


def defended(plan: Plan, samples: pd.DataFrame) -> DefenseGallery | None:
    """One image behind many defenses, clean and attacked by someone who knows of none of them.

    The image is the first by id that every defense was judged on, that the bare model has right with a confidence of
    at least .9 (where there is none, right at all) and that the attack turns.
    Of every family the setting with most cells in the run is shown; while there is room, then the most rounds of each
    repeated defense, then other settings applied once; a defense whose network is not there is left out.
    """
    from windtunnel.present.figures import DefendedRow, DefenseGallery

    shown = _shown(plan, samples)
    if shown is None:
        return None
    pairs = {}
    for cell in _judged_behind(plan, shown.cell):
        clean = Cell(cell.images, cell.shift, cell.model, cell.defense, None, NONE)
        found = [_partly(plan, samples, c) for c in (clean, cell)]
        if all(rows is not None and len(rows) for rows in found):
            pairs[cell.defense] = found
    names = _chosen(plan, list(pairs))
    right, still = (rows["correct"].fillna(False).astype(bool) for rows in (shown.plain_rows, shown.attacked_rows))
    turned = [
        sample
        for sample in shown.ids
        if right[sample] and not still[sample] and all(sample in rows.index for n in names for rows in pairs[n])
    ]
    turned.sort(key=lambda sample: float(shown.plain_rows.loc[sample, "conf"]) < SURE)
    if not names or not turned:
        return None
    i = shown.ids.index(turned[0])
    made = []
    for name in names:
        found = [_purified_or_none(plan, name, x[i : i + 1], [turned[0]]) for x in (shown.clean, shown.attacked)]
        if any(images is None for images in found):
            continue
        seen = [images[0] for images in found]
        before, after = (rows.loc[turned[0]] for rows in pairs[name])
        made.append(
            DefendedRow(
                defense=name,
                clean=_hwc(seen[0]),
                clean_pred=shown.word(before["pred"]),
                clean_conf=float(before["conf"]),
                adversarial=_hwc(seen[1]),
                adversarial_pred=shown.word(after["pred"]),
                adversarial_conf=float(after["conf"]),
                under=_rate(before),
            )
        )
    key = shown.cell.attack
    return DefenseGallery(
        clean=_hwc(shown.clean[i]),
        clean_pred=shown.word(shown.plain_rows.iloc[i]["pred"]),
        clean_conf=float(shown.plain_rows.iloc[i]["conf"]),
        adversarial=_hwc(shown.attacked[i]),
        adversarial_pred=shown.word(shown.attacked_rows.iloc[i]["pred"]),
        adversarial_conf=float(shown.attacked_rows.iloc[i]["conf"]),
        label=shown.word(shown.labels[i]),
        model=shown.cell.model,
        images=shown.cell.images,
        attack=key.attack,
        threat=key.threat,
        rows=tuple(made),
    )


def _shown(plan: Plan, samples: pd.DataFrame) -> Shown | None:
    """The run's fully driven attack at the largest linf budget up to 8/255 on an undefended model, if its images are
    there."""
    bare = _shown_attack(plan)
    if bare is None or bare.attack is None:
        return None
    manifest = observe_stage.attacked_manifest(plan, bare)
    part = store.read_manifest(manifest)[attack_stage.key_name(bare.attack)]
    if part.status != "ok":
        return None
    images = image_stage.read(plan, bare.images, bare.shift, plan.n_of(bare.attack))
    ids = list(images.sample_ids)
    plain = _rows_of(plan, samples, Cell(bare.images, bare.shift, bare.model, NONE, None, NONE), ids)
    rows = _rows_of(plan, samples, bare, ids)
    if plain is None or rows is None:
        return None
    return Shown(
        cell=bare,
        ids=ids,
        labels=np.asarray(images.labels),
        clean=purify_stage.nchw(images.images),
        attacked=attack_stage.unpack(store.part_table(manifest, part), "best"),
        plain_rows=plain,
        attacked_rows=rows,
        class_names=tuple(plan.catalogue.model(bare.model).entry.class_names or ()),
    )


def _judged_behind(plan: Plan, bare: Cell) -> list[Cell]:
    """Cells that judge the bare attack's images behind a defense, on the same model, in the order of the run."""
    return [
        w.cell
        for w in plan.cells
        if w.cell.attack == bare.attack
        and w.cell.defense != NONE
        and w.cell.model == bare.model
        and w.cell.iterate == bare.iterate
    ]


def _chosen(plan: Plan, names: list[str]) -> list[str]:
    from windtunnel.present import style

    cells = pd.Series([w.cell.defense for w in plan.cells], dtype=object).value_counts()
    by_use = sorted(names, key=lambda n: (-int(cells.get(n, 0)), style.defense_order(n)))
    families = list({style.defense_family(n): n for n in reversed(by_use)}.values())
    repeated = [n for n in names if style.defense_rounds(n)[1] > 1]
    most = {style.defense_rounds(n)[0]: n for n in sorted(repeated, key=style.defense_order)}
    once = [n for n in by_use if style.defense_rounds(n)[1] == 1]
    order = [*sorted(families, key=by_use.index), *most.values(), *once]
    return sorted(list(dict.fromkeys(order))[:DEFENSES], key=style.defense_order)


def _purified_or_none(plan: Plan, name: str, images: np.ndarray, sample_ids: list[str]) -> np.ndarray | None:
    """As ``_purified``; None, and a line of log, where it fails: a gallery must not stop the report that says why."""
    try:
        return _purified(plan, name, images, sample_ids)
    except Exception as error:
        log.warning("left out of the gallery: %s: %s: %s", name, type(error).__name__, error)
        return None


def _purified(plan: Plan, name: str, images: np.ndarray, sample_ids: list[str]) -> np.ndarray:
    """Images behind a defense; behind a random one with the first dice of those that judged."""
    from windtunnel import engine
    from windtunnel.defenses.base import repeat

    method, rounds = purify_stage.build(plan, name)
    dice = None
    if plan.catalogue.defense(name).is_random:
        dice = engine.RowRandom.keyed(observe_stage.DEFENSE_SEED, [f"{s}\0judge" for s in sample_ids]).streams
    return repeat(method, images, rounds, dice).images


def _partly(plan: Plan, samples: pd.DataFrame, cell: Cell) -> pd.DataFrame | None:
    """A cell's rows by sample, whichever samples it has, failed ones left out; None where the run has no such cell."""
    if cell not in {w.cell for w in plan.cells}:
        return None
    rows = samples[samples["cell_id"] == plan.cell_id(cell)].set_index("sample_id")
    return rows[rows["status"] != "error"]


def _rows_of(plan: Plan, samples: pd.DataFrame, cell: Cell, sample_ids: list[str]) -> pd.DataFrame | None:
    rows = _partly(plan, samples, cell)
    return rows.loc[sample_ids] if rows is not None and set(sample_ids) <= set(rows.index) else None


def _shown_attack(plan: Plan) -> Cell | None:
    """The cell whose images the gallery shows."""
    candidates = [
        w.cell
        for w in plan.cells
        if w.cell.attack is not None
        and w.cell.attack.mode == "full"
        and w.cell.attack.defense == NONE
        and w.cell.defense == NONE
        and w.cell.attack.model == w.cell.model
        and w.cell.iterate == "best"
        and plan.catalogue.threat(w.cell.attack.threat).norm == "linf"
        and plan.catalogue.threat(w.cell.attack.threat).budget <= 8 / 255 + 1e-9
    ]
    return max(candidates, key=lambda c: plan.catalogue.threat(c.attack.threat).budget, default=None)  # type: ignore[union-attr]


def _one_per_class(plain: pd.DataFrame, labels: np.ndarray) -> list[int]:
    correct = plain["correct"].fillna(False).to_numpy(dtype=bool)
    firsts = [
        int(np.flatnonzero(correct & (labels == k))[0]) for k in np.unique(labels) if (correct & (labels == k)).any()
    ]
    return sorted(firsts)[:PICTURES]


def _rate(row: pd.Series | None) -> str:
    return f"{float(row['bpp_payload']):.2f} bpp" if row is not None and pd.notna(row["bpp_payload"]) else ""


def _hwc(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 2, 0)
