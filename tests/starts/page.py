# SPDX-License-Identifier: Apache-2.0
"""docs/start.md as the tests use it: its files and its commands, by heading."""

import re
import shlex
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "start.md"
SITE = Path(__file__).resolve().parent / "site"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^# (\S+\.py)\n")


def parts():
    """Return the page's parts by heading."""
    _, *texts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    return {heading: text for heading, _, text in (text.partition("\n") for text in texts)}


def blocks(heading, language):
    """Return the fenced blocks of one language below a heading."""
    return [text for kind, text in _BLOCK.findall(parts()[heading]) if kind == language]


def files():
    """Return every file that the page shows: its path and its text."""
    found = {}
    for heading in parts():
        for text in blocks(heading, "python"):
            name = _FILE.match(text)
            assert name, f"a block below {heading!r} does not begin with its file's name"
            assert name[1] not in found, f"{name[1]} stands on the page twice"
            found[name[1]] = text
    return found


def command(heading, number=0):
    """Return a command below a heading: the variables before it, and its words."""
    words = shlex.split(blocks(heading, "sh")[number])
    variables = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words
