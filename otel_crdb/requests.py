# SPDX-License-Identifier: Apache-2.0
"""The life of a request: contrib's SERVER span, kept true, with the totals of its database work.

:class:`RequestMiddleware` stands where opentelemetry-instrumentation-django's middleware would, and
has it make the span. What that leaves out is done here: no thread hop under ASGI; a span also where
the host is refused or the client has gone; the body of a streamed response in the request's trace;
the path where the server does not tell the raw URI; no secret of a URL, no row of an error.

Django and the server log lines of a request when its span has ended: `Not Found: /x`, the access log.
Until Django says that the request is finished, its record stands in `state.late_request` for them.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from timeit import default_timer
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import DisallowedHost
from django.http.request import split_domain_port
from opentelemetry import context as context_api
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.instrumentation.django.middleware.otel_middleware import (
    _DjangoMiddleware,
    _parse_duration_attrs,
)
from opentelemetry.trace import Status, StatusCode

from . import errors, events, redaction, semconv, signals
from .hooks import Hook, call_back
from .operations import is_suppressed
from .state import RequestRecord, current_request, last_error, late_request

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span
    from typing_extensions import Self

    from .config import Config

#: In ``request.META``: the request has its span.
ANSWERED = "otel_crdb.answered"


class RequestMiddleware:
    """Django middleware, sync and async: the request's span around all that is inside."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._contrib: Any = _SpanMaker(get_response)  # type: ignore[no-untyped-call]
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        """Answer the request, or return what will."""
        if iscoroutinefunction(self):
            return self._answer_async(request)
        with _Observed(self._contrib, request) as observed:
            observed.response = self.get_response(request)
        return observed.response

    async def _answer_async(self, request: Any) -> Any:
        with _Observed(self._contrib, request) as observed:
            observed.response = await self.get_response(request)
        return observed.response


class _SpanMaker(_DjangoMiddleware):
    """Contrib's middleware; where the route cannot be found out, the method is the span's name."""

    @staticmethod
    def _get_span_name(request: Any) -> Any:
        try:
            return _DjangoMiddleware._get_span_name(request)
        except Exception:  # noqa: BLE001 - a path converter raises what it likes, and Django answers that
            return request.method


class _Observed:
    """The hook around a request: the same for both ways to answer it."""

    def __init__(self, contrib: Any, request: Any) -> None:
        self.response: Any = None
        self._exchange = REQUEST.start(contrib, request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._exchange is not None:
            REQUEST.finish(self._exchange, self.response, error)


#: Where a query stands under the old names, which ``http/dup`` brings back.
OLD_URLS = frozenset({"http.url", "http.target"})
URLS = frozenset({semconv.URL_PATH, semconv.URL_QUERY})
#: Characters that are told of what a client may write at any length: path, query, user agent, method.
CLIENTS_LIMIT = 2048
#: What ``network.protocol.version`` may be on data points.
PROTOCOL_VERSIONS = frozenset({"0.9", "1.0", "1.1", "2", "2.0", "3", "3.0"})


class _Untold:
    """A request that is left untold, with all that is done for it: here and by other instrumentations."""

    def __init__(self) -> None:
        self._outer_record = current_request.get()
        current_request.set(None)
        self._context = context_api.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True)
        self._token = context_api.attach(self._context)

    def finish(self, response: Any, error: BaseException | None) -> None:
        context_api.detach(self._token)
        current_request.set(self._outer_record)
        if error is None:
            _keep_in_trace(response, self._context)


