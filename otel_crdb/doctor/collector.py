# SPDX-License-Identifier: Apache-2.0
"""What answers at an endpoint, asked by hand: why an export came to nothing, and what would mend it."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

#: HTTP/2's connection preface and an empty SETTINGS frame: a gRPC server answers with its own SETTINGS.
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
HTTP2_SETTINGS = 4
HTTP1_HELLO = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
DEFAULT_PORTS = {"http": 80, "https": 443}
MEDIA_TYPE = "application/x-protobuf"

#: What a status means, and what helps.
STATUSES = {
    400: ("it could not read what was sent", "look into the collector's log: is it an OTLP receiver?"),
    401: ("it wants credentials", "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20<token>"),
    403: (
        "the credentials are not good for this",
        "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20<token>",
    ),
    404: ("no OTLP receiver is at this path", ""),
    405: ("what answers there is no OTLP receiver", ""),
    407: ("a proxy wants credentials", "no_proxy={host}"),
    413: (
        "a batch is too large for it",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=128, or raise the collector's limit",
    ),
    415: (
        "it does not take protobuf",
        f"{PROTOCOL}=grpc with the collector's gRPC port, or another receiver",
    ),
    429: ("it takes no more just now", "raise the collector's limit, or send less (OTEL_TRACES_SAMPLER)"),
    502: ("the collector behind a gateway is not there", "start the collector behind {host}"),
    503: (
        "it is overloaded, or not ready",
        "look into the collector's log; it may have no memory or back end",
    ),
    504: ("the collector behind a gateway does not answer", "look at the collector behind {host}"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where an exporter sends to."""

    #: With scheme; for HTTP with path.
    endpoint: str
    grpc: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The trace's, metric's or log's path.
    path: str = "/v1/traces"

    @property
    def url(self) -> SplitResult:
        """The endpoint in parts."""
        return urlsplit(self.endpoint if "://" in self.endpoint else f"http://{self.endpoint}")

    @property
    def host(self) -> str:
        """The host alone."""
        return self.url.hostname or ""

    @property
    def port(self) -> int:
        """The port, by the scheme where none is named."""
        return self.url.port or DEFAULT_PORTS.get(self.url.scheme, 80)

    @property
    def place(self) -> str:
        """Host and port, without anybody's name or password."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def shown(self) -> str:
        """Where it sends to, for a reader, whatever the endpoint is like."""
        try:
            return self.base
        except ValueError:  # a port that is no number
            return self.host or "?"

    @property
    def base(self) -> str:
        """What would stand in OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"{self.url.scheme}://{self.place}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why nothing arrives, and the line that mends it."""

    what: str
    mend: str


def trouble_with(target: Target, payload: bytes, timeout: float, *, sent: bool) -> Trouble | None:
    """Ask the endpoint; None: it does as it should, so that the trouble lies elsewhere.

    Args:
        target: the endpoint.
        payload: an encoded export request.
        timeout: seconds for all of it.
        sent: whether the exporter takes it for sent; some do so of a redirect, or of a web page.

    """
    deadline = time.monotonic() + timeout
    try:
        int(target.port)  # raises for one that is no number
        if target.url.scheme not in DEFAULT_PORTS or not target.host:
            raise ValueError
    except ValueError:
        shape = "http://collector:4317" if target.grpc else "http://collector:4318"
        return Trouble("the endpoint is no URL of the form http://host:port", f"{ENDPOINT}={shape}")
    proxy = _proxy_before(target)
    if proxy:
        what = f"it is sent through the proxy {proxy}, which does not bring it to {target.place}"
        return None if sent else Trouble(what, f"NO_PROXY={target.host}")
    unreachable = _unreachable(target, deadline)
    if unreachable is not None:
        return unreachable
    return _grpc_trouble(target, deadline) if target.grpc else _http_trouble(target, payload, deadline)


