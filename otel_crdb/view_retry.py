# SPDX-License-Identifier: Apache-2.0
"""Views that are run again: ``retry_view`` for one, an option for all that ``ATOMIC_REQUESTS`` makes atomic.

The retry stands where Django makes a view atomic, inside the middleware: what middleware does is done once,
and the exception that is left in the end goes to ``process_exception`` as any other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core.handlers.base import BaseHandler
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.http import HttpRequest
from django_cockroachdb.base import DatabaseWrapper

from . import retry_telemetry, view_answers
from .attempts import AttemptBlock, Ended
from .bystanders import Bystanders
from .errors import Classification
from .hooks import Hook
from .policy import RetriesExhaustedError, ViewPolicy
from .request_state import RequestState, read_body
from .retry import adrive, drive
from .runs import Obstacle, Run, name_of

if TYPE_CHECKING:
    from types import TracebackType

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call:
    """A view that is called for a request."""

    view: Callable[..., Any]
    request: HttpRequest
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: The instance whose method the view is, None for a function.
    owner: Any
    #: Aliases that the view is marked as non-atomic for.
    exempt: Collection[str]

    @property
    def changeable(self) -> tuple[Any, ...]:
        """What an attempt may change, beside the request."""
        return (*self.args, *self.kwargs.values(), self.owner)


class ViewRun(Run):
    """One request's view, run as often as its transaction has to be."""

    policy: ViewPolicy

    def __init__(self, call: Call, policy: ViewPolicy) -> None:
        view = call.view
        for alias in _atomic_aliases(call.exempt):
            if alias != policy.using:
                view = transaction.atomic(using=alias)(view)
        super().__init__(functools.partial(view, **call.kwargs), (call.request, *call.args), policy)
        if policy.buffer_body:
            read_body(call.request)
        self._request = call.request
        #: None where it could not be noted.
        self._state: RequestState | None = STATE.run(call.request, call.changeable, policy.using)
        self._bystanders = Bystanders(policy.using)
        self._response: Any = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard_response()
            if isinstance(self.last_word, RetriesExhaustedError):
                self._put_back()  # nothing was applied, and no message or session is to say otherwise
            if self.last_word is error:
                view_answers.expect(self._request, self.last_word, self.policy)
        if self._state is not None:
            self._state.release()
        retry_telemetry.view_ended(self)
        super().__exit__(kind, error, trace)

    def _call(self, wrapper: Any) -> Any:
        with self._bystanders.watched():
            self._response = super()._call(wrapper)
        return self._response

    def _before_retry(self) -> None:
        if self.attempts:
            self._discard_response()
            if not self._put_back():
                raise self.attempts[-1].error
        super()._before_retry()

    def _put_back(self) -> bool:
        """Put the request's state back; whether that could be done."""
        return self._state is not None and PUT_BACK.run(self._state) is True

    def _insists(self, failure: Classification | None) -> bool:
        """Let a view that dealt with an error itself have its way, unless the error calls for a retry."""
        return failure is not None and self._may_repeat(failure)

    def _obstacle(self, block: AttemptBlock) -> Obstacle | None:
        changed = self._bystanders.changed()
        if changed is not None and not self.policy.idempotent:
            return Obstacle(f"it has changed {changed!r}, which a ROLLBACK does not undo", applied=True)
        words = None if self._state is None else OBSTACLE.run(self._state)
        if words is None:
            words = "what it has changed on the request is not known"
        return Obstacle(words, applied=False) if words else super()._obstacle(block)

    def _in_doubt(self, ended: Ended) -> bool:
        """Whether it may have been applied, on this alias or on another."""
        return self._bystanders.in_doubt() or super()._in_doubt(ended)

    def _discard_response(self) -> None:
        """Close what the response of an attempt that came to nothing holds open.

        Not by its ``close()``, which tells Django that the request is over.
        """
        response, self._response = self._response, None
        for close in getattr(response, "_resource_closers", ()):
            with suppress(Exception):
                close()


@overload
def retry_view(view: View, /) -> View: ...


@overload
def retry_view(**options: Any) -> Callable[[View], View]: ...


def retry_view(view: Any = None, /, **options: Any) -> Any:
    """Run a view in a transaction, and again where that was refused and running it again is safe.

    The view is marked as ``transaction.non_atomic_requests`` and gets a block of its own; other aliases with
    ``ATOMIC_REQUESTS`` get theirs within it. What an attempt changes on the request, its session and its
    messages is put back before the next one. It is not run again where another alias was changed, after a
    schema change, and where the request cannot be put back (its raw stream was read, an upload closed).

    An asynchronous view is awaited by Django's thread for synchronous code, in which also runs what it asks
    of the ORM: all of it is in the transaction.

    Args:
        view: a view function, sync or async; a class's by ``retry_view(TheView.as_view())`` or by
            ``method_decorator(retry_view, name="dispatch")``.
        **options: fields of :class:`ViewPolicy`: those of :func:`run_transaction` with ``deadline=10.0`` s;
            ``buffer_body=False``: read the body before the first attempt; ``ambiguous_commit_page=None``:
            a function of request and :class:`AmbiguousCommitError`, or its path, that returns a response.

    Raises:
        RetriesExhaustedError: every attempt was refused. Where no ``process_exception`` answers it, Django's
            handler does with status 503 and ``Retry-After``.
        AmbiguousCommitError: COMMIT was sent and its answer is unknown.

    """
    policy = ViewPolicy(**options)
    return functools.partial(_decorated, policy=policy) if view is None else _decorated(view, policy)


