# SPDX-License-Identifier: Apache-2.0
"""VerboseFormatter and JSONFormatter: one line a record, by fixed names, that nobody can forge."""

import json
import logging
import re

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.log_utils import std_to_otel
from opentelemetry.sdk.trace import TracerProvider

from otel_crdb import hooks
from otel_crdb.logs import JSONFormatter, VerboseFormatter, formatters
from otel_crdb.logs.record_attributes import severity_of

BOTH = [VerboseFormatter, JSONFormatter]


def record_of(message="paid", *args, level=logging.WARNING, error=None, **extra):
    """Make a record as a logger does."""
    exc_info = (type(error), error, error.__traceback__) if error else None
    logger = logging.getLogger("bank.transfers")
    return logger.makeRecord(
        logger.name, level, "bank/views.py", 7, message, args, exc_info, "transfer", extra
    )


def raised(error):
    """Return an exception with a traceback."""
    with pytest.raises(type(error)) as info:
        raise error
    return info.value


def test_the_line_for_people():
    """Time, level, logger, service, process, ids, message and stack stand on one line, in that order."""
    record = record_of("refused %d", 7, error=raised(ValueError("too\nlate")))
    record.created, record.process = 1795453200.123456, 1234
    ids = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "txn_id": "ef" * 16, "txn_attempt": 2, "db": "default"}
    vars(record).update(ids, service="web", error_code="40001")
    line = VerboseFormatter().format(record)
    assert line.startswith(
        f"2026-11-23T17:00:00.123Z WARNING bank.transfers [web 1234] trace_id={'ab' * 16} span_id={'cd' * 8} "
        f"txn_id={'ef' * 16} attempt=2 db=default error_code=40001 refused 7 | Traceback (most recent call last):\\n"
    )
    assert line.endswith("ValueError: too\\nlate")


def test_what_is_empty_is_left_out():
    """A record with nothing but a message makes a short line and a small object."""
    record = record_of("started")
    record.process = 1
    assert re.fullmatch(r"\S+Z WARNING bank\.transfers \[1\] started", VerboseFormatter().format(record))
    told = json.loads(JSONFormatter().format(record))
    assert sorted(told) == ["attributes", "body", "scope", "severity_number", "severity_text", "timestamp"]


def test_the_object_for_machines():
    """The object has OpenTelemetry's names, ids as hex, and the words of spans among its attributes."""
    record = record_of(
        "refused %d", 7, error=raised(ValueError("a", "b")), account=5, **{"otel.event.name": "bank.refused"}
    )
    record.created = 1795453200.123456
    ids = {"trace_id": "ab" * 16, "span_id": "cd" * 8, "trace_flags": "01", "txn_id": "ef" * 16}
    vars(record).update(ids, service="web", txn_attempt=2, error_code="40001", error_class="retryable")
    told = json.loads(JSONFormatter().format(record))
    attributes = told.pop("attributes")
    assert told == {
        "timestamp": "2026-11-23T17:00:00.123456Z",
        "severity_text": "WARNING",
        "severity_number": 13,
        "body": "refused 7",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "trace_flags": "01",
        "event_name": "bank.refused",
        "resource": {"service.name": "web"},
        "scope": {"name": "bank.transfers"},
    }
    stack = attributes.pop("exception.stacktrace")
    assert stack.endswith("ValueError: ('a', 'b')")
    del attributes["thread.id"]
    assert attributes == {
        "code.file.path": "bank/views.py",
        "code.function.name": "transfer",
        "code.line.number": 7,
        "thread.name": "MainThread",
        "exception.type": "ValueError",
        "exception.message": "('a', 'b')",
        "cockroachdb.txn.id": "ef" * 16,
        "cockroachdb.txn.attempt": 2,
        "db.response.status_code": "40001",
        "cockroachdb.error.class": "retryable",
        "account": 5,
    }


def test_severities_are_those_of_the_convention():
    """Each level has the number that OpenTelemetry's own handler gives it."""
    record = record_of()
    for level in range(70):
        record.levelno = level
        assert severity_of(record)[0] == std_to_otel(level).value


