# SPDX-License-Identifier: Apache-2.0
"""What has to be true of the transactions, their attempts and their retries."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import figures
from .run import Check
from .traffic import INSUFFICIENT, MADE, REFUSED

if TYPE_CHECKING:
    from otel_crdb.testing.telemetry import Telemetry

    from .run import Run

ERRORS, DURATION = "cockroachdb.client.errors", "db.client.operation.duration"
RETRIES, ATTEMPTS = "cockroachdb.client.txn.retries", "cockroachdb.client.txn.attempts"


def outcomes(run: Run) -> Check:
    """Every transfer has one logical transaction with the outcome that its answer says."""
    seen = Counter(str(span.attributes[figures.OUTCOME]) for span in figures.logical(run.telemetry))
    tally = run.tally
    due = {
        "committed": tally.count(MADE),
        "failed": tally.count(REFUSED),
        "rolled_back": tally.count(INSUFFICIENT),
    }
    return Check(
        seen == Counter(due),
        "Every transfer is one logical transaction with its outcome",
        ", ".join(f"{count} {outcome}" for outcome, count in sorted(seen.items())) or "none seen",
        "By the answers it has to be " + ", ".join(f"{count} {name}" for name, count in due.items()) + ".",
    )


def committed_after_retries(run: Run) -> Check:
    """Transfers were refused, run again, and made: the answer is 201 as if nothing had been."""
    retried = figures.committed_after_retries(run.telemetry)
    by_attempts = Counter(span.attributes[figures.ATTEMPTS] for span in retried)
    told = ", ".join(f"{count} by attempt {attempt}" for attempt, count in sorted(by_attempts.items()))
    return Check(
        bool(retried) and {span.trace_id for span in retried} <= _traces(run.telemetry, MADE),
        "Refused transfers were run again and made",
        f"{len(retried)} committed after retries and answered 201: {told}" if told else "none seen",
        "No transfer collided and then went through: the machine is very busy, or the traffic was cut short.",
    )


def refusals(run: Run) -> Check:
    """Every 409 is a transaction that failed, with the SQLSTATE and the attempts that the answer names."""
    failed = [span for span in figures.logical(run.telemetry) if span.attributes[figures.OUTCOME] == "failed"]
    seen = Counter(
        (span.attributes.get(figures.SQLSTATE), span.attributes[figures.ATTEMPTS]) for span in failed
    )
    traces = {span.trace_id for span in failed}
    told = ", ".join(
        f"{count} after {figures.times(attempts, 'attempt')}" for (_, attempts), count in sorted(seen.items())
    )
    return Check(
        bool(failed) and seen == run.tally.refusals and traces == _traces(run.telemetry, REFUSED),
        "Every 409 has its exhausted transaction in the same trace",
        f"{run.tally.count(REFUSED)} answers, {len(failed)} exhausted: {told or 'none seen'}",
        "By the answers it has to be "
        + (
            ", ".join(f"{n} × {code} after {tried}" for (code, tried), n in run.tally.refusals.items())
            or "none"
        ),
    )


def retries(run: Run) -> Check:
    """Events, log records, the metric and the requests' totals tell of the same retries."""
    telemetry = run.telemetry
    found = {
        "span events": sum(figures.retries_of(span) for span in figures.logical(telemetry)),
        "log records": sum(record.event == figures.RETRY_EVENT for record in telemetry.logs),
        RETRIES: sum(point.value for point in telemetry.points if point.metric == RETRIES),
        "requests' totals": sum(figures.retries_of(span) for span in figures.requests(telemetry)),
    }
    return Check(
        set(found.values()) != {0} and len(set(found.values())) == 1,
        "All signals count the same retries",
        _counted(found),
        "The events are on the spans run_transaction …, the totals on the SERVER spans. Metrics leave last: "
        "a worker that was killed takes them away.",
    )


def attempts(run: Run) -> Check:
    """Below every logical transaction are its attempts, and the histogram adds up to them."""
    telemetry = run.telemetry
    due = Counter(
        {
            (span.span_id, span.attributes[figures.TXN_ID]): span.attributes[figures.ATTEMPTS]
            for span in figures.logical(telemetry)
        }
    )
    tried = figures.attempts(telemetry)
    seen = Counter((span.parent_id, span.attributes[figures.TXN_ID]) for span in tried)
    total = sum(point.total for point in telemetry.points if point.metric == ATTEMPTS)
    return Check(
        bool(tried) and seen == due and total == len(tried),
        "Every attempt is a transaction below its logical one",
        f"{due.total()} attempts of {len(due)} logical transactions, {len(tried)} spans of theirs; "
        f"{ATTEMPTS} adds up to {total:.0f}",
        "Attempts carry the cockroachdb.txn.id of the span they are below.",
    )


def serialization_failures(run: Run) -> Check:
    """Every attempt that was refused has one operation with a 40001, told of in all signals."""
    telemetry = run.telemetry
    operations = figures.refused_operations(telemetry)
    retried = sum(figures.retries_of(span) for span in figures.logical(telemetry))
    due = retried + run.tally.count(REFUSED)
    found = {
        "operations": len(operations),
        ERRORS: figures.refusals_on_metric(telemetry, ERRORS),
        DURATION: figures.refusals_on_metric(telemetry, DURATION),
        "log records": figures.refusals_in_logs(telemetry),
    }
    at_commit = sum(span.name == "COMMIT" for span in operations)
    return Check(
        due > 0 and set(found.values()) == {due},
        "All signals count the same 40001s",
        f"{retried} retried and {due - retried} given up, {at_commit} of them at COMMIT; {_counted(found)}",
        "An operation refused twice in one attempt, or a refusal without a span, makes the difference.",
    )


def _traces(telemetry: Telemetry, status: int) -> set[str]:
    """Return the traces of the requests with this answer."""
    return {
        span.trace_id for span in figures.requests(telemetry) if span.attributes.get(figures.STATUS) == status
    }


def _counted(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {count:.0f}" for name, count in found.items())
