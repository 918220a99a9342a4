"""The only door to torch: one thread, quiet waiting, and a torchvision that imports beside a CPU build of torch.

Two torch threads on a busy two-core machine ran 10 to 60 times slower than one, so every process uses one thread and
parallelism comes from jobs. The variables must be set before torch is imported, which is why every module that needs
torch inside this package imports it through here: ``from windtunnel.backend import torch``.

timm imports torchvision, and the registry's torchvision is built against a CUDA torch: beside a CPU build its compiled
operators cannot be loaded and the import fails at ``register_fake('torchvision::nms')``. If, and only if, that is so,
the schemas of the two operators that torchvision describes at import time are declared first; nothing here calls them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from types import ModuleType

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


def timm_models(name: str) -> ModuleType:
    """``timm.models.<name>``, without what it would drag along: 0.5 CPU-seconds for a job instead of 2.

    ``import timm`` reads all of its eighty model files, and two of them, like torchvision, ask for torch's compiler.
    Every
    job of a run would pay that. So, for this import only, the packages ``timm`` and ``timm.models`` are stand-ins that
    know
    where their files lie, and the one helper of the compiler that torchvision takes is fetched when it is first called.
    Afterwards the stand-ins are gone: whoever imports timm later gets all of it. If a future timm or torchvision does
    not bear this, the import is made again in the ordinary way.
    """
    if "timm" in sys.modules or "torch._dynamo" in sys.modules:
        declare_torchvision_operators()
        return importlib.import_module(f"timm.models.{name}")
    stand_ins = _stand_ins()
    sys.modules.update(stand_ins)
    try:
        declare_torchvision_operators()
        found = importlib.import_module(f"timm.models.{name}")
    except Exception:
        found = None
    finally:
        for key, module in stand_ins.items():
            if sys.modules.get(key) is module:
                del sys.modules[key]
    if found is None:
        for key in [m for m in sys.modules if m.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[key]
        declare_torchvision_operators()
        found = importlib.import_module(f"timm.models.{name}")
    return found


def _stand_ins() -> dict[str, ModuleType]:
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("timm is not installed; run 'make' once, or 'pip install timm'")
    folder = spec.submodule_search_locations[0]
    names = ("timm", "timm.models", "torch._dynamo", "torch._dynamo.utils")
    found = {name: ModuleType(name) for name in names}
    found["timm"].__path__ = [folder]
    found["timm"].__version__ = importlib.metadata.version("timm")  # type: ignore[attr-defined]
    found["timm.models"].__path__ = [os.path.join(folder, "models")]

    def is_compile_supported(device_type: str) -> bool:
        from torch._dynamo.utils import is_compile_supported as real

        return real(device_type)

    found["torch._dynamo.utils"].is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    return found


def device() -> torch.device:
    """The device every job uses: CUDA where there is one and WINDTUNNEL_DEVICE does not say otherwise."""
    wanted = os.environ.get("WINDTUNNEL_DEVICE")
    if wanted:
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
