# SPDX-License-Identifier: Apache-2.0
"""The records for the rules of `collector/agent.yaml`: `RECORDS`, and the tables that say what is to come of them."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Exemplar,
    Histogram,
    HistogramDataPoint,
    Metric,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from e2e.agent import any_value, load, pairs
from otel_crdb import sqlstates
from stack import servers

CONFIGURATION = servers.CONFIGURATION / "agent.yaml"
AGENT = load(CONFIGURATION)
NOW = time.time_ns()
MS = 1_000_000
COCKROACHDB = {"db.system.name": "cockroachdb"}
POSTGRESQL = {"db.system.name": "postgresql"}

# --- records -------------------------------------------------------------------------------------------------


def in_share(trace_id: bytes, percent: float) -> bool:
    """Tell whether the agent keeps this trace for its share: FNV-1a of the collector's salt and the id."""
    value = 0xCBF29CE484222325
    for byte in b"default-hash-seed" + trace_id:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value <= (2**64 - 1) * percent / 100


#: Which rules a record is for, by how its name begins.
GROUPS = {
    "errors": ("code", "reason", "form", "given", "success"),
    "seen": ("secret", "alike", "keys", "masked", "passed", "card", "sql", "named", "no call"),
    "sampling": ("kept", "dropped"),
    "lengths": ("long", "short"),
}


class Records:
    """All records of this module by their names. A span is alone in its trace, unless one is given."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[Resource, Span]] = {}
        self.logs: dict[str, tuple[Resource, LogRecord]] = {}
        self.metrics: dict[str, Metric] = {}
        self._ids = 0

    def trace_id(self, kept: bool) -> bytes:
        """Make the id of a trace that is in the share of the rest, or of one that is not."""
        while True:
            self._ids += 1
            made = hashlib.sha256(str(self._ids).encode()).digest()[:16]
            if in_share(made, 10) is kept:
                return made

    def span(
        self,
        record: str,
        attributes: dict[str, Any],
        *,
        name: str = "work",
        status: str | None = None,
        events: tuple[tuple[str, dict[str, Any]], ...] = (),
        resource: dict[str, Any] | None = None,
        trace_id: bytes = b"",
        milliseconds: int = 5,
    ) -> None:
        """Add a span; one with a status has failed."""
        assert record not in self.spans, record
        code = Status.STATUS_CODE_UNSET if status is None else Status.STATUS_CODE_ERROR
        made = Span(
            trace_id=trace_id or self.trace_id(kept=True),
            span_id=(len(self.spans) + 1).to_bytes(8, "big"),
            name=name,
            kind=Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=NOW,
            end_time_unix_nano=NOW + milliseconds * MS,
            attributes=pairs(attributes),
            status=Status(code=code, message=status or ""),
            events=[
                Span.Event(name=each, attributes=pairs(told), time_unix_nano=NOW) for each, told in events
            ],
        )
        self.spans[record] = Resource(attributes=pairs({"service.name": "bank", **(resource or {})})), made

    def log(
        self,
        record: str,
        body: Any,
        attributes: dict[str, Any] | None = None,
        resource: dict[str, Any] | None = None,
    ) -> None:
        """Add a log record."""
        assert record not in self.logs, record
        made = LogRecord(
            time_unix_nano=NOW,
            body=any_value(body),
            attributes=pairs({"record": record, **(attributes or {})}),
        )
        self.logs[record] = Resource(attributes=pairs({"service.name": "bank", **(resource or {})})), made

    def metric(self, record: str, attributes: dict[str, Any], filtered: dict[str, Any]) -> None:
        """Add a histogram of one point with one exemplar."""
        exemplar = Exemplar(
            as_double=0.25,
            time_unix_nano=NOW,
            trace_id=bytes(range(16)),
            span_id=bytes(range(8)),
            filtered_attributes=pairs(filtered),
        )
        point = HistogramDataPoint(
            count=1, sum=0.25, bucket_counts=[1, 0], explicit_bounds=[1.0], attributes=pairs(attributes),
            time_unix_nano=NOW, start_time_unix_nano=NOW - MS, exemplars=[exemplar],
        )  # fmt: skip
        self.metrics[record] = Metric(
            name=record, unit="s", histogram=Histogram(data_points=[point], aggregation_temporality=2)
        )

    def requests(self, groups: tuple[str, ...] = tuple(GROUPS)) -> list[Any]:
        """Return those of these groups as an application's export requests."""
        wanted = tuple(name for group in groups for name in GROUPS[group])
        scope = InstrumentationScope(name="rules", attributes=pairs({"api_key": "k3y-of-the-scope"}))
        spans = trace.ExportTraceServiceRequest(
            resource_spans=[
                ResourceSpans(resource=resource, scope_spans=[ScopeSpans(scope=scope, spans=[span])])
                for name, (resource, span) in self.spans.items()
                if name.startswith(wanted)
            ]
        )
        records = logs.ExportLogsServiceRequest(
            resource_logs=[
                ResourceLogs(resource=resource, scope_logs=[ScopeLogs(scope=scope, log_records=[record])])
                for name, (resource, record) in self.logs.items()
                if name.startswith(wanted)
            ]
        )
        points = metrics.ExportMetricsServiceRequest(
            resource_metrics=[
                ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=[metric])])
                for name, metric in self.metrics.items()
                if name.startswith(wanted)
            ]
        )
        return [request for request in (spans, records, points) if request.ByteSize()]


