# SPDX-License-Identifier: Apache-2.0
"""What the workers do: transfers of every sort, each a logical transaction that leaves one row or none."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import DatabaseError, connection, transaction
from django.db.models import Sum

from otel_crdb import arun_transaction, retry_transaction, run_transaction
from otel_crdb.state import record_of

from .models import Account, Movement

if TYPE_CHECKING:
    from collections.abc import Callable

#: Few, so that transfers meet.
ACCOUNTS = 16
OPENING = 1_000_000
#: Back-off is short, for rivals are; a link that is lost comes back within the deadline.
POLICY = {"max_attempts": 8, "deadline": 25.0, "backoff_base": 0.01, "backoff_cap": 1.0}


class Refused(Exception):  # noqa: N818 - an answer of the application's, not a fault
    """The application says no, after it has written."""


class Undone(Exception):  # noqa: N818 - the same
    """The application goes back to its savepoint."""


class HookFailed(Exception):  # noqa: N818 - the same
    """What was to be done after COMMIT failed."""


class UnbalancedError(AssertionError):
    """The accounts do not add up: a transaction has seen half of another."""


@dataclass(frozen=True)
class Order:
    """One operation, drawn from the seed."""

    id: str
    kind: str
    source: int
    target: int
    amount: int
    #: Seconds after which it is cancelled; only for the kind that is.
    patience: float


@dataclass
class Notes:
    """What an operation's own code sees of its transaction, whatever telemetry tells."""

    #: How often its function was called, and how often a further attempt was announced.
    bodies: int = 0
    retries: int = 0
    #: How often its on_commit function ran.
    hooks: int = 0
    #: The ids of its attempts: one.
    ids: set[str] = field(default_factory=set)
    on_beat: Callable[[], None] = lambda: None

    def body(self) -> None:
        """Note that the function was called."""
        self.bodies += 1
        under_way = record_of(connection).transaction
        if under_way is not None:
            self.ids.add(under_way.id)

    def retry(self, attempt: Any) -> None:
        """Note that a further attempt comes: `before_retry`."""
        self.retries += 1
        self.on_beat()

    def hook(self) -> None:
        """Note that COMMIT was acknowledged."""
        self.hooks += 1

    def failing_hook(self) -> None:
        """Note that COMMIT was acknowledged, and fail."""
        self.hooks += 1
        raise HookFailed


def draw(seed: int, worker: int, number: int, kinds: dict[str, Any]) -> Order:
    """Draw a worker's operation of that number."""
    chance = random.Random(f"{seed}/{worker}/{number}")
    weights = [weight for weight, _ in kinds.values()]
    kind = chance.choices(list(kinds), weights)[0]
    source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
    return Order(f"{worker}-{number}", kind, source, target, chance.randint(1, 500), chance.uniform(0, 0.3))


# --- bodies ------------------------------------------------------------------------------------------------


def move(order: Order, notes: Notes) -> None:
    """Read, decide, write."""
    notes.body()
    transaction.on_commit(notes.hook)
    _write(order)


def _write(order: Order) -> None:
    found = Account.objects.filter(pk__in=(order.source, order.target)).order_by("pk")
    for account in list(found):
        account.balance += order.amount if account.pk == order.target else -order.amount
        account.save(update_fields=["balance"])
    _enter(order, order.id)


def _enter(order: Order, operation: str) -> None:
    Movement.objects.create(
        operation=operation, source_id=order.source, target_id=order.target, amount=order.amount
    )


def move_once(order: Order, notes: Notes) -> None:
    """Move unless it was moved: running it twice is as good as once."""
    notes.body()
    transaction.on_commit(notes.hook)
    if not Movement.objects.filter(operation=order.id).exists():
        _write(order)


def move_and_refuse(order: Order, notes: Notes) -> None:
    """Write, then say no."""
    move(order, notes)
    raise Refused


