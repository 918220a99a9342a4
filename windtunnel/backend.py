"""The only door to torch: one thread, quiet waiting, and a torchvision that imports beside a CPU build of torch.

Two torch threads on a busy two-core machine ran 10 to 60 times slower than one, so every process uses one thread and
parallelism comes from jobs. The variables must be set before torch is imported, which is why every module that needs
torch inside this package imports it through here: ``from windtunnel.backend import torch``.

timm imports torchvision, and the registry's torchvision is built against a CUDA torch: beside a CPU build its compiled
operators cannot be loaded and the import fails at ``register_fake('torchvision::nms')``. If, and only if, that is so,
the schemas of the two operators that torchvision describes at import time are declared first; nothing here calls them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)

_DECLARED: list[torch.library.Library] = []
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare_torchvision_operators() -> bool:
    """Declare the operators torchvision wants to describe, if its own library cannot be loaded.

    Returns whether anything was declared. Idempotent.
    """
    if _DECLARED:
        return True
    try:
        import torchvision

        return False
    except (ImportError, RuntimeError, OSError):
        pass
    import sys

    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        try:
            library.define(schema)
        except RuntimeError:  # already declared by a half-loaded torchvision
            continue
    _DECLARED.append(library)
    import torchvision  # noqa: F401

    return True


def device() -> torch.device:
    """The device every job uses: CUDA where there is one and WINDTUNNEL_DEVICE does not say otherwise."""
    wanted = os.environ.get("WINDTUNNEL_DEVICE")
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
