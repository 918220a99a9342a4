"""One lazy registry per kind of method: the file's name is the method's name everywhere.

A method is one class in one file: ``windtunnel/attacks/pgd.py`` holds the attack ``pgd``. The registry reads the
*source*
of that file to learn what the plan needs (settings, defaults, literal class constants), so that planning a run never
imports torch; the class itself is imported only by the job that runs it. A user's own file takes the same form and is
named in a config by its path.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parent
KINDS = {
    "attack": "attacks", "defense": "defenses", "score": "scores", "diagnostic": "diagnostics", "network": "networks",
}  # fmt: skip
BASE_MODULE = "base"


class UnknownMethod(LookupError):
    """A method name that no file carries; the message lists the known names and the nearest one."""


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    """The end of a sentence: the nearest known name as a question, or a full stop. Pure."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "."


@dataclass(frozen=True)
class MethodCard:
    """What the plan may know of a method without importing it."""

    kind: str
    name: str
    path: Path
    class_name: str
    docstring: str
    settings: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    constants: dict[str, Any] = field(default_factory=dict)

    @property
    def algorithm_version(self) -> int:
        """Raised by hand whenever the method's numbers change: part of every identity."""
        return int(self.constants.get("algorithm_version", 1))


def names(kind: str) -> list[str]:
    """Names of the built-in methods of a kind, sorted."""
    folder = PACKAGE / KINDS[kind]
    return sorted(p.stem for p in folder.glob("*.py") if _has_method(p, kind))


def locate(kind: str, method: str, base: Path | None = None) -> Path:
    """The file of a method: a built-in name, or a path ending in .py (relative to ``base``, the config's folder)."""
    if method.endswith(".py"):
        path = (base or Path.cwd()) / method if not Path(method).is_absolute() else Path(method)
        if not path.is_file():
            raise UnknownMethod(f"no file '{path}' for the {kind} '{method}'")
        return path.resolve()
    path = PACKAGE / KINDS[kind] / f"{method}.py"
    if not path.is_file() or not _has_method(path, kind):
        known = names(kind)
        raise UnknownMethod(
            f"unknown {kind} method '{method}'{did_you_mean(method, known)} Known: {', '.join(known)}; "
            f"or a path ending in .py"
        )
    return path


def card(kind: str, method: str, base: Path | None = None) -> MethodCard:
    """Settings, defaults and literal constants of a method, read from its source."""
    path = locate(kind, method, base)
    return _card(kind, path, path.stat().st_mtime_ns)


def load(kind: str, method: str, base: Path | None = None) -> type:
    """The method's class, imported now."""
    path = locate(kind, method, base)
    module = _import(kind, path)
    wanted = card(kind, method, base).class_name
    return getattr(module, wanted)


@cache
def _card(kind: str, path: Path, _mtime: int) -> MethodCard:
    tree = ast.parse(path.read_text(), filename=str(path))
    node = _method_class(tree, kind)
    if node is None:
        raise UnknownMethod(f"'{path}' holds no class deriving from {kind.capitalize()}")
    settings: dict[str, Any] = {}
    types: dict[str, str] = {}
    required: list[str] = []
    constants: dict[str, Any] = {}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, annotation = statement.target.id, ast.unparse(statement.annotation)
        if annotation.startswith("ClassVar"):
            if statement.value is not None:
                constants[name] = ast.literal_eval(statement.value)
        else:
            types[name] = annotation
            if statement.value is None:
                required.append(name)
            else:
                settings[name] = ast.literal_eval(statement.value)
    return MethodCard(
        kind=kind,
        name=path.stem,
        path=path,
        class_name=node.name,
        docstring=ast.get_docstring(node) or ast.get_docstring(tree) or "",
        settings=settings,
        types=types,
        required=tuple(required),
        constants=constants,
    )


def _method_class(tree: ast.Module, kind: str) -> ast.ClassDef | None:
    suffix = kind.capitalize()
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(b).split(".")[-1].endswith(suffix) for b in node.bases)
        and not node.name.startswith("_")
    ]
    return found[0] if found else None


@cache
def _has_method(path: Path, kind: str) -> bool:
    if path.stem.startswith("_") or path.stem == BASE_MODULE:
        return False
    return _method_class(ast.parse(path.read_text()), kind) is not None


@cache
def _import(kind: str, path: Path) -> ModuleType:
    if path.parent == PACKAGE / KINDS[kind]:
        return importlib.import_module(f"windtunnel.{KINDS[kind]}.{path.stem}")
    name = f"windtunnel_user_{kind}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownMethod(f"cannot import '{path}'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look annotations up there while the module is still being read
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def abstract(cls: type) -> bool:
    """Whether a class still has unimplemented methods."""
    return inspect.isabstract(cls)
