# SPDX-License-Identifier: Apache-2.0
"""Fixtures `crdb_server`, `fault_proxy` and `telemetry`, and the marker `crdb_fault`.

pytest loads this in every project that has the package installed. Nothing is looked for, and nothing heavy
imported, before a test asks for it.
"""

from __future__ import annotations

import sys
import unittest
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .fault_proxy import FaultProxy
    from .servers import Server
    from .telemetry import Telemetry

MARKER = "crdb_fault"
MARKER_HELP = (
    f"{MARKER}(fault, *, on=None, matching=None, nth=1, times=1, probability=1.0, seed=0, seconds=None, "
    "must_strike=True): while the test's body runs, the server fails like this, as FaultProxy.inject() says; "
    "the test fails if it never did, unless must_strike is False."
)
_used = pytest.StashKey[str]()
_proxy = pytest.StashKey["FaultProxy"]()
_telemetry = pytest.StashKey["Telemetry"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER_HELP)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the proxy stand there before anything opens a connection, or a transaction around the test."""
    for item in items:
        names = getattr(item, "fixturenames", [])
        marked = item.get_closest_marker(MARKER) is not None and not _has_mixin(item)
        if marked or "fault_proxy" in names:
            others = [name for name in names if name != "fault_proxy"]
            at = next(
                (place for place, name in enumerate(others) if _is_of_function(item, name)), len(others)
            )
            names[:] = [*others[:at], "fault_proxy", *others[at:]]


def _is_of_function(item: pytest.Item, name: str) -> bool:
    """Whether a fixture is made for one test; what lives longer must not see a proxy that does not."""
    definitions = item._fixtureinfo.name2fixturedefs.get(name)  # type: ignore[attr-defined]
    return definitions is not None and definitions[-1].scope == "function"


def _has_mixin(item: pytest.Item) -> bool:
    """Whether the item is of a class that has its own proxy."""
    django = sys.modules.get(f"{__package__}.django")
    cls = getattr(item, "cls", None)
    return django is not None and cls is not None and issubclass(cls, django.FaultMixin)


@pytest.fixture(scope="session")
def crdb_server(pytestconfig: pytest.Config) -> Server:
    """Give this process's `otel_crdb.testing.Server`: see `otel_crdb.testing.server` for which one."""
    from .shared import shared_server

    running = shared_server()
    pytestconfig.stash[_used] = running.description
    return running


@pytest.fixture
def fault_proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """Give a `FaultProxy` without rules, which the application's database leads through during the test.

    It stands before the server that DATABASES names, else before `crdb_server`. Its rules are lifted when the
    test's body has ended.
    """
    from .django import has_cockroachdb, through_fault_proxy
    from .fault_proxy import FaultProxy

    if request.cls is not None and issubclass(request.cls, unittest.TestCase):
        pytest.fail(
            f"{request.cls.__name__} is a test case of its own set-up: mix in otel_crdb.testing.FaultMixin, "
            "which leads the database through a fault proxy before it.",
            pytrace=False,
        )
    django = has_cockroachdb()
    with through_fault_proxy() if django else FaultProxy(request.getfixturevalue("crdb_server")) as proxy:
        request.config.stash[_used] = proxy.upstream.description
        request.node.stash[_proxy] = proxy
        yield proxy


@pytest.fixture
def telemetry(request: pytest.FixtureRequest) -> Iterator[Telemetry]:
    """Give the `Telemetry` of the test's body: what this process would have sent over OTLP."""
    from .recorder import record_telemetry

    with record_telemetry() as recorded:
        request.node.stash[_telemetry] = recorded
        yield recorded


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Have the marked faults in force and the telemetry seen while the test's body runs."""
    __tracebackhide__ = True
    marks = [(mark.args, mark.kwargs) for mark in reversed(list(item.iter_markers(MARKER)))]
    proxy, telemetry = item.stash.get(_proxy, None), item.stash.get(_telemetry, None)
    if _has_mixin(item):
        item.instance.marked_faults = marks  # type: ignore[attr-defined]
    if proxy is None and telemetry is None:
        return (yield)
    from .django import body_of_test, inject_marked

    with body_of_test(proxy, telemetry) as demanded:
        try:
            if proxy is not None:
                demanded += inject_marked(proxy, marks)
            return (yield)
        finally:
            # A passed test's report shows it too, where it is asked for (pytest -rP).
            _report(item, proxy, telemetry)


def _report(item: pytest.Item, proxy: FaultProxy | None, telemetry: Telemetry | None) -> None:
    """Have the test's report show what was seen, and which faults were met how often."""
    if telemetry is not None:
        item.add_report_section("call", "telemetry", telemetry.tree())
    if proxy is not None and proxy.rules:
        told = (f"{rule.fault.name} on {rule.on}, hits: {rule.hits}" for rule in proxy.rules)
        item.add_report_section("call", "faults", "\n".join(told))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which server the tests ran on, where one did."""
    if _used in config.stash:
        terminalreporter.write_line(f"otel_crdb: ran on {config.stash[_used]}")
