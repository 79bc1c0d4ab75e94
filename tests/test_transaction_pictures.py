# SPDX-License-Identifier: Apache-2.0
"""What a transaction's span tells of how it ran: idle time, isolation level, read-only, priority; schema changes."""

import contextlib
import http.server
import itertools
import re
import socket
import socketserver
import threading
import time
import urllib.request

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from otel_crdb import AmbiguousCommitError, run_transaction, state
from otel_crdb.statements import describe
from otel_crdb.testing.frames import message

from .project.models import Account
from .servers import cut, driver_connect, earn, interfere, led_through_proxy, needs_postgresql

pytestmark = pytest.mark.usefixtures("accounts")

OUTCOME = "cockroachdb.txn.outcome"
IDLE = "cockroachdb.txn.idle_time"
ISOLATION = "cockroachdb.txn.isolation_level"
READ_ONLY = "cockroachdb.txn.read_only"
PRIORITY = "cockroachdb.txn.priority"


def blocks(telemetry):
    """Return the transaction spans, by start."""
    return [span for span in telemetry.spans if OUTCOME in span.attributes]


def idle_of(telemetry):
    """Return the only transaction's idle time in nanoseconds."""
    (span,) = blocks(telemetry)
    return span.attributes[IDLE] * 1e9


def gaps_of(telemetry, last=None):
    """Return the nanoseconds between the calls of the only transaction, up to the begin of one of them."""
    (span,) = blocks(telemetry)
    calls = telemetry.children(span)
    calls = calls[: [call.name for call in calls].index(last) + 1] if last else calls
    return sum(after.start_time - before.end_time for before, after in itertools.pairwise(calls))


def pause(seconds=0.05):
    """Do something else than the database; return for how many nanoseconds."""
    began = time.time_ns()
    threading.Event().wait(seconds)
    return time.time_ns() - began


def run(sql, alias="default"):
    """Execute a statement."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


# --- idle time -------------------------------------------------------------------------------------------------


def test_wait_for_another_service_is_idle_time(telemetry):
    """A block that asks an HTTP server is idle for as long as that holds its answer, by the server's own clock."""
    held = []

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            held.append(pause(0.3))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            with transaction.atomic():
                earn()
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").close()
                earn()
        finally:
            server.shutdown()
            serving.join()
    assert idle_of(telemetry) >= held[0]
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry))


def test_time_before_the_first_statement_is_not_idle(telemetry):
    """BEGIN rides with the first statement: before it nothing is open, though the span has begun."""
    with transaction.atomic():
        paused = pause()
        earn()
        earn()
    (span,) = blocks(telemetry)
    first = telemetry.children(span)[0]
    assert first.start_time - span.start_time >= paused
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry))


def test_wait_for_a_lock_of_the_applications_own_is_idle_time(telemetry):
    """A block that waits for another thread is idle, whoever holds what it waits for."""
    lock, waiting, waited = threading.Lock(), threading.Event(), []

    def hold():
        with lock:
            held.set()
            waiting.wait()
            waited.append(pause())

    held = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with transaction.atomic():
        earn()
        waiting.set()
        with lock:
            earn()
    thread.join()
    assert idle_of(telemetry) >= waited[0] * 0.5  # the pause may have begun a moment before
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry))


def test_wait_for_a_lock_in_the_database_is_not_idle_time(telemetry):
    """A statement that waits for another session's lock is the database's time."""
    other = driver_connect(connection)
    other.cursor().execute("UPDATE account SET balance = 7 WHERE email = 'a@example.com'")
    waited = []

    def let_go():
        waited.append(pause(0.3))
        other.rollback()

    with transaction.atomic():
        Account.objects.filter(email="b@example.com").count()
        thread = threading.Thread(target=let_go)
        thread.start()
        earn()
        thread.join()
    other.close()
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry))
    update = telemetry.one("UPDATE account")
    (span,) = blocks(telemetry)
    assert span.end_time - span.start_time - idle_of(telemetry) >= update.end_time - update.start_time


def test_what_another_alias_does_is_idle_time_of_this_one(telemetry):
    """While a block waits for another alias's database, its own has nothing to do."""
    connections["other"].ensure_connection()
    telemetry.clear()
    with transaction.atomic():
        earn()
        with transaction.atomic(using="other"):
            run("SELECT pg_sleep(0.1)", "other")
        earn()
    ours, others = blocks(telemetry)
    slept, commit = telemetry.children(others)
    assert ours.attributes[IDLE] * 1e9 >= slept.end_time - slept.start_time
    assert others.attributes[IDLE] * 1e9 == pytest.approx(commit.start_time - slept.end_time)


