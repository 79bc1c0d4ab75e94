# SPDX-License-Identifier: Apache-2.0
"""Whether all was done, everything struck, and the money is where callers were told that it is."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .check import Check
from .journal import APPLIED, CANCELLED, COMMITTED, DOUBTFUL, HOOK_FAILED
from .schedule import passing_faults

if TYPE_CHECKING:
    from .evidence import Evidence
    from .journal import Operation

#: Kinds that leave no row of the ledger even where they are committed.
ROWLESS = frozenset({"audit", "internals", "schema"})


def all_done(evidence: Evidence) -> Check:
    """Every operation that was ordered is in a journal once, and every worker ended well."""
    check = Check("every operation is accounted for")
    done = Counter(one.worker for one in evidence.operations)
    seen = Counter(one.saw for one in evidence.operations)
    check.counted = {"operations": len(evidence.operations), **dict(sorted(seen.items()))}
    for worker, count in evidence.ordered.items():
        if done[worker] != count and not evidence.cut_short:
            check.wrong.append(f"{worker}: {done[worker]} of {count}")
        if worker not in evidence.endings or evidence.statuses.get(worker) != 0:
            check.wrong.append(f"{worker} ended with status {evidence.statuses.get(worker)}")
    repeated = [name for name, count in Counter(one.id for one in evidence.operations).items() if count > 1]
    check.wrong += [f"operation {name} is in the journals more than once" for name in repeated]
    check.wrong += [f"{one.id} ({one.kind}): {one.error}" for one in evidence.operations if _strange(one)]
    return check


def _strange(operation: Operation) -> bool:
    """Whether the caller saw what no fault and no refusal explains: an exception of ours, a half-seen sum."""
    return operation.saw == "error" and not operation.error.startswith(DATABASE_ERRORS)


#: Exceptions that a caller may see of a database that fails.
DATABASE_ERRORS = (
    *("OperationalError", "InternalError", "DatabaseError", "ProgrammingError", "NotSupportedError"),
    *("InterfaceError", "TransactionManagementError", "DataError", "IntegrityError"),
)


def every_fault(evidence: Evidence) -> Check:
    """Every kind of fault that was due has struck, and where there was room for all, every kind there is."""
    check = Check("every kind of fault has struck")
    due = sum(evidence.scheduled.values())
    check.counted = {
        "put in force": due,
        "struck": sum(min(evidence.struck[name], count) for name, count in evidence.scheduled.items()),
        "kinds struck": sum(1 for name in evidence.scheduled if evidence.struck[name]),
        "kinds": len(evidence.scheduled),
        "outages": len(evidence.outages),
        "hastened by the clock": evidence.hastened,
    }
    kinds = {fault.name for fault in passing_faults()}
    missing = sorted(name for name in kinds | set(evidence.scheduled) if not evidence.struck[name])
    if evidence.cut_short:
        check.not_judged = "time was over before all of them were put in force"
        return check
    if due < 4 * len(kinds):
        check.not_judged = f"{due} faults are too few for each of {len(kinds)} kinds to be met"
        return check
    check.wrong = [f"{name} never struck" for name in missing]
    return check


def nothing_lost_or_doubled(evidence: Evidence) -> Check:
    """Find one row of what was committed, none of what was refused, none or one of what is in doubt."""
    check = Check("nothing is lost and nothing is applied twice")
    rows = Counter(row.operation for row in evidence.truth.rows)
    known = {one.id for one in evidence.operations}
    sums: Counter[str] = Counter()
    for one in evidence.operations:
        count, most = rows[one.id], 0 if one.kind in ROWLESS else 1
        least = most if one.saw in APPLIED else 0
        if one.saw not in APPLIED | DOUBTFUL:
            most = 0
        if not least <= count <= most:
            check.wrong.append(f"{one.id} ({one.kind}): {one.saw} {one.error}, and {count} rows")
        if one.saw in DOUBTFUL and one.kind not in ROWLESS:
            sums[f"{one.saw}, {'applied' if count else 'not applied'}"] += 1
    check.wrong += [
        f"{name}: {count} rows, and no operation" for name, count in rows.items() if name not in known
    ]
    applied = sum(1 for one in evidence.operations if one.saw in APPLIED and one.kind not in ROWLESS)
    check.counted = {
        "rows": len(evidence.truth.rows),
        "told committed": applied,
        **dict(sorted(sums.items())),
    }
    return check


def balanced(evidence: Evidence) -> Check:
    """Every balance is what the account was opened with and what the ledger moved."""
    check = Check("the balances are those of the ledger")
    due: dict[int, int] = dict.fromkeys(range(1, evidence.accounts + 1), evidence.opening)
    for row in evidence.truth.rows:
        due[row.source] -= row.amount
        due[row.target] += row.amount
    total = sum(evidence.truth.balances.values())
    check.counted = {"accounts": len(evidence.truth.balances), "total": total}
    check.wrong = [
        f"account {account}: {evidence.truth.balances.get(account)} and not {balance}"
        for account, balance in due.items()
        if evidence.truth.balances.get(account) != balance
    ]
    if total != evidence.accounts * evidence.opening:
        check.wrong.append(f"{total} in all, and not {evidence.accounts * evidence.opening}")
    return check


def hooks_once(evidence: Evidence) -> Check:
    """Functions of `on_commit` run once where COMMIT was acknowledged, else not at all."""
    check = Check("on_commit ran once after each COMMIT and never else")
    rows = Counter(row.operation for row in evidence.truth.rows)
    for one in evidence.operations:
        # XXA00 comes in the place of COMMIT's answer: Django takes it for a failure and runs nothing.
        due = {0, rows[one.id]} if one.saw == CANCELLED else {int(one.saw in (COMMITTED, HOOK_FAILED))}
        if one.hooks not in due:
            check.wrong.append(f"{one.id} ({one.kind}): {one.saw}, and it ran {one.hooks} times")
    check.counted = {"runs": sum(one.hooks for one in evidence.operations)}
    return check