RECORDS = Records()

# --- errors --------------------------------------------------------------------------------------------------

#: The words that a code's meaning may hang on, as the servers say them.
VARIANTS = {
    "57014": (
        "query execution canceled",
        "query execution canceled due to statement timeout",
        "query execution canceled due to transaction timeout",
        "server is shutting down",
        "consuming input failed: Connection reset by peer",
    ),
    "XXUUU": (
        "something else",
        "replica unavailable: (n1,s1):1 unable to serve request",
        "rpc: result is ambiguous: error=…",
        "read tcp 10.0.0.1:26257: use of closed network connection",
        "unexpected EOF",
    ),
    "55P03": ("canceling statement due to lock timeout", "could not obtain lock on row"),
    "0A000": ("cannot rollback to savepoint after a transaction restart",),
}
KV = "restart transaction: TransactionRetryWithProtoRefreshError: "
REASONS = {
    text: KV
    + (f"TransactionRetryError: retry txn ({text})" if text.isupper() else f"{text}: at 1.5,0 too old")
    for text in (
        *sqlstates.REASONS,
        *sqlstates.WRAPPING_REASONS,
        "RETRY_NEVER_HEARD_OF",
        "ABORT_REASON_NEW",
        "nothing",
    )
}


class DriverError(Exception):
    """An error as a driver gives it."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def known_errors() -> list[tuple[str, str, str]]:
    """Return record, SQLSTATE and message of an error for each row of otel_crdb's tables."""
    codes = [
        *sqlstates.RULES,
        *(f"{prefix}9Z9" for prefix in sqlstates.CLASS_RULES),
        "P0001",
        "F0000",
        "HV000",
    ]
    errors = [(f"code {code}", code, "said") for code in codes]
    for code, words in VARIANTS.items():
        errors += [(f"code {code}, {said}", code, said) for said in words]
    return errors + [(f"reason {text}", "40001", message) for text, message in REASONS.items()]


for _record, _code, _message in known_errors():
    RECORDS.span(_record, {**COCKROACHDB, "db.response.status_code": _code}, status=_message)
    RECORDS.log(_record, _message, {**COCKROACHDB, "db.response.status_code": _code})

