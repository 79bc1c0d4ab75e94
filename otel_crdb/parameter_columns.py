# SPDX-License-Identifier: Apache-2.0
"""Which column each placeholder of an SQL text belongs to, as far as the text tells.

It tells by ``col = %s``, ``INSERT INTO t (a, b) VALUES (%s, %s)`` with any number of rows, ``SET a = %s``,
``(a, b) IN ((%s, %s))``, ``UNNEST(%s, %s)`` as Django writes it; through functions, casts and CASE. Where
several columns could be meant the first is taken; a placeholder that belongs to none has the name of the
function that it is given to: ``set_password(%s)``.

One walk over the pieces, with a level for each pair of brackets and each CASE. It is a reader of statements
as applications write them, no parser: of a text that is none, the names are some names of the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .sqlpieces import pieces
from .sqltokens import name_parts, words

if TYPE_CHECKING:
    from .sqlpieces import Piece

Columns = dict[str, tuple[str, ...]]
Row = tuple[str, ...]

# As both drivers find them, within quotes and comments too: for them a text has no other parts.
_PLACEHOLDER = re.compile(r"%(?:\(([^)]+)\).|.)", re.DOTALL)

#: They begin a part of a statement: what stood before them names nothing after them.
_PARTS = words(
    "CROSS DO EXCEPT FROM FULL GROUP HAVING INNER INTERSECT JOIN LEFT LIMIT OFFSET ON ORDER RETURNING RIGHT "
    "SET UNION USING WHERE WITH"
)
#: They name nothing, and end nothing.
_SILENT = words(
    "ALL ANY ARRAY ASC BY CAST COLLATE CONFLICT DATE DEFAULT DELETE DESC DISTINCT ESCAPE EXISTS EXPLAIN "
    "FALSE FETCH FIRST FOR ILIKE INSERT INTERVAL INTO IS LATERAL LIKE NEXT NOT NOTHING NULL NULLS ONLY ROW "
    "ROWS SIMILAR SOME SYMMETRIC TIME TIMESTAMP TIMESTAMPTZ TO TRUE UPDATE UPSERT"
)


class _Found:
    """A placeholder."""

    __slots__ = ("column", "key")

    def __init__(self, key: str, column: str) -> None:
        self.key = key
        self.column = column


class _Level:
    """One pair of brackets, one CASE, or the whole text."""

    __slots__ = (
        "between", "case", "columns", "element", "function", "giver", "inherited", "name", "plain", "row",
        "rows", "select", "takes", "waiting",
    )  # fmt: skip

    def __init__(self, inherited: str = "", function: str = "", giver: str = "", row: Row = ()) -> None:
        #: The column that what stands outside the brackets gives to what stands within.
        self.inherited = inherited
        self.row = row  # the columns of its elements, where they are known
        self.element = 0
        self.name = self.own_name()  # the column that a placeholder here belongs to
        self.function = function  # its brackets are this one's: a comma begins nothing new
        self.giver = function or giver  # the nearest function around
        self.case = False
        self.select = False  # its row is the list of a SELECT
        self.between = False
        self.plain = True  # it holds names and commas only:
        self.columns: list[str] = []
        self.takes: Row = ()  # the columns of the brackets that closed last in it
        self.rows: Row = ()  # the columns of the brackets that open in it
        self.waiting: list[_Found] = []  # of no name yet: what they are compared with may follow

    def own_name(self) -> str:
        """Return what a placeholder belongs to where the element itself has said nothing."""
        return self.row[self.element] if self.element < len(self.row) else self.inherited

    def begin(self) -> None:
        """Forget what was compared: something else begins."""
        self.name = self.own_name() if self.row else ""
        self.rows, self.between = (), False
        self.waiting.clear()

    def call(self, name: str) -> None:
        """Take a name for what the placeholders here belong to, unless there is one."""
        if self.name:
            return
        self.name = name
        for found in self.waiting:
            found.column = name
        self.waiting.clear()


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.placeholders = _PLACEHOLDER.finditer(text)
        self.next = next(self.placeholders, None)
        self.found: list[_Found] = []
        self.levels = [_Level()]
        #: A name that was read last: a column's, or a function's if a bracket follows.
        self.held = ""
        self.adjacent = ""  # the name directly before
        self.previous = ""  # the mark or keyword directly before
        self.inserted: Row = ()  # the columns of INSERT … SELECT

    def step(self, piece: Piece) -> None:
        """Go on by one piece."""
        rule, start, end, _ = piece
        raw = self.text[start:end]
        function = self.held if raw == "(" else ""
        self.adjacent = "" if rule == "comment" else self.held
        if self.held and rule != "comment":
            self.commit(called=bool(function))
        self.record(end)
        if rule == "comment":
            return
        key = raw.upper() if rule == "word" else raw if rule == "mark" else ""
        if rule in ("word", "name") and self.previous not in ("::", "AS") and key not in _KEYWORDS:
            self.held = name_parts(raw)[-1] if rule == "name" else raw
        elif key == "(":
            self.open(function)
        else:
            self.levels[-1].plain &= key in (",", ")")
            act = _ACTS.get(key)
            if act is not None:
                act(self)
        self.previous = "::" if raw.startswith("::") else key

    def commit(self, *, called: bool) -> None:
        """Take the name that was read for a column's, where it is no function's."""
        level, name = self.levels[-1], self.held
        self.held = ""
        if name.startswith('"'):
            name = name[1:-1].replace('""', '"')
        if called:
            level.plain = False
            return
        level.columns.append(name)
        level.call(name)

    def record(self, end: int) -> None:
        """Note the placeholders up to here."""
        level = self.levels[-1]
        while self.next is not None and self.next.start() < end:
            match, self.next = self.next, next(self.placeholders, None)
            if match.group() == "%%":
                continue
            found = _Found(match[1] or str(len(self.found)), self.adjacent or level.name or level.giver)
            self.found.append(found)
            if not level.name and not self.adjacent:
                level.waiting.append(found)

    def open(self, function: str) -> None:
        """Go into brackets."""
        outer = self.levels[-1]
        row = self.inserted if function.upper() == "UNNEST" else () if function else outer.rows
        if self.previous == "IN":
            row = ()
        level = _Level(outer.name, function, outer.giver, row)
        if self.previous == "IN":
            level.rows = outer.rows
        elif self.previous == "AS":
            level.takes = outer.takes
        outer.plain = False
        self.levels.append(level)

    def close(self) -> None:
        """Leave brackets, and what was left open in them."""
        while len(self.levels) > 1 and self.levels[-1].case:
            self.levels.pop()
        if len(self.levels) == 1:
            return
        inner, outer = self.levels.pop(), self.levels[-1]
        outer.takes = tuple(inner.columns) if inner.plain else ()
        if inner.name:
            outer.call(inner.name)
        else:
            outer.waiting += inner.waiting

    def comma(self) -> None:
        level = self.levels[-1]
        level.element += 1
        if level.row or not level.function:
            level.name = level.own_name()
            level.waiting.clear()

    def compare(self) -> None:
        """Give the columns in the brackets that stood before to those that follow."""
        level = self.levels[-1]
        level.rows = level.takes if self.previous == ")" else ()

    def part(self) -> None:
        level = self.levels[-1]
        if level.function and not level.row:
            return  # SUBSTRING(a FROM 1)
        if level.select:
            level.row, level.select = (), False
        level.begin()

    def from_(self) -> None:
        if self.previous != "DISTINCT":  # IS DISTINCT FROM
            self.part()

    def select(self) -> None:
        level = self.levels[-1]
        self.inserted = level.takes if self.previous == ")" else ()
        level.inherited, level.row, level.element, level.select = "", self.inserted, 0, True
        level.begin()

    def values(self) -> None:
        level = self.levels[-1]
        level.begin()
        level.rows = level.takes

    def condition(self) -> None:
        level = self.levels[-1]
        if not level.between:
            level.begin()
        level.between = False

    def between(self) -> None:
        self.levels[-1].between = True

    def case(self) -> None:
        outer = self.levels[-1]
        level = _Level(outer.name, giver=outer.giver)
        level.case = True
        self.levels.append(level)

    def when(self) -> None:
        self.levels[-1].begin()

    def then(self) -> None:
        level = self.levels[-1]
        level.begin()
        level.name = level.inherited

    def end_(self) -> None:
        if self.levels[-1].case:
            self.levels.pop()

    def whole(self) -> None:
        """Begin another statement."""
        self.levels = [_Level()]
        self.inserted = ()

    def array(self) -> None:
        outer = self.levels[-1]
        self.levels.append(_Level(outer.name, giver=outer.giver))

    def finish(self) -> Columns:
        """Return what was found."""
        if self.held:
            self.commit(called=False)
        self.record(len(self.text))
        columns: dict[str, dict[str, None]] = {}
        for found in self.found:
            columns.setdefault(found.key, {})[found.column] = None
        return {key: tuple(names) for key, names in columns.items()}


_ACTS = {
    **dict.fromkeys(_PARTS, _Walk.part),
    **dict.fromkeys(("AND", "OR"), _Walk.condition),
    **dict.fromkeys(("=", "IN"), _Walk.compare),
    ")": _Walk.close,
    "]": _Walk.close,
    "[": _Walk.array,
    ",": _Walk.comma,
    ";": _Walk.whole,
    "FROM": _Walk.from_,
    "SELECT": _Walk.select,
    "VALUES": _Walk.values,
    "BETWEEN": _Walk.between,
    "CASE": _Walk.case,
    "WHEN": _Walk.when,
    "THEN": _Walk.then,
    "ELSE": _Walk.then,
    "END": _Walk.end_,
}
_KEYWORDS = _SILENT | {"AS"} | {key for key in _ACTS if key.isalpha()}


def columns_of(text: str) -> Columns:
    """Return the columns of each placeholder by its key: its place from 0, or its name. Never raises.

    The place counts unnamed placeholders; a column is empty where the text does not tell one.
    """
    walk = _Walk(text)
    for piece in pieces(text):
        walk.step(piece)
    return walk.finish()
