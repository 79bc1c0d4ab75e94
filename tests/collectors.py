# SPDX-License-Identifier: Apache-2.0
"""Collectors that misbehave: real sockets, and one thing wrong with what each answers."""

import contextlib
import socket
import threading

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

HTML = b"<!doctype html><title>Sign in</title><p>Welcome to the guest network."


def response(status, body=b"", *headers):
    """Give the bytes of an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def partial(rejected):
    """Give the answer of a collector that refused so many spans."""
    said = trace.ExportTraceServiceResponse()
    said.partial_success.rejected_spans = rejected
    said.partial_success.error_message = "too old"
    return response(200, said.SerializeToString(), "Content-Type: application/x-protobuf")


class Collector:
    """Answers each request by what ``answer`` gives: bytes, or an iterable of them; then it hangs up.

    ``answer`` is called with the number of requests before. None: no answer, the connection stays open.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests = 0
        #: Set with each request that was read.
        self.asked = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self._lock = threading.Lock()

    @property
    def endpoint(self):
        """What OTEL_EXPORTER_OTLP_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _listen(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            if not _read_request(connection):
                return
            with self._lock:
                number, self.requests = self.requests, self.requests + 1
            self.asked.set()
            answer = self.answer(number)
            if answer is None:
                return
            for piece in [answer] if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_RDWR)


def _read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return False
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    while len(body) < length:
        body += connection.recv(65536)
    return True


def refusing_port():
    """Give an endpoint at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"http://127.0.0.1:{gone.getsockname()[1]}"
