# SPDX-License-Identifier: Apache-2.0
"""From SQL text to summary, operation and masked text."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_crdb import sqltokens, statements
from otel_crdb.statements import READ_LIMIT, TEXT_LIMIT, Statement, StatementCache, batch, describe

USER_COLUMNS = '"auth_user"."id", "auth_user"."password", "auth_user"."username"'

#: What Django's ORM, schema editor and transactions send: the text, its summary, its masked text ("" where unchanged).
DJANGO = [
    (
        (
            f'SELECT {USER_COLUMNS} FROM "auth_user" INNER JOIN "auth_user_groups" ON ("auth_user"."id" ='
            ' "auth_user_groups"."user_id") WHERE ("auth_user_groups"."group_id" = %s AND "auth_user"."id" IN (%s)) LIMIT 21'
        ),
        "SELECT auth_user auth_user_groups",
        (
            f'SELECT {USER_COLUMNS} FROM "auth_user" INNER JOIN "auth_user_groups" ON ("auth_user"."id" ='
            ' "auth_user_groups"."user_id") WHERE ("auth_user_groups"."group_id" = %s AND "auth_user"."id" IN (%s)) LIMIT ?'
        ),
    ),
    (
        (
            'SELECT "auth_user"."id" FROM "auth_user" WHERE EXISTS(SELECT %s AS "a" FROM "auth_group" U0 INNER JOIN'
            ' "auth_user_groups" U1 ON (U0."id" = U1."group_id") WHERE U1."user_id" = ("auth_user"."id") LIMIT 1)'
        ),
        "SELECT auth_user SELECT auth_group auth_user_groups",
        (
            'SELECT "auth_user"."id" FROM "auth_user" WHERE EXISTS(SELECT %s AS "a" FROM "auth_group" U0 INNER JOIN'
            ' "auth_user_groups" U1 ON (U0."id" = U1."group_id") WHERE U1."user_id" = ("auth_user"."id") LIMIT ?)'
        ),
    ),
    (
        (
            '(SELECT "a"."id" AS "col1" FROM "a" WHERE "a"."id" IN (SELECT U1."b_id" AS "b" FROM "b" U0 LEFT OUTER JOIN'
            ' "a_b" U1 ON (U0."id" = U1."b_id"))) UNION (SELECT "c"."id" AS "col1" FROM "c")'
        ),
        "SELECT a SELECT b a_b SELECT c",
        "",
    ),
    (
        (
            'SELECT EXTRACT(YEAR FROM "e"."at" AT TIME ZONE %s) AS "y", SUBSTRING("e"."name", %s, %s) AS "s",'
            ' TRIM("e"."name") AS "t" FROM "e" WHERE UPPER("e"."name"::text) LIKE UPPER(%s)'
        ),
        "SELECT e",
        "",
    ),
    (
        'SELECT "a"."id" FROM "a" WHERE "a"."id" = %s FOR UPDATE OF "a" SKIP LOCKED',
        "SELECT a",
        "",
    ),
    ('SELECT 1 AS "a" FROM "a" LIMIT 1', "SELECT a", 'SELECT ? AS "a" FROM "a" LIMIT ?'),
    (
        'SELECT COUNT(*) FROM (SELECT DISTINCT "a"."x" AS "col1" FROM "a") subquery',
        "SELECT SELECT a",
        "",
    ),
    (
        'INSERT INTO "bank_transfer" ("src", "amount") VALUES (%s, %s), (%s, %s), (%s, %s) RETURNING "bank_transfer"."id"',
        "INSERT bank_transfer",
        'INSERT INTO "bank_transfer" ("src", "amount") VALUES (%s, %s) RETURNING "bank_transfer"."id"',
    ),
    (
        (
            'INSERT INTO "g" ("name") SELECT * FROM UNNEST((%s)::varchar[]) ON CONFLICT("name") DO UPDATE SET "name" ='
            ' EXCLUDED."name"'
        ),
        "INSERT g SELECT UNNEST",
        "",
    ),
    (
        'UPDATE "bank_account" SET "balance" = ("bank_account"."balance" - %s) WHERE "bank_account"."id" IN (%s, %s)',
        "UPDATE bank_account",
        'UPDATE "bank_account" SET "balance" = ("bank_account"."balance" - %s) WHERE "bank_account"."id" IN (%s)',
    ),
    (
        'DELETE FROM "public"."bank_account" WHERE "id" IN (%s, %s, %s)',
        "DELETE public.bank_account",
        'DELETE FROM "public"."bank_account" WHERE "id" IN (%s)',
    ),
    (
        'CREATE TABLE "t" ("id" integer DEFAULT unique_rowid() NOT NULL PRIMARY KEY, "n" varchar(30) NOT NULL)',
        "CREATE TABLE t",
        'CREATE TABLE "t" ("id" integer DEFAULT unique_rowid() NOT NULL PRIMARY KEY, "n" varchar(?) NOT NULL)',
    ),
    (
        (
            'ALTER TABLE "t" ADD CONSTRAINT "fk" FOREIGN KEY ("u_id") REFERENCES "u" ("id") ON DELETE CASCADE ON UPDATE'
            " SET NULL"
        ),
        "ALTER TABLE t",
        "",
    ),
    ('CREATE UNIQUE INDEX "i" ON "t" ("c" DESC)', "CREATE INDEX i t", ""),
    ('DROP INDEX IF EXISTS "i" CASCADE', "DROP INDEX i", ""),
    ('TRUNCATE "a", "b" CASCADE;', "TRUNCATE a b", ""),
    (
        'SET CONSTRAINTS "x" IMMEDIATE; ALTER TABLE "t" DROP CONSTRAINT "x"',
        "SET CONSTRAINTS ALTER TABLE t",
        "",
    ),
    ('SAVEPOINT "s140_x1"', "SAVEPOINT", "SAVEPOINT ?"),
    ('RELEASE SAVEPOINT "s140_x1"', "RELEASE SAVEPOINT", "RELEASE SAVEPOINT ?"),
    ('ROLLBACK TO SAVEPOINT "s140_x1"', "ROLLBACK TO SAVEPOINT", "ROLLBACK TO SAVEPOINT ?"),
    ("SAVEPOINT cockroach_restart", "SAVEPOINT", ""),
    (
        "SELECT set_config('TimeZone', 'UTC', false)",
        "SELECT",
        "SELECT set_config(?, ?, false)",
    ),
]

#: What users write, and what only CockroachDB knows.
BY_HAND = [
    ("select * from T where a = 1", "select T", "select * from T where a = ?"),
    ("SELECT * FROM songs, artists, (d CROSS JOIN e) AS x, f", "SELECT songs artists d e f", ""),
    ('SELECT * FROM "song list", "a""b", "x-y"', 'SELECT "song list" "a""b" x-y', ""),
    (
        "SELECT date FROM (SELECT * FROM orders o JOIN customers c ON o.c = c.id) q",
        "SELECT SELECT orders customers",
        "",
    ),
    ("SELECT * FROM ONLY a, LATERAL (SELECT x FROM b) y", "SELECT a SELECT b", ""),
    (
        "SELECT * FROM generate_series(1, 9) WITH ORDINALITY AS g(x), t",
        "SELECT generate_series t",
        "SELECT * FROM generate_series(?, ?) WITH ORDINALITY AS g(x), t",
    ),
    ("SELECT f(1, 'a')", "SELECT", "SELECT f(?, ?)"),
    ("SELECT a IS DISTINCT FROM b FROM t WHERE c IS NOT DISTINCT FROM d", "SELECT t", ""),
    (
        "SELECT SUBSTRING(x FROM 1 FOR 2), TRIM(BOTH FROM x), OVERLAY(a PLACING b FROM 3) FROM t",
        "SELECT t",
        "SELECT SUBSTRING(x FROM ? FOR ?), TRIM(BOTH FROM x), OVERLAY(a PLACING b FROM ?) FROM t",
    ),
    (
        "SELECT * FROM t@idx, u@{FORCE_INDEX=idx,ASC}, [SHOW TABLES]",
        "SELECT t u SHOW TABLES",
        "",
    ),
    (
        "SELECT DATE '2020-01-01' - INTERVAL '1 day', -1.5e-3, 0x1F, .5, X'ff', B'01', b'\\'', N'n', U&'\\0061'",
        "SELECT",
        "SELECT DATE ? - INTERVAL ?, -?, ?, ?, ?, ?, ?, ?, ?",
    ),
    (
        "SELECT 'it''s', E'it\\'s', $$d$$, $tag$ $$ ' $tag$, '\\x00'::bytea",
        "SELECT",
        "SELECT ?, ?, ?, ?, ?::bytea",
    ),
    (
        "SELECT d->'a'->>'b', d @> '{}', d ? 'k', a && ARRAY['x', 'y'], %(p)s, $1, 5 %% 2, x::int[] FROM t",
        "SELECT t",
        "SELECT d->?->>?, d @> ?, d ? ?, a && ARRAY[?], %(p)s, $1, ? %% ?, x::int[] FROM t",
    ),
    (
        "SELECT 1 FROM t WHERE a IN ('x'::uuid, 'y'::uuid) AND (b, c) NOT IN ((1, -2), (3, NULL)) AND d IN (f(1), 2)",
        "SELECT t",
        "SELECT ? FROM t WHERE a IN (?::uuid) AND (b, c) NOT IN ((?, -?)) AND d IN (f(?), ?)",
    ),
    (
        "SELECT /* a /* nested */ 'x' */ 1 -- it's\n, 2 FROM /**/t/* b */WHERE a IN (1 /* one */, 2)",
        "SELECT t",
        "SELECT ? , ? FROM t WHERE a IN (?)",
    ),
    ("SELECT a FROM t UNION ALL (SELECT b FROM u) INTERSECT SELECT c FROM v", "SELECT t SELECT u SELECT v", ""),
    ("INSERT INTO t (a) SELECT b FROM s", "INSERT t SELECT s", ""),
    ("INSERT INTO t WITH q AS (TABLE s) SELECT * FROM q", "INSERT t TABLE s SELECT", ""),
    ("UPSERT INTO t VALUES ($1, $2)", "UPSERT t", ""),
    ("UPDATE ONLY t AS x SET a = s.b FROM s JOIN u ON true", "UPDATE t s u", ""),
    ("DELETE FROM t USING s JOIN u USING (id)", "DELETE t s u", ""),
    ("DELETE FROM t USING s, u WHERE t.a = s.a", "DELETE t s u", ""),
    (
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN UPDATE SET b = c WHEN NOT MATCHED THEN DELETE",
        "MERGE t s",
        "",
    ),
    (
        ("WITH x AS (INSERT INTO t (a) VALUES (1), (2) RETURNING id), y (n) AS MATERIALIZED (SELECT * FROM x, t)"
        " SELECT * FROM x JOIN u ON true JOIN y ON true"),
        "INSERT t SELECT t SELECT u",
        ("WITH x AS (INSERT INTO t (a) VALUES (?) RETURNING id), y (n) AS MATERIALIZED (SELECT * FROM x, t)"
        " SELECT * FROM x JOIN u ON true JOIN y ON true"),
    ),
    (
        "WITH RECURSIVE r AS (SELECT a FROM s UNION ALL SELECT b FROM r JOIN tree ON true) SELECT * FROM r",
        "SELECT s SELECT tree SELECT",
        "",
    ),
    ("WITH t AS (SELECT * FROM t) DELETE FROM z USING t", "SELECT t DELETE z", ""),
    ('WITH "T" AS (SELECT 1) SELECT * FROM "T", t', "SELECT SELECT t", 'WITH "T" AS (SELECT ?) SELECT * FROM "T", t'),
    ("EXPLAIN ANALYZE (DISTSQL) SELECT * FROM t", "EXPLAIN SELECT t", ""),
    ("EXPLAIN (ANALYZE, VERBOSE) UPDATE t SET a = b", "EXPLAIN UPDATE t", ""),
    ("BEGIN; SELECT a FROM t; COMMIT", "BEGIN SELECT t COMMIT", ""),
    ("START TRANSACTION ISOLATION LEVEL READ COMMITTED", "START TRANSACTION", ""),
    ("ROLLBACK AND NO CHAIN", "ROLLBACK", ""),
    ("rollback to my_point", "rollback to", "rollback to ?"),
    ("SET application_name = 'x'", "SET application_name", "SET application_name = ?"),
    ("SET LOCAL search_path TO a, b", "SET LOCAL search_path", ""),
    ("SET TIME ZONE 'UTC'", "SET TIME ZONE", "SET TIME ZONE ?"),
    ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY", "SET TRANSACTION", ""),
    ("SET CLUSTER SETTING kv.x.y = 5", "SET CLUSTER SETTING kv.x.y", "SET CLUSTER SETTING kv.x.y = ?"),
    ("RESET ALL", "RESET ALL", ""),
    ("SHOW CREATE TABLE t", "SHOW CREATE TABLE t", ""),
    ("SHOW COLUMNS FROM t WITH COMMENT", "SHOW COLUMNS t", ""),
    ("CREATE TABLE IF NOT EXISTS a AS SELECT * FROM b", "CREATE TABLE a SELECT b", ""),
    ("CREATE OR REPLACE VIEW v AS WITH q AS (SELECT * FROM z) SELECT * FROM q", "CREATE VIEW v SELECT z SELECT", ""),
    ("CREATE SEQUENCE s START 5", "CREATE SEQUENCE s", "CREATE SEQUENCE s START ?"),
    ("CREATE CHANGEFEED FOR TABLE t INTO 'kafka://k?secret=x'", "CREATE CHANGEFEED t", "CREATE CHANGEFEED FOR TABLE t INTO ?"),
    ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO u", "ALTER DEFAULT PRIVILEGES", ""),
    ("DROP TABLE IF EXISTS a, b CASCADE", "DROP TABLE a b", ""),
    ('COPY "t" ("a", "b") FROM STDIN', "COPY t", ""),
    ("COPY (SELECT * FROM t) TO STDOUT", "COPY SELECT t", ""),
    ("CALL p(1)", "CALL p", "CALL p(?)"),
    ("TABLE t", "TABLE t", ""),
    ("VALUES (1, 'a'), (2, 'b')", "VALUES", "VALUES (?, ?)"),
    ("LISTEN c", "LISTEN c", ""),
    ("ANALYZE t", "ANALYZE t", ""),
    ("GRANT SELECT, UPDATE ON TABLE a, b TO c", "GRANT a b", ""),
    ("COMMENT ON COLUMN t.c IS 'x'", "COMMENT t.c", "COMMENT ON COLUMN t.c IS ?"),
    ("IMPORT INTO t (a) CSV DATA ('s3://k?secret=x')", "IMPORT t", "IMPORT INTO t (a) CSV DATA (?)"),
    ("BACKUP TABLE a, b INTO 's3://k?secret=x'", "BACKUP a b", "BACKUP TABLE a, b INTO ?"),
    ('DECLARE "curs_1" CURSOR FOR SELECT * FROM t', "DECLARE SELECT t", "DECLARE ? CURSOR FOR SELECT * FROM t"),
    ("CREATE USER bob WITH PASSWORD 'x'", "CREATE USER bob", "CREATE USER bob WITH PASSWORD ?"),
    ("ALTER ROLE bob PASSWORD hunter2 CREATEDB", "ALTER ROLE bob", "ALTER ROLE bob PASSWORD ? CREATEDB"),
    ('ALTER USER bob WITH ENCRYPTED PASSWORD = "h"', "ALTER USER bob", "ALTER USER bob WITH ENCRYPTED PASSWORD = ?"),
    ("ALTER USER bob PASSWORD a-b!c; SELECT d", "ALTER USER bob SELECT", "ALTER USER bob PASSWORD ?????; SELECT d"),
    ("ALTER USER bob PASSWORD NULL", "ALTER USER bob", ""),
    ("hello world 'x'", "", "hello world ?"),
    ("  \n\t", "", ""),
]  # fmt: skip


def ids(table):
    return [row[0][:40] for row in table]


@pytest.mark.parametrize(("sql", "summary", "text"), DJANGO, ids=ids(DJANGO))
def test_what_django_sends(sql, summary, text):
    """The statements of Django's ORM, schema editor and transactions have these summaries and texts."""
    statement = describe(sql)
    assert (statement.summary, statement.text) == (summary, text or sql)


