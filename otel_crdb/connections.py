# SPDX-License-Identifier: Apache-2.0
"""The life of a connection: the driver's connect, or the wait for one from a psycopg pool.

A pool opens its connections in threads of its own, out of our sight; what we see is how long a
request waited for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import database_log, facts, semconv, signals, transactions
from .hooks import Hook
from .operations import ClientOperation, is_untold
from .state import record_of

if TYPE_CHECKING:
    from .errors import Classification
    from .signals import Signals


class _Connect(ClientOperation):
    """A connection on its way."""

    __slots__ = ("_alias", "node_id")

    def __init__(self, signal: Signals, alias: str, settings: dict[str, Any]) -> None:
        self._alias = alias
        pooled = bool(settings["OPTIONS"].get("pool"))
        known = facts.of_settings(settings)
        self.node_id = signal.config.node_id
        super().__init__(
            known,
            f"{'pool acquire' if pooled else 'connect'} {known.namespace}".rstrip(),
            {semconv.DB_OPERATION_NAME: "acquire" if pooled else "connect"},
            phase="connect",
            histogram=(
                signal.instruments.connection_wait_time
                if pooled
                else signal.instruments.connection_create_time
            ),
            attributes=dict(known.pool),
            quiet=is_untold(alias),
        )

    @property
    def alias(self) -> str:
        """The database, as Django calls it."""
        return self._alias

    def finish(self, result: Any, error: BaseException | None) -> None:
        if error is None and self.span is not None:
            self.span.set_attributes(dict(facts.of_connection(result, node_id=self.node_id).span))
        super().finish(result, error)
        if error is not None:
            database_log.release()

    def settle(self, error: BaseException | None, failure: Classification | None) -> None:
        """Leave transactions alone: there is none before there is a connection."""


def _begin_connect(wrapper: Any, params: dict[str, Any]) -> _Connect | None:
    signal = signals.current
    if signal is None:
        return None
    database_log.hold()  # until Django has set autocommit on it
    # Django forgets its blocks when it connects anew; a transaction left over was lost with its link.
    transactions.close(record_of(wrapper))
    return _Connect(signal, wrapper.alias, wrapper.settings_dict)


class _Parameters:
    """The parameters of a connection under way: they get a name for it, where they have none."""

    @staticmethod
    def finish(result: Any, error: BaseException | None) -> None:
        signal = signals.current
        if error is not None or signal is None:
            return
        if signal.application_name:
            # libpq takes it only where neither the parameters nor PGAPPNAME has a name.
            result.setdefault("fallback_application_name", signal.application_name)


def _begin_parameters(wrapper: Any) -> type[_Parameters] | None:
    return None if is_untold(wrapper.alias) else _Parameters


PARAMETERS = Hook("DatabaseWrapper.get_connection_params", _begin_parameters)
CONNECT = Hook("DatabaseWrapper.get_new_connection", _begin_connect)
