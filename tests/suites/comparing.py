# SPDX-License-Identifier: Apache-2.0
"""Compares two runs of a suite, and says what speaks against the package."""

from collections import Counter

from .inside.counted_telemetry import BETWEEN_TESTS

#: Why a run fails although every test came out the same.
NOTHING_RAN = "no test was run"
NOT_ALONE = "the run that is to be without the package had it imported"
NOT_INSTRUMENTED = "the run that is to be with the package was not instrumented"
NO_LINES = "logging_config() was to be in force, and no line was written"


def differing(without, with_it):
    """Give the names of the tests that did not come out the same."""
    return sorted(name for name in without.keys() | with_it.keys() if without.get(name) != with_it.get(name))


def confirmed(names, run_again):
    """Divide tests into those that differ a second time as well, and those that are flaky.

    ``run_again`` gives the outcomes of both runs anew.
    """
    if not names:
        return [], []
    again = differing(*run_again())
    return [name for name in names if name in again], [name for name in names if name not in again]


def failures(outcomes):
    """Give the names of the tests that do not come out as they are meant to."""
    expected = "failed as expected"
    return [
        name
        for name, word in sorted(outcomes.items())
        if word.startswith(("failed", "error")) and not word.startswith(expected)
    ]


def faults_of(kinds, without, with_it):
    """Give what is wrong with the two runs, but for the outcomes."""
    found = []
    if not without.outcomes:
        found.append(NOTHING_RAN)
    if without.imported or without.telemetry is not None:
        found.append(NOT_ALONE)
    if with_it.telemetry is None:
        return [*found, NOT_INSTRUMENTED]
    if with_it.log_lines == 0:
        found.append(NO_LINES)
    told = with_it.telemetry
    if kinds and not by_kind(told):
        found.append("no span was made")
    # Set-up and migrations make spans of every kind: what must be there is to be there in the tests.
    in_tests = Counter()
    for package, kinds_there in told["spans"].items():
        if package != BETWEEN_TESTS:
            in_tests.update(kinds_there)
    found += [f"no test made a span of the kind {kind!r}" for kind in sorted(kinds) if not in_tests[kind]]
    found += [f"the hook {name} failed {count} times" for name, count in told["faults"].items()]
    found += told["wrong"]
    if told["left_open"]:
        found.append(f"{told['left_open']} spans were begun and not ended")
    return found


def counted(kinds):
    """Give how many spans of each kind there were, in one line."""
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def told(telemetry):
    """Give what was told of a suite, in one line."""
    if telemetry is None:
        return "nothing was told"
    kinds = by_kind(telemetry)
    points = sum(telemetry["data_points"].values())
    logs = telemetry["log_records"]
    return f"{kinds.total()} spans ({counted(kinds)}), {points:.0f} measurements, {logs} log records"


def by_kind(telemetry):
    """Give how many spans of each kind there were."""
    kinds = Counter()
    for counts in (telemetry or {"spans": {}})["spans"].values():
        kinds.update(counts)
    return kinds
