# SPDX-License-Identifier: Apache-2.0
"""Hostile requests over real HTTP, by raw sockets: answered as without us, told soundly, and without secrets.

A trace's parent, its tracestate and its sampled flag are taken from the caller as OpenTelemetry takes them: a
stranger may choose the trace that his request is seen in, and that it is not sampled.
"""

import contextlib
import socket

import pytest
from django.core.handlers.wsgi import WSGIHandler
from opentelemetry.trace import SpanKind

from .hostile import SECRET, VALUE_LIMIT, NoFault, exported, wire
from .http_servers import asgi_server, wsgi_server
from .telemetry import Telemetry

pytestmark = [
    pytest.mark.usefixtures("accounts", "quiet_requests"),
    # Django leaves the connections of an ASGI server's threads, and the bodies it did not read, to the collector.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"),
]

SERVERS = {"wsgi": wsgi_server, "asgi": asgi_server}
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def asked(port, head):
    """Send the bytes of a request's head; return the answer without what differs between any two."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
        # A server may refuse a head that it has not read to the end.
        with contextlib.suppress(ConnectionError):
            client.sendall(head)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(65536):
                answer += part
    return b"\r\n".join(line for line in answer.split(b"\r\n") if not line.lower().startswith(b"date:"))


def head(target="/nothing/", *headers, method="GET", host="localhost", version="1.1"):
    """Return a request's head in bytes; headers are ``name: value``, text or bytes."""
    lines = [b" ".join([_bytes(method), _bytes(target), _bytes(f"HTTP/{version}")]), b"Connection: close"]
    lines += [b"Host: " + _bytes(host)] if host is not None else []
    return b"\r\n".join([*lines, *map(_bytes, headers), b"", b""])


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode("latin-1")


def same_answers(kind, heads, monkeypatch, *, secrets=(SECRET,)):
    """Send requests to a server without and to one with ``instrument()``: the answers are the same.

    Returns the answers, and what left: sound, small, without secrets.
    """
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    with SERVERS[kind]() as port:
        plain = [asked(port, each) for each in heads]
    with Telemetry() as telemetry, NoFault():
        with SERVERS[kind]() as port:
            observed = [asked(port, each) for each in heads]
    for sent, before, after in zip(heads, plain, observed, strict=True):
        assert after == before, sent[:200]
    left = wire(telemetry)
    for secret in secrets:
        assert secret.encode() not in left
    return observed, telemetry


def server_spans(telemetry):
    """Return the requests' spans."""
    return [span for span in telemetry.spans if span.kind is SpanKind.SERVER]


both = pytest.mark.parametrize("kind", SERVERS)

# Where the trace comes from

MALFORMED = [
    "", " ", "00", "garbage", f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-extra", f"00-{TRACE}-{SPAN}-0x",
    f"00-{TRACE[:-1]}-{SPAN}-01", f"00-{TRACE}{SPAN}01", f"0-{TRACE}-{SPAN}-1", "00-" + "a" * 10_000, "-" * 10_000,
    b"\xff\xfe\x00"[:2], b"00-" + b"\xe9" * 32 + b"-" + SPAN.encode() + b"-01", f"00-{'١' * 4}".encode(), "%00%ff",
]  # fmt: skip


@both
def test_a_malformed_parent_is_none(kind, monkeypatch):
    """A ``traceparent`` that is none begins a trace of the request's own, and the answer is the same."""
    heads = [head("/nothing/", b"traceparent: " + _bytes(value)) for value in MALFORMED]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    spans = server_spans(telemetry)
    assert len(spans) == len(heads)
    assert all(span.parent is None for span in spans)
    assert TRACE not in {f"{span.context.trace_id:032x}" for span in spans}