@pytest.mark.parametrize(("sql", "summary", "text"), BY_HAND, ids=ids(BY_HAND))
def test_what_users_write(sql, summary, text):
    """Hand-written SQL, and what only CockroachDB knows, has these summaries and texts."""
    statement = describe(sql)
    assert (statement.summary, statement.text) == (summary, text or sql.strip())


@pytest.mark.parametrize(
    ("sql", "operation"),
    [
        ("select 1", "SELECT"),
        ("(SELECT a FROM t) UNION (SELECT b FROM u)", "SELECT"),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "INSERT"),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x", "SELECT"),
        ("(SELECT a FROM t); DELETE FROM u", "SELECT"),
        ("CREATE TABLE t (a int)", "CREATE"),
        ("ROLLBACK TO SAVEPOINT s", "ROLLBACK"),
        ("EXPLAIN SELECT 1", "EXPLAIN"),
        ("gibberish", ""),
    ],
)
def test_main_operation(sql, operation):
    """The operation is the verb of the outermost level of the first statement, in upper case."""
    assert describe(sql).operation == operation


@pytest.mark.parametrize(
    ("sql", "expression"),
    [
        ("SELECT * FROM t AS OF SYSTEM TIME '-5s' WHERE a = 'x'", "'-5s'"),
        ("SELECT * FROM t AS OF SYSTEM TIME follower_read_timestamp()", "follower_read_timestamp()"),
        ("BEGIN AS OF SYSTEM TIME with_max_staleness('10s')", "with_max_staleness('10s')"),
        ("SET TRANSACTION AS OF SYSTEM TIME now() - INTERVAL '1 min', READ ONLY", "now() - INTERVAL '1 min'"),
        ("SELECT * FROM (SELECT a FROM t AS OF SYSTEM TIME %s) x", "%s"),
        ('SELECT * FROM t AS OF SYSTEM TIME \'{"key": "a secret"}\'', "?"),
        (f"SELECT * FROM t AS OF SYSTEM TIME f('1s', {'g(' * 40}'2s'", "f(?, " + "g(" * 28 + " …"),
        ("SELECT * FROM t AS OF SYSTEM TIME", ""),
        ("SELECT system FROM t", ""),
    ],
)
def test_as_of_system_time(sql, expression):
    """The expression after AS OF SYSTEM TIME is given with its times, and other literals are masked there too."""
    statement = describe(sql)
    assert statement.as_of_system_time == expression
    assert "'" not in statement.text


