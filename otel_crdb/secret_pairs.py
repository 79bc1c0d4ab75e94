# SPDX-License-Identifier: Apache-2.0
"""The values that stand after a secret's name: `password=…`, `"token": "…"`, `Cookie: …`, `--api-key …`.

A text is read from the sign backwards to the name and forwards to the value's end, so that one without signs
costs next to nothing. Where it cannot be told how far a value goes, it goes to the next blank or to the
line's end.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .secret_names import Sureness, is_cookie, sureness

__all__ = ["MASK", "NAME_LIMIT", "PROSE", "REDACTED", "is_none", "mask_after_names"]

#: What stands for something masked.
MASK = "…"
#: What OpenTelemetry's HTTP conventions put in the place of a secret (attribute `url.query`).
REDACTED = "REDACTED"

#: Characters of a name or an address that are looked at.
NAME_LIMIT = 96

#: What stands between a name and its value; not two colons, which SQL has before a type.
_SIGN = re.compile(r"=>|==?|:=|:(?<!::)(?!:)|%3[Dd]|＝|：")
_BLANKS, _CLOSERS = " \t\u3000", "\"'`])\\"
#: The name before it, read from there.
_NAME = re.compile(r"[\w.%$-]+")
_AFTER_SIGN = re.compile(r"[ \t\u3000]{0,8}")
#: A value on the next line: one word and nothing beside it, so that no line of code or of a trace is taken
#: for one, and no pair of its own.
_NEXT_LINE = re.compile(
    r"(?:[|>][+-]?)?[ \t]{0,8}\r?\n[ \t]{0,32}(?=[^\s\[({<^~*-][^\s]{0,512}(?<!:)[ \t]{0,8}(?:[\r\n]|\Z))"
    r"(?![\"'\w.-]{1,64}[=:][^=])"
)
_COLONS = (":", "：")
_LINE_BEGINS = re.compile(r"(?:\A|\n)[ \t\"']{0,32}\Z")
#: Other ways to set a value: an option of a command, SQL's `PASSWORD '…'`, a tag, a pair of a header.
_LOOSE_NAME = re.compile(
    r"-(?P<option>[\w-]{1,64})[ \t]{1,8}(?=[^\s=:-])"
    r"|(?P<sql>P(?:assword|ASSWORD|ASSWD|ASSPHRASE)|p(?:assword|asswd|assphrase)|secret|SECRET)"
    r"[ \t]{1,8}(?=['\"]|\$\w{0,64}\$)"
    r"|<(?P<tag>[\w:.-]{1,64})>(?=[^<\s])|\(b?[\"'](?P<first>[\w.-]{1,64})[\"'],[ \t]?(?=b?[\"'])"
)
_LOOSE_SIGNS = ("-", "<", "('", '("', "(b", " '", ' "', " $")
_OPENING = re.compile(r"[bBrRuUfF]{0,2}(?P<escape>\\*)(?P<quote>\"\"\"|'''|[\"'`])")
_BRACKET = {"(": ")", "[": "]", "{": "}"}
#: A quote that is doubled closes nothing: so SQL writes one within.
_CLOSING = {
    quote: re.compile(rf"(?:[^\\\n{quote}]|\\.|{quote}{quote})*{quote}(?!{quote})") for quote in "\"'`"
}
#: SQL's `$$…$$`, and how far its end is looked for.
_DOLLARS, _DOLLAR_LIMIT = re.compile(r"\$(?:[A-Za-z_]\w{0,62})?\$"), 1024
#: Of a count and of a signal: no secret has so few digits where nothing but a weak or a plural name says so.
_FEW_DIGITS = re.compile(r"[0-9]{1,3}")
_BEHIND_COLON = re.compile(r"(?:: |：[ \u3000]?|\n[ \t]{0,32})\Z")
_LINE = re.compile(r"[^\r\n]*")
#: A value without quotes: up to a blank, to the next pair, or to what closes something around it.
_BARE = re.compile(r"(?:(?![&;,][\w.%$\[\]-]{1,64}=|</|[\"'`](?:[\s,;:)\]}>]|\Z))[^\s])+")
_BARE_END = ")]}>,;.:\"'`\\"
#: Cookies go on behind blanks.
_FIRST_COOKIE = re.compile(r"[^\s=;,:\"']{1,128}=")
_COOKIES = re.compile(r"(?:[^\r\n\"']|[\"'](?![\s,}\])]|\Z))*")
_AUTHENTICATION = re.compile(
    r"(?i)(?:(?P<list>digest|oauth|hawk|aws4-hmac-sha256|signature|mac)"
    r"|bearer|basic|token|negotiate|ntlm|jwt|dpop|api-?key)[ \t]+"
)
#: Not a value, but masked already, a place holder or an empty one.
_NONE = re.compile(
    rf"(?:[\s\"'`()\[\]{{}}<>,;:.\\]|{MASK}|{REDACTED}|\*{{3,}}|\[Filtered\])*"
    r"|[\"']?(?:%s|%\([\w.]{1,64}\)s|\?|\$[0-9]{1,3}|\$?\{[\w.]{0,64}\}|<(?:bytes [0-9]+|[\w.]{1,64})>)"
    r"[\"']?[,)\]};]*"
)
#: Words of sentences about a secret: `password: This field is required`.
_SENTENCES = """
    a already and any are assert be been bool bytes can cannot can't contains denied disabled
    does doesn't empty enabled error exceeded expected expired fail failed failure
    found has have illegal in incorrect int invalid is it
    it's length malformed may mismatch missing must no not object of off on only optional or raise refused
    rejected required reset return revoked should str string syntax that the there this to too
    unexpected unknown unset unsupported was were wrong you your
