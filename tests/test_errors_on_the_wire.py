# SPDX-License-Identifier: Apache-2.0
"""CockroachDB's errors, sent by a server and read through the driver that runs: what is made of each.

The server answers an INSERT, or the COMMIT after it, with any SQLSTATE, message, detail and hint; a proxy sends
what PostgreSQL cannot: refused connects and drains as CockroachDB words them.
"""

import contextlib
import socket

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from opentelemetry.trace import StatusCode

from otel_crdb.errors import classify, driver_error, sqlstate_of
from otel_crdb.testing.fault import ErrorFields, Fault, Link

from .errors_of_cockroachdb import CASES, PLANTED, REFUSALS, ROWS, cases, none_or, planted, restart
from .servers import driver_connect, led_through_proxy, needs_postgresql
from .telemetry import Telemetry

INSERT = "INSERT INTO refusal (moment, code, message, detail, hint) VALUES (%s, %s, %s, %s, %s)"
OUTCOME = "cockroachdb.txn.outcome"
#: How a transaction ends after a refused COMMIT, and after a statement's error that left the block.
AFTER_COMMIT = {"yes": "retryable", "if_idempotent": "ambiguous", "no": "failed"}
AFTER_STATEMENT = {"yes": "retryable", "if_idempotent": "failed", "no": "failed"}

by_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _refusals():
    """Make the table whose rows are refused, by what stands in them: at once, or at COMMIT."""
    needs_postgresql()
    connection.close()
    other = driver_connect(connection)
    other.autocommit = True
    cursor = other.cursor()
    cursor.execute(
        """
        CREATE TABLE refusal (moment text, code text, message text, detail text, hint text);
        CREATE FUNCTION refuse_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION USING
                ERRCODE = NEW.code, MESSAGE = NEW.message, DETAIL = NEW.detail, HINT = NEW.hint;
        END $$;
        CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL;
        END $$;
        CREATE TRIGGER refused_at_once AFTER INSERT ON refusal
            FOR EACH ROW WHEN (NEW.moment = 'statement') EXECUTE FUNCTION refuse_row();
        CREATE CONSTRAINT TRIGGER refused_at_commit AFTER INSERT ON refusal DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.moment = 'commit') EXECUTE FUNCTION refuse_row();
        CREATE TRIGGER ended_at_once AFTER INSERT ON refusal
            FOR EACH ROW WHEN (NEW.moment = 'end at statement') EXECUTE FUNCTION end_session();
        CREATE CONSTRAINT TRIGGER ended_at_commit AFTER INSERT ON refusal DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.moment = 'end at commit') EXECUTE FUNCTION end_session();
        """
    )
    yield
    connection.close()
    cursor.execute("DROP TABLE refusal; DROP FUNCTION refuse_row(); DROP FUNCTION end_session()")
    other.close()


@pytest.fixture
def recorded(monkeypatch):
    """Instrument with a connection that stands; an error is told as a span event and as a log record."""
    monkeypatch.setenv("OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN", "logs/dup")
    connection.ensure_connection()
    with Telemetry() as telemetry:
        yield telemetry


def insert(moment, case=None, using="default"):
    """Write the row that is refused at that moment with that error."""
    fields = (case.code, case.message, case.detail, case.hint) if case else (None,) * 4
    with connections[using].cursor() as cursor:
        cursor.execute(INSERT, [moment, *fields])


def refused(case, phase):
    """Have the server refuse a statement in a block, the COMMIT of one, or a write in autocommit."""
    block = contextlib.nullcontext() if phase == "autocommit" else transaction.atomic()
    with pytest.raises(DatabaseError) as caught, block:
        insert("statement" if phase == "statement" else "commit", case)
    return caught.value


def without(pairs):
    """Leave out what is not known."""
    return {name: value for name, value in pairs.items() if value is not None}


def words_of(case):
    """Return what spans, events, log records and data points say alike."""
    return {
        "error.type": case.code,
        "db.response.status_code": case.code,
        "cockroachdb.error.class": case.error_class,
    }


def is_part(part, whole):
    """Whether all of these attributes are there."""
    return {name: whole.get(name) for name in part} == part


def assert_private(telemetry, caplog):
    """Nothing planted has left: not in spans, log records, metrics or the Python logger."""
    left = telemetry.everything() + caplog.text
    assert [secret for secret in PLANTED if secret in left] == []


