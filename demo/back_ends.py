# SPDX-License-Identifier: Apache-2.0
"""The stack that runs beside the demo (`make stack`, or `docker compose up`): what has arrived there."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import trace_choice
from .processes import DemoError
from .run import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

    from .run import Run

#: Seconds for the collector to decide about a trace and to send it.
ARRIVES_WITHIN = 45.0
OFF = {"", "0", "false", "no"}


@dataclass(frozen=True)
class BackEnds:
    """Where the stack is. A variable each says otherwise than its own documentation's ports."""

    otlp: str
    jaeger: str
    loki: str
    prometheus: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Read where the stack is; None where STACK does not ask for one.

        Raises:
            DemoError: nothing answers there.

        """
        if environment.get("STACK", "").strip().lower() in OFF:
            return None
        found = cls(
            environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or "http://127.0.0.1:4318",
            environment.get("JAEGER_URL") or "http://127.0.0.1:16686",
            environment.get("LOKI_URL") or "http://127.0.0.1:3100",
            environment.get("PROMETHEUS_URL") or "http://127.0.0.1:9090",
        )
        for name, address in vars(found).items():
            if not _answers(address):
                raise DemoError(
                    f"STACK={environment['STACK']}, but no {name} answers at {address}: "
                    "start it in another terminal, with `make stack` or `docker compose up`"
                )
        return found

    def check(self, run: Run) -> Check:
        """Wait for the retried transfer that is shown, and compare it with what left the bank."""
        from stack.queries import Jaeger, Loki, Prometheus, StackError, until

        trace = trace_choice.retried(run.telemetry)
        if not trace:
            return Check(False, "The stack has the retried transfer", "there was none")
        trace_id = trace[0].trace_id
        sent = {span.span_id for span in trace}
        records = sum(record.trace_id == trace_id for record in run.telemetry.logs)
        jaeger, loki, prometheus = Jaeger(self.jaeger), Loki(self.loki), Prometheus(self.prometheus)

        def arrived() -> bool:
            stored = {span.span_id for span in jaeger.trace(trace_id)}
            return stored == sent and len(loki.lines(lines_of(trace_id))) == records

        try:
            until(arrived, f"trace {trace_id}", seconds=ARRIVES_WITHIN)
            whole = True
        except StackError:
            whole = False
        spans, lines = jaeger.trace(trace_id), loki.lines(lines_of(trace_id))
        exemplars = {each["labels"]["trace_id"] for each in prometheus.exemplars(DURATIONS)}
        known = exemplars & {span.trace_id for span in run.telemetry.spans}
        return Check(
            whole and bool(known),
            "The stack has the retried transfer whole",
            f"{len(spans)} of {len(sent)} spans in Jaeger, {len(lines)} of {records} log records in Loki; "
            f"in Prometheus, exemplars of {len(known)} of this demo's traces",
            "docs/stack.md, under Troubleshooting.",
        )

    def where(self, run: Run) -> dict[str, str]:
        """Say where the retried transfer that is shown is to be read."""
        trace = trace_choice.retried(run.telemetry)
        if not trace:
            return {}
        trace_id = trace[0].trace_id
        return {
            "Jaeger": f"{self.jaeger}/trace/{trace_id}",
            "  as JSON": f"{self.jaeger}/api/traces/{trace_id}",
            "Loki": lines_of(trace_id),
            "  with curl": f"curl -sG {self.loki}/loki/api/v1/query_range "
            f"--data-urlencode 'query={lines_of(trace_id)}'",
            "Prometheus": f"curl -sG {self.prometheus}/api/v1/query_exemplars "
            f"--data-urlencode 'query={DURATIONS}' -d start=$(($(date +%s) - 3600)) -d end=$(date +%s)",
        }


#: The histogram whose exemplars lead to traces.
DURATIONS = "db_client_operation_duration_seconds_bucket"


def lines_of(trace_id: str) -> str:
    """Return the LogQL query for the lines of a trace of the bank's."""
    return f'{{service_name="bank"}} | trace_id="{trace_id}"'


def _answers(address: str) -> bool:
    """Whether anything speaks HTTP there, whatever it says."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
