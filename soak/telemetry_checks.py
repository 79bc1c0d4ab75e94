# SPDX-License-Identifier: Apache-2.0
"""Whether what was told over OTLP is what happened: nothing missing, nothing doubled, nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from otel_crdb import semconv

from .arrivals import NO_TRACE
from .check import Check
from .journal import CANCELLED, COMMITTED, ERROR, HOOK_FAILED, SCHEMA_FAILED
from .money_checks import ROWLESS

if TYPE_CHECKING:
    from .evidence import Evidence
    from .journal import Operation

#: What a caller saw, and the outcomes that its logical span may tell.
OUTCOMES = {
    COMMITTED: {"committed"},
    HOOK_FAILED: {"committed"},
    SCHEMA_FAILED: {"committed"},
    "ambiguous": {"ambiguous"},
    "exhausted": {"failed"},
    "refused": {"rolled_back"},
    ERROR: {"rolled_back", "failed"},
    CANCELLED: {"committed", "rolled_back", "retryable", "failed", "ambiguous"},
}


def spans_match(evidence: Evidence) -> Check:
    """Each operation has one logical span, one id, and a transaction's span an attempt that connected."""
    check = Check("one logical span an operation, one span an attempt, one a statement")
    traces = evidence.arrivals.traces
    for one in evidence.operations:
        about = traces[one.trace]
        if len(about.logical) != 1:
            check.wrong.append(f"{one.id} ({one.kind}, {one.saw}): {len(about.logical)} logical spans")
            continue
        logical = about.logical[0]
        facts = f"{one.id} ({one.kind}, {one.saw} {one.error})"
        if logical.attempts != one.attempts and not _cancelled_in_wait(one, logical.attempts):
            check.wrong.append(f"{facts}: {logical.attempts} attempts told, {one.attempts} made")
        if about.statements != one.statements:
            check.wrong.append(f"{facts}: {about.statements} statement spans, {one.statements} statements")
        if len(about.attempts) != one.bodies:
            check.wrong.append(f"{facts}: {len(about.attempts)} transaction spans, {one.bodies} attempts")
        if len({logical.txn_id, *about.attempts, *one.ids}) != 1:
            check.wrong.append(f"{facts}: more than one transaction id")
    attempts = sum(one.attempts for one in evidence.operations)
    bodies = sum(one.bodies for one in evidence.operations)
    check.counted = {
        "logical spans": sum(len(one.logical) for one in traces.values()),
        "transaction spans": sum(len(one.attempts) for one in traces.values()),
        "statement spans": sum(one.statements for one in traces.values()),
        "attempts": attempts,
        "of them without a connection": attempts - bodies,
    }
    strangers = len(set(traces) - {NO_TRACE} - {one.trace for one in evidence.operations})
    if strangers:
        check.wrong.append(f"{strangers} traces of no operation")
    return check


def _cancelled_in_wait(operation: Operation, attempts: int) -> bool:
    """Whether the next attempt was announced and, for the task was cancelled just then, not begun."""
    return operation.saw == CANCELLED and operation.attempts - 1 == attempts


def retries_match(evidence: Evidence) -> Check:
    """Each retry is one event and one log record, each COMMIT in doubt too."""
    check = Check("one event and one log record a retry and a doubt")
    totals: Counter[str] = Counter()
    for one in evidence.operations:
        about = evidence.arrivals.traces[one.trace]
        events = sum(logical.retries for logical in about.logical)
        # A task that is cancelled while it waits has announced a retry that does not come.
        due = {one.attempts - 1} | ({one.attempts} if one.saw == CANCELLED else set())
        totals.update(events=events, records=about.retry_logs, retries=one.attempts - 1, doubts=about.doubts)
        if events not in due or about.retry_logs != events:
            check.wrong.append(
                f"{one.id} ({one.kind}, {one.saw}): {one.attempts} attempts, {events} events, "
                f"{about.retry_logs} log records"
            )
        if about.doubts != about.doubt_logs:
            check.wrong.append(f"{one.id}: {about.doubts} events of doubt, {about.doubt_logs} log records")
    check.counted = dict(totals)
    return check


