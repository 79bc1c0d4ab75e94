# SPDX-License-Identifier: Apache-2.0
"""The few statements in CockroachDB's dialect that are put into PostgreSQL's words on their way."""

from __future__ import annotations

import re

# PostgreSQL takes unknown settings only when their names have a dot.
SETTINGS = {
    # django-cockroachdb sets it before it changes a column's type: 4.2 does always, later ones before v25.1.
    b"SET enable_experimental_alter_column_type_general": (
        b"SET cockroachdb.enable_experimental_alter_column_type_general"
    ),
    # run_transaction(retry_priority=…); CockroachDB: docs page set-transaction.
    b"SET TRANSACTION PRIORITY": b"SET LOCAL cockroachdb.transaction_priority TO",
}
# django-cockroachdb 6.1 writes the indexes of a new table into its CREATE TABLE (CockroachDB: docs page
# create-table).
CREATE_TABLE = re.compile(rb'CREATE TABLE ("[^"]+") \(')
# CockroachDB drops a database that others are connected to (docs page drop-database).
DROP_DATABASE = re.compile(rb'DROP DATABASE (?:IF EXISTS )?(?:"[^"]+"|\w+)\Z')
INLINE_INDEX = re.compile(rb', INDEX ("[^"]+") (\([^()]*\))')


def translated(text: bytes) -> bytes:
    """Give a statement in PostgreSQL's words; all but a few pass as they are."""
    for foreign, known in SETTINGS.items():
        if text.startswith(foreign):
            return known + text[len(foreign) :]
    if DROP_DATABASE.match(text):
        return text + b" WITH (FORCE)"
    table = CREATE_TABLE.match(text)
    indexes = INLINE_INDEX.findall(text) if table else []
    if not indexes:
        return text
    assert table is not None
    after = [b"CREATE INDEX %b ON %b %b" % (name, table[1], columns) for name, columns in indexes]
    return b"; ".join([INLINE_INDEX.sub(b"", text), *after])
