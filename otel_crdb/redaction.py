# SPDX-License-Identifier: Apache-2.0
"""What of a text may leave the process: error messages without values, URLs without secrets.

CockroachDB and PostgreSQL put keys, rows and literals into their error texts, unescaped as often as not,
so quotes cannot be trusted to balance. Masking therefore fails closed: it keeps the server's own words up
to the first sign of a value and drops the rest of the message, save where the rest is known to be the
server's again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .secret_forms import MASK, REDACTED, as_text, mask_secrets
from .secret_names import Sureness, sureness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["mask_error_text", "mask_url_path", "mask_url_query", "scrub_text"]

#: Characters that are looked at and that are given back: of a message, of a free text, of a query.
_MESSAGE_INPUT, _MESSAGE_OUTPUT = 16 * 1024, 1_000
_TEXT_INPUT, _TEXT_OUTPUT = 256 * 1024, 16 * 1024
_QUERY_LIMIT = 16 * 1024

# --- one message ----------------------------------------------------------------------------------

#: Parts that libpq appends to the message, also where somebody joined the lines into one.
_SECTION = re.compile(
    r"(?:\\n)?(?:DETAIL|HINT|CONTEXT|LINE \d{1,9}|STATEMENT|QUERY|WHERE|LOCATION|SQLSTATE|parameters?):\s"
    r"|\[SQL:"
)
#: An apostrophe of English words; every other one opens a literal.
_CONTRACTION = re.compile(r"(?<=[A-Za-z]{2})'(?=(?:t|s|re|ve|ll)\b)")
_NUMBER = re.compile(r"(?<![\w$.@/\"-])(?<!\bport )[-+]?\d[\w.,:+]*")

#: Signs of a value: a quote of any kind or a redaction mark; a row as `(columns)=(values)`; a span, a row
#: or a transaction's own string; a key of the key space (CockroachDB: pkg/keys/printer.go,
#: pkg/roachpb/data.go).
_VALUE_SIGN = re.compile(
    r"(?P<quote>[\"'`‹›«»“”„‘’])|(?P<row>\)\s?=\s?\()|(?P<rest>meta=\{|\bvalues? \[|\brow contains \()"
    r"|(?P<key>/(?:(?:Tenant|Table|Local|Meta\d|System|NamespaceTable|Min|Max)(?![a-z])|\{))"
)
_KEY_PREFIX = re.compile(r"(?:/Tenant/\d{1,10})?/Table/\d{1,10}(?:/\d{1,10}(?=/))?(?=/)")
#: What the server says after a row; anything else there may still be the row's.
_AFTER_ROW = re.compile(
    r" in [\w$.-]{1,128}@[\w$.-]{1,128}| already exists\.?|(?: violates unique constraint"
    r'| is not present in table| is still referenced from table) "[\w$.-]{1,128}"\.?'
)
#: Words before a quoted name. Whatever else is quoted is taken for a value.
_NAMED = re.compile(
    r"(?<!\w)(?:constraint|relation|column|database|table|index|view|schema|sequence|type|function|procedure"
    r"|role|user|savepoint|cursor|portal|statement|parameter|extension|trigger|language|collation|server at"
    r"|host|host name|socket|region|cluster setting|session variable|injected by)\s\Z",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[\w$.:/-]{1,128}")

#: Words of class 22 messages (PostgreSQL backend/utils/adt, CockroachDB pkg/sql/sem and pkg/sql/types). A
#: word not among them may be a value, quoted or not.
_DATA_VOCABULARY = """
    a absolute allowed an and any argument arguments array as at be bigint binary bind bit bits boolean
    bool bound bounds by byte bytea bytes calendar can cannot cast char character characters check code
    column compare computed context contain convert could data date date/time dates day days decimal
    decode decoding defined digits dimension dimensions divide division does domain double element
    elements empty encode encoding end enum error escape exceed exceeds execute expected expression
    extract failed field fields float float4 float8 for format found from full function geography geometry
    greater hex has hours in incompatible incorrect index inet input int int2 int4 int8 integer interval
    into invalid is it its json jsonb key large larger least length less limit locale log logarithm long
    malformed match matching maximum microseconds minimum minutes missing month months more must name near
    negative no nor not null number numeric object odd of offset on one only operation operator or out
    outside overflow parameter parse parsing path pattern point positive power precision query range real
    record recognized regexp regular representation requires result row rows run scalar scale second
    seconds sequence session shift short should size smallint specified sql square start statement step
    string subquery subscript substring supported syntax take text than the time timestamp timestamptz
    timetz timezone to token too trailing truncated type types unable undefined unexpected unicode unknown
    unrecognized unsupported unterminated uuid value values varbit varchar varying violation was when
    width window with without year years zero zone