@both
def test_several_parents_do_no_harm(kind, monkeypatch):
    """Several ``traceparent`` headers give one of these traces, or one of the request's own."""
    other = f"00-{'1' * 32}-{'2' * 16}-01"
    heads = [head("/nothing/", f"traceparent: 00-{TRACE}-{SPAN}-01", *[f"traceparent: {other}"] * 20)]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    assert len(server_spans(telemetry)) == 1


@both
def test_the_callers_trace_and_sampling_are_honoured(kind, monkeypatch):
    """A caller's trace goes on where it is sampled; where it is not, nothing of the request is recorded."""
    heads = [head("/read/", f"traceparent: 00-{TRACE}-{SPAN}-{flags}") for flags in ("01", "00")]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    (span,) = server_spans(telemetry)
    assert (f"{span.context.trace_id:032x}", span.parent.is_remote) == (TRACE, True)
    (point,) = telemetry.points("http.server.request.duration")
    assert point.count == 2  # sampling is for traces: the data points count both


STATES = [
    "", "a", "=", "a=b=c", "a=b," * 1000, ",".join(f"k{n}=v" for n in range(1000)), "k=" + "v" * 10_000, "K" * 300 + "=v",
    f"k={SECRET}\x7f", b"\xff=\xfe", "a=1,a=2", "a=" + " " * 300 + "b", "ok=1",
]  # fmt: skip


@both
def test_a_tracestate_of_any_kind_stays_small(kind, monkeypatch):
    """A ``tracestate`` that is invalid or above OpenTelemetry's 8,192 characters is on no span."""
    parent = f"traceparent: 00-{TRACE}-{SPAN}-01"
    heads = [head("/read/", parent, b"tracestate: " + _bytes(state)) for state in STATES]
    heads.append(head("/read/", parent, *[f"tracestate: k{n}=v" for n in range(60)]))
    _, telemetry = same_answers(kind, heads, monkeypatch)
    spans, _, _ = exported(telemetry)
    assert all(len(span.trace_state) <= 8192 for span in spans)
    assert "ok=1" in {span.trace_state for span in spans}


BAGGAGE = [
    f"password={SECRET}", f"k={SECRET};property={SECRET}", f"k={SECRET}" + "x" * 9_000, ",".join(f"k{n}={SECRET}" for n in range(400)),
    f"%{SECRET}%zz=%", f"={SECRET}", f"{SECRET}=", "%00=%ff", b"k=\xff" + SECRET.encode(), f"k={SECRET}," * 300, "k=" + "%41" * 2_000,
]  # fmt: skip


@both
def test_baggage_is_on_no_span(kind, monkeypatch):
    """Baggage, of any size and shape, is not told: not on spans, data points or log records."""
    heads = [head("/read/", b"baggage: " + _bytes(value)) for value in BAGGAGE]
    heads.append(head("/read/", *[f"baggage: k{n}={SECRET}" for n in range(60)]))
    _, telemetry = same_answers(kind, heads, monkeypatch)
    assert len(server_spans(telemetry)) == len(heads)


# Who is asked, and by whom

HOSTS = [
    "", "localhost:99999999999999999999", "localhost:" + "9" * 5_000, "localhost:0", "localhost:70000", "localhost:", "localhost:-1",
    "localhost:8O", "[::1]", "[::1]:80", "[", "a" * 8_000, f"user:{SECRET}@localhost", "local host", b"\xff\xfe", "localhost/../x",
    "localhost,evil", "127.0.0.1:80:80", "localhost.", "LOCALHOST", "xn--", "%6cocalhost",
]  # fmt: skip


@both
@pytest.mark.parametrize("allowed", [["localhost", "127.0.0.1"], ["*"]], ids=["listed", "any"])
def test_any_host_is_answered_as_before(kind, allowed, monkeypatch, settings_of):
    """Whatever stands in the Host header, the answer is the same, and what is told of it is sound."""
    settings_of(ALLOWED_HOSTS=allowed)
    heads = [head("/nothing/", host=host) for host in HOSTS] + [
        head("/nothing/", "Host: other"),
        head("/nothing/", host=None),
    ]
    answers, telemetry = same_answers(kind, heads, monkeypatch)
    passed_on = [answer for answer in answers if b" 200 " in answer or b"Bad Request (400)" in answer]
    assert len(server_spans(telemetry)) >= len(passed_on) > 5