def assert_told(telemetry, case, span):
    """Span, event, log record and both metrics say the same of the error, and the conflict is told."""
    words = words_of(case)
    told = {
        **words,
        **without(
            {
                "cockroachdb.retry.reason": case.reason,
                "cockroachdb.retry.cause": case.cause,
                "cockroachdb.txn.server_id": case.server_txn_id,
                "cockroachdb.conflict.server_txn_id": case.conflict_server_txn_id,
                "cockroachdb.conflict.table_id": case.table_id,
                "cockroachdb.conflict.index_id": case.index_id,
            }
        ),
    }
    assert span.status.status_code is StatusCode.ERROR
    assert is_part(words, span.attributes)
    (event,) = span.events
    (record,) = [
        record for record in telemetry.log_records if record.event_name == "db.client.operation.exception"
    ]
    assert event.name == "db.client.operation.exception"
    said = {name: value for name, value in event.attributes.items() if not name.startswith("exception.")}
    assert said == told
    assert {name for name in event.attributes if name.startswith("exception.")} == {
        "exception.type",
        "exception.message",
    }
    assert dict(record.attributes) == dict(event.attributes)
    assert (span.status.description or "") in record.body
    (counted,) = telemetry.points("cockroachdb.client.errors")
    assert counted.value == 1
    assert dict(counted.attributes) == {**words, **without({"cockroachdb.retry.reason": case.reason})}
    (timed,) = [
        point
        for point in telemetry.points("db.client.operation.duration")
        if "error.type" in point.attributes
    ]
    assert is_part(words, timed.attributes)


def assert_ended(telemetry, case, outcome):
    """The transaction has its one outcome, on the span and on the metric, with the words of its error."""
    (span,) = [span for span in telemetry.spans if OUTCOME in span.attributes]
    (point,) = telemetry.points("cockroachdb.client.txn.duration")
    failed = outcome != "committed"
    words = words_of(case) if failed else {}
    assert span.attributes[OUTCOME] == point.attributes[OUTCOME] == outcome
    assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    for attributes in (span.attributes, point.attributes):
        assert {name: attributes[name] for name in words_of(case) if name in attributes} == words
    assert span.attributes.get("cockroachdb.txn.server_id") == case.server_txn_id
    ambiguous = ["cockroachdb.txn.ambiguous"] if outcome == "ambiguous" else []
    assert [event.name for event in span.events] == ambiguous
    return span


def assert_classified(error, case, phase):
    """The driver's error means what the tables say."""
    assert sqlstate_of(error) == case.code
    found = classify(error, phase=phase)
    assert (found.sqlstate, found.error_class) == (case.code, case.error_class)
    assert (found.retry, found.reconnect) == (case.retry[phase], case.reconnect)
    assert (found.retry_reason, found.retry_cause) == (case.reason, case.cause)
    assert (found.server_txn_id, found.conflict_server_txn_id) == (
        case.server_txn_id,
        case.conflict_server_txn_id,
    )
    assert (found.table_id, found.index_id) == (case.table_id, case.index_id)
    assert [secret for secret in PLANTED if secret in repr(found)] == []
    assert "alice" in str(driver_error(error))  # what was planted did come through


@by_case
def test_answer_to_a_statement_in_a_block(recorded, caplog, case):
    """A statement's error is classified and told by its row, and ends the transaction retryable or failed."""
    assert_classified(refused(case, "statement"), case, "statement")
    assert_told(recorded, case, recorded.one("INSERT refusal"))
    span = assert_ended(recorded, case, AFTER_STATEMENT[case.retry["statement"]])
    assert [child.name for child in recorded.children(span)] == ["INSERT refusal", "ROLLBACK"]
    assert_private(recorded, caplog)


@by_case
def test_answer_to_commit(recorded, caplog, case):
    """An error of COMMIT is classified and told by its row, and says how the transaction ended."""
    assert_classified(refused(case, "commit"), case, "commit")
    assert_told(recorded, case, recorded.one("COMMIT"))
    committed = case.error_class == "committed_with_ddl_failure"
    outcome = "committed" if committed else AFTER_COMMIT[case.retry["commit"]]
    span = assert_ended(recorded, case, outcome)
    assert recorded.children(span)[-1].name == "COMMIT"
    assert recorded.one("INSERT refusal").status.status_code is StatusCode.UNSET
    assert_private(recorded, caplog)


@by_case
def test_answer_to_a_write_in_autocommit(recorded, caplog, case):
    """An error of a write in autocommit is classified and told by its row, and there is no transaction."""
    assert_classified(refused(case, "autocommit"), case, "autocommit")
    assert_told(recorded, case, recorded.one("INSERT refusal"))
    assert recorded.names() == ["INSERT refusal"]
    assert recorded.points("cockroachdb.client.txn.duration") == []
    assert_private(recorded, caplog)


def test_every_row_is_sent_or_is_no_answer_of_a_server():
    """Each row of the design's table is a case above, but those without a SQLSTATE: the drivers' own words."""
    assert {row[1] for row in ROWS} - {case.code for case in CASES} == {"-"}
    assert len({case.name for case in CASES}) == len(CASES)


