# SPDX-License-Identifier: Apache-2.0
"""SQL comments: what the server receives says which span it belongs to, and nothing else is changed by it.

What was received is what the wire proxy before the server has seen. It is read by the rules of CockroachDB's
reader (pkg/sql/sqlcommenter/sql_commenter.go, and the call of it in pkg/sql/statement.go): the last comment of
a statement, pairs parted by commas, one ``=`` in each, values in single quotes, URL encoding undone twice.
Where that reader would discard a pair or take a damaged value, the one here fails.
"""

import contextlib
import re
import urllib.parse

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

from otel_crdb import comments, cursors, hooks

from .hostile import PROPERTY, NoFault, compose, outcome
from .project.models import Account
from .telemetry import Telemetry
from .test_hostile_input import params as any_params
from .test_hostile_input import texts as any_texts

on_psycopg3 = pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has it")
on_psycopg2 = pytest.mark.skipif(is_psycopg3, reason="psycopg2 has it")


@pytest.fixture(autouse=True)
def _needs_proxy(crdb, accounts):
    if crdb.kind != "embedded":
        pytest.skip("only the embedded server has a proxy that tells what it received")


@pytest.fixture
def commented():
    """Comments are asked for."""
    with Telemetry(sql_comments=True) as telemetry, NoFault():
        yield telemetry


def received(crdb, call):
    """Return the texts that reach the server while a call is made on a cursor of Django's."""
    connection.ensure_connection()
    crdb.wire_log(clear=True)
    with connection.cursor() as cursor:
        call(cursor)
    return [text for text in crdb.wire_log().texts("statement") if not text.startswith("BEGIN")]


def one_received(crdb, sql, *params):
    """Return what reaches the server of one statement."""
    (text,) = received(crdb, lambda cursor: cursor.execute(sql, *params))
    return text


_PIECE = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<end>;)|\s+|[^\s]""",
    re.DOTALL,
)


def last_comment(text):
    """Return the last comment of the last statement, or None; a quote or comment left open is no such thing."""
    last, statement_ended = None, False
    for piece in _PIECE.finditer(text):
        if piece["end"]:
            statement_ended = True
        elif piece["comment"]:
            last = last if statement_ended else piece["comment"]
        elif not piece.group().isspace() and statement_ended:
            last, statement_ended = None, False
    return last


def unescape(text):
    """Undo an encoding as Go's ``url.QueryUnescape`` and ``url.PathUnescape`` do after one another."""
    for undo in (urllib.parse.unquote_plus, urllib.parse.unquote):
        assert not re.search(r"%(?![0-9A-Fa-f]{2})", text), f"CockroachDB makes nothing of {text!r}"
        text = undo(text, errors="strict")
    return text


def tags(text):
    """Return the tags that CockroachDB reads in what it received; none where there is no comment."""
    comment = last_comment(text)
    if comment is None:
        return {}
    comment = comment.strip()
    if comment.startswith("--"):
        inner = comment[2:]
    else:
        assert comment.startswith("/*")
        assert comment.endswith("*/")
        inner = comment[2:-2]
    found = {}
    for pair in inner.split(","):
        key, value = pair.split("=")  # fails unless there is just one
        value = value.strip()
        assert len(value) >= 2
        assert value[0] == value[-1] == "'"
        assert key.strip() not in found
        found[key.strip()] = value[1:-1]
    assert list(found) == sorted(found), "the specification of sqlcommenter sorts them"
    return {unescape(key): unescape(value) for key, value in found.items()}


def traceparent(span):
    """Return what stands for a span, by the W3C's Trace Context."""
    context = span.context
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


# --- what is said ----------------------------------------------------------------------------------------


