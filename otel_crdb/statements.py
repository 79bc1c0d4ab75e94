# SPDX-License-Identifier: Apache-2.0
"""From SQL text to what telemetry may show of it: summary, operation, masked text.

No literal of a text is left in what comes out. Placeholders, TRUE, FALSE, NULL and DEFAULT stay. Names that
are made anew for each session or transaction (savepoints, cursors, prepared statements) become ``?`` like
literals do, so that they make no new texts; ``cockroach_restart`` is a word of the protocol and stays.
Lists of values in ``IN (…)`` and ``ARRAY[…]`` shrink to their first element and the rows of VALUES to the
first row, as long as they hold values and calls with values only. Describing a masked text again leaves it
as it is.

What has been described is remembered, least recently used first out, in a bounded number of bytes.
"""

from __future__ import annotations

import os
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, NamedTuple

from .sqlmodes import Modes, changes_schema_later, effects
from .sqlsummary import summarise
from .sqltokens import BLANKS, ELLIPSIS, HIDDEN, Kind, Token, tokenize, words

READ_LIMIT = 16 * 1024  # of a longer text only so much is read, and it is never remembered
TEXT_LIMIT = 4096
BATCH = "BATCH"
SUMMARY_LIMIT = 255 - len(BATCH) - 1  # the convention's 255, with room for the prefix
AS_OF_LIMIT = 64
CACHE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Statement:
    """What telemetry may show of a statement. All of it is valid UTF-8 and printable."""

    summary: str = ""
    """``db.query.summary``: operations and targets in order, at most 255 characters."""
    operation: str = ""
    """The verb of the main operation in upper case, empty where unknown."""
    text: str = ""
    """``db.query.text``: masked, without comments, at most TEXT_LIMIT characters."""
    as_of_system_time: str = ""
    """The expression after AS OF SYSTEM TIME; times and intervals in it are shown."""
    schema_change: bool = False
    """Whether CockroachDB takes it, or one of several statements, for a change of the schema."""
    modes: Modes | None = None
    """What it says of how transactions run, for almost all texts nothing."""


_NOTHING = Statement()


def describe(sql: object) -> Statement:
    """Describe a text, a string or bytes. Never raises; what is neither gives an empty statement."""
    if type(sql) is str and len(sql) <= READ_LIMIT:
        return _CACHE.get(sql) or _CACHE.put(sql, _describe(sql))
    given: Any = sql
    kind = type(given)  # isinstance() would believe what the object says of its class
    if issubclass(kind, str):
        # str() of a subclass is what its author likes; this is its text.
        text = str.__str__(given)
        return describe(text) if len(text) <= READ_LIMIT else _describe_long(_beginning(text), text)
    if issubclass(kind, bytes):
        # Bytes come from drivers that have put the values in: seldom the same twice, not worth remembering.
        raw = bytes.__getitem__(given, slice(None))
        text = raw[:READ_LIMIT].decode("utf-8", "replace")
        return _describe(text) if len(raw) <= READ_LIMIT else _describe_long(_beginning(text), raw)
    return _NOTHING


def text_of(sql: object, driver_cursor: object) -> str | bytes:
    """Return the text of what ``execute()`` takes: a string, bytes, or a composition of a driver's.

    Of a composition not more than is read. Its literals are ``'?'`` and are not asked for their text: that is
    code of the application's, which the driver alone shall run. Empty for what is none of these or cannot be
    put together: the driver is about to say so itself.
    """
    given: Any = sql
    kind = type(given)  # isinstance() would believe what the object says of its class
    if issubclass(kind, str):
        return str.__str__(given)
    if issubclass(kind, bytes):
        return bytes.__getitem__(given, slice(None))
    try:
        return _put_together(given, driver_cursor) if _composition(kind) else ""
    except Exception:  # noqa: BLE001 - a class of the application's may raise anything
        return ""


def name_of(given: object, driver_cursor: object) -> str:
    """Return what stands for a name, as it may stand in a statement; empty for what has no text."""
    text = text_of(given, driver_cursor)
    return text if isinstance(text, str) else text[:READ_LIMIT].decode("utf-8", "replace")


_COMPOSING = ("psycopg.sql", "psycopg2.sql")


def _composition(kind: type) -> str:
    """Return the name of the driver's class that a composition's class is or comes from, empty for others."""
    names = [cls.__name__ for cls in kind.__mro__ if cls.__module__ in _COMPOSING]
    return names[0] if names else ""