def leave_after_a_failed_statement():
    """The server holds the transaction open until it is rolled back."""
    with contextlib.suppress(IntegrityError), transaction.atomic():
        try:
            Account.objects.create(email="a@example.com")
        finally:
            paused = pause()
    return paused


def leave_by_rollback():
    with transaction.atomic():
        earn()
        paused = pause()
        transaction.set_rollback(True)
    return paused


def leave_through_savepoints():
    with transaction.atomic():
        earn()
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            paused = pause()
            raise ZeroDivisionError
        with transaction.atomic():
            paused += pause()
    return paused


def leave_in_manual_autocommit():
    transaction.set_autocommit(False)
    try:
        earn()
        paused = pause()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    return paused


@pytest.mark.parametrize(
    "leave",
    [leave_after_a_failed_statement, leave_by_rollback, leave_through_savepoints, leave_in_manual_autocommit],
)
def test_idle_time_is_what_lies_between_the_calls(telemetry, leave):
    """Whatever way a transaction takes, its idle time is the sum of the gaps between its calls."""
    paused = leave()
    assert idle_of(telemetry) >= paused
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry))


def test_time_between_manual_transactions_is_idle_time_of_none(telemetry):
    """With autocommit off, what lies between a COMMIT and the next statement belongs to no transaction."""
    transaction.set_autocommit(False)
    try:
        for _ in range(2):
            earn()
            transaction.commit()
            pause()
    finally:
        transaction.set_autocommit(True)
    for span in blocks(telemetry):
        update, commit = telemetry.children(span)
        assert span.attributes[IDLE] * 1e9 == pytest.approx(commit.start_time - update.end_time)


def test_connection_closed_amid_ends_the_idle_time(telemetry):
    """A connection that the application closes is idle up to there, and no further."""
    with transaction.atomic():
        earn()
        paused = pause()
        connection.close()
        pause()
    (span,) = blocks(telemetry)
    update = telemetry.one("UPDATE account")
    assert idle_of(telemetry) >= paused
    assert idle_of(telemetry) == pytest.approx(span.end_time - update.end_time)


def test_commit_as_text_ends_the_idle_time(telemetry):
    """After a COMMIT that the application sends as text nothing is open, whatever the block still does."""
    with transaction.atomic():
        earn()
        run("COMMIT")
        pause()
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry, "COMMIT"))


def test_lost_link_ends_the_idle_time(telemetry):
    """After the link is lost nothing is open on the server, though the block goes on."""
    with pytest.raises(DatabaseError), transaction.atomic():
        earn()
        cut(connection)
        try:
            Account.objects.count()
        finally:
            pause()
    assert idle_of(telemetry) == pytest.approx(gaps_of(telemetry, "SELECT account"))


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 copies in one call")
@pytest.mark.parametrize("how", ["write", "write_row", "rows", "read"])
def test_time_between_the_writes_and_reads_of_a_copy_is_idle_time(telemetry, how):
    """In a COPY the database waits while the application makes the next row, or deals with the last."""
    paused = 0
    sending = how.startswith("write")
    direction = "FROM STDIN" if sending else "TO STDOUT"
    with transaction.atomic(), connection.cursor() as cursor:
        with cursor.copy(f"COPY account (email, balance) {direction}") as copy:
            if not sending:
                for _ in copy if how == "read" else copy.rows():
                    paused += pause()
            for name in "cd" if sending else "":
                paused += pause()
                copy.write(buffer=f"{name}@e\t5\n") if how == "write" else copy.write_row((f"{name}@e", 5))
    (span,) = blocks(telemetry)
    copied, commit = telemetry.children(span)
    assert Account.objects.count() == (4 if sending else 2)
    assert paused <= idle_of(telemetry) < commit.start_time - copied.start_time


