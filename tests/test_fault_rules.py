# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: F401, F811 - fixtures come by name
"""When a fault strikes: places, matches, counts, chances and times; and rules that are read from a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from otel_crdb.testing import FaultProxy, faults
from otel_crdb.testing.rules import make_rule, read_rules

from .wire_client import (
    PAY_1,
    PAY_2,
    SYNC,
    Onlooker,
    WireClient,
    behind,
    client,
    eventually,
    onlooker,
    protocols,
    proxy,
    step,
)

if TYPE_CHECKING:
    from pathlib import Path

    from otel_crdb.testing import Server

STRUCK, WELL = "40001 Z(I)", "UPDATE 1 Z(I)"
FAULT = "serialization_failure"


def answers(client: WireClient, protocol: str, count: int, text: str = PAY_1) -> str:
    """Run a statement so often; give a letter each: x for struck, o for answered well."""
    letters = {STRUCK: "x", WELL: "o"}
    return "".join(letters[client.run(text, protocol)] for _ in range(count))


# --- which match, and how often ----------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, "xoooo"),
        ({"times": 3}, "xxxoo"),
        ({"times": None}, "xxxxx"),
        ({"nth": 3}, "ooxoo"),
        ({"nth": 2, "times": 2}, "oxxoo"),
        ({"nth": 4, "times": None}, "oooxx"),
    ],
    ids=str,
)
def test_the_nth_match_and_so_many_after_it(
    proxy: FaultProxy, client: WireClient, when: dict[str, Any], expected: str, protocol: str
) -> None:
    """A rule strikes from its n-th match on, as often as it may; `hits` counts it."""
    rule = proxy.inject(FAULT, **when)
    assert answers(client, protocol, 5) == expected
    assert rule.hits == expected.count("x")
    assert proxy.rules == (rule,)


@protocols
def test_matching_ignores_case(proxy: FaultProxy, client: WireClient, protocol: str) -> None:
    """The pattern is searched anywhere in the statement, whatever the case."""
    rule = proxy.inject(FAULT, matching=r"PURSE set .* ID = 2$", times=None)
    assert answers(client, protocol, 2) == "oo"
    assert answers(client, protocol, 1, PAY_2) == "x"
    assert answers(client, protocol, 1, PAY_2.lower()) == "x"
    assert answers(client, protocol, 1, PAY_2.replace("purse", "PURSE")) == "x"
    assert rule.hits == 3


@protocols
def test_without_a_pattern_transaction_control_is_spared(
    proxy: FaultProxy, client: WireClient, protocol: str
) -> None:
    """A rule without a pattern strikes what touches data, and neither BEGIN nor SET nor savepoints nor COMMIT."""
    rule = proxy.inject(FAULT, times=None)
    control = [
        *("BEGIN", "SET timezone = 'UTC'", "SHOW timezone", "SAVEPOINT a", "RELEASE a", "SAVEPOINT b"),
        *("ROLLBACK TO b", "COMMIT", "START TRANSACTION", "ROLLBACK", "/* c */ begin -- x", "END"),
    ]
    for text in control:
        assert not client.run(text, protocol).startswith("40001"), text
    assert rule.hits == 0
    assert client.run(PAY_1, protocol) == STRUCK


@protocols
@pytest.mark.parametrize("text", ["BEGIN", "SET timezone = 'UTC'"])
def test_a_pattern_meets_transaction_control_too(
    proxy: FaultProxy, client: WireClient, text: str, protocol: str
) -> None:
    """A rule that asks for BEGIN in so many words strikes BEGIN; no transaction is open afterwards."""
    proxy.inject("license_throttled", matching=rf"\A{text.split()[0]}")
    assert client.run(text, protocol) == "XXC02 Z(I)"
    assert client.run(text, protocol).endswith("Z(T)" if text == "BEGIN" else "Z(I)")


# --- places ------------------------------------------------------------------------------------------------


@protocols
def test_a_rule_strikes_at_its_place_alone(
    proxy: FaultProxy, client: WireClient, onlooker: Onlooker, protocol: str
) -> None:
    """A rule on commit leaves statements alone, one on statements leaves COMMIT alone."""
    at_commit = proxy.inject(FAULT, on="commit")
    assert client.run(PAY_1, protocol) == WELL
    for text in ("BEGIN", PAY_1):
        assert client.run(text, protocol).endswith("Z(T)")
    assert client.run("COMMIT", protocol) == STRUCK
    assert at_commit.hits == 1
    at_statement = proxy.inject("ambiguous_commit", on="statement", times=None)
    for text in ("BEGIN", "COMMIT"):
        assert client.run(text, protocol)[:5] != "40003"
    assert at_statement.hits == 0
    assert onlooker.balances[1] == 90


@protocols
def test_the_pattern_of_a_rule_on_commit_is_of_the_commit(
    proxy: FaultProxy, client: WireClient, protocol: str
) -> None:
    """On commit too the pattern is searched in the statement, which is COMMIT itself with its comment."""
    proxy.inject(FAULT, on="commit", matching="route='pay'")
    client.run("BEGIN", protocol)
    assert client.run("COMMIT", protocol) == "COMMIT Z(I)"
    client.run("BEGIN", protocol)
    assert client.run("COMMIT /*route='pay'*/", protocol) == STRUCK


def test_connections_are_counted(proxy: FaultProxy) -> None:
    """On connect every new connection is a match."""
    rule = proxy.inject("too_many_clients", nth=2, times=2)
    heard = []
    for _ in range(4):
        with WireClient(proxy) as connecting:
            heard.append("53300" in connecting.greet())
    assert heard == [False, True, True, False]
    assert rule.hits == 2


def test_a_pattern_has_nothing_to_match_where_nothing_is_said(proxy: FaultProxy) -> None:
    """At connect there is no statement: a rule with a pattern never strikes there."""
    rule = proxy.inject("too_many_clients", matching="purse")
    with WireClient(proxy) as connecting:
        assert connecting.greet().endswith("Z(I)")
    assert rule.hits == 0


# --- aborted transactions, pipelines -----------------------------------------------------------------------


@protocols
@pytest.mark.parametrize("ending", ["ROLLBACK", "COMMIT"])
def test_in_an_aborted_transaction_nothing_is_struck_nor_counted(
    proxy: FaultProxy, client: WireClient, ending: str, protocol: str
) -> None:
    """A server that refuses everything has no occasion to fail otherwise, not even at COMMIT."""
    client.run("BEGIN", protocol)
    assert client.run("SELECT 1 / 0", protocol).endswith("22012 Z(E)")
    at_statement = proxy.inject(FAULT, nth=2)
    at_commit = proxy.inject("ambiguous_commit.propagate.applied", times=None)
    assert client.run(PAY_1, protocol) == "25P02 Z(E)"
    assert client.run(PAY_1, protocol) == "25P02 Z(E)"
    assert client.run(ending, protocol) == "ROLLBACK Z(I)"
    assert (at_statement.hits, at_commit.hits) == (0, 0)
    assert answers(client, protocol, 3) == "oxo"


def test_what_the_server_skips_is_not_counted(proxy: FaultProxy, client: WireClient) -> None:
    """Up to the Sync the server skips what follows an error: it is neither struck nor counted."""
    rule = proxy.inject(FAULT, times=2)
    assert client.extended(PAY_1, PAY_1, PAY_1) == "1 2 n 40001 Z(I)"
    assert rule.hits == 1
    assert answers(client, "extended", 2) == "xo"


def test_each_statement_of_a_pipeline_counts(proxy: FaultProxy, client: WireClient) -> None:
    """Statements that are sent at once are matches one after the other."""
    rule = proxy.inject(FAULT, nth=3)
    assert client.extended(PAY_1, PAY_2, PAY_1, PAY_2) == "1 2 n UPDATE 1 1 2 n UPDATE 1 1 2 n 40001 Z(I)"
    client.send(step(PAY_1), SYNC, step(PAY_2), SYNC)
    assert client.hear(ready=2) == "1 2 n UPDATE 1 Z(I) 1 2 n UPDATE 1 Z(I)"
    assert rule.hits == 1


# --- chance ------------------------------------------------------------------------------------------------


@protocols
def test_chance_is_drawn_from_the_seed(proxy: FaultProxy, client: WireClient, protocol: str) -> None:
    """The same seed gives the same strikes, another one others; about as many as the probability says."""

    def drawn(seed: int) -> str:
        with proxy.inject(FAULT, times=None, probability=0.5, seed=seed):
            return answers(client, protocol, 40)

    first = drawn(1)
    assert drawn(1) == first
    assert drawn(2) != first
    assert 8 <= first.count("x") <= 32


def test_a_chance_counts_from_the_nth_match(proxy: FaultProxy, client: WireClient) -> None:
    """Before the n-th match nothing is drawn; `times` counts strikes, not draws."""
    with proxy.inject(FAULT, times=None, probability=0.5, seed=3):
        alone = answers(client, "simple", 20)
    with proxy.inject(FAULT, times=2, probability=0.5, seed=3, nth=4) as rule:
        later = answers(client, "simple", 23)
    second = [index for index, letter in enumerate(alone) if letter == "x"][1]
    assert later == "ooo" + alone[: second + 1] + "o" * (19 - second)
    assert rule.hits == 2


def test_two_rules_draw_apart(proxy: FaultProxy, client: WireClient) -> None:
    """A rule's draws are the same whatever another rule draws in between."""
    with proxy.inject(FAULT, matching="id = 1", times=None, probability=0.5, seed=1):
        alone = answers(client, "simple", 20)
    proxy.inject(FAULT, matching="id = 1", times=None, probability=0.5, seed=1)
    proxy.inject(FAULT, matching="id = 2", times=None, probability=0.5, seed=1)
    both = [(answers(client, "simple", 1), answers(client, "simple", 1, PAY_2)) for _ in range(20)]
    assert "".join(first for first, _ in both) == alone
    assert "".join(second for _, second in both) == alone


