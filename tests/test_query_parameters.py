# SPDX-License-Identifier: Apache-2.0
"""Parameters on statement spans, where asked for: which they are, what their column hides, what they never do."""

import datetime as dt
import decimal
import enum
import time
import uuid

import pytest
from django.db import connection
from django.db.backends.postgresql.psycopg_any import Jsonb, is_psycopg3
from django.db.models import Case, F, Value, When
from hypothesis import example, given

from otel_crdb.parameter_columns import columns_of
from otel_crdb.query_parameters import LOOKED_AT_IN_ALL, MOST, READ_LIMIT, VALUE_LIMIT, attributes, named
from otel_crdb.secret_values import MASK

from .hostile import PROPERTY, NoFault, compose, exported, outcome
from .project.models import Account
from .telemetry import Telemetry
from .test_hostile_input import Explosive, Impostor, Text
from .test_hostile_input import params as any_params
from .test_hostile_input import texts as any_texts

PREFIX = "db.query.parameter."
SECRET = "Tr0ub4dor&3"


def told(span):
    """Return the parameters on a span."""
    return {
        key.removeprefix(PREFIX): value for key, value in span.attributes.items() if key.startswith(PREFIX)
    }


@pytest.fixture
def asked(accounts):
    """Parameters are asked for."""
    with Telemetry(query_parameters=True) as telemetry, NoFault():
        yield telemetry


# --- the columns -----------------------------------------------------------------------------------------

COLUMNS = {
    'SELECT * FROM "account" WHERE "account"."email" = %s AND balance > %s LIMIT %s': ["email", "balance", ""],
    "SELECT 1 WHERE a=%s OR NOT (b <> %s) AND c IS NOT DISTINCT FROM %s": ["a", "b", "c"],
    "SELECT 1 WHERE a IN (%s, %s) AND b = ANY(%s) AND c LIKE %s": ["a", "a", "b", "c"],
    "SELECT 1 WHERE a BETWEEN %s AND %s AND b = %s": ["a", "a", "b"],
    "SELECT 1 WHERE %s = a AND crypt(%s, b) = c": ["a", "b"],
    "SELECT 1 WHERE (a, b) = (%s, %s) AND (c, d) IN ((%s, %s), (%s, %s))": ["a", "b", "c", "d", "c", "d"],
    'SELECT 1 WHERE UPPER("u"."email"::text) = UPPER(%s)': ["email"],
    "SELECT 1 WHERE UPPER(%s) = UPPER(a)": ["a"],
    "SELECT 1 WHERE a = (SELECT x FROM t WHERE b = %s) AND c = %s": ["b", "c"],
    "SELECT set_password(%s, %s), %s": ["set_password", "set_password", ""],
    "SELECT CASE WHEN a = %s THEN %s ELSE %s END, %s": ["a", "", "", ""],
    "SELECT a[%s], b @> ARRAY[%s]": ["a", "b"],
    "INSERT INTO t VALUES (%s, %s)": ["", ""],
    'INSERT INTO t (a, "B b") VALUES (%s, %s), (%s, UPPER(%s)) ON CONFLICT (a) DO UPDATE SET c = %s RETURNING d': [
        "a", "B b", "a", "B b", "c",
    ],
    "UPSERT INTO s.t (a, b) VALUES ((%s)::int, now()), (%s, %s)": ["a", "a", "b"],
    "INSERT INTO t (a, b) SELECT * FROM UNNEST((%s)::varchar[], (%s)::int[])": ["a", "b"],
    "INSERT INTO t (a, b) SELECT %s, %s FROM u WHERE c = %s": ["a", "b", "c"],
    "UPDATE t SET a = %s, b = crypt(%s, gen_salt(%s)) WHERE c = %s": ["a", "b", "b", "c"],
    "UPDATE t SET (a, b) = (%s, %s)": ["a", "b"],
    'UPDATE t SET a = CASE WHEN ("t"."id" = %s) THEN %s WHEN id = %s THEN %s ELSE NULL END': ["id", "a", "id", "a"],
    "WITH v(a, b) AS (VALUES (%s, %s)) DELETE FROM t USING v WHERE c = %s": ["a", "b", "c"],
    "ALTER USER u WITH PASSWORD %s": ["PASSWORD"],
    "CREATE USER u PASSWORD %s": ["PASSWORD"],
    "SELECT 1 WHERE a = CAST(%s AS text) AND %s::int = b": ["a", "b"],
    "SELECT 1 WHERE a = %s; SELECT %s": ["a", ""],
    "SELECT 1 WHERE a LIKE '%%%s%%' /* %s */ AND b = %s -- %s": ["a", "a", "b", "b"],
    "SELECT %s %% %s WHERE a = %%s AND b = %s": ["", "", "b"],
}  # fmt: skip


