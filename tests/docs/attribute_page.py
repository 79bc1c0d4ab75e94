# SPDX-License-Identifier: Apache-2.0
"""docs/attributes.md as data: its tables, by heading."""

import re
from pathlib import Path

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "attributes.md").read_text(encoding="utf-8")
_HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


def names_in(cell):
    """Return the names that a cell shows as code."""
    return _CODE.findall(cell)


def _sections():
    _, *parts = _HEADING.split(TEXT)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(heading, number=0):
    """Return the rows of a table below a heading, each as its cells, without the head."""
    tables = re.findall(r"(?:^\|.*\|$\n)+", SECTIONS[heading], re.MULTILINE)
    lines = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def name_in(cell):
    """Return the name that a cell shows as code."""
    return _CODE.search(cell)[1]


SECTIONS = _sections()
#: The headings below which a table says which attributes one kind of span, event or data point has, and when.
KINDS = [heading for heading in SECTIONS if re.search(r" span$|^Event |^Points of ", heading)]


def attributes_of(kind):
    """Return which attributes the page gives a kind, and when each."""
    return {name_in(cells[0]): cells[1] for cells in rows(kind)}


def attributes():
    """Return type and origin of each attribute."""
    return {name_in(cells[0]): (cells[1], cells[3]) for cells in rows("Attributes")}


def metrics():
    """Return instrument, unit, bounds and origin of each metric."""
    bounds = {word: [float(one) for one in numbers.split(",")] for word, numbers in rows("Metrics", 1)}
    return {
        name_in(cells[0]): (cells[1], name_in(cells[2]), bounds.get(cells[3], []), cells[5])
        for cells in rows("Metrics")
    }


def values():
    """Return the words that an attribute may have, of those whose words are listed."""
    listed = {}
    for attribute, value, _ in rows("Values"):
        listed.setdefault(name_in(attribute), set()).add(name_in(value))
    return listed
