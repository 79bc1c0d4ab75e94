# SPDX-License-Identifier: Apache-2.0
"""Django as the workers and the conductor of a soak have it."""

from __future__ import annotations

import sys
from typing import Any

#: Seconds that the operating system gives a connect, a node at a time. libpq takes no fewer than 2.
CONNECT_TIMEOUT = 2
#: Seconds that a worker waits for the answer to one call before it takes the link for dead; see `pulse`.
PATIENCE = 3.0
#: Seconds on the server. A session that a partition has cut off amid a transaction holds what it has locked
#: for no longer than `idle_in_transaction_session_timeout`; who waits for it gives up after `lock_timeout`.
SERVER_TIMEOUTS = {"statement_timeout": 4, "lock_timeout": 1, "idle_in_transaction_session_timeout": 2}


def of_worker(name: str, database: dict[str, Any], ports: list[int]) -> dict[str, Any]:
    """Give a worker's entry of DATABASES: it takes the first node that answers."""
    timeouts = " ".join(f"-c {key}={seconds}s" for key, seconds in SERVER_TIMEOUTS.items())
    return {
        **database,
        "HOST": ",".join("127.0.0.1" for _ in ports),
        "PORT": ",".join(map(str, ports)),
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            **database["OPTIONS"],
            "application_name": name,
            "connect_timeout": CONNECT_TIMEOUT,
            "options": timeouts,
            # What ends a silent link in production. On one machine the kernel acknowledges for a node that is
            # silent, so that these never strike here: `pulse` does in their place.
            "tcp_user_timeout": int(PATIENCE * 1000),
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 2,
        },
    }


def set_up(database: dict[str, Any], driver: str = "") -> None:
    """Configure Django with this entry of DATABASES, on `psycopg` or `psycopg2`."""
    if driver == "psycopg2":
        sys.modules["psycopg"] = None  # type: ignore[assignment]  # Django takes it where it can be imported
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": database},
        INSTALLED_APPS=["soak"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        MIDDLEWARE=[],
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()