@pytest.mark.parametrize("sql", COLUMNS)
def test_text_tells_the_column(sql):
    """Each placeholder, counted as the drivers count, belongs to the column that the text says."""
    assert columns_of(sql) == {str(place): (column,) for place, column in enumerate(COLUMNS[sql])}


def test_names_tell_too():
    """A named parameter is there for each column that it belongs to, and those that are not used are left out."""
    sql = "UPDATE t SET a = %(x)s, b = %(y)s WHERE c = %(x)s"
    assert named(sql, {"x": 1, "y": 2, "z": 3}) == [("x", "a", 1), ("x", "c", 1), ("y", "b", 2)]


@PROPERTY
@given(any_texts.filter(lambda text: isinstance(text, str)))
@example("((((" * 1000 + "%s")
@example(")]]] END THEN %s")
def test_any_text_has_columns(sql):
    """Of any text each placeholder that a driver would find is there, whatever its column."""
    found = columns_of(sql)
    assert all(isinstance(column, str) for names in found.values() for column in names)
    without = sql.replace("%%", "").replace("%(", "")
    assert len(found) >= min(1, without.count("%s"))


# --- on spans --------------------------------------------------------------------------------------------


def test_off_by_default(accounts):
    """Nobody has asked for them: no parameter is told."""
    with Telemetry() as telemetry:
        Account.objects.filter(email="a@example.com").count()
    assert told(telemetry.one("SELECT account")) == {}


def test_orm_statements_tell_them(asked):
    """Parameters stand on the span by their place from 0, as texts."""
    list(Account.objects.filter(balance__gt=50, id__in=[1, 2])[:7])
    assert told(asked.one("SELECT account")) == {"0": "50", "1": "1", "2": "2"} | (
        {"3": "7"} if len(told(asked.one("SELECT account"))) == 4 else {}
    )


