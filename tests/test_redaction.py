# SPDX-License-Identifier: Apache-2.0
"""What may leave the process: no key, no row, no value, no secret of a URL."""

from __future__ import annotations

import dataclasses
import time
import traceback

import django.db.utils
import psycopg
import psycopg2
import psycopg2.errors
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from otel_crdb.errors import classify
from otel_crdb.redaction import mask_error_text, mask_url_query, scrub_text

SECRET = "s3cr3tAlice"


def table(text: str) -> list[list[str]]:
    """Split a table of columns set apart by `|`; the last column may hold one."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    width = lines[0].count("|")
    return [[cell.strip() for cell in line.split("|", width)] for line in lines[1:]]


# What of a message stays, word for word. `-` is no SQLSTATE.
MASKED = table("""
code  | message => what stays
23505 | duplicate key value violates unique constraint "t_b_key" => =
23505 | duplicate key value (email)=('a') violates unique constraint "k" => duplicate key value (email)=(…) violates unique constraint "k"
23502 | null value in column "b" of relation "t" violates not-null constraint => =
23503 | insert on table "a" violates foreign key constraint "fk" => =
23514 | failed to satisfy CHECK constraint (balance >= 0:::INT8) => failed to satisfy CHECK constraint (balance >= …)
23503 | foreign key violation: value ['a' 3] not found in b@primary [id] => foreign key violation: …
42P01 | relation "public.t" does not exist => =
3D000 | database "bank" does not exist => =
42703 | column "x" does not exist => =
42P18 | could not determine data type of placeholder $1 => =
42601 | at or near "a": syntax error => at or near …
42804 | incompatible type annotation for 4111111111111111 as string => incompatible type annotation for … as string
22P02 | invalid input syntax for type integer: "a" => invalid input syntax for type integer: …
22P02 | could not parse "a" as type int: strconv.ParseInt: parsing "a": invalid syntax => could not parse …
22P02 | invalid input value for enum mood: "a" => invalid input value for enum …
22P02 | constraint "a" relation "b" column "c" => …
22001 | value too long for type VARCHAR(3) => value too long for type VARCHAR(…)
22003 | integer out of range => =
22003 | numeric value 4111 out of range => numeric value … out of range
22008 | date/time field value out of range: "a" => date/time field value out of range: …
22012 | division by zero => =
22023 | invalid locale klingon: language: tag is not well-formed => invalid locale … is not …
P0001 | account 5 of Alice is blocked => … of … is …
-     | invalid input syntax for type date: "a"b"c" => invalid input syntax for type date: …
-     | missing "=" after "a" in connection info string => missing …
-     | account 4111111111 has no funds, port 26257 => account … has no funds, port 26257
-     | Key (email)=(a) already exists. => Key (email)=(…) already exists.
-     | Failing row contains (1, a, null). => Failing …
55P03 | could not obtain lock on row (id, n)=(1,'a) in x@y b') in t@t_pkey => could not obtain lock on row (id, n)=(…) in t@t_pkey
55P03 | could not obtain lock on row (id)=(1) and more => could not obtain lock on row (id)=(…)
40001 | retry txn (RETRY_SERIALIZABLE): "sql txn" meta={id=07d42834 key=/Table/1/1/0} => retry txn (RETRY_SERIALIZABLE): …
40001 | write for key /Table/106/1/"a"/0 at timestamp 1 too old => write for key /Table/106/1/…
40001 | write for key /Tenant/2/Table/106/1/5/0 too old => write for key /Tenant/2/Table/106/1/…
40001 | write for key /Table/106/1{-/PrefixEnd} too old => write for key /Table/106/…
40001 | conflicting txn: meta={id=1b2bf263 key=/Table/1/1/0} => conflicting txn: …
40001 | injected by `inject_retry_errors_enabled` session variable => =
58C00 | key range id:5 is unavailable: "\\xf2a" => key range id:5 is unavailable: …
XXUUU | replica unavailable: (n1,s1):1 unable to serve request to r9:‹/Table/17{8-9}› x => replica unavailable: (n1,s1):… unable to serve request to r9:…
53200 | memory budget exceeded: 10240 bytes requested, 1 currently allocated => =
57P01 | server is not accepting clients, try another node => =
-     | connection to server at "db.example", port 26257 failed: Connection refused => =
-     | failed to resolve host 'db.example': Name or service not known => =
28P01 | password authentication failed for user "app" => =
42883 | the server doesn't know 'a' => the server doesn't know …
""")


@pytest.mark.parametrize(("code", "case"), MASKED, ids=[f"{row[0]}-{row[1][:40]}" for row in MASKED])
def test_what_stays_of_a_message(code: str, case: str) -> None:
    """The server's words and the names it calls by their noun stay, values go."""
    message, _, stays = case.partition(" => ")
    assert mask_error_text(message, None if code == "-" else code) == (message if stays == "=" else stays)