@both
def test_no_header_of_the_client_is_told(kind, monkeypatch):
    """Cookies, credentials, forwarding and other headers are answered as before, and not told."""
    heads = [
        head("/nothing/", f"{name}: {value}")
        for name in ("Cookie", "Authorization", "X-Api-Key", "Referer", "X-Forwarded-Host", "Forwarded")
        for value in (
            f"sessionid={SECRET}",
            f"Bearer {SECRET}",
            f"http://a:{SECRET}@b/?token={SECRET}",
            SECRET * 300,
        )
    ] + [
        head("/nothing/", "X-Forwarded-For: " + "a" * 8_000),
        head(
            "/nothing/",
            "X-Forwarded-Proto: evil",
            "X-Forwarded-Port: -1",
            "X-Request-Start: t=99999999999999999999",
        ),
        head(
            "/nothing/", "Content-Length: 0", "Content-Type: a/b; charset=\udcff".encode("latin-1", "replace")
        ),
        head("/nothing/", *[f"X-{n}: {SECRET}" for n in range(80)]),
    ]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    assert len(server_spans(telemetry)) == len(heads)


AGENTS = ["a" * 8_000, "é" * 8_000, b"\xff" * 4_000, "\x7f\x01", "curl/8", "", "googlebot " * 900]


@both
def test_a_user_agent_of_any_size_is_told_in_part(kind, monkeypatch):
    """A user agent of 8 kB leaves a bounded attribute."""
    heads = [head("/nothing/", b"User-Agent: " + _bytes(agent)) for agent in AGENTS]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    told = [span.attributes.get("user_agent.original", "") for span in server_spans(telemetry)]
    assert "curl/8" in told
    assert all(len(agent) <= VALUE_LIMIT for agent in told)


# What is asked for

TARGETS = [
    f"/nothing/?token={SECRET}", f"/nothing/?password={SECRET}&page=2", f"/nothing/?a=1&sig={SECRET};api_key={SECRET}",
    f"/nothing/?X-Amz-Signature={SECRET}&X-Goog-Signature={SECRET}", f"/nothing/?pass%77ord={SECRET}", f"/nothing/?PassWord={SECRET}",
    f"/nothing/?access_token={SECRET}&" + "x=1&" * 2_000, f"/nothing/?{'a' * 20_000}&token={SECRET}", f"/nothing/?csrfmiddlewaretoken={SECRET}",
    f"/nothing/?user[password]={SECRET}", f"/nothing/?%70%61ssword={SECRET}", f"/nothing/?token[]={SECRET}", f"/nothing/?client_secret={SECRET}",
    f"http://user:{SECRET}@localhost/nothing/", f"http://user:{SECRET}@localhost/nothing/?token={SECRET}", f"//user:{SECRET}@localhost/nothing/",
    f"/http://user:{SECRET}@localhost/", "/" + "a" * 8_000, "/" + "%41" * 3_000, "/nothing/?" + "q" * 8_000, "/nothing/?%", "/%", "/%zz", "/%00",
    "/%ff%fe", "/%ED%A0%80", "/nothing/?%ff%fe=%ED%A0%80", "/nothing/?" + "%" * 3_000, "/nothing/?" + "&" * 3_000, "/..%2f..%2f", "/nothing/%0d%0aX:1",
    b"/\xff\xfe", b"/nothing/?\xff\xfe", b"/nothing/?x=\xe9", "/nothing//", "//", "/?", "/nothing/#x", "*", "nothing", "/\t", "/nothing/;a=b?c=d",
]  # fmt: skip