@pytest.mark.parametrize("how", ["read", "rows"])
@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 copies in one call")
def test_time_in_which_a_copy_waits_for_the_database_is_not_idle(telemetry, how):
    """The calls of a COPY are the database's time: rows that the server makes slowly are waited for in them."""
    sql = "COPY (SELECT pg_sleep(0.1), repeat('x', 20000) FROM generate_series(1, 3)) TO STDOUT"
    with transaction.atomic(), connection.cursor() as cursor, cursor.copy(sql) as copy:
        assert len(list(copy if how == "read" else copy.rows())) == 3
    (span,) = blocks(telemetry)
    copied, commit = telemetry.children(span)
    assert commit.start_time - copied.start_time - idle_of(telemetry) >= 300_000_000


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 copies in one call")
def test_copy_keeps_its_class(telemetry):
    """What ``copy()`` gives is a ``psycopg.Copy`` as before, and outside of transactions too."""
    import psycopg

    with connection.cursor() as cursor, cursor.copy("COPY account (email, balance) TO STDOUT") as copy:
        assert isinstance(copy, psycopg.Copy)
        assert type(copy).__name__ == "Copy"
        assert len(list(copy)) == 2
    telemetry.one("COPY account")


# --- how it runs -----------------------------------------------------------------------------------------------


def picture(telemetry):
    """Return isolation level, read-only and priority of the last transaction."""
    attributes = blocks(telemetry)[-1].attributes
    return tuple(attributes.get(name) for name in (ISOLATION, READ_ONLY, PRIORITY))


NOTHING = (None, None, None)


def read_in_a_block(alias="default"):
    with transaction.atomic(using=alias):
        run("SELECT id FROM account", alias)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", NOTHING),
        ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED", ("read committed", None, None)),
        ("SET TRANSACTION READ ONLY, ISOLATION LEVEL REPEATABLE READ", ("repeatable read", True, None)),
        ("set transaction isolation level serializable read write", ("serializable", False, None)),
        ("SET transaction_isolation = 'read uncommitted'", ("read uncommitted", None, None)),
        ('SET LOCAL transaction_isolation TO "read committed"', ("read committed", None, None)),
        ("SET transaction_read_only TO on", (None, True, None)),
        ("SET LOCAL transaction_read_only = 0", (None, False, None)),
        ("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY", ("read committed", True, None)),
        ("START TRANSACTION READ ONLY", (None, True, None)),
        ("SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SELECT 1", ("read committed", None, None)),
        ("SET TRANSACTION READ WRITE; SELECT set_config('transaction_read_only', 'on', true)", NOTHING),
        # Of transactions to come, not of this one:
        ("SET default_transaction_read_only TO on", NOTHING),
        ("SET LOCAL default_transaction_isolation TO 'read committed'", NOTHING),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", NOTHING),
        # Of something else:
        ("SET LOCAL application_name TO 'read only'", NOTHING),
        ("SELECT 'SET TRANSACTION READ ONLY'", NOTHING),
    ],
)
def test_what_a_transaction_says_of_itself(telemetry, sql, expected):
    """A statement that says how its transaction runs is believed; what says nothing of it tells nothing."""
    with transaction.atomic():
        run(sql)
    assert picture(telemetry) == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SET default_transaction_isolation TO 'read committed'", ("read committed", None, None)),
        ("SET SESSION default_transaction_isolation = 'repeatable read'", ("repeatable read", None, None)),
        ("SET default_transaction_read_only = true", (None, True, None)),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
            ("read committed", False, None),
        ),
        ("SELECT set_config('default_transaction_read_only', 'on', false)", NOTHING),
        ("SET default_transaction_read_only TO on; ROLLBACK", NOTHING),
    ],
)
def test_what_a_session_says_of_its_transactions(telemetry, sql, expected):
    """What autocommit has set for the session holds for the transactions that begin later."""
    run(sql)
    read_in_a_block()
    assert picture(telemetry) == expected


@pytest.mark.parametrize(
    "undo",
    [
        "RESET default_transaction_isolation",
        "RESET ALL",
        "DISCARD ALL",
        "SET default_transaction_isolation TO DEFAULT",
        "SELECT set_config('default_transaction_isolation', 'serializable', false)",
        "SET default_transaction_isolation TO 'read committed'; RESET ALL",
    ],
)
def test_what_is_reset_is_not_known(telemetry, undo):
    """What the session's start had chosen comes back by a reset, and is not guessed."""
    run("SET default_transaction_isolation TO 'read committed'")
    read_in_a_block()
    run(undo)
    read_in_a_block()
    assert [span.attributes.get(ISOLATION) for span in blocks(telemetry)] == ["read committed", None]