def test_comment_names_the_statements_own_span(crdb, commented):
    """Each statement of the ORM carries the ``traceparent`` of its own span, and not of the one around."""
    crdb.wire_log(clear=True)
    with transaction.atomic():
        Account.objects.filter(email="a@example.com").update(balance=5)
        Account.objects.count()
    texts = crdb.wire_log().texts("statement")
    for name, beginning in (("UPDATE account", "UPDATE"), ("SELECT account", "SELECT")):
        (text,) = [text for text in texts if text.startswith(beginning)]
        assert tags(text) == {"traceparent": traceparent(commented.one(name))}


def test_off_by_default(crdb):
    """Nobody has asked for comments: what the server receives is what the application wrote."""
    with Telemetry():
        assert one_received(crdb, "SELECT 1") == "SELECT 1"


def test_no_telemetry_has_the_comment(crdb, commented):
    """The comment is neither in the span's text nor in its summary, and makes no new text of a known one."""
    for _ in range(2):
        assert "traceparent" in one_received(crdb, "SELECT id FROM account")
    first, second = commented.named("SELECT account")
    assert first.attributes["db.query.text"] == "SELECT id FROM account"
    assert dict(first.attributes) == dict(second.attributes)
    assert "traceparent" not in commented.everything()


TAGS = {
    "application": "bank",
    "per cent": "50% off, 100%41 %s %(x)s %%",
    "quote": "it's \"x\" \\'",
    "end": "*/ SELECT 1; --",
    "é=,": "ü\n\t+ /* \U0001f4a3",
    "": "without a name",
    "traceparent": "not theirs to say",
}


@pytest.mark.parametrize("given_params", [(), ([],), (None,), ([1],)], ids=["none", "empty", "None", "one"])
def test_any_tag_arrives(crdb, given_params):
    """Static tags arrive as they were given, whether the driver takes ``%%`` for ``%`` or not."""
    sql = "SELECT %s" if given_params == ([1],) else "SELECT 1"
    with Telemetry(sql_comments=True, sql_comment_tags=TAGS) as telemetry, NoFault():
        text = one_received(crdb, sql, *given_params)
    expected = {key: value for key, value in TAGS.items() if key}
    assert tags(text) == {**expected, "traceparent": traceparent(telemetry.spans[-1])}


@PROPERTY
@given(st.dictionaries(st.text(max_size=12), st.text(max_size=30), max_size=4), st.booleans())
def test_whatever_the_tags_are_they_arrive(crdb, given_tags, interpolated):
    """Any keys and values arrive, and the statement's result is its own."""
    with Telemetry(sql_comments=True, sql_comment_tags=given_tags) as telemetry, NoFault():
        text = one_received(crdb, "SELECT 1", [] if interpolated else None)
    expected = {key: value for key, value in given_tags.items() if key}
    assert tags(text) == {**expected, "traceparent": traceparent(telemetry.spans[-1])}


# --- where it stands -------------------------------------------------------------------------------------

PLACES = {
    "plain": ("SELECT 1", "SELECT 1\n{}"),
    "blanks": ("  SELECT 1 \n ", "  SELECT 1 \n \n{}"),
    "semicolon": ("SELECT 1;", "SELECT 1\n{};"),
    "semicolons and a comment": ("SELECT 1 ; ; -- done", "SELECT 1 \n{}; ; -- done"),
    "line comment": ("SELECT 1 -- one", "SELECT 1 -- one\n{}"),
    "comment": ("SELECT 1 /* a = b */", "SELECT 1 /* a = b */\n{}"),
    "nested comment": ("SELECT 1 /* a /* b */ */", "SELECT 1 /* a /* b */ */\n{}"),
    "quotes that look like it": (
        'SELECT \'/*\', \'--\', $$;/*$$, "a""/*" FROM (SELECT 1 "a""/*") x',
        "{0}\n{1}",
    ),
    "several statements": ("SELECT 1; SELECT 2", "SELECT 1; SELECT 2\n{}"),
    "explain": ("EXPLAIN SELECT 1", "EXPLAIN SELECT 1\n{}"),
    "a cursor of the server's": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "{0}\n{1}"),
    "escaped quote": (r"SELECT E'\'--'", r"SELECT E'\'--'" + "\n{}"),
}