# --- lost connections ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "retry", "outcome"),
    [("statement", "yes", "retryable"), ("commit", "if_idempotent", "ambiguous")],
)
def test_session_ended_by_the_server_in_a_block(recorded, phase, retry, outcome):
    """A session that the server ends is known as that: to be run again, after COMMIT only if idempotent."""
    with pytest.raises(OperationalError) as caught, transaction.atomic():
        insert(f"end at {phase}")
    found = classify(caught.value, phase=phase)
    assert (found.retry, found.reconnect) == (retry, True)
    assert (found.error_class, found.retry_reason) in {
        ("unavailable", "admin_shutdown"),
        ("connection", "connection_lost"),
    }
    (span,) = [span for span in recorded.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == outcome
    assert span.attributes["cockroachdb.error.class"] == found.error_class
    assert sum(point.value for point in recorded.points("cockroachdb.client.errors")) == 1


def test_session_ended_by_the_server_in_autocommit(recorded):
    """A write in autocommit whose session ends may have been applied."""
    with pytest.raises(OperationalError) as caught:
        insert("end at commit")
    connection.close()
    found = classify(caught.value, phase="autocommit")
    assert (found.retry, found.reconnect) == ("if_idempotent", True)


def error_of(code, text):
    """Return CockroachDB's error of that text, which has its keys and rows planted, and its hint and detail."""
    words, *parts = planted(text).split(" ¦ ")
    return ErrorFields(code, words, **{part[:6].rstrip(": ").lower(): part[6:].lstrip() for part in parts})


def fault_of(*failures, link=Link.OPEN, place="statement"):
    """Return what answers with these errors, and then has the link so."""
    return Fault("test", "A test's own.", errors=failures, link=link, place=place)


@pytest.fixture
def proxy(crdb):
    """Lead the alias ``other`` through a fault proxy."""
    with led_through_proxy(crdb) as proxy:
        yield proxy


CANCELED = error_of("57014", "query execution canceled")
SHUTDOWN = error_of("57P01", "server is shutting down")


@pytest.mark.parametrize(
    ("phase", "retry", "outcome"),
    [
        ("statement", "yes", "retryable"),
        ("commit", "if_idempotent", "ambiguous"),
        ("autocommit", "if_idempotent", None),
    ],
)
@pytest.mark.parametrize(
    "words", [(CANCELED, SHUTDOWN), (SHUTDOWN,), (CANCELED,)], ids=["both", "why", "cancelled"]
)
def test_drain_that_cuts_what_runs(recorded, proxy, words, phase, retry, outcome):
    """A drain cancels what runs, says why or not, and hangs up: the work may run again on another node."""
    proxy.inject(fault_of(*words, link=Link.CLOSED), matching="^COMMIT" if phase == "commit" else "^UPDATE")
    block = contextlib.nullcontext() if phase == "autocommit" else transaction.atomic(using="other")
    with pytest.raises(DatabaseError) as caught, block, connections["other"].cursor() as cursor:
        cursor.execute("UPDATE refusal SET moment = ''")
    found = classify(caught.value, phase=phase, connection_gone=True)
    assert found.error_class in {"unavailable", "connection"}
    assert (found.retry, found.reconnect) == (retry, True)
    failed = recorded.one("COMMIT" if phase == "commit" else "UPDATE refusal")
    assert failed.attributes["cockroachdb.error.class"] == found.error_class
    assert [span.attributes[OUTCOME] for span in recorded.spans if OUTCOME in span.attributes] == (
        [outcome] if outcome else []
    )


def test_drain_of_an_idle_session(recorded, proxy):
    """A session that was hung up on while idle fails its next statement, which may run again anew."""
    connections["other"].ensure_connection()
    proxy.inject(fault_of(SHUTDOWN, link=Link.CLOSED), on="idle")
    with pytest.raises(DatabaseError) as caught, transaction.atomic(using="other"):
        insert("never", using="other")
    found = classify(caught.value, phase="statement")
    assert (found.error_class in {"unavailable", "connection"}, found.retry, found.reconnect) == (
        True,
        "yes",
        True,
    )
    assert recorded.one("INSERT refusal").attributes["cockroachdb.error.class"] == found.error_class
    (span,) = [span for span in recorded.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == "retryable"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("40001", restart("cannot rollback to savepoint after a transaction restart")),
        ("40001", restart("cannot rollback to savepoint because the transaction has been aborted")),
        ("0A000", "unimplemented: cannot rollback to savepoint after error"),
    ],
    ids=["restart", "aborted", "unimplemented"],
)
@pytest.mark.parametrize("first", ["40001-locks-v23", "23505-unique", "40003-shutdown"])
def test_refused_rollback_to_a_savepoint_is_not_counted_anew(recorded, caplog, proxy, first, code, text):
    """A refused ROLLBACK TO SAVEPOINT repeats the first error, which alone is told and decides."""
    case = next(case for case in CASES if case.name == first)
    proxy.inject(fault_of(error_of(code, text)), matching="^ROLLBACK TO")
    with pytest.raises(DatabaseError) as caught, transaction.atomic(using="other"):
        insert("", using="other")
        with transaction.atomic(using="other"):
            insert("statement", case, using="other")
    assert_classified(caught.value, case, "statement")
    failed = [span for span in recorded.named("INSERT refusal") if span.events]
    assert len(failed) == 1
    assert recorded.one("ROLLBACK TO SAVEPOINT").status.status_code is StatusCode.ERROR
    assert recorded.one("ROLLBACK TO SAVEPOINT").events == ()
    (counted,) = recorded.points("cockroachdb.client.errors")
    assert (counted.value, counted.attributes["db.response.status_code"]) == (1, case.code)
    (span,) = [span for span in recorded.spans if OUTCOME in span.attributes]
    assert span.attributes[OUTCOME] == AFTER_STATEMENT[case.retry["statement"]]
    assert is_part(words_of(case), span.attributes)
    assert_private(recorded, caplog)


