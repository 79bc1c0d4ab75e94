# SPDX-License-Identifier: Apache-2.0
"""``python -m demo.load``: a steady, modest load on a bank, colliding now and then, until it is stopped."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import queue
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .traffic import CLIENTS, CROWDED_EVERY, INSUFFICIENT, MADE, REFUSED, Client, Order, Tally, order_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FINE = 0
#: Seconds that a transfer may take. Stopping takes no longer.
PATIENCE = 10.0
#: Seconds after which a bank that was not there is asked again.
ASK_AGAIN = 1.0
#: So many transfers may be under way; where the bank is slower than the load, the rest is left out.
MOST_AT_ONCE = 3 * CLIENTS
#: What orders come to, in the words of the summary.
WORDS = {MADE: "made", REFUSED: "refused with 40001", INSUFFICIENT: "without the money"}
#: Whoever falls behind by more seconds goes on from there, and does not make up for it by a rush.
TOO_LATE = 1.0


class Load:
    """Orders that are sent to a bank at a steady rate until `stop`."""

    def __init__(self, address: tuple[str, int], rate: float, every: float) -> None:
        self._client = Client(address, Tally())
        self._address = "{}:{}".format(*address)
        self._rate, self._every = rate, every
        self._stopped = False
        # Not an Event: a signal handler that sets one while it is looked at waits for itself.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._places = threading.Semaphore(MOST_AT_ONCE)
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._answers = True

    def stop(self) -> None:
        """Send nothing more. May be called by a signal handler."""
        self._stopped = True
        self._wake.put(None)

    def run(self, seconds: float | None) -> None:
        """Send orders for so many seconds, None: until stopped, and wait for what is under way."""
        end = None if seconds is None else time.monotonic() + seconds
        accounts = self._accounts(end)
        if accounts:
            with ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="customer") as customers:
                self._send(customers, accounts, end)
        self._summarise(self._all, "in all: ")

    def _accounts(self, end: float | None) -> list[str]:
        """Ask until the bank answers which accounts it has; none where it was not there to the end."""
        while not self._over(end):
            try:
                listed = self._client.get("/accounts/", PATIENCE).body.get("accounts", [])
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._bank_is_there(error)
            else:
                if len(listed) >= 2 * CLIENTS:
                    self._bank_is_there(None)
                    return [account["owner"] for account in listed]
                self._bank_is_there(f"it has {len(listed)} accounts, and {2 * CLIENTS} are needed")
            self._wait(ASK_AGAIN)
        return []

    def _send(self, customers: ThreadPoolExecutor, accounts: list[str], end: float | None) -> None:
        due = summary = time.monotonic()
        for orders in rounds(accounts):
            self._wait(due - time.monotonic())
            if self._over(end):
                return
            for order in orders:
                if self._places.acquire(blocking=False):
                    customers.submit(self._order, order)
                else:
                    self._count("not sent: the bank is behind")
            now = time.monotonic()
            due = max(due, now - TOO_LATE) + len(orders) / self._rate
            if now - summary >= self._every:
                summary = now
                self._summarise(self._taken())

    def _order(self, order: Order) -> None:
        try:
            status = self._client.transfer(order, PATIENCE).status
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self._count("not answered")
            self._bank_is_there(error)
        else:
            self._count(WORDS.get(status, f"answered {status}"))
            self._bank_is_there(None)
        finally:
            self._places.release()

    def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until it is stopped."""
        if not self._stopped:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=max(0.0, seconds))

    def _over(self, end: float | None) -> bool:
        return self._stopped or (end is not None and time.monotonic() >= end)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self._outcomes[outcome] += 1
            self._all[outcome] += 1

    def _taken(self) -> Counter[str]:
        with self._lock:
            taken, self._outcomes = self._outcomes, Counter()
        return taken

    def _bank_is_there(self, problem: object) -> None:
        """Say that it is gone, or back, where that is new."""
        with self._lock:  # also while it is said: else two customers may say it in the wrong order
            new = self._answers is not (problem is None)
            self._answers = problem is None
            if new:
                _say(f"the bank at {self._address} answers" if problem is None else f"no answer: {problem}")

    def _summarise(self, outcomes: Counter[str], which: str = "") -> None:
        told = "".join(f", {count} {outcome}" for outcome, count in outcomes.most_common())
        _say(f"{which}{outcomes.total()} transfers{told}")


def rounds(accounts: Sequence[str]) -> Iterator[list[Order]]:
    """Give the orders that are sent at one moment, for ever.

    They are the demo's rounds: in most each customer's order comes alone, in every fourth all want the same
    two accounts at once. Every eight rounds sender and recipient change places: no account runs dry.
    """
    there = list(accounts)
    back = [owner for pair in zip(there[1::2], there[::2], strict=False) for owner in pair]
    number = 0
    while True:
        accounts = back if number // (2 * CROWDED_EVERY) % 2 else there
        orders = [order_of(customer, number, accounts) for customer in range(CLIENTS)]
        if number % CROWDED_EVERY == CROWDED_EVERY - 1:
            yield orders
        else:
            yield from ([order] for order in orders)
        number += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a bank until SIGINT or SIGTERM, or for so many seconds; return the exit status."""
    asked = _parser().parse_args(arguments)
    load = Load(asked.address, asked.rate, asked.every)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: load.stop())
    load.run(asked.seconds)
    return FINE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m demo.load",
        description="Make transfers at a bank, steadily, colliding now and then, until SIGINT or SIGTERM.",
    )
    parser.add_argument(
        "--address",
        type=_address,
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="where the bank is (default: %(default)s)",
    )
    parser.add_argument("--rate", type=_positive, default=5.0, metavar="N", help="transfers a second (5)")
    parser.add_argument("--seconds", type=_positive, metavar="N", help="for how long (until it is stopped)")
    parser.add_argument(
        "--every", type=_positive, default=60.0, metavar="S", help="a summary each S seconds (60)"
    )
    return parser


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{text!r} is not like http://127.0.0.1:8000")
    try:
        return parts.hostname, parts.port or 80
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _say(line: Any) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
