"""One thread before anything imports torch, and the helpers that run the workflow in a folder of its own."""

from __future__ import annotations

import os

for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "passive"), ("MKL_NUM_THREADS", "1")):
    os.environ.setdefault(_name, _value)

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a broken unit is known before the workflow runs."""
    items.sort(key=lambda item: item.get_closest_marker("workflow") is not None)