@pytest.mark.parametrize(
    "opening", ["'", "E'", "b'", "X'", '"', "/*", "/* /* */", "$$", "$tag$ $$", "E'\\", "U&'", "'a'' "]
)
def test_what_is_left_open_is_masked_to_the_end(opening):
    """After a quote, comment or dollar quote that never closes, nothing is shown."""
    assert describe(f"SELECT 1, {opening} secret FROM t").text == "SELECT ?, ?"


def test_a_list_is_read_one_way_only():
    """Where the values of a list are no list, they are not read in another way until they are one."""
    assert SECRET not in describe(f"SELECT a IN ((1), (E'\\', 'b', 'c')) {SECRET}").text


def test_an_escape_string_goes_on_with_its_backslashes():
    """A string that continues on the next line is read by the rules of its beginning."""
    assert describe("SELECT E'a' \n -- c\n 'b\\', secret' FROM t").text == "SELECT ? ? FROM t"


def test_bytes_with_inlined_values_show_none_of_them():
    """What psycopg2's execute_values() sends, bytes with every value in them, is masked as well."""
    sql = b"INSERT INTO t (a, b) VALUES (1, 'secret-1'),(2, E'\\\\secret-\xff'),(NULL, '{\"k\": 1}'::jsonb)"
    assert describe(sql) == Statement("INSERT t", "INSERT", "INSERT INTO t (a, b) VALUES (?, ?)")


