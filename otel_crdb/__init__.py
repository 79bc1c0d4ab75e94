# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry instrumentation for Django on CockroachDB.

In ``wsgi.py`` or ``asgi.py``, before Django's handler is made::

    import otel_crdb
    otel_crdb.instrument()
"""

from typing import TYPE_CHECKING

from .lazy_names import importer
from .version import __version__

if TYPE_CHECKING:
    from .instrumentor import CockroachDBInstrumentor, flush, instrument, uninstrument
    from .logs import CockroachTxnFilter, logging_config
    from .retry import (
        AmbiguousCommitError,
        RetriesExhaustedError,
        arun_transaction,
        retry_transaction,
        run_transaction,
    )
    from .view_retry import retry_view

__all__ = [
    "AmbiguousCommitError",
    "CockroachDBInstrumentor",
    "CockroachTxnFilter",
    "RetriesExhaustedError",
    "__version__",
    "arun_transaction",
    "flush",
    "instrument",
    "logging_config",
    "retry_transaction",
    "retry_view",
    "run_transaction",
    "uninstrument",
]

#: Where the public names live. They are imported at first use: the pytest plugin and the command line
#: load this package in processes that never instrument anything.
_HOMES = {
    "AmbiguousCommitError": "retry",
    "CockroachDBInstrumentor": "instrumentor",
    "CockroachTxnFilter": "logs.filters",
    "RetriesExhaustedError": "retry",
    "arun_transaction": "retry",
    "flush": "instrumentor",
    "instrument": "instrumentor",
    "logging_config": "logs.configuration",
    "retry_transaction": "retry",
    "retry_view": "view_retry",
    "run_transaction": "retry",
    "uninstrument": "instrumentor",
}

__getattr__ = importer(globals(), _HOMES)
