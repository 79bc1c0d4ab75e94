# SPDX-License-Identifier: Apache-2.0
"""Runs other people's tests with and without the package, and compares the outcomes test by test.

    python -m tests.suites                         # what is run on every change
    python -m tests.suites --long                  # everything
    python -m tests.suites transactions schema     # packages of Django's own tests
    python -m tests.suites django-reversion        # an application

``OTEL_CRDB_TEST_DRIVER=psycopg2`` has it on psycopg2. Sources are fetched by pip once, and kept in
``OTEL_CRDB_TEST_SOURCES``, by default ``~/.cache/otel_crdb``. The exit status is 1 where anything differs.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field

import django

from otel_crdb.testing import FaultProxy, server

from . import catalogue, comparing, running


def say(text):
    """Print at once: a run takes minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class Totals:
    """What all suites come to."""

    tests: int = 0
    differ: int = 0
    flaky: int = 0
    faults: int = 0
    failures: int = 0  # the same both ways
    spans: Counter = field(default_factory=Counter)


def arguments():
    """Read the command line: packages of Django's and applications, by name."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--long", action="store_true", help="everything")
    parser.add_argument("--failures", action="store_true", help="name the tests that fail both ways")
    return parser.parse_args()


def chosen(options):
    """Give the suites to run."""
    names = options.names or (
        [*catalogue.SHORT, *catalogue.LONG, *catalogue.APPLICATIONS]
        if options.long
        else [*catalogue.SHORT, *catalogue.SHORT_APPLICATIONS]
    )
    for name in names:
        application = catalogue.APPLICATIONS.get(name)
        if application is None:
            yield running.suite_of_django(name)
        elif django.VERSION[:2] < application.django:
            say(f"{name} does not run on Django {django.__version__}")
        else:
            yield running.suite_of_application(application)


def compare(suite, on, proxy, options, totals):
    """Run a suite without the package and with it, and where it is one of those, behind the fault proxy."""
    without = running.run(suite, on)
    with_it = running.run(suite, on, instrumented=True)
    faults = comparing.faults_of(suite.kinds, without, with_it)
    failures = comparing.failures(without.outcomes)
    seconds = f"{without.seconds:.0f} s and {with_it.seconds:.0f} s"
    say(f"{suite.name}: {len(without.outcomes)} tests, {len(failures)} fail both ways; {seconds}")
    say(f"    {comparing.told(with_it.telemetry)}")
    for fault in faults:
        say(f"    WRONG: {fault}")
    if options.failures:
        for name in failures:
            say(f"    fails both ways: {name}: {without.outcomes[name].splitlines()[0]}")
    totals.tests += len(without.outcomes)
    totals.failures += len(failures)
    totals.faults += len(faults)
    totals.spans.update(comparing.by_kind(with_it.telemetry))
    judge("with the package", without, with_it, lambda: running.pair(suite, on), totals)
    if suite.name in catalogue.BEHIND_PROXY:
        behind = running.run(suite, proxy)
        say(f"    behind the fault proxy: {len(behind.outcomes)} tests; {behind.seconds:.0f} s")
        judge(
            "behind the proxy",
            without,
            behind,
            lambda: (running.run(suite, on), running.run(suite, proxy)),
            totals,
        )


def judge(way, one, other, run_again, totals):
    """Tell what differs; what does so a second time counts, what does not is flaky."""
    differ = comparing.differing(one.outcomes, other.outcomes)
    for_good, flaky = comparing.confirmed(differ, lambda: [run.outcomes for run in run_again()])
    totals.differ += len(for_good)
    totals.flaky += len(flaky)
    for names, word in ((for_good, "DIFFERS, twice"), (flaky, "differed once, not again")):
        for name in names:
            say(f"    {word}: {name}")
            say(f"        before: {one.outcomes.get(name)}")
            say(f"        {way}: {other.outcomes.get(name)}")


def main():
    """Run what was asked for, and give the exit status."""
    options = arguments()
    totals = Totals()
    with server("embedded") as on, FaultProxy(on) as proxy:
        say(f"Django {django.__version__}, {running.driver()}, on {on.description}")
        for suite in chosen(options):
            try:
                compare(suite, on, proxy, options, totals)
            except running.DidNotRunError as error:
                totals.faults += 1
                say(f"    WRONG: {error}")
        messages = sum(proxy.wire_log().to_server.values())
    say(f"{totals.spans.total()} spans: {comparing.counted(totals.spans)}")
    say(f"{messages} messages passed the fault proxy")
    say(
        f"{totals.tests} tests, {totals.failures} fail both ways, {totals.differ} differ, "
        f"{totals.flaky} differed once; {totals.faults} faults"
    )
    return 1 if totals.differ or totals.faults or not totals.tests else 0


if __name__ == "__main__":
    sys.exit(main())
