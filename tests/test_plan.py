"""Catalogue, config and plan: what is refused, what is collapsed, what is identity."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml
from workflow import ROOT

from windtunnel.catalogue import Catalogue, ConfigError
from windtunnel.models import spec
from windtunnel.plan import JOB_VERSIONS, Plan

MODEL = "digits-cnn"
SET = "photodigits.test"


def plan(*blocks: dict[str, Any], **more: Any) -> Plan:
    return Plan.of({"scores": ["msp", "energy"], "blocks": list(blocks), **more}, source="run.yaml")


def problems(*blocks: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(*blocks, **more)
    return caught.value.problems


def block(**more: Any) -> dict[str, Any]:
    return {"images": SET, "models": MODEL, "n": 8, **more}


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("**/*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Any) -> None:
    found = Plan.of(yaml.safe_load(path.read_text()), source=path.name)
    assert found.cells
    assert found.bill()["cells"] == len(found.cells)


REFUSED = {
    "unknown key": (block(defences="jpeg-50"), ["run.yaml: blocks[0].defences", "did you mean 'defenses'"]),
    "wrong type": (block(n="many"), ["blocks[0].n"]),
    "empty list": (block(models=[]), ["blocks[0].models", "select nothing"]),
    "duplicate in list": (block(models=[MODEL, MODEL]), ["blocks[0].models", "duplicate name"]),
    "unknown model": (block(models="digits-cn"), ["blocks[0].models[0]", "did you mean 'digits-cnn'"]),
    "unknown seed": (block(models="digits-cnn-s9"), ["no training seed 9"]),
    "unknown set": (block(images="photodigits.tset"), ["blocks[0].images[0]", "did you mean 'test'"]),
    "unknown dataset": (block(images="cifar.test"), ["unknown data set 'cifar'"]),
    "unknown attack": (block(attacks="pdg20", threats="linf-8"), ["did you mean 'pgd20'"]),
    "unknown threat": (block(attacks="pgd20", threats="linf-9"), ["unknown threat 'linf-9'"]),
    "unknown defense": (block(defenses="jpg-50"), ["unknown defense 'jpg'", "did you mean 'jpeg'"]),
    "strength out of range": (block(defenses="jpeg-101"), ["quality must be 1 to 100"]),
    "strength missing": (block(defenses="jpeg"), ["needs a number"]),
    "strength not taken": (block(defenses="wavelet-3"), ["takes no number"]),
    "one round": (block(defenses="jpeg-50-x1"), ["starts at 2"]),
    "attack without threat": (block(attacks="pgd20"), ["blocks[0].threats", "need a threat"]),
    "threat without attack": (block(threats="linf-8"), ["blocks[0].attacks", "need an attack"]),
    "norm": (block(attacks="pma-100", threats="l2-50"), ["blocks[0].threats[0]", "not for the l2 threat"]),
    "rule": (
        block(attacks="pgd20", threats="linf-8", defenses="jpeg-50", through="surogate-1"),
        ["no backward rule 'surogate-1'", "did you mean 'surrogate-1'"],
    ),
    "an attack on the codec without one": (block(attacks="codec-pgd-20", threats="linf-8"), ["attacks a defense, not"]),
    "an ensemble that judges": (block(models="ens-cnns"), ["blocks[0].models[0]", "name it under sources"]),
    "a random defense searched": (
        block(attacks="pgd20", threats="linf-8", defenses="random-pad", through="exact", mode="search"),
        ["cannot be searched"],
    ),
    "rounds inside a composition": (block(defenses="jpeg-50-x2-then-median-3"), ["rounds stand at the end"]),
    "a random stage": (block(defenses="jpeg-50-then-random-pad"), ["random 'random-pad' cannot be part"]),
    "through nothing": (block(attacks="pgd20", threats="linf-8", through="identity"), ["no defense to go through"]),
    "through without attack": (block(defenses="jpeg-50", through="identity"), ["no attack to go through"]),
    "search on another pipeline": (
        block(attacks="pgd20", threats="linf-8", mode="search", defenses=["none", "jpeg-50"]),
        ["blocks[0].mode", "not made on", "mode: full"],
    ),
    "search transferred": (
        block(attacks="pgd20", threats="linf-8", mode="search", sources="digits-cnn-s1"),
        ["may not be transferred"],
    ),
    "search scored": (block(attacks="pgd20", threats="linf-8", mode="search", scores="all"), ["may not be scored"]),
    "search iterates": (
        block(attacks="pgd20", threats="linf-8", mode="search", iterates=["last"]),
        ["blocks[0].iterates"],
    ),
    "no labels": (block(images="photodigits.letters", attacks="pgd20", threats="linf-8"), ["no labels to attack"]),
    "role": (block(images="photodigits.test", role="ood"), ["has role id, but the block says ood"]),
    "score not of the run": (block(scores=["vim"]), ["'vim' is not among the run's scores"]),
    "shift": (block(shifts="gaussian_noise-7"), ["severity must be one of"]),
    "unknown shift": (block(shifts="gausian_noise-1"), ["did you mean 'gaussian_noise'"]),
    "shift without margin": (
        block(images="photodigits.science", shifts="pixel_shift-1"),
        ["no margin", "cyclic_shift-1"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    wrong, pieces = REFUSED[name]
    found = "\n".join(problems(wrong))
    for piece in pieces:
        assert piece in found


def test_all_problems_at_once_and_each_with_its_place() -> None:
    found = problems(block(models="x", defenses="y-1"), block(attacks="z", threats="linf-8"), scores=["nope"])
    assert len(found) == 4
    assert all(p.startswith("run.yaml: ") for p in found)


def test_wrong_names_are_reported_beside_wrong_keys() -> None:
    found = problems(block(defences="jpeg-50"), block(models="digits-cn"), scores=["nope"], nmae="x")
    assert len(found) == 4
    text = "\n".join(found)
    for piece in ("blocks[0].defences", "blocks[1].models[0]", "scores[0]", "nmae: unknown key; did you mean 'name'?"):
        assert piece in text


def test_budgets_need_their_unit() -> None:
    threats = {
        "none-given": {"norm": "linf"},
        "both": {"norm": "linf", "eps": 0.1, "eps_255": 8},
        "levels": {"norm": "linf", "eps": 8},
    }
    found = "\n".join(problems(block(), catalogue={"threats": threats}))
    assert found.count("a budget needs its unit") == 2
    assert "did you mean eps_255: 8?" in found


def test_user_entries() -> None:
    found = "\n".join(problems(block(), catalogue={"threats": {"linf-8": {"norm": "linf", "eps_255": 8}}}))
    assert "catalogue.threats.linf-8: duplicate name" in found
    found = "\n".join(problems(block(), catalogue={"attacks": {"mine": {"method": "nowhere.py"}}}))
    assert "no file" in found
    found = "\n".join(
        problems(
            block(attacks="fast", threats="linf-8"),
            catalogue={"attacks": {"fast": {"method": "pgd", "settings": {"stepz": 3}}}},
        )
    )
    assert "unknown setting 'stepz'" in found
    assert "did you mean 'step" in found
    own = plan(
        block(attacks="fast", threats="mine"),
        catalogue={
            "attacks": {"fast": {"method": "pgd", "settings": {"steps": 3}}},
            "threats": {"mine": {"norm": "linf", "eps_255": 6}},
        },
    )
    (cell,) = own.cells
    settings = own.attack_settings(cell.cell.attack)  # type: ignore[arg-type]
    assert settings["members"][0]["settings"]["steps"] == 3
    assert settings["threat"] == {"norm": "linf", "eps": 6 / 255}


def test_union_collapses_duplicates_and_takes_the_larger_n() -> None:
    found = plan(block(n=8), block(n=20, defenses=["none", "jpeg-50"]), block(n=8, scores="all"))
    assert [(w.cell.defense, w.n, w.scores) for w in found.cells] == [
        ("none", 20, ("msp", "energy")),
        ("jpeg-50", 20, ()),
    ]


def test_meaningless_combinations_collapse() -> None:
    crossed = plan(block(attacks=["none", "pgd20"], threats=["none", "linf-4", "linf-8"]))
    assert [(w.cell.attack.threat if w.cell.attack else "clean") for w in crossed.cells] == [
        "clean",
        "linf-4",
        "linf-8",
    ]
    through = plan(
        block(
            attacks="pgd20",
            threats="linf-8",
            defenses=["none", "jpeg-50", "jpeg-50-x2"],
            through=["surrogate-n", "surrogate-1"],
        )
    )
    assert [(w.cell.defense, w.cell.through) for w in through.cells] == [
        ("none", "bare"),
        ("jpeg-50", "surrogate-1"),
        ("jpeg-50-x2", "surrogate-n"),
        ("jpeg-50-x2", "surrogate-1"),
    ]


def test_seeds_and_names() -> None:
    found = plan(block(seeds="all"))
    assert found.judges == ["digits-cnn", "digits-cnn-s1", "digits-cnn-s2", "digits-cnn-s3", "digits-cnn-s4"]
    assert plan(block(models="digits-cnn-s0")).judges == ["digits-cnn"]


def test_an_unaware_attack_and_one_on_the_bare_model_are_one_attack() -> None:
    found = plan(block(attacks="pgd20", threats="linf-8", defenses=["none", "jpeg-50", "median-3"]))
    assert len(found.cells) == 3
    assert len(found.attack_jobs[(MODEL, SET, "bare")]) == 1


def test_identity_follows_what_matters_and_nothing_else() -> None:
    base = plan(block(attacks="pgd20", threats="linf-8"))
    (cell,) = base.cells

    def of(found: Plan) -> tuple[str, str]:
        wildcards = {"model": MODEL, "set": SET, "batch": "bare"}
        return found.cell_id(found.cells[0].cell), found.digest("attack", **wildcards)

    assert of(plan(block(attacks="pgd20", threats="linf-8", name="other"))) == of(base)
    more = plan(block(attacks="pgd20", threats="linf-8"), name="renamed", replicates=500, scores=[])
    assert of(more) == of(base)
    larger = plan(block(attacks="pgd20", threats="linf-8", n=9))
    assert of(larger)[0] == of(base)[0]
    assert of(larger)[1] != of(base)[1]
    seeded = plan(block(attacks="pgd20", threats="linf-8", attack_seeds=1))
    assert of(seeded)[0] != of(base)[0]
    assert cell.cell.attack is not None


def test_a_raised_algorithm_version_is_another_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from windtunnel import registry

    base = plan(block(defenses="jpeg-50"))
    before = base.cell_id(base.cells[0].cell)
    card = registry.card("defense", "jpeg")
    raised = dataclasses.replace(card, constants={**card.constants, "algorithm_version": card.algorithm_version + 1})
    monkeypatch.setattr(Catalogue, "_card", lambda self, kind, method: raised)
    after = Plan.of({"blocks": [block(defenses="jpeg-50")]})
    assert after.cell_id(after.cells[0].cell) != before


def test_every_job_has_a_digest_and_planning_is_light() -> None:
    found = Plan.of(yaml.safe_load((ROOT / "config/tiny.yaml").read_text()))
    digests = set()
    for (model, name, batch), keys in found.attack_jobs.items():
        digests.add(found.digest("attack", model=model, set=name, batch=batch))
        assert keys
    for group, batch in found.observe_jobs:
        digests.add(found.digest("observe", group=group, batch=batch))
        digests.add(found.digest("score", group=group, batch=batch))
    assert len(digests) == len(found.attack_jobs) + 2 * len(found.observe_jobs)
    code = (
        "import sys, yaml; from windtunnel.plan import Plan; Plan.of(yaml.safe_load(open('config/config.yaml')));"
        "print('torch' in sys.modules, 'skimage' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
    assert set(JOB_VERSIONS) >= {"attack", "observe", "score", "purify_shared"}


def test_planning_a_thousand_cells_takes_milliseconds_each() -> None:
    """Not a time limit: the number of settings computed per cell does not grow with the number of cells."""
    qualities = [f"jpeg-{q}" for q in range(1, 101)]
    found = plan(block(defenses=qualities, seeds="all", attacks=["none", "pgd20"], threats=["none", "linf-4"]))
    assert len(found.cells) == 100 * 5 * 2
    assert len({found.cell_id(w.cell) for w in found.cells}) == 1000


def test_the_schema_for_editors_is_that_of_the_classes() -> None:
    import json

    from windtunnel.catalogue import json_schema

    shipped = json.loads((ROOT / "config/config.schema.json").read_text())
    assert shipped == json.loads(json.dumps(json_schema())), "run: python scripts/dev/write_schema.py"


def test_seeds_share_a_job_unless_told_otherwise() -> None:
    grouped = plan(block(seeds="all", scores="all"))
    assert list(grouped.observe_jobs) == [("digits-cnn", "clean")]
    assert len(grouped.fitted_in("digits-cnn", "clean")) == 5
    apart = plan(block(seeds="all", scores="all"), group_seeds=False)
    assert len(apart.observe_jobs) == 5
    assert apart.fitted_in("digits-cnn-s3", "clean") == ["digits-cnn-s3"]
    assert [w.cell for w in apart.cells] == [w.cell for w in grouped.cells]
    assert [apart.cell_id(w.cell) for w in apart.cells] == [grouped.cell_id(w.cell) for w in grouped.cells]


def test_shipped_weights_are_taken_only_for_their_own_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(block()).shipped_models == plan(block()).models
    monkeypatch.setattr(spec, "ALGORITHM_VERSION", spec.ALGORITHM_VERSION + 1)
    assert plan(block()).models and not plan(block()).shipped_models


def test_batteries_and_ensembles_of_the_users_own() -> None:
    attacks = {"both": {"members": ["pgd20", "square-300"]}, "nested": {"members": ["pma-plus"]}}
    attacks |= {
        "neither": {},
        "twice": {"members": ["fgsm", "fgsm"]},
        "mixed": {"members": ["fgsm"], "settings": {"a": 1}},
    }
    found = "\n".join(problems(block(), catalogue={"attacks": attacks}))
    for piece in ("a method (with settings) or members", "duplicate name in members", "no settings of its own"):
        assert piece in found, piece
    found = "\n".join(problems(block(), catalogue={"attacks": {"nested": attacks["nested"]}}))
    assert "its member 'pma-plus' is a battery" in found
    models = {"lonely": {"architecture": "ensemble", "recipe": {"members": ["digits-cnn"]}}}
    assert "at least two model names" in "\n".join(problems(block(), catalogue={"models": models}))
    models = {"pair": {"architecture": "ensemble", "recipe": {"members": ["digits-cnn", "digits-cnn-s0"]}}}
    assert "stands twice" in "\n".join(problems(block(), catalogue={"models": models}))
    models = {"pair": {"architecture": "ensemble", "recipe": {"members": ["digits-cnn-s1", "digits-vit"]}}}
    asked = block(attacks="both", threats="linf-8", mode="search")
    own = plan(asked, block(attacks="mi", threats="linf-8", sources="pair"),
               catalogue={"attacks": {"both": attacks["both"]}, "models": models})  # fmt: skip
    assert own.models == ["digits-cnn", "digits-cnn-s1", "digits-vit"]
    assert own.bill()["gradient_evaluations"] == 8 * 20 + 2 * 8 * 10
    assert own.bill()["black_box_queries"] == 8 * 300
    members = own.attack_settings(own.cells[0].cell.attack)["members"]  # type: ignore[arg-type]
    assert [m["attack"] for m in members] == ["pgd20", "square-300"]


def test_diagnostics_are_checked_and_are_jobs_of_their_own() -> None:
    wanted = {"images": SET, "models": MODEL, "n": 8, "threats": "linf-8", "diagnostics": "gradient-direction"}
    found = plan(block(), diagnostics=[wanted, {**wanted, "n": 12, "defenses": "jpeg-50", "through": "all"}])
    assert list(found.diagnostic_jobs) == [(MODEL, SET)]
    rules = [(k.defense, k.rule) for k in found.diagnostic_jobs[(MODEL, SET)]]
    assert rules == [("none", "none"), ("jpeg-50", "surrogate-1"), ("jpeg-50", "identity"), ("jpeg-50", "blur")]
    bad = [
        {**wanted, "diagnostics": "gradient-directions"}, {**wanted, "images": "photodigits.letters"},
        {**wanted, "models": "ens-cnns"}, {**wanted, "defenses": "jpeg-50", "through": "own"},
    ]  # fmt: skip
    text = "\n".join(problems(block(), diagnostics=bad))
    for piece in (
        "diagnostics[0].diagnostics[0]: unknown diagnostic", "diagnostics[1].images[0]: 'photodigits.letters' has no",
        "diagnostics[2].models[0]: 'ens-cnns' is an ensemble", "diagnostics[3].through[0]: 'jpeg-50' has no backward",
    ):  # fmt: skip
        assert piece in text, piece
    text = "\n".join(problems(block(), diagnostics=[{**wanted, "diagnostic": "x"}]))
    assert "unknown key; did you mean 'diagnostics'?" in text


def test_images_made_behind_one_defense_are_judged_behind_another() -> None:
    wanted = block(attacks="pgd20", threats="linf-8", defenses=["none", "jpeg-50-x10"], through="surrogate-1")
    crossed = plan({**wanted, "made_behind": "jpeg-50"})
    found = [(w.cell.attack.defense, w.cell.attack.rule, w.cell.defense) for w in crossed.cells if w.cell.attack]
    assert found == [("jpeg-50", "surrogate-1", "none"), ("jpeg-50", "surrogate-1", "jpeg-50-x10")]
    assert len(crossed.attack_jobs) == 1
    text = "\n".join(problems({**wanted, "made_behind": "jpeg-50", "mode": "search"}))
    assert "may not be judged behind another defense" in text
    text = "\n".join(problems({**wanted, "made_behind": "jpg-50"}))
    assert "made_behind[0]: unknown defense" in text
    text = "\n".join(problems(block(attacks="pgd20", threats="linf-8", defenses="jpeg-50", made_behind="jpeg-50-x2")))
    assert "say by which backward rules under through" in text


def test_codec_libraries_are_part_of_the_identity_and_an_absent_one_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import features

    from windtunnel import plan as plan_module

    def settings(name: str) -> dict[str, Any]:
        return plan(block(defenses=name)).defense_settings(name)

    assert list(settings("avif-50")["codecs"]) == ["av1", "libavif"]
    assert set(settings("jpeg-50-then-webp-50-x3")["codecs"]) >= {"libwebp"}
    assert "codecs" not in settings("median-3")
    before = settings("webp-50")
    version = features.version
    monkeypatch.setattr(features, "version", lambda f: "0.0.1" if f == "webp" else version(f))
    plan_module.codec_versions.cache_clear()
    assert settings("webp-50") != before and settings("webp-50")["codecs"] == {"libwebp": "0.0.1"}
    check = features.check
    monkeypatch.setattr(features, "check", lambda f: f != "avif" and check(f))
    found = "\n".join(problems(block(defenses=["none", "avif-50"])))
    assert "blocks[0].defenses[1]: defense 'avif-50': this Pillow was built without 'avif'" in found
    plan_module.codec_versions.cache_clear()
