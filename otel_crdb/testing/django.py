# SPDX-License-Identifier: Apache-2.0
"""Faults in an application's own tests: its database led through a fault proxy, under any test runner."""

from __future__ import annotations

import unittest
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from asgiref.sync import SyncToAsync
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.signals import connection_created

from .fault_proxy import FaultProxy
from .recorder import record_telemetry
from .servers import DEFAULT_PORT, Server
from .shared import shared_server_at
from .upstream import TLS_OPTIONS

if TYPE_CHECKING:
    from .fault import Fault
    from .rules import Rule
    from .telemetry import Telemetry

    TestCase = unittest.TestCase
else:
    TestCase = object

VENDOR = "cockroachdb"
#: Arguments of `FaultProxy.inject`.
Mark = tuple[tuple[Any, ...], Mapping[str, Any]]


@contextmanager
def through_fault_proxy() -> Iterator[FaultProxy]:
    """Lead the application's database through a fault proxy, and give the proxy; afterwards as it was before.

    It stands before the server of the first alias that is on django_cockroachdb, `default` before others, and
    all aliases of that server lead through it. Connections that this thread has open are closed at both ends;
    those of other threads stay as they are. Raises RuntimeError within a transaction, whose connection cannot
    be changed, and ImproperlyConfigured where no alias is on django_cockroachdb.
    """
    wrappers = _wrappers_of_one_server()
    if not wrappers:
        raise ImproperlyConfigured(
            "no alias in DATABASES is on django_cockroachdb: nothing leads to a server"
        )
    for wrapper in wrappers:
        if wrapper.in_atomic_block:
            raise RuntimeError(
                f"the connection {wrapper.alias!r} is within a transaction and cannot be led elsewhere. In "
                "Django's TestCase mix in otel_crdb.testing.django.FaultMixin, which does it before."
            )
    _close_in_async_thread()
    with FaultProxy(_server_of(wrappers[0])) as proxy, ExitStack() as afterwards:
        for wrapper in wrappers:
            afterwards.enter_context(_led_to(wrapper, proxy))
        afterwards.callback(proxy.clear)
        yield proxy


def has_cockroachdb() -> bool:
    """Whether Django is configured, with an alias on django_cockroachdb."""
    try:
        return bool(_wrappers_of_one_server())
    except ImproperlyConfigured:
        return False


def _wrappers_of_one_server() -> list[Any]:
    ours = [connections[alias] for alias in connections if connections[alias].vendor == VENDOR]
    ours.sort(key=lambda wrapper: wrapper.alias != "default")
    return [wrapper for wrapper in ours if _address(wrapper) == _address(ours[0])]


def _address(wrapper: Any) -> tuple[str, int]:
    settings = wrapper.settings_dict
    # libpq takes lists, and tries one after the other.
    hosts, ports = str(settings["HOST"] or "localhost"), str(settings["PORT"] or DEFAULT_PORT)
    return hosts.split(",")[0], int(ports.split(",")[0])


def _server_of(wrapper: Any) -> Server:
    host, port = _address(wrapper)
    settings = wrapper.settings_dict
    options = settings["OPTIONS"]
    return shared_server_at(host, port) or Server(
        kind="url",
        description=f"the server of the alias {wrapper.alias!r} at {host}:{port}",
        host=host,
        port=port,
        user=settings["USER"],
        password=settings["PASSWORD"],
        database=settings["NAME"],
        options={name: str(options[name]) for name in TLS_OPTIONS if name in options},
    )


@contextmanager
def _led_to(wrapper: Any, proxy: FaultProxy) -> Iterator[None]:
    """Have an alias's new connections, of all threads, lead to the proxy."""
    settings = wrapper.settings_dict  # one dictionary, which the wrappers of all threads share
    before = {name: settings[name] for name in ("HOST", "PORT", "OPTIONS")}
    options = {name: value for name, value in settings["OPTIONS"].items() if name not in TLS_OPTIONS}
    opened: WeakSet[Any] = WeakSet()

    def note(connection: Any, **_: Any) -> None:
        if connection.settings_dict is settings:
            opened.add(connection)

    _hang_up(wrapper)
    settings.update(HOST=proxy.host, PORT=proxy.port, OPTIONS=options)
    connection_created.connect(note)
    try:
        yield
    finally:
        connection_created.disconnect(note)
        # Those of threads that live on too (asgiref's, a pool's): none of them may meet a proxy that is gone.
        for one in {wrapper, *opened}:
            one.inc_thread_sharing()
            try:
                _hang_up(one)
            finally:
                one.dec_thread_sharing()
        settings.update(before)


