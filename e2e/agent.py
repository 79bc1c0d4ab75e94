# SPDX-License-Identifier: Apache-2.0
"""The agent on `collector/agent.yaml`, and back ends that keep each byte it sends: for tests of its rules.

Nothing of the files is replaced: where the agent sends to are variables of theirs.
"""

from __future__ import annotations

import gzip
import os
import threading
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import yaml
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from demo.receiver import PROTOBUF, Receiver
from otel_crdb.testing.otlp import attributes_of
from stack import queries, servers

# Servers are forked here: what gRPC does in a child then may break the child. Read when it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
import grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from typing_extensions import Self

#: Seconds. What is waited for comes in one or two; the rest is for a busy machine.
WITHIN = 60.0
_EXPORT_LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_EXPORT_TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


_REQUESTS: dict[str, Any] = {
    "/v1/traces": trace.ExportTraceServiceRequest,
    "/v1/logs": logs.ExportLogsServiceRequest,
    "/v1/metrics": metrics.ExportMetricsServiceRequest,
}


def _each(groups: Any, scopes: str, items: str) -> list[tuple[Any, Any]]:
    """Return what is in a request, each with its resource."""
    return [
        (group.resource, item)
        for group in groups
        for scope in getattr(group, scopes)
        for item in getattr(scope, items)
    ]


class BackEnds:
    """What stands where Jaeger, Loki and Prometheus stand: a context manager on free ports of loopback.

    `spans`, `records` and `metrics` are OTLP's own messages, each with its resource.
    `sent` are all bytes that came, unpacked, and `requests` the same decoded.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[Any, Any]] = []
        self.records: list[tuple[Any, Any]] = []
        self.metrics: list[tuple[Any, Any]] = []
        self.sent = bytearray()
        self.requests: list[Any] = []
        self._lock = threading.Lock()
        self._http = Receiver(hand_on=self._take_http)
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        self._grpc.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.trace.v1.TraceService",
                    {"Export": grpc.unary_unary_rpc_method_handler(self._take_traces)},
                )
            ]
        )
        self._port = self._grpc.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self._grpc.start()
        self._http.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.__exit__(None, None, None)
        self._grpc.stop(grace=None).wait()

    @property
    def variables(self) -> dict[str, str]:
        """Return what the agent has to be told to send here."""
        return {
            "AGENT_JAEGER": f"127.0.0.1:{self._port}",
            "AGENT_LOKI": self._http.endpoint,
            "AGENT_PROMETHEUS": self._http.endpoint,
        }

    @property
    def otlp_endpoint(self) -> str:
        """Return what OTEL_EXPORTER_OTLP_ENDPOINT has to be to send here past the agent."""
        return self._http.endpoint

    def _take_traces(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self._take("/v1/traces", body)
        return trace.ExportTraceServiceResponse().SerializeToString()

    def _take_http(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self._take(path, gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)

    def _take(self, path: str, body: bytes) -> None:
        request = _REQUESTS[path].FromString(body)
        with self._lock:
            self.sent += body
            self.requests.append(request)
            if path == "/v1/traces":
                self.spans.extend(_each(request.resource_spans, "scope_spans", "spans"))
            elif path == "/v1/logs":
                self.records.extend(_each(request.resource_logs, "scope_logs", "log_records"))
            else:
                self.metrics.extend(_each(request.resource_metrics, "scope_metrics", "metrics"))

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until the condition holds."""
        queries.until(condition, what, seconds=WITHIN)


class Agent:
    """The running agent, and how it is spoken to. What it sends comes to `back_ends`."""

    def __init__(
        self,
        folder: Path,
        back_ends: BackEnds,
        variables: Mapping[str, object] = {},
        more: Sequence[Path] = (),
    ) -> None:
        self.back_ends = back_ends
        self.ports = servers.Ports.free()
        self.server = servers.agent(
            folder, self.ports, variables={**back_ends.variables, **variables}, more=more
        )

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.__exit__(*error)  # type: ignore[arg-type]

    @property
    def endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT has to be."""
        return self.server.address

    def send(self, request: Any) -> None:
        """Send one export request, as an application would."""
        send(self.endpoint, request)

    @staticmethod
    def send_by_grpc(address: str, request: Any) -> None:
        """Send one export request by gRPC, as CockroachDB does."""
        method = _EXPORT_LOGS if isinstance(request, logs.ExportLogsServiceRequest) else _EXPORT_TRACES
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary(method)(request.SerializeToString(), timeout=WITHIN, wait_for_ready=True)

    def counted(self, name: str, **labels: str) -> float:
        """Return the sum of the agent's own counters of this name and these labels."""
        return queries.Agent(f"http://127.0.0.1:{self.ports.agent_metrics}/metrics").total(name, **labels)


class Sink:
    """An OTLP/HTTP receiver whose senders each have a path of their own: `came[path]` is what came there.

    That is by id or name what can be read of a span, a record or a metric.
    """

    def __init__(self) -> None:
        self.came: defaultdict[str, dict[str, str]] = defaultdict(dict)
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                _, name, _, signal = self.path.split("/")
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.came[name].update(_READ[signal](body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _read_spans(body: bytes) -> dict[str, str]:
    groups = trace.ExportTraceServiceRequest.FromString(body).resource_spans
    read = {
        span.span_id.hex(): f"{resource} {span}" for resource, span in _each(groups, "scope_spans", "spans")
    }
    scopes = "".join(str(scope.scope) for group in groups for scope in group.scope_spans)
    return {**read, "scopes": scopes}


def _read_logs(body: bytes) -> dict[str, str]:
    groups = logs.ExportLogsServiceRequest.FromString(body).resource_logs
    return {
        attributes_of(record.attributes)["record"]: f"{resource} {record}"
        for resource, record in _each(groups, "scope_logs", "log_records")
    }


def _read_metrics(body: bytes) -> dict[str, str]:
    groups = metrics.ExportMetricsServiceRequest.FromString(body).resource_metrics
    return {metric.name: str(metric) for _, metric in _each(groups, "scope_metrics", "metrics")}


_READ = {"traces": _read_spans, "logs": _read_logs, "metrics": _read_metrics}


def send(endpoint: str, request: Any) -> None:
    """Send one export request by OTLP/HTTP."""
    (path,) = (path for path, kind in _REQUESTS.items() if isinstance(request, kind))
    with urllib.request.urlopen(
        urllib.request.Request(f"{endpoint}{path}", request.SerializeToString(), {"Content-Type": PROTOBUF}),
        timeout=WITHIN,
    ) as answer:
        assert answer.status == 200, answer.status


def load(path: Path) -> dict[str, Any]:
    """Return a file of the collector's, with `$$` as the dollar it means."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text().replace("$$", "$"))
    return loaded


def any_value(value: Any) -> AnyValue:
    """Return a value as OTLP's."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, (list, tuple)):
        return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
    return AnyValue(string_value=value)


def pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    """Return attributes as OTLP's."""
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]
