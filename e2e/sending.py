# SPDX-License-Identifier: Apache-2.0
"""An application that makes a fixed number of transactions and says what it has made: for tests that count.

`python -m e2e.sending ORDER` is the application: otel_crdb as its users have it, on a server behind the fault
proxy, which refuses the COMMIT of every so many transactions. What is to arrive follows from its journal
alone, and from nothing that a collector says.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stack.queries import until
from stack.servers import go_with_the_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

ROOT = Path(__file__).resolve().parent.parent
#: Seconds. What is waited for takes a few; the rest is for a busy machine.
LONGEST = 180.0
#: Every so many transactions one is refused at COMMIT, and run again.
REFUSED_EVERY = 5
REFUSAL = "serialization_failure.RETRY_SERIALIZABLE"


# --- what it has done ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Journal:
    """What an application says that it did; and what must have been told of it, for that follows."""

    service: str
    transactions: int
    #: How often the function that is run again was called.
    attempts: int
    #: How often metrics were collected: a series that is there from the first on has so many points.
    collections: int
    #: What could not be sent, by signal and reason: `otel_crdb.telemetry.dropped`.
    dropped: dict[str, int]

    @property
    def retries(self) -> int:
        """How often a transaction was run again."""
        return self.attempts - self.transactions

    @property
    def spans(self) -> Counter[str]:
        """The spans by name: of each transaction, of each attempt and its four statements, of one connect."""
        table = table_of(self.service)
        of_an_attempt = (f"INSERT {table}", f"UPDATE {table}", f"SELECT {table}", "COMMIT", "transaction")
        return Counter(
            {
                "run_transaction": self.transactions,
                **dict.fromkeys(of_an_attempt, self.attempts),
                "connect": 1,
            }
        )

    @property
    def records(self) -> Counter[str]:
        """The log records: the application's line of each transaction, ours of each retry."""
        return Counter({"moved": self.transactions, "cockroachdb.txn.retry": self.retries})

    @property
    def sums(self) -> dict[str, int]:
        """What the series of a metric add up to in the end, by their names in Prometheus."""
        return {
            "cockroachdb_client_txn_attempts_count": self.transactions,
            "cockroachdb_client_txn_attempts_sum": self.attempts,
            "cockroachdb_client_txn_duration_seconds_count": self.attempts,
            "cockroachdb_client_txn_retries_total": self.retries,
            "cockroachdb_client_errors_total": self.retries,
            "db_client_operation_duration_seconds_count": 4 * self.attempts,
            "db_client_connection_create_time_seconds_count": 1,
            "sending_collections_total": self.collections,
        }


def table_of(service: str) -> str:
    """Return the table that a service has for itself: several share a server."""
    return service.replace("-", "_")


# --- the application ------------------------------------------------------------------------------------------


def main(order: dict[str, Any]) -> None:
    """Make the transactions of an order, and leave a journal when all has been sent."""
    # Called in the opposite order: when this is, otel_crdb has sent its last.
    atexit.register(lambda: _leave_journal(order, work))
    from otel_crdb.testing import FaultProxy

    with FaultProxy(order["database"]) as proxy:
        work = _Work(order, proxy)
        work.do()