RESTART = "restart transaction: TransactionRetryWithProtoRefreshError: TransactionAbortedError(ABORT_REASON_CLIENT_REJECT)"
#: As other languages and drivers tell it: attributes, status, exception, and the SQLSTATE that is meant.
FORMS: dict[str, tuple[dict[str, Any], str, dict[str, Any], str | None]] = {
    "go": (COCKROACHDB, "ERROR: relation does not exist (SQLSTATE 42P01)", {}, "42P01"),
    "colon": (COCKROACHDB, "ERROR: foo SQLSTATE: 23505", {}, "23505"),
    "php": (COCKROACHDB, "SQLSTATE[23503]: Foreign key violation", {}, "23503"),
    "hibernate": (COCKROACHDB, "SQL Error: 0, SQLState: 40001", {}, "40001"),
    "npgsql": (COCKROACHDB, "", {"exception.message": "40001: restart transaction"}, "40001"),
    "node": (COCKROACHDB, "", {"exception.type": "23505", "exception.message": "duplicate"}, "23505"),
    "exception": (COCKROACHDB, "failed", {"exception.message": "oh (SQLSTATE 53300)"}, "53300"),
    "type": ({**COCKROACHDB, "error.type": "57P01"}, "", {}, "57P01"),
    "old system": ({"db.system": "cockroach"}, "(SQLSTATE 42601)", {}, "42601"),
    "old name": ({"db.system": "cockroachdb"}, "(SQLSTATE 42601)", {}, "42601"),
    "java": (POSTGRESQL, f"ERROR: {RESTART}", {}, "40001"),
    "words": (POSTGRESQL, "ERROR: result is ambiguous: error=rpc", {}, "40003"),
    "port": ({**POSTGRESQL, "server.port": 26257}, "(SQLSTATE 23505)", {}, "23505"),
    "old port": ({"db.system": "postgresql", "net.peer.port": 26257}, "(SQLSTATE 23505)", {}, "23505"),
    "own code": (POSTGRESQL, "(SQLSTATE XXA00)", {}, "XXA00"),
    "wrapped": (POSTGRESQL, f"commit: {RESTART} (SQLSTATE 40001)", {}, "40001"),
    "refresh": (POSTGRESQL, "TransactionRetryWithProtoRefreshError: x (SQLSTATE 40001)", {}, "40001"),
    # With no sign of CockroachDB: the code, and no name of CockroachDB's.
    "postgresql": (POSTGRESQL, "could not serialize access (SQLSTATE 40001)", {}, "40001"),
    "postgresql port": ({**POSTGRESQL, "server.port": 5432}, "(SQLSTATE 23505)", {}, "23505"),
    # Not of a database of this kind, or no code.
    "mysql": ({"db.system.name": "mysql"}, "(SQLSTATE 23000)", {}, None),
    "no database": ({}, "(SQLSTATE 40001)", {}, None),
    "no code": (COCKROACHDB, "SQLSTATE ERROR, and 12345:6", {"exception.type": "OSError"}, None),
    # Redaction takes the code away together with the row.
    "behind a row": (COCKROACHDB, "null, DETAIL:  Key (a)=(b) (SQLSTATE 23502)", {}, "23502"),
    "long": (COCKROACHDB, "SQLSTATE 400012", {}, None),
    "severity": (COCKROACHDB, "FATAL: password authentication failed", {}, None),
}
for _record, (_told, _status, _exception, _) in FORMS.items():
    RECORDS.span(
        f"form {_record}", _told, status=_status, events=(("exception", _exception),) if _exception else ()
    )
for _record in ("go", "php", "java", "words", "no code"):
    RECORDS.log(f"form {_record}", FORMS[_record][1])
RECORDS.log("form in exception", "failed", {"exception.message": "oh (SQLSTATE XXC02)"})
RECORDS.log("form port", "x (SQLSTATE 23505)", {"server.port": 26257})
RECORDS.log("form old port", "x (SQLSTATE 23505)", {"net.peer.port": 26257})
RECORDS.log("form old system", "x (SQLSTATE 23505)", {"db.system": "cockroachdb"})
RECORDS.log("form number", "12345: is no code")
#: What is there is not overwritten.
GIVEN = {
    "given class": {**COCKROACHDB, "db.response.status_code": "40001", "cockroachdb.error.class": "mine"},
    "given reason": {
        **COCKROACHDB,
        "db.response.status_code": "40001",
        "cockroachdb.retry.reason": "WriteTooOldError",
    },
    "given type": {**COCKROACHDB, "db.response.status_code": "40001", "error.type": "java.sql.SQLException"},
    "given code": {**COCKROACHDB, "db.response.status_code": "40003", "error.type": "23505"},
    "success": {**COCKROACHDB, "db.response.status_code": "00000"},
}
for _record, _told in GIVEN.items():
    RECORDS.span(_record, _told, status="ERROR: (SQLSTATE 23505)")
    RECORDS.log(_record, "ERROR: (SQLSTATE 23505)", _told)

# --- secrets -------------------------------------------------------------------------------------------------