# --- several rules, lifting --------------------------------------------------------------------------------


@protocols
def test_the_first_rule_wins(proxy: FaultProxy, client: WireClient, protocol: str) -> None:
    """Of several rules that match the one put in first strikes; the next takes over when it is spent."""
    first = proxy.inject("statement_timeout", matching="id = 1")
    second = proxy.inject("lock_timeout", matching="purse")
    assert client.run(PAY_1, protocol) == "57014 Z(I)"
    assert (first.hits, second.hits) == (1, 0)
    assert client.run(PAY_1, protocol) == "55P03 Z(I)"
    assert client.run(PAY_1, protocol) == WELL
    assert (first.hits, second.hits) == (1, 1)


def test_a_lifted_rule_strikes_no_more(proxy: FaultProxy, client: WireClient) -> None:
    """`lift` takes a rule out, twice does no harm; `clear` takes out all; so does the end of a with block."""
    rule = proxy.inject(FAULT, times=None)
    assert answers(client, "simple", 1) == "x"
    rule.lift()
    rule.lift()
    assert answers(client, "simple", 1) == "o"
    with proxy.inject(FAULT, times=None) as inner:
        assert proxy.rules == (inner,)
        assert answers(client, "simple", 1) == "x"
    assert answers(client, "simple", 1) == "o"
    proxy.inject(FAULT, times=None)
    proxy.inject("connection_refused")
    proxy.clear()
    assert proxy.rules == ()
    assert answers(client, "simple", 1) == "o"
    with WireClient.connected(proxy) as another:
        assert another.greeting.endswith("Z(I)")
    assert (rule.hits, inner.hits) == (1, 1)


