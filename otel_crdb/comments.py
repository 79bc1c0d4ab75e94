# SPDX-License-Identifier: Apache-2.0
"""SQL comments that say which span a statement belongs to, as ``sql.sqlcommenter.enabled`` reads them.

CockroachDB reads a statement's last comment only, wants every pair as ``key='value'`` with just one ``=``,
and undoes the URL encoding of keys and values twice. A pair that it cannot read spoils the whole comment.

The comment goes on a line of its own behind the statement, so that nothing moves that an error's position
points to. Where it is not sure that the text's end is outside of quotes and comments, the text goes as it is.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from . import signals
from .sqlpieces import pieces
from .statements import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.trace import SpanContext

#: Longer texts go without: where they end has to be found by reading them.
READ_LIMIT = 64 * 1024
#: Of a composition, :func:`otel_crdb.statements.text_of` puts not much more than this together.
COMPOSED_LIMIT = 16 * 1024
#: Texts up to this length are remembered.
SHORT = 4096
#: PREPARE: what is executed later would carry the comment of the statement that prepared it.
WITHOUT = frozenset({"COPY", "PREPARE"})

_TRACEPARENT = "traceparent"
_COMPOSING = ("psycopg.sql", "psycopg2.sql")
# What both drivers take for a placeholder or a per cent sign, whatever else a text may hold.
_PLACEHOLDER = re.compile(r"%(?:[%sbt]|\([^()%]+\)[sbt])")
# Of what cannot end a comment or stand for something else in it.
_PAIR = re.compile(r"\s*([A-Za-z0-9_.~%+-]+)\s*=\s*'([A-Za-z0-9_.~%+/:!@$&;?-]*)'\s*")


class _Ending(NamedTuple):
    """Where a comment goes in a text, and what the text itself says to the same reader."""

    #: After the last statement and its own comments, before a semicolon; below 0: nowhere.
    place: int
    #: The pairs of the last statement's last comment, as they are written.
    pairs: tuple[tuple[str, str], ...]


_NOWHERE = _Ending(-1, ())


def commented(cursor: Any, sql: Any, operation: str, context: SpanContext, *, interpolated: bool) -> Any:
    """Return the statement with its comment, or None where it goes without.

    Without go statements whose span is not sampled, what the driver prepares or binds on the server (each
    text would be a new one there), COPY and PREPARE, texts that are empty, too long, or left open at the end.
    ``interpolated`` is whether the driver puts values in, and so takes ``%%`` for ``%``.
    """
    signal = signals.current
    if signal is None or not context.is_valid or not context.trace_flags.sampled:
        return None
    if operation in WITHOUT or not _binds_itself(cursor):
        return None
    tags = _encoded(signal.config.sql_comment_tags)
    traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    kind = type(sql)  # of a subclass the driver shall get the very object
    if kind is str:
        return _with_comment(sql, tags, traceparent, interpolated)
    if kind is bytes:
        text = sql.decode("utf-8", "ignore")
        longer = _with_comment(text, tags, traceparent, interpolated) if text.encode() == sql else None
        return None if longer is None else longer.encode()
    return _composed(cursor, sql, tags, traceparent, interpolated)


def _binds_itself(cursor: Any) -> bool:
    """Whether the driver's cursor puts values into the text: then it prepares nothing on the server."""
    driver = cursor.db.Database
    if driver.__name__ == "psycopg2":
        return True
    return isinstance(cursor.cursor, driver.client_cursor.ClientCursorMixin)


def _with_comment(text: str, tags: Mapping[str, str], traceparent: str, interpolated: bool) -> str | None:
    if len(text) > READ_LIMIT:
        return None
    place, pairs = (_remembered if len(text) <= SHORT else _ending)(text, interpolated)
    if place < 0:
        return None
    return f"{text[:place]}\n{_comment(tags, pairs, traceparent, interpolated)}{text[place:]}"


def _composed(
    cursor: Any, sql: Any, tags: Mapping[str, str], traceparent: str, interpolated: bool
) -> Any | None:
    """Return a composition of the driver's with the comment behind it; the driver puts it together."""
    modules = [cls.__module__ for cls in type(sql).__mro__ if cls.__module__ in _COMPOSING]
    text = text_of(sql, cursor.cursor) if modules else ""
    if not isinstance(text, str) or len(text) > COMPOSED_LIMIT:
        return None
    place, pairs = _ending(text, interpolated)
    if place < 0 or text[place:].strip():
        return None
    composing = sys.modules[modules[0]]
    comment = _comment(tags, pairs, traceparent, interpolated)
    return composing.Composed([sql, composing.SQL(f"\n{comment}")])


def _comment(
    tags: Mapping[str, str], pairs: tuple[tuple[str, str], ...], traceparent: str, interpolated: bool
) -> str:
    said = {**tags, **dict(pairs), _TRACEPARENT: traceparent}
    written = ",".join([f"{key}='{said[key]}'" for key in sorted(said)])
    return f"/*{written.replace('%', '%%') if interpolated else written}*/"


def _encoded(tags: Mapping[str, str] | None) -> Mapping[str, str]:
    return _encoded_pairs(tuple(tags.items())) if tags else {}


@lru_cache(maxsize=8)
def _encoded_pairs(tags: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {_encode(key): _encode(value) for key, value in tags if key}


def _encode(text: str) -> str:
    """Encode for CockroachDB, which decodes twice: what is left of a per cent sign by once would spoil it."""
    return quote(text.replace("%", "%25"), safe="", errors="replace")


def _ending(text: str, interpolated: bool) -> _Ending:
    if _is_refused(text, interpolated):
        return _NOWHERE
    semicolon, started = -1, False
    comment = waiting = ""
    for rule, start, end, is_open in pieces(text):
        if is_open or _is_read_differently(rule, text, start, end):
            return _NOWHERE
        if rule == "comment":
            waiting = text[start:end]
            comment = waiting if semicolon < 0 else comment
        elif rule == "mark" and text[start] == ";":
            semicolon, waiting = start if semicolon < 0 else semicolon, ""
        else:
            if semicolon >= 0:  # another statement begins
                comment = waiting
            semicolon, started = -1, True
    if not started:
        return _NOWHERE
    return _Ending(len(text) if semicolon < 0 else semicolon, _pairs(comment, interpolated))


_remembered = lru_cache(maxsize=512)(_ending)


def _is_read_differently(rule: str, text: str, start: int, end: int) -> bool:
    """Whether servers disagree on where a piece ends: comments at a return, and ``b'…'`` at a backslash."""
    if rule == "comment":
        return text[start] == "-" and "\r" in text[start : end - 1]
    return rule == "escaped" and text[start] in "bB" and "\\" in text[start:end]


def _is_refused(text: str, interpolated: bool) -> bool:
    """Whether the driver is about to refuse a text, in words that may be about all of it."""
    if interpolated and "%" in text and "%" in _PLACEHOLDER.sub("", text):
        return True
    return not text.isascii() and text.encode("utf-8", "replace").decode() != text


def _pairs(comment: str, interpolated: bool) -> tuple[tuple[str, str], ...]:
    """Return what a comment of the application's says to the same reader; nothing where it cannot be read."""
    inner = comment[2:] if comment.startswith("--") else comment[2:-2]
    if interpolated:
        inner = inner.replace("%%", "%")
    found = [_PAIR.fullmatch(pair) for pair in inner.split(",")]
    if not all(found):
        return ()
    return tuple((match[1], match[2]) for match in found if match)
