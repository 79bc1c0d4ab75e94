# SPDX-License-Identifier: Apache-2.0
"""What must hold of the telemetry of a run: it tells what was seen from outside, in all signals alike."""

from __future__ import annotations

from otel_crdb import outcomes, semconv
from otel_crdb.testing.drills import Seen, broken_laws

from .trial import APPLICATION_SPAN, NAME

APPLICATION_SPAN_ID = format(APPLICATION_SPAN.get_span_context().span_id, "016x")


def telemetry(trial, told):
    """Hold what was told against what was seen."""
    spans, points = told.spans, told.points
    if trial.plan.suppressed:
        if spans or points:
            yield f"telemetry was suppressed, and there are {len(spans)} spans and {len(points)} data points"
        return
    around = [span for span in spans if semconv.TXN_ATTEMPTS in span.attributes]
    if len(around) != 1:
        yield f"one span is to be around all attempts, and there are {len(around)} that have ended"
        return
    (logical,) = around
    tries = [
        span for span in spans if semconv.TXN_ATTEMPT in span.attributes and span.parent_id == logical.span_id
    ]
    yield from _around(trial, logical)
    yield from _tries(trial, logical, tries)
    yield from _retries(trial, logical, told.logs, points)
    yield from _counts(trial, points, tries)
    yield from _tree(trial, logical, spans)
    events = tuple(event for span in spans for event in span.events)
    yield from broken_laws(Seen(tuple(spans), events, tuple(told.logs), tuple(points)))


def _around(trial, logical):
    attributes = logical.attributes
    if (logical.name, attributes[semconv.TXN_NAME]) != (f"run_transaction {NAME}", NAME):
        yield f"the span around all attempts is called {logical.name}"
    if attributes[semconv.TXN_ATTEMPTS] != trial.begun:
        yield f"the span tells of {attributes[semconv.TXN_ATTEMPTS]} attempts, and {trial.begun} were begun"
    outcome, wanted = attributes[semconv.TXN_OUTCOME], _outcomes(trial)
    if outcome not in wanted:
        yield f"the span tells the outcome {outcome}, and it is {' or '.join(sorted(wanted))}"
    failed = outcome in outcomes.FAILURES
    if (logical.status == "ERROR") != failed:
        yield f"the span's outcome is {outcome}, and its status {logical.status}"
    if failed and semconv.ERROR_TYPE not in attributes:
        yield f"the span's outcome is {outcome}, and it names no error"


def _outcomes(trial):
    """Give the words that fit what the caller got and what the ledger says."""
    if trial.error is None:
        return {outcomes.ROLLED_BACK if trial.seen.rollback_asked else outcomes.COMMITTED}
    if trial.in_doubt:
        return {outcomes.AMBIGUOUS}
    if trial.exhausted:
        return {outcomes.FAILED}
    if trial.rows:
        return (
            {outcomes.COMMITTED}
            if isinstance(trial.error, Exception)
            else {outcomes.COMMITTED, outcomes.AMBIGUOUS}
        )
    words = {outcomes.ROLLED_BACK, outcomes.FAILED}
    if trial.stopped is not None:
        words.add(outcomes.RETRYABLE)
    if not isinstance(trial.error, Exception):
        words |= {outcomes.RETRYABLE, outcomes.AMBIGUOUS}
    return words


def _tries(trial, logical, tries):
    numbers = [span[semconv.TXN_ATTEMPT] for span in tries]
    sent = [number for number, seen in enumerate(trial.attempts, 1) if seen.sent]
    if len(numbers) != len(set(numbers)) or sorted(numbers) != numbers:
        yield f"the attempts' spans are numbered {numbers}"
    if not set(sent) <= set(numbers) or not set(numbers) <= set(range(1, trial.begun + 1)):
        yield f"there are spans of the attempts {numbers}, and {sent} have sent something"
    ended = [span[semconv.TXN_OUTCOME] for span in tries]
    if (
        trial.error is None
        and not trial.seen.rollback_asked
        and trial.seen.sent
        and ended[-1:] != [outcomes.COMMITTED]
    ):
        yield f"the run succeeded, and its attempts are told to have ended {ended}"
    if outcomes.COMMITTED in ended[:-1] or (
        outcomes.COMMITTED in ended and not trial.rows and trial.seen.sent
    ):
        yield f"the attempts are told to have ended {ended}, and the ledger says otherwise"
    if any(span.trace_id != logical.trace_id for span in tries):
        yield "attempts of one run are in several traces"


def _total(points, metric):
    """Add up what a metric has of the run."""
    named = [point for point in points if point.attributes.get(semconv.TXN_NAME) == NAME]
    return sum(point.value for point in named if point.metric == metric)


def _retries(trial, logical, logs, points):
    events = [event for event in logical.events if event.name == semconv.RETRY_EVENT]
    records = [record for record in logs if record.event == semconv.RETRY_EVENT]
    counts = {
        "events": len(events),
        "log records": len(records),
        "the metric": _total(points, semconv.TXN_RETRIES),
    }
    if trial.request is not None:
        counts["the request's total"] = trial.request.retries
    for where, count in counts.items():
        if count != trial.naps:
            yield f"{where}: {count} retries are told, and {trial.naps} back-offs were slept"
    numbers = [event[semconv.TXN_ATTEMPT] for event in events]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the retries tell of the attempts {numbers}"
    if [event.attributes for event in events] != [record.attributes for record in records]:
        yield "the retries' events and log records have other words"


def _counts(trial, points, tries):
    spread = [point for point in points if point.metric == semconv.TXN_ATTEMPTS_METRIC]
    if [(point.value, point.total) for point in spread] != [(1, trial.begun)]:
        yield f"the metric of attempts has {spread}, and one run of {trial.begun} is to be in it"
    durations = _total(points, semconv.TXN_DURATION)
    if durations != len(tries):
        yield f"the metric of durations counts {durations} attempts, and there are {len(tries)} spans"
    if trial.request is not None and trial.request.transactions != len(tries):
        yield f"the request counts {trial.request.transactions} transactions, and there are {len(tries)} spans"


def _tree(trial, logical, spans):
    known = {span.span_id for span in spans}
    above = APPLICATION_SPAN_ID if trial.plan.traced else ""
    if logical.parent_id != above:
        yield f"the span around all attempts stands below {logical.parent_id or 'nothing'}, and not {above or 'nothing'}"
    for span in spans:
        if span is not logical and span.parent_id not in known and span.parent_id != above:
            yield f"{span.name} stands below a span that has never ended"
