# SPDX-License-Identifier: Apache-2.0
"""Writes docs/faults.md, one table a family: `python -m otel_crdb.testing.faults_page > docs/faults.md`."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from .fault import Link, Node, Upstream
from .faults import FAMILIES
from .restarts import DEFAULT_VERSION, NEWEST, OLDEST, OWN

if TYPE_CHECKING:
    from .fault import Fault

_HEAD = """\
# The faults

What the fault proxy can play, from the catalogue (`otel_crdb.testing.faults`). A rule takes a name of the
first column, or a `Fault` that the function of that name makes; the words after the dots are its arguments.
A function's name alone is its first variant.

- Every error has the severity ERROR, the fields that CockroachDB sends, and no file, line or function.
- Texts are those of {default} where a name has no version. `serialization_failure.<reason>@<version>` has
  those of {oldest} to {newest}; to ask a version for a reason that it lacks is an error.
- Keys, ids, numbers and times inside the texts are examples. `<txn>` stands for a transaction's string:
  `{txn}`.
- The hint of every 40001 is a link to CockroachDB's page on it, of its version and with its anchor.
- An *aborted* transaction takes nothing but its end and ROLLBACK TO SAVEPOINT. It keeps its locks until
  then after a 40001 and where a savepoint is open; before v25.2 after any error. The proxy goes by the
  version that it announces.
- *Not sure* is what could not be read in CockroachDB's source, documentation or logs.

This page is written by `python -m otel_crdb.testing.faults_page`.
"""
_COLUMNS = (
    "name",
    "strikes at",
    "the client gets",
    "transaction",
    "connection",
    "source, and what is not sure",
)
_TRANSACTIONS: Final = {
    Upstream.ABORTED: "aborted",
    Upstream.RELEASED: "aborted, its locks are gone",
    Upstream.APPLIED: "committed",
    Upstream.UNTOUCHED: "goes on",
}
_LINKS: Final = {Link.OPEN: "stays", Link.CLOSED: "closed", Link.RESET: "reset", Link.SILENT: "silent"}
_NODES: Final = {
    Node.DRAINING: "every session is closed, new ones are refused",
    Node.DEAD: "every session is reset, new ones are refused",
    Node.REFUSING: "new ones are refused",
    Node.PARTITIONED: "silent until it is lifted",
    Node.DISTANT: "slow until it is lifted",
}
_TXN = re.compile(r'"sql txn" meta=.*?(?=: "sql txn"|$)')


def page() -> str:
    """Give the page's whole text."""
    head = _HEAD.format(default=DEFAULT_VERSION, oldest=OLDEST, newest=NEWEST, txn=OWN.text(DEFAULT_VERSION))
    tables = (f"## {family}\n\n{_table(faults)}" for family, faults in FAMILIES.items())
    return "\n".join((head, *tables))


def _table(faults: tuple[Fault, ...]) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, faults)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(fault: Fault) -> tuple[str, ...]:
    return (
        _code(fault.name),
        fault.place.replace("_", " ") + (f" matching {_code(fault.matching)}" if fault.matching else ""),
        f"{fault.summary} {_answer(fault)}".strip(),
        _transaction(fault),
        _NODES[fault.node] if fault.node else _LINKS[fault.link],
        fault.source + (f". *Not sure:* {fault.uncertain}" if fault.uncertain else ""),
    )


def _answer(fault: Fault) -> str:
    answers = []
    for error in fault.errors:
        # A version's own words for a transaction are what its row is there for.
        message = error.message if "@" in fault.name else _TXN.sub("<txn>", error.message)
        told = f"**{error.sqlstate}** {_code(message)}"
        if error.hint and error.sqlstate != "40001":
            told += f" hint {_code(error.hint)}"
        if error.detail:
            told += f" detail {_code(error.detail)}"
        answers.append(told)
    return "; ".join(answers)


def _transaction(fault: Fault) -> str:
    if fault.place == "connect":
        return "–"
    if fault.place == "commit" and fault.upstream is Upstream.ABORTED:
        return "rolled back"
    return _TRANSACTIONS[fault.upstream]


def _code(text: str) -> str:
    """Set a text as code in a cell of a table."""
    line = text.strip().replace("\n", "\\n").replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


if __name__ == "__main__":
    sys.stdout.write(page())
