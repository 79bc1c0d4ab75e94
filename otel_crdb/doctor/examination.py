# SPDX-License-Identifier: Apache-2.0
"""The whole examination, and its command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from otel_crdb.version import __version__

from . import render, secrets, source, static
from .findings import FINE, UNUSABLE, Finding, Report, Section, Unusable

SETTINGS = "DJANGO_SETTINGS_MODULE"
#: OpenTelemetry's logger that quotes headers which it cannot read.
QUOTES_HEADERS = "opentelemetry.util.re"
IN_MANAGE_PY = re.compile(rf"""["']{SETTINGS}["']\s*,\s*["']([\w.]+)["']""")
#: Distributions whose versions are told, a line each.
VERSIONS = (
    ("django", "django-cockroachdb"),
    ("otel-crdb", "opentelemetry-sdk", "opentelemetry-instrumentation-django"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for."""

    settings: str | None = None
    wsgi: str | None = None
    asgi: str | None = None
    aliases: tuple[str, ...] = ()
    timeout: float = 5.0
    json: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands have; ``manage.py`` has ``--settings`` by itself."""
    parser.add_argument("--wsgi", metavar="MODULE:NAME", help="the WSGI application that the server loads")
    parser.add_argument("--asgi", metavar="MODULE:NAME", help="the ASGI application that the server loads")
    parser.add_argument(
        "--alias", action="append", default=[], dest="aliases", help="only this alias; may be given again"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=5.0, metavar="S", help="seconds for each thing that is tried (5)"
    )
    parser.add_argument("--json", action="store_true", help="for a program")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 300:
        raise argparse.ArgumentTypeError("it is a number of seconds, above 0 and at most 300")
    return seconds


def asked_for(options: Any) -> Asked:
    """Read the options of a command line."""
    return Asked(
        getattr(options, "settings", None),
        options.wsgi,
        options.asgi,
        tuple(options.aliases),
        options.timeout,
        options.json,
    )


def run(asked: Asked) -> int:
    """Examine, write the report to standard output, and return the exit status."""
    hide = secrets.hider(secrets.of_process())
    logging.getLogger(QUOTES_HEADERS).setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever the application prints as it is loaded
            report = examine(asked)
        from django.conf import settings

        hide = secrets.hider(secrets.of_process() | secrets.of_settings(settings))
    except Unusable as why:
        sys.stderr.write(f"otel-crdb doctor: {hide(str(why))}\n")
        return UNUSABLE
    except Exception:  # noqa: BLE001 - a defect of ours, and no verdict on the application
        told = hide(traceback.format_exc())
        sys.stderr.write(f"{told}otel-crdb doctor: it failed itself; please report the lines above\n")
        return UNUSABLE
    write = render.as_json if asked.json else render.as_text
    sys.stdout.write(write(report, hide))
    return report.status


def leave(status: int) -> NoReturn:
    """End the process; where something is wrong, without waiting for a collector that may not be there."""
    if status == FINE:
        sys.exit(FINE)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def examine(asked: Asked) -> Report:
    """Look at everything.

    Raises:
        Unusable: there is nothing to look at: no settings, or an application that cannot be loaded.

    """
    module = _settings_module(asked)
    environment = tuple(static.of_environment())  # before an application sets variables of its own
    sections = [Section("Installed", tuple(_installed()))]
    from . import entry  # not before the settings are known

    name = asked.wsgi or asked.asgi or _named_by(module)
    loaded = entry.load(name) if name else entry.Loaded(instrumented_before=_was_asked())
    settings = _set_up(asked)
    from . import process

    start = [*environment, *(entry.of_loading(loaded) if name else _without_entry())]
    start += _instrument_now(loaded)
    sections.append(Section("Instrumented", tuple(_instrumented(start, settings))))
    told = {finding.code for finding in start if finding.code}
    sections += _reached(asked, process.options_in_force(), told)
    named = getattr(settings, "SETTINGS_MODULE", "settings.configure()")
    head = f"otel_crdb {__version__} on {named}{f', {name}' if name else ''}"
    return Report(head, tuple(sections))


def _was_asked() -> bool:
    from . import process

    return process.was_asked()


# --- settings and application ----------------------------------------------------------------------------


def _settings_module(asked: Asked) -> str:
    """See to it that DJANGO_SETTINGS_MODULE is set; empty: the application sets it."""
    if sys.path[:1] != [""] and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as manage.py and servers have it
    if asked.settings:
        os.environ[SETTINGS] = asked.settings
    named = os.environ.get(SETTINGS) or _of_manage_py()
    if named:
        os.environ.setdefault(SETTINGS, named)
        _import_settings(named)
        return named
    if asked.wsgi or asked.asgi:
        return ""
    raise Unusable(f"which settings? --settings <project>.settings, or set {SETTINGS}")


def _of_manage_py() -> str:
    """Return the settings module that the ``manage.py`` in this folder names."""
    try:
        found = IN_MANAGE_PY.search(Path("manage.py").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return found.group(1) if found else ""


def _import_settings(name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise Unusable(f"the settings {name} cannot be imported: {told}") from error


def _named_by(settings_module: str) -> str | None:
    """Return the application that the settings name, else the one beside them."""
    settings = sys.modules.get(settings_module)
    for kind in ("WSGI", "ASGI"):
        named = getattr(settings, f"{kind}_APPLICATION", None)
        if named:
            return f"{source.module_of(str(named))}:{str(named).rpartition('.')[2]}"
    for kind in ("wsgi", "asgi"):
        module = static.sibling(settings_module, kind)
        if module is not None:
            return f"{module}:application"
    return None


def _set_up(asked: Asked) -> Any:
    import django
    from django.apps import apps
    from django.conf import settings

    try:
        if not apps.ready:
            django.setup()
        unknown = [alias for alias in asked.aliases if alias not in settings.DATABASES]
    except Exception as error:
        raise Unusable(f"Django cannot be set up: {type(error).__name__}: {error}") from error
    if unknown:
        raise Unusable(f"DATABASES has no alias {unknown[0]!r}; there are {', '.join(settings.DATABASES)}")
    return settings


def _without_entry() -> Iterator[Finding]:
    from . import process

    if process.was_asked():
        by = "opentelemetry-instrument" if process.is_zero_code() else "what started this process"
        yield Finding("ok", "instrument()", f"was called by {by}")
    else:
        yield static.not_called("where the process starts", 0)
    what = "there is no wsgi.py or asgi.py that is known here"
    yield Finding("note", "application", what, "--wsgi <project>.wsgi:application", "no-application")


def _instrument_now(loaded: Any) -> list[Finding]:
    """Instrument where the application has not, so that the rest can be looked at."""
    from . import process

    if process.was_asked() or loaded.refused is not None:
        return []
    import otel_crdb

    try:
        otel_crdb.instrument()
    except Exception as error:  # noqa: BLE001 - whatever is wrong is a finding
        return [
            Finding("fail", "options", str(error), static.mend_of_option(str(error)), "option-refused"),
        ]
    what = "the rest is looked at as if instrument() had been called without options"
    return [Finding("note", "instrument()", what)] if process.is_instrumented() else []


# --- the sections ----------------------------------------------------------------------------------------


def _installed() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    first = [f"Python {python}", *(_versioned(name) for name in VERSIONS[0])]
    yield Finding("ok", "", ", ".join(first))
    yield Finding("ok", "", ", ".join(_versioned(name) for name in VERSIONS[1]))
    yield from static.of_versions()


def _versioned(distribution: str) -> str:
    return f"{distribution} {static.version_of(distribution) or '(not installed)'}"


def _driver() -> Finding:
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    name = "psycopg" if is_psycopg3 else "psycopg2"
    version = static.version_of(name) or static.version_of(f"{name}-binary")
    other = (
        " (psycopg2 is installed too; Django takes psycopg 3)"
        if is_psycopg3 and static.both_drivers()
        else ""
    )
    return Finding("ok", "driver", f"{name} {version}{other}")


def _instrumented(start: list[Finding], settings: Any) -> Iterator[Finding]:
    from . import process

    yield from start
    told = {finding.code for finding in start}
    if process.is_instrumented():
        yield from (each for each in process.of_middleware() if each.code not in told or not each.code)
        yield from process.of_hooks()
        yield from process.of_opt_in()
        yield from process.of_options()
        yield from process.of_driver()
    wrong = [*static.of_settings(settings), *_other_entries(settings, told)]
    yield from (each for each in wrong if each.code not in told)
    if settings.DEBUG:
        what = "DEBUG=True: Django keeps every statement in memory (connection.queries), with its parameters"
        yield Finding("warn", "DEBUG", what, "DEBUG = False where it serves users", "debug")


def _other_entries(settings: Any, told: set[str]) -> Iterator[Finding]:
    """Tell of an application besides the one that was loaded: by its source."""
    from . import process

    if process.is_zero_code() or told & {"not-instrumented", "instrumented-late"}:
        return
    for module in static.entry_modules(settings):
        if module not in sys.modules:  # nobody need serve by it
            yield from (dataclasses.replace(each, level="note") for each in static.of_source(module))


def _reached(asked: Asked, config: Any, told: set[str]) -> Iterator[Section]:
    from django.db import connections

    from . import databases, exports, process

    aliases = asked.aliases or tuple(connections)
    found = databases.of_databases(connections, aliases, config, asked.timeout)
    yield Section("Databases", (_driver(), *found))
    if process.is_instrumented():
        sent = exports.of_exports(config, asked.timeout)
        yield Section("Telemetry", tuple(each for each in sent if each.code not in told))
    else:
        yield Section("Telemetry", (Finding("note", "", "not tried: nothing is instrumented"),))