"""
_DATA_WORDS = frozenset(_DATA_VOCABULARY.split())
_DATA_TEXT = re.compile(
    r"invalid (?:input|value|locale|byte|escape|regular|UUID|timestamp|time zone)|could not parse|too long"
    r"|out of range|incorrect UUID|parsing |\bat or near\b",
    re.IGNORECASE,
)
#: SQLSTATEs whose text is the value's or the application's: class 22, and what a RAISE or an ASSERT says.
_DATA_CODES = ("22", "P0001", "P0004")
#: CockroachDB's failed assertions (pkg/sql/pgwire/pgerror/flatten.go); what follows may be anything.
_INTERNAL = "internal error:"
#: SQLSTATEs in whose texts a bare number may be a literal; without a SQLSTATE it may be one too.
_LITERAL_CODES = ("23", "42", "XX")


def mask_error_text(text: object, sqlstate: str | None = None) -> str:
    """Return what of a database error's text may leave the process: one line, at most 1,000 characters.

    That is the primary message without DETAIL, HINT, CONTEXT, LINE and the like, without keys, rows and
    values. Names after a noun (`constraint "x"`, `relation "x"`) stay, and so do table and index id of a
    key (`/Table/106/1/…`). Of class 22 nothing quoted stays, no number, and no word that is not the
    server's. Secrets are masked in what stays. Never raises; time is linear.

    Args:
        text: the error's text as the driver gives it, or the error, whose `__str__` may raise.
        sqlstate: the error's code; where it is None the words decide whether the error is of class 22.

    """
    code = sqlstate if isinstance(sqlstate, str) else None
    text = as_text(text, _MESSAGE_INPUT + 1)
    line = _primary_message(text[:_MESSAGE_INPUT])
    is_whole = len(text) <= _MESSAGE_INPUT and line == text.strip()
    if line.startswith(_INTERNAL):
        return f"{_INTERNAL} {MASK}"
    if code.startswith(_DATA_CODES) if code else _DATA_TEXT.search(line):
        masked = _mask_data_error(line)
    else:
        # Where more follows, the line may end inside a row: the line break tells `_AFTER_ROW` so.
        masked = _mask_values(line if is_whole else f"{line}\n").rstrip()
        if code is None or code.startswith(_LITERAL_CODES):
            masked = _NUMBER.sub(MASK, masked)
    masked = mask_secrets(masked)
    return masked if len(masked) <= _MESSAGE_OUTPUT else masked[: _MESSAGE_OUTPUT - 1] + MASK


def _primary_message(text: str) -> str:
    line = text.lstrip().partition("\n")[0].partition("\r")[0]
    section = _SECTION.search(line)
    return (line[: section.start()] if section else line).rstrip()


def _mask_data_error(line: str) -> str:
    """Keep the server's own words up to the first quote; a word that may be a value is masked."""
    sign = _VALUE_SIGN.search(_CONTRACTION.sub("_", line))
    words = (line[: sign.start()] if sign else line).split()
    masked = [word if word.strip("().,:;").lower() in _DATA_WORDS else _mask_word(word) for word in words]
    if sign:
        masked.append(MASK)
    return re.sub(rf"{MASK}(?: {MASK})+", MASK, " ".join(masked))


def _mask_word(word: str) -> str:
    """Mask a word; of `VARCHAR(3)` the type stays."""
    name, parenthesis, _ = word.partition("(")
    return f"{name}({MASK})" if parenthesis and name.lower() in _DATA_WORDS else MASK


def _mask_values(line: str) -> str:
    """Keep the server's words and the names it calls by their noun; end at the first value."""
    readable = _CONTRACTION.sub("_", line)
    kept: list[str] = []
    position = 0
    while sign := _VALUE_SIGN.search(readable, position):
        piece, resume = _KEEP[str(sign.lastgroup)](line, sign.start(), sign.end())
        kept += (line[position : sign.start()], piece)
        if resume is None:
            return "".join(kept)
        position = resume
    return "".join(kept) + line[position:]


def _keep_name(line: str, start: int, end: int) -> tuple[str, int | None]:
    """Keep `noun "name"`; anything else in quotes ends the message."""
    close = line.find(line[start], end, end + 129)
    is_name = close > 0 and _IDENTIFIER.fullmatch(line, end, close)
    if is_name and _NAMED.search(line[max(0, start - 32) : start]):
        return line[start : close + 1], close + 1
    return MASK, None


