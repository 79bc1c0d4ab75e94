# SPDX-License-Identifier: Apache-2.0
"""A server to test on, without Docker, and the faults of CockroachDB on demand.

CockroachDB where there is one, else a PostgreSQL that plays it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import faults
    from .django import FaultMixin, through_fault_proxy
    from .fault_proxy import FaultProxy
    from .lease import ServerError
    from .recorder import record_telemetry
    from .servers import Server, server
    from .shared import shared_server
    from .telemetry import Telemetry

__all__ = [
    "FaultMixin",
    "FaultProxy",
    "Server",
    "ServerError",
    "Telemetry",
    "faults",
    "record_telemetry",
    "server",
    "shared_server",
    "through_fault_proxy",
]

#: Where the names live. They are imported at first use: pytest loads this package in every project that has
#: it installed.
_HOMES = {
    "FaultMixin": "django",
    "FaultProxy": "fault_proxy",
    "Server": "servers",
    "ServerError": "lease",
    "Telemetry": "telemetry",
    "record_telemetry": "recorder",
    "server": "servers",
    "shared_server": "shared",
    "through_fault_proxy": "django",
}


def __getattr__(name: str) -> Any:
    if name == "faults":
        return import_module(".faults", __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
