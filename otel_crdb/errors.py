# SPDX-License-Identifier: Apache-2.0
"""From an exception to what it means.

Pure: neither Django, OpenTelemetry nor a driver is imported. Their exceptions are known by attributes and by
the names of their classes. What CockroachDB's codes and words mean stands in `otel_crdb.sqlstates`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from otel_crdb.guidance import DOCS, GUIDANCE, REASON_GUIDANCE, Guidance
from otel_crdb.sqlstates import (
    CLASS_RULES,
    DBAPI_CLASSES,
    LOST,
    NAMED_CLASSES,
    OTHER,
    REASON_TEXT,
    REASONS,
    RULES,
    SHUTDOWN,
    TEXT_RULES,
    VARIANTS,
    WRAPPING_REASONS,
    Cause,
    Reason,
    Retry,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Classification", "Phase", "classify", "driver_error", "error_type", "sqlstate_of"]

Phase = Literal["connect", "idle", "statement", "commit", "autocommit"]

#: Characters of a message that are searched. A 40001 is under 2,000; keys may make it longer.
_TEXT_LIMIT = 16 * 1024
#: Links of an exception chain that are followed.
_CHAIN_LIMIT = 100

_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_ROOT_MODULES = frozenset({"psycopg", "psycopg2", "psycopg_pool", "django"})
_ERROR_BASES = frozenset({("psycopg", "Error"), ("psycopg2", "Error"), ("django.db.utils", "Error")})
_DJANGO_BASE = frozenset({("django.db.utils", "Error")})

# pkg/roachpb/data.go: the transaction's own string ends the message and carries its name; the conflicting
# one is written without. Both show the first eight hex digits of the id.
_OWN_TXN = re.compile(r'"sql txn" meta=\{id=([0-9a-f]{8})')
_OTHER_TXN = re.compile(r"conflicting txn: meta=\{id=([0-9a-f]{8})")
_META = "meta={"
# kvpb/errors.go, kvserver: the words before the key two transactions met at.
_CONFLICT_KEY = re.compile(
    r"(?:\b(?:on|for) key|committed value|conflicting (?:locks|intents) on|missing intent on:)"
    r" ‹?(?:/Tenant/\d{1,10})?/Table/(\d{1,10})/(\d{1,10})(?!\d)"
)


@dataclass(frozen=True, slots=True)
class Classification:
    """What a database error means. No field holds a key, a row or a value.

    Attributes:
        sqlstate: five characters; None where neither the driver nor the words of a failed connect told one.
        error_class: one of the words of the retry table (`retryable`, `ambiguous`, `connection`, …).
        retry_reason: a bounded word for why one might run again; None for what is never retried.
        retry_cause: who brought it: rival transactions, the cluster, or not known; None without a reason.
        retry: whether the transaction may run again, `if_idempotent` where it may already have taken effect.
        reconnect: the connection is of no more use, a retry needs a new one.
        server_txn_id: first eight hex digits of CockroachDB's id of this transaction.
        conflict_server_txn_id: the same of the transaction it met.
        table_id: CockroachDB's id of the table in which the two met.
        index_id: the index of that table.
        advice: one fixed sentence for the person on call.
        doc_url: the page of CockroachDB's documentation on it.

    """

    sqlstate: str | None
    error_class: str
    retry_reason: str | None
    retry_cause: Cause | None
    retry: Retry
    reconnect: bool
    server_txn_id: str | None
    conflict_server_txn_id: str | None
    table_id: int | None
    index_id: int | None
    advice: str
    doc_url: str


class _Finding(NamedTuple):
    """One database error of a chain, looked up."""

    sqlstate: str | None
    message: str
    rule: Rule
    phase: Phase | None

    @property
    def retry(self) -> Retry:
        return _answer(self.rule, self.phase)


def classify(
    exc: BaseException,
    *,
    phase: Phase | None = None,
    handled: BaseException | None = None,
    connection_gone: bool = False,
) -> Classification | None:
    """Tell what `exc` and the errors it stands on mean. Never raises, whatever the exceptions hold.

    The walk follows `__cause__`, else `__context__` where it is not suppressed; Django's wrapper is seen
    through. From an exception that is no database error only an explicit `raise … from error` is followed:
    what an application raises of its own while it deals with a database error is its own, and no reason to
    run again.

    Of several database errors the most cautious finding wins ("no", then "if_idempotent", then "yes"; a
    failed connect hides nothing that came before it), of equals the outermost. Consequences (25P02, a
    refused ROLLBACK TO SAVEPOINT, TransactionManagementError) give way to any other.

    Args:
        exc: the exception as caught.
        phase: where the transaction stood; None gives the most cautious answer of all phases. "connect" and
            "idle" speak of the outermost error alone: they do not know what an earlier one left behind.
        handled: the exception that was being handled when the work began; the walk stops at it.
        connection_gone: the connection is known to be closed; a bare cancellation is then a drain.

    Returns:
        None where no database error stands in the chain.

    """
    found = _findings(exc, phase, handled)
    if not found:
        return None
    if connection_gone or any(finding.rule.reconnect for finding in found):
        found = [_cut_by_drain(finding) for finding in found]
    real = [finding for finding in found if not finding.rule.consequence]
    return _describe(max(real or found, key=_caution))


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE a driver put on the error, seen through Django's wrapper. Never raises."""
    return None if error is None else _own_sqlstate(driver_error(error))


