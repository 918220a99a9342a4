"""Methods found by file name, read without import; the folder's lock after a crash."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workflow import ROOT

from windtunnel import lock, registry
from windtunnel.catalogue import builtin
from windtunnel.store import score_column


@pytest.mark.parametrize("kind", registry.KINDS)
def test_what_is_read_is_what_is_imported(kind: str) -> None:
    for name in registry.names(kind):
        card = registry.card(kind, name)
        cls = registry.load(kind, name)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        assert set(card.types) == set(fields), name
        assert all(getattr(cls, key) == value for key, value in card.constants.items()), name
        for key, value in card.settings.items():
            assert fields[key].default == value, (name, key)
        assert card.docstring, name
        assert not registry.abstract(cls), name


def test_every_entry_names_a_method_with_its_settings() -> None:
    entries = builtin()
    sections = {
        "attack": entries.attacks, "defense": entries.defenses, "score": entries.scores,
        "diagnostic": entries.diagnostics, "network": entries.networks,
    }  # fmt: skip
    without_weights = {"compressai_codec"}  # takes a user's file; none can ship
    for kind, section in sections.items():
        used = set()
        for name, entry in section.items():
            if entry.method is None:  # a battery
                assert {section[member].method for member in entry.members}, name
                continue
            card = registry.card(kind, entry.method)
            used.add(card.name)
            assert set(entry.settings) <= set(card.types), name
        unused = set(registry.names(kind)) - used - {"torchattacks"} - without_weights
        assert not unused, f"{kind} methods without a catalogue entry: {unused}"
    columns = [score_column(s) for s in entries.scores]
    assert len(set(columns)) == len(columns)


def test_unknown_methods_are_answered_with_the_nearest() -> None:
    with pytest.raises(registry.UnknownMethod, match="did you mean 'square'"):
        registry.card("attack", "sqare")
    with pytest.raises(registry.UnknownMethod, match="no file"):
        registry.card("attack", "mine.py")


def test_lock_of_a_dead_owner_goes_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    held = locks / "0.output.lock"
    assert lock.claim(tmp_path) is None
    held.touch()
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = tmp_path / ".snakemake" / "windtunnel-owner.json"
    owner.write_text(json.dumps({"pid": sleeper.pid, "start": lock.start_time(sleeper.pid)}))
    try:
        with pytest.raises(lock.FolderBusy, match=f"process {sleeper.pid}"):
            lock.claim(tmp_path)
        assert held.exists()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert "was killed" in (lock.claim(tmp_path) or "")
    assert not held.exists()
    assert json.loads(owner.read_text())["pid"] == os.getpid()


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").touch()
    (tmp_path / ".snakemake" / "windtunnel-owner.json").write_text(json.dumps({"pid": 1, "start": "not then"}))
    assert lock.claim(tmp_path)
    assert not list(locks.iterdir())


def test_a_lock_that_nobody_of_ours_holds_is_left_to_snakemake(tmp_path: Path) -> None:
    locks = tmp_path / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").touch()
    assert lock.claim(tmp_path) is None
    assert list(locks.iterdir())


def test_lock_file_pyproject_and_envs_agree() -> None:
    import tomllib

    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    assert all("+" not in version for version in pins.values()), "no local suffix such as +cpu"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in canonical, f"{requirement.name} is not in requirements.lock: run 'make lock'"
        assert requirement.specifier.contains(canonical[name]), requirement
    assert canonical["torchattacks"] == "3.5.1"
    apart = {"torchattacks", "compressai", "torch-geometric", "pytorch-msssim"}
    assert not apart & {r.name for r in wanted}, "their metadata cannot be resolved: see the Makefile"
    makefile = (ROOT / "Makefile").read_text()
    assert all(name in makefile and name in canonical for name in apart)
    env = yaml.safe_load((ROOT / "envs" / "windtunnel.yaml").read_text())
    pip = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    assert dict(line.split("==") for line in pip) == {k: v for k, v in pins.items() if k not in apart}


def test_the_documentation_names_every_attack_and_battery_and_every_diagnostic() -> None:
    attacks = (ROOT / "docs" / "attacks.md").read_text()
    missing = [m for m in registry.names("attack") if f"`{m}`" not in attacks]
    missing += [name for name, entry in builtin().attacks.items() if entry.members and f"`{name}`" not in attacks]
    assert not missing, f"docs/attacks.md says nothing of {missing}"
    diagnostics = (ROOT / "docs" / "attacks" / "diagnostics.md").read_text()
    assert not [m for m in registry.names("diagnostic") if m not in diagnostics]


def test_the_documentation_names_every_defense_and_network() -> None:
    defenses = (ROOT / "docs" / "defenses.md").read_text()
    missing = [f for f in builtin().defenses if f"`{f}" not in defenses and f not in ("highpass", "hyperprior64-real")]
    assert not missing, f"docs/defenses.md says nothing of {missing}"
    for page in re.findall(r"\]\(((?!https?:)[^)#]+)\)", defenses):
        assert (ROOT / "docs" / page).exists(), page
