# SPDX-License-Identifier: Apache-2.0
"""What can be told wrong without a network: by variables, settings, versions and the source of ``wsgi.py``.

The examination and Django's system checks (:mod:`otel_crdb.checks`) say the same, from here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata, util
from typing import Any
from urllib.parse import urlsplit

from otel_crdb import config

from . import source
from .findings import Finding, Level

#: Tested together; what is newer may well work.
PYTHONS = ((3, 10), (3, 13))
DJANGOS = ("4.2", "5.2", "6.0", "6.1")
ENGINE = "django_cockroachdb"
POSTGRESQL_ENGINES = ("django.db.backends.postgresql", "django.contrib.gis.db.backends.postgis")
SIGNALS = ("traces", "metrics", "logs")
INSTRUMENT = "import otel_crdb; otel_crdb.instrument()"

#: The ports of OTLP, by protocol, as the specification has them.
PORTS = {"http/protobuf": 4318, "grpc": 4317}


def of_environment() -> Iterator[Finding]:
    """Tell what the variables switch off or contradict."""
    yield from _switched_off()
    yield from _exporters()
    yield from _sampler()
    yield from _ports()


def _switched_off() -> Iterator[Finding]:
    if config.sdk_disabled():
        what = "OTEL_SDK_DISABLED=true: nothing is instrumented and nothing leaves"
        yield Finding("fail", "switch", what, "unset OTEL_SDK_DISABLED", "sdk-disabled")
    disabled = config.disabled_instrumentations()
    name = next((name for name in ("*", "otel_crdb", "django") if name in disabled), None)
    if name is not None:
        lost = "no request has a span" if name == "django" else "nothing is instrumented"
        what = f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS names {name}: {lost}"
        mend = f"take {name} out of OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
        yield Finding("fail", "switch", what, mend, "instrumentation-disabled")
    elif config.requests_switched_off():
        what = f"{config.requests_switched_off()}: no request has a span"
        yield Finding(
            "fail", "switch", what, "unset OTEL_PYTHON_DJANGO_INSTRUMENT", "instrumentation-disabled"
        )


def _exporters() -> Iterator[Finding]:
    for signal in SIGNALS:
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        words = {word.strip().lower() for word in os.environ.get(variable, "").split(",")} - {""}
        if words == {"none"} and not _option_off(signal):
            mend = f"unset {variable}; where it is meant, say so with OTEL_CRDB_{signal.upper()}=false"
            level: Level = "fail" if signal == "traces" else "warn"
            what = f"{variable}=none: no {signal} leave"
            yield Finding(level, signal, what, mend, f"{signal}-exporter-none")


def _option_off(signal: str) -> bool:
    return os.environ.get(f"OTEL_CRDB_{signal.upper()}", "").strip().lower() in {"false", "0", "no", "off"}


def _sampler() -> Iterator[Finding]:
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip()
    argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    nothing = name.endswith("always_off") or (name.endswith("traceidratio") and _is_zero(argument))
    if nothing:
        told = f"{name} of {argument}" if name.endswith("traceidratio") else name
        what = f"OTEL_TRACES_SAMPLER={told}: every trace that begins here is dropped"
        yield Finding("fail", "sampler", what, "unset OTEL_TRACES_SAMPLER", "sampler-drops-all")


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _ports() -> Iterator[Finding]:
    told = set()
    for signal in SIGNALS:
        endpoint, variable = _of_signal(signal, "ENDPOINT")
        protocol = _of_signal(signal, "PROTOCOL")[0] or "http/protobuf"
        port = _port(endpoint)
        other = next((word for word in PORTS if word != protocol and PORTS[word] == port), None)
        if other is not None and protocol in PORTS and (variable, protocol) not in told:
            told.add((variable, protocol))
            what = f"{variable}: {port} is the usual port of {other}, what is sent is {protocol}"
            mend = f"port {PORTS[protocol]} in {variable}, or OTEL_EXPORTER_OTLP_PROTOCOL={other}"
            yield Finding("warn", signal, what, mend, "port-of-other-protocol")


def _of_signal(signal: str, name: str) -> tuple[str, str]:
    """Return what the variable of a signal, else that of all signals, says; and which of them it is."""
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        text = os.environ.get(variable, "").strip()
        if text:
            return text, variable
    return "", ""


def _port(endpoint: str) -> int | None:
    try:
        return urlsplit(endpoint).port
    except ValueError:
        return None


# --- versions --------------------------------------------------------------------------------------------


def version_of(distribution: str) -> str:
    """Return a distribution's version; empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def of_versions() -> Iterator[Finding]:
    """Tell where what is installed has not been tried together, or does not fit together."""
    python = sys.version_info[:2]
    if not PYTHONS[0] <= python <= PYTHONS[1]:
        what = f"Python {python[0]}.{python[1]}: tested are 3.10 to 3.13"
        yield Finding("warn", "python", what, "run it on Python 3.10 to 3.13", "python-untested")
    django, backend = version_of("django"), version_of("django-cockroachdb")
    series = ".".join(django.split(".")[:2])
    if series not in DJANGOS:
        what = f"Django {django}: tested are {', '.join(DJANGOS)}"
        yield Finding("warn", "django", what, 'pip install "django~=5.2.0"', "django-untested")
    if not backend:
        mend = f'pip install "django-cockroachdb~={series}.0"'
        yield Finding("fail", "django", "django-cockroachdb is not installed", mend, "no-backend")
    elif ".".join(backend.split(".")[:2]) != series:
        what = f"django-cockroachdb {backend} is made for another Django than {django}"
        mend = f'pip install "django-cockroachdb~={series}.0"'
        yield Finding("warn", "django", what, mend, "backend-of-other-django")


