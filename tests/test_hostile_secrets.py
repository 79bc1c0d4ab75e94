# SPDX-License-Identifier: Apache-2.0
"""Secrets in texts, parameters and errors: in nothing that leaves, and the caller's error stays as it was."""

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import CharField, Value
from django.db.models.expressions import RawSQL
from hypothesis import example, given
from hypothesis import strategies as st

from .hostile import PROPERTY, SECRET, NoFault, compose, copying, exported, same_both_ways
from .project.models import Account
from .servers import needs_postgresql
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")


QUOTINGS = [
    "'{}'", "''''||'{}'", "E'{}'", "E'\\'{}'", "e'a\\\\{}'", "x'{}'", "X'{}", "b'{}'", "B'{}", "N'{}'", "U&'{}'", "'{}",
    "$${}$$", "$tag${}$tag$", "$tag${}", "/* {} */", "/* /* {} */", "-- {}\n", "--{}", "E'{}", "E'\\{}", "'a'\n'{}'",
    "E'a'\n'\\'{}'", "'\n{}\n'", "'%s{}'", "'%%{}'", "IN ('a', '{}')", "ARRAY['{}'", "VALUES ('a'), ('{}')",
    "AS OF SYSTEM TIME '{}'", "::text || '{}'", "PASSWORD '{}'", "LIKE '%%{}%%'", "'{{\"token\": \"{}\"}}'::jsonb",
]  # fmt: skip
STARTS = [
    "SELECT ", "SELECT 1 FROM account WHERE email = ", "INSERT INTO account (email) VALUES (", "UPDATE account SET email = ",
    "SET application_name = ", "CREATE USER root WITH ", "ALTER ROLE u ", "EXPLAIN SELECT ", "SELECT (((", "nonsense ", "",
    "CALL f(", "EXECUTE p(", "COPY account FROM ", "SHOW ", "SAVEPOINT a; SELECT ", "WITH a AS (SELECT ",
]  # fmt: skip
ENDS = [
    "",
    ")",
    "))) ",
    " FROM account",
    "'",
    "''",
    "\\'",
    "$$",
    "*/",
    ";",
    "\n",
    " -- ",
    "/*",
    "\x00",
    "é",
    "]",
    ", %s",
]


@PROPERTY
@given(
    st.sampled_from(STARTS),
    st.sampled_from(QUOTINGS),
    st.lists(st.sampled_from(ENDS), max_size=3).map("".join),
    st.sampled_from(["execute", "executemany", "bytes", "composed", "copy", "atomic"]),
)
def test_no_secret_of_a_text_leaves(start, quoting, end, way):
    """What stands in quotes or comments of any kind is in nothing that leaves, whatever the server says of it."""
    text = start + quoting.format(SECRET) + end

    def call(cursor):
        if way == "executemany":
            return cursor.executemany(text, [(), ()])
        if way == "copy":
            return copying(text)(cursor)
        if way == "atomic":
            with transaction.atomic():
                return cursor.execute(text)
        if way == "composed":
            return cursor.execute(compose.SQL("{}").format(compose.SQL(text)))
        return cursor.execute(text.encode() if way == "bytes" else text)

    same_both_ways(lambda: call)


CASTS = [
    "int",
    "uuid",
    "date",
    "timestamptz",
    "jsonb",
    "bool",
    "inet",
    "bytea",
    "numeric(3)",
    "char(2)",
    "int[]",
    "xml",
]


@PROPERTY
@given(
    st.sampled_from(CASTS),
    st.sampled_from(
        ["{}", "'{}", '"{}', "{}\n{}", "({})", "\\{}", "{{{}", "é{}", "[{}", "{}" + " " * 50, "x{}x" * 400]
    ),
)
def test_no_secret_of_a_parameter_leaves_by_an_error(cast, form):
    """A parameter that the server refuses, and quotes in its error, is in nothing that leaves."""
    value = form.replace("{}", SECRET)
    same_both_ways(lambda: lambda cursor: cursor.execute(f"SELECT %s::text::{cast}", [value]))


@PROPERTY
@given(st.text(max_size=20), st.sampled_from(["duplicate", "raw", "annotated", "type", "filtered"]))
def test_no_secret_of_the_orm_leaves(garnish, way):
    """Values that go through the ORM, and come back in errors, are in nothing that leaves."""
    value = f"{garnish}{SECRET}"

    def call(_):
        if way == "duplicate":
            with transaction.atomic():
                Account.objects.create(email=value)
                Account.objects.create(email=value)
        elif way == "raw":
            return [row.pk for row in Account.objects.raw("SELECT * FROM account WHERE email = %s", [value])]
        elif way == "annotated":
            expression = RawSQL("%s || %s", [value, value], output_field=CharField())
            return list(Account.objects.annotate(x=expression, y=Value(value)).values_list("x", "y"))
        elif way == "type":
            return list(Account.objects.extra(where=["id = %s::int"], params=[value]))
        return Account.objects.filter(email__regex=value).count()

    same_both_ways(lambda: call)