def test_session_is_forgotten_with_its_connection(telemetry):
    """A new connection knows nothing of what was set on the old one."""
    run("SET default_transaction_read_only TO on")
    read_in_a_block()
    connection.close()
    read_in_a_block()
    assert [span.attributes.get(READ_ONLY) for span in blocks(telemetry)] == [True, None]


def test_nothing_is_known_of_a_connection_that_served_while_nobody_looked(telemetry):
    """Between ``uninstrument()`` and ``instrument()`` anything may have been set."""
    import otel_crdb

    run("SET default_transaction_read_only TO on")
    read_in_a_block()
    otel_crdb.uninstrument()
    run("SET default_transaction_read_only TO off")
    telemetry.instrument()
    read_in_a_block()
    assert [span.attributes.get(READ_ONLY) for span in blocks(telemetry)] == [True, None]


@pytest.mark.parametrize("commits", [True, False])
def test_what_a_transaction_sets_for_later_ones_holds_once_it_is_committed(telemetry, commits):
    """A rollback may undo SET: then it is not known how later transactions run, nor what was known before."""
    run("SET default_transaction_isolation TO 'read committed'")
    with transaction.atomic():
        run("SET default_transaction_isolation TO 'repeatable read'")
        transaction.set_rollback(not commits)
    read_in_a_block()
    levels = [span.attributes.get(ISOLATION) for span in blocks(telemetry)]
    assert levels == ["read committed", "repeatable read" if commits else None]


def test_local_setting_is_over_with_its_transaction(telemetry):
    """SET LOCAL of what later transactions begin with holds for none of them."""
    with transaction.atomic():
        run("SET LOCAL default_transaction_isolation TO 'read committed'")
    read_in_a_block()
    assert picture(telemetry) == NOTHING


def test_what_is_set_in_a_transaction_that_nobody_saw_begin_is_not_known(telemetry):
    """A transaction that was under way before ``instrument()`` may be rolled back, and SET with it."""
    import otel_crdb

    otel_crdb.uninstrument()
    transaction.set_autocommit(False)
    try:
        run("SELECT 1")
        telemetry.instrument()
        run("SET default_transaction_isolation TO 'read committed'")
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    read_in_a_block()
    assert picture(telemetry) == NOTHING


def test_what_was_said_after_a_savepoint_may_be_undone_by_going_back(telemetry):
    """After ROLLBACK TO SAVEPOINT only what was said before the first savepoint is still known."""
    with transaction.atomic():
        run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            run("SET TRANSACTION READ ONLY")
            raise ZeroDivisionError
    assert picture(telemetry) == ("read committed", None, None)


def test_statement_that_is_refused_has_said_nothing(telemetry):
    """SET TRANSACTION that comes too late is an error, and tells nothing of the transaction."""
    with pytest.raises(DatabaseError), transaction.atomic():
        run("SELECT id FROM account")
        run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
    assert picture(telemetry) == NOTHING


@contextlib.contextmanager
def alias_with(**settings):
    """Give the alias ``other`` with other settings."""
    wrapper = connections["other"]
    wrapper.close()
    kept = dict(wrapper.settings_dict)
    wrapper.settings_dict.update(settings)
    try:
        yield wrapper
    finally:
        wrapper.close()
        wrapper.settings_dict.update(kept)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (r"-c default_transaction_isolation=read\ committed", ("read committed", None, None)),
        (r"-cdefault_transaction_read_only=on", (None, True, None)),
        (
            "--default-transaction-read-only=off -c default_transaction_isolation=serializable",
            ("serializable", False, None),
        ),
        (r"-c application_name=default_transaction_read_only\=on", NOTHING),
    ],
)
def test_options_of_the_connection(telemetry, options, expected):
    """What ``-c`` in the options of the connection asks for is told until something else is said."""
    with alias_with(OPTIONS={**connections["other"].settings_dict["OPTIONS"], "options": options}):
        read_in_a_block("other")
        assert picture(telemetry) == expected
        run("RESET ALL", "other")
        read_in_a_block("other")
        assert picture(telemetry) == NOTHING


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_isolation_level_of_the_settings_and_of_the_drivers_connection(telemetry, number):
    """``OPTIONS["isolation_level"]`` is told, and what the application sets on the driver's connection instead."""
    from django.db.backends.postgresql.psycopg_any import IsolationLevel

    level = IsolationLevel(number)
    options = {**connections["other"].settings_dict["OPTIONS"], "isolation_level": level}
    with alias_with(OPTIONS=options) as wrapper:
        read_in_a_block("other")
        assert picture(telemetry) == (level.name.replace("_", " ").lower(), None, None)
        wrapper.connection.isolation_level = None
        read_in_a_block("other")
        assert picture(telemetry) == NOTHING
        wrapper.connection.isolation_level = IsolationLevel.SERIALIZABLE
        read_in_a_block("other")
        assert picture(telemetry) == ("serializable", None, None)


