# SPDX-License-Identifier: Apache-2.0
"""`python -m soak`: run a soak, and say whether all checks held."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import report
from .check import verdict
from .checks import judge
from .conductor import Conductor, Options


def main() -> int:
    """Run it; 0 where all checks held, else 1."""
    options = _options()
    options.report.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    evidence = Conductor(options, _say).run()
    checks = judge(evidence)
    for check in checks:
        _say(str(check))
    report.write(options.report, evidence, checks)
    _say(f"{verdict(checks)}; {time.monotonic() - began:.0f} s; see {options.report}")
    return 0 if all(check.held for check in checks) else 1


def _options() -> Options:
    parser = argparse.ArgumentParser("python -m soak", description=__doc__)
    add = parser.add_argument
    add("--transactions", type=int, default=20_000, help="how many in all (%(default)s)")
    add("--seed", type=int, default=1, help="what is done and what fails is drawn from it (%(default)s)")
    add("--minutes", type=float, default=45, help="after which no more are begun (%(default)s)")
    add("--workers", type=int, default=4, help="processes; every second one is on psycopg2 (%(default)s)")
    add("--threads", type=int, default=3, help="of each worker, beside its event loop (%(default)s)")
    add("--tasks", type=int, default=2, help="of each worker's event loop (%(default)s)")
    add("--faults", type=float, default=0.05, help="share of transactions that are struck (%(default)s)")
    add("--report", type=Path, default=Path("soak-report"), help="folder (%(default)s)")
    got = parser.parse_args()
    return Options(
        got.transactions, got.seed, got.minutes, got.workers, got.threads, got.tasks, got.faults, got.report
    )


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
