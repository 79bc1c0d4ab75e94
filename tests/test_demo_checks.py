# SPDX-License-Identifier: Apache-2.0
"""The demo's checks of retries: right about a right run, and each of them finds what is wrong with a wrong one."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from demo import retry_checks, trace_choice
from demo.run import Run
from demo.traffic import INSUFFICIENT, MADE, REFUSED, Tally
from otel_crdb.testing.otlp import Event, LogRecord, Point, Span

CODE = {"db.response.status_code": "40001"}
CHECKS = {
    check.__name__: check
    for check in (
        retry_checks.outcomes,
        retry_checks.committed_after_retries,
        retry_checks.refusals,
        retry_checks.retries,
        retry_checks.attempts,
        retry_checks.serialization_failures,
    )
}


def span(trace, number, parent, kind, attributes, events=()):
    ids = ("worker", trace, f"{trace}{number}", parent and f"{trace}{parent}")
    return Span(*ids, "", kind, number, number + 1, "UNSET", attributes, tuple(events))


def transfer(trace, status, outcomes, outcome):
    """The spans of one transfer: its request, its logical transaction, and an operation below each attempt."""
    retries = len(outcomes) - 1
    answered = {"http.response.status_code": status, "cockroachdb.request.retries": retries}
    yield span(trace, 1, "", "SERVER", answered)
    told = {"cockroachdb.txn.attempts": len(outcomes), "cockroachdb.txn.outcome": outcome}
    if outcome == "failed":
        told |= CODE
    events = [Event("cockroachdb.txn.retry", CODE)] * retries
    yield span(trace, 2, 1, "INTERNAL", {"cockroachdb.txn.id": trace, **told}, events)
    for number, end in enumerate(outcomes, 1):
        told = {"cockroachdb.txn.attempt": number, "cockroachdb.txn.outcome": end}
        yield span(trace, 2 * number + 1, 2, "INTERNAL", {"cockroachdb.txn.id": trace, **told})
        yield span(trace, 2 * number + 2, 2 * number + 1, "CLIENT", CODE if end == "retryable" else {})


def a_run():
    """One transfer made at once, one retried and made, one given up after two attempts, one without funds."""
    spans = [
        *transfer("a", MADE, ["committed"], "committed"),
        *transfer("b", MADE, ["retryable", "committed"], "committed"),
        *transfer("c", REFUSED, ["retryable", "retryable"], "failed"),
        *transfer("d", INSUFFICIENT, ["rolled_back"], "rolled_back"),
    ]
    points = [
        Point("worker", "cockroachdb.client.txn.retries", {}, 2),
        Point("worker", "cockroachdb.client.txn.attempts", {}, 4, 6.0),
        Point("worker", "cockroachdb.client.errors", CODE, 3),
        Point("worker", "db.client.operation.duration", CODE, 3),
    ]
    logs = [LogRecord("worker", "b", "cockroachdb.txn.retry", CODE)] * 2
    logs += [LogRecord("worker", "b", "db.client.operation.exception", CODE)] * 3
    answers = {MADE: 2, REFUSED: 1, INSUFFICIENT: 1}
    tally = Tally(
        Counter({("POST", "/transfer/", status): count for status, count in answers.items()}),
        Counter({("40001", 2): 1}),
    )
    traces = {trace: [one for one in spans if one.trace_id == trace] for trace in "abcd"}
    telemetry = SimpleNamespace(spans=spans, points=points, logs=logs, traces=lambda: traces)
    return Run(tally, [], [], telemetry)


def failed(run):
    return {name for name, check in CHECKS.items() if not check(run).passed}


def test_a_right_run_passes_every_check():
    """Nothing fails, and the figures are told."""
    run = a_run()
    assert failed(run) == set()
    assert retry_checks.retries(run).figures.count(" 2") == 4
    assert retry_checks.refusals(run).figures == "1 answers, 1 exhausted: 1 after 2 attempts"


def without(name, value):
    """Drop what has this name from the telemetry's list: the first such one."""

    def drop(run):
        listed = getattr(run.telemetry, name)
        listed.remove(next(one for one in listed if value in repr(one)))

    return drop


def change(name, value, **attributes):
    """Change attributes of the first thing in the telemetry's list that has this in it."""

    def alter(run):
        listed = getattr(run.telemetry, name)
        place = next(place for place, one in enumerate(listed) if value in repr(one))
        listed[place] = replace(listed[place], **attributes)

    return alter


def answered_after(attempts):
    """Have the client told of so many attempts."""

    def alter(run):
        run.tally.refusals.clear()
        run.tally.refusals["40001", attempts] = 1

    return alter


def only(*traces):
    """Lose every other trace's spans."""

    def alter(run):
        run.telemetry.spans[:] = [one for one in run.telemetry.spans if one.trace_id in traces]

    return alter


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (without("logs", "txn.retry"), {"retries"}),
        (without("logs", "exception"), {"serialization_failures"}),
        (without("points", "txn.retries"), {"retries"}),
        (without("points", "txn.attempts"), {"attempts"}),
        (without("points", "client.errors"), {"serialization_failures"}),
        (without("points", "operation.duration"), {"serialization_failures"}),
        (change("points", "txn.attempts", total=7.0), {"attempts"}),
        (without("spans", "span_id='b3'"), {"attempts"}),
        (change("spans", "span_id='b5'", parent_id="b3"), {"attempts"}),
        (without("spans", "span_id='b4'"), {"serialization_failures"}),
        (without("spans", "span_id='c1'"), {"refusals", "retries"}),
        (change("spans", "span_id='c1'", trace_id="other"), {"refusals"}),
        (
            change("spans", "span_id='b2'", events=()),
            {"retries", "committed_after_retries", "serialization_failures"},
        ),
        (without("spans", "span_id='d2'"), {"outcomes", "attempts"}),
        (answered_after(3), {"refusals"}),
        (only("c"), {"outcomes", "committed_after_retries", "retries", "attempts", "serialization_failures"}),
        (only(), set(CHECKS)),
    ],
)
def test_what_is_wrong_is_found(damage, found):
    """Each signal that lacks something, or disagrees with the others or the answers, fails its check."""
    run = a_run()
    damage(run)
    assert failed(run) == found


def test_the_traces_shown_are_a_retried_and_a_refused_one():
    """None where there is none; never one without its request."""
    run = a_run()
    assert {one.trace_id for one in trace_choice.retried(run.telemetry)} == {"b"}
    assert {one.trace_id for one in trace_choice.refused(run.telemetry)} == {"c"}
    assert trace_choice.attempts_of(trace_choice.refused(run.telemetry)) == 2
    run.telemetry.traces()["b"].pop(0)
    assert trace_choice.retried(run.telemetry) == []
