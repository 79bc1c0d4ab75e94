# SPDX-License-Identifier: Apache-2.0
"""Runs a suite in a process of its own, one way, and gives what its process wrote down."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import django

from .catalogue import WITH_LOGGING_CONFIG, Archive, kinds_of
from .sources import installed, unpacked

INSIDE = Path(__file__).parent / "inside"
COMMON_SETTINGS = """
import json, os
import recorded_suite
DATABASES = json.loads(os.environ["OTEL_CRDB_TEST_SUITE_DATABASES"])
TEST_RUNNER = "recorded_suite.RecordingRunner"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""
DJANGO_SETTINGS = """
SECRET_KEY = "of no use"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""
RUNNER = ["--settings=settings_of_the_suite", "--parallel=1", "--noinput"]
#: Plugins of this environment's that would look at the tests too, or write into the source.
PYTEST = ["-m", "pytest", "-p", "recorded_suite", "-q", "--tb=short"]
PYTEST += [word for name in ("otel_crdb", "ddtrace", "cacheprovider") for word in ("-p", f"no:{name}")]


@dataclass(frozen=True)
class Suite:
    """Tests that are run together."""

    name: str
    command: list[str]
    folder: Path
    kinds: frozenset[str]  # of the spans that must be told of it
    settings: str = ""
    aliases: tuple[str, ...] = ("default", "other")
    path: tuple[Path, ...] = ()
    logs: bool = False  # whether logging_config() is in force, in the run with the package


class DidNotRunError(Exception):
    """The process of a suite has written nothing down; the text is what it printed last."""


@dataclass
class Run:
    """What was seen of one suite, run one way."""

    outcomes: dict[str, str]
    telemetry: dict | None = None  # None: run without the package
    imported: bool = False  # whether the package was there
    seconds: float = 0.0
    log_lines: int | None = None  # of the file of logging_config(); None: it was not in force


def suite_of_django(package):
    """Give a package of Django's own tests, of the version that is installed."""
    return Suite(
        name=package,
        command=["runtests.py", *RUNNER, package],
        folder=unpacked(Archive("django", django.__version__)) / "tests",
        kinds=kinds_of(package),
        settings=COMMON_SETTINGS + DJANGO_SETTINGS,
        logs=package in WITH_LOGGING_CONFIG,
    )


def suite_of_application(application):
    """Give the tests of an application."""
    source = unpacked(application.source)
    path = (source, *([installed(application.needs)] if application.needs else []))
    name = f"{application.source.name} {application.source.version}"
    if not application.settings:
        command = [*PYTEST, *application.labels]
        return Suite(
            name, command, source / application.folder, application.kinds, "", application.aliases, path
        )
    return Suite(
        name=name,
        command=["-m", "django", "test", *RUNNER, *application.labels],
        folder=source / application.folder,
        kinds=application.kinds,
        settings=f"from {application.settings} import *\n{COMMON_SETTINGS}",
        aliases=application.aliases,
        path=(*path, source / application.folder),
    )


def run(suite, server, *, instrumented=False):
    """Run the suite on a server, with or without the package."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings_of_the_suite.py").write_text(suite.settings)
        report = Path(folder, "report.json")
        ran = subprocess.run(
            [sys.executable, *suite.command],
            cwd=suite.folder,
            env=_environment(suite, server, folder, report, instrumented),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        if not report.exists():
            raise DidNotRunError(f"the tests of {suite.name} did not run:\n{ran.stdout[-4000:]}")
        seen = json.loads(report.read_text())
    outcomes = {name: comparable(word) for name, word in seen["outcomes"].items()}
    seconds = time.monotonic() - began
    return Run(outcomes, seen["telemetry"], seen["imported"], seconds, seen["log_lines"])


def pair(suite, server):
    """Run the suite without the package and with it."""
    return run(suite, server), run(suite, server, instrumented=True)


def driver():
    """Say on which driver the suites run: Django takes psycopg 3 where it finds it."""
    return os.environ.get("OTEL_CRDB_TEST_DRIVER") or "psycopg"


def _environment(suite, server, folder, report, instrumented):
    """Give the variables of the suite's process: none of OpenTelemetry's but those we set."""
    ours = ("OTEL_", "DJANGO_SETTINGS_MODULE", "PYTEST_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    databases = {
        alias: server.django_settings(NAME=f"suite_{alias}", TEST={"NAME": f"suite_test_{alias}"})
        for alias in suite.aliases
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(map(str, [folder, INSIDE, *suite.path])),
        "OTEL_CRDB_TEST_DRIVER": os.environ.get("OTEL_CRDB_TEST_DRIVER", ""),
        "PYTHONHASHSEED": "0",  # sets are printed in the same order both times
        "OTEL_CRDB_TEST_SUITE_DATABASES": json.dumps(databases),
        "OTEL_CRDB_TEST_SUITE_REPORT": str(report),
        "OTEL_CRDB_TEST_SUITE_INSTRUMENTED": "yes" if instrumented else "no",
        "OTEL_CRDB_TEST_SUITE_LOGS": "yes" if instrumented and suite.logs else "no",
        "DATABASE_URL": _address(databases["default"]),
    }


def _address(database):
    """Give a database's address, for those that take no settings; the scheme is dj-database-url's word."""
    user, password, name = (quote(database[key], safe="") for key in ("USER", "PASSWORD", "NAME"))
    return f"cockroach://{user}:{password}@{database['HOST']}:{database['PORT']}/{name}"


def comparable(text):
    """Leave out what two runs say differently: objects' addresses, process ids, ports, times that were measured."""
    return re.sub(r"0x[0-9a-f]+|\b\d+\.\d{4,}|\b\d{4,}\b", "…", text)