def _close_in_async_thread() -> None:
    """Close what asgiref's thread has open, in which async views and `a…` methods of the ORM work."""
    thread = SyncToAsync.single_thread_executor
    if thread._threads:  # else it would be started for nothing
        thread.submit(connections.close_all).result()


def _hang_up(wrapper: Any) -> None:
    wrapper.close()
    if wrapper.settings_dict["OPTIONS"].get("pool"):
        wrapper.close_pool()


@contextmanager
def body_of_test(proxy: FaultProxy | None, telemetry: Telemetry | None) -> Iterator[list[Rule]]:
    """Surround a test's body: the telemetry begins here, and faults end here.

    Gives a list for the rules that must have struck by then; one that did not is an AssertionError. Whoever
    cleans up after the test connects anew, for a fault may have ended the connection.
    """
    __tracebackhide__ = True
    demanded: list[Rule] = []
    if telemetry is not None:
        telemetry.clear()
    try:
        yield demanded
        for rule in demanded:
            _demand_strike(rule)
    finally:
        if proxy is not None:
            proxy.clear()
            _close_outside_transactions()


def _demand_strike(rule: Rule) -> None:
    __tracebackhide__ = True
    if rule.hits:
        return
    hint = ""
    if rule.on == "commit":
        hint = (
            " Django's TestCase, and pytest-django's `django_db` without `transaction=True`, commit nothing: "
            "use TransactionTestCase or `django_db(transaction=True)`."
        )
    raise AssertionError(f"the fault {rule.fault.name} on {rule.on} was never met.{hint}")


def _close_outside_transactions() -> None:
    if has_cockroachdb():
        for wrapper in _wrappers_of_one_server():
            if not wrapper.in_atomic_block:
                wrapper.close()


def inject_marked(proxy: FaultProxy, marks: Iterable[Mark]) -> list[Rule]:
    """Put faults in force, each given by arguments of `FaultProxy.inject`, and give those that must strike.

    `must_strike` among the arguments, True by default, says so.
    """
    demanded = []
    for arguments, options in marks:
        when = dict(options)
        must_strike = when.pop("must_strike", True)
        rule = proxy.inject(*arguments, **when)
        if must_strike:
            demanded.append(rule)
    return demanded


class FaultMixin(TestCase):
    """For Django's test cases, before them: `class TransferTests(FaultMixin, TransactionTestCase)`.

    The application's database leads through `fault_proxy` while the class's tests run. The test's own method
    begins without faults and with empty `telemetry`; when it is over, all faults are lifted.
    """

    fault_proxy: ClassVar[FaultProxy]
    telemetry: Telemetry
    #: Put in force when the test's method begins.
    marked_faults: Iterable[Mark] = ()
    _demanded: list[Rule] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = cls.__mro__
        if unittest.TestCase in order and order.index(FaultMixin) > order.index(unittest.TestCase):
            raise TypeError(f"{cls.__name__}: FaultMixin comes before Django's test case")

    @classmethod
    def setUpClass(cls) -> None:
        """Lead the database through the proxy, before Django opens a transaction for the class."""
        afterwards = ExitStack()
        cls.addClassCleanup(afterwards.close)
        cls.fault_proxy = afterwards.enter_context(through_fault_proxy())
        super().setUpClass()

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test with telemetry, and its method with faults."""
        method = getattr(self, self._testMethodName)

        @wraps(method)
        def watched() -> None:
            with body_of_test(self.fault_proxy, self.telemetry) as demanded:
                self._demanded = demanded
                demanded += inject_marked(self.fault_proxy, self.marked_faults)
                with _tree_in_report(self.telemetry):
                    method()

        setattr(self, self._testMethodName, watched)
        with record_telemetry() as self.telemetry:
            try:
                return super().run(result)
            finally:
                self._demanded = None
                self.fault_proxy.clear()

    def inject(self, fault: Fault | str, *, must_strike: bool = True, **when: Any) -> Rule:
        """Put a fault in force until the end of the test's method, as `FaultProxy.inject` does.

        A fault that was never met by then fails the test, unless `must_strike` is False.
        """
        if self._demanded is None:
            raise RuntimeError("inject() is for the test's method; setUp and tearDown are to work as always")
        rule = self.fault_proxy.inject(fault, **when)
        if must_strike:
            self._demanded.append(rule)
        return rule


@contextmanager
def _tree_in_report(telemetry: Telemetry) -> Iterator[None]:
    """Have a failure's report show what was seen; before Python 3.11 there is no place for it."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(f"Telemetry:\n{telemetry.tree()}")
        raise
