# SPDX-License-Identifier: Apache-2.0
"""So many transactions in: so many spans in Jaeger, records in Loki and points in Prometheus, to the last one."""

import pytest

from e2e.arrivals import Arrived, Wire, assert_all_arrived, wait_until_drained
from e2e.sending import Sender
from otel_crdb.testing import server
from stack.queries import Loki

TRANSACTIONS = 300


@pytest.fixture(scope="module")
def counted(stack, tmp_path_factory):
    """Two applications at once, one by HTTP and one by gRPC; give their journals and the agent's counts before."""
    folder = tmp_path_factory.mktemp("sending")
    wait_until_drained(stack)
    before = Wire(stack).all()
    grpc = f"http://127.0.0.1:{stack.ports.otlp_grpc}"
    with (
        server() as database,
        Sender(folder, database.url, stack.agent.address, "counted-http", TRANSACTIONS) as first,
        Sender(
            folder,
            database.url,
            grpc,
            "counted-grpc",
            TRANSACTIONS,
            OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        ) as second,
    ):
        yield (first.journal(), second.journal()), before


def test_each_has_done_what_it_was_told(counted):
    """Of so many transactions a fifth was refused once and run again: what follows counts retries too."""
    for journal in counted[0]:
        assert (journal.transactions, journal.retries) == (TRANSACTIONS, TRANSACTIONS // 5)
        assert journal.dropped == {}


def test_each_span_record_and_point_has_arrived(counted, stack):
    """What the back ends have of each application is what follows from its journal, nothing less and nothing more."""
    for journal in counted[0]:
        assert_all_arrived(stack, journal)


def test_each_is_taken_in_and_acknowledged_once(counted, stack):
    """On the wire too nothing comes twice: the agent took in, and the back ends acknowledged, as many as there are."""
    journals, before = counted
    wait_until_drained(stack)
    counts = Wire(stack).all() - before
    spans = sum(journal.spans.total() for journal in journals)
    records = sum(journal.records.total() for journal in journals)
    assert counts["receiver_accepted spans"] == counts["exporter_sent spans"] == spans
    assert counts["receiver_accepted log_records"] == counts["exporter_sent log_records"] == records
    assert counts["receiver_accepted metric_points"] == counts["exporter_sent metric_points"] > 0
    assert not [name for name in counts if "refused" in name or "failed" in name]


def test_each_transaction_is_a_trace_of_its_own_and_has_its_line(counted, stack):
    """As many whole traces as transactions, of one or two attempts; and each number's line is there once."""
    for journal in counted[0]:
        once = journal.transactions - journal.retries
        assert Arrived(stack, journal.service).attempts_of_traces() == {1: once, 2: journal.retries}
        lines = Loki(stack.loki.address).lines(f'{{service_name="{journal.service}"}} |= "moved"')
        assert sorted(int(line.text.split()[1]) for line in lines) == list(range(journal.transactions))