def test_an_exception_in_the_block_lifts_too(proxy: FaultProxy, client: WireClient) -> None:
    """A test that fails within the block leaves no rule behind."""
    with pytest.raises(KeyError), proxy.inject(FAULT, times=None):
        raise KeyError
    assert proxy.rules == ()


def test_a_rule_for_a_while(proxy: FaultProxy, client: WireClient) -> None:
    """A rule with `seconds` is lifted when they are over, and not before."""
    rule = proxy.inject(FAULT, times=None, seconds=600)
    assert answers(client, "simple", 3) == "xxx"
    brief = proxy.inject("lock_timeout", times=None, seconds=0.05)
    assert eventually(lambda: brief not in proxy.rules)
    assert proxy.rules == (rule,)
    rule.lift()
    assert answers(client, "simple", 1) == "o"


def test_a_node_for_a_while(proxy: FaultProxy) -> None:
    """A fault of the whole node with `seconds` ends by itself: the node comes back on its port."""
    proxy.inject("connection_refused", seconds=0.2)

    def let_in() -> bool:
        try:
            WireClient.connected(proxy).close()
        except ConnectionRefusedError:
            return False
        return True

    assert not let_in() or proxy.rules == ()
    assert eventually(let_in)
    assert proxy.rules == ()


def test_rules_from_the_start(behind: Server, onlooker: Onlooker) -> None:
    """A proxy can begin with rules: they meet the very first connection, and can be lifted."""
    rule = make_rule("too_many_clients", times=None)
    with FaultProxy(behind, rules=[rule]) as proxy:
        assert proxy.rules == (rule,)
        with WireClient(proxy) as client:
            assert client.greet() == "R 53300 FIN"
        rule.lift()
        with WireClient(proxy) as client:
            assert client.greet().endswith("Z(I)")
    rule.lift()
    assert rule.hits == 1


