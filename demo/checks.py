# SPDX-License-Identifier: Apache-2.0
"""What has to be true of a run: of the money, and of the telemetry beside what the clients saw."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import figures, log_lines, retry_checks
from .run import Check
from .traffic import FEWEST_REFUSED, FEWEST_ROUNDS, INSUFFICIENT, MADE, REFUSED, SERIALIZATION_FAILURE

if TYPE_CHECKING:
    from .run import Run

#: The bank's health check: such requests are answered, and left untold.
HEALTH = "/health/"
EXPECTED = {
    ("GET", HEALTH, 200),
    ("GET", "/accounts/", 200),
    ("POST", "/transfer/", MADE),
    ("POST", "/transfer/", REFUSED),
    ("POST", "/transfer/", INSUFFICIENT),
}


def check(run: Run) -> list[Check]:
    """Check everything that the report shows."""
    return [
        answers(run),
        money(run),
        processes(run),
        requests(run),
        retry_checks.outcomes(run),
        retry_checks.committed_after_retries(run),
        retry_checks.refusals(run),
        retry_checks.retries(run),
        retry_checks.attempts(run),
        retry_checks.serialization_failures(run),
        log_lines.agree(run),
    ]


def answers(run: Run) -> Check:
    """Every request was answered, as it should be, and some were refused."""
    tally = run.tally
    odd = Counter({key: count for key, count in tally.answers.items() if key not in EXPECTED})
    refused = tally.count(REFUSED)
    told = f"{tally.transfers} transfers ordered: {tally.count(MADE)} made, {refused} refused with 40001"
    told += f", {tally.count(INSUFFICIENT)} without funds"
    if odd or tally.failures:
        told += f"; unexpected: {', '.join([*_listed(odd), *tally.failures])}"
    return Check(
        not odd
        and not tally.failures
        and refused >= FEWEST_REFUSED
        and {sqlstate for sqlstate, _ in tally.refusals} == {SERIALIZATION_FAILURE}
        and tally.transfers >= FEWEST_ROUNDS
        and tally.count(MADE) > 0,
        "Every transfer was made or refused clearly",
        told,
        f"At least {FEWEST_REFUSED} refusals are needed, and no other answers: see the bank's log.",
    )


def money(run: Run) -> Check:
    """No cent was lost: balances, ledger and the clients' own accounts agree."""
    tally, after = run.tally, run.after
    due = {account["owner"]: account["balance"] + tally.moved[account["owner"]] for account in run.before}
    held = {account["owner"]: account["balance"] for account in after}
    ledger = {account["owner"]: account["ledger"] for account in after}
    total = sum(account["balance"] for account in run.before)
    wrong = [owner for owner in due if not due[owner] == held.get(owner) == ledger.get(owner)]
    told = f"{len(held)} accounts hold {sum(held.values()) / 100:,.2f} ({total / 100:,.2f} before)"
    told += f"; each equals its ledger and the {tally.count(MADE)} transfers that were answered 201"
    if wrong:
        told = f"{told.partition(';')[0]}; wrong: " + ", ".join(
            f"{owner} due {due[owner]}, balance {held.get(owner)}, ledger {ledger.get(owner)}"
            for owner in wrong
        )
    return Check(
        bool(due) and not wrong and sum(held.values()) == total,
        "No money was lost",
        told,
        "The bank's transaction is demo/bank/transfers.py; an answer that got lost shows here too.",
    )


def processes(run: Run) -> Check:
    """At least two worker processes told of themselves."""
    told = run.telemetry.processes()
    return Check(
        len(told) >= 2,
        "The figures come from at least two processes",
        f"{len(told)} seen, by service.instance.id",
        "Nothing arrives where OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER=none is set, or where a worker "
        "could not reach the receiver. The bank's log has the exporters' complaints.",
    )


def requests(run: Run) -> Check:
    """Every HTTP request but health checks is a SERVER span with the same method, path and status."""
    answers, seen = run.tally.answers, figures.requests_seen(run.telemetry)
    sent = Counter({answer: count for answer, count in answers.items() if answer[1] != HEALTH})
    told = f"{sum(sent.values())} sent, {sum(seen.values())} seen"
    if sent != seen:
        told += f"; without a span: {', '.join(_listed(sent - seen)) or 'none'}"
        told += f"; without a request: {', '.join(_listed(seen - sent)) or 'none'}"
    return Check(
        sent == seen,
        "Every HTTP request is a SERVER span, those of health checks excepted",
        told,
        "Spans get lost where they are sampled (OTEL_TRACES_SAMPLER), where a queue is too short "
        "(OTEL_BSP_MAX_QUEUE_SIZE), or where a worker was killed before it could send them.",
    )


def _listed(answers: Counter[tuple[str, str, int]]) -> list[str]:
    return [f"{count} × {method} {path} {status}" for (method, path, status), count in answers.items()]
