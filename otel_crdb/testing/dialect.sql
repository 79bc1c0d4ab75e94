-- SPDX-License-Identifier: Apache-2.0
--
-- What django-cockroachdb calls and PostgreSQL lacks. Run by psql as superuser, once in every database that
-- others are made from; :crdb_version is the text the server announces at start-up.
--
-- The server's search_path is `public, cockroachdb, pg_catalog`: what stands here hides PostgreSQL's own
-- functions of the same name, while tables are still made in public. No table or view may stand here, for
-- introspection lists those of every schema that the search path names.

CREATE SCHEMA cockroachdb;
GRANT USAGE ON SCHEMA cockroachdb TO PUBLIC;

-- `SELECT VERSION()` is how django-cockroachdb learns the version.
CREATE FUNCTION cockroachdb.version() RETURNS text
    LANGUAGE sql STABLE RETURN :'crdb_version'::text;

-- The default of every automatic key. CockroachDB builds 64 bits from the time and the node. Here the columns
-- are PostgreSQL's `integer` of 32 bits (CockroachDB's INTEGER has 64), so the numbers are small; one sequence
-- for all tables of a database keeps them distinct, and different from the 1, 2, 3 of a serial column.
CREATE SEQUENCE cockroachdb.rowid START 1001;
GRANT USAGE ON SEQUENCE cockroachdb.rowid TO PUBLIC;
CREATE FUNCTION cockroachdb.unique_rowid() RETURNS bigint
    LANGUAGE sql VOLATILE RETURN nextval('cockroachdb.rowid');

-- django-cockroachdb's telemetry calls it once a process, on the first connection.
CREATE SCHEMA crdb_internal;
GRANT USAGE ON SCHEMA crdb_internal TO PUBLIC;
CREATE FUNCTION crdb_internal.increment_feature_counter(feature text) RETURNS boolean
    LANGUAGE sql VOLATILE RETURN true;