def test_the_number_of_values_makes_no_new_text():
    """Lists and rows of any length give one text: whole, cut where reading ends, or with comments in them."""

    def texts(sql, item, sizes=(2, 3, 50, 200)):
        return {describe(sql.format(", ".join([item] * n))).text for n in sizes}

    for item in ("%s", "$1", "'x'::uuid", "E'\\''", "-1.5", "%s /* , */"):
        assert len(texts("SELECT a FROM t WHERE b IN ({}) AND c = 1", item)) == 1
        assert len(texts("SELECT ARRAY[{}]", item)) == 1
        assert len(texts("SELECT a IN ({}, ", item)) == 1
        assert texts('SELECT a IN ({},  "left open', item) == texts("SELECT a IN ({}", item, [1])
    for item in ("(%s, 'x')", "(1, now())", "(ARRAY['a', 'b'], f('x'::bytea))", "(%s, -- (\n DEFAULT)"):
        assert len(texts("INSERT INTO t VALUES {} RETURNING a", item)) == 1
        cut = {describe(f"/*{'x' * n}*/INSERT INTO t VALUES " + f"{item}, " * 9000).text for n in range(40)}
        assert len(cut) == 1


def test_a_summary_is_cut_between_items():
    """A long summary ends with a whole target, and has room for the batch prefix."""
    tables = [f"table_{n}" for n in range(100)]
    summary = describe("SELECT * FROM " + ", ".join(tables)).summary
    assert 230 < len(batch(Statement(summary)).summary) <= 255
    assert summary.split()[1:] == tables[: len(summary.split()) - 1]