@both
def test_a_target_of_any_kind_is_answered_as_before(kind, monkeypatch):
    """A target of any size and encoding has the same answer, and no secret of its query or user part is told."""
    _, telemetry = same_answers(kind, [head(target) for target in TARGETS], monkeypatch)
    spans = server_spans(telemetry)
    assert len(spans) > len(TARGETS) // 2
    assert any("page=2" in span.attributes.get("url.query", "") for span in spans)
    assert all(len(span.name) < 100 for span in spans)


METHODS = [
    "get",
    "GeT",
    "PATCH",
    "BREW",
    "A" * 5_000,
    "G-T",
    "_",
    "CONNECT",
    "TRACE",
    "OPTIONS",
    "HEAD",
    "M-SEARCH",
    "\xe9",
    "GET\x7f",
]


@both
def test_methods_of_any_kind_make_no_series(kind, monkeypatch):
    """Any method has the same answer, and unknown ones are one word on the data points."""
    _, telemetry = same_answers(kind, [head("/nothing/", method=method) for method in METHODS], monkeypatch)
    methods = {
        point.attributes["http.request.method"] for point in telemetry.points("http.server.request.duration")
    }
    assert "_OTHER" in methods or kind == "asgi"
    assert methods <= {"_OTHER", "GET", "PATCH", "CONNECT", "TRACE", "OPTIONS", "HEAD"}


@both
def test_versions_of_any_kind_make_no_series(kind, monkeypatch):
    """A version of HTTP that there is none of makes no series of its own."""
    heads = [
        head("/nothing/", version=version)
        for version in ("1.0", "1.1", "1.2", "1.77", "1.1234567", "0.9", "3.0", "x", "1.é")
    ]
    _, telemetry = same_answers(kind, heads, monkeypatch)
    points = telemetry.points("http.server.request.duration")
    assert {point.attributes["network.protocol.version"] for point in points} <= {
        "0.9",
        "1.0",
        "1.1",
        "2",
        "2.0",
        "3",
        "3.0",
        "_OTHER",
    }


# What a server may take over from a request, or get wrong


ODD_ENVIRON = {
    # gunicorn on a Unix socket takes the port from the Host header
    "port": {"SERVER_PORT": "none", "HTTP_HOST": "localhost"},
    "huge port": {"SERVER_PORT": "9" * 30, "HTTP_HOST": "localhost"},
    "endless port": {"SERVER_PORT": "9" * 5_000, "HTTP_HOST": "localhost"},
    "no method": {"REQUEST_METHOD": ""},
    "raw target": {"RAW_URI": f"http://a:{SECRET}@b/?token={SECRET}", "REQUEST_URI": "//["},
    "protocol": {"SERVER_PROTOCOL": "HTTP/" + "9" * 9_000},
    "no protocol": {"SERVER_PROTOCOL": ""},
    "address": {"REMOTE_ADDR": "a" * 9_000, "REMOTE_PORT": "x"},
    "name": {"REMOTE_HOST": "h" * 9_000},
    "start": {"opentelemetry-instrumentor-django.starttime_key": None},
}


@pytest.mark.parametrize("case", ODD_ENVIRON)
def test_an_odd_environment_is_answered_and_told(case, telemetry):
    """What a WSGI server may get wrong in its environment costs neither the answer nor the span."""
    from django.test import RequestFactory

    environ = {**RequestFactory().get("/nothing/").environ, **ODD_ENVIRON[case]}
    began = []
    with NoFault():
        body = b"".join(WSGIHandler()(environ, lambda status, headers, *_: began.append(status)))
    assert body == b"nothing"
    assert began == ["200 OK"]
    assert len(server_spans(telemetry)) == 1
    assert SECRET.encode() not in wire(telemetry)


@pytest.fixture
def settings_of(monkeypatch):
    """Return what changes settings for a test."""
    from django.conf import settings

    def change(**new):
        for name, value in new.items():
            monkeypatch.setattr(settings, name, value)

    return change
