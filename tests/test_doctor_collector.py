# SPDX-License-Identifier: Apache-2.0
"""What is found out of an endpoint that does not take telemetry: each asked in truth, over sockets."""

import contextlib
import socket
import ssl
import subprocess
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from demo.receiver import Receiver
from otel_crdb.doctor.collector import Target, trouble_with

from .processes import free_port

SECRET = "Bearer-s3cret"


@contextlib.contextmanager
def answering(status, context=None, **headers):
    """A web server that gives every request the same answer; the headers of the last request, its endpoint."""
    asked = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.update(self.headers)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Say nothing of a client that speaks another language."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def grpc_collector():
    """A collector that speaks gRPC; its address."""

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):  # noqa: N802 - the name that the protocol has
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def taking_connections(then):
    """A server that does one thing with each connection; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    link, _ = listener.accept()
                except OSError:
                    return
                then(link)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A server's side of TLS, with a certificate that nobody trusts; the certificate."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The proxies of this machine are no part of it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(endpoint, *, grpc=False, path="/v1/traces", timeout=5, sent=False, headers=()):
    """Ask an endpoint as an exporter of that protocol would."""
    return trouble_with(Target(endpoint, grpc, dict(headers), path), b"", timeout, sent=sent)


def test_collector_that_takes_it_is_no_trouble():
    """OTLP's own answer, over HTTP and over gRPC, is no trouble."""
    with Receiver() as receiver:
        assert ask(f"{receiver.endpoint}/v1/traces") is None
    with grpc_collector() as endpoint:
        assert ask(endpoint, grpc=True) is None


@pytest.mark.parametrize("over_grpc", [False, True])
def test_nobody_listens(over_grpc):
    """A refused connection is told with host and port."""
    port = free_port()
    trouble = ask(f"http://127.0.0.1:{port}/v1/traces", grpc=over_grpc)
    assert trouble.what == f"nobody listens at 127.0.0.1:{port}: the connection is refused"
    assert f"start the collector at 127.0.0.1:{port}" in trouble.mend


def test_unknown_host():
    """A name that does not resolve is told as one."""
    assert "the host name collector.invalid is not known here" in ask("http://collector.invalid:4318").what


@pytest.mark.parametrize("endpoint", ["localhost:4318:", "http://127.0.0.1:port", "http://", "ftp://a/b"])
def test_what_is_no_endpoint(endpoint):
    """What is no URL with http or https, or has a port that is no number, is told before anything is asked."""
    assert "no URL of the form http://host:port" in ask(endpoint).what