"""
_CONSTANTS = frozenset(("none", "null", "nil", "true", "false", "undefined", "filtered"))
PROSE = _CONSTANTS | frozenset(_SENTENCES.split())


class _Named(NamedTuple):
    """A name in a text, how sure a name there must be, and where its value may begin."""

    name: str
    needed: Sureness
    start: int


def mask_after_names(text: str, added: tuple[str, ...]) -> str:
    """Mask the values that follow a secret's name; `added` are the application's own secret names."""
    text = _mask_after(_SIGN, text, added)
    for sign in _LOOSE_SIGNS:
        if sign in text:
            return _mask_after(_LOOSE_NAME, text, added)
    return text


def _mask_after(pattern: re.Pattern[str], text: str, added: tuple[str, ...]) -> str:
    named = _named_by_sign if pattern is _SIGN else _named_loosely
    kept: list[str] = []
    copied = position = 0
    while found := pattern.search(text, position):
        position = found.end()
        name, needed, start = named(text, found, copied)
        if not name or sureness(name, added) < needed:
            continue
        start, end = _value(text, start, name)
        if start < end and not _is_no_value(text, start, end, name):
            kept += (text[copied:start], MASK)
            copied = position = end
    return "".join(kept) + text[copied:]


def _named_by_sign(text: str, found: re.Match[str], copied: int) -> _Named:
    """Read the name that stands before the sign."""
    before = text[max(copied, found.start() - NAME_LIMIT) : found.start()]
    closed = before.rstrip(_BLANKS)
    bare = closed.rstrip(_CLOSERS)
    name = _NAME.match(bare[::-1])
    if name is None or len(closed) - len(bare) > 6:
        return _Named("", Sureness.ANYWHERE, 0)
    blanks = _AFTER_SIGN.match(text, found.end())
    start = blanks.end() if blanks else found.end()
    first = found.start() - len(before) + len(bare) - name.end()
    if found[0] in _COLONS and _LINE_BEGINS.search(text[max(0, first - 33) : first]):
        start = _on_the_next_line(text, start)
    return _Named(name[0][::-1], _needed(text, first, closed[len(bare) :], found[0]), start)


def _on_the_next_line(text: str, start: int) -> int:
    """Return where a value begins that stands on the line after its name, if one does."""
    following = _NEXT_LINE.match(text, start) if text[start : start + 1] in ("\r", "\n", "|", ">") else None
    return following.end() if following else start


def _needed(text: str, first: int, closers: str, sign: str) -> Sureness:
    if first > 0 and text[first - 1] in "?&" and sign == "=":
        return Sureness.IN_QUERY
    is_field = sign in ("=", "%3D", "%3d", "＝") or closers.endswith(("'", '"'))
    return Sureness.IN_FIELD if is_field else Sureness.ANYWHERE


def _named_loosely(text: str, found: re.Match[str], copied: int) -> _Named:
    needed = Sureness.ANYWHERE if found["first"] is None else Sureness.IN_FIELD
    before = text[found.start() - 1] if found.start() > copied else " "
    if before.isalnum() or (found["option"] and before not in " \t\n'\"-"):
        return _Named("", needed, 0)  # the middle of a word
    return _Named(found[found.lastgroup or 0], needed, found.end())


def _value(text: str, start: int, name: str) -> tuple[int, int]:
    """Return where the value goes that begins there, without its quotes or brackets."""
    opening = _OPENING.match(text, start)
    if opening:
        return opening.end(), _end_of_quoted(text, opening)
    if text[start : start + 1] in _BRACKET:
        return start + 1, _end_of_bracketed(text, start)
    dollars = _DOLLARS.match(text, start)
    if dollars and (dollars[0] in text[dollars.end() : start + _DOLLAR_LIMIT] or dollars[0] == "$$"):
        end = text.find(dollars[0], dollars.end(), start + _DOLLAR_LIMIT)
        return dollars.end(), end if end >= 0 else _line_end(text, start)
    scheme = _AUTHENTICATION.match(text, start)
    if scheme and scheme["list"]:
        return scheme.end(), _line_end(text, start)
    if is_cookie(name):
        cookies = _FIRST_COOKIE.match(text, start) and _COOKIES.match(text, start)
        if cookies:
            return start, start + len(cookies[0].rstrip())
    if scheme:
        start = scheme.end()
    bare = _BARE.match(text, start)
    return start, start + len(bare[0].rstrip(_BARE_END)) if bare else start


def _end_of_quoted(text: str, opening: re.Match[str]) -> int:
    """Return where the closing quote stands; where there is none, the line's end."""
    start, quote = opening.end(), opening["quote"]
    if opening["escape"] or len(quote) == 3:
        end = text.find(opening["escape"] + quote, start)
    else:
        closing = _CLOSING[quote].match(text, start)
        end = closing.end() - 1 if closing else -1
    return end if end >= 0 else _line_end(text, start)