def _keep_columns(line: str, start: int, end: int) -> tuple[str, int | None]:
    """Mask `=(values)` up to the last parenthesis: values may hold parentheses of their own."""
    close = line.rfind(")", end)
    known = close > 0 and _AFTER_ROW.fullmatch(line, close + 1)
    return f")=({MASK})", (close + 1 if known else None)


def _keep_table(line: str, start: int, end: int) -> tuple[str, int | None]:
    """Keep table and index of a key; what follows it may be part of it."""
    prefix = _KEY_PREFIX.match(line, start)
    return (f"{prefix.group()}/{MASK}" if prefix else MASK), None


def _keep_nothing(line: str, start: int, end: int) -> tuple[str, int | None]:
    return MASK, None


#: What to keep of the line from a sign on, and where to go on reading (None: nowhere).
_KEEP: dict[str, Callable[[str, int, int], tuple[str, int | None]]] = {
    "quote": _keep_name,
    "row": _keep_columns,
    "rest": _keep_nothing,
    "key": _keep_table,
}

# --- free text ------------------------------------------------------------------------------------

_INDENT = r"[ |+]{0,64}"
#: The drivers' classes whose text is the value's or the application's own: class 22, and what a RAISE says.
_DATA_CLASSES = (
    "DataError|RaiseException|AssertFailure|DataException|InvalidTextRepresentation|InvalidBinaryRepresentation"
    "|InvalidDatetimeFormat|DatetimeFieldOverflow|IntervalFieldOverflow|InvalidParameterValue|DivisionByZero"
    "|NumericValueOutOfRange|StringDataRightTruncation|StringDataLengthMismatch|InvalidRegularExpression"
    "|InvalidJsonText|ArraySubscriptError|SubstringError|CharacterNotInRepertoire|UntranslatableCharacter"
    "|InvalidEscapeSequence|InvalidEscapeCharacter|InvalidCharacterValueForCast|FloatingPointException"
)
#: Their other classes whose text may hold a value; by Python's own name alone (`SyntaxError`) none is known.
_OTHER_CLASSES = (
    "(?:Database|Integrity|Interface|Internal|NotSupported|Operational|Programming|TransactionManagement"
    "|AmbiguousCommit|RetriesExhausted)Error|InternalError_|IntegrityConstraintViolation|RestrictViolation"
    "|NotNullViolation|ForeignKeyViolation|UniqueViolation|CheckViolation|ExclusionViolation"
    "|WithCheckOptionViolation|SerializationFailure|StatementCompletionUnknown|DeadlockDetected|LockNotAvailable"
    "|DatatypeMismatch|CannotCoerce|UndefinedColumn|UndefinedFunction|UndefinedObject|UndefinedParameter"
    "|UndefinedTable|AmbiguousFunction|IndeterminateDatatype|GroupingError|WrongObjectType|FeatureNotSupported"
    "|InvalidColumnReference|InvalidName|NameTooLong|QueryCanceled|ProgramLimitExceeded|IoError"
    "|PlpgsqlError|CardinalityViolation"
)
_DATA_CLASS = re.compile(rf"\b(?:{_DATA_CLASSES}): ")
_EXCEPTION_LINE = re.compile(
    _INDENT + r"(?:(?:psycopg2?(?:_pool)?|django\.db)\.[\w.]{1,128}"
    rf"|(?:[\w.]{{1,128}}\.)?(?:{_DATA_CLASSES}|{_OTHER_CLASSES})): "
)
_NAMED_ERROR = re.compile(rf"\b(?:{_DATA_CLASSES}|{_OTHER_CLASSES}): ")
_CLASS_NAME = re.compile(r"[A-Z]\w{5,64}: ")
#: Words only a database's error has, whoever wrote the line.
_MARKER = re.compile(
    r"(?m)duplicate key value|violates (?:unique|foreign key|check|not-null|exclusion) constraint"
    r"|restart transaction:|invalid input syntax for|invalid input value for enum|could not parse [\"'‹]"
    r"|value too long for type|date/time field value out of range|at or near [\"'‹]|result is ambiguous"
    r"|Failing row contains \(|\bKey \([^\n]{1,256}?\)\s?=\s?\(|\bon row \([^\n]{1,256}?\)\s?=\s?\("
    r"|\bCOPY [\w.\"]{1,128}, line \d"
    r"|/Table/\d{1,10}/\d|meta=\{id=|conflicting (?:locks|intents) on |\b(?:DETAIL|CONTEXT|STATEMENT):  "
    r"|^LINE \d{1,9}: "
)
#: One of these is in each text with such words; to look for them is quick.
_MARKER_SIGNS = (
    *(
        "duplicate key",
        "violates ",
        "restart transaction:",
        "invalid input ",
        "could not parse ",
        "value too long",
    ),
    *(
        "out of range",
        "at or near ",
        "result is ambiguous",
        "Failing row",
        "Key (",
        "on row (",
        "COPY ",
        "/Table/",
    ),
    *("meta={id=", "conflicting ", "DETAIL:", "CONTEXT:", "STATEMENT:", "LINE "),
)
_FRAME = re.compile(rf'({_INDENT})File "[^"\n]{{1,4096}}", line \d{{1,9}}')
_TRACE_HEAD = re.compile(
    r"[ |+-]{0,64}(?:(?:Exception Group )?Traceback|Stack) \(most recent call last\):"
    rf"|{_INDENT}The above exception was the direct cause of"
    rf"|{_INDENT}During handling of the above exception"
)
_INDENTED = re.compile(_INDENT)


