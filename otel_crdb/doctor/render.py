# SPDX-License-Identifier: Apache-2.0
"""A report as plain text of at most 100 columns, or as JSON. Nothing leaves here with a secret in it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator

from .findings import Finding, Report, Section
from .secrets import Hide

WIDTH = 100
#: Problems are to be seen at once without colour.
MARKS = {"ok": "ok", "note": "note", "warn": "WARN", "fail": "FAIL"}
LONGEST_LABEL = 15


def as_text(report: Report, hide: Hide) -> str:
    """Return the report for a reader."""
    parts = ["\n".join(textwrap.wrap(hide(report.head), WIDTH)), *_sections(report, hide), _verdict(report)]
    return "\n".join(parts) + "\n"


def _sections(report: Report, hide: Hide) -> Iterator[str]:
    for section in report.sections:
        if section.findings:
            yield "\n".join(["", section.title, *_lines(section, hide)])


def _lines(section: Section, hide: Hide) -> Iterator[str]:
    width = min(LONGEST_LABEL, max(len(hide(finding.about)) for finding in section.findings))
    before = ""
    for finding in section.findings:
        about = "" if finding.about == before else finding.about
        before = finding.about
        yield from _finding(finding, hide(about), width, hide)


def _finding(finding: Finding, about: str, width: int, hide: Hide) -> Iterator[str]:
    lead = f"  {MARKS[finding.level]:<4}  {about:<{width}}  " if width else f"  {MARKS[finding.level]:<4}  "
    inner = " " * (8 + width + (2 if width else 0))
    yield from _wrapped(hide(finding.what), lead, inner)
    for number, line in enumerate(finding.mend.splitlines()):
        first = f"{inner}mend: " if number == 0 else f"{inner}      "
        yield from _wrapped(hide(line), first, f"{inner}      ")


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    # A line that is to be copied is not cut amid a word; only what is longer than the line is.
    indent = len(text) - len(text.lstrip())
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first + " " * indent,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _verdict(report: Report) -> str:
    wrong, doubtful = report.count("fail"), report.count("warn")
    if not wrong and not doubtful:
        return "\nNothing is wrong."
    told = [f"{wrong} wrong"] if wrong else ["Nothing is wrong"]
    if doubtful:
        told.append(f"{doubtful} to look at")
    return f"\n{', '.join(told)}."


def as_json(report: Report, hide: Hide) -> str:
    """Return the report for a program."""
    told = {
        "status": report.status,
        "head": hide(report.head),
        "sections": [
            {"title": section.title, "findings": [_plain(finding, hide) for finding in section.findings]}
            for section in report.sections
        ],
    }
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def _plain(finding: Finding, hide: Hide) -> dict[str, str]:
    return {name: hide(str(text)) for name, text in dataclasses.asdict(finding).items()}
