# SPDX-License-Identifier: Apache-2.0
"""instrument() alone: every record has its ids, and what reaches the root logger leaves over OTLP, once."""

import logging
import logging.config
import logging.handlers
import os
import queue
import subprocess
import sys
import textwrap
import timeit

import pytest
from django.db import transaction
from opentelemetry import trace

from demo.receiver import Receiver
from otel_crdb import hooks, signals
from otel_crdb.logs import OTLPHandler, fields, python_logging

from .processes import environment_of
from .project.models import Account
from .telemetry import Telemetry


class Kept(logging.Handler):
    """Keeps the records that it is handed."""

    def __init__(self, level=logging.NOTSET):
        super().__init__(level)
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def kept():
    """What the handlers of the root logger are handed."""
    kept = Kept()
    logging.root.addHandler(kept)
    yield kept
    logging.root.removeHandler(kept)


@pytest.fixture
def log():
    """A logger that lets everything through."""
    logger = logging.getLogger("bank.transfers")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.handlers, logger.disabled = True, [], False


@pytest.fixture
def plain():
    """CallHandlers is the very method that it was when all is over."""
    before = logging.Logger.callHandlers
    yield before
    assert logging.Logger.callHandlers is before


@pytest.fixture
def telemetry(plain):
    """Instrumented, with the records of Python's logging."""
    with Telemetry(python_logs=True) as telemetry:
        yield telemetry


def bodies(telemetry):
    """Return what left as records of Python's logging."""
    return [record.body for record in telemetry.log_records if record.body]


@pytest.mark.usefixtures("accounts")
def test_ids_on_every_record(telemetry, log, kept):
    """A record has the ids of its trace and transaction with no filter, and the statement's fields have none."""
    tracer = telemetry.tracer_provider.get_tracer("application")
    with tracer.start_as_current_span("work") as span, transaction.atomic():
        Account.objects.count()
        log.info("paid")
    record = kept.records[-1]
    assert record.trace_id == trace.format_trace_id(span.get_span_context().trace_id)
    assert len(record.txn_id) == 32
    assert record.db == "default"
    assert not {"sql", "params"} & set(vars(record))
    (sent,) = [each for each in telemetry.log_records if each.body == "paid"]
    assert sent.attributes["cockroachdb.txn.id"] == record.txn_id
    assert f"{sent.span_id:016x}" == record.span_id


def test_uninstrument_ends_it(plain, log, kept):
    """After uninstrument() a record has no fields and goes nowhere; instrumented again, it goes out once."""
    with Telemetry(python_logs=True) as telemetry:
        log.info("one")
    log.info("two")
    with telemetry:
        log.info("three")
    assert bodies(telemetry) == ["one", "three"]
    assert [hasattr(record, "trace_id") for record in kept.records] == [True, False, True]


@pytest.mark.parametrize("options", [{"python_logs": False}, {"logs": False}])
def test_it_can_be_declined(plain, log, kept, options):
    """With python_logs or logs switched off records have their ids, and do not leave."""
    with Telemetry(**options) as telemetry:
        log.error("kept")
    assert not telemetry.log_records
    assert kept.records[-1].txn_id == ""


def test_what_does_not_reach_the_root_does_not_leave(telemetry, log):
    """A logger that does not propagate, as servers' access logs do not, keeps its records to itself."""
    log.info("out")
    log.propagate = False
    log.info("kept")
    child = logging.getLogger("bank.transfers.child")
    child.info("kept too")
    logging.getLogger().warning("root's own")
    assert bodies(telemetry) == ["out", "root's own"]


def test_levels_filters_and_switches_of_loggers_decide(telemetry, log):
    """What a level, a logger's filter or logging.disable() keeps back does not leave."""
    log.setLevel(logging.WARNING)
    log.info("below")
    log.addFilter(lambda record: record.msg != "filtered")
    log.warning("filtered")
    log.warning("out")
    log.disabled = True
    log.error("disabled")
    log.filters.clear()
    assert bodies(telemetry) == ["out"]


def test_it_survives_dict_config(telemetry, log):
    """A LOGGING that is set up later changes nothing; a logger that it disables is silent."""
    with_root = {"version": 1, "root": {"handlers": []}}
    before = list(logging.root.handlers)
    try:
        logging.config.dictConfig({**with_root, "disable_existing_loggers": False})
        log.info("out")
        logging.config.dictConfig({**with_root, "disable_existing_loggers": True})
        log.info("disabled")
    finally:
        logging.root.handlers = before
        for logger in list(logging.root.manager.loggerDict.values()):
            logger.disabled = False
    assert bodies(telemetry) == ["out"]


def test_a_handler_on_the_way_decides(telemetry, log):
    """Where the application has put an OTLPHandler on the way, its level and filters hold, and nothing doubles."""
    handler = OTLPHandler("WARNING")
    handler.addFilter(lambda record: record.msg != "filtered")
    log.addHandler(handler)
    log.info("below")
    log.warning("filtered")
    log.warning("out")
    assert bodies(telemetry) == ["out"]


def test_a_queue_and_its_listener(telemetry, log):
    """A record that a queue hands on has left once, before its listener with a handler of ours sees it."""
    waiting = queue.SimpleQueue()
    log.addHandler(logging.handlers.QueueHandler(waiting))
    log.info("out")
    OTLPHandler().handle(waiting.get())
    assert bodies(telemetry) == ["out"]