def _decorated(view: Callable[..., Any], policy: ViewPolicy) -> Callable[..., Any]:
    """Return the view with its retry around it, which no ``ATOMIC_REQUESTS`` is to surround."""
    if not callable(view):
        raise TypeError(f"retry_view is for views, which are called with a request, not for {view!r}")
    exempt = frozenset(getattr(view, "_non_atomic_requests", ()))
    owner = _owner_of(view)
    asynchronous = iscoroutinefunction(view) or (
        getattr(view, "__name__", "") == "dispatch"
        and getattr(owner, "view_is_async", False)  # plain, and returns a coroutine
    )
    if policy.name is None:
        policy = dataclasses.replace(policy, name=name_of(view))

    def run_of(function: Callable[..., Any], request: HttpRequest, args: Any, kwargs: Any) -> ViewRun:
        if not isinstance(request, HttpRequest):
            raise TypeError(
                f"retry_view is for views, whose first argument is the request, not {type(request).__name__}."
                ' On a class: @method_decorator(retry_view, name="dispatch").'
            )
        view_answers.ensure()
        return ViewRun(Call(function, request, args, kwargs, owner, exempt), policy)

    def retried(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return drive(run_of(view, request, args, kwargs))

    async def retried_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await view(*args, **kwargs)

        return await adrive(run_of(async_to_sync(awaited), request, args, kwargs))

    chosen: Any = functools.wraps(view)(retried_async if asynchronous else retried)
    chosen._non_atomic_requests = set(connections)
    return chosen  # type: ignore[no-any-return]


def _owner_of(view: Any) -> Any:
    """Return the instance whose method a view is, where ``method_decorator`` has made it; else None."""
    while isinstance(view, functools.partial) or hasattr(view, "__wrapped__"):
        view = view.func if isinstance(view, functools.partial) else view.__wrapped__
    return getattr(view, "__self__", None)


def _atomic_aliases(exempt: Collection[str]) -> list[str]:
    return [
        alias
        for alias, settings in connections.settings.items()
        if settings["ATOMIC_REQUESTS"] and alias not in exempt
    ]


# --- the option --------------------------------------------------------------------------------


def policy_of(option: bool | Mapping[str, Any]) -> ViewPolicy | None:
    """Return how ``instrument(retry_atomic_requests=…)`` wants views to be retried; None: not at all.

    Raises:
        TypeError: there is no such option of :func:`retry_view`.
        ValueError: the option has no such value.

    """
    if option is False:
        return None
    return ViewPolicy(**({} if option is True else option))


def start(policy: ViewPolicy) -> Callable[[], None]:
    """Have Django's handler retry the views that it makes atomic; return what undoes it."""
    view_answers.ensure()
    own = BaseHandler.make_view_atomic

    @functools.wraps(own)
    def make_view_atomic(handler: Any, view: Callable[..., Any]) -> Any:
        return ATOMIC_VIEW.run(view, policy) or own(handler, view)

    make_view_atomic.hook = ATOMIC_VIEW  # type: ignore[attr-defined]
    BaseHandler.make_view_atomic = make_view_atomic
    return functools.partial(setattr, BaseHandler, "make_view_atomic", own)


def _retried_atomic_view(view: Callable[..., Any], policy: ViewPolicy) -> Callable[..., Any] | None:
    """Return the view with its retry around it; None where no alias of CockroachDB's makes it atomic."""
    if iscoroutinefunction(view):
        return None  # Django refuses it
    atomic = _atomic_aliases(getattr(view, "_non_atomic_requests", ()))
    ours = [alias for alias in atomic if isinstance(connections[alias], DatabaseWrapper)]
    if not ours or (policy.using != DEFAULT_DB_ALIAS and policy.using not in ours):
        return None
    if policy.using not in ours:
        policy = dataclasses.replace(policy, using=ours[0])
    return _decorated(view, policy)


STATE = Hook("retry_view.state", RequestState)
PUT_BACK = Hook("retry_view.put_back", lambda state: state.put_back() is None)
OBSTACLE = Hook("retry_view.obstacle", lambda state: state.obstacle() or "")
ATOMIC_VIEW = Hook("BaseHandler.make_view_atomic", _retried_atomic_view)
