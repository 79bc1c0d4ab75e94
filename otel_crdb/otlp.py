# SPDX-License-Identifier: Apache-2.0
"""OTLP exporters, by OpenTelemetry's variables; and a closer look at what a collector answers.

OpenTelemetry's HTTP exporter takes a redirect for success, and a web page too; it reads an answer of any
length, and goes on trying where the process is about to end. It asks through a ``requests.Session``: ours.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from .environment import nonsense_set_aside
from .hooks import CarefulLogger

if TYPE_CHECKING:
    from .delivery import Delivery

logger = CarefulLogger(__name__)

#: Exporter classes by signal and by word of ``OTEL_EXPORTER_OTLP_PROTOCOL``.
EXPORTERS = {
    ("TRACES", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.trace_exporter:OTLPSpanExporter",
    ("TRACES", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.trace_exporter:OTLPSpanExporter",
    ("METRICS", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http.metric_exporter:OTLPMetricExporter",
    ("METRICS", "grpc"): "opentelemetry.exporter.otlp.proto.grpc.metric_exporter:OTLPMetricExporter",
    ("LOGS", "http/protobuf"): "opentelemetry.exporter.otlp.proto.http._log_exporter:OTLPLogExporter",
    ("LOGS", "grpc"): "opentelemetry.exporter.otlp.proto.grpc._log_exporter:OTLPLogExporter",
}
#: What a collector answers, by signal, and the field that says how much it refused.
ANSWERS = {
    "TRACES": ("trace.v1.trace_service_pb2:ExportTraceServiceResponse", "rejected_spans"),
    "METRICS": ("metrics.v1.metrics_service_pb2:ExportMetricsServiceResponse", "rejected_data_points"),
    "LOGS": ("logs.v1.logs_service_pb2:ExportLogsServiceResponse", "rejected_log_records"),
}
#: Bytes of an answer that are read: one that says all there is to say takes a hundred.
LONGEST_ANSWER = 64 * 1024
#: A session of somebody's making, for credentials: it is left as it is.
CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER"
CREDENTIALS_OF_SIGNAL = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}_CREDENTIAL_PROVIDER"


class NotTakenError(requests.RequestException):
    """What was sent was not taken, and sending it again is of no use."""


def protocol(signal: str) -> str:
    """Return the protocol that the variables ask for; ``http/protobuf`` where that cannot be meant."""
    chosen = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    ).strip()
    if (signal, chosen) not in EXPORTERS:
        logger.warning("otel_crdb: OTLP protocol %r is not to be had: http/protobuf is used.", chosen)
        return "http/protobuf"
    return chosen


def exporter(signal: str, chosen: str, delivery: Delivery | None = None) -> Any:
    """Make an exporter; what a delivery hands to it over HTTP goes through a session that looks closer."""
    options: dict[str, Any] = {}
    if delivery is not None and chosen != "grpc" and not has_credential_provider(signal):
        options["session"] = CollectorSession(signal, delivery)
        delivery.looks = True
    if chosen == "grpc":
        options["compression"] = _grpc_compression(signal)
    with nonsense_set_aside():
        return _imported(EXPORTERS[signal, chosen])(**options)


def _grpc_compression(signal: str) -> Any:
    """Read the variable: the gRPC exporter raises on all but ``gzip``, ``none`` among it."""
    compressions = import_module("grpc").Compression  # a large library, and few use it
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")
    word = next(filter(None, map(os.environ.get, variables)), "none").strip().lower()
    if word not in ("gzip", "none"):
        logger.warning("otel_crdb: compression %r is not to be had over gRPC: none is used.", word)
    return compressions.Gzip if word == "gzip" else compressions.NoCompression


def has_credential_provider(signal: str) -> bool:
    """Whether the variables name one for this signal."""
    names = (CREDENTIALS, CREDENTIALS_OF_SIGNAL.format(signal))
    return any(os.environ.get(name) for name in names)


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class CollectorSession(requests.Session):
    """Asks a collector, tells the delivery why it was refused, and keeps to the time that is left."""

    def __init__(self, signal: str, delivery: Delivery) -> None:
        super().__init__()
        self._signal = signal
        self._delivery = delivery

    def request(self, method: str, url: Any, *args: Any, **options: Any) -> requests.Response:
        """Ask; see :meth:`requests.Session.request`.

        Raises:
            NotTakenError: the answer is none of a collector's, or the process ends.

        """
        timeout = float(options.get("timeout") or 10.0)
        left = self._delivery.time_left()
        if left is not None:
            timeout = min(timeout, left)
        if timeout <= 0:
            raise NotTakenError("no time is left")
        options.update(timeout=timeout, stream=True)
        if isinstance(
            self.verify, str
        ):  # else requests lets REQUESTS_CA_BUNDLE win over OpenTelemetry's variable
            options["verify"] = self.verify
        until = time.monotonic() + timeout
        self._delivery.asked = True
        try:
            response = super().request(method, url, *args, **options)
        except requests.RequestException as error:
            self._delivery.why = f"{_place(url)}: {_reason(error)}"
            if left is not None and not isinstance(error, requests.Timeout):
                raise NotTakenError("the process ends, nobody is asked twice") from error
            raise
        self._judge(url, response, _body(response, until))
        return response

    def _judge(self, url: Any, response: requests.Response, body: bytes | None) -> None:
        status, page = response.status_code, "html" in response.headers.get("Content-Type", "").lower()
        if status >= 400:
            self._delivery.why = f"{_place(url)} answered {status} {response.reason}"
        elif status >= 300:
            self._delivery.why = f"{_place(url)} answered with a redirect ({status}), which is not followed"
            raise NotTakenError(self._delivery.why)
        elif page:
            self._delivery.why = f"{_place(url)} answered with a web page: it is no OTLP collector"
            raise NotTakenError(self._delivery.why)
        else:
            self._delivery.why = None
            self._read_refusals(url, body)

    def _read_refusals(self, url: Any, body: bytes | None) -> None:
        """Read how much of what was taken was refused; an unreadable answer refuses nothing."""
        if not body:
            return
        path, field = ANSWERS[self._signal]
        answer = _imported(f"opentelemetry.proto.collector.{path}")()
        try:
            answer.ParseFromString(body)
        except Exception:  # noqa: BLE001 - JSON, or cut off: the status said that it was taken
            return
        refused = int(getattr(answer.partial_success, field))
        if refused > 0:
            self._delivery.rejected += refused
            said = answer.partial_success.error_message[:200]
            self._delivery.why = f"{_place(url)} took the rest and refused {refused}: {said}"


def _body(response: requests.Response, until: float) -> bytes | None:
    """Read an answer that is short and comes in time; None: it was not, and the connection is closed."""
    body = bytearray()
    read = getattr(response.raw, "read1", response.raw.read)
    try:
        while len(body) < LONGEST_ANSWER and time.monotonic() < until:
            piece = read(4096, decode_content=True)
            if not piece:
                response.close()  # read to its end, it goes back to the pool
                return bytes(body)
            body += piece
    except Exception as error:  # noqa: BLE001 - whatever urllib3 makes of a connection that ends here
        logger.debug("otel_crdb: an answer could not be read: %s", error)
    # Not only to the pool: what is still to come would be taken for the next answer.
    response.raw.close()
    return None


def _place(url: Any) -> str:
    """Return an address without what may be secret in it."""
    parts = urlsplit(str(url))
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    scheme = parts.scheme if parts.scheme in ("http", "https") else "…"  # without one, it is the user's name
    return f"{scheme}://{parts.hostname or ''}{port}{parts.path.rpartition('@')[2]}"


def _reason(error: requests.RequestException) -> str:
    """Return what went wrong, without the objects that requests and urllib3 print along."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, ValueError):  # its text quotes the address, or the header: with what is secret in it
        return f"{type(error).__name__}: its address or a header cannot be meant"
    cause: BaseException = error
    while (deeper := _deeper(cause)) is not None:
        cause = deeper
    return f"{type(cause).__name__}: {cause}"[:200] if str(cause) else type(cause).__name__


def _deeper(error: BaseException) -> BaseException | None:
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return reason
    first = error.args[0] if error.args else None
    return first if isinstance(first, BaseException) else error.__cause__
