# SPDX-License-Identifier: Apache-2.0
"""What was asked and paid, held against what arrived."""

from collections import Counter, defaultdict

#: What a payment consists of.
PARTS = ("transaction", "INSERT starts_ledger", "SELECT pg_sleep", "COMMIT")


class Tally:
    """What a bank's processes have told, against the ledger and the answers."""

    def __init__(self, bank, rows):
        self.bank = bank
        #: Committed payments by way.
        self.paid = Counter(way for (way,) in rows)
        self.spans = bank.raw.spans
        self.parts = Counter(map(_part, self.spans))
        self.servers = [span for span in self.spans if span.kind == "SERVER"]

    def check(self, *, lost=False):
        """All that was paid is told, once; `lost`: some of it may be missing."""
        self._ids_are_unique()
        self._processes_are_told_apart()
        if lost:
            return
        traces = Counter(answer["trace"] for answer in self.bank.answers)
        assert Counter(span.trace_id for span in self.servers) == traces, self._picture()
        assert max(traces.values(), default=1) == 1, "a trace id was drawn twice"
        payments = self.paid.total()
        for part in PARTS:
            assert self.parts[part] == payments, (
                f"{part}: {self.parts[part]} of {payments}\n{self._picture()}"
            )
        self._points_add_up(payments)

    def _ids_are_unique(self):
        often = Counter((span.trace_id, span.span_id) for span in self.spans)
        assert max(often.values(), default=1) == 1, "a span was sent twice"
        # Span ids are drawn from 64 bits: two that are alike come from one random state in two processes.
        assert len({span.span_id for span in self.spans}) == len(self.spans), "a span id was drawn twice"

    def _processes_are_told_apart(self):
        by_trace = {span.trace_id: span.process for span in self.servers}
        names = defaultdict(set)
        for answer in self.bank.answers:
            if answer["trace"] in by_trace:
                names[answer["pid"]].add(by_trace[answer["trace"]])
        assert all(len(told) == 1 for told in names.values()), f"a process has two names: {dict(names)}"
        told = [name for names_of_one in names.values() for name in names_of_one]
        assert len(set(told)) == len(told), f"two processes have one name: {dict(names)}"

    def _points_add_up(self, payments):
        telemetry = self.bank.receiver.telemetry
        told = {
            "http.server.request.duration": telemetry.metric("http.server.request.duration"),
            "cockroachdb.client.txn.duration": telemetry.metric("cockroachdb.client.txn.duration"),
            "INSERT": telemetry.metric(
                "db.client.operation.duration", {"db.query.summary": "INSERT starts_ledger"}
            ),
        }
        due = {
            "http.server.request.duration": len(self.bank.answers),
            "cockroachdb.client.txn.duration": payments,
            "INSERT": payments,
        }
        assert told == due, f"data points: {told}, and {due} are due"

    def _picture(self):
        return f"{dict(self.parts)}\n{self.bank.written()[-6000:]}"


def _part(span):
    """Name a span by what it is of a payment."""
    if span.name.startswith("transaction "):
        return "transaction"
    if "pg_sleep" in span.attributes.get("db.query.text", ""):
        return "SELECT pg_sleep"
    return span.name
