# SPDX-License-Identifier: Apache-2.0
"""A process beside one neighbour: the same request before, while and after it is instrumented.

``python -m tests.beside.scene '{"neighbour": "sentry", "first": "theirs"}'`` prints what came of it as JSON.
"""

import contextlib
import http.client
import io
import json
import logging
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.beside.settings")

#: Rows that the work begins with.
ROWS = (("a@example.com", 100), ("b@example.com", 100))


class Scene:
    """One process: its telemetry, its log, its neighbour."""

    def __init__(self, neighbour, options):
        from tests.telemetry import Telemetry

        self.telemetry = Telemetry(**options)
        self.neighbour = neighbour
        self.log = io.StringIO()
        logging.getLogger().addHandler(logging.StreamHandler(self.log))
        logging.getLogger().setLevel(logging.INFO)
        self.told = {}

    def play(self):
        """Play the phases; return what each has left."""
        if self.neighbour.first == "theirs":
            self.neighbour.begin(self)
            self.request("theirs alone")
            self.telemetry.instrument()
        else:
            self.telemetry.instrument()
            self.neighbour.begin(self)
        self.request("both")
        self.told["found"] = found()
        import otel_crdb

        otel_crdb.uninstrument()
        self.request("theirs after")
        close_pools()
        return {**self.told, "log": self.log.getvalue().splitlines(), "faults": faults()}

    def request(self, phase):
        """Answer one request by real HTTP; keep what came of it, our spans and what the neighbour holds."""
        from django.db import connection

        from tests.http_servers import wsgi_server

        reset()
        connection.cockroachdb_server_info  # noqa: B018 - asked once a process: not in what is compared
        connection.close()
        self.telemetry.clear()
        self.neighbour.clear()
        with wsgi_server() as port:
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            link.request("GET", "/work/")
            response = link.getresponse()
            body = response.read()
            link.close()
        self.told[phase] = {
            "status": response.status,
            "answer": json.loads(body) if response.status == 200 else body.decode(errors="replace")[-2000:],
            "spans": [spoken(span) for span in self.telemetry.spans],
            "tree": self.telemetry.tree(),
            "theirs": self.neighbour.held(),
        }
        connection.close()


def close_pools():
    """Close what Django leaves open for the life of the process."""
    from django.db import connection

    if connection.settings_dict["OPTIONS"].get("pool"):
        connection.close_pool()


def spoken(span):
    """Return what is compared of a span."""
    attributes = span.attributes or {}
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": span.instrumentation_scope.name,
        "status": span.status.status_code.name,
        "summary": attributes.get("db.query.summary"),
        "outcome": attributes.get("cockroachdb.txn.outcome"),
        "node": attributes.get("cockroachdb.node.id"),
        "version": attributes.get("cockroachdb.version"),
        "sqlstate": attributes.get("db.response.status_code"),
    }


def found():
    """Return what the table finds."""
    from otel_crdb import neighbours

    return [[finding.name, bool(finding.version), finding.note] for finding in neighbours.found()]


def faults():
    """Return the faults of our own hooks."""
    from otel_crdb import hooks

    return hooks.fault_counts()


def reset():
    """Put the rows back, by a connection that nobody observes: what instrumentations replace is not touched."""
    texts = [f"UPDATE account SET balance = {balance} WHERE email = '{email}'" for email, balance in ROWS]
    if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
        from psycopg2._psycopg import _connect

        link = _connect(os.environ["BESIDE_URL"])
        link.autocommit = True
        cursor = link.cursor()
        for text in texts:
            cursor.execute(text)
        link.close()
    else:
        from psycopg import pq

        link = pq.PGconn.connect(os.environ["BESIDE_URL"].encode())
        for text in texts:
            link.exec_(text.encode())
        link.finish()


def main(text):
    """Play what the text asks for."""
    asked = json.loads(text)
    if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
        sys.modules["psycopg"] = None
    from tests.beside import casts

    neighbour = casts.CASTS[asked["neighbour"]]()
    neighbour.first = asked.get("first", "theirs")
    neighbour.before_setup()
    with contextlib.redirect_stdout(sys.stderr):
        import django

        django.setup()
        told = Scene(neighbour, asked.get("options", {})).play()
    sys.stdout.write(json.dumps(told))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
