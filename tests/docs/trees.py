# SPDX-License-Identifier: Apache-2.0
"""Traces as a page draws them, compared with spans: names, nesting, kinds, and the attributes that are named."""

import re
from dataclasses import dataclass, field

_LINE = re.compile(r"^([│├└─ ]*)(• )?(.+)$")
KINDS = ("SERVER", "INTERNAL", "CLIENT")


@dataclass
class Drawn:
    """A span as it is drawn: its name, what is said of it, its events and what is below it."""

    name: str
    said: str = ""
    events: list = field(default_factory=list)
    below: list = field(default_factory=list)


def drawn(text):
    """Read a drawn trace: its topmost span."""
    path = []
    for line in text.splitlines():
        indent, event, rest = _LINE.match(line).groups()
        name, _, said = re.sub(r" {2,}", "\t", rest).partition("\t")
        span = Drawn(name, said.replace("\t", " "))
        if event:
            path[-1].events.append(span)
            continue
        depth = len(indent) // 3
        del path[depth:]
        if path:
            path[-1].below.append(span)
        path.append(span)
    return path[0]


def compare(telemetry, picture, span, names):
    """A span is as it is drawn, and so is all that is drawn below it, in this order; … is anything."""
    assert span.name == _named(picture.name, names)
    _check(picture.said, span.attributes)
    for kind in KINDS:
        assert kind not in picture.said or span.kind.name == kind
    assert ("ERROR" not in picture.said) or span.status.status_code.name == "ERROR"
    for event in picture.events:
        (told,) = [each for each in span.events if each.name == event.name]
        _check(event.said, told.attributes)
    children = iter(telemetry.children(span))
    for child in picture.below:
        if child.name != "…":
            found = next((each for each in children if each.name == _named(child.name, names)), None)
            assert found is not None, f"{span.name} has no {child.name} below it, in this order"
            compare(telemetry, child, found, names)


def _named(name, names):
    return names.get(name, name)


def _check(said, attributes):
    """What is named is there: whole names, names whose begin is left out, names in braces; and their values."""
    before, brace, words = said.partition("{")
    if brace:
        said = ", ".join(before + word for word in words.partition("}")[0].split(","))
    for name, _, value in re.findall(r"([\w.]*\w)(=([\w-]+))?", re.sub(r"\([^)]*\)", "", said)):
        if value:
            matching = [
                str(told) for full, told in attributes.items() if f".{full}".endswith(f".{name.lstrip('.')}")
            ]
            assert value in matching, f"{name}={value} is not among {attributes}"
        elif name.count("."):
            assert name in attributes, f"{name} is not among {list(attributes)}"
