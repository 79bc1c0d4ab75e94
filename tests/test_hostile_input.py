# SPDX-License-Identifier: Apache-2.0
"""Hostile input on cursors and the ORM: the driver's own result reaches the caller, and telemetry stays sound.

Each call is made twice on the same connection, without and with ``instrument()``, and what the caller gets is
compared: result and rows, or type, arguments, SQLSTATE and cause of the exception.
"""

import io
import logging
import time
from collections import Counter

import pytest
from django.db import transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from hypothesis import example, given
from hypothesis import strategies as st

from otel_crdb import cursors, hooks
from otel_crdb.statements import cache_info, describe

from .hostile import PROPERTY, SECRET, NoFault, compose, copying, outcome, same_both_ways, wire
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")
on_psycopg3 = pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has it")
on_psycopg2 = pytest.mark.skipif(is_psycopg3, reason="psycopg2 has it")


@pytest.fixture(autouse=True)
def _own_span_metric_variables(monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")


# SQL that is none

PIECES = [
    "'", '"', "''", "E'", "\\", "\\'", "$$", "$a$", "--", "/*", "*/", ";", "(", ")", "[", ",", ".", "::", "%", "%%", "%s",
    "%b", "%(x)s", "%(", "$1", "?", "\n", "\r", "\x00", "\x85", "\u2028", "\ufeff", "\ud800", "\udfff", "é", "…", "\U0001f4a3",
    "SELECT", "SELECT 1", "FROM", "account", "VALUES", "(1)", "IN (", "ARRAY[", "WITH a AS (", "U&'", "x'", "b'1", "1e", "0x",
]  # fmt: skip
no_sql = st.lists(st.sampled_from(PIECES), max_size=12).flatmap(
    lambda pieces: st.sampled_from([" ".join(pieces), "".join(pieces)])
)
texts = st.one_of(
    no_sql,
    st.text(max_size=60),
    st.text(alphabet=st.characters(codec=None), max_size=30),
    no_sql.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=40),
)
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8), st.just("\x00"),
        st.just("\ud800"), st.builds(object), st.just(10**400),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=4,
)  # fmt: skip
params = st.one_of(st.none(), st.lists(values, max_size=4), st.fixed_dictionaries({"x": values}), values)


@PROPERTY
@given(texts, params)
@example("SELECT '\ud800'", None)
@example("SELECT \x00", [])
@example(b"SELECT '\xff'", None)
@example("SELECT %s", ["\x00"])
@example("", None)
def test_whatever_is_executed_has_the_drivers_own_outcome(sql, given_params):
    """Any text or bytes with any parameters has the outcome that it has without us, and sound telemetry."""
    same_both_ways(lambda: lambda cursor: cursor.execute(sql, given_params), secrets=())


@PROPERTY
@given(texts, st.sampled_from([[], [()], [(1,), (2,)], [{"x": 1}] * 3]))
def test_whatever_is_executed_many_times_has_the_drivers_own_outcome(sql, rows):
    """``executemany`` of any text has the outcome that it has without us."""
    same_both_ways(lambda: lambda cursor: cursor.executemany(sql, rows), secrets=())


@PROPERTY
@given(st.one_of(st.none(), st.lists(params, max_size=1), values))
def test_whatever_stands_for_rows_has_the_drivers_own_outcome(rows):
    """``executemany`` with anything in place of rows has the outcome that it has without us.

    Of two bad rows psycopg 3's pipeline reports the one or the other, as it happens: there is one here.
    """
    same_both_ways(lambda: lambda cursor: cursor.executemany("SELECT %s", rows), secrets=())


@PROPERTY
@given(st.one_of(texts, st.none(), st.integers()), st.one_of(st.none(), st.lists(values, max_size=2)))
def test_whatever_is_called_has_the_drivers_own_outcome(name, arguments):
    """``callproc`` with any name, text or not, has the outcome that it has without us."""
    same_both_ways(lambda: lambda cursor: cursor.callproc(name, arguments), secrets=())