def both_drivers() -> bool:
    """Whether psycopg2 and psycopg 3 can both be imported; Django then takes psycopg 3."""
    return all(sys.modules.get(name, True) and util.find_spec(name) for name in ("psycopg", "psycopg2"))


# --- settings --------------------------------------------------------------------------------------------


def of_settings(settings: Any) -> Iterator[Finding]:
    """Tell what Django's settings have wrong."""
    yield from _options()
    yield from _engines(settings)
    yield from _unset_application(settings)


def _options() -> Iterator[Finding]:
    from django.core.exceptions import ImproperlyConfigured

    from otel_crdb import option_sources

    try:
        option_sources.read({})
    except (ImproperlyConfigured, TypeError, ValueError) as error:
        yield Finding("fail", "options", str(error), mend_of_option(str(error)), "option-refused")


def mend_of_option(told: str) -> str:
    """Return the line that mends an option, by the words with which it was refused."""
    _, asks, near = told.rpartition("did you mean ")
    if asks:
        name = near.strip("?'\"")
        return f"call it OTEL_CRDB_{name.upper()}" if told.startswith("The variable") else f"call it {name!r}"
    return "give it one of the values that the message names, or take it out; docs/options.md lists all"


def _engines(settings: Any) -> Iterator[Finding]:
    engines = {alias: str(entry.get("ENGINE", "")) for alias, entry in settings.DATABASES.items()}
    if any(is_cockroachdb(engine) for engine in engines.values()):
        return
    alias = next((alias for alias, engine in engines.items() if engine in POSTGRESQL_ENGINES), None)
    what = "no alias of DATABASES is on django_cockroachdb: no statement and no transaction has a span"
    mend = f'DATABASES["{alias or "default"}"]["ENGINE"] = "{ENGINE}"'
    yield Finding("fail", alias or "default", what, mend, "no-cockroachdb-alias")


def is_cockroachdb(engine: str) -> bool:
    """Whether the backend of that name is django_cockroachdb, or built upon it."""
    if engine.partition(".")[0] == ENGINE:
        return True
    if not engine or engine.startswith("django.db.backends."):
        return False
    from django.db.utils import load_backend

    try:
        backend = load_backend(engine)
        return issubclass(backend.DatabaseWrapper, _wrapper())
    except Exception:  # noqa: BLE001 - a backend that cannot be loaded; Django says so by itself
        return False


def _wrapper() -> type:
    from django_cockroachdb.base import DatabaseWrapper

    kind: type = DatabaseWrapper
    return kind


def _unset_application(settings: Any) -> Iterator[Finding]:
    """Tell where ``runserver`` makes a handler of its own: it never loads the ``wsgi.py`` that is there."""
    if getattr(settings, "WSGI_APPLICATION", None):
        return
    module = sibling(settings.SETTINGS_MODULE, "wsgi") if hasattr(settings, "SETTINGS_MODULE") else None
    found = source.read(module) if module else None
    if module and found is not None and found.instruments:
        what = f"WSGI_APPLICATION is not set: runserver never loads {found.shown}, so it is not instrumented"
        mend = f'WSGI_APPLICATION = "{module}.application"'
        yield Finding("warn", "runserver", what, mend, "wsgi-application-unset")


def sibling(settings_module: str | None, name: str) -> str | None:
    """Return the module that ``startproject`` puts beside the settings, where it can be found."""
    parts = (settings_module or "").split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join([*parts[:length], name])
        try:
            if util.find_spec(module) is not None:
                return module
        except (ImportError, ValueError, AttributeError):
            continue
    return None


# --- the source of wsgi.py and asgi.py -------------------------------------------------------------------


def entry_modules(settings: Any) -> list[str]:
    """Return the modules that servers load: as the settings name them, else as ``startproject`` does."""
    named = [getattr(settings, f"{kind}_APPLICATION", None) for kind in ("WSGI", "ASGI")]
    modules = [source.module_of(each) for each in named if each]
    beside = (sibling(getattr(settings, "SETTINGS_MODULE", None), kind) for kind in ("wsgi", "asgi"))
    return list(dict.fromkeys([*modules, *(each for each in beside if each)]))


def of_entries(settings: Any) -> Iterator[Finding]:
    """Tell whether the modules that servers load instrument; where one does, the other need not.

    ``startproject`` makes both, and most projects serve by one of them.
    """
    findings = {module: list(of_source(module)) for module in entry_modules(settings)}
    all_right = any(not told for told in findings.values())
    for told in findings.values():
        yield from (each for each in told if not (all_right and each.code == "not-instrumented"))


def of_source(module: str) -> Iterator[Finding]:
    """Tell whether a module instruments, and before Django's handler is made."""
    found = source.read(module)
    if found is None or not found.makes_handler:
        return
    if not found.instruments:
        yield not_called(found.shown, found.makes_handler)
    elif found.instruments > found.makes_handler:
        yield called_late(f"{found.shown}:{found.instruments}", f"{found.shown}:{found.makes_handler}")


def not_called(path: str, line: int) -> Finding:
    """Nothing instruments."""
    what = f"nothing calls otel_crdb.instrument(): {path} does not, nor opentelemetry-instrument"
    mend = f"{path}:{line}: above get_…_application(): {INSTRUMENT}" if line else f"{path}: {INSTRUMENT}"
    return Finding("fail", "instrument()", what, mend, "not-instrumented")


def called_late(where: str, handler: str) -> Finding:
    """Django has read its middleware before ours was there."""
    what = f"is called at {where}, after the handler was made at {handler}: no request has a span"
    mend = f"move otel_crdb.instrument() above {handler}"
    return Finding("fail", "instrument()", what, mend, "instrumented-late")
