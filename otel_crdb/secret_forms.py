# SPDX-License-Identifier: Apache-2.0
"""What a secret looks like in a text, and the text without it.

A secret is known by the name before it (`secret_pairs`), by its own form (an issuer's prefix, a card's
digits, an e-mail address), or by where it stands (`scheme://user:password@host`). What is no secret stays as
it is, so that texts stay readable.
"""

from __future__ import annotations

import base64
import re
from typing import NamedTuple

from .card_numbers import GROUPS, is_card
from .secret_names import FIELD_SIGNS, FIELD_STEMS, STEMS, stems
from .secret_pairs import MASK, NAME_LIMIT, PROSE, REDACTED, is_none, mask_after_names

__all__ = ["MASK", "REDACTED", "Rules", "as_text", "configure", "mask_secrets", "may_hold_secret", "rules"]

#: Characters that come back, and how many more are looked at where a longer text is cut: so a secret that the
#: cut goes through is seen whole.
LIMIT, _MARGIN = 64 * 1024, 8 * 1024


class Rules(NamedTuple):
    """What is masked beside what always is. Never changed, only replaced, so any thread may read it."""

    enabled: bool = True
    names: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()
    stems: tuple[str, ...] = STEMS


_rules = Rules()


def rules() -> Rules:
    """Return the rules in force."""
    return _rules


def configure(*, enabled: bool, names: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    """Set whether secrets are masked, the names and the regular expressions of the application's own.

    A pattern that is none is passed over; all that another matches is masked.
    """
    global _rules
    _rules = Rules(enabled, tuple(names), tuple(_compiled(patterns)), STEMS + stems(tuple(names)))


def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, RecursionError, OverflowError, TypeError):  # noqa: PERF203 - the others still hold
            continue
    return compiled


def as_text(value: object, limit: int) -> str:
    """Return a text's beginning as valid Unicode: a lone surrogate may cost a whole batch its export."""
    try:
        text = value if type(value) is str else str.__str__(str(value))
        text = text if len(text) <= limit else text[:limit]
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything; nothing then leaves
        return ""
    return text


def mask_secrets(text: str) -> str:
    """Return the text without secrets: the very same where it holds none.

    Of a text longer than 64 KiB head and tail come back. Valid Unicode in any case; never raises; time is
    linear; masking once more changes nothing.
    """
    if type(text) is str and len(text) <= LIMIT:
        clean = text if text.isascii() else as_text(text, LIMIT)
    else:
        clean = _head_and_tail(text)
    rules = _rules
    if not rules.enabled or not _may_hold_secret(clean, rules):
        return text if clean is text or (type(text) is str and clean == text) else clean
    masked = _stable(clean, rules)
    return text if type(text) is str and masked == text else masked


def _head_and_tail(value: object) -> str:
    """Return the text, of a long one head and tail, cut where no secret is cut in two."""
    whole = as_text(value, 1 << 62)
    if len(whole) <= LIMIT:
        return whole
    half = LIMIT // 2
    head, tail = whole[: half + _MARGIN], whole[-half - _MARGIN :]
    if _rules.enabled:
        head, tail = _stable(head, _rules), _stable(tail, _rules)
    return f"{head[: half - 2]}\n{MASK}\n{tail[-half + 1 :]}"


def _stable(text: str, rules: Rules) -> str:
    """Mask until nothing changes: what one form leaves may end where another begins."""
    for _ in range(4):
        masked = _masked(text, rules)
        if masked == text:
            break
        text = masked
    return text


# --- is there anything to look for ----------------------------------------------------------------

#: Thirteen digits and more, as cards have them.
_DIGITS = re.compile(r"[0-9]{4}[ -]?[0-9]{4}(?:[0-9]{2}[ -][0-9]{4}|[ -]?[0-9]{4}[ -]?[0-9])")
#: One of these is in each token that is known by its own form; by the punctuation that they hold.
_TOKEN_SIGNS = {
    "": ("eyJ", "AKIA", "ASIA", "AIza", "dapi"),
    "_": (
        *(
            "ghp_",
            "gho_",
            "ghs_",
            "ghu_",
            "ghr_",
            "github_pat_",
            "k_live_",
            "k_test_",
            "whsec_",
            "npm_",
            "_v1_",
        ),
        *("hf_", "shpat_", "shpca_", "shppa_", "shpss_", "CCDB1_", "sntr"),
    ),
    "-": ("PRIVATE KEY-", "glp", "xox", "xapp-", "GOCSPX-", "sk-", "pypi-", "NRAK-"),
    "$": ("pbkdf2", "argon2", "bcrypt", "scrypt", "md5$", "sha1$", "$2", "$5$", "$6$", "$y$"),
    ".": ("ya29.", "SG.", "hvs.", "hvb.", "hvr."),
}