@pytest.mark.parametrize("read_only", [True, False])
def test_read_only_of_the_drivers_connection(telemetry, read_only):
    """``read_only`` of psycopg 3 and ``readonly`` of psycopg2 go into BEGIN, and are told."""
    connection.ensure_connection()
    setattr(connection.connection, "read_only" if is_psycopg3 else "readonly", read_only)
    read_in_a_block()
    assert picture(telemetry) == (None, read_only, None)


@pytest.mark.skipif(not is_psycopg3, reason="psycopg2 has no pool in Django")
def test_session_goes_with_the_drivers_connection_through_a_pool(telemetry):
    """What was set on a connection is still known when the pool hands it to the next one."""
    options = {**connections["other"].settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 1}}
    with alias_with(OPTIONS=options) as wrapper:
        if not hasattr(wrapper, "close_pool"):
            pytest.skip("this Django has no pools")
        run("SET default_transaction_isolation TO 'read committed'", "other")
        wrapper.close()
        read_in_a_block("other")
        wrapper.close()
        wrapper.close_pool()
    assert picture(telemetry) == ("read committed", None, None)


# --- CockroachDB's own words -----------------------------------------------------------------------------------


def in_postgresqls_words(text):
    """Put what PostgreSQL lacks into its words; a schema change commits what came before it."""
    text = re.sub(rb"^SET TRANSACTION AS OF SYSTEM TIME [^,\0]+", b"SET TRANSACTION READ ONLY", text)
    text = re.sub(rb" AS OF SYSTEM TIME '[^']+'", b"", text)
    text = re.sub(rb"^SET TRANSACTION PRIORITY \w+", b"SELECT", text)
    text = text.replace(b"default_transaction_priority", b"cockroachdb.default_transaction_priority")
    return re.sub(rb"^(CREATE|ALTER|DROP) ", rb"COMMIT; \1 ", text)


class Gateway(socketserver.ThreadingTCPServer):
    """A CockroachDB of a few words, before PostgreSQL: its DDL commits (``autocommit_before_ddl``)."""

    daemon_threads = True

    def __init__(self, server):
        super().__init__(("127.0.0.1", 0), self.serve)
        self.server = server

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.thread.join()
        self.server_close()

    @staticmethod
    def serve(client, _address, gateway):
        """Pass a session on; a simple query is reworded, and the COMMIT put before it has no answer."""
        added = threading.Event()

        def answers():
            with contextlib.suppress(OSError), upstream.makefile("rb") as source:
                while head := source.read(5):
                    body = source.read(int.from_bytes(head[1:], "big") - 4)
                    if head[:1] == b"C" and body == b"COMMIT\0" and added.is_set():
                        added.clear()
                        continue
                    client.sendall(head + body)

        with socket.create_connection((gateway.server.host, gateway.server.port)) as upstream:
            thread = threading.Thread(target=answers, daemon=True)
            with client.makefile("rb") as source, contextlib.suppress(OSError):
                length = source.read(4)
                start = source.read(int.from_bytes(length, "big") - 4)
                if len(start) == 4:  # SSLRequest
                    client.sendall(b"N")
                    length = source.read(4)
                    start = source.read(int.from_bytes(length, "big") - 4)
                upstream.sendall(length + start)
                thread.start()
                while head := source.read(5):
                    body = source.read(int.from_bytes(head[1:], "big") - 4)
                    if head[:1] == b"Q":
                        body = in_postgresqls_words(body)
                        if body.startswith(b"COMMIT; "):
                            added.set()
                    upstream.sendall(message(head[:1].decode(), body))
                upstream.shutdown(socket.SHUT_RDWR)
            if thread.ident:
                thread.join()