def test_the_batch_form_is_prefixed():
    """What executemany() sends is a batch of its statement, and of an unknown one still a batch."""
    assert batch(describe("INSERT INTO t VALUES (%s)")).summary == "BATCH INSERT t"
    assert batch(describe("gibberish")).summary == "BATCH"


class Rude:
    """Has no usable text, truth or hash."""

    def __raise(self, *_):
        raise RuntimeError

    __str__ = __repr__ = __bool__ = __hash__ = __eq__ = __len__ = __raise


@pytest.mark.parametrize("sql", [None, 1, object(), [], {}, Rude(), bytearray(b"SELECT 1")])
def test_what_is_no_text_is_empty(sql):
    """Anything but a string or bytes gives an empty statement."""
    assert describe(sql) == Statement()


def test_a_subclass_of_str_is_read_by_its_text():
    """A string class with a mind of its own is described by the text it holds."""
    assert (
        describe(type("Odd", (str,), {"__str__": lambda _: "DROP", "__hash__": None})("SELECT 1")).text
        == "SELECT ?"
    )


# Properties

SECRET = "hunter2"
CLOSED = [
    "'{}'", "'%s {} %(x)s'", "'\\{}'", "'it''s {}'", "E'\\'{}'", "e'\\\\\\'{}'", "E'a'\n'\\'{}'", "b'\\'{}'", "x'{}'", "B'{}'", "N'{}'",
    "U&'\\0027{}'", "$${}$$", "$t${}$t$", "$t$ $$ ' {} $t$", "'\"{}'", "'-- {}'", "'/* {}'", "/* {} */",
    "/* /* */ {} */",
]  # fmt: skip
QUOTINGS = [
    *CLOSED, "'{}", "E'\\'{}", "$${}", "$q${}$$", "/* {}", "-- {}\n", "-- '{}\n", '"{}',
]  # fmt: skip
NUMBERS = [
    "8675309",
    "8675309.5",
    ".8675309",
    "8675309e5",
    "1.8675309e-5",
    "0x8675309",
    "8675309abc",
    "1e+8675309",
]
FRAGMENTS = [
    "SELECT", "select", "FROM", "WHERE", "IN", "VALUES", "ARRAY", "(", ")", "[", "]", "{", "}", ",", ";", ".", "*", "a",
    "t", '"q"', '"a b"', "a.b", "%s", "%%", "%(x)s", "$1", "?", "'x'", "E'\\''", "1", "-", "+", "::", "::int", "/", "--",
    "\n", " ", "/*", "*/", "$$", "$a$", "'", '"', "\\", "NULL", "SAVEPOINT", "s1", "CREATE USER u", "PASSWORD", "=", "WITH",
    "AS", "OF", "SYSTEM TIME", "INSERT INTO", "UPDATE", "DELETE", "JOIN", "UNION", "SHOW", "SET", "EXPLAIN", "ROLLBACK TO",
    "f(", "…", "\x00", "\ud800", "é", "E", "U&", "x", "$", "%", "b'", "5$a$", "RECURSIVE", "USING", "ON", "\x85", "1.5e3",
]  # fmt: skip
sql_like = st.lists(st.sampled_from(FRAGMENTS), max_size=40).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda gap: gap.join(parts))
)
closed = st.lists(
    st.sampled_from(
        [part for part in FRAGMENTS if not set(part) & set("'\"$\\/*-") and part not in {"E", "U&", "x"}]
    ),
    max_size=12,
).map(" ".join)
PROPERTY = settings(max_examples=400, deadline=None)