def move_with_savepoints(order: Order, notes: Notes) -> None:
    """Go back to one savepoint and release another."""
    notes.body()
    transaction.on_commit(notes.hook)
    try:
        with transaction.atomic():
            _enter(order, f"undone {order.id}")
            raise Undone
    except Undone:
        pass
    with transaction.atomic():
        _write(order)


def move_and_swallow(order: Order, notes: Notes) -> None:
    """Swallow the last statements' error, as one must not: it is to be treated as that error."""
    notes.body()
    transaction.on_commit(notes.hook)
    _write(order)
    with suppress(DatabaseError):
        for _ in range(3):
            Movement.objects.filter(operation=order.id).count()


def move_and_fail_later(order: Order, notes: Notes) -> None:
    """Have what follows COMMIT fail."""
    notes.body()
    transaction.on_commit(notes.failing_hook)
    _write(order)


def move_in_restart_savepoint(order: Order, notes: Notes) -> None:
    """Begin with CockroachDB's own savepoint for retries, as text."""
    notes.body()
    transaction.on_commit(notes.hook)
    with connection.cursor() as cursor:
        cursor.execute("SAVEPOINT cockroach_restart")
    _write(order)


def audit(order: Order, notes: Notes) -> None:
    """Read all accounts: no transaction may see half of another."""
    notes.body()
    transaction.on_commit(notes.hook)
    total = Account.objects.aggregate(total=Sum("balance"))["total"]
    if total != ACCOUNTS * OPENING:
        raise UnbalancedError(f"{total} and not {ACCOUNTS * OPENING}")


def ask_internals(order: Order, notes: Notes) -> None:
    """Ask for what newer versions restrict; it stands in a comment, for PostgreSQL has no such table."""
    notes.body()
    transaction.on_commit(notes.hook)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 /* crdb_internal.leases */")


def change_schema(order: Order, notes: Notes) -> None:
    """Change the schema, and nothing else."""
    notes.body()
    transaction.on_commit(notes.hook)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE soak_note ALTER COLUMN text SET DEFAULT ''")


# --- how they are run --------------------------------------------------------------------------------------


def run(order: Order, notes: Notes) -> None:
    """Run an operation of a synchronous kind to its end."""
    _, how = KINDS[order.kind]
    how(order, notes)


async def arun(order: Order, notes: Notes) -> None:
    """Run an operation of an asynchronous kind to its end."""
    options = {**POLICY, "name": f"soak.{order.kind}", "before_retry": notes.retry}
    await arun_transaction(move, order, notes, **options)


def _ran(body: Callable[[Order, Notes], None], **more: Any) -> Callable[[Order, Notes], None]:
    def ran(order: Order, notes: Notes) -> None:
        options = {**POLICY, "name": f"soak.{order.kind}", "before_retry": notes.retry, **more}
        run_transaction(body, order, notes, **options)

    return ran


def _decorated(order: Order, notes: Notes) -> None:
    @retry_transaction(**POLICY, name="soak.decorated", before_retry=notes.retry)
    def moved(order: Order, notes: Notes) -> None:
        move(order, notes)

    moved(order, notes=notes)


#: Of the threads: their share of the whole, and how one is run.
KINDS: dict[str, tuple[int, Callable[[Order, Notes], None]]] = {
    "transfer": (30, _ran(move)),
    "decorated": (20, _decorated),
    "idempotent": (16, _ran(move_once, idempotent=True)),
    "savepoints": (10, _ran(move_with_savepoints)),
    "refused": (6, _ran(move_and_refuse)),
    "swallowed": (8, _ran(move_and_swallow)),
    "hook_fails": (3, _ran(move_and_fail_later)),
    "restart_savepoint": (3, _ran(move_in_restart_savepoint)),
    "audit": (2, _ran(audit)),
    "internals": (3, _ran(ask_internals)),
    "schema": (2, _ran(change_schema)),
}
#: Of the event loop.
ASYNC_KINDS: dict[str, tuple[int, None]] = {"async": (85, None), "cancelled": (15, None)}