# What the server says

RAISE = """DO $body$ BEGIN RAISE EXCEPTION USING MESSAGE = {message}, DETAIL = {detail}, HINT = {hint},
ERRCODE = '{code}', COLUMN = {name}, CONSTRAINT = {name}, DATATYPE = {name}, TABLE = {name}, SCHEMA = {name}; END $body$"""
CODES = [
    "23505",
    "40001",
    "22P02",
    "42601",
    "XX000",
    "P0001",
    "ZZ999",
    "08006",
    "25P02",
    "57014",
    "40003",
    "00001",
    "P0004",
]
MESSAGES = [
    "'{}'", "'duplicate key value violates unique constraint \"{}\"'", "'restart transaction: {}'", "'{}\nDETAIL: x'", "'\n\n{}'",
    "'invalid input syntax for type integer: \"{}\"'", "'Key (email)=({}) already exists.'", "'DETAIL:  {}'", "'« {} »'",
    "repeat('{}', 50000)", "repeat('Key (a)=({}) ', 20000)", "repeat('\"', 60000) || '{}'", "repeat('(', 60000) || '{}'",
    "chr(133) || chr(8232) || '{}'", "repeat('/Table/1/', 9000) || '{}'", "'meta={{id={}'", "'%s %(x)s {{}} {}'",
]  # fmt: skip
QUOTED_MESSAGES = [message for message in MESSAGES if message != "'{}'"]


def raising(message, code, name):
    """Return a statement that has the server raise an error of these words."""
    return RAISE.format(
        message=message.format(SECRET),
        detail=f"repeat('{SECRET} ', 1000)",
        hint=f"'{SECRET}'",
        code=code,
        name=name,
    )


@PROPERTY
@given(
    st.sampled_from(MESSAGES),
    st.sampled_from(CODES),
    st.sampled_from(["'x'", f"'{SECRET}'", "repeat('n', 9000)"]),
)
def test_huge_and_odd_errors_of_the_server_reach_the_caller_whole(message, code, name):
    """An error of any size and shape reaches the caller whole, and leaves small telemetry."""
    needs_postgresql()
    plain, telemetry = same_both_ways(
        lambda: lambda cursor: cursor.execute(raising(message, code, name)), secrets=()
    )
    assert plain[0] == "raised"
    (span,) = telemetry.spans
    assert span.attributes["db.response.status_code"] == code


@PROPERTY
@given(st.sampled_from(QUOTED_MESSAGES), st.sampled_from(["23505", "22P02", "42601", "P0001", "P0004"]))
def test_no_detail_or_hint_of_an_error_leaves(message, code):
    """DETAIL, HINT, and the values that a message quotes, are in nothing that leaves."""
    needs_postgresql()
    words = message if code.startswith(("22", "P0")) else "'refused'"
    same_both_ways(lambda: lambda cursor: cursor.execute(raising(words, code, f"'{SECRET}'")))


@PROPERTY
@given(
    st.text(alphabet=st.characters(codec=None), max_size=40),
    st.sampled_from(
        [DatabaseError, ValueError, connection.Database.DataError, connection.Database.OperationalError]
    ),
    st.sampled_from(["", "logs", "logs/dup"]),
)
@example("\ud800", DatabaseError, "logs")
@example("\ud800", connection.Database.OperationalError, "logs/dup")
def test_an_error_of_any_text_can_be_encoded(text, kind, where):
    """An error whose text is not valid Unicode does not cost the batch of telemetry that it is told in."""
    error = kind(text)

    def fail(*_, **__):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", where)
        patch.setattr(connection.Database, "connect", fail)
        with Telemetry() as telemetry, NoFault():
            connection.close()
            with pytest.raises(Exception) as raised:
                connection.ensure_connection()
    assert (raised.value.__cause__ or raised.value).args == error.args
    exported(telemetry)


class Unspeakable(connection.Database.OperationalError):
    """A database error whose text cannot be had."""

    def __str__(self):
        raise SystemError("text")

    __repr__ = __str__


def test_an_error_without_a_text_is_told_by_its_class():
    """An error whose text raises is on the span by its class, and reaches the caller as it is."""
    error = Unspeakable(SECRET)

    def fail(*_):
        raise error

    connection.ensure_connection()
    with Telemetry() as telemetry, NoFault(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(CursorWrapper, "_execute", fail)
        with pytest.raises(Unspeakable) as raised, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    assert raised.value is error
    (span,) = [span for span in telemetry.spans if span.name == "SELECT"]
    assert span.attributes["error.type"].endswith("Unspeakable")
    assert span.events[0].attributes["exception.message"] == ""