def test_assert_logs(telemetry, log):
    """Unittest's assertLogs sees its records, with ids, and they do not leave."""
    from unittest import TestCase

    with TestCase().assertLogs("bank.transfers") as caught:
        log.info("seen")
    assert caught.output == ["INFO:bank.transfers:seen"]
    assert not bodies(telemetry)


# --- beside others -------------------------------------------------------------------------------


def wrap(seen):
    """Wrap the method as Sentry does, and return what it wrapped."""
    theirs = logging.Logger.callHandlers

    def patched(self, record):
        try:
            return theirs(self, record)
        finally:
            seen.append(record)

    logging.Logger.callHandlers = patched
    return theirs


def test_somebody_wraps_it_later(plain, log, kept):
    """What somebody has put around ours stays when ours ends, and nothing is doubled when it begins again."""
    seen = []
    telemetry = Telemetry(python_logs=True)
    try:
        for number in range(3):
            with telemetry:
                if not number:
                    wrap(seen)
                    theirs = logging.Logger.callHandlers
                log.info("n%d", number)
            assert logging.Logger.callHandlers is theirs
            log.info("between")
    finally:
        logging.Logger.callHandlers = plain
    assert bodies(telemetry) == ["n0", "n1", "n2"]
    assert len(seen) == len(kept.records) == 6
    assert [hasattr(record, "trace_id") for record in kept.records] == [True, False] * 3


@pytest.mark.parametrize("sentry_first", [True, False])
def test_beside_sentry(sentry_first):
    """Sentry's breadcrumbs and events, and our records, are the same in either order."""
    pytest.importorskip("sentry_sdk")
    started = ["sentry_sdk.init(transport=keep, default_integrations=True)", "telemetry.__enter__()"]
    code = f"""
        import logging, os
        import sentry_sdk
        import django
        django.setup()
        from tests.telemetry import Telemetry
        kept = []
        def keep(event, hint):
            kept.append(event)
        telemetry = Telemetry(python_logs=True)
        {started[not sentry_first]}
        {started[sentry_first]}
        log = logging.getLogger("bank")
        log.warning("first")
        log.error("second")
        telemetry.__exit__()
        log.error("third")
        events = [event["logentry"]["message"] for event in kept]
        print(events, [record.body for record in telemetry.log_records])
        print([each["message"] for each in kept[0]["breadcrumbs"]["values"]])
    """
    code = textwrap.dedent(code).replace("transport=keep", "dsn='http://a@127.0.0.1:9/1', before_send=keep")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['second', 'third'] ['first', 'second']", "['first']"]


# --- what must not harm --------------------------------------------------------------------------


def test_a_defect_of_ours_loses_nothing(telemetry, log, kept, monkeypatch):
    """Where our own code fails, handlers get the record, and the fault is counted."""
    monkeypatch.setattr(python_logging, "correlate", None)
    monkeypatch.setitem(hooks.faults, "Logger.callHandlers", 1)
    log.info("paid")
    assert kept.records[-1].msg == "paid"
    assert hooks.faults["Logger.callHandlers"] == 2


def test_a_handler_that_raises_raises_as_before(telemetry, log):
    """An exception of the application's handler reaches who logs, as without us."""

    class Raising(logging.Handler):
        def emit(self, record):
            raise LookupError("the application's own")

    log.addHandler(Raising())
    with pytest.raises(LookupError):
        log.info("x")


def test_the_caller_is_the_applications(telemetry, log, kept):
    """File, line and function of a record are those of who logged."""
    log.info("here")
    record = kept.records[-1]
    assert (record.pathname, record.funcName) == (__file__, "test_the_caller_is_the_applications")


def test_the_fields_cost_little(plain, log):
    """Fields and hook cost less than ten times a record that goes nowhere (it is about twice)."""
    log.propagate, log.handlers = False, [logging.NullHandler()]

    def seconds():
        return min(timeit.repeat(lambda: log.info("paid %d", 7), number=2000, repeat=5))

    bare = seconds()
    with Telemetry(python_logs=True):
        assert signals.current is not None
        assert seconds() < bare * 10


def test_every_field_is_there(telemetry, log, kept):
    """Each field is on each record, whoever made it."""
    log.handle(logging.makeLogRecord({"name": "bank.transfers", "levelno": 20}))
    assert set(fields.TRACE_FIELDS) <= set(vars(kept.records[-1]))


def test_a_process_that_only_instruments():
    """A process with instrument() alone, and a fork of it, send their lines to a collector, each with its ids."""
    code = """
        import logging, os, django
        django.setup()
        import otel_crdb
        otel_crdb.instrument()
        from opentelemetry import trace
        log = logging.getLogger("bank.transfers")
        with trace.get_tracer("application").start_as_current_span("work") as span:
            log.warning("parent password=hunter2", extra={"account": 5, "password": "hunter2"})
            print(trace.format_trace_id(span.get_span_context().trace_id), flush=True)
            child = os.fork()
            if not child:
                log.warning("child")
                os._exit(not otel_crdb.flush())
        assert os.waitpid(child, 0)[1] == 0
        assert otel_crdb.flush()
    """
    with Receiver() as receiver:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=environment_of(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_SERVICE_NAME="bank"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    records = sorted(receiver.telemetry.logs, key=lambda record: record.body, reverse=True)
    assert [record.body for record in records] == ["parent password=…", "child"]
    assert {record.trace_id for record in records} == {done.stdout.strip()}
    assert records[0].attributes["account"] == 5
    assert "hunter2" not in str(records)
