# SPDX-License-Identifier: Apache-2.0
"""Which numbers are payment cards: by their issuer's prefix at that length, and by Luhn's digit.

CockroachDB's row ids have as many digits. `unique_rowid()` gave 18 digits until autumn 2024 and gives 19 that
begin with 1 until 2034: no card has either. What cannot be told from a card is a number of the application's
own with an issuer's prefix, that length and Luhn's digit, such as one in some eighty ids of
`unordered_unique_rowid()`: it is masked. Cards of 17 and 18 digits, which hardly anybody has, are seen in
groups only.
"""

from __future__ import annotations

import re

__all__ = ["GROUPS", "is_card", "is_card_number"]

#: Lengths, and the prefixes that are in use at these (ISO/IEC 7812; the issuers' public ranges).
_ISSUERS = (
    ((16, 19), r"4"),  # Visa; of 13 digits are articles and telephones
    ((16,), r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"),  # Mastercard
    ((15,), r"3[47]"),  # American Express
    ((14,), r"3(?:0[0-5]|095|[689])"),  # Diners Club
    ((16,), r"3(?:0[0-5]|095|[689])|352[89]|35[3-8]"),  # Diners Club, JCB
    ((16, 19), r"6011|64[4-9]|65|62|81"),  # Discover, UnionPay, RuPay
    ((16,), r"60|508|82|220[0-4]|9792"),  # RuPay, Mir, Troy
    ((13, 15, 16, 19), r"50(?:18|20|38)|56|58|57|6304|6759|676[1-3]|63"),  # Maestro
)
_PREFIXES = {
    length: re.compile("|".join(prefixes for lengths, prefixes in _ISSUERS if length in lengths))
    for length in {length for lengths, _ in _ISSUERS for length in lengths}
}
#: Where in a text a card may stand: one run of digits, or the groups that are printed on cards, set apart by
#: one blank or dash each. A number's fraction, an id in letters and digits and a telephone number are none.
_BEFORE = r"(?<![0-9A-Za-z+])(?<![0-9]\.)"
_AFTER = r"(?![0-9A-Za-z]|\.[0-9])"
GROUPS = re.compile(
    _BEFORE
    + r"(?:[0-9]{13,19}|[0-9]{4}([ -])(?:[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|[0-9]{6}\1[0-9]{4,5}))"
    + _AFTER
)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def is_card(digits: str) -> bool:
    """Tell whether these digits, set apart or not, are a card's number."""
    plain = digits.replace(" ", "").replace("-", "")
    length = len(plain)
    if length in (17, 18) and plain != digits:
        return plain.startswith(("5", "6")) and _has_luhn_digit(plain)  # Maestro, UnionPay
    prefix = _PREFIXES.get(length)
    return prefix is not None and prefix.match(plain) is not None and _has_luhn_digit(plain)


def is_card_number(number: int) -> bool:
    """Tell whether this number is a card's."""
    return 10**12 <= number < 10**19 and is_card(str(int(number)))


def _has_luhn_digit(digits: str) -> bool:
    numbers = [ord(digit) - 48 for digit in reversed(digits)]
    return (sum(numbers[::2]) + sum(_DOUBLED[number] for number in numbers[1::2])) % 10 == 0