def outcomes_match(evidence: Evidence) -> Check:
    """Find the outcome that the logical span tells to be what the caller saw, and what the server has."""
    check = Check("the outcome told is the outcome seen")
    rows = Counter(row.operation for row in evidence.truth.rows)
    told: Counter[str] = Counter()
    for one in evidence.operations:
        for logical in evidence.arrivals.traces[one.trace].logical:
            told[logical.outcome] += 1
            fits = logical.outcome in OUTCOMES[one.saw]
            if one.kind not in ROWLESS and logical.outcome != "ambiguous":
                fits = fits and rows[one.id] == (logical.outcome == "committed")
            if not fits:
                seen = f"{one.saw} {one.error}, {rows[one.id]} rows"
                check.wrong.append(f"{one.id} ({one.kind}): {seen}, told {logical.outcome}")
    check.counted = dict(sorted(told.items()))
    return check


def metrics_match(evidence: Evidence) -> Check:
    """Find the metrics' last values to be the journals', by worker and kind."""
    check = Check("the metrics are the journals' sums")
    due, came = _due(evidence), _came(evidence)
    check.wrong = [
        f"{' '.join(series)}: {came[series]:.0f} told, {due[series]:.0f} in the journal"
        for series in sorted({*due, *came})
        if came[series] != due[series]
    ]
    for name in ("transactions", "attempts", "retries", "blocks", "database operations"):
        check.counted[name] = sum(int(value) for series, value in came.items() if series[0] == name)
    check.counted["ambiguous"] = sum(
        int(value)
        for series, value in came.items()
        if series[0] == "transactions" and series[-1] == "ambiguous"
    )
    return check


#: What is counted, the worker, the transaction's name, its outcome; what a series lacks is empty.
Series = tuple[str, str, str, str]


def _due(evidence: Evidence) -> defaultdict[Series, float]:
    """Add up the journals. Of what was cancelled, and how an error ended, only the span tells."""
    due: defaultdict[Series, float] = defaultdict(float)
    for one in evidence.operations:
        worker, name = one.worker, f"soak.{one.kind}"
        due["blocks", worker, "", ""] += one.bodies
        for told in evidence.arrivals.traces[one.trace].logical:
            cancelled = one.saw == CANCELLED
            if cancelled and not told.attempts:
                continue  # before it was begun: there is nothing to count
            outcome = told.outcome if cancelled or one.saw == ERROR else min(OUTCOMES[one.saw])
            due["transactions", worker, name, outcome] += 1
            due["attempts", worker, name, outcome] += told.attempts if cancelled else one.attempts
            due["retries", worker, name, ""] += told.retries if cancelled else one.attempts - 1
    for worker, count in evidence.arrivals.operations.items():
        due["database operations", worker, "", ""] = count
    return due


def _came(evidence: Evidence) -> defaultdict[Series, float]:
    """Add up the last data points."""
    came: defaultdict[Series, float] = defaultdict(float)
    for point in evidence.arrivals.points:
        worker, name = point.process, str(point.attributes.get(semconv.TXN_NAME))
        if point.metric == semconv.TXN_ATTEMPTS_METRIC:
            outcome = point.attributes[semconv.TXN_OUTCOME]
            came["transactions", worker, name, outcome] += point.value
            came["attempts", worker, name, outcome] += point.total
        elif point.metric == semconv.TXN_RETRIES:
            came["retries", worker, name, ""] += point.value
        elif point.metric == semconv.TXN_DURATION:
            came["blocks", worker, "", ""] += point.value
        elif point.metric == semconv.DB_OPERATION_DURATION:
            came["database operations", worker, "", ""] += point.value
    return came


def all_arrived(evidence: Evidence) -> Check:
    """Find all that was handed to the SDK at the receiver, once."""
    check = Check("all that was sent has arrived, once")
    arrivals = evidence.arrivals
    for worker, ending in evidence.endings.items():
        for what, sent, came in (
            ("spans", ending.spans, arrivals.spans[worker]),
            ("log records", ending.logs, arrivals.logs[worker]),
        ):
            if sent != came:
                check.wrong.append(f"{worker}: {sent} {what} sent, {came} arrived")
        if not ending.flushed:
            check.wrong.append(f"{worker}: not flushed in time")
        check.wrong += [f"{worker}: {words}" for words in ending.told]
    if arrivals.repeated:
        check.wrong.append(f"{arrivals.repeated} spans with an id that had come before")
    check.counted = {
        "spans": sum(arrivals.spans.values()),
        "log records": sum(arrivals.logs.values()),
        "spans sent": sum(one.spans for one in evidence.endings.values()),
        "log records sent": sum(one.logs for one in evidence.endings.values()),
        "repeated": arrivals.repeated,
    }
    return check
