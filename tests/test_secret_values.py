# SPDX-License-Identifier: Apache-2.0
"""What may be seen of a field: by its name, its type and its text; and what an application may add or switch off."""

from __future__ import annotations

import datetime as dt
import enum
import json
import threading
import uuid
from decimal import Decimal

import pytest
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st

from otel_crdb.secret_values import (
    MASK,
    configure,
    is_secret_name,
    mask_secrets,
    masked_text,
    masked_value,
)

from .test_secret_forms import NAMES, SECRET, SECRETS


@pytest.fixture(autouse=True)
def as_delivered():
    """Each test begins and ends with the rules that hold without options."""
    configure(enabled=True, names=(), patterns=())
    yield
    configure(enabled=True, names=(), patterns=())


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*NAMES, "http.request.header.authorization", "http.request.header.cookie", "http.response.header.set_cookie",
             "HTTP_COOKIE", "session", "sid", "auth", "pin", "signature", "user[password]", "password_hash", "card_number", "passwords",
             "pw", "db_pw", "verification_code", "recoveryCode", "otp_code", "security_answer"]
)  # fmt: skip
def test_secret_names(name: str) -> None:
    """A secret's name is known however it is spelt."""
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["", "key", "code", "id", "author", "monkey", "bypass", "compass", "password_changed_at", "token_type", "input_tokens", "session.id",
             "code.file.path", "db.namespace", "http.route", "txn_id", "trace_id", "primary_key", "cache_key", "keyboard", "basic", "tokens", "pinned"]
)  # fmt: skip
def test_other_names(name: str) -> None:
    """Names that only look like it are none."""
    assert not is_secret_name(name)


# --- values ---------------------------------------------------------------------------------------


class Loud:
    """An object whose text must not be asked for."""

    def __repr__(self) -> str:
        raise AssertionError("asked")

    def __getattribute__(self, name: str) -> object:
        raise AssertionError("asked")

    __str__ = __repr__


class State(str, enum.Enum):
    """An application's choices."""

    NEW = "new"


class Odd(int):
    """A number with a text of its own."""

    def __repr__(self) -> str:
        return SECRET

    __str__ = __repr__


@pytest.mark.parametrize("value", [None, True, False, 0, -5, 2.5, Decimal("4.20"), uuid.UUID(int=5), dt.date(2026, 1, 2),
                                   dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc), dt.time(1), dt.timedelta(5), "", "text", (), [], {}, 10**30])  # fmt: skip
def test_plain_values_stay(value: object) -> None:
    """Numbers, dates, ids and clean texts stay as they are."""
    assert masked_value("a", value) == value


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("password", "x", MASK),
        ("password", "", ""),
        ("password", None, None),
        ("pin", 1234, MASK),
        ("password", ["x"], MASK),
        ("data", b"\x00" * 12, "<bytes 12>"),
        ("data", bytearray(3), "<bytes 3>"),
        ("data", memoryview(b"abcd"), "<bytes 4>"),
        ("card", 4111111111111111, MASK),
        ("note", "mail a@b.co", "mail …"),
        ("x", State.NEW, "new"),
        ("x", Odd(7), 7),
        ("x", [1, "a@b.co", (2.5, b"x")], [1, MASK, (2.5, "<bytes 1>")]),
        ("x", {"a": {"token": "x", "n": 5}, "mail": "a@b.co"}, {"a": {"token": MASK, "n": 5}, "mail": MASK}),
        ("x", {"a@b.co": 1}, {MASK: 1}),
        ("x", ("password", "abc"), ("password", MASK)),
        ("x", [["Authorization", "abc"], ["Host", "h"]], [["Authorization", MASK], ["Host", "h"]]),
        ("x", {7: "a", None: "b"}, {7: "a", "None": "b"}),
        ("x", {"a"}, ["a"]),
        ("x", [[[["deep", [1]]]]], [[[["deep", MASK]]]]),
    ],
)
def test_what_is_seen_of_a_value(name: str, value: object, seen: object) -> None:
    """By its name, then by its type and text: a value is shown so far as it is no secret."""
    assert masked_value(name, value) == seen


def test_objects_are_not_asked() -> None:
    """Of an object its class is shown; not even `__class__` is asked for, which would load a lazy user."""
    lazy = SimpleLazyObject(lambda: pytest.fail("loaded"))
    assert masked_value("x", Loud()) == f"<{__name__}.Loud>"
    assert masked_value("user", [lazy]) == ["<django.utils.functional.SimpleLazyObject>"]