# --- connects --------------------------------------------------------------------------------------


def assert_connect_told(telemetry, error, code, error_class, reason):
    """The failed connect's span, event, log record and metrics say the same."""
    span = telemetry.spans[-1]
    driver = type(driver_error(error))
    words = without(
        {
            "error.type": code or f"{driver.__module__}.{driver.__qualname__}",
            "db.response.status_code": code,
            "cockroachdb.error.class": error_class,
        }
    )
    assert span.name.startswith("connect ")
    assert span.status.status_code is StatusCode.ERROR
    assert is_part(words, span.attributes)
    (event,) = span.events
    (record,) = telemetry.log_records
    assert is_part({**words, **without({"cockroachdb.retry.reason": reason})}, event.attributes)
    assert dict(record.attributes) == dict(event.attributes)
    (counted,) = telemetry.points("cockroachdb.client.errors")
    assert dict(counted.attributes) == {**words, **without({"cockroachdb.retry.reason": reason})}
    (timed,) = telemetry.points("db.client.connection.create_time")
    assert is_part(words, timed.attributes)


def assert_connect_classified(error, code, error_class, retry, reconnect, reason):
    """What refused the connect is known, though the driver has no SQLSTATE of it."""
    found = classify(error, phase="connect")
    assert sqlstate_of(error) is None
    assert (found.sqlstate, found.error_class, found.retry_reason) == (code, error_class, reason)
    assert (found.retry, found.reconnect) == (retry, reconnect)


@pytest.mark.parametrize("row", **cases(REFUSALS))
def test_connect_refused_as_cockroachdb_words_it(recorded, proxy, row):
    """What a node answers to a start-up packet is known by its words, and told as what it is."""
    _, code, error_class, retry, reconnect, reason, text = row
    proxy.inject(fault_of(error_of(code, text), link=Link.CLOSED), on="connect")
    with pytest.raises(OperationalError) as caught:
        connections["other"].ensure_connection()
    assert_connect_told(recorded, caught.value, code, error_class, none_or(reason))
    assert_connect_classified(caught.value, code, error_class, retry, reconnect == "R", none_or(reason))


@pytest.fixture
def crowded_role():
    """A role that may not have a single connection."""
    other = driver_connect(connection)
    other.autocommit = True
    other.cursor().execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    yield "crowded"
    other.cursor().execute("DROP ROLE crowded")
    other.close()


@pytest.fixture
def unheard_port():
    """A port on which nobody listens."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield unheard.getsockname()[1]


def assert_refused(telemetry, settings, code, error_class, retry, reason):
    """A connection with these settings is refused for that reason."""
    default = connections["default"]
    wrapper = type(default)({**default.settings_dict, **settings}, "changed")
    with pytest.raises(OperationalError) as caught:
        wrapper.ensure_connection()
    assert_connect_told(telemetry, caught.value, code, error_class, reason)
    assert_connect_classified(caught.value, code, error_class, retry, retry == "yes", reason)


def test_connect_to_a_database_that_is_not_there(recorded):
    """A database that does not exist is a matter of the schema: no retry."""
    assert_refused(recorded, {"NAME": "nowhere"}, "3D000", "schema", "no", None)


def test_connect_as_a_role_that_is_not_there(recorded):
    """A role that does not exist is a matter of permission: no retry."""
    assert_refused(recorded, {"USER": "nobody"}, "28000", "permission", "no", None)


def test_connect_to_a_port_that_is_closed(recorded, unheard_port):
    """A port that nobody listens on may be tried again."""
    assert_refused(recorded, {"PORT": unheard_port}, None, "connection", "yes", "connect_failed")


def test_connect_of_one_too_many(recorded, crowded_role):
    """A role that has all its connections is an overload: again on a new connection."""
    assert_refused(recorded, {"USER": crowded_role}, "53300", "overload", "yes", "too_many_connections")