#: A text with a secret, the text that comes out, and one like it that is nobody's secret and stays.
SECRETS: list[tuple[str, str, str]] = [
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIB\n-----END RSA PRIVATE KEY----- x", "**** x", "-----BEGIN CERTIFICATE-----\nMIIE"),
    ("x Failing row contains (7, ann\nlee).\nnext", "x ****next", "x Failing rows: 3"),
    ("Key (email)=(ann) already exists", "Key (email****", "Key (email)=(…) already exists"),
    ("index (a, b)=(1, 2)", "index (a, b****", "f(a)=b and (a) = b"),
    ("said\nDETAIL:  the value ann\nnext", "said\n****\nnext", "said in detail: nothing"),
    ('could not parse "ann" as type int', "****", "could not parse at all"),
    ("on key /Table/106/1/12/0: x", "on key ****", "on key /Table/106/1 and /Table/106/1/…"),
    ("x [SQL: SELECT 1]\ny", "x ****y", "x [SQLite: no] y"),
    ("(0.1) args=('ann', 3)", "(0.1) ****", "args: two, params=none"),
    ("ran DELETE FROM t WHERE a = 'ann'", "ran ****", "ran DELETE FROM t WHERE a = ?"),
    ("Cookie: a=b; lang=de", "****", "Cookies are off"),
    ("login password=hunter2 failed", "login **** failed", "UPDATE u SET password = ? WHERE id = $1 AND pwd = %s, token=REDACTED {pwd={…}}"),
    ('{"api_key": "a b c", "n": 1}', '{"****, "n": 1}', '{"tokens": 4, "keys": 2}'),
    ("run --token abc --fast", "run **** --fast", "run --token --fast --tokenizer abc"),
    ("of pin=1234 now", "of**** now", "spin=1234, pin = 3, pin=?, pin=REDACTED"),
    ("/go?x=1&code=abc12", "/go?x=1****", "/go?x=1&zipcode=abc12&code=REDACTED&key=REDACTED"),
    ("sent Bearer abc.def1", "sent ****", "Basic authentication, bearer of news"),
    ("to postgresql://root:pw@db:26257/bank", "to postgresql://****db:26257/bank", "to postgresql://db:26257/bank"),
    ("https://ab12cd34ef56ab78cd@git/x", "https****git/x", "https://root@db/x"),
    ("of ann.lee@example.com.", "of ****.", "n1@1786878125.562938098 and git@host"),
    ("jwt eyJhbGciOiJIUzI1.eyJzdWIi.c2ln", "jwt ****", "eye and eyJ"),
    ("AKIAIOSFODNN7EXAMPLE", "****", "AKIA"),
    ("ghp_0123456789abcdefghij0", "****", "ghp_0123"),
    ("pbkdf2_sha256$600000$c2FsdA$aGFzaGhhc2g=", "****", "pbkdf2_sha256"),
    ("session 0123456789abcdefghijklmnopqrstuv", "****", "session 42 of 0123456789abcdef0123456789abcdef"),
    ("GET /reset/MQ/c1a2b3-0123456789abcdef0123456789abcdef/", "GET /reset****/", "GET /a/b/0123456789abcdef0123456789abcdef/"),
    ("card 4111 1111-11111111", "card****", "row 962345678901234567 at 1793473506123456789, 0.4111111111111111"),
    ("4111111111111111", "****", "41111111111111112222"),
    ("amex 378282246310005", "amex****", "+378282246310005 a378282246310005"),
]  # fmt: skip
#: The same of keys, whose whole value is masked.
KEYS = [
    ("db.query.parameter.0", "db.query.parameters"),
    ("db.operation.parameter.id", "db.operation.name"),
    ("db.sql.bindings", "db.sql.table"),
    ("db.statement.parameters", "db.statement.kind"),
    ("http.request.header.x-tenant", "http.request.header.content-type"),
    ("http.response.header.location", "http.response.header.Cache_Control"),
    ("user.passwordHash", "password.rules"),
    ("app.csrf", "session.id"),
    ("refresh_token", "gen_ai.usage.input_tokens"),
    ("x.auth", "author"),
]
#: These are passed over, whatever their value.
PASSED_OVER = AGENT["processors"]["redaction/values"]["ignored_keys"]
VALUE = "v4lue"

for _number, (_secret, _, _alike) in enumerate(SECRETS):
    for _kind, _text in (("secret", _secret), ("alike", _alike)):
        RECORDS.span(
            f"{_kind} {_number}", {"note": _text, "list": [_text], "url.full": _text}, name=_text, status=_text,
            events=((_text, {"exception.message": _text}),), resource={"process.command": _text},
        )  # fmt: skip
        RECORDS.log(f"{_kind} {_number}", _text, {"note": _text})
        RECORDS.log(f"{_kind} {_number} in a map", {"within": {"a": [_text]}}, {})
        RECORDS.metric(f"{_kind}.{_number}", {"note": _text}, {"left_out": _text})
_KEYS = {key: VALUE for pair in KEYS for key in pair}
RECORDS.span("keys", _KEYS, events=(("x", _KEYS),), resource={"app.secret": VALUE})
RECORDS.log("keys", {**_KEYS, "within": _KEYS}, _KEYS)
RECORDS.metric("keys", _KEYS, {})
MASKED = {"user.password": "…", "api_key": "REDACTED", "token": "****"}
RECORDS.span("masked before", MASKED)
RECORDS.log("masked before", "x", MASKED)
RECORDS.span("passed over", dict.fromkeys(PASSED_OVER, "ann@example.com"))
RECORDS.log("passed over", "x", dict.fromkeys(PASSED_OVER, "ann@example.com"))
RECORDS.span("card as a number", {"n": 4111111111111111, "row": 962345678901234567, "s": 0.4111111111111111})

