# SPDX-License-Identifier: Apache-2.0
"""Scenes as processes of their own, each played once, and what is asked of all of them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Where our own lines in a scene's log begin.
OURS = "otel_crdb:"
#: Seconds: a machine may be busy.
DEADLINE = 120


class Stage:
    """Plays scenes on one server, and keeps what came of them."""

    def __init__(self, server):
        self.server = server
        self._played = {}

    def play(
        self, neighbour, first="theirs", *, by=(), environment=None, settings=None, database=None, **options
    ):
        """Return what came of a scene, played now or before.

        ``by``: a command that starts it. ``settings``: of Django's; ``database``: those of its alias.
        The rest are options of ``instrument()``.
        """
        asked = json.dumps({"neighbour": neighbour, "first": first, "options": options}, sort_keys=True)
        database = {"ENGINE": "django_cockroachdb", **(database or {})}
        key = json.dumps([asked, by, settings, environment, database])
        if key not in self._played:
            command = [*by, sys.executable, "-m", "tests.beside.scene", asked]
            printed = self.run(command, settings, environment, database)
            self._played[key] = Told(json.loads(printed.splitlines()[-1]))
        return self._played[key]

    def run(self, command, settings=None, environment=None, database=None):
        """Run a command in the scenes' environment; return what it prints."""
        program, *arguments = command
        process = subprocess.run(
            [sys.executable if program == "python" else program, *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.beside.settings",
                "TEST_DATABASES": json.dumps({"default": self.server.django_settings(**(database or {}))}),
                "BESIDE": json.dumps(settings or {}),
                "BESIDE_URL": self.server.url,
                "OTEL_SEMCONV_STABILITY_OPT_IN": "http",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert process.returncode == 0, process.stderr[-4000:]
        return process.stdout


class Told:
    """What came of a scene."""

    def __init__(self, told):
        self.alone = told.get("theirs alone")
        self.both = told["both"]
        self.after = told["theirs after"]
        self.found = {name: (version, note) for name, version, note in told["found"]}
        self.faults = told["faults"]
        self.said = [line for line in told["log"] if line.startswith(OURS)]

    def statements(self, phase="both"):
        """Return how often each operation has a span of the database: ours by its first word, or a neighbour's."""
        return Counter(word_of(span) for span in getattr(self, phase)["spans"] if span["kind"] == "CLIENT")

    def held(self, word, phase="both"):
        """Return how many of the rows that the neighbour holds begin with a word."""
        return sum(1 for row in getattr(self, phase)["theirs"] if row[0] == word)


def word_of(span):
    """Return the operation of a span of the database, by whoever made it."""
    return span["name"].removeprefix("BATCH ").partition(" ")[0]


def by_word(tree):
    """Return a tree of spans with the operations instead of the names."""
    return [[word_of({"name": name}), by_word(below)] for name, below in tree]


def assert_undisturbed(told, alone=None):
    """Assert that the request came to the same, and the neighbour holds the same, beside us and after us."""
    alone = alone or told.alone
    assert told.both["answer"] == alone["answer"]
    assert told.after["answer"] == alone["answer"]
    assert told.both["theirs"] == alone["theirs"]
    assert told.after["theirs"] == alone["theirs"]
    assert told.faults == {}
    assert told.after["spans"] == alone["spans"]


def assert_ours_whole(told, nobody, *, threads=True):
    """Assert that our spans are those of a process without neighbours: none twice, none lost.

    Where ``threads`` is false, what threads do may lie in traces of their own.
    """
    if threads:
        assert told.both["tree"] == nobody.both["tree"]
    assert told.both["spans"] == nobody.both["spans"]