@PROPERTY
@given(st.one_of(no_sql, texts, st.none()))
@example("COPY account FROM STDIN")
@example("SELECT 1")
@example(f"COPY (SELECT '{SECRET}') TO STDOUT")
def test_whatever_is_copied_has_the_drivers_own_outcome(sql):
    """COPY with any text has the outcome that it has without us."""
    same_both_ways(lambda: copying(sql))


@on_psycopg2
@PROPERTY
@given(st.one_of(st.text(max_size=20), st.none(), st.integers(), st.binary(max_size=5)))
def test_whatever_table_is_copied_has_the_drivers_own_outcome(table):
    """psycopg2's ``copy_from`` and ``copy_to`` with any table have the outcome that they have without us."""
    same_both_ways(lambda: lambda cursor: cursor.copy_from(io.StringIO("1\n"), table), secrets=())
    same_both_ways(lambda: lambda cursor: cursor.copy_to(io.StringIO(), table), secrets=())


class Text(str):
    """A text of the application's own class, which lies about itself."""

    __slots__ = ()

    def __str__(self):
        raise AssertionError("asked for its text")

    __repr__ = __format__ = __len__ = __eq__ = __getitem__ = __str__

    def __hash__(self):
        raise AssertionError("asked for its hash")


class Bytes(bytes):
    """The same in bytes."""

    __slots__ = ()

    def decode(self, *_):
        raise AssertionError("asked for its text")

    __str__ = __repr__ = __len__ = __eq__ = __getitem__ = decode

    def __hash__(self):
        raise AssertionError("asked for its hash")


class Impostor:
    """Says that it is a text, and is none."""

    def __init__(self, kind):
        self._kind = kind

    @property
    def __class__(self):
        return self._kind


class Rendered:
    """Has a method of the name that the drivers' compositions have."""

    def as_string(self, context=None):
        raise SystemError("rendered")


class Explosive:
    """Raises whatever it is asked."""

    def __getattribute__(self, name):
        raise SystemError(name)

    def __str__(self):
        raise SystemError("text")

    __repr__ = __iter__ = __len__ = __hash__ = __format__ = __str__

    def __bool__(self):
        # psycopg2 goes on with the error set, and what comes of it then hangs on when garbage is collected.
        if is_psycopg3:
            raise SystemError("truth")
        return True

    def __eq__(self, other):
        raise SystemError("compared")


ODD_SQL = {
    "none": lambda: None,
    "number": lambda: 42,
    "object": object,
    "list": lambda: ["SELECT 1"],
    "memoryview": lambda: memoryview(b"SELECT 1"),
    "bytearray": lambda: bytearray(b"SELECT 1"),
    "text": lambda: Text("SELECT 1"),
    "bytes": lambda: Bytes(b"SELECT 1"),
    "impostor of str": lambda: Impostor(str),
    "impostor of bytes": lambda: Impostor(bytes),
    "renders badly": Rendered,
    "explosive": Explosive,
    "class": lambda: str,
    "composed": lambda: compose.SQL("SELECT {}").format(compose.Literal(SECRET)),
    "composed of what cannot be": lambda: compose.SQL("SELECT {}").format(compose.Literal(object())),
    "placeholder": lambda: compose.SQL("SELECT ") + compose.Placeholder(),
    "identifier": lambda: compose.Identifier('a"b', "c\x00d"),
    "surrogate": lambda: compose.SQL("SELECT '\ud800'"),
    "deep": lambda: deep(300),
    "empty": lambda: compose.Composed([]),
}


def deep(levels):
    """Return a composition within compositions."""
    made = compose.Composed([compose.Literal(SECRET)])
    for _ in range(levels):
        made = compose.Composed([made])
    return compose.SQL("SELECT ") + made


