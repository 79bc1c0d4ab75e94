# SPDX-License-Identifier: Apache-2.0
"""The one room that masks: what of a text, a field or a parameter may be seen.

Whoever writes something down that came from the application asks here: log records, extras, parameters,
attributes, exception texts. `secret_names` and `secret_pairs` know a secret by its name, `secret_forms` by
its form, `card_numbers` the cards; `redaction` takes the rows and keys out of database errors.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from uuid import UUID

from . import redaction, secret_forms
from .card_numbers import is_card_number
from .secret_forms import MASK, configure, mask_secrets, may_hold_secret
from .secret_names import Sureness, sureness

__all__ = [
    "MASK",
    "configure",
    "is_secret_name",
    "mask_secrets",
    "masked_text",
    "masked_value",
    "may_hold_secret",
]

#: How deep containers are walked, how many of each one's items, and how many items altogether.
DEPTH, ITEMS, ALL_ITEMS = 4, 50, 1_000
#: Their text holds what they are, and nothing of the application's.
_PLAIN = (dt.datetime, dt.date, dt.time, dt.timedelta, Decimal, UUID)
_CONTAINERS = (dict, list, tuple, set, frozenset)
#: Reads what the class is called, past whatever its metaclass makes of that.
_NAME_OF = type.__getattribute__


def masked_text(text: object) -> str:
    """Return a free text without the rows and keys of database errors and without secrets."""
    return redaction.scrub_text(text)


def is_secret_name(name: str) -> bool:
    """Tell whether a field, an attribute or a header of this name holds a secret."""
    rules = secret_forms.rules()
    return rules.enabled and isinstance(name, str) and sureness(name, rules.names) >= Sureness.IN_FIELD


def masked_value(name: str, value: object) -> object:
    """Return what of a value may be seen: by its name, then by its type and its text.

    Numbers, dates and the like stay. Texts are masked. Containers are walked 4 deep, up to 50 items each. Of
    bytes the length is told, of any other object the class: nothing of the application's is called. Never
    raises.
    """
    try:
        return _Walk().seen(name, value, DEPTH)
    except Exception:  # noqa: BLE001 - a container may change while it is walked; nothing is then shown
        return MASK


class _Walk:
    """One look at a value, with what it has seen so far."""

    def __init__(self) -> None:
        self.left = ALL_ITEMS
        self.within: set[int] = set()

    def seen(self, name: object, value: Any, depth: int) -> object:
        # Not `isinstance`: it asks for `__class__`, for which Django's lazy objects query the database.
        kind = type(value)
        if value is None or kind is bool:
            return value
        if type(name) is str and is_secret_name(name):
            return value if kind is str and not value else MASK
        if kind in _PLAIN:
            return value
        if issubclass(kind, str):
            return mask_secrets(str.__str__(value))
        if issubclass(kind, (int, float)):
            return _number(kind, value)
        if kind in (bytes, bytearray, memoryview):
            return f"<bytes {value.nbytes if kind is memoryview else len(value)}>"
        if issubclass(kind, _CONTAINERS):
            return self.container(name, value, depth)
        return f"<{_NAME_OF(kind, '__module__')}.{_NAME_OF(kind, '__qualname__')}>"

    def container(self, name: object, value: Any, depth: int) -> object:
        """Walk a container, each only once on the way down."""
        if not depth or id(value) in self.within:
            return MASK
        self.within.add(id(value))
        try:
            if issubclass(type(value), dict):
                return self.mapping(value, depth - 1)
            return self.sequence(name, value, depth - 1)
        finally:
            self.within.discard(id(value))

    def mapping(self, value: dict[Any, Any], depth: int) -> dict[object, object]:
        """Walk a mapping: each key is its value's name."""
        clean: dict[object, object] = {}
        for count, (key, item) in enumerate(dict.items(value)):
            if count == ITEMS or self.left <= 0:
                clean[MASK] = MASK
                break
            self.left -= 1
            shown = key if key is None or type(key) is bool else self.seen(None, key, 1)
            clean[shown if isinstance(shown, (str, int, float)) else str(shown)] = self.seen(key, item, depth)
        return clean

    def sequence(self, name: object, value: Any, depth: int) -> object:
        """Walk items that have no name of their own, save in a pair, where the first may be the second's."""
        kind = next(kind for kind in _CONTAINERS if issubclass(type(value), kind))
        items = kind.__iter__(value)
        clean: list[object] = []
        pair = kind in (list, tuple) and kind.__len__(value) == 2
        for count, item in enumerate(items):
            if count == ITEMS or self.left <= 0:
                clean.append(MASK)
                break
            self.left -= 1
            clean.append(self.seen(clean[0] if pair and count else name, item, depth))
        return tuple(clean) if kind is tuple else clean


def _number(kind: type, value: Any) -> object:
    """Return the plain number, whatever class has been made of it, and no card's."""
    if issubclass(kind, float):
        return float.__pos__(value)
    number = int.__pos__(value)
    return MASK if secret_forms.rules().enabled and is_card_number(number) else number
