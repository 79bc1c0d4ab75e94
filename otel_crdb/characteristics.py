# SPDX-License-Identifier: Apache-2.0
"""How a transaction runs: isolation level, read-only, priority; what was asked for, as far as that is sure.

Known without a round trip, from what BEGIN takes from the driver's connection (where Django puts
``OPTIONS["isolation_level"]``), from ``-c`` in the options that the connection was opened with, and from the
statements that were seen to succeed. What a rollback may have undone is not known any more; of what a session
set, nothing is known once it served while nobody looked. What other cursors than Django's set is not seen,
nor what the server makes of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from . import facts, semconv, signals
from .sqlmodes import ISOLATION_LEVEL, PRIORITY, READ_ONLY, setting
from .state import Characteristics, Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .signals import Signals
    from .sqlmodes import Modes, Value
    from .state import Transaction

ATTRIBUTES = {
    ISOLATION_LEVEL: semconv.TXN_ISOLATION_LEVEL,
    READ_ONLY: semconv.TXN_READ_ONLY,
    PRIORITY: semconv.TXN_PRIORITY,
}
#: psycopg2's own numbers; psycopg 3 and Django name theirs.
LEVELS_OF_PSYCOPG2 = {1: "read committed", 2: "repeatable read", 3: "serializable", 4: "read uncommitted"}


@dataclass(slots=True)
class _Session:
    """What is known of the transactions that begin on a driver's connection."""

    signals: Signals | None
    known: dict[str, Value]


#: By the driver's connection, which goes from wrapper to wrapper where there is a pool.
_sessions: WeakKeyDictionary[Any, _Session] = WeakKeyDictionary()


def at_begin(connection: Any) -> Characteristics:
    """Return what is known of a transaction that begins on a driver's connection."""
    known = dict(_session_of(connection).known)
    level = getattr(connection, "isolation_level", None)
    if level is not None:
        known[ISOLATION_LEVEL] = _level_name(level)
    read_only = getattr(connection, "read_only", getattr(connection, "readonly", None))
    if read_only is not None:
        known[READ_ONLY] = bool(read_only)
    return Characteristics(known)


def learn(connection: Any, transaction: Transaction | None, modes: Modes) -> None:
    """Take in what a statement that succeeded has said."""
    if transaction is None:
        autocommitted = facts.transaction_status(connection) == facts.IDLE
        said = modes.session if autocommitted else dict.fromkeys(modes.session)
        _tell_session(connection, said, forgets=modes.forgets)
        return
    characteristics = _of(transaction)
    characteristics.known.update(modes.transaction)
    if transaction.savepoints:
        characteristics.in_savepoint.update(modes.transaction)
    if modes.forgets:
        characteristics.session, characteristics.forgets = {}, True
    characteristics.session.update(modes.session)


def go_back(transaction: Transaction) -> None:
    """Take in that the transaction went back to a savepoint: what was said since one may be undone."""
    characteristics = transaction.characteristics
    if characteristics is not None:
        characteristics.known.update(dict.fromkeys(characteristics.in_savepoint))
        characteristics.session = dict.fromkeys(characteristics.session)


def settle(connection: Any, transaction: Transaction) -> None:
    """Take in how a transaction ended: what it said of later ones holds where the whole was committed."""
    characteristics = transaction.characteristics
    if characteristics is None or not (characteristics.session or characteristics.forgets):
        return
    partly = transaction.committed_within or transaction.rolled_back_within or transaction.silent_abort
    committed = transaction.phase is Phase.COMMIT_ANSWERED and not partly
    said = characteristics.session if committed else dict.fromkeys(characteristics.session)
    _tell_session(connection, said, forgets=characteristics.forgets)


def attributes_of(transaction: Transaction) -> dict[str, str | bool]:
    """Return what is known of a transaction as the attributes of its span."""
    characteristics = transaction.characteristics
    if characteristics is None:
        return {}
    return {ATTRIBUTES[name]: value for name, value in characteristics.known.items() if value is not None}


def _of(transaction: Transaction) -> Characteristics:
    if transaction.characteristics is None:
        transaction.characteristics = Characteristics()
    return transaction.characteristics


def _session_of(connection: Any) -> _Session:
    session = _sessions.get(connection)
    if session is None:
        session = _sessions[connection] = _Session(signals.current, _asked_by_options(connection))
    elif session.signals is not signals.current:
        session.signals, session.known = signals.current, {}  # it served while nobody looked
    return session


def _tell_session(connection: Any, said: Mapping[str, Value], *, forgets: bool) -> None:
    session = _session_of(connection)
    session.known = dict(said) if forgets else {**session.known, **said}


def _level_name(level: Any) -> Value:
    """Return what SQL calls an isolation level of either driver, in lower case."""
    name = getattr(level, "name", None)
    return name.replace("_", " ").lower() if name else LEVELS_OF_PSYCOPG2.get(level)


#: libpq hands the options on as they are; blanks divide them, but not after a backslash.
_OPTION = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
_VARIABLE = re.compile(r"(?:-c|--)?([\w-]+)=(.*)", re.DOTALL)


def _asked_by_options(connection: Any) -> dict[str, Value]:
    """Return what ``-c`` and ``--`` in the options of the start-up say of the session's transactions."""
    found: dict[str, Value] = {}
    for option in _OPTION.findall(getattr(connection.info, "options", "") or ""):
        variable = _VARIABLE.fullmatch(option)
        if variable is not None:
            value = re.sub(r"\\(.)", r"\1", variable[2])
            said = setting(variable[1].replace("-", "_").lower(), value)
            if said is not None and said[0]:
                found[said[1]] = said[2]
    return found