@pytest.mark.parametrize("kind", ODD_SQL)
@pytest.mark.parametrize("method", ["execute", "executemany", "callproc"])
def test_what_stands_in_place_of_sql_has_the_drivers_own_outcome(kind, method):
    """Whatever object stands where a text should, the driver's own answer to it reaches the caller."""
    make = ODD_SQL[kind]

    def make_call():
        argument = make()
        if method == "executemany":
            return lambda cursor: cursor.executemany(argument, [(1,), (2,)])
        return lambda cursor: getattr(cursor, method)(argument)

    same_both_ways(make_call)


# Objects that tell on those who touch them


class Spy:
    """Notes in a list who asks it what; adapted by the drivers as its text."""

    def __init__(self, touched):
        self._touched = touched

    def __len__(self):
        self._touched.append("len")
        return 3

    def __iter__(self):
        self._touched.append("iter")
        return iter([("x",), ("y",), ("z",)])

    def __getitem__(self, index):
        self._touched.append("getitem")
        return [("x",), ("y",), ("z",)][index]

    def __str__(self):
        self._touched.append("str")
        return SECRET

    def __repr__(self):
        self._touched.append("repr")
        return SECRET

    def __eq__(self, other):
        self._touched.append("eq")
        return True

    def __hash__(self):
        self._touched.append("hash")
        return 1

    def __bool__(self):
        self._touched.append("bool")
        return True

    def __conform__(self, _):
        self._touched.append("conform")
        return self

    def getquoted(self):
        self._touched.append("getquoted")
        return b"'x'"


def touches_of(call):
    """Return who was asked what in a call without us, and in one with us."""
    seen = []
    plain_touches, observed_touches = [], []
    seen.append(outcome(lambda cursor: call(cursor, Spy(plain_touches))))
    with Telemetry() as telemetry, NoFault():
        seen.append(outcome(lambda cursor: call(cursor, Spy(observed_touches))))
    assert seen[0] == seen[1]
    assert SECRET.encode() not in wire(telemetry)
    return plain_touches, observed_touches


SPIED = {
    "one parameter": lambda cursor, spy: cursor.execute("SELECT %s", [spy]),
    "all parameters": lambda cursor, spy: cursor.execute("SELECT %s, %s, %s", spy),
    "rows": lambda cursor, spy: cursor.executemany("SELECT %s", spy),
    "one row": lambda cursor, spy: cursor.executemany("SELECT %s", [spy]),
    "sql": lambda cursor, spy: cursor.execute(spy),
    "name": lambda cursor, spy: cursor.callproc(spy),
    "argument": lambda cursor, spy: cursor.callproc("version", [spy]),
    "copied": lambda cursor, spy: copying(spy)(cursor),
    "composed": lambda cursor, spy: cursor.execute(compose.SQL("SELECT {}").format(compose.Literal(spy))),
}


@pytest.mark.parametrize("place", SPIED)
def test_objects_of_the_application_are_not_asked_anything(place):
    """An object is asked by the driver what it is asked without us, in the same order, and nothing else."""
    plain, observed = touches_of(SPIED[place])
    assert observed == plain


@pytest.mark.parametrize("rows", [0, 1, 2, 3000])
def test_a_generator_of_rows_is_consumed_by_the_driver_alone(rows):
    """A generator given to ``executemany`` yields each row once, to the driver, and in the driver's time."""
    yielded = []

    def make_call():
        yielded.clear()
        return lambda cursor: cursor.executemany(
            "SELECT %s", (yielded.append(n) or (n,) for n in range(rows))
        )

    same_both_ways(make_call)
    assert yielded == list(range(rows))


class LyingRows(list):
    """Says another length than it has."""

    def __init__(self, rows, length):
        super().__init__(rows)
        self._length = length

    def __len__(self):
        if isinstance(self._length, Exception):
            raise self._length
        return self._length


@pytest.mark.parametrize("length", [0, 1, 2**62, -1, "three", ValueError("length")], ids=str)
def test_rows_that_lie_about_their_number(length):
    """Rows whose length raises or lies go to the driver as they are, and the batch is a span."""
    _, telemetry = same_both_ways(
        lambda: lambda cursor: cursor.executemany("SELECT %s", LyingRows([(1,), (2,)], length))
    )
    assert [span.name for span in telemetry.spans] == ["BATCH SELECT"]