@pytest.mark.parametrize(
    "section",
    [
        "DETAIL:  Key (email)=(a) already exists.",
        "HINT:  try a",
        "CONTEXT:  JSON data, line 1: a",
        "LINE 1: SELECT 'a'\n               ^",
        "STATEMENT:  SELECT 'a'",
        "QUERY:  SELECT 'a'",
        "WHERE: a",
        "[SQL: INSERT …]\n[parameters: ('a',)]",
    ],
)
@pytest.mark.parametrize("joint", ["\n", "\r\n", " "], ids=["line", "crlf", "joined"])
def test_further_parts_are_dropped(section: str, joint: str) -> None:
    """Only the primary message leaves, also where somebody joined the parts into one line."""
    message = 'duplicate key value violates unique constraint "k"'
    assert mask_error_text(message + joint + section, "23505") == message


def test_translated_parts_are_dropped() -> None:
    """A part whose name is translated is told by its line."""
    message = "la valeur d'une clé dupliquée rompt la contrainte unique « k »"
    masked = mask_error_text(f"{message}\nDÉTAIL : La clé « (email)=(alice) » existe déjà.", "23505")
    assert masked.startswith("la valeur d")
    assert "alice" not in masked


# Templates of every message that carries a value, of all versions; %s is where it stands.
TEMPLATES = [
    ("23505", 'duplicate key value violates unique constraint "k"\nDETAIL:  Key (email)=(%s) already exists.'),
    ("23505", "duplicate key value (email)=('%s') violates unique constraint \"k\""),
    ("23503", 'insert on table "a" violates foreign key constraint "f"\nDETAIL:  Key (x)=(%s) is not present in "b".'),
    ("23503", "foreign key violation: value ['%s'] not found in b@primary [id]"),
    ("23502", 'null value in column "b" violates not-null constraint\nDETAIL:  Failing row contains (1, %s, null).'),
    ("23514", 'new row for relation "t" violates check constraint "c"\nDETAIL:  Failing row contains (%s).'),
    ("22P02", 'invalid input syntax for type integer: "%s"\nLINE 1: SELECT \'%s\'::int\n               ^'),
    ("22P02", 'could not parse "%s" as type int: strconv.ParseInt: parsing "%s": invalid syntax'),
    ("22P02", 'error in argument for $1: could not parse "%s" as type uuid: uuid: incorrect UUID length: %s'),
    ("22P02", 'invalid input value for enum mood: "%s"'),
    ("22P02", "invalid input syntax for type json\nDETAIL:  Token \"%s\" is invalid.\nCONTEXT:  JSON data, line 1: %s"),
    ("22007", 'invalid value "%s" for "YYYY"\nDETAIL:  Value must be an integer.'),
    ("22008", 'date/time field value out of range: "%s"'),
    ("22023", "unrecognized timezone '%s'"),
    ("42601", 'at or near "%s": syntax error\nDETAIL:  source SQL:\nSELECT \'%s\'\n       ^\nHINT:  try \\h SELECT'),
    ("42601", 'unterminated quoted string at or near "\'%s"\nLINE 1: select \'%s\n               ^'),
    ("42804", "argument of WHERE must be type bool, not '%s'"),
    ("55P03", "could not obtain lock on row (id)=('%s') in t@t_pkey"),
    ("55P03", "canceling statement due to lock timeout on row (id, n)=(1,'%s') in t@t_pkey"),
    ("40001", ('restart transaction: TransactionRetryWithProtoRefreshError: WriteTooOldError: write for key '
              '/Table/106/1/"%s"/0 at timestamp 1,0 too old; must write at or above 2,0: "sql txn" meta={id=07d42834 '
              'key=/Table/106/1/"%s"/0 pri=0.1 epo=0}')),
    ("40001", ("restart transaction: TransactionRetryWithProtoRefreshError: write exclusion on key "
              '/Tenant/2/Table/106/1/"%s"/0 expected since 1 but found write at 2: "sql txn" meta={id=07d42834}')),
    ("40001", ("restart transaction: TransactionRetryWithProtoRefreshError: TransactionRetryError: retry txn "
              "(RETRY_SERIALIZABLE - failed preemptive refresh due to a conflict: committed value on key "
              '/Table/123/8/"%s"/0): "sql txn" meta={id=dcf48ead key=/Table/123/8/"%s"/0}')),
    ("40001", ("restart transaction: TransactionRetryWithProtoRefreshError: TransactionRetryError: retry txn "
              '(RETRY_SERIALIZABLE - failed preemptive refresh due to conflicting locks on /Table/106/1/"%s"/0 '
              '[reason=wait_policy] - conflicting txn: meta={id=1b2bf263 key=/Table/106/1/"%s"/0}): "sql txn" meta={'
              'id=07d42834 key=/Table/106/1/"%s"/0 iso=Serializable}')),
    ("40001", ("restart transaction: TransactionRetryError: retry txn (RETRY_ASYNC_WRITE_FAILURE - missing intent on: "
              '/Table/106/1/"%s"/0)')),
    ("40003", 'result is ambiguous: error=rpc error: Put [/Table/106/1/"%s"/0] [propagate]'),
    ("XXUUU", ("replica unavailable: (n1,s1):1 unable to serve request to r18:/Table/106/1/{\"%s\"-\"z\"} [(n1,s1):1]: "
              'have been waiting 60.50s for slow proposal Put [/Table/15/1/"%s"], [txn: 54b09f72]')),
    ("58C00", 'key range id:5 is unavailable: "%s"'),
    ("XX000", "internal error: unexpected value '%s'\nDETAIL:  stack trace:\n%s"),
    ("XXA00", ('transaction committed but schema change aborted with error: (23505): duplicate key value '
              "(x)=('%s') violates unique constraint \"k\"")),
    ("P0001", "%s"),
    (None, 'missing "=" after "%s" in connection info string'),
]  # fmt: skip
# Words of the server and quotes of all kinds, as an attacker would put them round what he wants to see pass.
TRICK_WORDS = """
"
'
)
(
=
‹
›
" constraint "
relation "x
) in a@b
) already exists.
DETAIL:
/Table/1/1/
"sql txn" meta={id=07d42834
value
it's
"""
TRICKS = st.lists(
    st.sampled_from([*TRICK_WORDS.strip().splitlines(), "\n", "\n\n", " ", "\\", "\\n", "\t"])
    | st.text(max_size=8),
    max_size=6,
).map("".join)