@pytest.mark.parametrize("name", PLACES)
def test_comment_is_the_statements_last(crdb, commented, name):
    """It is the last comment of the last statement, on its own line, and before a semicolon."""
    sql, expected = PLACES[name]
    text = one_received(crdb, sql)
    comment = f"/*traceparent='{traceparent(commented.spans[-1])}'*/"
    whole = expected.format(sql, comment) if "{0}" in expected else expected.format(comment)
    assert text == whole
    with connection.cursor() as cursor:
        cursor.execute("CLOSE ALL")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'a",
        'SELECT "a',
        "SELECT $a$ $$",
        "SELECT 1 /* a",
        r"SELECT E'\'",
        "",
        " ",
        "-- only this",
        ";",
        "/* a */;",
    ],
)
def test_text_that_is_left_open_or_empty_goes_as_it_is(crdb, commented, sql):
    """Where quotes or comments are left open, or nothing is there to be run, nothing is added."""
    connection.ensure_connection()
    crdb.wire_log(clear=True)
    with connection.cursor() as cursor:
        with contextlib.suppress(DatabaseError):
            cursor.execute(sql)
    assert all(text == sql for text in crdb.wire_log().texts("statement"))


def test_bytes_have_it_too(crdb, commented):
    """Bytes carry it; bytes that are no UTF-8 go as they are."""
    text = one_received(crdb, "SELECT 'é'".encode())
    assert text.startswith("SELECT 'é'\n")
    assert tags(text) == {"traceparent": traceparent(commented.spans[-1])}
    with connection.cursor() as cursor, pytest.raises(DatabaseError) as caught:
        cursor.execute(b"SELECT '\xe9'")
    assert "0xe9 0x27" in str(caught.value)


def test_compositions_have_it_too(crdb, commented):
    """The drivers' compositions carry it behind what they are composed of; with a semicolon they go as they are."""
    composed = compose.SQL("SELECT {} FROM {}").format(compose.Literal("it's"), compose.Identifier("account"))
    text = one_received(crdb, composed)
    assert text.startswith("SELECT 'it''s' FROM \"account\"\n")
    assert tags(text) == {"traceparent": traceparent(commented.one("SELECT account"))}
    assert tags(one_received(crdb, compose.SQL("SELECT 1"))) == {
        "traceparent": traceparent(commented.spans[-1])
    }
    assert one_received(crdb, compose.SQL("SELECT 1;")) == "SELECT 1;"


def test_long_texts_go_as_they_are(crdb, commented):
    """Where a text ends that is longer than is read, nobody looks."""
    sql = f"SELECT {' ' * comments.READ_LIMIT}1"
    with connection.cursor() as cursor:
        cursor.execute(sql)
    assert connection.ops.last_executed_query(cursor, sql, None) == sql


# --- beside what others say ------------------------------------------------------------------------------


@pytest.mark.parametrize("comment", ["/*app='x%%2Fy',traceparent='theirs'*/", "-- app='x%%2Fy'"])
def test_tags_of_another_comment_are_taken_over(crdb, commented, comment):
    """What an application's own comment says in this form stays readable: ours, the last one, repeats it."""
    text = one_received(crdb, f"SELECT %s {comment}", [1])
    assert text.startswith(f"SELECT 1 {comment}".replace("%%", "%"))
    assert tags(text) == {"app": "x/y", "traceparent": traceparent(commented.spans[-1])}


@pytest.mark.parametrize(
    "comment", ["/* why not */", "/*a=b*/", "/*a='b',c*/", "-- a='*/'", "/*a='b'*/; SELECT 2"]
)
def test_other_comments_stay_and_are_not_repeated(crdb, commented, comment):
    """What CockroachDB could not read, or belongs to another statement, is not repeated."""
    text = one_received(crdb, f"SELECT 1 {comment}")
    assert text.startswith(f"SELECT 1 {comment}")
    assert tags(text) == {"traceparent": traceparent(commented.spans[-1])}