def _put_together(composition: Any, driver_cursor: Any) -> str:
    pieces: list[str] = []
    length, waiting = 0, [composition]
    while waiting and length <= READ_LIMIT:
        part = waiting.pop()
        kind = _composition(type(part))
        if kind == "Composed":
            waiting.extend(reversed(list(part)))
        else:
            pieces.append("'?'" if kind == "Literal" else part.as_string(driver_cursor))
            length += len(pieces[-1])
    return "".join(pieces)


def _describe_long(beginning: str, sql: str | bytes) -> Statement:
    statement = _describe(beginning, whole=False)
    later = not statement.schema_change and changes_schema_later(sql, READ_LIMIT - 256)
    return replace(statement, schema_change=True) if later else statement


def _beginning(sql: str) -> str:
    """Return what is read of a long text: it ends between two words, so that no name is cut."""
    end = min(len(sql), READ_LIMIT)
    while end and (sql[end - 1].isalnum() or sql[end - 1] in "_$" or not sql[end - 1].isascii()):
        end -= 1
    return sql[:end]


def batch(statement: Statement) -> Statement:
    """Return the statement as one that ``executemany()`` sends two or more times."""
    return replace(statement, summary=f"{BATCH} {statement.summary}".rstrip())


def _describe(sql: str, *, whole: bool = True) -> Statement:
    tokens = tokenize(sql)
    schema_change, modes = effects(tokens)
    tokens = _hide_names(tokens)
    if not whole:
        tokens = _without_cut_row(tokens)
    summary, operation = summarise(tokens, SUMMARY_LIMIT)
    as_of = _as_of(tokens)
    if tokens and (_BREAKS_LISTS.search(sql) or (tokens[-1].raw[0] == '"' and tokens[-1].text == HIDDEN)):
        tokens = tokenize(_joined(tokens, READ_LIMIT))
    text = _joined(tokens, TEXT_LIMIT, whole=whole)
    summary, operation, text, as_of = map(_printable, (summary, operation, text, as_of))
    return Statement(summary, operation, text, as_of, schema_change, modes)


def _without_cut_row(tokens: list[Token]) -> list[Token]:
    """Leave out the row in which reading ended: what is there of it would be a new text each time."""
    if tokens and tokens[-1].key == ",":
        tokens = tokens[:-1]
    depth = 0
    for index in range(len(tokens) - 1, 1, -1):
        key = tokens[index].key
        depth += (key in (")", "]")) - (key in ("(", "["))
        if depth < 0:
            if (tokens[index - 2].key, tokens[index - 1].key, key) == (")", ",", "("):
                return tokens[: index - 1]
            depth = 0
    return tokens