def raised(code: str | None, text: str, driver: str) -> str:
    """Format the trace of a driver's error under Django's wrapper, as a SERVER span records it."""
    if driver == "psycopg":
        cause = psycopg.errors._class_for_state(code)(text) if code else psycopg.OperationalError(text)
    else:
        cause = (
            psycopg2.errors.lookup(code)(text)
            if code and not code.startswith(("XX", "58"))
            else psycopg2.InternalError(text)
        )
    wrapper = {"22": django.db.utils.DataError, "23": django.db.utils.IntegrityError}.get(
        (code or "")[:2], django.db.utils.OperationalError
    )
    try:
        try:
            raise cause
        except (psycopg.Error, psycopg2.Error) as error:
            raise wrapper(*error.args) from error
    except django.db.utils.Error as error:
        fields = dataclasses.asdict(classify(error) or pytest.fail("no classification"))
        assert SECRET not in repr(fields)
        return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(("code", "template"), TEMPLATES, ids=[f"{c}-{t[:40]}" for c, t in TEMPLATES])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@settings(max_examples=25, deadline=None)
@given(before=TRICKS, after=TRICKS)
@example(before="", after="")
@example(before='" constraint "', after='"')
@example(before="x\n\n", after="")
@example(before='x" ', after=' "y')
@example(before=") in a@b", after="\n")
@example(before=") in a@b", after="\nDETAIL:  x")
def test_no_value_leaves(code: str | None, template: str, driver: str, before: str, after: str) -> None:
    """A secret planted in any message, in whatever it is wrapped, is in no text and no field that leaves."""
    text = template.replace("%s", f"{before}{SECRET}{after}")
    assert SECRET not in mask_error_text(text, code)
    assert SECRET not in mask_error_text(text + "\n", code)
    assert SECRET not in scrub_text(raised(code, text, driver))