@pytest.mark.parametrize(
    ("status", "what", "mend"),
    [
        (401, "wants credentials", "OTEL_EXPORTER_OTLP_HEADERS=authorization"),
        (403, "credentials are not good", "OTEL_EXPORTER_OTLP_HEADERS=authorization"),
        (413, "too large", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        (415, "does not take protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        (429, "takes no more just now", "OTEL_TRACES_SAMPLER"),
        (500, "answers 500", "collector's log"),
        (503, "overloaded, or not ready", "collector's log"),
    ],
)
def test_refusal_is_told_by_its_status(status, what, mend):
    """The status is told with what it means and what helps; the headers are sent along, and not told."""
    with answering(status) as (endpoint, asked):
        trouble = ask(f"{endpoint}/v1/traces", headers={"authorization": SECRET}.items())
    assert f"answers {status}" in trouble.what
    assert what in trouble.what
    assert mend in trouble.mend
    assert asked["authorization"] == SECRET
    assert SECRET not in repr(trouble)


def test_wrong_path_is_told_by_what_is_wrong_with_it():
    """A signal's path twice, none at all, or another service: each has its own line that mends it."""
    with Receiver() as receiver:
        place = receiver.endpoint
        twice = ask(f"{place}/v1/traces/v1/traces")
        none = ask(place, path="/v1/logs")
    assert twice.mend == f"OTEL_EXPORTER_OTLP_ENDPOINT={place} (each signal's path is added to it)"
    assert none.mend.startswith(f"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT={place}/v1/logs ")
    with answering(404) as (endpoint, _):
        other = ask(f"{endpoint}/v1/traces")
    assert other.mend.startswith("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("status", "headers", "what"),
    [
        (302, {"Location": "https://login.example/?next=secret"}, "a redirect to https://login.example"),
        (200, {"Content_Type": "text/html"}, "answers with text/html: that is no OTLP receiver"),
    ],
)
def test_what_exporters_take_for_success_and_is_none(status, headers, what):
    """A redirect and a web page are told, although the exporter says that it was sent."""
    with answering(status, **headers) as (endpoint, _):
        trouble = ask(f"{endpoint}/v1/traces", sent=True)
    assert what in trouble.what
    assert "secret" not in trouble.what


def test_grpc_port_with_http_protocol():
    """A gRPC server is known by its first frame, and both ways out are told."""
    with grpc_collector() as endpoint:
        trouble = ask(f"{endpoint}/v1/traces")
    assert "speaks gRPC (HTTP/2), and what is sent is http/protobuf" in trouble.what
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc" in trouble.mend


def test_http_port_with_grpc_protocol():
    """A web server is known by its status line, and both ways out are told."""
    with Receiver() as receiver:
        trouble = ask(receiver.endpoint, grpc=True)
    assert "speaks HTTP/1.1, and what is sent is gRPC" in trouble.what
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in trouble.mend


@pytest.mark.parametrize("over_grpc", [False, True])
def test_https_where_http_is_spoken(over_grpc):
    """A server without TLS is told as one, with its address as it should be."""
    with Receiver() as receiver:
        place = receiver.endpoint.partition("://")[2]
        trouble = ask(f"https://{place}/v1/traces", grpc=over_grpc)
    assert "does not speak TLS" in trouble.what
    assert trouble.mend == f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{place}"


@pytest.mark.parametrize("over_grpc", [False, True])
def test_http_where_tls_is_spoken(tls, over_grpc):
    """A server with TLS is told as one, with its address as it should be."""
    with answering(200, tls[0]) as (endpoint, _):
        trouble = ask(endpoint.replace("https", "http") + "/v1/traces", grpc=over_grpc)
    assert "speaks TLS, and the endpoint begins with http:" in trouble.what
    assert trouble.mend == f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}"


def test_certificate_that_is_not_trusted(tls, monkeypatch):
    """It names the variable for the authority's certificate; with that, all is well."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_CERTIFICATE", raising=False)
    with answering(200, tls[0]) as (endpoint, _):
        trouble = ask(f"{endpoint}/v1/traces")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tls[1]))
        assert ask(f"{endpoint}/v1/traces") is None
    assert "the certificate of 127.0.0.1" in trouble.what
    assert trouble.mend == "OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem"


def test_silence_and_hanging_up():
    """Who takes the connection and says nothing, or hangs up, is told so, within the time there is."""
    kept = []
    with taking_connections(kept.append) as endpoint:
        assert "does not answer" in ask(f"{endpoint}/v1/traces", timeout=0.5).what
    for link in kept:
        link.close()
    with taking_connections(socket.socket.close) as endpoint:
        assert "hangs up without an answer" in ask(f"{endpoint}/v1/traces").what
        assert "no gRPC server" in ask(endpoint, grpc=True).what


def test_proxy_between(monkeypatch):
    """Where the environment leads through a proxy, that is told; who is known to the proxy is not."""
    monkeypatch.setenv("HTTP_PROXY", "http://ann:pw@proxy.example:3128")
    trouble = ask("http://collector.example:4318/v1/traces")
    assert "sent through the proxy proxy.example:3128" in trouble.what
    assert trouble.mend == "NO_PROXY=collector.example"
    assert ask("http://collector.example:4318/v1/traces", sent=True) is None


def test_header_that_cannot_be_sent():
    """A header with a line's end is told by its variable, and nothing of its value."""
    with Receiver() as receiver:
        trouble = ask(f"{receiver.endpoint}/v1/traces", headers={"authorization": f"{SECRET}\nx"})
    assert "a header of OTEL_EXPORTER_OTLP_HEADERS cannot be sent" in trouble.what
    assert SECRET not in trouble.what + trouble.mend
