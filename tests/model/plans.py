# SPDX-License-Identifier: Apache-2.0
"""What may be drawn: a transfer with its statements, its policy, its circumstances and its faults.

All is drawn before anything runs, so that an example means the same whenever it is played.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import strategies as st

from otel_crdb.testing.fault import Link, Upstream
from otel_crdb.testing.faults import CATALOGUE, FAMILIES

from .bank import ACCOUNTS


class When(NamedTuple):
    """A moment of a run: before the act of that number, in the attempt of that number.

    The act -1 is before the attempt begins: before the run, or in the back-off that leads to the attempt.
    """

    attempt: int
    act: int


START = When(1, -1)


@dataclass(frozen=True)
class Strike:
    """A fault, when it is put in force, and where it then strikes.

    `heals` is when a fault of the whole node is lifted (None: when the run is over). `during` is a fault of the whole node
    that comes while this one is under way.
    """

    fault: str
    when: When = START
    on: str | None = None
    matching: str | None = None
    nth: int = 1
    times: int | None = 1
    heals: When | None = None
    during: str | None = None


@dataclass(frozen=True)
class Act:
    """One thing that the function does, in a savepoint or not, in its first attempts only or in all."""

    kind: str
    nested: bool = False
    attempts: int = 99


@dataclass(frozen=True)
class Plan:
    """One transfer, and what befalls it."""

    source: str
    target: str
    amount: int
    acts: tuple[Act, ...]
    hooks: tuple[str, ...] = ()
    strikes: tuple[Strike, ...] = ()
    max_attempts: int = 3
    idempotent: bool = False
    deadline: float = 30.0
    backoff_base: float = 0.02
    retry_priority: str | None = None
    #: What `before_retry` does; "be interrupted" comes before it, in the back-off.
    before_retry: str | None = None
    #: An old 40001 is being handled as the run begins.
    handling: bool = False
    #: A span of the application's is current.
    traced: bool = True
    in_request: bool = False
    suppressed: bool = False


CORE = ("read", "debit", "credit", "enter")
#: What a function may do besides: `mend` is in a savepoint that is gone back to, `swallow` is not.
ODD_ACTS = (
    *(
        "audit",
        "swallow a wrong statement",
        "mend a wrong statement",
        "swallow what fails",
        "mend what fails",
    ),
    *(
        "raise",
        "raise from a mended error",
        "raise from an error",
        "raise an interrupt",
        "break a constraint",
    ),
    *("close the connection", "ask for rollback", "swallow a block without a savepoint"),
)
#: After all others: what comes later would be a transaction of its own.
LAST_ACTS = ("commit as text", "commit as text and raise")
HOOKS = ("run", "run a statement", "raise", "raise a 40001")
TEXTS = ("SELECT", "UPDATE", "INSERT", "SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT", "PRIORITY", ".")
NODE_FAULTS = tuple(name for name, fault in CATALOGUE.items() if fault.node is not None)
LINK_ENDS = tuple(
    name for name, fault in CATALOGUE.items() if fault.link is not Link.OPEN and fault.node is None
)
AT_COMMIT = tuple(name for name, fault in CATALOGUE.items() if fault.place == "commit")
#: They strike a text that the transfer does not have.
NEEDS_MATCHING = (
    "restart_savepoint_not_first",
    "restart_savepoint_nested",
    "restricted_internals",
    "schema_locked",
)

moments = st.one_of(
    st.just(START),
    st.builds(When, st.integers(1, 2), st.integers(-1, 5)),
)
how_often = st.sampled_from((1, 1, 1, 2, 3, None))
any_fault = st.sampled_from(tuple(FAMILIES)).flatmap(
    lambda family: st.sampled_from(tuple(fault.name for fault in FAMILIES[family]))
)
node_faults = st.builds(
    Strike,
    fault=st.sampled_from(NODE_FAULTS),
    when=moments,
    heals=st.one_of(st.none(), st.builds(When, st.integers(2, 3), st.just(-1))),
)


def _strike_of(name):
    """Draw when and where a fault strikes: anywhere that it can."""
    fault = CATALOGUE[name]
    if fault.node is not None:
        return node_faults
    places = [None, None, None, "statement", "commit"]
    if fault.link is not Link.OPEN:
        places += ["connect", "idle", "idle_in_transaction"]
    texts = st.sampled_from(TEXTS)
    return st.sampled_from(places).flatmap(
        lambda place: st.builds(
            Strike,
            fault=st.just(name),
            when=moments,
            on=st.just(place),
            matching=(
                st.none()
                if (place or fault.place) != "statement"
                or fault.upstream is Upstream.APPLIED  # no BEGIN is that
                else texts
                if name in NEEDS_MATCHING
                else st.one_of(st.none(), st.none(), st.none(), texts)
            ),
            nth=st.sampled_from((1, 1, 1, 1, 2, 3, 4)),
            times=how_often,
        )
    )


def at_commit(name):
    """Draw a fault that strikes at COMMIT."""
    if CATALOGUE[name].node is not None:
        return node_faults
    return st.builds(Strike, fault=st.just(name), on=st.just("commit"), times=how_often)


single = any_fault.flatmap(_strike_of)
#: What fails at COMMIT, and what then keeps Django from connecting anew.
lost_at_commit = st.tuples(
    st.builds(
        Strike,
        fault=st.sampled_from(LINK_ENDS + LINK_ENDS + AT_COMMIT),
        on=st.just("commit"),
        times=how_often,
    ),
    st.one_of(
        st.builds(
            Strike,
            fault=st.sampled_from(LINK_ENDS),
            on=st.just("connect"),
            when=st.just(When(1, 0)),
            times=how_often,
        ),
        node_faults,
    ),
)
#: A node that goes while a statement, or COMMIT, is under way.
node_goes_meanwhile = st.builds(
    Strike,
    fault=st.just("slow_statement"),
    on=st.sampled_from(("statement", "commit")),
    nth=st.integers(1, 3),
    during=st.sampled_from(("node_killed", "drain", "partition")),
    heals=st.just(When(2, -1)),
)
strikes = st.one_of(
    single.map(lambda strike: (strike,)),
    st.lists(single, min_size=1, max_size=4).map(tuple),
    st.lists(single, min_size=1, max_size=4).map(tuple),
    lost_at_commit,
    node_goes_meanwhile.map(lambda strike: (strike,)),
)


NONE = st.just(0)


@st.composite
def _acts(draw, odd):
    acts = [Act(kind, nested=draw(st.booleans())) for kind in CORE]
    for _ in range(draw(odd)):
        another = Act(draw(st.sampled_from(ODD_ACTS)), draw(st.booleans()), draw(st.sampled_from((1, 99))))
        acts.insert(draw(st.integers(0, len(acts))), another)
    if odd is not NONE:
        if draw(st.integers(0, 5)) == 0:  # where nothing of ours is locked yet that a rival waits for
            acts.insert(
                acts.index(next(act for act in acts if act.kind == "read")) + 1,
                Act("meet a rival", attempts=1),
            )
        if draw(st.integers(0, 9)) == 0:
            acts.append(Act(draw(st.sampled_from(LAST_ACTS)), attempts=draw(st.sampled_from((1, 99)))))
    return tuple(acts)


def _transfers(strikes, *, odd):
    return st.builds(
        Plan,
        source=st.sampled_from(ACCOUNTS),
        target=st.sampled_from(ACCOUNTS),
        amount=st.integers(1, 9),
        acts=_acts(odd),
        hooks=st.one_of(st.just(("run",)), st.lists(st.sampled_from(HOOKS), max_size=3).map(tuple)),
        strikes=strikes,
        max_attempts=st.integers(1, 4),
        idempotent=st.booleans(),
        deadline=st.sampled_from((30.0,) * 7 + (0.0,)),
        backoff_base=st.sampled_from((0.02, 0.0)),
        retry_priority=st.sampled_from((None, None, "low", "high")),
        before_retry=st.sampled_from((None,) * 3 + ("look",) * 5 + ("raise", "be interrupted")),
        handling=st.booleans(),
        traced=st.booleans(),
        in_request=st.booleans(),
        suppressed=st.sampled_from((False,) * 7 + (True,)),
    )


#: Anything, and as much of it as comes.
transfers = _transfers(strikes, odd=st.sampled_from((0, 0, 0, 1, 1, 2, 3)))
#: A plain transfer that goes well up to its COMMIT.
struck_at_commit = _transfers(
    st.one_of(lost_at_commit, any_fault.flatmap(at_commit).map(lambda strike: (strike,))), odd=NONE
)
#: One fault, of which the documentation says what is to follow.
struck_once = _transfers(single.map(lambda strike: (strike,)), odd=st.sampled_from((0, 0, 0, 1)))


# --- one fault alone -----------------------------------------------------------------------------------------


def strikes_of_one(name):
    """Give the strikes of a fault alone: where it is at home, and at COMMIT."""
    if CATALOGUE[name].node is not None:
        return [Strike(name, heals=When(2, -1))]
    return [
        Strike(name, matching="UPDATE model_account" if name in NEEDS_MATCHING else None),
        Strike(name, on="commit"),
    ]


def with_a_savepoint(**options):
    """Give a transfer that goes back to a savepoint before it moves the money: there are faults that strike there."""
    return Plan("ann", "ben", 3, (Act("mend a wrong statement"), *map(Act, CORE)), ("run",), **options)
