"""Image sets: the built-in data sets, their shifts, and the one Parquet format for these and any user's own data.

Importing this package imports the standard library only, because the planner does; the modules that build pixels are
imported on first use. A data set is a module with ``SPLITS``, ``RECIPE_VERSION``, ``build(split, canvas=False)``,
``source_digest()``, ``training_digest()`` and ``training_epoch(seed, epoch)``; whatever has these can be trained on.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from windtunnel.images.splits import (
    CANVAS_SHIFTS,
    CLASSES,
    PHOTODIGITS,
    PHOTODIGITS64,
    PHOTODIGITS_CONTEXT,
    PHOTOSCENES,
    RECIPE_VERSIONS,
    SHIFT_VERSION,
    SHIFTS,
    SplitInfo,
)

if TYPE_CHECKING:
    from windtunnel.images.container import ImageSet

__all__ = [
    "CANVAS_SHIFTS",
    "CLASSES",
    "DATASETS",
    "SHIFTS",
    "SHIFT_VERSION",
    "ImageSet",
    "ImageSetError",
    "SplitInfo",
    "build",
    "dataset_module",
    "from_folder",
    "read_images",
    "read_metadata",
    "recipe_version",
    "shift_set",
    "split_info",
    "splits",
    "write_images",
]

_SPLITS = {
    "photodigits": PHOTODIGITS,
    "photoscenes": PHOTOSCENES,
    "photodigits64": PHOTODIGITS64,
    "photodigits_context": PHOTODIGITS_CONTEXT,
}
DATASETS = {name: f"windtunnel.images.{name}" for name in _SPLITS}
_LAZY = {
    "ImageSet": "container",
    "ImageSetError": "container",
    "from_folder": "folder",
    "read_images": "container",
    "read_metadata": "container",
    "shift_set": "shifts",
    "write_images": "container",
}


def splits(dataset: str) -> dict[str, SplitInfo]:
    """Every split of a data set, without building any."""
    _check(dataset, _SPLITS)
    return dict(_SPLITS[dataset])


def split_info(dataset: str, split: str) -> SplitInfo:
    """Role, description and size of one split, without building it; KeyError with the known names."""
    return _check(split, splits(dataset), f"data set '{dataset}'")


def recipe_version(dataset: str) -> int:
    """The version of a data set's recipe: part of every identity."""
    return _check(dataset, RECIPE_VERSIONS)


def dataset_module(dataset: str) -> ModuleType:
    """The module that builds a data set, imported now."""
    return importlib.import_module(_check(dataset, DATASETS))


def build(dataset: str, split: str, *, canvas: bool = False) -> ImageSet:
    """Build one split; with ``canvas`` the larger images that ``pixel_shift`` cuts from."""
    split_info(dataset, split)
    return dataset_module(dataset).build(split, canvas=canvas)


def _check(name: str, known: dict[str, Any], where: str = "the built-in data sets") -> Any:
    if name not in known:
        raise KeyError(f"'{name}' is not in {where}; known: {', '.join(known)}")
    return known[name]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"windtunnel.images.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'windtunnel.images' has no attribute '{name}'")
