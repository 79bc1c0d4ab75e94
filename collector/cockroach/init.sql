-- SPDX-License-Identifier: Apache-2.0
-- What the bank needs in a new cluster. It may run again: every statement leaves what is there as it is.
--
-- Written from CockroachDB's documentation of v25.4, and not run on a cluster where it was written.

CREATE DATABASE IF NOT EXISTS bank;
USE bank;

-- Who owns the tables makes and changes them; who serves requests only reads and writes rows; who watches
-- sees what runs, with its constants hidden, and no row. No user has a password: in insecure mode there are
-- none.
CREATE USER IF NOT EXISTS bank_owner;
CREATE USER IF NOT EXISTS bank;
CREATE USER IF NOT EXISTS monitor;

-- Everybody may make tables there otherwise.
REVOKE CREATE ON SCHEMA bank.public FROM public;
GRANT CREATE, CONNECT ON DATABASE bank TO bank_owner;
GRANT CREATE, USAGE ON SCHEMA bank.public TO bank_owner;

-- Of tables that are still to be made too; an owner has every right on his own. (Of all who may make them,
-- not FOR ROLE bank_owner: that asks whoever runs this to be a member of it.)
ALTER DEFAULT PRIVILEGES FOR ALL ROLES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO bank;

GRANT SYSTEM VIEWACTIVITYREDACTED, VIEWCLUSTERMETADATA TO monitor;

-- Slower statements are logged (channel SQL_PERF), and collector/cockroachdb.yaml sends them to Loki.
SET CLUSTER SETTING sql.log.slow_query.latency_threshold = '250ms';

-- CockroachDB's own traces are off: with a collector set, every operation of every node is traced in full and
-- sent, and nothing in the server chooses among them. That costs the cluster a good part of what it can do.
-- On, for a look, and off:
--
--   SET CLUSTER SETTING trace.opentelemetry.collector = 'collector:4319';
--   RESET CLUSTER SETTING trace.opentelemetry.collector;
