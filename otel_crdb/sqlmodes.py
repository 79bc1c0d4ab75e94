# SPDX-License-Identifier: Apache-2.0
"""From tokens to what a text does to its transaction: does it change the schema, and how do transactions run.

What is told is what was asked for. CockroachDB runs READ UNCOMMITTED as READ COMMITTED, and REPEATABLE READ
and SNAPSHOT as SERIALIZABLE, unless the cluster allows them, and the client does not learn of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .sqltokens import Kind, Token, words

#: What is known of a characteristic; None: it is not known any more.
Value = str | bool | None

ISOLATION_LEVEL: Final = "isolation_level"
READ_ONLY: Final = "read_only"
PRIORITY: Final = "priority"


@dataclass(frozen=True, slots=True)
class Modes:
    """What a text says of how transactions run, once it has succeeded."""

    #: Of the transaction that it runs in.
    transaction: Mapping[str, Value] = field(default_factory=dict)
    #: Of the session's transactions that begin later.
    session: Mapping[str, Value] = field(default_factory=dict)
    #: Nothing that was known of the session's transactions is known any more.
    forgets: bool = False


class Effects(NamedTuple):
    """What a text does to its transaction."""

    schema_change: bool = False
    modes: Modes | None = None


def effects(tokens: Sequence[Token]) -> Effects:
    """Return what a text of one or several statements does to its transaction."""
    schema_change, forgets, ends = False, False, False
    transaction: dict[str, Value] = {}
    session: dict[str, Value] = {}
    for statement in _statements(tokens):
        first = statement[0].key
        schema_change = schema_change or _changes_schema(first, statement)
        ends = ends or first in _ENDS
        if first in _BEGINS:
            transaction.update(_modes(statement))
        elif first in _SETTERS:
            forgets = _read_setting(first, statement, transaction, session) or forgets
        elif first in _QUERIES and _is_historical(statement):
            transaction[READ_ONLY] = True
    if any(_is_set_config(token) for token in tokens):
        transaction, session, forgets = dict.fromkeys(_NAMES), {}, True
    if not (transaction or session or forgets):
        return Effects(schema_change)
    if ends:  # in one text with the end of a transaction: of which one, and whether undone, is not read
        transaction, session = dict.fromkeys(transaction), dict.fromkeys(session)
    return Effects(schema_change, Modes(transaction, session, forgets))


def setting(name: str, value: str) -> tuple[bool, str, Value] | None:
    """Return whether a session variable speaks of later transactions, of what, and what it says.

    None for a variable that says nothing of transactions.
    """
    found = _VARIABLES.get(name)
    if found is None:
        return None
    of_session, characteristic = found
    return (
        of_session,
        characteristic,
        _VALUES[characteristic].get(" ".join(_bare(value).replace("_", " ").split())),
    )


_NAMES = (ISOLATION_LEVEL, READ_ONLY, PRIORITY)
_LEVELS: dict[str, Value] = {
    level: level
    for level in ("read uncommitted", "read committed", "repeatable read", "snapshot", "serializable")
}
_VALUES: dict[str, dict[str, Value]] = {
    ISOLATION_LEVEL: _LEVELS,
    READ_ONLY: {
        **dict.fromkeys(("on", "true", "yes", "1", "t", "y"), True),
        **dict.fromkeys(("off", "false", "no", "0", "f", "n"), False),
    },
    PRIORITY: {"low": "low", "normal": "normal", "high": "high"},
}
_VARIABLES = {
    "default_transaction_isolation": (True, ISOLATION_LEVEL),
    "default_transaction_read_only": (True, READ_ONLY),
    "default_transaction_priority": (True, PRIORITY),
    "transaction_isolation": (False, ISOLATION_LEVEL),
    "transaction_read_only": (False, READ_ONLY),
    "transaction_priority": (False, PRIORITY),
}

_BEGINS = words("BEGIN START")
_SETTERS = words("SET RESET DISCARD")
_QUERIES = words("SELECT WITH TABLE VALUES (")
_ENDS = words("COMMIT END ROLLBACK ABORT")


def _statements(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    start = 0
    for index, token in enumerate(tokens):
        if token.key == ";":
            if index > start:
                yield tokens[start:index]
            start = index + 1
    if start < len(tokens):
        yield tokens[start:] if start else tokens


# Changes of the schema: what tree.CanModifySchema() is true of, for maybeAutoCommitBeforeDDL() asks that
# (pkg/sql/conn_executor_ddl.go, pkg/sql/sem/tree/stmt.go). All that these verbs begin is taken for one, but
# for what answers otherwise than DDL in all versions: jobs, extensions, external connections, virtual
# clusters. Roles answered so in v22, and are DDL now.

_OF_SCHEMA = words("CREATE ALTER DROP TRUNCATE COMMENT GRANT REVOKE REASSIGN REFRESH ANALYZE ANALYSE")
_OF_OBJECTS = words("CREATE ALTER DROP")
_NO_SCHEMA = words(
    "BACKUP CHANGEFEED SCHEDULE SCHEDULES EXTENSION EXTERNAL TENANT VIRTUAL LOGICAL LOGICALLY JOB"
)
_WRITES_INTO = words("INSERT UPSERT MERGE")
#: In what is not cut into tokens any more, behind the end of a statement; rather one too many.
_LATER = rf";\s*(?:--[^\n]*\n\s*)*(?:{'|'.join(sorted(_OF_SCHEMA))})\b"
_LATER_LIMIT = 1024 * 1024  # of a text of semicolons so much takes 40 ms
_LATER_IN_TEXT = re.compile(_LATER, re.IGNORECASE)
_LATER_IN_BYTES = re.compile(_LATER.encode(), re.IGNORECASE)


def changes_schema_later(sql: str | bytes, position: int) -> bool:
    """Whether a long text may change the schema in a statement behind what is read of it."""
    pattern: re.Pattern[Any] = _LATER_IN_TEXT if isinstance(sql, str) else _LATER_IN_BYTES
    return pattern.search(sql, position, position + _LATER_LIMIT) is not None


def _changes_schema(first: str, statement: Sequence[Token]) -> bool:
    if first in _OF_SCHEMA:
        return not (first in _OF_OBJECTS and len(statement) > 1 and statement[1].key in _NO_SCHEMA)
    return (first == "SELECT" or first == "WITH") and _selects_into(statement)


def _selects_into(statement: Sequence[Token]) -> bool:
    """Whether it is SELECT … INTO t, which makes a table (CockroachDB knows only CREATE TABLE … AS)."""
    depth, previous = 0, ""
    for token in statement:
        key = token.key
        depth += (key in ("(", "[")) - (key in (")", "]"))
        if key == "INTO" and depth == 0:
            return previous not in _WRITES_INTO
        previous = key
    return False


# How transactions run


def _modes(statement: Sequence[Token]) -> dict[str, Value]:
    """Read the transaction modes of BEGIN, START TRANSACTION and SET TRANSACTION."""
    keys = [token.key for token in statement]
    found: dict[str, Value] = {}
    for index, key in enumerate(keys):
        following = keys[index + 1] if index + 1 < len(keys) else ""
        if key == "ISOLATION" and following == "LEVEL":
            level = [word.lower() for word in keys[index + 2 : index + 4]]
            found[ISOLATION_LEVEL] = _LEVELS.get(" ".join(level)) or _LEVELS.get(" ".join(level[:1]))
        elif key == "READ" and following in ("ONLY", "WRITE"):
            found[READ_ONLY] = following == "ONLY"
        elif key == "PRIORITY":
            found[PRIORITY] = _VALUES[PRIORITY].get(following.lower())
    if _is_historical(statement):
        found[READ_ONLY] = True
    return found


def _is_historical(statement: Sequence[Token]) -> bool:
    """Whether it reads AS OF SYSTEM TIME: CockroachDB lets nothing be written then."""
    return any(
        token.key == "SYSTEM"
        and [other.key for other in statement[max(0, index - 2) : index + 2]]
        == ["AS", "OF", "SYSTEM", "TIME"]
        for index, token in enumerate(statement)
    )


def _read_setting(
    first: str, statement: Sequence[Token], transaction: dict[str, Value], session: dict[str, Value]
) -> bool:
    """Read SET, RESET or DISCARD; return whether all that was known of the session is void."""
    rest = list(statement[1:])
    local = bool(rest) and rest[0].key == "LOCAL"
    if len(rest) > 1 and rest[0].key in ("LOCAL", "SESSION"):
        rest = rest[1:]
    if not rest:
        return False
    word = rest[0].key
    if first != "SET":
        if word == "ALL":
            session.clear()
            return True
        rest = rest[:1]  # RESET x: what it was before the session's first SET is not read
    elif word == "TRANSACTION":
        transaction.update(_modes(rest))
        return False
    elif word == "CHARACTERISTICS":
        session.update(_modes(rest))
        return False
    value = rest[2:] if len(rest) > 1 and rest[1].key in ("=", "TO") else []
    found = setting(_bare(rest[0].raw), " ".join(token.raw for token in value))
    if found is not None:
        of_session, characteristic, said = found
        if not of_session:
            transaction[characteristic] = said
        elif not local:  # SET LOCAL default_…: over before a transaction begins that it could speak of
            session[characteristic] = said
    return False


def _is_set_config(token: Token) -> bool:
    """Whether a function is called that sets variables whose names are not read."""
    if token.kind is Kind.WORD:
        return token.key == "SET_CONFIG"
    return token.kind is Kind.NAME and "set_config" in token.raw.lower()


def _bare(text: str) -> str:
    """Return a name or value in lower case, without the quotes it was written in."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return text.lower()
