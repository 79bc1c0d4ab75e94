# SPDX-License-Identifier: Apache-2.0
"""The bank's customers: real HTTP requests from several threads, and a tally of every answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = 8
FEWEST_ROUNDS = 40
MOST_ROUNDS = 150
MOST_SECONDS = 45.0
FEWEST_REFUSED = 5
MADE, REFUSED, INSUFFICIENT = 201, 409, 422
SERIALIZATION_FAILURE = "40001"
#: In one of so many rounds all clients want the same two accounts.
CROWDED_EVERY = 4
#: So many of the clients ask for a single attempt: of theirs, some are refused in every run.
IMPATIENT = 2


@dataclass(frozen=True)
class Answer:
    """What the bank answered."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Order:
    """A transfer somebody wants made, in so many attempts at the most; None: as many as the bank likes."""

    sender: str
    recipient: str
    amount: int
    attempts: int | None


@dataclass
class Tally:
    """What all clients saw.

    `answers` counts by method, path and status, `refusals` by the SQLSTATE and the attempts that they name;
    `moved` is by account, in cents.
    """

    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    refusals: Counter[tuple[str, int]] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, status: int) -> int:
        """How many transfers were answered so."""
        return self.answers["POST", "/transfer/", status]

    @property
    def transfers(self) -> int:
        """How many transfers were answered at all."""
        return sum(count for (method, _, _), count in self.answers.items() if method == "POST")


class Client:
    """Sends requests, each on a connection of its own, so that any worker may take it."""

    def __init__(self, address: tuple[str, int], tally: Tally) -> None:
        self._address = address
        self._tally = tally

    def get(self, path: str, timeout: float = 20.0) -> Answer:
        """Ask for something."""
        return self._send("GET", path, None, timeout)

    def transfer(self, order: Order, timeout: float = 20.0) -> Answer:
        """Order a transfer, and keep account of what was moved."""
        fields = {"from": order.sender, "to": order.recipient, "amount": order.amount}
        if order.attempts is not None:
            fields["attempts"] = order.attempts
        answer = self._send("POST", "/transfer/", json.dumps(fields), timeout)
        if answer.status == MADE:
            with self._tally.lock:
                self._tally.moved[order.sender] -= order.amount
                self._tally.moved[order.recipient] += order.amount
        if answer.status == REFUSED:
            with self._tally.lock:
                self._tally.refusals[answer.body["sqlstate"], answer.body["attempts"]] += 1
        return answer

    def _send(self, method: str, path: str, body: str | None, timeout: float) -> Answer:
        connection = http.client.HTTPConnection(*self._address, timeout=timeout)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        with self._tally.lock:
            self._tally.answers[method, path, response.status] += 1
        is_json = response.headers.get_content_type() == "application/json"
        return Answer(response.status, json.loads(text) if is_json else {})


class Rush:
    """Clients that meet before every round and send their orders at the same moment.

    Every fourth round they all want the same two accounts: of transactions that overlap there, a
    serializable database lets one through and refuses the others. The last clients are impatient: they ask
    for a single attempt.
    """

    def __init__(
        self, client: Client, tally: Tally, accounts: list[str], *, seen_enough: Callable[[], bool]
    ) -> None:
        self._client = client
        self._tally = tally
        self._accounts = accounts
        self._seen_enough = seen_enough
        self._round = -1
        self._over = False
        self._until = time.monotonic() + MOST_SECONDS
        self._start_line = threading.Barrier(CLIENTS, action=self._begin_round, timeout=30)

    def run(self, watch: Callable[[], None]) -> None:
        """Run all rounds; `watch` is called now and then meanwhile."""
        threads = [threading.Thread(target=self._customer, args=(number,)) for number in range(CLIENTS)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    watch()
        finally:
            # Also when interrupted, and then perhaps before all were started: nobody waits for the others.
            self._start_line.abort()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _begin_round(self) -> None:
        """Decide, while all clients wait, whether there is another round."""
        self._round += 1
        late = self._round >= MOST_ROUNDS or time.monotonic() > self._until
        self._over = late or (
            self._round >= FEWEST_ROUNDS
            and self._tally.count(REFUSED) >= FEWEST_REFUSED
            and self._seen_enough()
        )

    def _customer(self, number: int) -> None:
        try:
            while self._start_line.wait() >= 0 and not self._over:
                self._client.transfer(order_of(number, self._round, self._accounts))
        except threading.BrokenBarrierError:
            pass  # another client's failure, told by it
        except (OSError, http.client.HTTPException, ValueError) as error:
            with self._tally.lock:
                self._tally.failures.append(f"{type(error).__name__}: {error}")
            self._start_line.abort()


def order_of(customer: int, round_: int, accounts: list[str]) -> Order:
    """Say what a customer wants in a round. `accounts` holds two for each customer."""
    crowded = round_ % CROWDED_EVERY == CROWDED_EVERY - 1
    pair = accounts[:2] if crowded else accounts[2 * customer : 2 * customer + 2]
    sender, recipient = pair if (round_ + customer) % 2 else reversed(pair)
    dreaming = round_ % 8 == 5 and customer == 0
    impatient = customer >= CLIENTS - IMPATIENT
    return Order(sender, recipient, 10**12 if dreaming else 100 + customer, 1 if impatient else None)