def assert_sound(sql, statement):
    fields = (statement.summary, statement.operation, statement.text, statement.as_of_system_time)
    for field in fields:
        field.encode()
        assert field.isprintable()
    assert len(statement.summary) <= 249
    assert len(statement.text) <= TEXT_LIMIT
    assert len(statement.as_of_system_time) <= 64


@PROPERTY
@given(st.one_of(st.text(), st.binary(), sql_like, st.text(alphabet=st.characters(codec=None))))
def test_any_input_gives_a_sound_statement(sql):
    """No text or bytes raise, and whatever comes out is bounded, printable and valid UTF-8."""
    assert_sound(sql, describe(sql))


@PROPERTY
@given(st.one_of(sql_like, st.text(alphabet="'\"$E\\()[],-/*?%s;INa \n…")))
def test_a_masked_text_stays_as_it_is(sql):
    """Masking is idempotent."""
    text = describe(sql).text
    assert describe(text).text == text


@PROPERTY
@given(closed, st.sampled_from(QUOTINGS), closed)
def test_no_quoted_literal_leaks(before, quoting, after):
    """Nothing inside any kind of quotes, or of a comment, comes out in summary or text."""
    statement = describe(f"{before} {quoting.format(SECRET)} {after}")
    assert SECRET not in statement.text + statement.summary + statement.operation