@pytest.fixture
def gateway(crdb):
    """Lead the alias ``other`` through a server that speaks some words of CockroachDB."""
    needs_postgresql()
    with Gateway(crdb) as running, alias_with(HOST="127.0.0.1", PORT=running.server_address[1]):
        yield


@pytest.mark.parametrize(
    ("sql", "expected", "as_of"),
    [
        ("SET TRANSACTION PRIORITY HIGH", (None, None, "high"), None),
        ("SET TRANSACTION AS OF SYSTEM TIME '-5s'", (None, True, None), "'-5s'"),
        ("SELECT id FROM account AS OF SYSTEM TIME '-1m30s'", (None, True, None), "'-1m30s'"),
        ("SELECT id FROM account AS OF SYSTEM TIME 'hunter2'", (None, True, None), "?"),
        ("SELECT id FROM account AS OF SYSTEM TIME 'tsym'", (None, True, None), "?"),
    ],
)
def test_words_of_cockroachdb(telemetry, gateway, sql, expected, as_of):
    """Priority and AS OF SYSTEM TIME are told; what is read in the past is read only; no word is shown as a time."""
    with transaction.atomic(using="other"):
        run(sql, "other")
    assert picture(telemetry) == expected
    (span,) = blocks(telemetry)
    assert span.attributes.get("cockroachdb.txn.as_of_system_time") == as_of
    assert "hunter2" not in telemetry.everything()


def test_priority_of_a_session(telemetry, gateway):
    """What autocommit sets as the session's priority holds for its transactions, until one sets another."""
    run("SET default_transaction_priority TO low", "other")
    read_in_a_block("other")
    with transaction.atomic(using="other"):
        run("SET TRANSACTION PRIORITY HIGH", "other")
    run("SET default_transaction_priority = nonsense", "other")
    read_in_a_block("other")
    assert [span.attributes.get(PRIORITY) for span in blocks(telemetry)] == ["low", "high", None]


# --- schema changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (a int)",
        "create table t as select * from u",
        "CREATE OR REPLACE VIEW v AS SELECT 1",
        "/* why */ CREATE UNIQUE INDEX i ON t (a)",
        "CREATE STATISTICS s FROM t",
        "CREATE USER u",
        "ALTER TABLE t ADD COLUMN b int",
        "ALTER RANGE default CONFIGURE ZONE USING num_replicas = 5",
        "DROP INDEX t@i",
        "DROP OWNED BY u",
        "TRUNCATE t",
        "COMMENT ON TABLE t IS 'x'",
        "GRANT SELECT ON t TO u",
        "REVOKE ALL ON t FROM u",
        "REASSIGN OWNED BY u TO v",
        "REFRESH MATERIALIZED VIEW v",
        "ANALYZE t",
        "SELECT * INTO t FROM u",
        "WITH x AS (SELECT 1) SELECT * INTO t FROM x",
        "UPDATE t SET a = 1; CREATE TABLE u (a int); SELECT 1",
        b"DROP TABLE t",
        f"INSERT INTO t VALUES ('{'x' * 20_000}'); -- and\n\n  DROP TABLE t",
        f"INSERT INTO t VALUES ('{'x' * 20_000}');DROP TABLE t".encode(),
    ],
)
def test_schema_change_is_what_cockroachdb_takes_for_one(sql):
    """What CanModifySchema() of CockroachDB is true of, in any of several statements."""
    assert describe(sql).schema_change is True


@pytest.mark.parametrize(
    "sql",
    [
        "",
        ";",
        "SELECT 1",
        "SELECT 'CREATE TABLE t'",
        "INSERT INTO t SELECT * FROM u",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x",
        "SHOW CREATE TABLE t",
        "EXPLAIN CREATE TABLE t (a int)",
        "SET TRANSACTION READ ONLY",
        "CREATE CHANGEFEED FOR t",
        "CREATE SCHEDULE s FOR BACKUP INTO 'x' RECURRING '@daily'",
        "CREATE EXTENSION pg_trgm",
        "ALTER BACKUP 'x'",
        "DROP EXTERNAL CONNECTION c",
        "UPDATE t SET a = 1",
        f"INSERT INTO t VALUES ('{'x' * 20_000}'); SELECT 1",
    ],
)
def test_what_is_no_schema_change(sql):
    """Jobs, extensions and external connections are none, nor is the word in another place."""
    assert describe(sql).schema_change is False


