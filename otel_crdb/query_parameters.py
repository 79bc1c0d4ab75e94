# SPDX-License-Identifier: Apache-2.0
"""A statement's parameters as telemetry may show them: masked by the column of each, and by type.

Nothing of the application's is run for it: only lists, tuples and dicts are looked into, and what a value may
show, :mod:`otel_crdb.secret_values` says. What is looked at is bounded: parameters, items, and characters.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from .parameter_columns import columns_of
from .secret_values import MASK, masked_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: OpenTelemetry's ``db.query.parameter.<key>``.
ATTRIBUTE = "db.query.parameter."
MOST = 100
#: Of each value's text.
VALUE_LIMIT = 256
#: So much of one text is looked at, so that what is shown is masked as part of the whole; and so much of all.
LOOKED_AT, LOOKED_AT_IN_ALL = 8 * 1024, 64 * 1024
#: How deep containers are walked, and how many of each one's items.
DEPTH, ITEMS = 4, 50
#: Of a statement's text: a parameter whose place is further behind is not told.
READ_LIMIT = 16 * 1024
#: Texts up to this length are remembered.
SHORT = 4096

_remembered = lru_cache(maxsize=256)(columns_of)

_GAP = r"(?:\s|/\*[^*]*\*/|--[^\n]*\n)"
_NAME = r"(?:\"[^\"]*\"|[^\s(\"])+"
_INSERT = re.compile(rf"(?i)\b(?:INSERT|UPSERT){_GAP}+(?:INTO|VALUES)\b")
#: An INSERT that says which columns it fills.
_LISTED = re.compile(
    rf"(?i)\b(?:INSERT|UPSERT){_GAP}+INTO\s+{_NAME}(?:\s+AS\s+{_NAME})?\s*\((?!\s*(?:SELECT|VALUES|WITH|TABLE|\())"
)


def _fills_unnamed_columns(read: str) -> bool:
    """Tell whether the text inserts without a list of columns: any of its strings may then be a secret's."""
    return len(_INSERT.findall(read)) > len(_LISTED.findall(read))


_fills_unnamed = lru_cache(maxsize=256)(_fills_unnamed_columns)


def attributes(text: str | bytes, params: Any) -> dict[str, str]:
    """Return the parameters as attributes of the statement's span: masked, each as a text."""
    told: dict[str, str] = {}
    look = _Look()
    read = _read(text)
    unnamed = (_fills_unnamed if len(read) <= SHORT else _fills_unnamed_columns)(read)
    for key, column, value in named(text, params):
        attribute = _encodable(ATTRIBUTE + key[:VALUE_LIMIT])
        # One that stands at several columns is hidden if any of them asks for it.
        if told.get(attribute) != MASK:
            shrunk = look.shrunk(value, DEPTH)
            hidden = unnamed and isinstance(shrunk, (str, list, dict))
            told[attribute] = MASK if hidden else _encodable(_shown(key, column, shrunk))
    return told


def named(text: str | bytes, params: Any) -> list[tuple[str, str, Any]]:
    """Return ``(key, column, value)`` of the first hundred parameters of a statement, the values as they are.

    The key is the parameter's place from 0, or its name; the column is empty where the text does not tell
    one. A named parameter that belongs to several columns is there for each of them. What is neither a list,
    a tuple nor a dict has no parameters that can be told; those that have no place in what is read of the
    text are left out.
    """
    items = list(_items(params))
    if not items:
        return []
    read = _read(text)
    known = (_remembered if len(read) <= SHORT else columns_of)(read)
    found = [(key, column, value) for key, value in items for column in known.get(key, ())]
    return found[:MOST]


def _read(text: str | bytes) -> str:
    return text[:READ_LIMIT] if isinstance(text, str) else text[:READ_LIMIT].decode("utf-8", "replace")


def _items(params: Any) -> Iterable[tuple[str, Any]]:
    kind = type(params)  # isinstance() would believe what the object says of its class
    if issubclass(kind, dict):
        pairs = islice(dict.items(params), MOST)
        return ((str.__str__(key), value) for key, value in pairs if issubclass(type(key), str))
    values = _sequence(params, MOST)
    return () if values is None else ((str(place), value) for place, value in enumerate(values))


def _sequence(value: Any, most: int) -> Iterable[Any] | None:
    """Return the first items of a list or a tuple; others are not asked: a QuerySet would run its query."""
    kind = type(value)
    if issubclass(kind, list):
        return list.__getitem__(value, slice(most))
    return tuple.__getitem__(value, slice(most)) if issubclass(kind, tuple) else None


# --- values ----------------------------------------------------------------------------------------------

#: What the drivers wrap JSON in, and the attribute that holds it.
_WRAPPERS = {
    ("psycopg.types.json", "Json"): "obj",
    ("psycopg.types.json", "Jsonb"): "obj",
    ("psycopg2._json", "Json"): "adapted",
}


class _Look:
    """One statement's look at its values, with what is left to be looked at."""

    def __init__(self) -> None:
        self.left = LOOKED_AT_IN_ALL

    def shrunk(self, value: Any, depth: int) -> Any:
        """Return as much of a value as is worth masking."""
        kind = type(value)
        if issubclass(kind, str):
            return self.text(str.__str__(value))
        if issubclass(kind, dict):
            pairs = islice(dict.items(value), ITEMS) if depth else ()
            return {key: self.shrunk(each, depth - 1) for key, each in pairs if issubclass(type(key), str)}
        values = _sequence(value, ITEMS)
        if values is not None:
            return [self.shrunk(each, depth - 1) for each in values] if depth else []
        held = _wrapped(kind) if depth else ""
        return self.shrunk(object.__getattribute__(value, held), depth - 1) if held else value

    def text(self, value: str) -> str:
        if min(len(value), LOOKED_AT) > self.left:
            return f"<str {len(value)}>"
        self.left -= min(len(value), LOOKED_AT)
        return value[:LOOKED_AT]


def _wrapped(kind: type) -> str:
    bases = type.__getattribute__(kind, "__mro__")
    names = (_WRAPPERS.get((cls.__module__, cls.__name__), "") for cls in bases)
    return next(filter(None, names), "")


def _shown(key: str, column: str, value: Any) -> str:
    """Return the text of a parameter: masked by its own name, by its column's, and by its type."""
    masked = masked_value(column, masked_value("" if key.isdigit() else key, value))
    try:
        text = _text(masked)
    except Exception:  # noqa: BLE001 - somebody's time zone, or a number too long to be written
        return MASK
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + MASK


def _text(masked: Any) -> str:
    if masked is None:
        return "NULL"
    if isinstance(masked, (list, tuple)):
        return f"[{_joined(_text(each) for each in masked)}]"
    if isinstance(masked, dict):
        return f"{{{_joined(f'{key}: {_text(each)}' for key, each in masked.items())}}}"
    return str(masked).lower() if isinstance(masked, bool) else str(masked)


def _joined(texts: Iterator[str]) -> str:
    found, length = [], 0
    for text in texts:
        found.append(text)
        length += len(text)
        if length > VALUE_LIMIT:
            break
    return ", ".join(found)


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