def cyclic(kind):
    """Return a container that holds itself."""
    made = kind()
    if kind is dict:
        made["x"] = made
    else:
        made.append(made)
    return made


ODD_PARAMS = {
    "cyclic list": lambda: [cyclic(list)],
    "cyclic dictionary": lambda: [cyclic(dict)],
    "themselves": lambda: cyclic(list),
    "deep": lambda: [deep_list(200)],
    "explosive": lambda: [Explosive()],
    "explosive in a dictionary": lambda: {"x": Explosive()},
    "all explosive": Explosive,
    "impostor": lambda: Impostor(list),
    "generator": lambda: (n for n in range(1)),
    "text": lambda: SECRET,
}


def deep_list(levels):
    """Return lists within lists."""
    made = [1]
    for _ in range(levels):
        made = [made]
    return made


@pytest.mark.parametrize("kind", ODD_PARAMS)
@pytest.mark.parametrize("text", ["SELECT %s", "SELECT %(x)s"])
def test_odd_parameters_have_the_drivers_own_outcome(kind, text):
    """Cyclic, self-referring, lying and raising parameters have the outcome that they have without us."""
    same_both_ways(lambda: (lambda given: lambda cursor: cursor.execute(text, given))(ODD_PARAMS[kind]()))


def test_a_hundred_thousand_parameters():
    """100,000 parameters reach the driver, and the span has one of them in its text."""
    text = f"SELECT count(*) FROM account WHERE id IN ({', '.join(['%s'] * 100_000)})"
    plain, telemetry = same_both_ways(lambda: lambda cursor: cursor.execute(text, list(range(1, 100_001))))
    assert plain[0] == "returned"
    text = telemetry.one("SELECT account").attributes["db.query.text"]
    assert len(text) <= 4096
    assert text.endswith("%s, …")


def test_a_huge_batch():
    """A batch of 5,000 rows is one small span with its size."""
    rows = [(f"{SECRET}-{n}@example.com", n) for n in range(5_000)]

    def call(cursor):
        with transaction.atomic():
            cursor.executemany("INSERT INTO account (email, balance) VALUES (%s, %s)", rows)
            transaction.set_rollback(True)

    _, telemetry = same_both_ways(lambda: call)
    assert telemetry.one("BATCH INSERT account").attributes["db.operation.batch.size"] == 5_000


# Texts of many megabytes

