# SPDX-License-Identifier: Apache-2.0
"""An OTLP/HTTP receiver: it decodes what exporters send, keeps it, and hands the bodies on.

What it answers follows OTLP's specification, "OTLP/HTTP Response". Of the two encodings it takes
protobuf, which is what the exporters send unless they are told otherwise.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

from otel_crdb.testing.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

PROTOBUF = "application/x-protobuf"
LARGEST_BODY = 64 * 2**20
#: Path: signal, what is asked, what is answered.
SERVICES: dict[str, tuple[str, type, type]] = {
    "/v1/traces": ("traces", trace.ExportTraceServiceRequest, trace.ExportTraceServiceResponse),
    "/v1/metrics": ("metrics", metrics.ExportMetricsServiceRequest, metrics.ExportMetricsServiceResponse),
    "/v1/logs": ("logs", logs.ExportLogsServiceRequest, logs.ExportLogsServiceResponse),
}


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that cannot be taken, and the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Receiver:
    """A receiver on a free loopback port, as a context manager.

    `telemetry` holds all that came, decoded. `requests` counts export requests by signal, and `received`
    their bytes as they came over the wire. `hand_on` is called with path, headers and body of each.
    """

    def __init__(self, hand_on: Callable[[str, dict[str, str], bytes], None] | None = None) -> None:
        self.telemetry = Telemetry()
        self.requests: Counter[str] = Counter()
        self.received = 0
        self._hand_on = hand_on
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="otlp-receiver"
        )

    @property
    def endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT has to be."""
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """Take in one export request and return the answer's body.

        Raises:
            Refused: it is none.

        """
        signal, request_type, response_type = SERVICES[path]
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != PROTOBUF:
            raise Refused(415, f"content type {media_type!r}: only {PROTOBUF} is taken")
        request = request_type()
        try:
            request.ParseFromString(_unpacked(headers.get("content-encoding", ""), body))
        except DecodeError as error:
            raise Refused(400, f"not an {request_type.__name__}: {error}") from error
        self.telemetry.add(signal, request)
        with self._lock:
            self.requests[signal] += 1
            self.received += len(body)
        if self._hand_on is not None:
            self._hand_on(path, headers, body)
        return response_type().SerializeToString()


def _unpacked(encoding: str, body: bytes) -> bytes:
    """Undo the compression, but not of a bomb."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Refused(415, f"content encoding {encoding!r}: only gzip is known")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, LARGEST_BODY)
    except zlib.error as error:
        raise Refused(400, f"not gzip: {error}") from error
    if unpacker.unconsumed_tail:
        raise Refused(413, f"more than {LARGEST_BODY} bytes when unpacked")
    if not unpacker.eof:
        raise Refused(400, "gzip that ends too early")
    return unpacked


class _Handler(BaseHTTPRequestHandler):
    """One connection of an exporter."""

    protocol_version = "HTTP/1.1"
    # Nagle's algorithm would hold a small answer back until the exporter acknowledges.
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            if path not in SERVICES:
                raise Refused(404, f"{path} is none of {', '.join(SERVICES)}")
            answer = self.server.receiver.take(path, headers, self._body(headers))
        except Refused as refused:
            self._refuse(refused)
        else:
            self._answer(200, answer)

    def do_GET(self) -> None:
        self._refuse(Refused(405, "telemetry is sent with POST"))

    def _body(self, headers: dict[str, str]) -> bytes:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise Refused(411, "a Content-Length is needed")
        if int(length) > LARGEST_BODY:
            raise Refused(413, f"more than {LARGEST_BODY} bytes")
        return self.rfile.read(int(length))

    def _refuse(self, refused: Refused) -> None:
        # The body may not have been read: what follows on this connection could be anything.
        self.close_connection = True
        self._answer(refused.status, Status(message=str(refused)).SerializeToString())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name for it
        """Say nothing: the demo's terminal is for its report."""


class _Server(ThreadingHTTPServer):
    """The listening socket, and the connections that came from it."""

    daemon_threads = False  # joined on close, after hang_up() has ended what they wait for

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = receiver
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that exporters keep open."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # gone by itself
                connection.shutdown(socket.SHUT_RDWR)
