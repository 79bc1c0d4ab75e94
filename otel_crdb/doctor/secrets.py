# SPDX-License-Identifier: Apache-2.0
"""What must not be printed: passwords of DATABASES, OTLP headers, whoever stands in a URL.

The findings name none of it by themselves; this is for the texts of others in them: a driver's message,
an exception of the application's settings, an endpoint as it was configured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from otel_crdb.secret_values import mask_secrets

Hide = Callable[[str], str]

HIDDEN = "***"
#: Anything before an @ in a URL: a password may hold a slash that nobody has encoded.
USERINFO = re.compile(r"(?<=://)[^\s'\"]*@")
#: Keys of ``DATABASES`` and ``OPTIONS`` whose values are secrets.
SECRET_KEYS = re.compile(r"(?i)pass(word|wd)?$|secret|token")
HEADER_VARIABLES = re.compile(r"OTEL_EXPORTER_OTLP_(\w+_)?HEADERS")
#: Words of a header's value that are no secrets.
SCHEMES = frozenset({"Basic", "Bearer", "Digest", "basic", "bearer", "token"})
#: Shorter ones would take innocent letters out of every word.
SHORTEST = 4


def hider(values: Iterable[str]) -> Hide:
    """Return what takes these values, and what looks like a secret, out of a text."""
    every = {form for value in values for form in (value, unquote(value), quote(value, safe=""))}
    known = sorted((value for value in every if len(value) >= SHORTEST), key=len, reverse=True)

    def hide(text: str) -> str:
        for value in known:
            text = text.replace(value, HIDDEN)
        return mask_secrets(USERINFO.sub("", text))

    return hide


def of_process() -> set[str]:
    """Return the secrets that the environment of this process holds."""
    found = {os.environ.get("PGPASSWORD", "")}
    for name, text in os.environ.items():
        if HEADER_VARIABLES.fullmatch(name):
            for pair in text.split(","):
                found |= _header_values(pair.partition("=")[2].strip())
    return found - {""}


def _header_values(value: str) -> set[str]:
    """Return a header's value, its words without ``Bearer``, and these as an exception would print them."""
    whole = unquote(value)
    found = {value, whole, *(word for word in whole.split() if word not in SCHEMES)}
    return found | {repr(each)[1:-1] for each in found}


def of_settings(settings: Any) -> set[str]:
    """Return the secrets of Django's settings."""
    found = {str(getattr(settings, "SECRET_KEY", "") or "")}
    for alias in (getattr(settings, "DATABASES", None) or {}).values():
        found |= _secrets_in(alias)
        found |= _secrets_in(alias.get("OPTIONS") or {})
    return found - {""}


def _secrets_in(entries: Mapping[str, Any]) -> set[str]:
    return {
        str(value)
        for name, value in entries.items()
        if value and isinstance(value, (str, bytes)) and SECRET_KEYS.search(str(name))
    }