def test_containers_are_bounded() -> None:
    """Of a large container the first items are shown, of one that holds itself no more than once."""
    many = masked_value("x", list(range(1_000)))
    assert many == [*range(50), MASK]
    assert len(masked_value("x", dict.fromkeys(range(1_000)))) == 51
    wide: list[object] = [[[[0] * 50] * 50] * 50] * 50
    assert len(repr(masked_value("x", wide))) < 20_000
    circle: list[object] = [1]
    circle.append(circle)
    assert masked_value("x", circle) == [1, MASK]
    twice = ["a"]
    assert masked_value("x", [twice, twice, 0]) == [["a"], ["a"], 0]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=9)
    | st.just(Loud),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(st.text(max_size=20), VALUES)
def test_any_value_is_shown_without_asking_it(name: str, value: object) -> None:
    """No value makes it raise, and what comes back can be written down."""
    json.dumps(masked_value(name, value))


@given(st.sampled_from(NAMES), SECRETS, VALUES)
def test_no_secret_in_a_container_survives(name: str, secret: str, other: object) -> None:
    """A named field within containers is masked wherever it lies."""
    assert secret not in repr(masked_value("x", {"other": other, "in": [{name: secret}, (name, secret)]}))


# --- options --------------------------------------------------------------------------------------


def test_names_and_patterns_of_the_application() -> None:
    """Added names are masked as last words too, in texts and fields; all that an added pattern matches is masked."""
    configure(enabled=True, names=("iban", "accountNumber"), patterns=(r"ACME-\d+", "(", r"x*"))
    assert mask_secrets(
        "customer_iban=DE02 x, account_number: 77, ACME-123"
    ) == "customer_iban=… x, account_number: …, …".replace(" x,", " …,")
    assert masked_value("iban", "DE02") == MASK
    assert is_secret_name("customer-iban")
    assert not is_secret_name("meridiban")


def test_masking_of_secrets_can_be_switched_off() -> None:
    """Switched off, no secret is masked; keys and rows of errors still are, and nobody is asked for his text."""
    configure(enabled=False, names=("iban",), patterns=("a",))
    text = f"password={SECRET} a@b.co"
    assert mask_secrets(text) is text
    assert masked_text(text) == text
    assert masked_value("password", SECRET) == SECRET
    assert masked_value("n", 4111111111111111) == 4111111111111111
    assert masked_value("x", Loud()) == f"<{__name__}.Loud>"
    assert not is_secret_name("password")
    assert SECRET not in masked_text(
        f"IntegrityError: duplicate key value\nDETAIL:  Key (a)=({SECRET}) already exists."
    )


def test_rules_may_change_while_others_mask() -> None:
    """While one thread changes the rules, others mask by the old or by the new ones."""
    done, wrong = threading.Event(), []

    def mask() -> None:
        while not done.is_set():
            if mask_secrets("iban=DE02 password=x") not in ("iban=DE02 password=…", "iban=… password=…"):
                wrong.append(1)

    threads = [threading.Thread(target=mask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        configure(enabled=True, names=("iban",), patterns=())
        configure(enabled=True, names=(), patterns=())
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


# --- what is no text ------------------------------------------------------------------------------


class Unreadable:
    """Raises where its text is read."""

    def __str__(self) -> str:
        raise RuntimeError("not readable")


@pytest.mark.parametrize("value", [None, 5, b"x", ["password=1"], Unreadable()])
def test_what_is_no_text_gives_one(value: object) -> None:
    """Whatever stands in place of a text gives a text; none that cannot be read raises."""
    assert type(mask_secrets(value)) is str  # type: ignore[arg-type]
    assert type(masked_text(value)) is str
    assert mask_secrets(Unreadable()) == ""  # type: ignore[arg-type]


def test_a_text_of_a_class_of_its_own_gives_a_plain_one() -> None:
    """A subclass of str comes back as plain text, masked, and none of its methods is called."""

    class Safe(str):
        def __str__(self) -> str:
            return self

        def lower(self) -> str:
            raise AssertionError("called")

    assert mask_secrets(Safe("password=x")) == "password=…"
    assert type(mask_secrets(Safe("plain"))) is str
    assert masked_value("a", Safe("password=x")) == "password=…"