def test_djangos_log_has_what_was_sent(crdb, commented):
    """Django's own list of queries has the text that the driver sent, as far as this Django asks the driver."""
    connection.force_debug_cursor = True
    try:
        text = one_received(crdb, "SELECT 1")
    finally:
        connection.force_debug_cursor = False
    assert connection.queries[-1]["sql"] in (text, "SELECT 1")


# --- where it is off -------------------------------------------------------------------------------------


class RecordOnly(Sampler):
    """Has spans recorded and not sampled."""

    def should_sample(self, *_, **__):
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self):
        return "record only"


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, RecordOnly()], ids=["dropped", "recorded"])
def test_unsampled_statements_have_none(crdb, sampler):
    """Where the span is not sampled, the text goes as it is."""
    telemetry = Telemetry(sql_comments=True, sql_comment_tags={"a": "b"})
    telemetry.tracer_provider = TracerProvider(sampler, shutdown_on_exit=False)
    with telemetry, NoFault():
        assert one_received(crdb, "SELECT 1") == "SELECT 1"


@pytest.mark.parametrize(
    "options", [{"traces": False}, {"excluded_aliases": ["default"]}, {"excluded_statements": ["SELECT"]}]
)
def test_untold_statements_have_none(crdb, options):
    """A statement that has no span of ours has no comment."""
    with Telemetry(sql_comments=True, **options), NoFault():
        assert one_received(crdb, "SELECT 1") == "SELECT 1"


def test_copy_prepare_and_procedures_have_none(crdb, commented):
    """PREPARE, COPY and ``callproc`` go as they are."""
    assert one_received(crdb, "PREPARE p AS SELECT 1") == "PREPARE p AS SELECT 1"
    assert tags(one_received(crdb, "EXECUTE p"))
    (called,) = received(crdb, lambda cursor: cursor.callproc("abs", [-1]))
    assert "traceparent" not in called
    if is_psycopg3:

        def copy(cursor):
            with cursor.copy("COPY account TO STDOUT") as copying:
                list(copying)

        assert received(crdb, copy) == ["COPY account TO STDOUT"]


def test_batches_carry_their_span(crdb, commented):
    """Each statement of ``executemany`` carries the batch's span."""
    sql = "UPDATE account SET balance = %s WHERE email = %s"
    texts = received(crdb, lambda cursor: cursor.executemany(sql, [(1, "a"), (2, "b")]))
    assert len(texts) == 2
    span = commented.one("BATCH UPDATE account")
    assert [tags(text) for text in texts] == [{"traceparent": traceparent(span)}] * 2


@on_psycopg3
@pytest.mark.parametrize("server_side", [False, True])
def test_what_is_prepared_has_none(crdb, commented, server_side):
    """Statements whose values the server binds have none, or each would be prepared anew; others are not prepared."""
    wrapper = connections["other"]
    wrapper.close()
    kept = wrapper.settings_dict["OPTIONS"]
    wrapper.settings_dict["OPTIONS"] = {**kept, "prepare_threshold": 0, "server_side_binding": server_side}
    vars(wrapper.features).pop("uses_server_side_binding", None)
    try:
        wrapper.ensure_connection()
        crdb.wire_log(clear=True)
        with wrapper.cursor() as cursor:
            for value in range(3):
                cursor.execute("SELECT %s + 1", [value])
            cursor.executemany("UPDATE account SET balance = %s WHERE email = ''", [(1,), (2,)])
        assert [bool(tags(text)) for text in crdb.wire_log().texts("statement")] == [not server_side] * 5
        from psycopg import ClientCursor

        prepared = ClientCursor(wrapper.connection).execute("SELECT count(*) FROM pg_prepared_statements")
        assert prepared.fetchone() == (2 if server_side else 0,)
    finally:
        wrapper.close()
        wrapper.settings_dict["OPTIONS"] = kept
        vars(wrapper.features).pop("uses_server_side_binding", None)