MEGABYTE = 1024 * 1024
HUGE = {
    "one literal": lambda size: f"SELECT length('{SECRET * (size // len(SECRET))}')",
    "literal left open": lambda size: f"SELECT '{SECRET * (size // len(SECRET))}",
    "quoted quotes": lambda size: "SELECT '" + "''" * (size // 2),
    "escapes left open": lambda size: "SELECT E'" + "\\'" * (size // 2),
    "dollar quotes left open": lambda size: "SELECT $a$" + "$b$" * (size // 3),
    "dollar signs": lambda size: "SELECT " + "$" * size,
    "dollar tags": lambda size: "SELECT " + "$a" * (size // 2),
    "name left open": lambda size: 'SELECT "' + "a" * size,
    "tokens": lambda size: "SELECT " + "a," * (size // 2),
    "names": lambda size: "SELECT 1 FROM " + "t, " * (size // 3),
    "brackets": lambda size: "SELECT " + "(" * size,
    "selects": lambda size: "SELECT (" * (size // 8),
    "array": lambda size: "SELECT ARRAY[" + "1," * (size // 2),
    "values": lambda size: "INSERT INTO account VALUES " + "(1, 'a')," * (size // 9),
    "open values": lambda size: "INSERT INTO account VALUES (" + "f(1)," * (size // 5),
    "comment left open": lambda size: "SELECT 1 /*" + "a" * size,
    "nested comments": lambda size: "SELECT 1 " + "/*" * (size // 2),
    "line comments": lambda size: "SELECT 1 " + "--\n" * (size // 3),
    "blanks": lambda size: "SELECT" + " " * size + "1",
    "blank lines behind semicolons": lambda size: "SELECT 1" + ";\n" * (size // 2),
    "semicolon and blanks": lambda size: "SELECT 1;" + " \n" * (size // 2) + "x",
    "semicolons and comments": lambda size: "SELECT 1;" + "--\n " * (size // 4) + "x",
    "digits": lambda size: "SELECT " + "1" * size,
    "exponents": lambda size: "SELECT " + "1e+" * (size // 3),
    "letters": lambda size: "s" * size,
    "dots": lambda size: "SELECT a" + ".a" * (size // 2),
    "casts": lambda size: "SELECT 1" + "::int" * (size // 5),
    "operators": lambda size: "SELECT 1 " + "+ 1 " * (size // 4),
    "percent signs": lambda size: "SELECT " + "%" * size,
    "statements": lambda size: "SELECT 1;" * (size // 9),
    "with": lambda size: "WITH " + "a AS (" * (size // 6),
    "beyond ascii": lambda size: "SELECT " + "é" * (size // 2),
    "nul": lambda size: "\x00" * size,
    "surrogates": lambda size: "\ud800" * (size // 3),
}


def in_bytes(text):
    """Return a text in bytes, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


SENT_IN_FULL = [
    "one literal",
    "literal left open",
    "tokens",
    "brackets",
    "comment left open",
    "surrogates",
    "blanks",
]


@pytest.mark.parametrize("shape", SENT_IN_FULL)
def test_ten_megabytes_have_the_servers_own_outcome(shape):
    """A text of 10 MB has the outcome that it has without us, a small span, and is not remembered."""
    text = HUGE[shape](10 * MEGABYTE)
    if shape == "literal left open":
        text = in_bytes(text)
    before = cache_info().size
    _, telemetry = same_both_ways(lambda: lambda cursor: cursor.execute(text))
    assert cache_info().size - before < 64 * 1024
    assert len(telemetry.spans) == 1


def taken(text):
    """Return the least seconds of three that it takes to describe a text."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        describe(text)
        best = min(best, time.perf_counter() - started)
    return best


SEARCHED_IN_FULL = [
    shape for shape in HUGE if "semicolon" in shape or shape in ("statements", "blanks", "one literal")
]


@pytest.mark.parametrize(
    ("encode", "shapes"), [(str, HUGE), (in_bytes, SEARCHED_IN_FULL)], ids=["str", "bytes"]
)
def test_time_is_not_more_than_linear_in_the_text(encode, shapes):
    """Four times the text never takes sixteen times the time, whatever shape it has."""
    slow = {}
    for shape in shapes:
        make = HUGE[shape]
        small, large = (taken(encode(make(size))) for size in (MEGABYTE, 4 * MEGABYTE))
        if large > 16 * max(small, 0.001):
            slow[shape] = (small, large)
    assert not slow


@pytest.mark.parametrize("shape", HUGE)
def test_time_is_not_more_than_linear_in_what_is_read(shape):
    """Nor within what is read of a text: the whole of it does not take 64 times the time of an eighth."""
    small, large = (taken(in_bytes(HUGE[shape](size))) for size in (2 * 1024, 16 * 1024))
    assert large <= 64 * max(small, 0.0005), (small, large)


def test_a_log_handler_that_raises_breaks_no_call(monkeypatch):
    """Where a hook of ours fails, and the application's log handler raises at being told, the call goes on."""

    class Broken(logging.Handler):
        def emit(self, record):
            raise SystemError("handler")

    def fail(*_):
        raise ValueError("ours")

    monkeypatch.setattr(hooks, "faults", Counter())
    monkeypatch.setattr(cursors.statements, "describe", fail)
    monkeypatch.setattr(hooks.logger.logger, "handlers", [Broken()])
    with Telemetry():
        assert outcome(lambda cursor: cursor.execute("SELECT 1"))[0] == "returned"
    assert hooks.faults["CursorWrapper._execute"] == 1
