# SPDX-License-Identifier: Apache-2.0
"""Whatever is logged: one valid line of each formatter, one valid OTLP record, and no secret in either."""

import contextlib
import json
import logging
import string
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

from otel_crdb import hooks
from otel_crdb.logs import CockroachTxnFilter, JSONFormatter, OTLPHandler, VerboseFormatter, fields

FORMATTERS = [VerboseFormatter(), JSONFormatter(), VerboseFormatter(limit=1024), JSONFormatter(limit=1024)]
FILTER = CockroachTxnFilter()
FIELDS = (*fields.TRACE_FIELDS, *fields.STATEMENT_FIELDS)
STOCK = logging.Formatter(" ".join(f"%({name})s" for name in ("asctime", *FIELDS, "message")))


class Hostile:
    """An object that cannot be written."""

    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __len__ = __iter__ = __eq__ = __bool__ = __str__
    __hash__ = None


class HostileError(Exception):
    """An exception that cannot be written."""

    def __str__(self):
        raise RuntimeError("no")

    __repr__ = __str__


def is_trick(character):
    """Whether a character can break a line, or change how what follows is shown."""
    directs = unicodedata.bidirectional(character) in [
        "LRE",
        "RLE",
        "PDF",
        "LRO",
        "RLO",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    ]
    return (
        directs
        or character in "\u200e\u200f\u061c"
        or unicodedata.category(character) in ["Cc", "Cs", "Zl", "Zp"]
    )


def over_otlp(record):
    """Send a record, and return the bytes that a collector would get."""
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    OTLPHandler(logger_provider=provider).handle(record)
    batch = exporter.get_finished_logs()
    assert len(batch) == 1
    sent = encode_logs(batch).SerializeToString()
    (arrived,) = ExportLogsServiceRequest.FromString(sent).resource_logs[0].scope_logs[0].log_records
    # What the encoder cannot encode it leaves out, and logs.
    assert len(arrived.attributes) == len(batch[0].log_record.attributes)
    return sent


def lines_of(record):
    """Return the lines that a record makes, each of them valid."""
    lines = [formatter.format(record) for formatter in FORMATTERS]
    for formatter, line in zip(FORMATTERS, lines, strict=True):
        assert len(line.splitlines()) == 1
        assert not [each for each in line if is_trick(each)]
        assert len(line.encode()) <= formatter.limit
        if isinstance(formatter, JSONFormatter):
            told = json.loads(line, parse_constant=pytest.fail)
            assert {"timestamp", "severity_number", "body"} <= set(told)
    return lines


ANY_TEXT = st.text(st.characters(exclude_categories=())) | st.text("%sdr()[]{}\"'\\\n\r\x1b\u2028 password=")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.builds(lambda: 10**5000)
    | st.floats()
    | ANY_TEXT
    | st.binary()
    | st.dates()
    | st.decimals()
    | st.uuids()
    | st.builds(Hostile)
    | st.builds(object)
    | st.just(sys.stderr)
    | st.builds(HostileError)
)


@st.composite
def cyclic(draw, values):
    """A container that may hold itself."""
    made = draw(st.dictionaries(ANY_TEXT | st.integers(), values, max_size=3))
    if draw(st.booleans()):
        made["self"] = [made]
    return made


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | cyclic(inner),
    max_leaves=8,
)
ARGUMENTS = st.none() | st.lists(VALUES, max_size=4).map(tuple) | cyclic(VALUES) | VALUES
KINDS = st.sampled_from([ValueError, KeyError, HostileError, OSError, UnicodeError, RecursionError])


@st.composite
def errors(draw, messages=ANY_TEXT, depth=3):
    """An exception with a traceback: chained, in groups, in a circle."""
    kind = draw(KINDS)
    error = kind(*draw(st.lists(messages, min_size=1, max_size=2)))
    if depth and draw(st.booleans()):
        error.__cause__ = draw(errors(messages, depth - 1))
    if depth and draw(st.booleans()):
        error.__context__ = draw(errors(messages, depth - 1))
    if depth and sys.version_info >= (3, 11):
        if draw(st.booleans()):
            error.add_note(draw(messages))
        if draw(st.booleans()):
            error = ExceptionGroup(draw(messages), [error, draw(errors(messages, depth - 1))])  # noqa: F821
    if draw(st.booleans()):
        error.__context__ = error
    with contextlib.suppress(type(error)):
        raise error
    return error


EXC_INFO = (
    st.none()
    | st.booleans()
    | errors()
    | errors().map(lambda error: (type(error), error, error.__traceback__))
)
FREE_NAMES = ANY_TEXT.filter(lambda name: name not in vars(logging.makeLogRecord({})))