def scrub_text(text: object) -> str:
    """Return a free text, such as a formatted stack trace, without secrets and a database error's values.

    Secrets are masked; apart from these a text that holds no database error comes back as it is. In one that
    does, each message is masked as by `mask_error_text` and its further lines are dropped, up to the next
    line that is a trace's own: frames and source lines stay. A blank line ends no message, for a value may
    hold one. At most 16 KiB come back, head and tail; never raises; time is linear.
    """
    text = as_text(text, _TEXT_INPUT)
    if _holds_error(text):
        # A class 22 message may be told again by Django's wrapper, whose name does not say so.
        text = "\n".join(_scrubbed_lines(text.split("\n"), "22000" if _DATA_CLASS.search(text) else None))
    text = mask_secrets(text)
    if len(text) <= _TEXT_OUTPUT:
        return text
    half = _TEXT_OUTPUT // 2
    return f"{text[: half - 2]}\n{MASK}\n{text[-half + 1 :]}"


def _holds_error(text: str) -> bool:
    """Tell whether a database's error is in the text."""
    if "psycopg" in text or "django.db" in text or (_CLASS_NAME.search(text) and _NAMED_ERROR.search(text)):
        return True
    for sign in _MARKER_SIGNS:
        if sign in text:
            return _MARKER.search(text) is not None
    return False


def _scrubbed_lines(lines: list[str], sqlstate: str | None) -> Iterator[str]:
    """Yield the lines that may stay: a trace's own and foreign ones, of a message its first line, masked."""
    in_message = False
    frame_indent: int | None = None
    for line in lines:
        frame = _FRAME.match(line)
        if frame or _TRACE_HEAD.match(line):
            in_message, frame_indent = False, frame.end(1) if frame else None
            yield line
        elif frame_indent is not None and _indent(line) > frame_indent:
            yield line  # source lines stand deeper than their frame, messages do not
        elif not in_message or _EXCEPTION_LINE.match(line):
            frame_indent = None
            masked = _scrubbed_message(line, sqlstate)
            in_message = in_message or masked is not None
            yield line if masked is None else masked


def _indent(line: str) -> int:
    indent = _INDENTED.match(line)
    return indent.end() if indent else 0


def _scrubbed_message(line: str, sqlstate: str | None) -> str | None:
    """Mask a line that begins a database error's message; None for any other line."""
    begin = _EXCEPTION_LINE.match(line)
    marker = None if begin else _MARKER.search(line)
    start = begin.end() if begin else marker.start() if marker else None
    if start is None:
        return None
    # The further line stands for those of the message that are dropped.
    return line[:start] + mask_error_text(f"{line[start:]}\n{MASK}", sqlstate)


# --- a URL --------------------------------------------------------------------------------------


def mask_url_query(query: str) -> str:
    """Return a URL's query with the values of secret-bearing names replaced by `REDACTED`.

    Names are compared without case, punctuation and percent-encoding; order and all else stay. At most 16
    KiB are looked at; never raises.
    """
    return "".join(_masked_part(part) for part in re.split(r"([&;])", as_text(query, _QUERY_LIMIT)))


#: User and password before a host: in the path too, where a request's target is a whole URL. A server may
#: have made one slash of two; then they are known by their colon.
_USER = re.compile(r"(?<=//)[^/?#@]*@|(?<=/)[^/?#@:]*:[^/?#@]*@")


def mask_url_path(path: str) -> str:
    """Return a URL's path, or the URL that stands in its place, with user and password replaced.

    At most 16 KiB are looked at; never raises.
    """
    return _USER.sub(f"{REDACTED}:{REDACTED}@", as_text(path, _QUERY_LIMIT))


def _masked_part(part: str) -> str:
    name, equals, value = part.partition("=")
    return f"{name}={REDACTED}" if equals and value and sureness(name) >= Sureness.IN_QUERY else part
