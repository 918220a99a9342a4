"""Windtunnel: what happens to an image classifier when the world is not kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windtunnel.store import load

__version__ = "0.1.0"
RESOURCES = Path(__file__).resolve().parent.parent / "resources"
"""Small inputs that ship with the repository (trained weights); without them models are trained."""
__all__ = ["RESOURCES", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the table reader only when asked: planning must stay light."""
    if name == "load":
        from windtunnel.store import load

        return load
    raise AttributeError(f"module 'windtunnel' has no attribute '{name}'")