def record():
    """Return the record of the transaction on the alias ``other``."""
    return state.record_of(connections["other"]).transaction


def test_schema_change_is_in_the_transactions_record(telemetry):
    """From the statement that changes the schema on, sent whether or not it succeeds."""
    with pytest.raises(DatabaseError), transaction.atomic(using="other"):
        run("SELECT 1", "other")
        assert record().schema_change is False
        try:
            run("CREATE TABLE account (id int)", "other")
        finally:
            assert record().schema_change is True
            assert record().committed_within is False  # PostgreSQL commits nothing by itself


def test_failed_schema_change_after_which_nothing_is_open_proves_a_commit(telemetry, gateway):
    """What came before a schema change that fails by itself is committed, and the record knows it at once."""
    with pytest.raises(DatabaseError), transaction.atomic(using="other"):
        earn(using="other")
        try:
            run("CREATE TABLE account (id int)", "other")
        finally:
            assert record().committed_within is True
    assert Account.objects.get(email="a@example.com").balance == 101
    (span,) = blocks(telemetry)
    assert span.attributes[OUTCOME] == "committed"


def test_schema_change_that_succeeds_and_leaves_nothing_open_proves_a_commit(telemetry, gateway):
    """What came before a schema change is committed though the block is rolled back."""
    with transaction.atomic(using="other"):
        earn(using="other")
        run("CREATE TABLE passing (id int)", "other")
        assert record().committed_within is True
        transaction.set_rollback(True, using="other")
    run("DROP TABLE passing", "other")
    assert Account.objects.get(email="a@example.com").balance == 101
    assert blocks(telemetry)[0].attributes[OUTCOME] == "committed"


def test_refused_commit_before_a_schema_change_leaves_in_doubt_what_became_of_it(telemetry, gateway):
    """A 40001 may be that COMMIT's or the change's own: neither committed nor to be run again by itself."""
    with transaction.atomic(using="other"):
        sum(account.balance for account in Account.objects.using("other"))
        earn(using="other")
        interfere()
        with pytest.raises(DatabaseError):
            run("CREATE TABLE passing (id int)", "other")
        run("SELECT 1", "other")  # begins a new one: nothing tells that the old one was committed
        found = record()
        assert found.committed_within is False
        assert found.commit_failure.sqlstate == "40001"
        assert found.commit_failure.retry == "if_idempotent"
        transaction.set_rollback(True, using="other")
    (span,) = blocks(telemetry)
    assert span.attributes[OUTCOME] == "ambiguous"


def test_doubt_that_the_function_swallowed_is_told_all_the_same(telemetry, gateway):
    """A transaction that is in doubt since a schema change is so too where its function went on as if all were well."""

    def change():
        sum(account.balance for account in Account.objects.using("other"))
        earn(using="other")
        interfere()
        with pytest.raises(DatabaseError):
            run("CREATE TABLE passing (id int)", "other")

    with pytest.raises(AmbiguousCommitError):
        run_transaction(change, using="other")
    assert blocks(telemetry)[-1].attributes[OUTCOME] == "ambiguous"


def test_text_of_several_statements_is_in_part_committed_where_its_schema_change_fails(telemetry, crdb):
    """What stands before the change in one text is committed too, though no statement had succeeded before."""
    needs_postgresql()
    sql = "UPDATE account SET balance = 7; COMMIT; CREATE TABLE account (id int)"
    with pytest.raises(DatabaseError), transaction.atomic(using="other"):
        try:
            run(sql, "other")
        finally:
            assert record().committed_within is True
    assert Account.objects.get(email="a@example.com").balance == 7


def test_refused_begin_of_a_schema_change_commits_nothing(telemetry, crdb):
    """Where BEGIN is refused nothing is open either, and nothing came before."""
    needs_postgresql()
    with led_through_proxy(crdb) as proxy:
        proxy.inject("too_many_transactions", matching="BEGIN")
        with pytest.raises(DatabaseError), transaction.atomic(using="other"):
            try:
                run("CREATE TABLE passing (id int)", "other")
            finally:
                assert record().committed_within is False
                assert record().commit_error is None
    (span,) = blocks(telemetry)
    assert span.attributes[OUTCOME] == "retryable"
