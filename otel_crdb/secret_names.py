# SPDX-License-Identifier: Apache-2.0
"""Which names stand before a secret: of fields, headers, settings and parameters of a query.

A name is compared without case, punctuation and percent-encoding, so that `API_KEY`, `X-Api-Key` and
`apiKey` are one. How sure a name is depends on where it stands: `code` is a secret in a query string, but an
error's number elsewhere; `session: closed` is a sentence, `session=…` a field.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from urllib.parse import unquote_plus

__all__ = ["FIELD_SIGNS", "FIELD_STEMS", "STEMS", "Sureness", "is_cookie", "stems", "sureness"]


class Sureness(IntEnum):
    """Where a name tells of a secret; each holds where the ones after it do."""

    NOWHERE = 0
    IN_QUERY = 1  # `?code=…`
    IN_FIELD = 2  # `session=…`, `"auth": "…"`, an attribute's name
    ANYWHERE = 3  # `password: …`


#: Names without case and punctuation.
_ANYWHERE = re.compile(
    r".*(?:password|passwd|passphrase|passcode|pwd|secret|token|authorization|cookie|credential|csrf|jwt"
    r"|sessionid|sessid|secretkeybase|accesskeyid|(?:creditcard|cardnumber|cardno|ccnumber|ccnum)"
    r"|(?:otp|verification|recovery)code|securityanswer"
    r"|(?:access|account|api|auth|encryption|license|master|private|secret|session|shared|signing)key)"
    r"(?:hash|digest|value|confirm|confirmation|repeat|again|s(?<!tokens))?[0-9]{0,2}"
)
_IN_FIELD = re.compile(r"auth|pass|pin|pincode|sess|session|sid|sig|.*signature")
_IN_QUERY = re.compile(r"code|key")
#: `db_pass` is a password, `bypass` is none; so with what is short.
_LAST_WORD = re.compile(r"(?:.*[^a-z0-9])?(?:pass|pw|t?otp|cvv2?|cvc2?|ssn)[0-9]?")
#: OpenTelemetry's own: the visit to a site, not the key to it.
_NO_SECRET = frozenset({"session.id", "session.previous_id"})
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PUNCTUATION = re.compile(r"[^a-z0-9]+")

#: One of these is in each name above, in lower case: where none is in a text, no name need be looked for. The
#: second are names in fields and queries only.
STEMS = (
    *("pass", "pw", "secret", "token", "auth", "cookie", "credential", "csrf", "jwt", "sess", "key"),
    *("card", "ccn", "otp", "cvv", "cvc", "ssn", "verification", "recovery", "security"),
)
FIELD_STEMS = ("code", "sid", "sig", "pin")
FIELD_SIGNS = re.compile(r"(?:code|sid|sig|signature|pin)(?:[\"'`\])\\]{0,6}[ \t]{0,8}[=:＝：]|%3d)")

_NAME_LIMIT = 256


@lru_cache(maxsize=2048)
def sureness(name: str, added: tuple[str, ...] = ()) -> Sureness:
    """Tell where this name stands before a secret; `added` are the application's own secret names."""
    name = name[-_NAME_LIMIT:]
    if name in _NO_SECRET:
        return Sureness.NOWHERE
    words = _HUMP.sub("_", _unquoted(name)).lower()
    plain = _PUNCTUATION.sub("", words)
    if _ANYWHERE.fullmatch(plain) or _LAST_WORD.fullmatch(words) or (added and _is_added(words, added)):
        return Sureness.ANYWHERE if plain != "pass" else Sureness.IN_FIELD
    if _IN_FIELD.fullmatch(plain):
        return Sureness.IN_FIELD
    return Sureness.IN_QUERY if _IN_QUERY.fullmatch(plain) else Sureness.NOWHERE


def _unquoted(name: str) -> str:
    return unquote_plus(unquote_plus(name)) if "%" in name or "+" in name else name


def _is_added(words: str, added: tuple[str, ...]) -> bool:
    """Tell whether an added name is this one, or its last words: `iban` is in `customer_iban`."""
    name = f"_{_joined(words)}"
    return any(name.endswith(f"_{own}") for own in map(_joined, added) if own)


def _joined(words: str) -> str:
    return _PUNCTUATION.sub("_", _HUMP.sub("_", words).lower()).strip("_")


def is_cookie(name: str) -> bool:
    """Tell whether the name is that of a header of cookies, whose value is a list of pairs."""
    return name.lower().replace("_", "-").endswith("cookie")


def stems(added: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is in lower case in any text that holds one of these names."""
    return tuple(own.split("_")[0] for own in map(_joined, added) if own)