def _proxy_before(target: Target) -> str:
    """Return the proxy that the environment puts between, without who is known to it; empty: none."""
    proxy = getproxies().get(target.url.scheme, "")
    if not proxy or proxy_bypass(target.host):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.netloc.rpartition("@")[2]


def _left(deadline: float) -> float:
    return max(0.2, deadline - time.monotonic())


@contextlib.contextmanager
def _connected(target: Target, deadline: float) -> Iterator[socket.socket]:
    with socket.create_connection((target.host, target.port), timeout=_left(deadline)) as link:
        yield link


def _unreachable(target: Target, deadline: float) -> Trouble | None:
    start = f"start the collector at {target.place}, or set {ENDPOINT} to where it is"
    try:
        with _connected(target, deadline):
            return None
    except socket.gaierror:
        return Trouble(
            f"the host name {target.host} is not known here", f"{ENDPOINT}=http://<collector>:4318"
        )
    except TimeoutError:
        return Trouble(f"nothing answers at {target.place}: a firewall, or a wrong address", start)
    except ConnectionRefusedError:
        return Trouble(f"nobody listens at {target.place}: the connection is refused", start)
    except OSError as error:
        return Trouble(f"{target.place} cannot be reached: {error.strerror or error}", start)


# --- HTTP ------------------------------------------------------------------------------------------------


def _http_trouble(target: Target, payload: bytes, deadline: float) -> Trouble | None:
    try:
        status, media_type, location = _post(target, payload, deadline)
    except ssl.SSLCertVerificationError as error:
        told = f"the certificate of {target.place} is not trusted: {error.verify_message}"
        return Trouble(told, "OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem")
    except ssl.SSLError:
        return _not_tls(target)
    except ValueError:  # http.client quotes the value
        return Trouble(
            "a header of OTEL_EXPORTER_OTLP_HEADERS cannot be sent: it has a line's end, or is no Latin-1",
            "OTEL_EXPORTER_OTLP_HEADERS=<name>=<value>, URL-encoded, on one line",
        )
    except TimeoutError:
        return _other_language(target, deadline) or Trouble(
            f"{target.place} takes the connection and does not answer",
            "look into the collector's log; OTEL_EXPORTER_OTLP_TIMEOUT is in seconds",
        )
    except (OSError, http.client.HTTPException):
        return _other_language(target, deadline) or Trouble(
            f"{target.place} hangs up without an answer", "look into the collector's log"
        )
    if status == 400:
        return _other_language(target, deadline) or _refused(target, status)
    if 300 <= status < 400:
        what = f"{target.place} answers {status}, a redirect{_to(location)}, which exporters do not follow"
        return Trouble(what, f"{ENDPOINT}=<the address it redirects to, without {target.path}>")
    if status >= 400:
        return _refused(target, status)
    if media_type not in (MEDIA_TYPE, "application/json", ""):
        what = f"{target.place} answers with {media_type}: that is no OTLP receiver, and takes nothing"
        return Trouble(what, f"{ENDPOINT}=http://<collector>:4318")
    return None


def _post(target: Target, payload: bytes, deadline: float) -> tuple[int, str, str]:
    place, left = (target.host, target.port), _left(deadline)
    connection = (
        http.client.HTTPSConnection(*place, timeout=left, context=_verifying())
        if target.url.scheme == "https"
        else http.client.HTTPConnection(*place, timeout=left)
    )
    try:
        path = (target.url.path or "/") + (f"?{target.url.query}" if target.url.query else "")
        connection.request("POST", path, payload, {"Content-Type": MEDIA_TYPE, **target.headers})
        answer = connection.getresponse()
        media_type = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
        return answer.status, media_type, answer.headers.get("Location", "")
    finally:
        connection.close()


def _verifying() -> ssl.SSLContext:
    authority = os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE") or None
    with contextlib.suppress(OSError):
        return ssl.create_default_context(cafile=authority)
    return ssl.create_default_context()


def _to(location: str) -> str:
    parts = urlsplit(location)
    return f" to {parts.scheme}://{parts.hostname}" if parts.hostname else ""


