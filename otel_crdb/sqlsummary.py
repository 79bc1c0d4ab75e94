# SPDX-License-Identifier: Apache-2.0
"""From tokens to ``db.query.summary``: the operations of a text and their targets, in order of appearance.

A state machine with one scope for each open bracket. A scope knows the operation it is in and what it waits
for; a word counts as an operation or leads to a target only where its scope waits for one. So
``EXTRACT(year FROM x)``, ``FOR UPDATE OF t``, ``DO UPDATE SET`` and ``ON DELETE CASCADE`` need no rules of
their own: nothing waits there.

What the convention leaves open is decided so: words keep their case; quotes around a name go, unless it
holds more than letters, digits, ``_``, ``$`` and ``-``; object kinds belong to the operation (``CREATE
INDEX i t``), modifiers (UNIQUE, IF NOT EXISTS) do not; names that live no longer than a session
(savepoints, cursors, prepared statements) are no targets.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from .sqltokens import Kind, Token, name_parts, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class _State(Enum):
    VERB = auto()  # the beginning of a statement
    INNER = auto()  # where a query or data change may begin: after EXPLAIN and UNION, in a CTE
    QUERY = auto()  # the beginning of any other bracket: a query if it says so
    CTE = auto()  # the list after WITH
    PHRASE = auto()  # further words of the operation, others are passed over
    NAMING = auto()  # the same, but the first other word is the target
    WORDS = auto()  # each word is noted
    TARGET = auto()  # the next name is the target
    IDLE = auto()  # nothing is waited for


class _Verb(NamedTuple):
    """How the targets of an operation are found."""

    state: _State = _State.IDLE
    clauses: frozenset[str] = frozenset()  # words that a target follows, each once
    steps: Mapping[str, _State] = {}  # further words of the operation, and what follows them
    fillers: frozenset[str] = frozenset()  # what may stand between such a word and the name
    listing: bool = False  # whether a comma leads to a further target
    nests: bool = True  # whether SELECT inside it is an operation


_KINDS_OF_OBJECT = words(
    "TABLE INDEX SEQUENCE VIEW TYPE DATABASE SCHEMA USER ROLE FUNCTION PROCEDURE TRIGGER POLICY EXTENSION"
    " DOMAIN STATISTICS CHANGEFEED SCHEDULE"
)
_KINDS_OF_JOB = words("JOB JOBS QUERY QUERIES SESSION SESSIONS SCHEDULE SCHEDULES")
_OBJECT_STEPS = {
    **dict.fromkeys(_KINDS_OF_OBJECT, _State.TARGET),
    "DEFAULT": _State.PHRASE,
    "PRIVILEGES": _State.IDLE,
}
_SETTING_STEPS = {
    **dict.fromkeys(words("SESSION LOCAL CLUSTER SETTING TIME ZONE"), _State.NAMING),
    **dict.fromkeys(words("TRANSACTION CONSTRAINTS CHARACTERISTICS AUTHORIZATION ROLE ALL"), _State.IDLE),
}
_FROM_FILLERS = words("ONLY LATERAL ROWS FROM")
_OBJECT_FILLERS = words("IF NOT EXISTS CONCURRENTLY ONLY FOR TABLE")
_GRANT_FILLERS = _KINDS_OF_OBJECT | words("ALL TABLES SEQUENCES FUNCTIONS COLUMN CONSTRAINT IN ONLY")

_ALONE = _Verb()
_OBJECT = _Verb(_State.PHRASE, steps=_OBJECT_STEPS, fillers=_OBJECT_FILLERS)
_TARGET_LIST = _Verb(_State.TARGET, fillers=words("TABLE ONLY VERBOSE"), listing=True)
_SETTING = _Verb(_State.NAMING, steps=_SETTING_STEPS)
_INSERT = _Verb(clauses=words("INTO"))
_GRANT = _Verb(clauses=words("ON"), fillers=_GRANT_FILLERS, listing=True, nests=False)
_BACKUP = _Verb(clauses=words("TABLE DATABASE"), listing=True)
_JOB = _Verb(_State.PHRASE, steps=dict.fromkeys(_KINDS_OF_JOB, _State.IDLE))

_INNER_VERBS = {
    "SELECT": _Verb(clauses=words("FROM INTO"), fillers=_FROM_FILLERS),
    "INSERT": _INSERT,
    "UPSERT": _INSERT,
    "UPDATE": _Verb(_State.TARGET, clauses=words("FROM"), fillers=_FROM_FILLERS),
    "DELETE": _Verb(clauses=words("FROM USING"), fillers=_FROM_FILLERS),
    "MERGE": _Verb(clauses=words("INTO USING"), fillers=_FROM_FILLERS),
    "TABLE": _Verb(_State.TARGET, fillers=_FROM_FILLERS),
    "SHOW": _Verb(_State.WORDS, clauses=words("FROM")),
    "EXECUTE": _ALONE,
}
_VERBS = {
    **_INNER_VERBS,
    **dict.fromkeys(
        words(
            "ABORT BEGIN CHECKPOINT CLOSE COMMIT DEALLOCATE DECLARE DO END EXPORT FETCH MOVE PREPARE"
            " SAVEPOINT VACUUM VALUES"
        ),
        _ALONE,
    ),
    **dict.fromkeys(words("TRUNCATE ANALYZE ANALYSE LOCK"), _TARGET_LIST),
    **dict.fromkeys(words("CALL COPY LISTEN NOTIFY UNLISTEN USE"), _Verb(_State.TARGET)),
    **dict.fromkeys(words("CREATE REFRESH REINDEX"), _OBJECT),
    **dict.fromkeys(words("SET RESET DISCARD"), _SETTING),
    **dict.fromkeys(words("BACKUP RESTORE"), _BACKUP),
    **dict.fromkeys(words("CANCEL PAUSE RESUME"), _JOB),
    "ALTER": _OBJECT._replace(nests=False),
    "DROP": _OBJECT._replace(listing=True),
    "EXPLAIN": _Verb(_State.INNER),
    "GRANT": _GRANT,
    "REVOKE": _GRANT,
    "COMMENT": _GRANT._replace(listing=False),
    "IMPORT": _Verb(clauses=words("INTO TABLE")),
    "START": _Verb(_State.PHRASE, steps={"TRANSACTION": _State.IDLE}),
    "RELEASE": _Verb(_State.PHRASE, steps={"SAVEPOINT": _State.IDLE}),
    "ROLLBACK": _Verb(_State.PHRASE, steps={"TO": _State.PHRASE, "SAVEPOINT": _State.IDLE}),
}
# A kind of object after which a further clause leads to a target: CREATE INDEX i ON t.
_OBJECT_CLAUSES = {
    **dict.fromkeys(words("INDEX TRIGGER POLICY"), words("ON")),
    "STATISTICS": words("FROM"),
}

_WITH_FOLLOWS = words("AS FOR")  # CREATE VIEW v AS WITH …, DECLARE c CURSOR FOR WITH …
_LISTING_CLAUSES = words("FROM USING")
_SET_OPERATIONS = words("UNION INTERSECT EXCEPT")
_END_OF_LIST = words(
    "WHERE GROUP HAVING WINDOW ORDER LIMIT OFFSET FETCH FOR SET RETURNING VALUES DEFAULT TO INTO CASCADE"
    " RESTRICT"
)
_NEVER_A_TARGET = _END_OF_LIST | _SET_OPERATIONS | words("AS ON USING JOIN WITH")
_STARTS = frozenset({_State.VERB, _State.INNER, _State.QUERY})
_PLAIN_NAME = re.compile(r"[\w$-]+")
_WORDS_LIMIT = 4  # SHOW CREATE ALL TABLES, SHOW CLUSTER SETTING x


class _Scope:
    """One bracket level."""

    __slots__ = ("clauses", "cte", "listing", "recursive", "state", "verb", "words")

    def __init__(self, state: _State, *, listing: bool = False) -> None:
        self.state = state
        self.listing = listing
        self.verb = _ALONE
        self.clauses: frozenset[str] = frozenset()
        self.cte = ""  # the CTE whose body is being read: its name is not yet visible there
        self.recursive = False
        self.words = 0


class _Reader:
    """Reads tokens one by one and notes what goes into the summary."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.main = -1  # the index of the main operation
        self.scopes = [_Scope(_State.VERB)]
        self.ctes: set[str] = set()
        self.previous = ""
        self.in_first_statement = True

    def read(self, token: Token) -> None:
        kind, scope = token.kind, self.scopes[-1]
        if kind is Kind.WORD:
            self._word(scope, token)
        elif kind is Kind.NAME:
            self._name(scope, token)
        elif kind is Kind.MARK and (mark := _MARKS.get(token.key)):
            mark(self, scope, token.key)
        elif scope.state in _ENDED_BY_OTHERS:
            scope.state = _State.IDLE
        self.previous = token.key

    # Words

    def _word(self, scope: _Scope, token: Token) -> None:
        key, state = token.key, scope.state
        if key == "SELECT" and scope.verb.nests:
            self._begin(scope, token, _INNER_VERBS[key])
        elif key == "WITH" and self._with_begins(scope):
            scope.state, scope.cte, scope.recursive = _State.CTE, "", False
        elif self._verb(scope, token) or self._step(scope, token):
            pass
        elif key in scope.clauses and self.previous != "DISTINCT":  # IS DISTINCT FROM is an operator
            scope.state = _State.TARGET
            scope.clauses -= {key}
            scope.listing = scope.verb.listing or key in _LISTING_CLAUSES
        elif key == "JOIN" and scope.listing:
            scope.state = _State.TARGET
        elif state in _WAITS_FOR_NAME and (key not in _NEVER_A_TARGET or key in scope.verb.fillers):
            self._name(scope, token)
        else:
            self._other(scope, key)

    def _with_begins(self, scope: _Scope) -> bool:
        return scope.state in _STARTS or self.previous in _WITH_FOLLOWS or scope.verb is _INSERT

    def _verb(self, scope: _Scope, token: Token) -> bool:
        """Begin an operation where one is waited for."""
        state = scope.state
        if state is _State.CTE and not scope.cte:
            return False  # a name of a CTE, whatever it reads like
        opened = state is _State.TARGET and scope.verb is _ALONE  # the beginning of FROM ( … or FROM [ …
        verbs = _VERBS if state is _State.VERB else _INNER_VERBS
        if not (opened or state in _BEFORE_VERB) or token.key not in verbs:
            return False
        self._begin(scope, token, verbs[token.key])
        return True

    def _begin(self, scope: _Scope, token: Token, verb: _Verb) -> None:
        self._finish_cte(scope)
        if self.in_first_statement and (self.main < 0 or len(self.scopes) == 1):
            self.main = len(self.items)
            self.in_first_statement = len(self.scopes) > 1
        self.items.append(token.text)
        scope.verb, scope.state, scope.clauses = verb, verb.state, verb.clauses
        scope.listing = verb.listing and verb.state is not _State.IDLE
        scope.words = 0

    def _step(self, scope: _Scope, token: Token) -> bool:
        """Lengthen the operation by a word that belongs to it."""
        if scope.state not in _IN_PHRASE or token.key not in scope.verb.steps:
            return False
        self.items[-1] += f" {token.text}"
        scope.state = scope.verb.steps[token.key]
        if scope.verb.steps is _OBJECT_STEPS:
            scope.clauses = _OBJECT_CLAUSES.get(token.key, frozenset())
        return True

    def _other(self, scope: _Scope, key: str) -> None:
        if key in _SET_OPERATIONS:
            scope.state, scope.listing = _State.INNER, False
        elif key in _END_OF_LIST:
            scope.listing = False
        if scope.state in _ENDED_BY_OTHERS:
            scope.state = _State.IDLE

    # Names

    def _name(self, scope: _Scope, token: Token) -> None:
        """Take a name where one is waited for."""
        state = scope.state
        if state is _State.CTE:
            self._cte_name(scope, token)
        elif state is _State.WORDS:
            self.items.append(_shown(token))
            scope.words += 1
            if scope.words == _WORDS_LIMIT:
                scope.state = _State.IDLE
        elif state in _WAITS_FOR_NAME and token.key not in scope.verb.fillers:
            scope.state = _State.IDLE
            if _folded(token) not in self.ctes:
                self.items.append(_shown(token))
        elif state in _ENDED_BY_OTHERS and state not in _WAITS_FOR_NAME:
            scope.state = _State.IDLE

    def _cte_name(self, scope: _Scope, token: Token) -> None:
        if token.key == "RECURSIVE" and self.previous == "WITH":
            scope.recursive = True
        elif not scope.cte:
            scope.cte = _folded(token)
            if scope.recursive:
                self.ctes.add(scope.cte)

    def _finish_cte(self, scope: _Scope) -> None:
        if scope.cte:
            self.ctes.add(scope.cte)
            scope.cte = ""

    # Marks

    def _open(self, scope: _Scope, key: str) -> None:
        state = scope.state
        if state is _State.TARGET:
            inner = _Scope(_State.TARGET, listing=True)
            scope.state = _State.IDLE
        elif state in _BEFORE_VERB and (state is not _State.CTE or self.previous in _BEFORE_BODY):
            inner = _Scope(_State.INNER)
        else:
            inner = _Scope(_State.QUERY if key != "{" else _State.IDLE)
            if state in _ENDED_BY_OTHERS:
                scope.state = _State.IDLE
        self.scopes.append(inner)

    def _close(self, _scope: _Scope, _key: str) -> None:
        if len(self.scopes) > 1:
            self.scopes.pop()

    def _comma(self, scope: _Scope, _key: str) -> None:
        if scope.state is _State.CTE:
            self._finish_cte(scope)
        elif scope.listing:
            scope.state = _State.TARGET
        elif scope.state in _ENDED_BY_OTHERS:
            scope.state = _State.IDLE

    def _semicolon(self, _scope: _Scope, _key: str) -> None:
        self.scopes = [_Scope(_State.VERB)]
        self.ctes.clear()
        self.in_first_statement = self.main < 0