def may_hold_secret(text: str) -> bool:
    """Tell in a few looks whether a secret may be in the text; what says no holds for each part of it too."""
    return _rules.enabled and _may_hold_secret(text, _rules)


def _may_hold_secret(text: str, rules: Rules) -> bool:
    if "@" in text or "%40" in text or rules.patterns:
        return True
    return _may_hold_name(text, rules) or _may_hold_token(text) or _DIGITS.search(text) is not None


def _may_hold_name(text: str, rules: Rules) -> bool:
    low = text.lower()
    for stem in rules.stems:
        if stem in low:
            return True
    for stem in FIELD_STEMS:
        if stem in low and FIELD_SIGNS.search(low):
            return True
    return ")=(" in text or "bearer" in low or "basic" in low


def _may_hold_token(text: str) -> bool:
    for mark, signs in _TOKEN_SIGNS.items():
        if mark in text:
            for sign in signs:
                if sign in text:
                    return True
    return "-" in text and _RESET_HASH.search(text) is not None


# --- the forms, one after another -----------------------------------------------------------------


def _masked(text: str, rules: Rules) -> str:
    at_sign = "@" in text or "%40" in text
    if at_sign:
        text = _USER.sub(_without_user, text)
    if _may_hold_name(text, rules):
        text = _ROW.sub(rf"\1{MASK}", text) if "Key (" in text or "row (" in text else text
        text = mask_after_names(text, rules.names)
        if "ession" in text or "ESSION" in text:
            text = _SESSION.sub(_without_session_key, text)
        text = _SCHEME.sub(_without_credentials, text)
    if _may_hold_token(text):
        text = _TOKEN.sub(_without_token, _PRIVATE_KEY.sub(MASK, text))
        text = _without_reset_tokens(text)
        if "$" in text:
            text = _PASSWORD_HASH.sub(_without_token, text)
    if at_sign:
        text = _without_addresses(text)
    if _DIGITS.search(text):
        text = _without_cards(text)
    for pattern in rules.patterns:
        text = pattern.sub(_without_match, text)
    return text


# Patterns begin with what is rare, and not with a look behind: so the engine passes quickly over the rest.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}-----|\Z)", re.DOTALL
)
#: User and password of a URL; a password may hold what should have been encoded, a port is none.
_USER = re.compile(
    r"(://)(?:[^\s/?#\"'<>]{1,512}"
    r"|[^\s/?#@:\[\"'<>]{0,128}:(?![0-9]{1,5}(?:[/?#,\s]|\Z))[^\s\"'<>]{1,256})@(?=[^\s@])"
)
#: A row of an error's detail: values may hold parentheses of their own.
_ROW = re.compile(r"((?:Key|row) \([^\n]{1,256}?\)\s?=\s?\()(?:[^\n]*(?=\))|[^\n]+)")
#: Session keys of Django: what is shown of a `Session`, and near that word 32 characters that are more than a
#: hexadecimal number.
_SESSION = re.compile(
    r"((?:S|s)(?:ession|ESSION)(?:(?:Store)?\((?:b?[\"'])?|(?<=<.{7}): ))(?![^)>\n]{0,64}[=.])[^\"')>\n]+"
    r"|((?:S|s)(?:ession|ESSION)[\w ]{0,24}[ :=('\"<\[]{1,4})(?<![a-z0-9])"
    r"(?=[a-z0-9]{0,31}[g-z])(?=[a-z0-9]{0,31}[0-9])[a-z0-9]{32}(?![A-Za-z0-9])"
)
#: Tokens whose issuers have given them a form: prefix and alphabet.
_TOKEN = re.compile(
    r"eyJ[\w-]{10,}(?:\.[\w-]+)*|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glp[a-z]{1,3}-[\w-]{16,}"
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|AKIA[A-Z0-9]{16,}|ASIA[A-Z0-9]{16,}|AIza[\w-]{30,}"
    r"|ya29\.[\w.-]{16,}|GOCSPX-[\w-]{16,}|rk_(?:live|test)_[A-Za-z0-9]{10,}|sk_(?:live|test)_[A-Za-z0-9]{10,}"
    r"|whsec_[\w+/=-]{16,}|sk-(?=[A-Za-z_-]{0,64}[0-9])[\w-]{20,}|SG\.[\w.-]{32,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{16,}"
    r"|do[opr]_v1_[a-f0-9]{32,}|hf_[A-Za-z0-9]{30,}|shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32,}|hv[bsr]\.[\w-]{20,}"
    r"|CCDB1_\w{40,}|dapi[a-f0-9]{32,}|NRAK-[A-Z0-9]{20,}|sntr[ysu]s_[\w+/=-]{20,}"
)
#: What Django and crypt keep of a password: algorithm, cost, salt and hash.
_PASSWORD_HASH = re.compile(
    r"(?:pbkdf2_sha(?:1|256|512)|argon2|bcrypt(?:_sha256)?|scrypt|md5|sha1)\$[A-Za-z0-9_+/=.,$-]{20,}"
    r"|\$(?:2[abxy]?|argon2(?:id|i|d)|[56y])\$[A-Za-z0-9_+/=.,$-]{16,}"
)
#: The token in Django's links to a new password, behind the user's id: `/reset/MQ/c1a2b3-…/`.
_RESET_TOKEN = re.compile(r"-[0-9a-f]{32}(?![0-9A-Za-z-]|\.\w)")
_RESET_HASH = re.compile(r"-[0-9a-f]{32}")
_RESET_STAMP = re.compile(r"([0-9a-z]{1,13})/[\w-]{1,64}/")
_DOMAIN = re.compile(
    r"(?![0-9]x\.(?:png|jpe?g|gif|svg|webp|avif)\b)"
    r"(?:\w(?:[\w-]{0,62}\w)?\.){1,8}(?:xn--[a-z0-9-]{1,59}|[^\W\d_]{2,24})(?![^\W_])"
)
_LOCAL = r"[\w.+%!#$*~^-]"
#: What is before the at sign, read from there.
_LOCAL_PART = re.compile(rf"{_LOCAL}+(?:'{_LOCAL}+)?")
_AT_SIGN = re.compile(r"@|%40")


