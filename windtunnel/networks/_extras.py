"""Optional packages: imported when a network needs them, and said in words where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from windtunnel.backend import declare_torchvision_operators


class MissingExtra(ImportError):
    """An optional package that is not installed; the message says how to get it."""


def require(module: str, remedy: str) -> ModuleType:
    """The optional module, imported now. Raises ``MissingExtra`` naming ``remedy`` (a command).

    Both optional packages import torchvision, which beside a CPU build of torch needs help first.
    """
    declare_torchvision_operators()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # the package itself or something that it imports: without either it is of no use, and the remedy is the same
        missing = (error.name or module).split(".")[0]
        raise MissingExtra(f"'{missing}' is not installed, which this network needs; run: {remedy}") from error
