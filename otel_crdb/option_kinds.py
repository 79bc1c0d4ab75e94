# SPDX-License-Identifier: Apache-2.0
"""The kinds of value that an option can have: what it is called, its check, how a variable spells it."""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value."""

    #: As in "node_id is *a bool*, not 3".
    words: str
    #: Gives the value as it is kept, or raises TypeError (of another type) or ValueError (of no such value);
    #: a message that the exception has says more than the words.
    check: Callable[[Any], Any]
    #: Reads the text of a variable, to be checked then; None: no variable can say it.
    parse: Callable[[str], Any] | None = None
    #: How a variable spells it.
    spelling: str = ""


def checked(kind: Kind, where: str, value: Any) -> Any:
    """Return a value of that kind, as it is kept.

    Args:
        kind: what it must be.
        where: where it was read, for the message.
        value: as it was given.

    Raises:
        TypeError: it has another type.
        ValueError: there is no such value.

    """
    try:
        return kind.check(value)
    except (TypeError, ValueError) as error:
        told = f"{where} is {kind.words}, not {value!r}"
        raised = TypeError if isinstance(error, TypeError) else ValueError
        raise raised(f"{told}: {error}" if error.args else told) from None


def nearest(name: str, names: Collection[str]) -> str:
    """Return the end of a message about a name that does not exist."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"


# --- checks ----------------------------------------------------------------------------------------------


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError
    return value


def _names(value: Any) -> tuple[str, ...]:
    """Take one text with commas, as variables spell it, or several."""
    several = value.split(",") if isinstance(value, str) else value
    if not isinstance(several, Iterable) or isinstance(several, (bytes, Mapping)):
        raise TypeError
    names = tuple(several)
    if not all(isinstance(name, str) for name in names):
        raise TypeError
    return tuple(name.strip() for name in names if name.strip())


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _names(value)
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r}: {error}") from None
    return patterns


def _function(value: Any) -> Callable[..., Any] | None:
    if value is None or callable(value):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str):
        raise TypeError
    module, _, name = value.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # noqa: BLE001 - of a module of the application's: models before Django is set up
        raise ValueError(f"{type(error).__name__}: {error}") from None
    if not callable(found):
        raise TypeError
    return found  # type: ignore[no-any-return]


def _retries(value: Any) -> bool | Mapping[str, Any]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, Mapping):
        raise TypeError
    from .policy import ViewPolicy  # only those need it that ask for it

    for name in value:
        known = ViewPolicy.__dataclass_fields__
        if name not in known:
            raise TypeError(f"retry_view has no option {name!r}{nearest(str(name), list(known))}")
    ViewPolicy(**value)
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    if not 0 <= value < float("inf"):
        raise ValueError
    return float(value)


def _tags(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(
        isinstance(word, str) for each in value.items() for word in each
    ):
        raise TypeError
    return dict(value)


# --- the text of variables -------------------------------------------------------------------------------


def _parse_bool(text: str) -> bool:
    word = text.lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"say one of {', '.join(TRUE + FALSE)}")
    return word in TRUE


def _parse_int(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]+", text) else _refuse()


def _refuse() -> int:
    raise TypeError


def _parse_number(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else _refuse()


def _parse_retries(text: str) -> Any:
    return json.loads(text) if text.startswith("{") else _parse_bool(text)


# --- the kinds -------------------------------------------------------------------------------------------

BOOL = Kind("a bool", _bool, _parse_bool, "`true` or `false`")
TEXT = Kind("a str, or None", _text, str, "the text")
NAMES = Kind("a str with commas, or a list of str", _names, str, "with commas")
PATTERNS = Kind(
    "a regular expression, or a list of them", _patterns, str, "with commas between them, so with none within"
)
FUNCTION = Kind("a function, or its dotted path", _function, str, "the dotted path")
RETRIES = Kind(
    "a bool or options of retry_view", _retries, _parse_retries, "`true`, `false` or a JSON object of options"
)
SECONDS = Kind("a number of seconds, 0 or more", _seconds, _parse_number, "a decimal number")
TAGS = Kind("a dict of str to str, or None", _tags, json.loads, "a JSON object")


def provider(method: str) -> Kind:
    """Return the kind whose values are OpenTelemetry's providers that have this method."""

    def check(value: Any) -> Any:
        if value is not None and not callable(getattr(value, method, None)):
            raise TypeError
        return value

    return Kind("a provider of OpenTelemetry's, or None", check)


def one_of(*words: str) -> Kind:
    """Return the kind whose values are these words."""

    def check(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind(f"one of {', '.join(map(repr, words))}", check, str, "the word")


def whole_number(low: int, high: int) -> Kind:
    """Return the kind of whole numbers from ``low`` to ``high``."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"an int from {low} to {high}", check, _parse_int, "digits")