@pytest.mark.parametrize(
    ("code", "template"), [row for row in TEMPLATES if row[0] != "P0001"], ids=lambda value: str(value)[:30]
)
def test_no_value_leaves_without_a_code(code: str | None, template: str) -> None:
    """Where the SQLSTATE is not known the words decide, and nothing leaves either."""
    text = template.replace("%s", SECRET)
    name = psycopg.errors._class_for_state(code).__name__ if code else "OperationalError"
    assert SECRET not in mask_error_text(text)
    assert SECRET not in scrub_text(f"{name}: {text}")
    assert SECRET not in scrub_text(f"django.db.utils.OperationalError: {text}")


@given(
    text=st.text(max_size=400),
    code=st.one_of(st.none(), st.sampled_from(["22P02", "23505", "40001", "XXUUU"])),
)
def test_masking_never_raises(text: str, code: str | None) -> None:
    """Any text gives one bounded line."""
    masked = mask_error_text(text, code)
    assert "\n" not in masked
    assert len(masked) <= 1_000


def unreadable(self: object) -> str:
    """Raise where a text is read."""
    raise RuntimeError("not readable")


@pytest.mark.parametrize("value", [None, b"abc", 5, ["x"], type("Hostile", (), {"__str__": unreadable})()])
def test_what_is_no_text_never_raises(value: object) -> None:
    """Whatever is passed in place of a text gives a text."""
    for function in (mask_error_text, scrub_text, mask_url_query):
        assert isinstance(function(value), str)
    assert isinstance(mask_error_text("x", value), str)


PIECES = """
"
(
)=(
[
/Table/1/
‹
it's
1
DETAIL
Key (
File "
meta={
(a)=(b) in
&key=
%25
LINE 1
on row (
a.
"""


