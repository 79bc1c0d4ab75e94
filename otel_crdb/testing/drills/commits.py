# SPDX-License-Identifier: Apache-2.0
"""The drills in which COMMIT was sent and its answer leaves a doubt, or speaks of more than COMMIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_crdb import semconv

from .conflicts import TRANSFER
from .drill import AMOUNT, Drill, Inject, transfer
from .expectations import ANY, WantedEvent, WantedLog
from .telling import (
    NO_ANSWER,
    Words,
    attempts,
    crashed,
    failed,
    request,
    transaction,
    transactions_timed,
)

if TYPE_CHECKING:
    from .expectations import Expectation

AMBIGUOUS = Words("ambiguous", "40003", "ambiguous_result", "cluster")
LOST = Words("connection", type=NO_ANSWER, reason="connection_lost", cause="cluster")
DDL_FAILED = Words("committed_with_ddl_failure", "XXA00")


def _in_doubt(words: Words) -> tuple[Expectation, ...]:
    """Want a transfer of which nobody knows whether it was made, and that was not run again."""
    told = {semconv.TXN_ID: ANY, **words.told_of_end}
    return (
        *request(TRANSFER, 503, error=True),
        *attempts("ambiguous", 1, words),
        *transaction("ambiguous", words),
        *transactions_timed("ambiguous", words),
        *failed("COMMIT", words),
        WantedEvent(semconv.AMBIGUOUS_EVENT, told),
        WantedLog(semconv.AMBIGUOUS_EVENT, told, severity="ERROR"),
    )


_UNSURE = "The bank says that it does not know (503): perhaps made, perhaps not."
_LOOK_IT_UP = (
    "The event cockroachdb.txn.ambiguous, on the attempt's span and as a log record, names the transaction "
    "by cockroachdb.txn.id. Look in the data whether it was made before anybody sends it again: a blind "
    "repetition may pay twice. What is safe to repeat may say idempotent=True."
)
_NO_SQLSTATE = "There is no SQLSTATE: the class is connection, and the outcome ambiguous all the same."

COMMITS = (
    Drill(
        name="ambiguous_commit",
        title="COMMIT is answered by a doubt; nothing was applied",
        summary="The node that held the transaction's record went away while COMMIT was on its way to it. "
        "CockroachDB cannot find out what became of it and answers 40003, result is ambiguous. This time it "
        "was not applied.",
        user_notices=f"{_UNSURE} The money is where it was.",
        on_call=_LOOK_IT_UP,
        steps=(Inject("ambiguous_commit.propagate"), transfer(503)),
        expects=_in_doubt(AMBIGUOUS),
    ),
    Drill(
        name="ambiguous_commit_applied",
        title="COMMIT is answered by a doubt; it was applied",
        summary="The same 40003, and this time the transaction was committed. Nothing in the answer tells "
        "the two apart.",
        user_notices=f"{_UNSURE} The money has moved.",
        on_call=_LOOK_IT_UP,
        steps=(Inject("ambiguous_commit.propagate.applied"), transfer(503)),
        expects=_in_doubt(AMBIGUOUS),
        moved=AMOUNT,
    ),
    Drill(
        name="lost_commit",
        title="The connection breaks at COMMIT; nothing was applied",
        summary="COMMIT was sent and the connection was reset before an answer came. The node had not begun "
        "with it.",
        user_notices=f"{_UNSURE} The money is where it was.",
        on_call=f"{_NO_SQLSTATE} {_LOOK_IT_UP}",
        steps=(Inject("lost_commit"), transfer(503)),
        expects=_in_doubt(LOST),
    ),
    Drill(
        name="lost_commit_applied",
        title="The connection breaks at COMMIT; it was applied",
        summary="COMMIT was sent, the transaction was committed, and the connection was reset before the "
        "answer came. An application that takes a lost connection for a failure, and runs the transaction "
        "again, pays twice.",
        user_notices=f"{_UNSURE} The money has moved.",
        on_call=f"{_NO_SQLSTATE} {_LOOK_IT_UP}",
        steps=(Inject("lost_commit.applied"), transfer(503)),
        expects=_in_doubt(LOST),
        moved=AMOUNT,
    ),
    Drill(
        name="committed_with_ddl_failure",
        title="Committed, but its schema change failed",
        summary="A transaction held a schema change beside its data. CockroachDB commits the data first and "
        "changes the schema afterwards; that failed, and the answer to COMMIT is XXA00: an error, of "
        "something that is committed. Here it is played at the COMMIT of a transfer.",
        user_notices="An error page (500), although the money has moved.",
        on_call="COMMIT is red with XXA00, class committed_with_ddl_failure, while the outcome is "
        "committed: run nothing again. Inspect the schema (SHOW JOBS, SHOW CREATE TABLE) and finish the "
        "change by hand.",
        steps=(Inject("committed_with_ddl_failure"), transfer(500)),
        expects=(
            *crashed(TRANSFER, "django.db.utils.InternalError"),
            *attempts("committed", 1),
            *transaction("committed"),
            *transactions_timed("committed"),
            *failed("COMMIT", DDL_FAILED),
        ),
        moved=AMOUNT,
    ),
)
