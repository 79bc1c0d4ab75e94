# SPDX-License-Identifier: Apache-2.0
"""Where the pieces of an SQL text stand: all of them, comments and every element of a list too.

The lexical rules are those of :mod:`otel_crdb.sqltokens`, which leaves out what telemetry need not show and
does not say where a token stood.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .sqltokens import _CONTINUED, _TOKEN, BLANKS, _after_comment

if TYPE_CHECKING:
    from collections.abc import Iterator


class Piece(NamedTuple):
    """A token or a comment, by the name of its rule."""

    rule: str
    start: int
    end: int
    #: A quote or a comment that the text does not close: it takes in the rest.
    open: bool


_CLOSED = {
    "string": re.compile(r"[^']{0,2}'(?:[^']|'')*'"),
    "escaped": re.compile(r"[eEbB]?'(?:[^'\\]|\\.|'')*'", re.DOTALL),
    "dollar": re.compile(r"(\$[^$]*\$).*\1", re.DOTALL),
}


def pieces(sql: str) -> Iterator[Piece]:
    """Cut a text into pieces, with blanks alone between them. Never raises."""
    sql = sql.rstrip(BLANKS)  # so that a piece follows wherever blanks are skipped
    position, escaped = 0, False
    while match := _TOKEN.match(sql, position):
        rule = match.lastgroup or ""
        start, end = match.span(rule)
        if rule == "comment":
            end = _after_comment(sql, start, end)
            position = min(end, len(sql))
            yield Piece(rule, start, position, end > len(sql))
            continue
        if escaped and rule == "string" and (continued := _CONTINUED.match(sql, start)):
            # A string goes on in the next quotes after a line break, with the backslashes of its beginning.
            rule, end = "escaped", continued.end()
        escaped = rule == "escaped"
        position = end
        yield Piece(rule, start, end, end == len(sql) and _is_open(rule, sql[start:end]))


def _is_open(rule: str, raw: str) -> bool:
    closed = _CLOSED.get(rule)
    return rule == "open" if closed is None else closed.fullmatch(raw) is None