def _end_of_bracketed(text: str, start: int) -> int:
    """Return where the bracket closes; where it does not, the line's end."""
    opened, closed, depth = text[start], _BRACKET[text[start]], 0
    end = _line_end(text, start)
    for position in range(start, end):
        character = text[position]
        depth += (character == opened) - (character == closed)
        if not depth:
            return position
    return end


def _line_end(text: str, start: int) -> int:
    line = _LINE.match(text, start)
    return line.end() if line else start


def _is_no_value(text: str, start: int, end: int, name: str) -> bool:
    """Tell whether what stands there hides nothing: a word of a sentence, a place holder, the name again."""
    value = text[start:end]
    low = value.lower()
    if is_none(value) or low in _CONSTANTS:
        return True
    if low in PROSE and _BEHIND_COLON.search(text[max(0, start - 33) : start]):
        return True
    if _FEW_DIGITS.fullmatch(value) and _may_be_counted(name):
        return True
    if text[end : end + 2] == '".':  # a column's name in SQL
        return True
    return low.rpartition(".")[2] == name.lower() and value.count(".") < 2


def _may_be_counted(name: str) -> bool:
    """Tell whether a small number behind the name is how many there are, or a signal's: `api_keys: 3`."""
    plural = name[-1:] in "sS" and name[-2:-1] not in "sS"
    return plural or sureness(name) == Sureness.IN_FIELD


def is_none(value: str) -> bool:
    """Tell whether there is no value: it is masked already, a place holder, or empty."""
    return _NONE.fullmatch(value) is not None
