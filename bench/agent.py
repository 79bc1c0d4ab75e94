# SPDX-License-Identifier: Apache-2.0
"""What one agent serves: `collector/agent.yaml` as it is, under what the bank sends, at rising rates.

    python bench/agent.py [--rates 50,100,…] [--keep 10,100] [--seconds 15] [--without] [--outage 60]

The bank is served and called once, and what it sent is recorded. Then that is sent again to the agent as new
traces, so many requests a second, from a process of its own over connections that it keeps. The agent has one
core and its default memory; behind it stands a second collector that counts what comes and drops it. Each
step is a new agent: it is warmed up for longer than its sampling waits, and then looked at.

Processor time of 1,000 spans (with the records and points that go with them) is what to compare: it hardly
hangs on what else the machine does. Wall-clock figures do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Found beside this file.
from agent_rig import CORES, ITEMS, Call, Counted, Machine, Recording, Sender, Watch, record  # noqa: E402

from stack import servers  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RATES = "50,100,150,200,300,400"
RECORD_SECONDS = 20.0
#: Seconds. The agent keeps spans for ten until it drops them: what it holds is steady from then on.
WARM_UP = 12.0
#: Seconds until all that was sent is through: what waits, and the sampling's own wait.
QUIET_WITHIN = 60.0
#: Whoever begins calls later than this is behind: the agent does not take what is sent.
MOST_LATE = 1.0
#: Which processors are left out, by how their names begin, to see what they cost.
WITHOUT: tuple[tuple[str, ...], ...] = (
    (),
    ("transform/lengths",),
    ("transform/errors",),
    ("transform/expose", "transform/restore"),
    ("redaction",),
    ("tail_sampling",),
    ("transform", "redaction", "tail_sampling"),
)


# --- one step ---------------------------------------------------------------------------------------------


@dataclass
class Step:
    """What one rate came to. Memory is in MiB, and the most that was seen; calls are in milliseconds.

    `resident` counts the pages of the queue's file too, which the kernel takes back when it needs them;
    `private` does not. `per_1000_spans` is of the whole step, until nothing waits any more.
    `others` is the share of the time in which it was ready and something else had its core.
    """

    rate: float
    keep: int
    load_average: float
    spans_a_second: float
    of_a_core: float
    others: float
    per_1000_spans: float
    resident: float
    private: float
    heap: float
    waiting: dict[str, int]
    p50: float
    p99: float
    late: float
    offered: dict[str, int]
    accepted: dict[str, int]
    refused: int
    sent: dict[str, int]
    arrived: dict[str, int]
    lost: int
    traces_kept: float
    growing: bool
    missing: list[str]

    @property
    def keeps_up(self) -> bool:
        """Whether all came through, and as fast as it was sent."""
        return self.late <= MOST_LATE and not (self.refused or self.lost or self.growing or self.missing)


def measure(
    recording: Recording, rate: float, keep: int, asked: argparse.Namespace, more: Sequence[Path] = ()
) -> Step:
    """Send so many requests a second to a new agent, and look at it."""
    whole = asked.warm_up + asked.seconds
    with contextlib.ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="otel_crdb-bench-")))
        machine = Machine(folder, {"AGENT_KEEP_PERCENT": keep}, more)
        ending.callback(machine.stop)
        machine.sink.start()
        machine.sink.wait_until_ready()
        machine.start_agent()
        sender = ending.enter_context(Sender(recording, machine.agent.address, rate, whole))
        sender.wait_until_ready()
        watch = Watch(machine)
        first, start = watch.cpu(), time.monotonic()
        sender.go()
        before = watch.until(start + asked.warm_up)
        began = watch.cpu(), time.monotonic(), watch.kept_waiting()
        after = watch.until(start + whole)
        used, took = watch.cpu() - began[0], time.monotonic() - began[1]
        others = max(0.0, watch.kept_waiting() - began[2]) / took
        load_average = os.getloadavg()[0]
        calls = sender.calls()
        last = _quiet(machine)
        whole_cpu = watch.cpu() - first
        arrived = machine.arrived().each("receiver_accepted_{}")
    return _step(
        recording, calls, (before, after, last), (used, took, whole_cpu), watch, asked, arrived,
        rate=rate, keep=keep, others=others, load_average=load_average,
    )  # fmt: skip


def _step(
    recording: Recording,
    calls: list[Call],
    looks: tuple[Counted, Counted, Counted],
    spent: tuple[float, float, float],
    watch: Watch,
    asked: argparse.Namespace,
    arrived: dict[str, int],
    **known: Any,
) -> Step:
    before, after, last = looks
    used, took, whole = spent
    accepted = {
        "window": Counter(after.each("receiver_accepted_{}")),
        "all": last.each("receiver_accepted_{}"),
    }
    accepted["window"].subtract(before.each("receiver_accepted_{}"))
    offered = {kind: sum(getattr(recording.bodies[call.body], kind) for call in calls) for kind in ITEMS}
    times = sorted(call.took * 1000 for call in calls if call.due >= asked.warm_up)
    kept, decided = last.decided
    # What two seconds bring may wait: batches are made of half a second's.
    growing = any(
        after.waiting[kind] - before.waiting[kind] > 2 * accepted["window"][kind] / took for kind in ITEMS
    )
    sent = last.each("exporter_sent_{}")
    lost = sum(
        sum(last.each(name).values()) for name in ("exporter_enqueue_failed_{}", "exporter_send_failed_{}")
    )
    step = Step(
        **known,
        spans_a_second=accepted["window"]["spans"] / took,
        of_a_core=used / took,
        per_1000_spans=1000 * whole / max(1, accepted["all"]["spans"]),
        resident=watch.resident,
        private=watch.private,
        heap=watch.heap,
        waiting=after.waiting,
        p50=times[len(times) // 2],
        p99=times[min(len(times) - 1, len(times) * 99 // 100)],
        late=max(call.began - call.due for call in calls),
        offered=offered,
        accepted=accepted["all"],
        refused=sum(call.status != 200 for call in calls),
        sent=sent,
        arrived=arrived,
        lost=lost,
        traces_kept=kept / max(1, decided),
        growing=growing,
        missing=[],
    )
    step.missing = _missing(step, last)
    return step


def _missing(step: Step, last: Counted) -> list[str]:
    """Name what did not come where it should: in words, for the report."""
    found = []
    for kind in ITEMS:
        if step.accepted[kind] < step.offered[kind]:
            found.append(f"{step.offered[kind] - step.accepted[kind]} {kind} were not accepted")
        # The points that the sink has include the agent's own.
        if step.arrived[kind] < step.sent[kind]:
            found.append(f"{step.sent[kind] - step.arrived[kind]} {kind} did not arrive")
        due = step.offered[kind] if kind != "spans" or step.keep == 100 else 0
        if step.sent[kind] < due:
            found.append(f"{due - step.sent[kind]} {kind} were not sent on")
    if _undecided(last):
        found.append(f"{_undecided(last)} traces were neither kept nor dropped")
    if any(last.waiting.values()):
        found.append(f"{last.waiting} wait still")
    return found


def _quiet(machine: Machine) -> Counted:
    """Wait until all is through: the queues are empty, and each trace is kept or dropped."""
    end = time.monotonic() + QUIET_WITHIN
    while True:
        now = machine.counted()
        if not any(now.waiting.values()) and not _undecided(now):
            time.sleep(1)  # the sink counts a batch after it has it
            return machine.counted()
        if time.monotonic() > end:
            return now
        time.sleep(0.5)


def _undecided(now: Counted) -> int:
    """Return how many traces were neither kept nor dropped.

    The sampling's dropped_too_early would not tell: it counts the kept ones as well.
    """
    return int(now.sum("processor_tail_sampling_new_trace_id_received")) - now.decided[1]


# --- beside the steps -------------------------------------------------------------------------------------


def cost_of_processors(recording: Recording, rate: float, asked: argparse.Namespace) -> Iterator[str]:
    """Leave out processors, some at a time: tell what 1,000 spans cost then."""
    pipelines = yaml.safe_load((servers.CONFIGURATION / "agent.yaml").read_text())["service"]["pipelines"]
    with tempfile.TemporaryDirectory(prefix="otel_crdb-bench-") as folder:
        overlay = Path(folder) / "without.yaml"
        for absent in WITHOUT:
            kept = {
                signal: {"processors": [one for one in each["processors"] if not one.startswith(absent)]}
                for signal, each in pipelines.items()
            }
            overlay.write_text(yaml.safe_dump({"service": {"pipelines": kept}}))
            step = measure(recording, rate, asked.keep[0], asked, [overlay])
            name = f"without {', '.join(absent)}" if absent else "agent.yaml as it is"
            yield f"  {1000 * step.per_1000_spans:7.1f} ms  {name}  (load average {step.load_average:.1f})"


def outage(recording: Recording, rate: float, keep: int, seconds: float) -> Iterator[str]:
    """Have nobody behind the agent for so many seconds: tell what it holds, and how it gets rid of it."""
    with contextlib.ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="otel_crdb-bench-")))
        machine = Machine(folder, {"AGENT_KEEP_PERCENT": keep}, ())
        ending.callback(machine.stop)
        machine.start_agent()
        sender = ending.enter_context(Sender(recording, machine.agent.address, rate, seconds))
        sender.wait_until_ready()
        start = time.monotonic()
        sender.go()
        for tenth in range(1, 11):
            watch = Watch(machine)
            counted = watch.until(start + seconds * tenth / 10)
            yield _held(machine, watch, counted, f"{time.monotonic() - start:6.0f} s")
        answers = Counter(call.status for call in sender.calls())
        yield f"  answers to the sender: {dict(answers)}"
        back = time.monotonic()
        machine.sink.start()
        last = _quiet(machine)
        sent, arrived = last.each("exporter_sent_{}"), machine.arrived().each("receiver_accepted_{}")
        yield f"  back: through after {time.monotonic() - back:.0f} s; sent {sent}, arrived {arrived}"
        yield f"  not taken into the queue: {last.each('exporter_enqueue_failed_{}')}"
        yield _held(machine, Watch(machine), last, "   then")


def _held(machine: Machine, watch: Watch, counted: Counted, when: str) -> str:
    watch.look()
    waiting = counted.waiting
    files = [each.stat() for each in machine.queue_folder.iterdir() if each.is_file()]
    on_disk = sum(each.st_blocks * 512 for each in files) / 2**20
    items = sum(waiting.values())
    each = f"{1000 * on_disk / items:.2f} MiB for 1,000" if items else "nothing waits"
    return (
        f"  {when}  {waiting['spans']:7} spans {waiting['records']:6} records {waiting['points']:5} points "
        f"wait; {on_disk:6.0f} MiB on disk "
        f"({each}); RSS {watch.resident:4.0f} MiB, private {watch.private:4.0f}, "
        f"heap {watch.heap:4.0f}"
    )


# --- telling ----------------------------------------------------------------------------------------------

HEADS = (
    "req/s  keep  load   spans/s   core  others  CPU ms/1,000   RSS  private  heap  waiting  p50 ms"
    "  p99 ms  late s  traces kept  keeps up"
)


def row(step: Step) -> str:
    """Return a step as a line of the table."""
    return (
        f"{step.rate:5.0f} {step.keep:4}%  {step.load_average:4.1f}  {step.spans_a_second:8.0f}  "
        f"{step.of_a_core:5.0%}  {step.others:6.0%}  "
        f"{1000 * step.per_1000_spans:12.1f}  {step.resident:4.0f}  {step.private:7.0f}  {step.heap:4.0f}  "
        f"{sum(step.waiting.values()):7}  {step.p50:6.1f}  {step.p99:6.0f}  {step.late:6.2f}  "
        f"{step.traces_kept:11.0%}  {'yes' if step.keeps_up else _why(step)}"
    )


def _why(step: Step) -> str:
    reasons = {
        "late": step.late > MOST_LATE,
        f"{step.refused} calls refused": step.refused,
        f"{step.lost} lost": step.lost,
        "queue grows": step.growing,
    }
    return f"no: {', '.join([*(reason for reason, holds in reasons.items() if holds), *step.missing])}"


def tell(line: str) -> None:
    """Print a line at once: a run takes minutes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and tell."""
    asked = _parser().parse_args(arguments)
    recording = record(asked.record)
    counts = {kind: recording.count(kind) for kind in ITEMS}
    each = ", ".join(f"{count / recording.requests:.2f} {kind}" for kind, count in counts.items())
    size = sum(len(body.content) for body in recording.bodies) / recording.requests / 1000
    tell(
        f"Recorded: {recording.requests} requests in {len(recording.bodies)} calls; "
        f"a request is {each}, {size:.1f} kB"
    )
    tell(
        f"The agent has {'one core' if len(CORES) > 1 else 'the only core'} of {len(CORES) or os.cpu_count()}"
    )
    tell(HEADS)
    steps = []
    for keep in asked.keep:
        for rate in asked.rates:
            steps.append(measure(recording, rate, keep, asked))
            tell(row(steps[-1]))
    if asked.json:
        found = [{**asdict(step), "keeps_up": step.keeps_up} for step in steps]
        asked.json.write_text(
            json.dumps({"requests": recording.requests, **counts, "steps": found}, indent=1)
        )
    if asked.without:
        tell(f"Processor time of 1,000 spans at {asked.rates[0]:.0f} requests/s")
        for line in cost_of_processors(recording, asked.rates[0], asked):
            tell(line)
    if asked.outage:
        for keep in asked.keep:
            tell(f"Nobody behind it, {asked.rates[0]:.0f} requests/s, {keep} % kept")
            for line in outage(recording, asked.rates[0], keep, asked.outage):
                tell(line)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python bench/agent.py", description="What one agent serves.")
    parser.add_argument("--rates", type=_numbers, default=RATES, help="requests a second (%(default)s)")
    parser.add_argument("--keep", type=_numbers, default="10,100", help="AGENT_KEEP_PERCENT (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="that a step is looked at (15)")
    parser.add_argument("--warm-up", type=float, default=WARM_UP, help="seconds before that (12)")
    parser.add_argument("--record", type=float, default=RECORD_SECONDS, help="seconds that are recorded (20)")
    parser.add_argument("--without", action="store_true", help="what each processor costs, at the first rate")
    parser.add_argument(
        "--outage", type=float, metavar="SECONDS", help="with nobody behind it, at the first rate"
    )
    parser.add_argument("--json", type=Path, help="write all figures of the steps there")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    sys.exit(main())