@st.composite
def records(draw):
    """A record as a logger, a queue or a test may make it."""
    made = {
        "name": draw(
            st.sampled_from(["bank", "", "django.db.backends", "django.request", "\ud800\n"]) | st.none()
        ),
        "msg": draw(ANY_TEXT | VALUES),
        "args": draw(ARGUMENTS),
        "levelno": draw(st.sampled_from([0, 10, 25, 30, 50, 10**9, None])),
        "levelname": draw(st.sampled_from(["INFO", "", "a\nb", None])),
        "created": draw(st.floats() | st.just(1795453200.5)),
        "exc_info": draw(EXC_INFO),
        "stack_info": draw(st.none() | ANY_TEXT),
        "request": draw(VALUES),
        "sql": draw(VALUES),
        "params": draw(VALUES),
        "duration": draw(VALUES),
        "otel.event.name": draw(VALUES),
        **draw(
            st.dictionaries(FREE_NAMES | st.sampled_from(["trace_id", "span_id", "db", "txn_id"]), VALUES)
        ),
    }
    left_out = draw(st.sets(st.sampled_from(sorted(made))))
    return logging.makeLogRecord({name: value for name, value in made.items() if name not in left_out})


MANY = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(records(), st.booleans())
@example(logging.makeLogRecord({"levelno": -1, "created": float("nan"), "txn_id": Hostile()}), False)
def test_any_record(record, filtered):
    """Any record makes one valid line of each formatter and one valid OTLP record, and nothing of ours fails."""
    before = hooks.fault_counts()
    if filtered:
        assert FILTER.filter(record) is True
        if all(type(vars(record)[name]) in (str, float, type(None)) for name in FIELDS):
            record.created = 1795453200.5  # the stock formatter cannot write just any time
            assert record.getMessage() in STOCK.format(record)
    lines_of(record)
    over_otlp(record)
    assert hooks.fault_counts() == before


# --- secrets -------------------------------------------------------------------------------------

SECRETS = st.text(string.ascii_letters + string.digits, min_size=14, max_size=20).filter(
    lambda text: any(each.isdigit() for each in text) and any(each.isalpha() for each in text)
)
FORMS = [
    "password={}",
    "PASSWORD: {}",
    '{{"password": "{}"}}',
    "{{'api_key': '{}'}}",
    "Authorization: Bearer {}",
    "Cookie: sessionid={}; theme=dark",
    "csrftoken={}",
    "GET /login?token={}&next=/",
    "postgresql://bank:{}@db:26257/bank",
    "host=db password={} user=bank",
    "mail to {}@example.com",
    "DETAIL:  Key (email)=({}@example.com) already exists.",
    'duplicate key value violates unique constraint "k"\nDETAIL:  Key (lower(email::text))=({}) already exists.',
]
NAMES = ["password", "api_key", "access_token", "secret", "Authorization", "sessionid", "DB_PASSWORD"]
CALM_TEXT = st.text("abc xyz, 12.\n", max_size=20)


@st.composite
def secret_records(draw):
    """A record with a secret in some of the places where one may be, and the secret."""
    secret = draw(SECRETS)
    form = draw(st.sampled_from(FORMS)).format(secret)
    text = f"{draw(CALM_TEXT)} {form}\n{draw(CALM_TEXT)}"
    name = draw(st.sampled_from(NAMES))
    error = draw(errors(st.just(text)))
    places = {
        "msg": text,
        "args": draw(st.sampled_from([(text,), ([text],), ({"a": text},), {"a": text}, {name: secret}])),
        "exc_info": draw(st.sampled_from([error, (type(error), error, error.__traceback__)])),
        "exc_text": text,
        "stack_info": text,
        name: draw(st.sampled_from([secret, [secret], {"a": secret}, secret.encode()])),
        "note": draw(
            st.sampled_from([text, [text], {"a": (text,)}, {name: secret}, {"a": {name: [secret]}}])
        ),
        "otel.event.name": text,
        "db": text,
        "txn_id": text,
        "sql": f"SELECT '{secret}' WHERE a = 'x'",
        "params": (secret,),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(places)), min_size=1))
    made = {each: places[each] for each in chosen}
    made["name"] = "django.db.backends" if "sql" in chosen else "bank"
    if "sql" not in chosen:
        made.pop("params", None)
    if "args" in made and "msg" not in made:
        made["msg"] = f"x %({next(iter(made['args']))})s" if isinstance(made["args"], dict) else "x %s"
    return logging.makeLogRecord({"levelno": 40, "levelname": "ERROR", **made}), secret


@MANY
@given(secret_records())
def test_secrets_are_nowhere(planted):
    """A secret in message, arguments, extra, named field, exception or statement is in no line and no byte."""
    record, secret = planted
    for line in lines_of(record):
        assert secret not in line
    assert secret.encode() not in over_otlp(record)


@MANY
@given(secret_records())
def test_secrets_are_in_no_line_of_a_stock_formatter(planted):
    """With the filter, no secret of message, arguments, exception or statement is in a stock formatter's line."""
    record, secret = planted
    told = logging.Formatter("%(levelname)s %(message)s %(sql)s %(params)s")
    assert FILTER.filter(record)
    assert secret not in told.format(record)