def test_a_rule_can_be_lifted_when_the_proxy_is_gone(behind: Server, onlooker: Onlooker) -> None:
    """A with block of a rule may end after that of the proxy."""
    with FaultProxy(behind) as proxy:
        rule = proxy.inject(FAULT)
    rule.lift()


# --- wrong values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "when", "message"),
    [
        (
            "serialisation_failure",
            {},
            "no fault 'serialisation_failure'; did you mean 'serialization_failure",
        ),
        (FAULT, {"on": "begin"}, "on must be one of statement, commit, connect, idle, idle_in_transaction, "),
        (FAULT, {"on": "node"}, "serialization_failure.RETRY_SERIALIZABLE cannot strike on node"),
        ("drain", {"on": "statement"}, "drain cannot strike on statement"),
        (FAULT, {"on": "idle"}, "serialization_failure.RETRY_SERIALIZABLE cannot strike on idle"),
        ("drain", {"nth": 2}, "a fault of the whole node is there or not: it has only seconds"),
        ("partition", {"matching": "purse"}, "a fault of the whole node is there or not"),
        ("node_killed", {"probability": 0.5}, "a fault of the whole node is there or not"),
        (FAULT, {"nth": 0}, "nth counts from 1; 0 is no match"),
        (FAULT, {"nth": 1.5}, "nth counts from 1; 1.5 is no match"),
        (FAULT, {"times": "2"}, "times must be 1 or more, or None, not '2'"),
        (FAULT, {"times": 0}, "times must be 1 or more, or None, not 0"),
        (FAULT, {"probability": 0}, "probability must be above 0 and at most 1, not 0"),
        (FAULT, {"probability": 1.5}, "probability must be above 0 and at most 1, not 1.5"),
        (FAULT, {"seconds": 0}, "seconds must be above 0, not 0"),
        (FAULT, {"matching": "purse("}, "matching is no regular expression: "),
    ],
)
def test_a_wrong_value_is_refused(proxy: FaultProxy, fault: str, when: dict[str, Any], message: str) -> None:
    """A wrong value raises ValueError, which says what is wanted; no rule is put in."""
    with pytest.raises(ValueError) as refused:
        proxy.inject(fault, **when)
    assert str(refused.value).startswith(message)
    assert proxy.rules == ()


# --- rules from a file -------------------------------------------------------------------------------------


