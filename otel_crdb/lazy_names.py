# SPDX-License-Identifier: Apache-2.0
"""Names of a package that are imported at their first use."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def importer(package: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, by which module each of its names lives in."""

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        from .environment import nonsense_set_aside

        with nonsense_set_aside():  # OpenTelemetry reads some when it is imported, and raises
            value = package[name] = getattr(import_module(f".{home}", package["__name__"]), name)
        return value

    return get
