# SPDX-License-Identifier: Apache-2.0
"""The command `otel-crdb`: examine an application, play drills, stand as a proxy that fails on demand."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import otel_crdb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .testing.drills import Drill

FINE, INTERRUPTED, UNUSABLE = 0, 130, 2
#: What playing drills takes beside this package, and the extra that brings it.
NEEDED_BY_DRILLS, EXTRA = ("gunicorn", "rich"), "demo"
LISTEN = ("127.0.0.1", 26257)


class Unusable(Exception):  # noqa: N818 - it is an answer
    """What was asked for cannot be done. The message says in plain words why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.run(asked))
    except Unusable as why:
        sys.stderr.write(f"otel-crdb {asked.command}: {why}\n")
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a list has seen enough
        sys.stderr.close()
        return FINE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "otel-crdb",
        description="Telemetry of Django on CockroachDB: is it there?",
    )
    parser.add_argument("--version", action="version", version=f"otel_crdb {otel_crdb.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    _add_doctor(commands)

    drill = commands.add_parser(
        "drill",
        help="play failures on a bank, and check what is seen of them",
        description="Play drills on a bank that is started for it, and show what users and telemetry saw. "
        "The exit status is 0 when all was as it should be, 1 when not, 2 when nothing could be played.",
        epilog="OTEL_EXPORTER_OTLP_ENDPOINT hands all telemetry on to a collector of yours. DRIVER=psycopg2 "
        "chooses the driver.",
    )
    drill.add_argument("names", nargs="*", metavar="NAME", help="which to play; all where none is named")
    drill.add_argument("--list", action="store_true", help="say what there is, and play nothing")
    drill.add_argument(
        "--patience", type=float, default=10.0, metavar="S", help="seconds to wait for missing telemetry (10)"
    )
    drill.set_defaults(run=_drill)

    proxy = commands.add_parser(
        "fault-proxy",
        help="stand before a server and fail as told",
        description="Stand before a server as a CockroachDB that fails by rules, until SIGINT or SIGTERM. On "
        "SIGHUP the rules file is read again; what was in force is lifted.",
        epilog='A rules file: [{"fault": "statement_timeout", "matching": "^UPDATE", "nth": 2}, …]. The '
        "other keys: on, times, probability, seed, seconds and delay, as otel_crdb.testing.rules.Rule says; "
        "times null is for ever. The names are those of `otel-crdb faults`.",
    )
    proxy.add_argument("upstream", metavar="UPSTREAM_URL", help="postgresql://…, or: embedded")
    proxy.add_argument("--listen", type=_address, default=LISTEN, metavar="127.0.0.1:26257")
    proxy.add_argument("--rules", type=Path, metavar="FILE", help="a JSON list of rules")
    proxy.add_argument("--version", default="v25.4.0", help="what it claims to be (default: %(default)s)")
    proxy.add_argument("--node-id", type=int, default=1, metavar="N", help="1 to 2047 (default: 1)")
    proxy.set_defaults(run=_fault_proxy)

    listing = commands.add_parser("faults", help="list the faults that rules can name")
    listing.set_defaults(run=_faults)
    return parser


def _add_doctor(commands: Any) -> None:
    from .doctor import examination

    doctor = commands.add_parser(
        "doctor",
        help="tell what is instrumented, whether telemetry arrives, and what mends what is wrong",
        description="Load the application as a server does and tell what is instrumented, what each alias "
        "reaches, and whether a test span, data point and log record arrive; each finding with the line that "
        "mends it. The exit status is 0 when nothing is wrong, 1 when something is, 2 when it is unknown.",
        epilog="It reads from the database and writes nothing to it. No password and no header is printed.",
    )
    doctor.add_argument("--settings", metavar="MODULE", help="as DJANGO_SETTINGS_MODULE")
    examination.add_arguments(doctor)
    doctor.set_defaults(run=_doctor)


def _address(text: str) -> tuple[str, int]:
    """Read where to listen: a port, with or without the one host there is."""
    host, _, port = text.rpartition(":")
    if host not in ("", "127.0.0.1", "localhost"):
        raise argparse.ArgumentTypeError("it listens on 127.0.0.1 only, for it asks nobody for a password")
    if not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{port!r} is no port")
    return "127.0.0.1", int(port)


# --- doctor ----------------------------------------------------------------------------------------------


def _doctor(asked: argparse.Namespace) -> NoReturn:
    from .doctor import examination

    examination.leave(examination.run(examination.asked_for(asked)))


# --- drills ----------------------------------------------------------------------------------------------


def _drill(asked: argparse.Namespace) -> int:
    chosen = [_named(name) for name in asked.names]
    if asked.list:
        _list_drills(chosen)
        return FINE
    missing = [name for name in NEEDED_BY_DRILLS if importlib.util.find_spec(name) is None]
    if missing:
        raise Unusable(f'{" and ".join(missing)} is not installed: pip install "otel-crdb[{EXTRA}]"')
    return int(demo_module("drill_command").play(chosen, asked.patience))


def _named(name: str) -> Drill:
    from .testing import drills

    try:
        return drills.named(name)
    except ValueError as error:
        raise Unusable(str(error)) from error


def _list_drills(chosen: list[Drill]) -> None:
    from .testing import drills

    for family, members in drills.FAMILIES.items():
        rows = {each.name: each.title for each in members if not chosen or each in chosen}
        _write_table(family, rows, max(map(len, drills.CATALOGUE)))


def demo_module(name: str) -> Any:
    """Import a module of the demo: it lies in this package where that was installed, beside it in a clone."""
    here = Path(__file__).resolve().parent
    if (here / "demo" / f"{name}.py").is_file():
        return import_module(f"otel_crdb.demo.{name}")
    if (here.parent / "demo" / f"{name}.py").is_file():
        sys.path.insert(0, str(here.parent))  # else another `demo` may come first
        return import_module(f"demo.{name}")
    raise Unusable(f"the demo is not there: pip install --force-reinstall 'otel-crdb[{EXTRA}]'")


# --- faults ----------------------------------------------------------------------------------------------


def _faults(_: argparse.Namespace) -> int:
    from .testing import faults

    for family, members in faults.FAMILIES.items():
        _write_table(family, {each.name: each.summary for each in members}, 52)
    sys.stdout.write("docs/faults.md tells each in full.\n")
    return FINE


def _fault_proxy(asked: argparse.Namespace) -> int:
    from .testing import ServerError, standing_proxy

    try:
        standing_proxy.run(
            asked.upstream,
            port=asked.listen[1],
            rules_file=asked.rules,
            version=asked.version,
            node_id=asked.node_id,
        )
    except (OSError, ValueError, ServerError) as error:
        raise Unusable(str(error)) from error
    return FINE


def _write_table(title: str, rows: dict[str, str], width: int) -> None:
    if rows:
        lines = (f"  {name:<{width}}  {told}\n" for name, told in rows.items())
        sys.stdout.write(f"{title}\n{''.join(lines)}\n")
