# SPDX-License-Identifier: Apache-2.0
"""What a proxy costs: PostgreSQL itself, the wire proxy, the fault proxy, and the fault proxy with rules.

    python bench/fault_proxy.py [rounds]

Every round measures each way once, in an order that turns, so that what slows the machine slows them all. The
clients run in this process, and so do the fault proxies, as in tests; the wire proxy is the supervisor's.
Told are medians, and in brackets how much of the first column that is.
"""

import asyncio
import statistics
import sys
import time
from collections import defaultdict

from otel_crdb.testing import FaultProxy, server
from otel_crdb.testing.frames import READ_SIZE, message, query

ROUNDS = 7
RULES = 10
SYNC = message("S", b"")
EXECUTION = message("B", bytes(8)) + message("D", b"P\0") + message("E", bytes(5)) + SYNC
COPY_SIZE = 100_000_000


def batch(text):
    """Give the messages of a statement by the extended protocol."""
    return message("P", b"\0" + text + b"\0\0\0") + EXECUTION


class Client:
    """A client that looks at no more than it must: it costs as little as can be."""

    async def connect(self, open_connection):
        """Connect, by a function that opens the connection."""
        self.reader, self.writer = await open_connection()
        body = b"user\0root\0database\0defaultdb\0\0"
        self.writer.write((len(body) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + body)
        await self.ready()
        return self

    async def ready(self):
        """Hear all up to a ReadyForQuery, whose bytes no answer holds here; give how much it was."""
        size, end = 0, b""
        while end[-6:-1] != b"Z\0\0\0\5":
            data = await self.reader.read(READ_SIZE)
            if not data:
                raise EOFError(end)
            size += len(data)
            end = (end + data)[-200:]
        if b"SERROR\0" in end:
            raise RuntimeError(end)
        return size

    async def ask(self, said):
        """Say something and hear the answer."""
        self.writer.write(said)
        return await self.ready()


async def latency(clients, said, times):
    """Give the seconds of one question, asked by the first client again and again."""
    began = time.perf_counter()
    for _ in range(times):
        await clients[0].ask(said)
    return (time.perf_counter() - began) / times


async def throughput(clients, said, count, times):
    """Give the questions a second that so many clients get answered together."""

    async def asks(client):
        for _ in range(times // count):
            await client.ask(said)

    began = time.perf_counter()
    await asyncio.gather(*map(asks, clients[:count]))
    return times // count * count / (time.perf_counter() - began)


async def copy_out(clients):
    """Give the megabytes a second of a COPY to the client, a line of 100 bytes a message."""
    began = time.perf_counter()
    size = await clients[0].ask(query(b"COPY line TO STDOUT"))
    return size / 1e6 / (time.perf_counter() - began)


async def copy_in(clients):
    """Give the megabytes a second of a COPY from the client, 64 KB a message."""
    block = message("d", (b"x" * 99 + b"\n") * 655)
    client = clients[0]
    began = time.perf_counter()
    client.writer.write(query(b"COPY sink FROM STDIN"))
    for _ in range(COPY_SIZE // len(block)):
        client.writer.write(block)
        await client.writer.drain()
    client.writer.write(message("c", b""))
    await client.ready()
    spent = time.perf_counter() - began
    await client.ask(query(b"TRUNCATE sink"))
    return COPY_SIZE / 1e6 / spent


ONE = {"simple": query(b"SELECT 1"), "extended": batch(b"SELECT 1")}
THOUSAND = batch(b"SELECT n, repeat('x', 50) FROM generate_series(1, 1000) n")
MEASURES = {
    "SELECT 1, simple, ms": lambda clients: milliseconds(latency(clients, ONE["simple"], 500)),
    "SELECT 1, extended, ms": lambda clients: milliseconds(latency(clients, ONE["extended"], 500)),
    "1,000 rows, ms": lambda clients: milliseconds(latency(clients, THOUSAND, 50)),
    "1 client, statements/s": lambda clients: throughput(clients, ONE["extended"], 1, 500),
    "10 clients, statements/s": lambda clients: throughput(clients, ONE["extended"], 10, 2000),
    "100 clients, statements/s": lambda clients: throughput(clients, ONE["extended"], 100, 4000),
    "COPY 100 MB out, MB/s": copy_out,
    "COPY 100 MB in, MB/s": copy_in,
}


async def milliseconds(seconds):
    """Give what is measured in seconds in milliseconds."""
    return 1000 * await seconds


async def measure(ways, rounds):
    """Give all figures of each measure, by way."""
    figures = defaultdict(lambda: defaultdict(list))
    clients = {way: [await Client().connect(opens) for _ in range(100)] for way, opens in ways.items()}
    first = next(iter(clients.values()))[0]
    await first.ask(query(b"DROP TABLE IF EXISTS line, sink"))
    await first.ask(query(b"CREATE TABLE line AS SELECT repeat('x', 99) FROM generate_series(1, 1000000)"))
    await first.ask(query(b"CREATE TABLE sink (text text)"))
    order = list(ways)
    for number in range(rounds + 1):
        for name, measured in MEASURES.items():
            for way in order:
                figure = await measured(clients[way])
                if number:  # the first round only warms up
                    figures[name][way].append(figure)
        order.append(order.pop(0))
    for each in (client for some in clients.values() for client in some):
        each.writer.close()
    return figures


def show(figures, ways):
    """Print a table."""
    say = sys.stdout.write
    say(f"{'':27}" + "".join(f"{way:>22}" for way in ways) + "\n")
    for name, by_way in figures.items():
        medians = {way: statistics.median(by_way[way]) for way in ways}
        first = medians[ways[0]]
        cells = [f"{in_figures(figure)} ({figure / first:.2f})" for figure in medians.values()]
        say(f"{name:27}" + "".join(f"{cell:>22}" for cell in cells) + "\n")


def in_figures(number):
    """Give a number with three figures at least."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main(rounds):
    """Measure, and say what it was measured on."""
    with server("embedded") as running, FaultProxy(running) as plain, FaultProxy(running) as ruled:
        for number in range(RULES):
            ruled.inject("serialization_failure.injected", matching=f"never said {number}", times=None)
        socket_of_server = f"{running.direct_host}/.s.PGSQL.{running.direct_port}"

        def to(place):
            return lambda: asyncio.open_connection(place.host, place.port, limit=READ_SIZE)

        ways = {
            "PostgreSQL": lambda: asyncio.open_unix_connection(socket_of_server, limit=READ_SIZE),
            "wire proxy": to(running),
            "fault proxy": to(plain),
            f"with {RULES} rules": to(ruled),
        }
        sys.stdout.write(f"{running.description}; medians of {rounds} rounds\n")
        show(asyncio.run(measure(ways, rounds)), list(ways))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