def test_cursors_of_the_server_carry_it(crdb, commented):
    """A named cursor's DECLARE carries it, unless the server binds its values; what is fetched is the same."""
    with transaction.atomic(), connection._cursor(name="named") as cursor:
        crdb.wire_log(clear=True)
        cursor.execute("SELECT email FROM account WHERE balance = %s ORDER BY 1", [100])
        (declared,) = [text for text in crdb.wire_log().texts("statement") if text.startswith("DECLARE")]
        assert [email for (email,) in cursor.fetchall()] == ["a@example.com", "b@example.com"]
        on_the_server = is_psycopg3 and not hasattr(cursor.cursor, "mogrify")  # as Django 4.2 makes it
    span = commented.one("SELECT account")
    assert tags(declared) == ({} if on_the_server else {"traceparent": traceparent(span)})


# --- what stays as it is ---------------------------------------------------------------------------------


def _told(found):
    """Return an outcome without the line that an error quotes: of a text's end, that is the comment's line."""
    if isinstance(found, str):
        return re.sub(r"\nLINE \d+: .*", "", found, flags=re.DOTALL)
    return tuple(map(_told, found)) if isinstance(found, tuple) else found


@PROPERTY
@given(any_texts, any_params)
@example("SELECT 1 % 2", None)
@example("SELECT 1 %% 2", [])
@example("SELECT '%'", [])
@example("SELECT %s %", [1])
@example("SELECT %(x)s, %(x", {"x": 1})
@example("SELECT 1 +", None)
@example("SELECT 1 -- '", None)
@example("SELECT 1 --\r/*", None)
@example("SELECT b'\\' /* '", None)
@example("SELECT '\ud800'", None)
@example("SELECT \x00 1", [])
def test_whatever_is_executed_has_the_drivers_own_outcome(sql, given_params):
    """Any text with any parameters has the result, or the error, that it has without a comment."""
    plain = outcome(lambda cursor: cursor.execute(sql, given_params))
    with Telemetry(sql_comments=True, sql_comment_tags={"a": "50%"}), NoFault():
        assert _told(outcome(lambda cursor: cursor.execute(sql, given_params))) == _told(plain)


@PROPERTY
@given(any_texts, st.sampled_from([[], [()], [(1,), (2,)], [{"x": 1}] * 3]))
def test_whatever_is_executed_many_times_has_the_drivers_own_outcome(sql, rows):
    """The same with ``executemany``."""
    plain = outcome(lambda cursor: cursor.executemany(sql, rows))
    with Telemetry(sql_comments=True, sql_comment_tags={"a": "50%"}), NoFault():
        assert _told(outcome(lambda cursor: cursor.executemany(sql, rows))) == _told(plain)


def test_errors_point_where_they_did(commented):
    """The line that an error quotes, and the place that it points to, are the statement's own."""
    with connection.cursor() as cursor:
        with pytest.raises(DatabaseError) as caught:
            cursor.execute("SELECT id,\n nothing FROM account")
        assert "LINE 2:  nothing FROM account\n         ^" in str(caught.value)
        position = caught.value.__cause__.diag.statement_position
    assert position == "13"


def test_statement_of_another_span_is_not_given_this_one(crdb, monkeypatch):
    """Where a statement's hook fails before it has begun, its text goes without the comment of another one."""

    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(hooks, "faults", type(hooks.faults)())
    with Telemetry(sql_comments=True), connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        crdb.wire_log(clear=True)
        monkeypatch.setattr(cursors.EXECUTE, "begin", fail)
        cursor.execute("SELECT 2")
    assert crdb.wire_log().texts("statement") == ["SELECT 2"]
    assert hooks.faults["CursorWrapper._execute"] == 1
