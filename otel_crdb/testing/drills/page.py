# SPDX-License-Identifier: Apache-2.0
"""Writes docs/drills.md: `python -m otel_crdb.testing.drills.page > docs/drills.md`."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from . import FAMILIES
from .expectations import WantedEvent, WantedLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .drill import Drill
    from .expectations import Expectation

_HEAD: Final = """\
# The drills

What CockroachDB does to an application, one failure at a time: what its users notice, what the person on
call sees and does, and which telemetry must appear. Each is played on a bank, a small Django application
under gunicorn, behind the fault proxy, and is red when any of that telemetry is missing.

```
pip install "otel-crdb[demo]"
otel-crdb drill --list
otel-crdb drill serialization_failure_at_commit ambiguous_commit
otel-crdb drill                          # all of them
```

Each shows what is done, what the user saw, the trace as a tree, and every expectation with what was found.
The exit status is 0 when all was as it has to be, 1 when not, 2 when nothing could be played. From a clone:
`.venv/bin/python -m otel_crdb drill`.

- **Practise on your own dashboards**: with `OTEL_EXPORTER_OTLP_ENDPOINT` set, all telemetry also goes to that
  collector.
- `DRIVER=psycopg2` or `DRIVER=psycopg` chooses the driver where both are installed.
- The server is CockroachDB where `OTEL_CRDB_TEST_URL` names one or `cockroach` is on the PATH, else an
  embedded PostgreSQL. Either way it is the proxy that fails, by the words of [faults.md](faults.md), so what
  the drills prove is how the application and its telemetry take it. On a server of yours the tables of the
  bank (`bank_…`) are made in its database and emptied.
- All drills but the pools' have one process and one connection, so that it is known which one a fault meets.
- Besides, in every drill: statements, COMMIT and ROLLBACK stand below their transaction, all attempts have
  one `cockroachdb.txn.id`, every call names its database, and no key or row of an error text leaves.
- A metric that is to be, say, +1 must grow by exactly that; `any` stands for whatever value; the name of a
  span is followed by the database where it stops short (`connect` is `connect defaultdb`).

This page is written by `python -m otel_crdb.testing.drills.page`.
"""


def page() -> str:
    """Give the page's whole text."""
    parts = [_HEAD]
    for family, drills in FAMILIES.items():
        parts.append(f"## {family}\n")
        parts.extend(map(_drill, drills))
    return "\n".join(parts)


def _drill(drill: Drill) -> str:
    lines = [
        f"### {drill.title}",
        "",
        f"`otel-crdb drill {drill.name}`" + (" (psycopg 3, Django 5.1)" if drill.bank == "pooled" else ""),
        "",
        f"- **What happens**: {_text(drill.summary)}",
        f"- **Played by**: {'; '.join(f'`{step}`' for step in drill.steps)}",
        f"- **A user notices**: {_text(drill.user_notices)}",
        f"- **On call**: {_text(drill.on_call)}",
        "",
        *_table(drill.expects),
    ]
    if drill.on_psycopg2:
        lines += ["On psycopg2:", "", *_table(drill.on_psycopg2)]
    return "\n".join(lines)


def _table(expects: tuple[Expectation, ...]) -> Iterator[str]:
    yield "| must appear | |"
    yield "| --- | --- |"
    told: set[tuple[str, str, str]] = set()
    for each in expects:
        kind, how_often = each.kind, f" {each.often}" if each.often else ""
        if isinstance(each, (WantedEvent, WantedLog)):  # they say the same in two signals
            kind = "event and log record"
        row = (kind, each.name, how_often + str(each.attributes))
        if row not in told:
            told.add(row)
            yield f"| {kind} `{each.name}`{how_often} | {', '.join(map(_code, each.details))} |"
    yield ""


def _code(detail: str) -> str:
    """Set an attribute as code."""
    return f"`{detail}`" if "=" in detail else detail


_NAMES = re.compile(r"\b(?:cockroachdb|db|http|server)\.[a-z_.]+[a-z]\b|\b[A-Z]+_[A-Z_]+\b|\botel_crdb\.\w+")


def _text(text: str) -> str:
    """Set names as code."""
    return _NAMES.sub(lambda name: f"`{name.group()}`", text)


if __name__ == "__main__":
    sys.stdout.write(page())