_BEFORE_BODY = words("AS MATERIALIZED")
_BEFORE_VERB = frozenset({_State.VERB, _State.INNER, _State.CTE})
_IN_PHRASE = frozenset({_State.PHRASE, _State.NAMING})
_WAITS_FOR_NAME = frozenset({_State.TARGET, _State.NAMING, _State.WORDS, _State.CTE})
_ENDED_BY_OTHERS = frozenset({_State.VERB, _State.QUERY, _State.TARGET, _State.NAMING, _State.WORDS})
_MARKS = {
    **dict.fromkeys("([{", _Reader._open),
    **dict.fromkeys(")]}", _Reader._close),
    ",": _Reader._comma,
    ";": _Reader._semicolon,
}


def _shown(token: Token) -> str:
    """Return a name as it stands in the summary, without the quotes it does not need."""
    if token.kind is Kind.WORD:
        return token.text
    parts = ((part, _unquoted(part)) for part in name_parts(token.text))
    return ".".join(bare if _PLAIN_NAME.fullmatch(bare) else part for part, bare in parts)


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part[0] == '"' else part


def _folded(token: Token) -> str:
    """Return a name as the server compares it. A dotted one keeps its dot and so is never a CTE's."""
    return _unquoted(token.text) if token.text[0] == '"' else token.text.lower()


def summarise(tokens: Iterable[Token], limit: int) -> tuple[str, str]:
    """Return the summary, cut between two of its items, and the verb of the main operation in upper case.

    The main operation is the first of the outermost level: of ``WITH x AS (SELECT …) INSERT …`` it is INSERT.
    """
    reader = _Reader()
    for token in tokens:
        reader.read(token)
    operation = reader.items[reader.main].partition(" ")[0].upper() if reader.main >= 0 else ""
    return _joined(reader.items, limit), operation


def _joined(items: list[str], limit: int) -> str:
    length, count = -1, 0
    for item in items:
        length += 1 + len(item)
        if length > limit:
            break
        count += 1
    return " ".join(items[:count])