class _Work:
    """The transactions of one process."""

    def __init__(self, order: Mapping[str, Any], proxy: Any) -> None:
        self._order = order
        self._proxy = proxy
        self._entry = _set_up(order["service"], proxy.django_settings())
        import otel_crdb

        otel_crdb.instrument(log_limit=0)  # no summary in the place of lines: they are counted
        self._otel_crdb = otel_crdb
        self.transactions = self.attempts = self.collections = 0

    def do(self) -> None:
        """Make them, at the rate that was asked for, and hand in all that they told."""
        from django.db import connection
        from opentelemetry import metrics

        metrics.get_meter("e2e.sending").create_observable_counter("sending.collections", [self._collected])
        logger = logging.getLogger("e2e.sending")
        done = Path(self._order["done"])
        rate, began = self._order["rate"], time.monotonic()
        with done.open("ab", buffering=0) as tally:
            for number in range(self._order["transactions"]):
                if number % REFUSED_EVERY == 0:
                    self._proxy.inject(REFUSAL, on="commit")
                self._otel_crdb.run_transaction(self.move, number, backoff_base=0.001)
                self.transactions += 1
                logger.warning("moved %d", number)
                tally.write(b".")
                if rate:
                    time.sleep(max(0.0, began + (number + 1) / rate - time.monotonic()))
        connection.close()
        self._otel_crdb.flush(self._order["patience"])

    def move(self, number: int) -> None:
        """Three statements, and a COMMIT."""
        self.attempts += 1
        made = self._entry.objects.create(number=number)
        self._entry.objects.filter(pk=made.pk).update(number=-number)
        self._entry.objects.filter(number__lt=0).count()

    def _collected(self, _: Any) -> list[Any]:
        from opentelemetry.metrics import Observation

        self.collections += 1
        return [Observation(self.collections)]


def _set_up(service: str, database: dict[str, Any]) -> Any:
    """Set up Django, and give a model whose table there is."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": database},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        MIDDLEWARE=[],
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()
    from django.db import connection, models

    class Entry(models.Model):
        number = models.IntegerField()

        class Meta:
            app_label = "e2e"
            db_table = table_of(service)

        def __str__(self):
            return str(self.number)

    with connection.schema_editor() as editor:
        editor.create_model(Entry)
    connection.close()
    return Entry


def _leave_journal(order: Mapping[str, Any], work: _Work) -> None:
    from otel_crdb.delivery import drop_counts

    journal = Journal(
        order["service"],
        work.transactions,
        work.attempts,
        work.collections,
        {f"{signal} {reason}": count for (signal, reason), count in drop_counts().items()},
    )
    Path(order["journal"]).write_text(json.dumps(asdict(journal)))


# --- the application, seen from a test --------------------------------------------------------------------------


class Sender:
    """The application as a process, as a context manager: from a start that is waited for, to its end."""

    def __init__(
        self,
        folder: Path,
        database: str,
        endpoint: str,
        service: str,
        transactions: int,
        *,
        rate: float | None = None,
        patience: float = 60.0,
        **variables: object,
    ) -> None:
        """Say what it does.

        Args:
            folder: where its log, its tally and its journal are.
            database: the URL of the server.
            endpoint: where it sends to.
            service: its name.
            transactions: how many it makes.
            rate: so many a second, None: as many as it can.
            patience: the seconds it has in the end to send what it holds.
            variables: further ones of its environment.

        """
        self._folder = folder / service
        self._done = self._folder / "done"
        self._journal = self._folder / "journal.json"
        self._log = self._folder / "log"
        self._order = {
            "service": service,
            "database": database,
            "transactions": transactions,
            "rate": rate,
            "patience": patience,
            "done": str(self._done),
            "journal": str(self._journal),
        }
        self._environment = {
            **os.environ,
            "OTEL_SERVICE_NAME": service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            # What is lost on the way to the collector, and not behind it, is not what is counted here.
            "OTEL_BSP_MAX_QUEUE_SIZE": "100000",
            "OTEL_BLRP_MAX_QUEUE_SIZE": "100000",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OTEL_BLRP_SCHEDULE_DELAY": "500",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            **{name: str(value) for name, value in variables.items()},
        }
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._done.touch()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "e2e.sending", json.dumps(self._order)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=go_with_the_parent,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def log(self) -> str:
        """What it wrote to its terminal."""
        return self._log.read_text()

    def wait_until_done(self, transactions: int) -> None:
        """Wait until it has made so many of its transactions."""

        def done() -> bool:
            if self._process.poll() not in (None, 0):
                raise AssertionError(self.log)
            return self._done.stat().st_size >= transactions

        until(done, f"{transactions} transactions of {self._order['service']}", seconds=LONGEST)

    def journal(self) -> Journal:
        """Wait for its end, and return what it says."""
        assert self._process.wait(LONGEST) == 0, self.log
        return Journal(**json.loads(self._journal.read_text()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