#: SQL and what stays of it: literals go, all else stays, what is masked too.
SQL = [
    ("SELECT a FROM t1 WHERE b = 'x''y' AND c = 12", "SELECT a FROM t1 WHERE b = ? AND c = ?"),
    ("SELECT E'it\\'s', b'\\x01', 'a\\'", "SELECT ?, ?, ?"),
    ("SELECT $tag$ann$tag$, $$lee$$", "SELECT ?, ?"),
    ("SELECT 1 /* of ann */ -- and lee", "SELECT ?  "),
    ("INSERT INTO t VALUES (1,2.5e3,-3)", "INSERT INTO t VALUES (?,?,-?)"),
    ("SELECT 'never closed", "SELECT ?"),
    *(
        (same, same)
        for same in (
            'SELECT "T3"."id", a::INT8 FROM "t1" AS "T3" WHERE id = $1 AND x = %s AND y IN (?, ?) LIMIT ?',
            "SELECT * FROM t AS OF SYSTEM TIME ? WHERE a1 = t2.b3 AND v = %(v1)s",
        )
    ),
]
for _number, (_text, _) in enumerate(SQL):
    for _key in ("db.query.text", "db.statement"):
        RECORDS.span(f"sql {_number} {_key}", {**COCKROACHDB, _key: _text})
        RECORDS.log(f"sql {_number} {_key}", "ran", {_key: _text})

RECORDS.span("named by its text", COCKROACHDB, name="SELECT a1 FROM t WHERE b = 'ann' AND c=12")
RECORDS.span("no call of the database", {}, name="ann's 12 errands")

# --- lengths -------------------------------------------------------------------------------------------------

#: Bytes: the tests' AGENT_LONGEST_TEXT. The long text has a character of two bytes where it is to be cut.
LONGEST = 2000
TEXTS = {"short": "x" * LONGEST, "long": "x" * (LONGEST - 1) + "ö" + "y" * 1000}
for _kind, _text in TEXTS.items():
    RECORDS.span(
        f"{_kind} texts", {"note": _text}, name=_text, status=_text,
        events=((_text, {"exception.stacktrace": _text}),), resource={"process.command": _text},
    )  # fmt: skip
    RECORDS.log(f"{_kind} texts", _text, {"note": _text}, {"process.command": _text})
    RECORDS.log(f"{_kind} map", {"within": [_text[1000:]]})

# --- sampling ------------------------------------------------------------------------------------------------


def _event(name: str) -> dict[str, Any]:
    return {"events": ((name, {}),)}


def _crdb(name: str, value: Any) -> dict[str, Any]:
    return {"attributes": {f"cockroachdb.{name}": value}}


#: By policy: spans for which their trace is kept, and those for which it is not.
KEPT: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "error": ([{"status": "failed"}], [{}]),
    "slow": ([{"milliseconds": 1001}], [{"milliseconds": 1000}]),
    "retried": (
        [
            _crdb("txn.attempts", 2),
            _crdb("txn.attempt", 2),
            _crdb("request.retries", 1),
            _crdb("request.attempts", 2),
            _crdb("retry.reason", "RETRY_SERIALIZABLE"),
            _event("cockroachdb.txn.retry"),
        ],
        [
            _crdb("txn.attempts", 1),
            _crdb("txn.attempt", 1),
            _crdb("request.retries", 0),
            _crdb("request.attempts", 1),
            _event("cockroachdb.txn.retrying"),
        ],
    ),
    "not_committed": (
        [
            *(_crdb("txn.outcome", outcome) for outcome in ("retryable", "ambiguous", "failed")),
            _event("cockroachdb.txn.ambiguous"),
            # A silent abort is a rollback that nobody asked for.
            {**_crdb("txn.outcome", "rolled_back"), **_event("cockroachdb.txn.silent_abort")},
        ],
        [_crdb("txn.outcome", outcome) for outcome in ("committed", "rolled_back", "unfailed")],
    ),
    "database_error": (
        [_crdb("error.class", "constraint"), _event("db.client.operation.exception")],
        [_event("exception")],
    ),
}
for _policy, (_wanted, _unwanted) in KEPT.items():
    for _kind, _spans in (("kept", _wanted), ("dropped", _unwanted)):
        for _number, _made in enumerate(_spans):
            RECORDS.span(
                f"{_kind} {_policy} {_number}",
                **{"attributes": {}, **_made},
                trace_id=RECORDS.trace_id(kept=False),
            )
for _number in range(20):
    RECORDS.span(f"kept share {_number}", {})
    RECORDS.span(f"dropped share {_number}", {}, trace_id=RECORDS.trace_id(kept=False))
