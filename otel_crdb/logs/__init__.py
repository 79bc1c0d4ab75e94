# SPDX-License-Identifier: Apache-2.0
"""What finds a log record's trace and transaction: for Django's ``LOGGING``, and to import in the settings.

``CockroachTxnFilter`` gives every record its ids, ``VerboseFormatter`` and ``JSONFormatter`` write it as one
line, ``OTLPHandler`` sends it, and ``logging_config()`` is a whole ``LOGGING`` made of them.
"""

from typing import TYPE_CHECKING

from otel_crdb.lazy_names import importer

if TYPE_CHECKING:
    from .configuration import logging_config
    from .filters import CockroachTxnFilter
    from .formatters import JSONFormatter, VerboseFormatter
    from .otlp_handler import OTLPHandler

__all__ = ["CockroachTxnFilter", "JSONFormatter", "OTLPHandler", "VerboseFormatter", "logging_config"]

#: Where the names live. They are imported at first use: settings are read by every command.
_HOMES = {
    "CockroachTxnFilter": "filters",
    "JSONFormatter": "formatters",
    "OTLPHandler": "otlp_handler",
    "VerboseFormatter": "formatters",
    "logging_config": "configuration",
}

__getattr__ = importer(globals(), _HOMES)