@PROPERTY
@given(
    closed,
    st.sampled_from(NUMBERS),
    st.sampled_from(["{}", "({})", "-{}", "+{},", "a={}", "a<{}", "[{}]"]),
    closed,
)
def test_no_number_leaks(before, number, place, after):
    """No digit of a number comes out in summary or text."""
    statement = describe(f"{before} {place.format(number)} {after}")
    assert "8675309" not in statement.text + statement.summary + statement.operation


@PROPERTY
@given(
    st.lists(st.sampled_from(CLOSED), min_size=1, max_size=6),
    st.sampled_from([" IN (", " ARRAY[", " VALUES ("]),
)
def test_no_literal_leaks_from_a_list(quotings, opening):
    """A list whose elements are told apart wrongly would show one: none does, closed or not."""
    elements = ", ".join(quoting.format(SECRET) for quoting in quotings)
    for closing in ("", ")", "]", "), (x'", " y)"):
        assert SECRET not in describe(f"SELECT{opening}{elements}{closing}").text


# Large texts, linear time, and the cache


@pytest.fixture(autouse=True)
def _empty_cache():
    statements.cache_clear()
    yield
    statements.cache_clear()


@pytest.mark.parametrize("encode", [str, str.encode], ids=["str", "bytes"])
def test_ten_megabytes_are_described_and_not_remembered(encode):
    """Of a huge INSERT only the beginning is read: the summary is right, the text ends there, nothing is kept."""
    sql = encode("INSERT INTO t (a, b) VALUES " + "(1, 'x'), " * 1_000_000 + "(2, 'y') RETURNING unread")
    assert describe(sql) == Statement("INSERT t", "INSERT", "INSERT INTO t (a, b) VALUES (?, ?) …")
    assert statements.cache_info().entries == 0


@pytest.mark.parametrize("character", ["a", "é", "9", "_"])
def test_a_name_at_the_end_of_what_is_read_is_left_out(character):
    """Half a name would be another table's: it is not shown."""
    sql = "SELECT * FROM " + character * READ_LIMIT
    assert describe(sql) == Statement("SELECT", "SELECT", "SELECT * FROM …")
    assert describe(sql.encode()).text == "SELECT * FROM …"