def _refused(target: Target, status: int) -> Trouble:
    meaning, mend = STATUSES.get(status, ("", "look into the collector's log"))
    what = f"{target.place} answers {status}{': ' if meaning else ''}{meaning}"
    if status in (404, 405):
        return _wrong_path(target, what)
    return Trouble(what, mend.format(host=target.host))


def _wrong_path(target: Target, what: str) -> Trouble:
    path = target.url.path.rstrip("/")
    if not path.endswith(target.path):
        variable = f"OTEL_EXPORTER_OTLP_{target.path.rpartition('/')[2].upper()}_ENDPOINT"
        mend = f"{variable}={target.base}{target.path} (what stands there is taken as it is)"
        return Trouble(f"{what} ({path or '/'})", mend)
    above = path.removesuffix(target.path)
    if above:
        mend = f"{ENDPOINT}={target.base} (each signal's path is added to it)"
        return Trouble(f"{what}: {above}/v1/…", mend)
    return Trouble(what, f"{ENDPOINT}=http://{target.host}:4318, where a collector serves OTLP over HTTP")


def _not_tls(target: Target) -> Trouble:
    what = f"{target.place} does not speak TLS, and the endpoint begins with https"
    return Trouble(what, f"{ENDPOINT}=http://{target.place}")


# --- another language than was spoken ----------------------------------------------------------------------


def _other_language(target: Target, deadline: float) -> Trouble | None:
    """Tell what is spoken there, where it is not plain HTTP/1.1."""
    if target.url.scheme == "http" and _speaks_http2(target, deadline):
        what = f"{target.place} speaks gRPC (HTTP/2), and what is sent is http/protobuf"
        hint = f"{PROTOCOL}=grpc, or the collector's HTTP port: {ENDPOINT}=http://{target.host}:4318"
        return Trouble(what, hint)
    if target.url.scheme == "http" and _speaks_tls(target, deadline):
        what = f"{target.place} speaks TLS, and the endpoint begins with http:"
        return Trouble(what, f"{ENDPOINT}=https://{target.place}")
    return None


def _speaks_http2(target: Target, deadline: float) -> bool:
    answer = _answer_to(HTTP2_HELLO, target, deadline)
    return len(answer) >= 9 and answer[3] == HTTP2_SETTINGS and not answer.startswith(b"HTTP/")


def _speaks_tls(target: Target, deadline: float) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # whoever it is: nothing is sent
    context.verify_mode = ssl.CERT_NONE
    try:
        with _connected(target, deadline) as link, context.wrap_socket(link, server_hostname=target.host):
            return True
    except OSError:
        return False


def _answer_to(hello: bytes, target: Target, deadline: float, enough: int = 9) -> bytes:
    """Return the first bytes that are answered to these, up to the end or until there are enough."""
    answer = b""
    with contextlib.suppress(OSError), _connected(target, deadline) as link:
        link.settimeout(min(2.0, _left(deadline)))
        link.sendall(hello)
        while len(answer) < enough and (part := link.recv(64)):
            answer += part
    return answer


# --- gRPC ------------------------------------------------------------------------------------------------


def _grpc_trouble(target: Target, deadline: float) -> Trouble | None:
    if target.url.scheme == "https":
        return None if _speaks_tls(target, deadline) else _not_tls(target)
    if _speaks_http2(target, deadline):
        return None
    if _answer_to(HTTP1_HELLO, target, deadline, enough=4096).startswith(b"HTTP/1."):
        what = f"{target.place} speaks HTTP/1.1, and what is sent is gRPC"
        return Trouble(what, f"{PROTOCOL}=http/protobuf, or the collector's gRPC port, 4317")
    if _speaks_tls(target, deadline):
        what = f"{target.place} speaks TLS, and the endpoint begins with http:"
        return Trouble(what, f"{ENDPOINT}=https://{target.place}")
    return Trouble(f"what listens at {target.place} is no gRPC server", f"{ENDPOINT}=http://<collector>:4317")