def driver_error(exc: BaseException) -> BaseException:
    """Return the driver's own exception behind Django's wrapper (`django.db.utils.*`), else `exc` itself."""
    for _ in range(_CHAIN_LIMIT):
        if not _is_wrapper(exc) or exc.__cause__ is None:
            break
        exc = exc.__cause__
    return exc


def error_type(exc: BaseException) -> str:
    """Return the value of `error.type`: the SQLSTATE the server sent, else the class's qualified name.

    The class is the driver's where Django wrapped it; builtins go by their bare name.
    Source: OpenTelemetry semantic conventions, attribute `error.type`.
    """
    original = driver_error(exc)
    sqlstate = _own_sqlstate(original)
    if sqlstate is not None:
        return sqlstate
    cls = type(original)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


# --- the chain -------------------------------------------------------------------------------------------


def _findings(exc: BaseException, phase: Phase | None, handled: BaseException | None) -> list[_Finding]:
    found: list[_Finding] = []
    for error in _database_errors(exc, handled):
        sqlstate, message, rule = _look_up(error)
        speaks = not found or phase not in {"connect", "idle"} or rule.at_connect
        found.append(_Finding(rule.sqlstate or sqlstate, message, rule, phase if speaks else None))
    return found


def _database_errors(exc: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield the database errors of a chain, outermost first, without Django's wrappers."""
    seen: set[int] = set()
    error: BaseException | None = exc
    while error is not None and error is not handled and id(error) not in seen and len(seen) < _CHAIN_LIMIT:
        seen.add(id(error))
        is_database_error = _is_database_error(error)
        if is_database_error and not _is_wrapper(error):
            yield error
        if error.__cause__ is not None:
            error = error.__cause__
        else:
            implicit = is_database_error and not error.__suppress_context__
            error = error.__context__ if implicit else None


def _is_database_error(error: BaseException) -> bool:
    return _derives_from(error, _ERROR_BASES) or _own_sqlstate(error) is not None


def _is_wrapper(error: BaseException) -> bool:
    """Whether the error only carries a database error, its `__cause__`, under one of Django's names."""
    cause = error.__cause__
    if cause is None or not _derives_from(error, _DJANGO_BASE) or not _is_database_error(cause):
        return False
    kind: Any = type(error)
    return "TransactionManagementError" not in _class_names(kind)


def _derives_from(error: BaseException, bases: frozenset[tuple[str, str]]) -> bool:
    kind: Any = type(error)
    return _has_base(kind, bases)


@lru_cache(maxsize=256)
def _has_base(kind: Any, bases: frozenset[tuple[str, str]]) -> bool:
    return any((cls.__module__, cls.__name__) in bases for cls in kind.__mro__)


@lru_cache(maxsize=256)
def _class_names(kind: Any) -> list[str]:
    """Return the names of those classes of an error's that a driver or Django defines, most special first."""
    return [cls.__name__ for cls in kind.__mro__ if str(cls.__module__).split(".", 1)[0] in _ROOT_MODULES]


# --- one error -------------------------------------------------------------------------------------------


def _look_up(error: BaseException) -> tuple[str | None, str, Rule]:
    """Return code, bounded message and rule of one error: by code, by class, by words, in this order."""
    sqlstate = _own_sqlstate(error)
    message = _message(error)
    if sqlstate is not None:
        return sqlstate, message, _rule_of_code(sqlstate, message)
    kind: Any = type(error)
    names = _class_names(kind)
    named = next((NAMED_CLASSES[name] for name in names if name in NAMED_CLASSES), None)
    if isinstance(named, str):
        return named, message, _rule_of_code(named, message)
    return None, message, named or _rule_of_words(message, names)


def _rule_of_code(sqlstate: str, message: str) -> Rule:
    for pattern, rule in VARIANTS.get(sqlstate, ()):
        if pattern.search(message):
            return rule
    return RULES.get(sqlstate) or CLASS_RULES.get(sqlstate[:2], OTHER)


def _rule_of_words(message: str, names: Sequence[str]) -> Rule:
    for pattern, rule in TEXT_RULES:
        if pattern.search(message):
            return rule
    return next((DBAPI_CLASSES[name] for name in names if name in DBAPI_CLASSES), OTHER)


def _own_sqlstate(error: BaseException) -> str | None:
    """Read psycopg's `sqlstate`, psycopg2's `pgcode`, either's `diag.sqlstate`."""
    for holder, name in ((error, "sqlstate"), (error, "pgcode"), (_attribute(error, "diag"), "sqlstate")):
        value = _attribute(holder, name)
        if isinstance(value, str) and _SQLSTATE.fullmatch(value):
            return value
    return None


def _message(error: BaseException) -> str:
    """Return the primary message, or all the text where the driver keeps no parts, cut to `_TEXT_LIMIT`."""
    primary = _attribute(_attribute(error, "diag"), "message_primary")
    if isinstance(primary, str) and primary:
        return primary[:_TEXT_LIMIT]
    try:
        return str(error)[:_TEXT_LIMIT]
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything; the class alone then has to do
        return ""


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - a foreign property may raise anything; it then tells nothing
        return None


# --- the answer ------------------------------------------------------------------------------------------

_CAUTION: dict[Retry, int] = {"yes": 0, "if_idempotent": 3, "no": 5}
_CAUTION_AT_CONNECT: dict[Retry, int] = {"yes": 0, "if_idempotent": 1, "no": 2}
#: A lasting effect is possible or certain: outranks what only shares its answer.
_EFFECT_CLASSES = frozenset({"ambiguous", "committed_with_ddl_failure"})


def _answer(rule: Rule, phase: Phase | None) -> Retry:
    if phase in {"connect", "idle", "statement"}:
        return rule.statement
    if phase == "commit":
        return rule.commit
    if phase == "autocommit":
        return rule.autocommit
    return max(rule.statement, rule.commit, rule.autocommit, key=_CAUTION.__getitem__)


def _caution(finding: _Finding) -> int:
    ranks = _CAUTION_AT_CONNECT if finding.rule.at_connect else _CAUTION
    return ranks[finding.retry] + (finding.rule.error_class in _EFFECT_CLASSES)


def _cut_by_drain(finding: _Finding) -> _Finding:
    """Take a bare 57014 on a connection that is gone for the shutdown that cut it (pkg/sql/pgwire: drain).

    And an error that no server gave a code to for the loss: psycopg 3 says so of a COMMIT that both were
    answers of.
    """
    if finding.rule.error_class == "cancelled":
        return finding._replace(rule=SHUTDOWN)
    if finding.rule.error_class == "internal" and finding.sqlstate is None:
        return finding._replace(rule=LOST)
    return finding


def _describe(finding: _Finding) -> Classification:
    rule = finding.rule
    reason = _reason(finding)
    own, other = _transaction_ids(finding)
    table_id, index_id = _conflict_ids(finding)
    guidance = _guidance(rule.error_class, reason)
    return Classification(
        sqlstate=finding.sqlstate,
        error_class=rule.error_class,
        retry_reason=reason.word if reason else None,
        retry_cause=reason.cause if reason else None,
        retry=finding.retry,
        reconnect=rule.reconnect,
        server_txn_id=own,
        conflict_server_txn_id=other,
        table_id=table_id,
        index_id=index_id,
        advice=guidance.advice,
        doc_url=DOCS + guidance.page,
    )


def _reason(finding: _Finding) -> Reason | None:
    rule = finding.rule
    if rule.reason is None or rule.cause is None:
        return None
    if finding.sqlstate != "40001":
        return Reason(rule.reason, rule.cause)
    match = REASON_TEXT.search(finding.message)
    if match:
        return REASONS.get(match.group(), Reason("unknown", "unknown"))
    wrapping = (reason for text, reason in WRAPPING_REASONS.items() if text in finding.message)
    return next(wrapping, Reason(rule.reason, rule.cause))


def _guidance(error_class: str, reason: Reason | None) -> Guidance:
    special = REASON_GUIDANCE.get(reason.word) if reason else None
    return special or GUIDANCE[error_class]


def _transaction_ids(finding: _Finding) -> tuple[str | None, str | None]:
    """Return the ids of this transaction and of the other one, as far as the text of a 40001 tells them."""
    if _META not in finding.message or finding.rule.error_class != "retryable":
        return None, None
    named = _OWN_TXN.findall(finding.message)
    own = named[-1] if named else None
    other = _OTHER_TXN.search(finding.message)
    if other:
        return own, other.group(1)
    # `failed to push <transaction>: <own transaction>`: both go by name.
    return own, named[0] if len(named) > 1 else None


def _conflict_ids(finding: _Finding) -> tuple[int | None, int | None]:
    """Return table and index of the conflict's key, never of `meta={key=…}`: there lies the txn's record."""
    if finding.rule.error_class != "retryable":
        return None, None
    match = _CONFLICT_KEY.search(finding.message.partition(_META)[0])
    return (int(match.group(1)), int(match.group(2))) if match else (None, None)
