# SPDX-License-Identifier: Apache-2.0
"""What holds of all telemetry, whatever failed: how spans stand, what each names, what never leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from otel_crdb import semconv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .expectations import Seen

#: Keys and rows as CockroachDB quotes them.
_PRIVATE = re.compile(r"/Table/\d+/\d+/(?!…)|\bKey \([^)]*\)=\((?!…|\?)|row \([^)]*\)=\((?!…|\?)")
_NAMED_BY_ALL = (semconv.DB_SYSTEM_NAME, semconv.DB_NAMESPACE, semconv.SERVER_ADDRESS)


def _statements_below_their_transaction(seen: Seen) -> Iterator[str]:
    names = {span.span_id: span.name for span in seen.spans}
    for span in seen.spans:
        above = names.get(span.parent_id, "nothing")
        if (
            span.kind == "CLIENT"
            and semconv.TXN_ID in span.attributes
            and not above.startswith("transaction ")
        ):
            yield f"{span.name} stands below {above}"


def _one_id_for_all_attempts(seen: Seen) -> Iterator[str]:
    known = {span.span_id: span for span in seen.spans}
    for span in seen.spans:
        above = known.get(span.parent_id)
        if above is None or semconv.TXN_ID not in above.attributes or semconv.TXN_ID not in span.attributes:
            continue
        if span[semconv.TXN_ID] != above[semconv.TXN_ID]:
            yield f"{span.name} has another {semconv.TXN_ID} than {above.name}"


def _every_call_names_its_database(seen: Seen) -> Iterator[str]:
    for span in seen.spans:
        missing = [name for name in _NAMED_BY_ALL if name not in span.attributes]
        if span.kind == "CLIENT" and missing:
            yield f"{span.name} lacks {', '.join(missing)}"


def _no_key_and_no_row_leaves(seen: Seen) -> Iterator[str]:
    for item in (*seen.spans, *seen.events, *seen.logs):
        for name, value in item.attributes.items():
            if isinstance(value, str) and _PRIVATE.search(value):
                yield f"{_name_of(item)} tells a key or a row in {name}"


def _name_of(item: Any) -> str:
    return str(getattr(item, "name", "") or getattr(item, "event", "") or "a log record")


LAWS: tuple[Callable[[Seen], Iterator[str]], ...] = (
    _statements_below_their_transaction,
    _one_id_for_all_attempts,
    _every_call_names_its_database,
    _no_key_and_no_row_leaves,
)


def broken_laws(seen: Seen) -> list[str]:
    """Tell, in words, of everything in some telemetry that can never be right."""
    return [told for law in LAWS for told in law(seen)]