def _without_addresses(text: str) -> str:
    kept: list[str] = []
    copied = 0
    for found in _AT_SIGN.finditer(text):
        domain = _DOMAIN.match(text, found.end())
        if domain is None or found.start() < copied:
            continue
        local = _LOCAL_PART.match(text[max(copied, found.start() - NAME_LIMIT) : found.start()][::-1])
        if local is None or (local[0] == "tig" and text[domain.end() : domain.end() + 1] in (":", "/")):
            continue  # `git@host:path` is a repository's
        if not local[0].startswith(REDACTED[::-1]):
            kept += (text[copied : found.start() - local.end()], MASK)
            copied = domain.end()
    return "".join(kept) + text[copied:]


def _without_reset_tokens(text: str) -> str:
    kept: list[str] = []
    copied = 0
    for found in _RESET_TOKEN.finditer(text):
        stamp = _RESET_STAMP.match(text[max(copied, found.start() - NAME_LIMIT) : found.start()][::-1])
        if stamp is not None:
            kept += (text[copied : found.start() - stamp.end(1)], MASK)
            copied = found.end()
    return "".join(kept) + text[copied:]


def _without_token(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()] if match.start() else ""
    return match[0] if before.isascii() and before.isalnum() else MASK


_SCHEME = re.compile(r"([Bb](?:earer|EARER|asic|ASIC))([ \t]+)([\w.~+/=-]+)")
_CHALLENGE = ("realm=", "error=", "scope=", "charset=")
#: What stands behind the scheme's name in a sentence, or in what a server asks for.
_AFTER_BEARER = PROSE | frozenset(
    ("auth", "authentication", "authorization", "format", "header", "scheme", "token", "tokens")
)


def _without_user(match: re.Match[str]) -> str:
    return match[0] if is_none(match[0][3:-1]) else f"{match[1]}{MASK}@"


def _without_session_key(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}{MASK}"


def _without_credentials(match: re.Match[str]) -> str:
    scheme, blank, word = match.groups()
    if scheme.lower() == "basic":
        return f"{scheme}{blank}{MASK}" if _is_user_and_password(word) else match[0]
    if is_none(word) or word.lower() in _AFTER_BEARER or word.startswith(_CHALLENGE):
        return match[0]
    return f"{scheme}{blank}{MASK}"


def _is_user_and_password(word: str) -> bool:
    """Tell whether HTTP's Basic scheme would take the word: `user:password` in base64."""
    try:
        return b":" in base64.b64decode(word + "=" * (-len(word) % 4))
    except ValueError:
        return False


def _without_match(match: re.Match[str]) -> str:
    return MASK if match[0] else ""


def _without_cards(text: str) -> str:
    kept: list[str] = []
    copied = position = 0
    while found := GROUPS.search(text, position):
        if is_card(found[0]):
            kept += (text[copied : found.start()], MASK)
            copied = position = found.end()
        else:  # the groups of a card may begin within those of another number
            position = found.start() + 1
    return "".join(kept) + text[copied:]
