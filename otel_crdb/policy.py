# SPDX-License-Identifier: Apache-2.0
"""How a transaction is retried, and what is said where that came to nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from django.db import DEFAULT_DB_ALIAS, OperationalError

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

    from .errors import Classification

Priority = Literal["low", "normal", "high"]
AmbiguousCommitPage = Callable[["HttpRequest", "AmbiguousCommitError"], "HttpResponse | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a transaction is retried."""

    #: The alias of the connection.
    using: str = DEFAULT_DB_ALIAS
    #: How often it is run at the most, the first time included.
    max_attempts: int = 5
    #: Seconds from the first attempt's begin after which no further one begins.
    deadline: float = 30.0
    #: Whether running it twice is as good as once, so that it may be repeated after an unknown COMMIT.
    idempotent: bool = False
    #: What it is called in telemetry; the function's qualified name by default.
    name: str | None = None
    #: Seconds: the first back-off is a random time up to this one, each further one up to twice the last.
    backoff_base: float = 0.02
    #: Seconds: no back-off is longer.
    backoff_cap: float = 2.0
    #: Priority of the second attempt and of those after it, by ``SET TRANSACTION PRIORITY`` (CockroachDB).
    retry_priority: Priority | None = None
    #: Called before each further attempt with the one that failed, to reset what that has changed in memory.
    before_retry: Callable[[Attempt], None] | None = None

    def __post_init__(self) -> None:
        """Raise :class:`ValueError` where a value cannot be meant."""
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts is at least 1, not {self.max_attempts}")
        if min(self.deadline, self.backoff_base, self.backoff_cap) < 0:
            raise ValueError("deadline, backoff_base and backoff_cap are seconds, at least 0")
        if self.retry_priority not in (None, "low", "normal", "high"):
            raise ValueError(f"retry_priority is 'low', 'normal' or 'high', not {self.retry_priority!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPolicy(Policy):
    """How a view is retried: as a transaction is, and what it answers in the end."""

    #: Seconds; shorter than a transaction's, since somebody waits for the answer.
    deadline: float = 10.0
    #: Whether a body that is no upload, and not above ``DATA_UPLOAD_MAX_MEMORY_SIZE``, is read before the
    #: first attempt: a view that reads the raw stream (Django REST framework's parsers do) can be run again.
    buffer_body: bool = False
    #: Makes the page of an ambiguous commit of the request and the error: a function or its dotted path.
    #: Without it, and where it returns None, the error goes on to Django, which answers 500.
    ambiguous_commit_page: AmbiguousCommitPage | str | None = None

    def __post_init__(self) -> None:
        """Raise :class:`TypeError` or :class:`ValueError` where a value cannot be meant."""
        Policy.__post_init__(
            self
        )  # not super(): a dataclass with slots is another class than the one written
        page = self.ambiguous_commit_page
        if not (page is None or isinstance(page, str) or callable(page)):
            raise TypeError(f"ambiguous_commit_page is a function or its dotted path, not {page!r}")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that failed."""

    #: From 1.
    number: int
    #: One of the five words of ``cockroachdb.txn.outcome``.
    outcome: str
    error: BaseException
    failure: Classification
    #: Seconds that were waited after it; None after the last.
    backoff: float | None


class AmbiguousCommitError(OperationalError):  # type: ignore[misc]
    """COMMIT was sent and its answer is not known: the transaction may or may not have been applied.

    ``__cause__`` is the driver's error; ``attempts`` are those that failed, the ambiguous one the last.
    Find out by reading whether it was applied before running it again.
    """

    def __init__(self, message: str, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(message)
        self.attempts = attempts


class RetriesExhaustedError(OperationalError):  # type: ignore[misc]
    """The transaction was rolled back as often as it was run. ``__cause__`` is the last driver's error."""

    def __init__(self, message: str, attempts: tuple[Attempt, ...]) -> None:
        super().__init__(message)
        self.attempts = attempts