@pytest.mark.parametrize("piece", [*PIECES.strip().splitlines(), " ", "a ", "x\n", "psycopg.x: \n"])
def test_huge_texts_cost_little(piece: str) -> None:
    """Megabytes are masked in linear time and come back bounded."""
    text = piece * (4_000_000 // len(piece))
    started = time.process_time()
    assert len(mask_error_text(text, "23505")) <= 1_000
    assert len(mask_error_text(text, "22P02")) <= 1_000
    assert len(mask_error_text(text)) <= 1_000
    assert len(scrub_text(text)) <= 16 * 1024
    assert len(scrub_text("psycopg.Error: " + text)) <= 16 * 1024
    assert len(mask_url_query(text)) <= 64 * 1024
    assert time.process_time() - started < 3


# --- free text ------------------------------------------------------------------------------------

HARMLESS = [
    "",
    "\n",
    "GET /orders/5 failed",
    "ValueError: invalid literal for int() with base 10: 'abc'",
    'Traceback (most recent call last):\n  File "/app/x.py", line 1, in f\n    g("a")\n    ^^^^^^\nKeyError: \'a\'\n',
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'\n\nDuring handling of x\n",
    "line one\r\nline two\r\n\r\nline four",
    "details: the key (a) is fine; LINE 1 of 2",
    "see /Tables/x and the table's constraint",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_text_without_a_database_error_is_unchanged(text: str) -> None:
    """A text that holds no database error comes back as it is."""
    assert scrub_text(text) == text


TRACE = """Traceback (most recent call last):
  File "/app/db/backends/utils.py", line 105, in _execute
    return self.cursor.execute(sql, params)
           ~~~~~~~~~~~~~~~~~~~^^^^^^^^^^^^^
psycopg2.errors.UniqueViolation: duplicate key value violates unique constraint "k"
DETAIL:  Key (email)=(alice
\tand
bob) already exists.


The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/app/views.py", line 7, in view
    User.objects.create(email="fixed")
    raise IntegrityError("restart transaction: x")
django.db.utils.IntegrityError: duplicate key value violates unique constraint "k"
DETAIL:  Key (email)=(alice) already exists.
"""


def test_trace_keeps_its_frames() -> None:
    """Of a trace frames, source lines and the links between exceptions stay, messages are masked."""
    expected = [line for line in TRACE.splitlines() if not line.startswith(("DETAIL", "\tand", "bob"))]
    del expected[5:7]  # the blank lines after the first message belong to it
    assert scrub_text(TRACE).splitlines() == expected


def test_exception_group_keeps_its_frames() -> None:
    """Messages inside an exception group are found behind its bars."""
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/x.py", line 1, in f\n'
        "  |     raise group\n"
        "  | ExceptionGroup: two (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/app/x.py", line 2, in g\n'
        "    |     raise error\n"
        '    | psycopg.errors.UniqueViolation: duplicate key value violates unique constraint "k"\n'
        "    | DETAIL:  Key (a)=(alice) already exists.\n"
        "    +---------------- 2 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/app/x.py", line 3, in h\n'
        "    |     raise other\n"
        "    | ValueError: could not save: Key (a)=(alice) already exists.\n"
    )
    scrubbed = scrub_text(text)
    assert "alice" not in scrubbed
    for kept in (
        "raise group",
        "line 2, in g",
        "raise error",
        'constraint "k"',
        "line 3, in h",
        "ValueError: could not",
    ):
        assert kept in scrubbed


@pytest.mark.parametrize(
    "text",
    [
        'duplicate key value violates unique constraint "k"\nDETAIL:  Key (email)=(alice) already exists.',
        'UniqueViolation: duplicate key value violates unique constraint "k"\nDETAIL:  Key (email)=(alice) already exists.',
        "sqlalchemy.exc.IntegrityError: (psycopg.errors.UniqueViolation) dup\nDETAIL: x=(alice)\n[SQL: …]\n[parameters: alice]",
        "could not save: UniqueViolation('duplicate key value\\nDETAIL:  Key (email)=(alice) already exists.')",
        "order 5: invalid input syntax for type integer: \"alice\"\nLINE 1: select 'alice'",
        'wrote: at or near "alice": syntax error\nDETAIL:  source SQL:\nselect alice',
        "the row was DETAIL:  Failing row contains (1, alice).",
        'write for key /Table/106/1/"alice"/0 at timestamp 1',
        "psycopg.errors.RaiseException: hello alice\nCONTEXT:  x",
        "DataError: alice",
        "failed on row (name)=(alice) in t@p",
    ],
)
def test_recognised_without_a_trace(text: str) -> None:
    """A status description or a log line with a database error's words is masked from there on."""
    assert "alice" in text
    assert "alice" not in scrub_text(text)


def test_only_what_follows_the_error_is_masked() -> None:
    """The text before a database error's words stays."""
    assert scrub_text('saving order 5: at or near "a"').startswith("saving order 5: at or near ")


def test_long_trace_keeps_head_and_tail() -> None:
    """Of a long trace the first frames and the last message stay."""
    text = "first line\n" + "  filler\n" * 5_000 + "psycopg.errors.X: it's (a)=(b)\n"
    scrubbed = scrub_text(text)
    assert scrubbed.startswith("first line\n")
    assert scrubbed.endswith("psycopg.errors.X: it's (a)=(…)")
    assert len(scrubbed) <= 16 * 1024


@given(text=st.text(max_size=400))
def test_scrubbing_is_stable(text: str) -> None:
    """A scrubbed text is scrubbed: once more changes nothing."""
    once = scrub_text(text)
    assert scrub_text(once) == once


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("server refused alice@example.com", "server refused …"),
        ("invalid option password=abc", "invalid option password=…"),
    ],
)
def test_secrets_in_a_message(text: str, masked: str) -> None:
    """An address or a password in a message that names no column is masked in it, and in a free text."""
    assert mask_error_text(text, "42000") == masked
    assert scrub_text(text) == masked
    assert scrub_text(f"psycopg.errors.InternalError_: {text}").endswith(masked)


# --- a URL's query --------------------------------------------------------------------------------


SECRET_NAMES = """
AWSAccessKeyId Signature sig X-Goog-Signature password new_password token secret api_key apikey access_token key
session sessionid SESSION_ID client-secret X-Api-Key user%5Bpassword%5D pass%77ord csrfmiddlewaretoken refreshToken
?sig X-Amz-Security-Token
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_secret_names_are_masked(name: str) -> None:
    """The values OpenTelemetry names and those of the usual secrets are replaced, however the name is spelt."""
    assert mask_url_query(f"a=1&{name}=abc%20d=e&b=2") == f"a=1&{name}=REDACTED&b=2"


@pytest.mark.parametrize(
    "query", ["", "a=1", "monkey=1&keyboard=2", "a&b=&=c", "page=2;sort=x", "signed=1", "token", "key="]
)
def test_other_queries_are_unchanged(query: str) -> None:
    """Without a secret's name and value a query stays as it is."""
    assert mask_url_query(query) == query


@given(query=st.text(max_size=200))
def test_query_masking_never_raises(query: str) -> None:
    """Any text comes back with as many parts as it had."""
    assert mask_url_query(query).count("&") == query.count("&")