@pytest.mark.parametrize("formatter", BOTH)
def test_ids_without_a_filter(formatter):
    """A formatter finds the ids by itself where no filter has set them."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("application")
    with tracer.start_as_current_span("work") as span:
        line = formatter().format(record_of())
    assert trace.format_trace_id(span.get_span_context().trace_id) in line


FORGERIES = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
TRICKS = ["\x1b[2K\x1b[31m", "\x9b31m", "\x08" * 9, "\x00", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c"]


@pytest.mark.parametrize("formatter", BOTH)
@pytest.mark.parametrize("mark", FORGERIES + TRICKS, ids=ascii)
def test_no_line_can_be_forged(formatter, mark):
    """Line breaks, controls and bidirectional marks are escapes: in message, name, fields, stack and extra."""
    forged = f"x{mark}2026-11-23T17:00:00.123Z INFO root [1] all is well"
    record = record_of(forged, error=raised(ValueError(forged)), txn_id=forged, field=forged, **{forged: 1})
    record.name, record.levelname, record.service = forged, forged, forged
    record.stack_info = forged
    line = formatter().format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize("formatter", BOTH)
def test_letters_of_all_languages_stay(formatter):
    """What is no trick stays readable: umlauts, Arabic, emoji, a backslash, a quote."""
    line = formatter().format(record_of('für "بنك" 🏦 C:\\bank'))
    told = json.loads(line)["body"] if formatter is JSONFormatter else line
    assert 'für "بنك" 🏦 C:\\bank' in told


@pytest.mark.parametrize("formatter", BOTH)
@pytest.mark.parametrize("letter", ["x", "ü", "\n", "🏦"])
def test_lines_are_bounded(formatter, letter):
    """No line is longer than its limit in bytes, and a cut object is an object with ids and severity."""
    huge = letter * 200_000
    record = record_of(huge, error=raised(ValueError(huge)), **{f"field{n}": huge for n in range(200)})
    record.trace_id = "ab" * 16
    for limit in (65536, 4096, 1024):
        line = formatter(limit=limit).format(record)
        assert len(line.encode()) <= limit
        assert "ab" * 16 in line
        if formatter is JSONFormatter:
            assert json.loads(line)["severity_number"] == 13
    assert len(formatter(limit=1).format(record).encode()) <= 1024


def test_values_that_json_does_not_know():
    """Numbers that JSON lacks, cycles, bytes, sets, foreign objects and lone surrogates become plain values."""
    cycle = [1]
    cycle.append(cycle)
    record = record_of(
        "\ud800",
        nan=float("nan"),
        inf=[float("-inf")],
        huge=10**5000,
        cycle=cycle,
        raw=b"abc",
        some={3},
        thing=object(),
        nested={"a": {"password": "hunter2"}, 5: None},
        surrogate="\udfff",
    )
    line = JSONFormatter().format(record)
    told = json.loads(line, parse_constant=pytest.fail)
    attributes = told["attributes"]
    assert told["body"] == "?"
    assert attributes["nan"] == "NaN"
    assert attributes["inf"] == ["-Infinity"]
    assert attributes["huge"] == f"<int of {(10**5000).bit_length()} bits>"
    assert attributes["cycle"] == [1, "…"]
    assert attributes["some"] == [3]
    assert attributes["thing"] == "<builtins.object>"
    assert attributes["nested"] == {"a": {"password": "…"}, "5": None}
    assert attributes["surrogate"] == "?"


@pytest.mark.parametrize("formatter", BOTH)
def test_the_writing_leaves_the_record_alone(formatter):
    """Message, arguments and exception are for the next handler as they were."""
    error = raised(ValueError("x"))
    record = record_of("password=%s", "hunter2", error=error)
    formatter().format(record)
    assert (record.msg, record.args, record.exc_info[1], record.exc_text) == (
        "password=%s",
        ("hunter2",),
        error,
        None,
    )


@pytest.mark.parametrize("formatter", BOTH)
def test_a_defect_of_ours_loses_no_line(formatter, monkeypatch):
    """Where our own code fails, a line says which logger had something to say, and the fault is counted."""
    monkeypatch.setattr(formatters, "correlate", None)
    monkeypatch.setitem(hooks.faults, formatter.__name__, 1)
    line = formatter().format(record_of())
    assert "WARNING bank.transfers otel_crdb could not write this record" in line
    assert hooks.faults[formatter.__name__] == 2


@pytest.mark.parametrize("formatter", BOTH)
def test_it_takes_what_logging_hands_to_formatters(formatter):
    """The arguments of logging.Formatter are taken, and have no effect."""
    plain = formatter().format(record_of())
    assert formatter("%(message)s", "%H", "{", validate=True, defaults={}).format(record_of())[25:] != ""
    assert plain
