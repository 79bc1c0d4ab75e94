# SPDX-License-Identifier: Apache-2.0
"""Cut SQL text into tokens by the lexical rules of CockroachDB and PostgreSQL.

Comments and whitespace leave only the mark that something stood between two tokens, and a literal leaves
only ``?``. Where the two servers differ, the reading that hides more is taken: ``b'…'`` knows backslashes
(as on CockroachDB), and a ``--`` comment ends at a line feed only. What is left open (a quote, a comment, a
dollar quote) is hidden to the end.

Each pattern is a run of which at most the last step can fail, and what one match gives back the next one
takes whole, so the time is linear in the text.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Kind(Enum):
    """What a token is to its readers."""

    WORD = auto()  # an unquoted identifier without a dot: a keyword, or a name
    NAME = auto()  # a quoted or dotted identifier: never a keyword
    VALUE = auto()  # a placeholder, or `?` where a literal stood
    MARK = auto()  # punctuation or an operator


class Token(NamedTuple):
    """One token: what may be shown of it, and what it is."""

    kind: Kind
    text: str  # safe to show
    key: str  # a WORD in upper case, a MARK itself, empty for the rest
    gap: bool  # whitespace or a comment stood before it
    raw: str  # as in the source: private where the token is a literal


HIDDEN = "?"
ELLIPSIS = "…"
BLANKS = " \t\n\r\f\v"

# Beyond ASCII everything may be part of a word, but for the ellipsis: that is ours, it ends a bounded text.
_START = r"A-Za-z_\x80-\u2025\u2027-\U0010ffff"
_WORD = rf"[{_START}][{_START}0-9$]*"
_QUOTED = r'"[^"]*(?:""[^"]*)*"(?!")'
_PART = rf"(?:{_QUOTED}|{_WORD})"
# There is one way only to match each literal: a longer pattern that fails must not come back for another.
_PLAIN = r"'[^']*(?:''[^']*)*(?:'(?!')|\Z)"
_ESCAPED = r"'[^'\\]*(?:(?:\\(?:.|\Z)|'')[^'\\]*)*(?:'(?!')|\Z)"
_STRING = rf"(?:[xXBnN]|[uU]&)?{_PLAIN}"
_NUMBER = rf"(?:[0-9]|\.[0-9])(?:[eE][+-][0-9]|[{_START}0-9.])*"
_PLACEHOLDER = rf"%[sbt](?![{_START}0-9$])|%\({_WORD}\)[sbt]|\$[0-9]+|\?"

_TOKEN = re.compile(
    rf"""
    [\ \t\n\r\f\v]* (?:
      (?P<name> {_QUOTED} (?:\.{_PART})* | {_WORD} (?:\.{_PART})+ )
    | (?P<escaped> [eEb]{_ESCAPED} )
    | (?P<string> {_STRING} )
    | (?P<word> {_WORD} )
    | (?P<mark> [,()=;*\[\]] | %% )
    | (?P<placeholder> {_PLACEHOLDER} )
    | (?P<number> {_NUMBER} )
    | (?P<dollar> \$(?P<tag>(?:[{_START}][{_START}0-9]*)?)\$ (?: .*?\$(?P=tag)\$ | .* ) )
    | (?P<comment> --[^\n]* | /\* )
    | (?P<open> ".* )
    | (?P<operator> ::+ | [<>=!~@\#^&|`]+ | [^\ \t\n\r\f\v] )
    )
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTINUED = re.compile(_ESCAPED, re.DOTALL)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_NAME_PART = re.compile(_PART)

# Lists of values, one element at a time: a single pattern for all of them would search back and forth.
_GAP = r"[ \t\n\r\f\v]*"
_CAST = rf"(?:{_GAP}::+{_WORD}(?:\.{_PART})*(?:\({_GAP}(?:[0-9]+|\?){_GAP}\))?(?:\[\])*)?"
_KEYWORD = rf"(?i:NULL|TRUE|FALSE|DEFAULT)(?![{_START}0-9$.'])"
_VALUE = rf"(?:[+-]{_GAP})?(?:[eEb]{_ESCAPED}|{_STRING}|{_PLACEHOLDER}|{_NUMBER}|{_KEYWORD}){_CAST}"
_VALUES = rf"{_VALUE}(?:{_GAP},{_GAP}{_VALUE})*{_GAP}"
_TUPLE = rf"\({_GAP}{_VALUES}\)"
_CALL = rf"(?:(?i:ARRAY){_GAP}\[|{_WORD}(?:\.{_PART})*\(){_GAP}(?:{_VALUES})?[)\]]{_CAST}"
_CELL = rf"(?:{_VALUE}|{_CALL})"
_ROW = rf"\({_GAP}{_CELL}(?:{_GAP},{_GAP}{_CELL})*{_GAP}\)"


class _List(NamedTuple):
    """How a list of values begins, goes on and ends."""

    first: re.Pattern[str]
    further: re.Pattern[str]
    end: re.Pattern[str]


def _list(opening: str, element: str, closing: str) -> _List:
    end = rf"{_GAP}(?:{closing}|\Z|,{_GAP}\Z)"
    patterns = (rf"{_GAP}{opening}{_GAP}{element}", rf"{_GAP},{_GAP}{element}", end)
    return _List(*(re.compile(pattern, re.DOTALL) for pattern in patterns))


_LISTS = {
    "IN": _list(r"\(", rf"(?:{_VALUE}|{_TUPLE})", r"\)"),
    "ARRAY": _list(r"\[", _VALUE, r"\]"),
    "VALUES": _list("", _ROW, ""),
}

# The rules whose text may be shown; every other rule is a literal.
_SHOWN = {
    "name": Kind.NAME,
    "word": Kind.WORD,
    "mark": Kind.MARK,
    "operator": Kind.MARK,
    "placeholder": Kind.VALUE,
}

# A third of the price of calling the class.
_new: Callable[[tuple[Kind, str, str, bool, str]], Token] = partial(tuple.__new__, Token)


def tokenize(sql: str) -> list[Token]:
    """Return the tokens of a text. Never raises; what no other rule knows is a mark of one character.

    Of the values in ``IN (…)`` and ``ARRAY[…]``, and of the rows after VALUES, only the first is there.
    """
    sql = sql.rstrip(BLANKS)  # so that a token follows wherever blanks are skipped
    tokens: list[Token] = []
    position = 0
    gap = escaped = False
    skips: dict[int, int] = {}
    while match := _TOKEN.match(sql, position):
        rule = match.lastgroup or ""
        start, end = match.span(rule)
        gap = gap or start > position
        if rule == "comment":
            end = _after_comment(sql, start, end)
            if end <= len(sql):
                position, gap = end, True
                continue
        elif escaped and rule == "string" and (continued := _CONTINUED.match(sql, start)):
            # A string goes on in the next quotes after a line break, with the backslashes of its beginning.
            rule, end = "escaped", continued.end()
        escaped = rule == "escaped"
        token = _token(rule, sql[start:end], gap)
        if token.key in _LISTS:
            skips.update(_further_elements(_LISTS[token.key], sql, end))
        position = skips.pop(end, end) if skips else end
        tokens.append(token)
        gap = False
    return tokens


def _further_elements(values: _List, sql: str, position: int) -> dict[int, int]:
    """Return where the elements after the first one begin, and where they end."""
    first = values.first.match(sql, position)
    if first is None:
        return {}
    position = first.end()
    while further := values.further.match(sql, position):
        position = further.end()
    return {first.end(): position} if values.end.match(sql, position) else {}


def _token(rule: str, raw: str, gap: bool) -> Token:
    kind = _SHOWN.get(rule)
    if kind is None:
        return _new((Kind.VALUE, HIDDEN, "", gap, raw))
    if kind is Kind.WORD:
        return _new((kind, raw, raw.upper(), gap, raw))
    return _new((kind, raw, raw if kind is Kind.MARK else "", gap, raw))


def _after_comment(sql: str, start: int, position: int) -> int:
    """Return where the comment ends: beyond the text where it is left open. Block comments nest."""
    if sql[start] == "-":
        return position
    depth = 1
    for edge in _COMMENT_EDGE.finditer(sql, position):
        depth += 1 if edge.group() == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql) + 1


def words(text: str) -> frozenset[str]:
    """Return the words of a line as a set: how the tables of keywords are written."""
    return frozenset(text.split())


def name_parts(name: str) -> list[str]:
    """Return the parts of a dotted identifier, each as written."""
    return _NAME_PART.findall(name)