def test_bulk_statements_of_the_orm_name_their_columns(asked):
    """What Django makes of ``bulk_create`` and of CASE is understood."""
    seen = []

    def note(execute, sql, params, many, context):
        seen.extend((column, value) for _, column, value in named(sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        Account.objects.bulk_create([Account(email=f"{n}@x", balance=n) for n in range(3)])
        Account.objects.filter(email="0@x").update(
            balance=Case(When(id=77, then=Value(5)), default=F("balance"))
        )
    assert {column for column, _ in seen} == {"email", "balance", "id"}
    columns = dict.fromkeys(column for column, value in seen if value == 77 or value == "0@x")
    assert list(columns) in (["id", "email"], ["email", "id"], ["id"])


@pytest.mark.parametrize(
    ("sql", "given_params"),
    [
        ("SELECT 1 FROM (SELECT '' AS password) u WHERE password = %s", [SECRET]),
        ("SELECT 1 FROM (SELECT '' AS password) u WHERE UPPER(u.password) IN (%s)", [SECRET]),
        ("SELECT 1 FROM (SELECT '' AS a) u WHERE a = %(api_token)s", {"api_token": SECRET}),
        (
            "SELECT 1 FROM (SELECT '' AS a, '' AS password) u WHERE a = %(x)s OR password = %(x)s",
            {"x": SECRET},
        ),
        (
            "SELECT 1 FROM (SELECT '' AS a, '' AS password) u WHERE password = %(x)s OR a = %(x)s",
            {"x": SECRET},
        ),
        ("WITH v(a, password) AS (VALUES (%s, %s)) SELECT 1 FROM v", ["a", SECRET]),
        ("SELECT %s", [f"password={SECRET}"]),
        ("SELECT %s", [f"postgres://root:{SECRET}@host/"]),
    ],
)
def test_secrets_are_masked(asked, sql, given_params):
    """What belongs to a column of a secret's name, has such a name itself, or looks like one, is nowhere."""
    with connection.cursor() as cursor:
        cursor.execute(sql, given_params)
    (span,) = asked.spans
    assert any(MASK in value for value in told(span).values())
    assert SECRET not in asked.everything()


UNNAMED = {
    "INSERT INTO u VALUES (%s, %s, %s, %s)": True,
    'upsert /* a */ into s."u (a)" values (%s, crypt(%s), %s, %s)': True,
    "INSERT INTO u AS v (VALUES (%s, %s, %s, %s))": True,
    "INSERT INTO u SELECT %s, %s, %s, %s": True,
    "INSERT INTO u (a, b, c, d) VALUES (1, 2, 3, 4); INSERT INTO u VALUES (%s, %s, %s, %s)": True,
    "INSERT INTO u (a, b, c, d) VALUES (%s, %s, %s, %s)": False,
    'INSERT INTO "s"."u" AS v ("a", b, c, d) SELECT %s, %s, %s, %s': False,
    "SELECT %s, %s, %s, %s /* route='insert' */": False,
}


@pytest.mark.parametrize("sql", UNNAMED)
def test_an_insert_without_a_list_hides_its_strings(sql):
    """Where an INSERT does not say which columns it fills, numbers are told and no string."""
    shown = attributes(sql, ["plain", "other", 7, ["in"]])
    texts = [MASK, MASK, "7", MASK] if UNNAMED[sql] else ["plain", "other", "7", "[in]"]
    assert list(shown.values()) == texts
    assert list(attributes(sql.encode(), ["plain", "other", 7, ["in"]]).values()) == texts


def test_json_is_masked_by_its_keys(asked):
    """The drivers' wrappers of JSON are looked into."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [Jsonb({"user": "ann", "password": SECRET})])
    assert told(asked.spans[-1]) == {"0": f"{{user: ann, password: {MASK}}}"}


def test_batches_tell_none(asked):
    """``executemany`` of several rows tells none; of one row it is a plain statement."""
    sql = "UPDATE account SET balance = %s WHERE email = %s"
    with connection.cursor() as cursor:
        cursor.executemany(sql, [(1, "a"), (2, "b")])
        cursor.executemany(sql, [(1, "a")])
        cursor.callproc("abs", [-1])
    batch, single, call = asked.spans
    assert (told(batch), told(single), told(call)) == ({}, {"0": "1", "1": "a"}, {})


def test_compositions_tell_them(asked):
    """The drivers' compositions with parameters tell them too."""
    with connection.cursor() as cursor:
        cursor.execute(
            compose.SQL("SELECT 1 FROM {} WHERE balance = %s").format(compose.Identifier("account")), [3]
        )
    assert told(asked.one("SELECT account")) == {"0": "3"}


def test_unsampled_spans_are_not_asked_for(accounts, monkeypatch):
    """Where nothing is recorded, no parameter is looked at."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    monkeypatch.setattr("otel_crdb.query_parameters.attributes", None)
    telemetry = Telemetry(query_parameters=True)
    telemetry.tracer_provider = TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)
    with telemetry, NoFault(), connection.cursor() as cursor:
        cursor.execute("SELECT %s", [1])


# --- values ----------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    """An enumeration of the application's."""

    RED = "red"


VALUES = {
    "NULL": None,
    "true": True,
    "5": 5,
    "1.5": 1.5,
    "2.50": decimal.Decimal("2.50"),
    "2026-01-02": dt.date(2026, 1, 2),
    "2026-01-02 03:04:05+00:00": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc),
    "00000000-0000-0000-0000-000000000001": uuid.UUID(int=1),
    "[1, 2, [x]]": [1, 2, ("x",)],
    "{a: [1]}": {"a": [1]},
    "text": "text",
    "<bytes 3>": b"abc",
}


@pytest.mark.parametrize("text", VALUES)
def test_values_are_told_as_text(text):
    """Values of known classes are told as text, of bytes the length."""
    assert attributes("SELECT %s", [VALUES[text]]) == {f"{PREFIX}0": text}


class Counting(list):
    """A list that would tell, and a row of the application's."""

    def __iter__(self):
        raise AssertionError("iterated")

    __len__ = __getitem__ = __iter__


ODD_VALUES = {
    "text": lambda: Text("x"),
    "explosive": Explosive,
    "impostor of str": lambda: Impostor(str),
    "impostor of list": lambda: Impostor(list),
    "enumeration": lambda: Colour.RED,
    "list": lambda: Counting(["x"]),
    "object": object,
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_nothing_of_the_applications_is_called(name):
    """No method of a value's class is called, whatever it says that it is."""
    value = ODD_VALUES[name]()
    for params in ([value], [[value]], [{"a": value}], {"x": value}):
        (shown,) = attributes("SELECT %(x)s" if type(params) is dict else "SELECT %s", params).values()
        assert shown


ODD_PARAMS = {
    "none": lambda: None,
    "number": lambda: 5,
    "text": lambda: "text",
    "bytes": lambda: b"x",
    "generator": lambda: iter([1]),
    "set": lambda: {1},
    "explosive": Explosive,
    "range": lambda: range(3),
}


@pytest.mark.parametrize("name", ODD_PARAMS)
def test_what_is_no_sequence_is_not_iterated(name):
    """Only lists, tuples and dicts have parameters that are told: a generator is the driver's to use up."""
    params = ODD_PARAMS[name]()
    assert attributes("SELECT %s", params) == {}
    assert name != "generator" or next(params) == 1


def test_parameters_are_bounded():
    """At most a hundred are told, and of each value so much."""
    sql = f"SELECT {', '.join(['%s'] * 1000)}"
    shown = attributes(sql, ["x" * 5000] * 1000)
    assert len(shown) == MOST
    assert max(map(len, shown.values())) == VALUE_LIMIT
    assert shown[f"{PREFIX}0"].endswith("x…")
    assert shown[f"{PREFIX}{LOOKED_AT_IN_ALL // 5000}"] == "<str 5000>"
    everywhere = " OR ".join(f"c{place} = %(x)s" for place in range(1000))
    assert len(named(everywhere, {"x": 1})) == MOST


def test_parameters_beyond_what_is_read_are_left_out():
    """A parameter whose place in the text was not read is not told: its column may be a secret's."""
    sql = f"SELECT %s{' ' * READ_LIMIT}, a = %s WHERE password = %(x)s"
    assert list(attributes(sql, [1, 2])) == [f"{PREFIX}0"]
    assert attributes(sql, {"x": SECRET}) == {}


def test_many_parameters_cost_little():
    """A hundred thousand parameters cost about as much as a thousand do."""

    def took(count):
        sql = f"INSERT INTO t (a) VALUES {', '.join(['(%s)'] * count)}"
        values = [["x" * 1000] * 100] * count
        began = time.perf_counter()
        attributes(sql, values)
        return time.perf_counter() - began

    took(1000)
    assert took(100_000) < 20 * took(10_000) + 0.1


@PROPERTY
@given(any_texts, any_params)
@example("SELECT %s", [10**5000])
@example("SELECT %(\ud800)s", {"\ud800": "\ud800"})
def test_whatever_is_executed_has_the_drivers_own_outcome(accounts, sql, given_params):
    """Any text with any parameters has the driver's own outcome, no fault of ours, and what can be exported."""
    plain = outcome(lambda cursor: cursor.execute(sql, given_params))
    with Telemetry(query_parameters=True) as telemetry, NoFault():
        assert outcome(lambda cursor: cursor.execute(sql, given_params)) == plain
    exported(telemetry)


def test_drivers_agree_on_where_they_are():
    """Psycopg 3 finds the placeholders that we find, in quotes and comments too."""
    if not is_psycopg3:
        pytest.skip("psycopg 3 has the function")
    from psycopg._queries import _split_query

    for sql in COLUMNS:
        parts = [part.item for part in _split_query(sql.encode())][:-1]
        assert parts == list(range(len(COLUMNS[sql])))