def test_a_long_text_is_cut_after_a_token():
    """A text above the limit ends with a whole token and an ellipsis."""
    names = [f"column_{n}" for n in range(1000)]
    text = describe(f"SELECT {', '.join(names)} FROM t").text
    assert TEXT_LIMIT - 20 < len(text) <= TEXT_LIMIT
    assert text.endswith((" …", ", …"))
    assert set(text.removesuffix("…").replace(",", "").split()[1:]) <= set(names)


PATHOLOGICAL = [
    "'", "''", '"', '""', "E'\\", "$a$", "$", "$a", "/*", "/**/", "-", "--\n", "(", "[", "((", "a.", '"a".', "%(", "%(a",
    "1e", "1e+", ".", "\n", " ", "a ", "1", "IN (", "IN (1,", "IN (1, ", "VALUES (1),", "VALUES (f(", "ARRAY[1,",
    "IN ('',", "IN (E'\\',", ", (1", "::int", "1 ::int ", "SELECT ", "FROM (", "WITH a AS (", ";", "…", "NULL", "b'", "U&",
]  # fmt: skip


@pytest.mark.parametrize("unit", PATHOLOGICAL)
@pytest.mark.parametrize("head", ["", "SELECT 1 IN (1", "INSERT INTO t VALUES (1", "SELECT E'a' "])
def test_repetition_costs_one_pass(unit, head, monkeypatch):
    """However a text repeats itself, each character is taken by one token only."""
    taken = []
    pattern = sqltokens._TOKEN

    class Counting:
        @staticmethod
        def match(sql, position):
            found = pattern.match(sql, position)
            if found:
                taken.append(found.end() - position)
            return found

    monkeypatch.setattr(sqltokens, "_TOKEN", Counting)
    sql = (head + unit * READ_LIMIT)[:READ_LIMIT]
    sqltokens.tokenize(sql)
    assert sum(taken) <= len(sql)
    assert_sound(sql, statements._describe(sql))


def test_the_cache_is_bounded_in_bytes():
    """A hundred thousand distinct texts leave the cache within its limit."""
    cache = StatementCache()
    for n in range(100_000):
        text = f"SELECT column_{n} FROM t"
        cache.put(text, Statement("SELECT t", "SELECT", text))
    info = cache.info()
    assert 1000 < info.entries < 100_000
    assert info.limit * 0.99 < info.size <= info.limit


def test_describe_remembers_a_text():
    """The same text is worked out once."""
    sql = "SELECT a FROM t"
    assert describe(sql) is describe(f"{sql[:6]}{sql[6:]}")
    assert statements.cache_info().entries == 1


def test_the_least_recently_used_text_is_forgotten_first():
    """A text in use stays, however many others come."""
    cache = StatementCache(limit=20_000)
    kept = cache.put("kept", Statement("kept"))
    for n in range(1000):
        cache.put(f"other {n}", Statement())
        assert cache.get("kept") is kept
    assert cache.get("other 0") is None
    before = cache.info()
    cache.put("kept", kept)
    assert cache.info() == before
    assert cache.info().size <= 20_000


def test_an_entry_above_the_limit_is_not_kept():
    """One text that is larger than the whole cache leaves it empty and its count right."""
    cache = StatementCache(limit=1000)
    cache.put("x" * 2000, Statement())
    assert cache.info()[:2] == (0, 0)


def test_threads_share_the_cache():
    """Texts described from many threads at once are right, and the count of bytes stays right."""
    cache = StatementCache(limit=50_000)
    wrong = []

    def work():
        for n in range(2000):
            text = f"text {n % 300}"
            known = cache.get(text) or cache.put(text, Statement(text))
            if known.summary != text:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.info().size == sum(
        statements._weight(f"text {n}", Statement(f"text {n}")) for n in range(300) if cache.get(f"text {n}")
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_forked_child_is_not_blocked_by_a_lock_it_inherits():
    """A process forked while another thread was in the cache can describe statements."""
    program = """
        import os, threading, warnings
        from otel_crdb import statements
        warnings.simplefilter("ignore")
        held = threading.Event()
        def hold():
            with statements._CACHE._lock:
                held.set()
                threading.Event().wait(20)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if not child:
            os._exit(statements.describe("SELECT 1").operation != "SELECT")
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=15)