class _Exchange:
    """A request on its way to its response."""

    def __init__(self, contrib: Any, request: Any, options: Config) -> None:
        self._contrib = contrib
        self._response_hook = options.response_hook
        host = _host_of(request)
        self._request = _Hostless(request) if host is None else request
        _process_request(contrib, self._request)
        self.span: Span | None = request.META.get(contrib._environ_span_key)
        self._context = context_api.get_current()
        self._outer_record = current_request.get()
        self.record = RequestRecord(request)
        if self.span is not None:
            self.record.span_context = self.span.get_span_context()
        current_request.set(self.record)
        if self.span is not None:
            attributes = request.META.get(contrib._environ_duration_attr_key) or {}
            REQUEST_ATTRIBUTES.run(self.span, request, host, attributes)
            if options.request_hook is not None and self.span.is_recording():
                REQUEST_HOOK.run(options.request_hook, self.span, request)

    def finish(self, response: Any, error: BaseException | None) -> None:
        current_request.set(self._outer_record)
        if self.span is None:
            return
        try:
            self._end_span(self.span, response, error)
        finally:
            LATE_REQUEST.run(self.record)
        if error is None:
            _keep_in_trace(response, self._context)

    def _end_span(self, span: Span, response: Any, error: BaseException | None) -> None:
        REQUEST_TOTALS.run(span, self.record)
        if error is not None:
            self._abandon(error)
            return
        self._contrib.process_view(self._request, None)  # http.route
        if self._response_hook is not None and span.is_recording():
            RESPONSE_HOOK.run(self._response_hook, span, self.record.request, response)
        self._contrib.process_response(self._request, response)

    def _abandon(self, error: BaseException) -> None:
        """End a request that has no response: cancelled, or its worker told to stop.

        Does what contrib's ``process_response`` does, which is not called then.
        """
        meta, contrib = self._request.META, self._contrib
        assert self.span is not None
        self.span.set_attribute(semconv.ERROR_TYPE, errors.error_type(error))
        self.span.set_status(Status(StatusCode.ERROR))
        signal, word = signals.current, errors.error_type(error)
        measured = {
            **(meta.get(contrib._environ_duration_attr_key) or {}),
            semconv.ERROR_TYPE: word if signal is None else signal.instruments.bounded_error(word),
        }
        if contrib._duration_histogram_new is not None:
            seconds = default_timer() - meta[contrib._environ_timer_key]
            words = _parse_duration_attrs(measured, contrib._sem_conv_opt_in_mode)
            contrib._duration_histogram_new.record(max(seconds, 0), words)
        contrib._active_request_counter.add(-1, meta.pop(contrib._environ_active_request_attr_key, None))
        for key in (
            contrib._environ_span_key,
            contrib._environ_duration_attr_key,
            contrib._environ_timer_key,
        ):
            meta.pop(key, None)
        meta.pop(contrib._environ_activation_key).__exit__(None, None, None)
        token = meta.pop(contrib._environ_token, None)
        if token is not None:
            context_api.detach(token)


def _process_request(contrib: Any, request: Any) -> None:
    """Have contrib make the span; it takes the port for a number, and a server may take it from the client.

    gunicorn on a Unix socket takes it from the Host header.
    """
    meta = request.META
    port = meta.get("SERVER_PORT")
    if port:
        meta["SERVER_PORT"] = str(_number_of_port(str(port)) or "")
    try:
        contrib.process_request(request)
    finally:
        if port:
            meta["SERVER_PORT"] = port


def _number_of_port(port: str) -> int | None:
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return number if 0 < number < 65536 else None


def _host_of(request: Any) -> str | None:
    """Return the host that the request asks for, or None where Django refuses it."""
    try:
        return str(request.get_host())
    except DisallowedHost:
        return None


class _Hostless:
    """A request as contrib sees it when its host is refused: asking for its URI does not raise."""

    def __init__(self, request: Any) -> None:
        self._request = request

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def build_absolute_uri(self, location: str | None = None) -> str:
        return f"{self._request.scheme}://invalid{self._request.path}"


def _begin_request(contrib: Any, request: Any) -> _Exchange | _Untold | None:
    signal = signals.current
    if signal is None or ANSWERED in request.META:
        return None  # not instrumented, or the middleware stands in the settings twice
    _forget_request()  # a server may never have closed the response before
    if is_suppressed():
        return None
    request.META[ANSWERED] = True
    if signal.excluded.request(request.path_info):
        return _Untold()
    exchange = _Exchange(contrib, request, signal.config)
    if exchange.span is not None:
        return exchange
    exchange.finish(None, None)
    return _Untold()  # by the variables that contrib reads


def _correct_attributes(span: Span, request: Any, host: str | None, contribs: dict[str, Any]) -> None:
    """Set what contrib leaves out, or takes from the raw request as it came and as long as it came."""
    version = contribs.get(semconv.NETWORK_PROTOCOL_VERSION)
    if version is not None and version not in PROTOCOL_VERSIONS:
        contribs[semconv.NETWORK_PROTOCOL_VERSION] = "_OTHER"  # on data points: a client may write any number
    if not span.is_recording():
        return
    if version is not None:
        span.set_attribute(semconv.NETWORK_PROTOCOL_VERSION, version[:CLIENTS_LIMIT])
    span.set_attribute(semconv.URL_PATH, redaction.mask_url_path(request.path)[:CLIENTS_LIMIT])
    query = request.META.get("QUERY_STRING")
    if query:
        span.set_attribute(semconv.URL_QUERY, redaction.mask_url_query(query)[:CLIENTS_LIMIT])
    for name, value in contribs.items():
        if name in OLD_URLS:
            path, mark, old_query = str(value).partition("?")
            masked = redaction.mask_url_path(path) + mark + redaction.mask_url_query(old_query)
            span.set_attribute(name, masked[:CLIENTS_LIMIT])
        elif isinstance(value, str) and len(value) > CLIENTS_LIMIT and name not in URLS:
            span.set_attribute(name, value[:CLIENTS_LIMIT])
    domain, port = split_domain_port(host or "")
    # Of a host that Django refuses contrib tells the header as it came.
    address = domain or str(contribs.get(semconv.SERVER_ADDRESS) or "").rpartition("@")[2]
    if address:
        span.set_attribute(semconv.SERVER_ADDRESS, address[:CLIENTS_LIMIT])
    number = _number_of_port(port)
    if number:
        span.set_attribute(semconv.SERVER_PORT, number)


