"""Snakemake's folder lock, after a crash: a lock whose owner is dead is removed, a live one is refused in words.

A run killed by SIGKILL leaves ``.snakemake/locks`` behind and every later run refuses to start. At parse time, in the
main
process only, the owner (process id and its start time, so that a reused id is not mistaken) is looked up: dead owners'
locks go. Each run then records itself as the owner. The record is only a help for the dead; the lock itself stays
Snakemake's, so two runs that start in the same instant are still kept apart.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


class FolderBusy(RuntimeError):
    """Another live run works on this folder."""


def start_time(pid: int) -> str | None:
    """The kernel's start time of a process, null where there is none (dead, or no /proc on this system)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def claim(folder: Path | str = ".") -> str | None:
    """Clear a dead owner's locks and become the owner. Returns a sentence if locks were cleared.

    Raises FolderBusy when a live owner holds the lock.
    """
    state = Path(folder) / ".snakemake"
    owner_file = state / "windtunnel-owner.json"
    locks = sorted((state / "locks").glob("*.lock")) if (state / "locks").is_dir() else []
    sentence = None
    if locks and owner_file.is_file():
        owner = _read(owner_file)
        if owner is not None:
            alive = start_time(owner["pid"])
            if alive is not None and alive == owner["start"] and owner["pid"] != os.getpid():
                raise FolderBusy(
                    f"another run (process {owner['pid']}) is at work in '{Path(folder).resolve()}': wait for it or stop it; "  # noqa: E501
                    f"two runs on one folder would write the same files"
                )
            if alive is None or alive != owner["start"]:
                for lock in locks:
                    lock.unlink(missing_ok=True)
                sentence = (
                    f"the last run (process {owner['pid']}) was killed: its lock is removed, finished parts are kept"
                )
    state.mkdir(parents=True, exist_ok=True)
    temporary = owner_file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "start": start_time(os.getpid())}))
    os.replace(temporary, owner_file)
    return sentence


def _read(path: Path) -> dict | None:
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and "pid" in owner and "start" in owner else None
