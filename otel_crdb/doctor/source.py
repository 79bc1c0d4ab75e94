# SPDX-License-Identifier: Apache-2.0
"""What the text of ``wsgi.py`` or ``asgi.py`` says, without running it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Calls by which the application is instrumented, and by which Django's handler is made.
INSTRUMENTING = frozenset({"instrument", "CockroachDBInstrumentor"})
MAKING_HANDLER = frozenset({"get_wsgi_application", "get_asgi_application"})
PACKAGE = "otel_crdb"


@dataclass(frozen=True, slots=True)
class Source:
    """A module that a server loads."""

    path: Path
    #: The first line that instruments, itself or by importing one of the project's; 0: none.
    instruments: int
    #: The first line that makes Django's handler; 0: none.
    makes_handler: int

    @property
    def shown(self) -> str:
        """The path as one types it."""
        return shown(self.path)


def shown(path: Path | str) -> str:
    """Return a path relative to where the command was started, where it lies below."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)


def module_of(dotted: str) -> str:
    """Return the module of ``bank.wsgi:application`` or of Django's ``bank.wsgi.application``."""
    module, colon, _ = dotted.partition(":")
    return module if colon else dotted.rpartition(".")[0]


def is_module(name: str) -> bool:
    """Whether a module is called that: servers take ``bank.wsgi`` for ``bank.wsgi:application``."""
    return ":" not in name and _path_of(name) is not None


def read(module: str) -> Source | None:
    """Read a module; None where there is none, or where its source cannot be read."""
    path = _path_of(module)
    tree = _parsed(path)
    if path is None or tree is None:
        return None
    direct = _first_call(tree, INSTRUMENTING) if _names_package(tree) else 0
    lines = [line for line in (direct, _import_that_instruments(tree, module)) if line]
    return Source(path, min(lines, default=0), _first_call(tree, MAKING_HANDLER))


def _path_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):  # the parent is no package, or fails as it is imported
        return None
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin and origin.endswith(".py") else None


def _parsed(path: Path | None) -> ast.Module | None:
    if path is None:
        return None
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _names_package(tree: ast.Module) -> bool:
    return any(name.partition(".")[0] == PACKAGE for name, _ in _imports(tree, ""))


def _first_call(tree: ast.Module, names: frozenset[str]) -> int:
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return min((call.lineno for call in calls if _called(call.func) in names), default=0)


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[str, int]]:
    """Yield what is imported, by absolute name, and on which line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            if base:
                yield base, node.lineno
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def _import_that_instruments(tree: ast.Module, module: str) -> int:
    """Return the line that imports a module of the same project which instruments; one step is followed."""
    project = module.partition(".")[0]
    for name, line in _imports(tree, module):
        if name.partition(".")[0] != project or name == module:
            continue
        other = _parsed(_path_of(name))
        if other is not None and _names_package(other) and _first_call(other, INSTRUMENTING):
            return line
    return 0