def _set_totals(span: Span, record: RequestRecord) -> None:
    """Put the request's database work on its span, and the exception that became its answer."""
    span.set_attributes(
        {
            semconv.REQUEST_TRANSACTIONS: record.transactions,
            semconv.REQUEST_STATEMENTS: record.statements,
            semconv.REQUEST_RETRIES: record.retries,
            semconv.REQUEST_DB_TIME: record.database_time / 1e9,
        }
    )
    if record.retry_reasons:
        span.set_attribute(semconv.REQUEST_RETRY_REASONS, record.retry_reasons)
    if record.attempts:
        span.set_attribute(semconv.REQUEST_ATTEMPTS, record.attempts)
    error, record.exception = record.exception, None  # its traceback holds all that the request held
    if error is not None:
        events.request_exception(span, error)


def _keep_exception(**_: Any) -> None:
    """Receive ``got_request_exception``: an exception that nobody handled is about to be a 500."""
    record = current_request.get()
    if record is not None:
        record.exception = sys.exc_info()[1]


@dataclass(frozen=True, slots=True)
class _Route:
    """What stays of a request that has been answered: tasks that outlive it may still ask for its route."""

    route: str

    @property
    def resolver_match(self) -> _Route:
        return self


def _keep_for_late_lines(record: RequestRecord) -> None:
    """Have the lines that are logged from here on find the request, whose span has ended."""
    record.request = _Route(record.route)  # the record lives on in contexts; what was uploaded need not
    late_request.set(record)


def _forget_request(**_: Any) -> None:
    """Receive ``request_finished``, or begin another: what is logged from here on is not the request's."""
    late_request.set(None)
    last_error.set(None)


def _keep_in_trace(response: Any, context: Context) -> None:
    if getattr(response, "streaming", False) and getattr(response, "file_to_stream", None) is None:
        STREAM.run(response, context)


def _stream_in_trace(response: Any, context: Context) -> None:
    """Have the body made in the request's trace: it is consumed when the request's span has ended."""
    stream = _parts_async if response.is_async else _parts
    response.streaming_content = stream(context, response.streaming_content)


def _parts(context: Context, content: Iterator[bytes]) -> Iterator[bytes]:
    parts = iter(content)
    while True:
        token = context_api.attach(context)
        try:
            part = next(parts)
        except StopIteration:
            return
        finally:
            context_api.detach(token)
        yield part


async def _parts_async(context: Context, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    parts = aiter(content)
    while True:
        token = context_api.attach(context)
        try:
            part = await anext(parts)
        except StopAsyncIteration:
            return
        finally:
            context_api.detach(token)
        yield part


REQUEST_HOOK = Hook("request_hook", call_back)
RESPONSE_HOOK = Hook("response_hook", call_back)
REQUEST = Hook("RequestMiddleware", _begin_request)
REQUEST_ATTRIBUTES = Hook("RequestMiddleware.attributes", _correct_attributes)
REQUEST_TOTALS = Hook("RequestMiddleware.totals", _set_totals)
STREAM = Hook("RequestMiddleware.stream", _stream_in_trace)
EXCEPTION = Hook("got_request_exception", _keep_exception)
LATE_REQUEST = Hook("RequestMiddleware.late_request", _keep_for_late_lines)
FINISHED = Hook("request_finished", _forget_request)


def receive_exception(sender: Any = None, **kwargs: Any) -> None:
    """Receive ``got_request_exception``, guarded."""
    EXCEPTION.run(**kwargs)


def receive_finished(sender: Any = None, **kwargs: Any) -> None:
    """Receive ``request_finished``, guarded."""
    FINISHED.run(**kwargs)
