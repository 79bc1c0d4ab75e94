# SPDX-License-Identifier: Apache-2.0
"""Runs Django's own tests before and behind the fault proxy, and compares the outcomes test by test.

    python tests/django_suite.py [package …]

Django's source distribution of the installed version is fetched by pip once and kept in
``OTEL_CRDB_DJANGO_SOURCE``, by default ``~/.cache/otel_crdb``. The exit status is 1 where an outcome differs.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
from collections import Counter
from pathlib import Path

PACKAGES = ["transactions", "transaction_hooks", "backends", "queries"]
OUTCOMES = "OTEL_CRDB_SUITE_OUTCOMES"  # names the file the runner writes
SETTINGS = """
import json, os, sys
if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None  # Django takes it whenever it can be imported
DATABASES = json.loads(os.environ["OTEL_CRDB_SUITE_DATABASES"])
TEST_RUNNER = "django_suite.RecordingRunner"
SECRET_KEY = "of no use"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""


class RecordingResult(unittest.TextTestResult):
    """Keeps what became of each test: one word, and the last line of what it raised."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.outcomes = {}

    def _keep(self, test, word, error=None):
        said = "" if error is None else f" {error[0].__name__}: {str(error[1]).strip()}"
        before = self.outcomes.get(test.id(), "")
        self.outcomes[test.id()] = f"{before}; {word}{said}" if before else f"{word}{said}"

    def addSuccess(self, test):  # noqa: N802 - unittest's name
        super().addSuccess(test)
        self._keep(test, "passed")

    def addError(self, test, err):  # noqa: N802
        super().addError(test, err)
        self._keep(test, "error", err)

    def addFailure(self, test, err):  # noqa: N802
        super().addFailure(test, err)
        self._keep(test, "failed", err)

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self._keep(test, f"skipped: {reason}")

    def addExpectedFailure(self, test, err):  # noqa: N802
        super().addExpectedFailure(test, err)
        self._keep(test, "failed as expected", err)

    def addUnexpectedSuccess(self, test):  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._keep(test, "passed unexpectedly")

    def addSubTest(self, test, subtest, err):  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._keep(subtest, "failed", err)


def __getattr__(name):
    """Make the runner when Django asks for it: to import Django's needs its settings."""
    if name != "RecordingRunner":
        raise AttributeError(name)
    from django.test.runner import DiscoverRunner

    class RecordingRunner(DiscoverRunner):
        """Writes the outcomes where it was told."""

        def get_resultclass(self):
            return RecordingResult

        def run_suite(self, suite, **options):
            result = super().run_suite(suite, **options)
            Path(os.environ[OUTCOMES]).write_text(json.dumps(result.outcomes))
            return result

    return RecordingRunner


def tests_of_django():
    """Give the folder of Django's tests, of the version that is installed."""
    import django

    home = Path(os.environ.get("OTEL_CRDB_DJANGO_SOURCE") or Path.home() / ".cache" / "otel_crdb")
    source = home / f"django-{django.__version__}"
    if not (source / "tests").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", "django", f"django=={django.__version__}"]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--dest", home, *wanted], check=True
        )
        (archive,) = (path for path in home.glob("*.tar.gz") if path.name.lower() == f"{source.name}.tar.gz")
        with tempfile.TemporaryDirectory(dir=home) as unpacked, tarfile.open(archive) as packed:
            packed.extractall(unpacked, filter="data")
            (folder,) = Path(unpacked).iterdir()
            folder.rename(source)
    return source / "tests"


def outcomes_on(server, packages):
    """Run the packages on a server; give the outcome of each test."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings_of_the_suite.py").write_text(SETTINGS)
        databases = {
            alias: server.django_settings(NAME=f"django_{alias}", TEST={"NAME": f"django_test_{alias}"})
            for alias in ("default", "other")
        }
        outcomes = Path(folder, "outcomes.json")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, str(Path(__file__).parent)]),
            "OTEL_CRDB_SUITE_DATABASES": json.dumps(databases),
            OUTCOMES: str(outcomes),
        }
        command = ["runtests.py", "--settings=settings_of_the_suite", "--parallel=1", "--noinput"]
        ran = subprocess.run(
            [sys.executable, *command, *packages],
            cwd=tests_of_django(),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not outcomes.exists():
            raise SystemExit(f"Django's tests did not run:\n{ran.stdout[-4000:]}")
        return {name: without_addresses(word) for name, word in json.loads(outcomes.read_text()).items()}


def without_addresses(text):
    """Leave out what two runs of the same test may say differently: objects' addresses, process ids, ports."""
    return re.sub(r"0x[0-9a-f]+|\b\d{4,}\b", "…", text)


def summary(outcomes):
    """Give how many tests had which outcome, in one line."""
    words = Counter(re.split(r"[:\s]", outcome, maxsplit=1)[0] for outcome in outcomes.values())
    return ", ".join(f"{count} {word}" for word, count in words.most_common())


def main(packages):
    """Run both ways, say what was seen, and give the exit status."""
    from otel_crdb.testing import FaultProxy, server

    say = sys.stdout.write
    with server("embedded") as running, FaultProxy(running) as proxy:
        say(f"Django's {', '.join(packages)}, on {running.description}\n")
        seen = []
        for way, address in (("through the wire proxy", running), ("through the fault proxy", proxy)):
            began = time.monotonic()
            seen.append(outcomes_on(address, packages))
            say(f"{way}: {summary(seen[-1])}, in {time.monotonic() - began:.0f} s\n")
        through = proxy.wire_log()
    directly, behind = seen
    differing = sorted(
        name for name in directly.keys() | behind.keys() if directly.get(name) != behind.get(name)
    )
    for name in differing:
        say(f"{name}\n  without: {directly.get(name)}\n  with it: {behind.get(name)}\n")
    say(
        f"{len(directly)} tests, {len(differing)} differ; {sum(through.to_server.values())} messages passed\n"
    )
    return 1 if differing or not directly or not through.sessions else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or PACKAGES))