# What hides a list until it is masked: comments, dollar quotes, and quotes left open at the end.
_BREAKS_LISTS = re.compile(r"--|/\*|\$(?![0-9])")

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _printable(text: str) -> str:
    """Replace control characters and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _REPLACEMENT for char in text)


# Names that are as private as a literal, or would make a new text each time

_RESTART = "cockroach_restart"
_ROLES = words("USER ROLE")
_NAMING = (Kind.WORD, Kind.NAME)
_SESSION_NAMED = words("SAVEPOINT RELEASE ROLLBACK DECLARE CLOSE PREPARE EXECUTE DEALLOCATE")
_BEFORE_SESSION_NAME = _SESSION_NAMED | words("TO WORK TRANSACTION PREPARED ALL AND NO CHAIN")


def _hide_names(tokens: list[Token]) -> list[Token]:
    start = 0
    for index, token in enumerate(tokens):
        if token.key == ";":
            start = index + 1
        elif index == start and token.key in _SESSION_NAMED:
            _hide_session_name(tokens, index)
        elif index == start + 1 and token.key in _ROLES:
            _hide_password(tokens, index)
    return tokens


def _hide_session_name(tokens: list[Token], start: int) -> None:
    for index in range(start, len(tokens)):
        token = tokens[index]
        if token.key not in _BEFORE_SESSION_NAME:
            if token.kind in _NAMING and token.raw.strip('"').lower() != _RESTART:
                tokens[index] = _hidden(token)
            return


def _hide_password(tokens: list[Token], start: int) -> None:
    """Hide a password that was not written as a string: its quotes were forgotten, or are double ones."""
    hiding = False
    for index in range(start, len(tokens)):
        token, previous = tokens[index], tokens[index - 1].key
        if token.key == ";":
            return
        begins = previous == "PASSWORD" or (previous == "=" and tokens[index - 2].key == "PASSWORD")
        hiding = token.key not in ("=", "NULL") if begins else hiding and not token.gap
        if hiding:
            tokens[index] = _hidden(token)


def _hidden(token: Token) -> Token:
    return Token(Kind.VALUE, HIDDEN, "", token.gap, HIDDEN)


# The masked text


def _joined(tokens: list[Token], limit: int, *, whole: bool = True) -> str:
    """Put the text together, cut after a token with an ellipsis where it is too long."""
    pieces = [f" {token.text}" if token.gap else token.text for token in tokens]
    text = "".join(pieces).strip(BLANKS)
    if whole and len(text) <= limit:
        return text
    length = len(ELLIPSIS) + 1
    kept = 0
    for piece in pieces:
        length += len(piece)
        if length > limit:
            break
        kept += 1
    return f"{''.join(pieces[:kept]).strip(BLANKS)} {ELLIPSIS}".strip(BLANKS)


# AS OF SYSTEM TIME

_AS_OF = ("AS", "OF", "SYSTEM", "TIME")
# Numbers, units and marks: a word in the place of a time may be anything.
_TIME = re.compile(
    r"'(?:[0-9 :.,+?-]|(?:ns|us|ms|s|m|h|d|w|y|t|z|utc|secs?|seconds?|mins?|minutes?|hours?|days?|weeks?"
    r"|mons?|months?|years?)(?![a-z])){1,48}'|[0-9.]{1,32}",
    re.IGNORECASE,
)
_AFTER_AS_OF = words(
    "WHERE GROUP HAVING WINDOW ORDER LIMIT OFFSET FETCH FOR UNION INTERSECT EXCEPT AS ON JOIN INNER LEFT"
    " RIGHT FULL CROSS NATURAL WITH PRIORITY ISOLATION READ NOT DEFERRABLE INTO RETURNING"
)


def _as_of(tokens: list[Token]) -> str:
    keys = [token.key for token in tokens]
    if "SYSTEM" not in keys:
        return ""
    for index in range(len(keys) - len(_AS_OF)):
        if tuple(keys[index : index + len(_AS_OF)]) == _AS_OF:
            expression = _expression(tokens[index + len(_AS_OF) :])
            shown = _joined([_with_time(token) for token in expression], READ_LIMIT)
            return shown if len(shown) <= AS_OF_LIMIT else _joined(expression, AS_OF_LIMIT)
    return ""


def _expression(tokens: list[Token]) -> list[Token]:
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token.key in ("(", "[")) - (token.key in (")", "]"))
        if depth < 0 or (depth == 0 and (token.key in _AFTER_AS_OF or token.key in (",", ";"))):
            return tokens[:index]
    return tokens


def _with_time(token: Token) -> Token:
    if token.kind is Kind.VALUE and _TIME.fullmatch(token.raw):
        return token._replace(text=token.raw)
    return token


# What has been described

_ENTRY_BYTES = 256  # of the statement object and its place in the table
_MODES_BYTES = 640  # of two small dictionaries, and what holds them


class CacheInfo(NamedTuple):
    """How full the cache is."""

    entries: int
    size: int
    limit: int


class StatementCache:
    """Statements by their text, least recently used first out, bounded in bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget everything, and take a new lock: a forked child inherits one that no thread gives back."""
        self._lock = RLock()  # re-entrant: a signal handler may run a query
        self._entries: OrderedDict[str, Statement] = OrderedDict()
        self._size = 0

    def get(self, sql: str) -> Statement | None:
        """Return what is known of the text."""
        with self._lock:
            statement = self._entries.get(sql)
            if statement is not None:
                self._entries.move_to_end(sql)
            return statement

    def put(self, sql: str, statement: Statement) -> Statement:
        """Remember a statement, forget as many as that takes, and return it."""
        with self._lock:
            if sql not in self._entries:
                self._entries[sql] = statement
                self._size += _weight(sql, statement)
                while self._size > self._limit:
                    self._size -= _weight(*self._entries.popitem(last=False))
        return statement

    def info(self) -> CacheInfo:
        """Return how full the cache is."""
        with self._lock:
            return CacheInfo(len(self._entries), self._size, self._limit)


def _weight(sql: str, statement: Statement) -> int:
    fields = (sql, statement.summary, statement.operation, statement.text, statement.as_of_system_time)
    return _ENTRY_BYTES + sum(map(sys.getsizeof, fields)) + (0 if statement.modes is None else _MODES_BYTES)


_CACHE = StatementCache()
cache_clear = _CACHE.clear
cache_info = _CACHE.info
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_CACHE.clear)