def file_of(folder: Path, entries: Any) -> Path:
    path = folder / "rules.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_a_file_of_rules(tmp_path: Path, behind: Server, onlooker: Onlooker) -> None:
    """A file gives rules with all that `inject` takes, and how long the fault waits."""
    entries = [
        {"fault": "lock_timeout", "matching": "id = 2", "nth": 2, "times": None},
        {"fault": "ambiguous_commit.server_shutdown.applied", "on": "commit", "times": 2},
        {"fault": FAULT, "probability": 0.25, "seed": 7, "seconds": 60},
        {"fault": "range_unavailable", "delay": 0.01},
    ]
    rules = read_rules(file_of(tmp_path, entries))
    assert [(rule.fault.name, rule.on, rule.matching, rule.nth, rule.times) for rule in rules] == [
        ("lock_timeout", "statement", "id = 2", 2, None),
        ("ambiguous_commit.server_shutdown.applied", "commit", None, 1, 2),
        ("serialization_failure.RETRY_SERIALIZABLE", "statement", None, 1, 1),
        ("range_unavailable.breaker", "statement", None, 1, 1),
    ]
    assert (rules[2].probability, rules[2].seed, rules[2].seconds) == (0.25, 7, 60)
    assert rules[3].fault.delay == 0.01
    assert faults.CATALOGUE["range_unavailable.breaker"].delay == 0
    with FaultProxy(behind, rules=rules[:2]) as proxy, WireClient.connected(proxy) as client:
        assert [client.query(PAY_2) for _ in range(3)] == [WELL, "55P03 Z(I)", "55P03 Z(I)"]
        assert [client.query(text) for text in ("BEGIN", PAY_1, "COMMIT")][-1] == "40003 Z(I)"
        assert onlooker.balances == {1: 90, 2: 90}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("{", "not JSON: "),
        ({"fault": FAULT}, "a list of rules is wanted"),
        (["drain"], "rule 1: an object with the name of a fault is wanted"),
        ([{"on": "commit"}], "rule 1: an object with the name of a fault is wanted"),
        ([{"fault": FAULT}, {"fault": "drian"}], "rule 2: no fault 'drian'; did you mean 'drain'?"),
        ([{"fault": FAULT, "when": 1}], "rule 1: unknown: when; there are delay, fault, matching, nth, on, "),
        ([{"fault": FAULT, "hits": 1}], "rule 1: unknown: hits; "),
        ([{"fault": FAULT, "nth": 0}], "rule 1: nth counts from 1; 0 is no match"),
        ([{"fault": FAULT, "nth": "2"}], "rule 1: nth counts from 1; '2' is no match"),
        ([{"fault": FAULT, "times": "often"}], "rule 1: times must be 1 or more, or None, not 'often'"),
        ([{"fault": FAULT, "matching": 5}], "rule 1: matching must be a regular expression, not 5"),
        ([{"fault": FAULT, "on": ["commit"]}], "rule 1: on must be one of "),
        ([{"fault": FAULT, "delay": "long"}], "rule 1: "),
        ([{"fault": FAULT, "delay": -1}], "rule 1: delay must be 0 or more, not -1"),
        ([{"fault": FAULT, "seed": {}}], "rule 1: "),
        ([{"fault": FAULT, "probability": None}], "rule 1: "),
        ([{"fault": "serialization_failure.RETRY_SERIALIZABLE@v1.0"}], "rule 1: no version 'v1.0'"),
    ],
    ids=str,
)
def test_a_bad_file_of_rules(tmp_path: Path, entries: Any, message: str) -> None:
    """A bad file raises ValueError with its name, the number of the rule and what is wrong."""
    path = file_of(tmp_path, entries)
    with pytest.raises(ValueError) as refused:
        read_rules(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_missing_file_of_rules(tmp_path: Path) -> None:
    """A file that is not there raises OSError."""
    with pytest.raises(FileNotFoundError):
        read_rules(tmp_path / "none.json")
