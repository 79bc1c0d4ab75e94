# SPDX-License-Identifier: Apache-2.0
"""``logging_config()``: a whole ``LOGGING`` for Django's settings."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Mapping
from typing import Any, Literal, NoReturn

from django.core.exceptions import ImproperlyConfigured

from otel_crdb import option_kinds

Environment = Literal["development", "production"]

#: The variable that Django's documentation takes for the level.
LEVEL_VARIABLE = "DJANGO_LOG_LEVEL"
#: A smaller limit is a number of megabytes, or of lines.
FEWEST_BYTES = 4096
#: What a logger's entry in ``LOGGING`` may hold.
LOGGER_KEYS = ("level", "handlers", "filters", "propagate")
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")


def logging_config(
    *,
    file: str | os.PathLike[str] | None = None,
    json: bool = False,
    level: str | int | None = None,
    otlp: bool = True,
    sql: bool = False,
    mail_admins: bool = True,
    environment: Environment = "production",
    loggers: Mapping[str, str | int | Mapping[str, Any]] | None = None,
    max_bytes: int = 10 * 2**20,
    backups: int = 5,
) -> dict[str, Any]:
    """Return a whole ``LOGGING``: ``LOGGING = otel_crdb.logging_config(file="/var/log/bank/bank.log")``.

    Every record has its trace and its transaction, and goes to the console (stderr), to the file if there is
    one, and to the collector. As Django has it by itself, errors are mailed to ``ADMINS`` where ``DEBUG`` is
    off, and ``runserver`` has its colours. The result is a new dict of plain values: change it as you like.

    Args:
        file: a log file, which any number of processes on this host may write. ``None``: none.
        json: whether console and file have one JSON object a line, instead of one line of text.
        level: the least level of what is logged, a name or a number. ``None``: what the variable
            ``DJANGO_LOG_LEVEL`` says, else ``INFO``.
        otlp: whether there is a handler that sends records by OTLP. Without it ``instrument()`` sends them
            all the same: its option ``python_logs`` switches that off.
        sql: whether ``django.db.backends`` is at ``DEBUG``, where Django logs every statement while its
            ``DEBUG`` is on. (Statements that fail or are slow are logged by ``otel_crdb.db``, without it.)
        mail_admins: whether there is Django's handler that mails errors to ``ADMINS``.
        environment: ``"production"``, or ``"development"``: then the console is text also with ``json``, and
            ``otel_crdb`` is at ``DEBUG``.
        loggers: other loggers, or other values for those that are there, by name: a level, or an entry as
            ``LOGGING`` has it (``level``, ``handlers``, ``filters``, ``propagate``), whose keys replace ours.
        max_bytes: bytes of the file at which it is rotated, at least 4096; 10 MiB by default.
        backups: how many rotated files are kept, at least 1: ``bank.log.1``, the youngest, to ``bank.log.5``.

    Raises:
        django.core.exceptions.ImproperlyConfigured: where a value cannot be meant; the message has the
            argument, the value and the nearest word that there is.

    """
    for name, value in {"json": json, "otlp": otlp, "sql": sql, "mail_admins": mail_admins}.items():
        _check(option_kinds.BOOL, name, value)
    _check(option_kinds.one_of("development", "production"), "environment", environment)
    developing = environment == "development"
    least = _level_of_all(level)
    written_as = "json" if json else "verbose"
    handlers = {
        "console": _handler("logging.StreamHandler", formatter="verbose" if developing else written_as)
    }
    if file is not None:
        handlers["file"] = _file_handler(file, max_bytes, backups, written_as)
    if otlp:
        handlers["otlp"] = _handler("otel_crdb.logs.OTLPHandler")
    everywhere = list(handlers)
    handlers["django.server"] = _handler("logging.StreamHandler", formatter="django.server")
    if mail_admins:
        handlers["mail_admins"] = _mail_handler()
    entries = _loggers(least, handlers, everywhere, developing=developing, sql=sql)
    for name, entry in _given_loggers(loggers, handlers).items():
        entries[name] = {**entries.get(name, {}), **entry}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {
            "cockroach_txn": {"()": "otel_crdb.logs.CockroachTxnFilter"},
            "require_debug_false": {"()": "django.utils.log.RequireDebugFalse"},
        },
        "formatters": {
            "verbose": {"()": "otel_crdb.logs.VerboseFormatter"},
            "json": {"()": "otel_crdb.logs.JSONFormatter"},
            "django.server": {
                "()": "django.utils.log.ServerFormatter",
                "format": "[{server_time}] {message}",
                "style": "{",
            },
        },
        "handlers": handlers,
        "loggers": entries,
        "root": {"handlers": everywhere, "level": least},
    }


def _handler(class_path: str, **options: Any) -> dict[str, Any]:
    return {"class": class_path, "filters": ["cockroach_txn"], **options}


def _file_handler(
    file: str | os.PathLike[str], max_bytes: int, backups: int, formatter: str
) -> dict[str, Any]:
    if _is_no_int(max_bytes) or max_bytes < FEWEST_BYTES:
        _refuse(f"max_bytes is a number of bytes, at least {FEWEST_BYTES}, not {max_bytes!r}")
    if _is_no_int(backups) or backups < 1:
        _refuse(f"backups is how many rotated files are kept, at least 1, not {backups!r}")
    return _handler(
        "otel_crdb.logs.rotation.SharedRotatingFileHandler",
        formatter=formatter,
        filename=_path(file),
        maxBytes=max_bytes,
        backupCount=backups,
    )


def _mail_handler() -> dict[str, Any]:
    return {
        "class": "django.utils.log.AdminEmailHandler",
        "level": "ERROR",
        "filters": ["require_debug_false", "cockroach_txn"],
    }


def _loggers(
    least: str | int, handlers: Collection[str], everywhere: list[str], *, developing: bool, sql: bool
) -> dict[str, dict[str, Any]]:
    return {
        # Named, for Django's own configuration comes first and gives it a console: lines stood there twice.
        "django": {"handlers": ["mail_admins"] if "mail_admins" in handlers else [], "level": least},
        "django.request": {"level": least},
        "django.db.backends": {"level": "DEBUG" if sql else _not_below_info(least)},
        # What runserver prints is coloured by a formatter of its own: it does not go to the root's console.
        "django.server": {
            "handlers": ["django.server", *(name for name in everywhere if name != "console")],
            "level": "INFO",
            "propagate": False,
        },
        "otel_crdb": {"level": "DEBUG" if developing else least},
    }


# --- checks ----------------------------------------------------------------------------------------------


def _refuse(what: str) -> NoReturn:
    raise ImproperlyConfigured(f"logging_config(): {what}")


def _is_no_int(value: object) -> bool:
    return not isinstance(value, int) or isinstance(value, bool)


def _check(kind: option_kinds.Kind, name: str, value: object) -> None:
    try:
        option_kinds.checked(kind, name, value)
    except (TypeError, ValueError) as error:
        _refuse(str(error))


def _level_of_all(level: object) -> str | int:
    if level is not None:
        return _level("level", level)
    said = os.environ.get(LEVEL_VARIABLE, "").strip()
    return _level(LEVEL_VARIABLE, said) if said else "INFO"


def _level(where: str, level: object) -> str | int:
    """Return a level as ``LOGGING`` has it; names in any case, and those that an application has added."""
    if isinstance(level, str):
        for name in (level.upper(), level):
            if isinstance(logging.getLevelName(name), int):
                return name
        _refuse(f"{where} is the name of a level, not {level!r}{_nearest(level, _LEVELS)}")
    if _is_no_int(level):
        _refuse(f"{where} is the name of a level or a number, not {level!r}")
    assert isinstance(level, int)
    return level


def _nearest(name: str, names: Collection[str]) -> str:
    """Return the end of a message about a name that does not exist; these are written in either case."""
    in_lower_case = {known.lower(): known for known in names}
    told = option_kinds.nearest(name, in_lower_case)
    for lower, known in in_lower_case.items():
        told = told.replace(lower, known)
    return told


def _not_below_info(level: str | int) -> str | int:
    number = logging.getLevelName(level) if isinstance(level, str) else level
    return level if number > logging.INFO else "INFO"


def _path(file: object) -> str:
    if not isinstance(file, (str, os.PathLike)) or not isinstance(os.fspath(file), str):
        _refuse(f"file is a path, as str or Path, not {file!r}")
    path = os.fspath(file)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        mode = None  # it is made with the first record; where that fails, a warning says so then
    except ValueError:
        _refuse(f"file is no path: {path!r}")
    if not path.strip() or (mode is not None and not stat.S_ISREG(mode)):
        _refuse(f"file is a file that can be rotated, not {path!r}; the console is logged to without it")
    return path


def _given_loggers(loggers: object, handlers: Collection[str]) -> dict[str, dict[str, Any]]:
    if loggers is not None and not isinstance(loggers, Mapping):
        _refuse(f"loggers is a dict of levels or entries by logger, not {loggers!r}")
    found = {}
    for name, entry in (loggers or {}).items():
        if not isinstance(name, str) or name in ("", "root"):
            _refuse(f"loggers is by names of loggers, not {name!r}; level is the root's")
        where = f"loggers[{name!r}]"
        found[name] = (
            _entry(where, entry, handlers) if isinstance(entry, Mapping) else {"level": _level(where, entry)}
        )
    return found


def _entry(where: str, entry: Mapping[str, Any], handlers: Collection[str]) -> dict[str, Any]:
    checked = dict(entry)
    for key in entry:
        if key not in LOGGER_KEYS:
            _refuse(f"{where} has {key!r}{_nearest(str(key), LOGGER_KEYS)}")
    given = entry.get("handlers", ())
    if not isinstance(given, (list, tuple)):
        _refuse(f"{where}['handlers'] is a list, not {given!r}")
    for name in given:
        if name not in handlers:
            _refuse(f"{where} has the handler {name!r}{_nearest(str(name), handlers)}")
    if "level" in entry:
        checked["level"] = _level(f"{where}['level']", entry["level"])
    return checked
