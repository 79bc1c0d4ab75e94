# SPDX-License-Identifier: Apache-2.0
"""The instruments: made once, with their units, their bounds and a cap on distinct values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Observation

from . import hooks, semconv

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

#: Distinct ``db.query.summary`` on data points of one process; further ones are told by their
#: operation alone, so that generated table names cannot grow the series without end.
SUMMARY_LIMIT = 200
#: Distinct ``cockroachdb.txn.name`` on data points of one process.
NAME_LIMIT = 200
#: Distinct ``error.type`` on data points of one process: an application can make up codes and classes.
ERROR_LIMIT = 100
#: OpenTelemetry's word for all others.
OTHER = "_OTHER"


#: Made once a meter: an SDK warns of an instrument that is made twice.
_made: WeakKeyDictionary[Meter, Instruments] = WeakKeyDictionary()


def instruments_of(meter: Meter) -> Instruments:
    """Return the instruments of a meter."""
    made = _made.get(meter)
    if made is None:
        made = _made[meter] = Instruments(meter)
    return made


class Instruments:
    """What we measure."""

    def __init__(self, meter: Meter) -> None:
        bounds = semconv.DURATION_BOUNDS
        self.operation_duration = meter.create_histogram(
            semconv.DB_OPERATION_DURATION,
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=bounds,
        )
        self.transaction_duration = meter.create_histogram(
            semconv.TXN_DURATION,
            unit="s",
            description="Duration of transactions, from their begin to the answer of COMMIT or ROLLBACK.",
            explicit_bucket_boundaries_advisory=bounds,
        )
        self.transaction_attempts = meter.create_histogram(
            semconv.TXN_ATTEMPTS_METRIC,
            unit="{attempt}",
            description="Attempts of transactions that may be retried, those of one attempt included.",
            explicit_bucket_boundaries_advisory=semconv.ATTEMPT_BOUNDS,
        )
        self.retries = meter.create_counter(
            semconv.TXN_RETRIES, unit="{retry}", description="Transactions that were run again, by reason."
        )
        self.connection_create_time = meter.create_histogram(
            semconv.DB_CONNECTION_CREATE_TIME,
            unit="s",
            description="Time it took to open a connection.",
            explicit_bucket_boundaries_advisory=bounds,
        )
        self.connection_wait_time = meter.create_histogram(
            semconv.DB_CONNECTION_WAIT_TIME,
            unit="s",
            description="Time it took to get a connection from the pool.",
            explicit_bucket_boundaries_advisory=bounds,
        )
        self.errors = meter.create_counter(
            semconv.CLIENT_ERRORS, unit="{error}", description="Database errors, by SQLSTATE and class."
        )
        self.silent_aborts = meter.create_counter(
            semconv.SILENT_ABORTS,
            unit="{transaction}",
            description="Blocks that ended as if committed, in a transaction that the server had given up.",
        )
        meter.create_observable_counter(
            semconv.HOOK_FAULTS,
            callbacks=[_observe_faults],
            unit="{fault}",
            description="Faults of otel_crdb's own hooks, kept from the application.",
        )
        self._summaries: set[str] = set()
        self._names: set[str] = set()
        self._errors: set[str] = set()

    def bounded_summary(self, summary: str) -> str:
        """Return the summary, or its operation alone once there are too many."""
        if summary in self._summaries:
            return summary
        if len(self._summaries) < SUMMARY_LIMIT:
            self._summaries.add(summary)
            return summary
        words = summary.upper().split(" ", 2)  # a verb can be written in a thousand ways
        return " ".join(words[: 2 if words[0] == "BATCH" else 1])

    def bounded_error(self, word: str) -> str:
        """Return an error's code or class, or ``_OTHER`` once there are too many."""
        if word in self._errors:
            return word
        if len(self._errors) < ERROR_LIMIT:
            self._errors.add(word)
            return word
        return OTHER

    def bounded_name(self, name: str) -> str:
        """Return the transaction's name, or ``other`` once there are too many."""
        if name in self._names:
            return name
        if len(self._names) < NAME_LIMIT:
            self._names.add(name)
            return name
        return "other"


def _observe_faults(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(count, {semconv.HOOK_NAME: name}) for name, count in hooks.fault_counts().items()]
