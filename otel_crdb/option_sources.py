# SPDX-License-Identifier: Apache-2.0
"""Where options are read from: the setting, the variables, the keyword arguments; the later ones win.

What cannot be meant is refused where it is read, by the name that it has there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from . import config
from .config import Config
from .option_kinds import Kind, checked, nearest

SETTING = "OTEL_CRDB"
PREFIX = "OTEL_CRDB_"
#: What Kubernetes puts into every pod beside a Service whose name begins like ours.
OF_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP)(_\w+)?)?$")
#: Variables with our prefix that are no options: they say on which ground the tests and the demo stand.
NO_OPTIONS = ("OTEL_CRDB_TEST_",)


def read(keywords: Mapping[str, Any]) -> Config:
    """Make a :class:`Config` of the setting, the variables and the keyword arguments.

    Raises:
        TypeError: of the keyword arguments, one that does not exist or has the wrong type.
        ValueError: of the keyword arguments, one that has no such value.
        django.core.exceptions.ImproperlyConfigured: the same of the setting or of a variable.

    """
    kinds = {option.name: option.metadata["kind"] for option in config.options()}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, origin in (*_of_setting(kinds), *_of_variables(kinds), *_of_keywords(kinds, keywords)):
        values[name], origins[name] = value, origin
    unknown = [alias for alias in values.get("excluded_aliases", ()) if alias not in settings.DATABASES]
    if unknown:
        told = f"{origins['excluded_aliases']}: DATABASES has no alias {unknown[0]!r}"
        raise ImproperlyConfigured(told + nearest(unknown[0], list(settings.DATABASES)))
    return Config(**values, origins=origins)


Read = Iterator[tuple[str, Any, str]]


def _of_setting(kinds: Mapping[str, Kind]) -> Read:
    given = getattr(settings, SETTING, None) or {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"The setting {SETTING} is a dict of options, not {given!r}")
    for name, value in given.items():
        where = f"{SETTING}[{name!r}]"
        if name not in kinds:
            raise ImproperlyConfigured(f"{where} is no option{nearest(str(name), list(kinds))}")
        yield name, _configured(kinds[name], where, value), where


def _of_variables(kinds: Mapping[str, Kind]) -> Read:
    names = {f"{PREFIX}{name.upper()}": name for name, kind in kinds.items() if kind.parse is not None}
    for variable, text in os.environ.items():
        if (
            not variable.startswith(PREFIX)
            or variable.startswith(NO_OPTIONS)
            or OF_KUBERNETES.search(variable)
        ):
            continue
        if variable not in names:
            near = nearest(variable.removeprefix(PREFIX).lower(), list(names.values()))
            raise ImproperlyConfigured(f"The variable {variable} is no option{near}")
        if text.strip():  # an empty variable is as good as none, as OpenTelemetry has it
            kind = kinds[names[variable]]
            yield names[variable], _configured(kind, variable, text.strip(), of_text=True), variable


def _of_keywords(kinds: Mapping[str, Kind], keywords: Mapping[str, Any]) -> Read:
    for name, value in keywords.items():
        if name not in kinds:
            raise TypeError(f"otel_crdb.instrument() has no option {name!r}{nearest(name, list(kinds))}")
        yield name, checked(kinds[name], name, value), "instrument()"


def _configured(kind: Kind, where: str, value: Any, *, of_text: bool = False) -> Any:
    try:
        if of_text:
            assert kind.parse is not None
            value = checked(Kind(kind.words, kind.parse), where, value)
        return checked(kind, where, value)
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(str(error)) from None
