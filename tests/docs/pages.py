# SPDX-License-Identifier: Apache-2.0
"""The pages of the documentation: their fenced blocks, their headings, their links."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
#: What a block's first line may say of it: the file that it is, and whether it is added to it.
_FILE = re.compile(r"#\s+(\S+\.\w+)(, at its end)?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self):
        """The file that its first line names, or None."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    @property
    def at_end(self):
        """Whether it is added to that file."""
        named = _FILE.match(self.text)
        return bool(named and named[2])

    def __str__(self):
        return f"{self.page}:{self.line}"


def names():
    """Return the pages: README.md and all of docs/."""
    return ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def text_of(page):
    """Return what a page says."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """Return the fenced blocks of a page."""
    text = text_of(page)
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def all_blocks():
    """Return the fenced blocks of all pages."""
    return [block for page in names() for block in blocks(page)]


def prose(page):
    """Return a page without its blocks."""
    return _FENCE.sub("", text_of(page))


def links(page):
    """Return where a page's links lead."""
    return _LINK.findall(prose(page))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    found = set()
    for heading in _HEADING.findall(prose(page)):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = sum(1 for each in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", each))
        found.add(f"{anchor}-{number}" if number else anchor)
    return found
