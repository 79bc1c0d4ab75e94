# SPDX-License-Identifier: Apache-2.0
"""Every drill, played on the bank: green as the package is, red for each thing that is taken out of it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from demo.drill_report import DrillScreen
from demo.drill_stage import Stage
from demo.processes import DemoError
from otel_crdb import semconv
from otel_crdb.testing.drills import CATALOGUE, FAMILIES, Seen, broken_laws, drill, judge, named
from otel_crdb.testing.drills.expectations import ANY, AtLeast, OneOf, WantedPoint, WantedSpan
from otel_crdb.testing.drills.page import page
from otel_crdb.testing.faults import FAMILIES as FAULT_FAMILIES
from otel_crdb.testing.otlp import Point, Span

DOCS = Path(__file__).resolve().parent.parent / "docs"
DRIVER = os.environ.get("OTEL_CRDB_TEST_DRIVER") or "psycopg"
drills = pytest.mark.parametrize("name", CATALOGUE)


@pytest.fixture(scope="module")
def stage(crdb, tmp_path_factory):
    """The bank, on the driver of the run."""
    log = tmp_path_factory.mktemp("bank") / "bank.log"
    with Stage(crdb, log, driver=DRIVER) as running:
        yield running


@pytest.fixture(scope="module")
def played(stage):
    """A function that plays a drill, or gives what came of it when it was played before."""
    performances = {}

    def play(name):
        if stage.lacks(CATALOGUE[name]):
            pytest.skip(stage.lacks(CATALOGUE[name]))
        if name not in performances:
            performances[name] = stage.play(CATALOGUE[name])
        return performances[name]

    return play


@drills
def test_a_drill_is_answered_and_told_of_as_it_says(played, name):
    """Users get the answers, the money is where it has to be, and all the telemetry is there."""
    performance = played(name)
    assert performance.answered_well, (performance.answers, performance.moved)
    missing = [one for one in performance.findings if not one.passed]
    assert not missing, "\n".join(f"{one.expectation}\n   {one.near}" for one in missing)
    assert performance.broken == []
    assert performance.passed


@drills
def test_a_drill_is_red_for_each_thing_that_is_taken_out(played, name):
    """Without what meets one expectation, that expectation fails, and no other."""
    performance = played(name)
    for taken in performance.drill.expects:
        findings = judge(performance.drill, performance.seen.without(taken))
        assert [one.expectation for one in findings if not one.passed] == [taken]


@drills
def test_a_drill_is_red_when_something_is_told_twice(played, name):
    """What is told once too often, as by a second instrumentation, fails too."""
    performance = played(name)
    for wanted in performance.drill.expects:
        seen = performance.seen
        twice = {kind: getattr(seen, kind) for kind in ("spans", "events", "logs", "points")}
        twice[wanted.among] += tuple(wanted.found(seen))
        findings = judge(performance.drill, Seen(**twice))
        assert [one.expectation for one in findings if not one.passed] == [wanted]


def test_every_drill_is_red_where_the_bank_tells_nothing(crdb, tmp_path):
    """With OpenTelemetry switched off users get the same answers, and not one expectation holds."""
    environment = {**os.environ, "OTEL_SDK_DISABLED": "true"}
    with Stage(crdb, tmp_path / "bank.log", driver=DRIVER, patience=0, environment=environment) as stage:
        performances = [stage.play(each) for each in CATALOGUE.values() if not stage.lacks(each)]
        stage.stop()  # it has sent whatever it held
        assert not stage.telemetry.spans
    assert len(performances) >= len(CATALOGUE) - 1
    for performance in performances:
        assert performance.answered_well, performance.drill.name
        assert not performance.passed
        assert [one.expectation for one in performance.findings if one.passed] == []


def test_a_drill_that_lacks_something_is_not_played(stage):
    """Django's pool is a matter of psycopg 3: elsewhere it is said, and nothing is played."""
    if not stage.lacks(CATALOGUE["pool_exhaustion"]):
        pytest.skip("there is a pool")
    with pytest.raises(DemoError, match=r"pool_exhaustion: Django's pool .* needs .*psycopg 3"):
        stage.play(CATALOGUE["pool_exhaustion"])


@pytest.mark.parametrize("other", ["psycopg", "psycopg2"])
def test_what_a_driver_lets_be_known(other):
    """Where psycopg2 says less there are expectations for it, and they say as much about as many things."""
    for each in CATALOGUE.values():
        on = each.on(other)
        assert on.expects == (each.on_psycopg2 if other == "psycopg2" and each.on_psycopg2 else each.expects)
        assert len(on.expects) == len(each.expects)


# --- the data --------------------------------------------------------------------------------------------


@drills
def test_a_drill_says_all_that_it_has_to(name):
    """It has words for everybody, is asked for by its name, and wants all three signals of every error."""
    one = named(name)
    assert one.title
    assert all(text.endswith(".") for text in (one.summary, one.user_notices, one.on_call))
    wanted = {each.kind for each in one.expects}
    errors = [each for each in one.expects if isinstance(each, WantedSpan) and each.status == "ERROR"]
    assert wanted >= ({"span", "event", "log record", "metric"} if errors else {"span", "metric"})


def test_the_drills_cover_what_cockroachdb_does():
    """A drill plays some fault of every family, but for savepoints, which Django handles by itself."""
    steps = [step for each in CATALOGUE.values() for step in each.steps if isinstance(step, drill.Inject)]
    injected = {step.rule().fault.name for step in steps}
    undrilled = [
        family
        for family, members in FAULT_FAMILIES.items()
        if injected.isdisjoint(one.name for one in members)
    ]
    assert undrilled == ["Savepoints and transaction states"]
    assert sum(map(len, FAMILIES.values())) == len(CATALOGUE)  # no name twice


def test_an_unknown_drill_names_the_nearest():
    """A slip of the pen is answered with what was probably meant."""
    with pytest.raises(ValueError, match="no drill 'node_los'; did you mean 'node_loss'"):
        named("node_los")


def test_the_page_is_what_the_drills_say():
    """docs/drills.md is written anew by `python -m otel_crdb.testing.drills.page`."""
    assert (DOCS / "drills.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("CLIENT", {"parent_id": "none"}, "stands below nothing"),
        ("INTERNAL", {"attributes": {semconv.TXN_ID: "another"}}, "has another cockroachdb.txn.id than"),
        ("CLIENT", {"attributes": {}}, "lacks db.system.name, db.namespace, server.address"),
        ("CLIENT", {"attributes": {"x": "key /Table/106/1/7/0"}}, "tells a key or a row in x"),
    ],
)
def test_what_can_never_be_right_is_told(played, kind, changes, told):
    """Spans that stand wrong, ids that differ, calls without their database, keys: each is told in words."""
    performance = played("serialization_failure_at_commit")
    spoiled = [replace(span, **changes) if span.kind == kind else span for span in performance.seen.spans]
    assert any(told in each for each in broken_laws(replace(performance.seen, spans=tuple(spoiled))))


# --- the judge -------------------------------------------------------------------------------------------


def a_span(name="SELECT accounts", kind="CLIENT", status="UNSET", seconds=1.0, **attributes):
    return Span("1", "t", "s", "", name, kind, 0, int(seconds * 1e9), status, attributes, ())


@pytest.mark.parametrize(
    ("wanted", "fitting", "others"),
    [
        (
            WantedSpan("SELECT"),
            [a_span()],
            [a_span("SELECTED"), a_span(kind="SERVER"), a_span(status="ERROR")],
        ),
        (WantedSpan("SELECT", seconds=0.5), [a_span()], [a_span(seconds=0.4)]),
        (WantedSpan("SELECT", {"a": ANY}), [a_span(a=0)], [a_span(), a_span(a=None)]),
        (WantedSpan("SELECT", {"a": 1}), [a_span(a=1, b=2)], [a_span(a="1"), a_span(b=1)]),
        (WantedSpan("SELECT", {"a": AtLeast(2)}), [a_span(a=2)], [a_span(a=1.9), a_span(a="3")]),
        (WantedSpan("SELECT", {"a": OneOf(("x", "y"))}), [a_span(a="y")], [a_span(a="z")]),
        (WantedSpan("SELECT", times=2), [a_span(), a_span()], []),
    ],
)
def test_a_span_is_held_against_what_is_wanted(wanted, fitting, others):
    """What fits is found among what does not, and has to be there as often as it is wanted."""
    assert wanted.holds(Seen(spans=(*others, *fitting)))
    assert not wanted.holds(Seen(spans=tuple(others)))
    assert not wanted.holds(Seen(spans=(*fitting, a_span(a=1, b=2), *fitting)))


def test_a_metric_is_added_up_over_its_series():
    """A data point counts by how it has grown, whatever else its series are told apart by."""
    wanted = WantedPoint("m", {"a": 1}, by=3, total=AtLeast(0.5))
    points = (Point("1", "m", {"a": 1, "b": 1}, 1, 0.3), Point("2", "m", {"a": 1, "b": 2}, 2, 0.3))
    assert wanted.holds(Seen(points=(*points, Point("1", "m", {"a": 2}, 9, 9.0))))
    assert not wanted.holds(Seen(points=points[:1]))
    assert not wanted.holds(Seen(points=(*points, Point("1", "n", {"a": 1}, 1), *points)))


def test_what_is_missing_is_shown_with_what_is_there(played, capsys):
    """A red drill says what it wanted, and what there is by that name."""
    performance = played("serialization_failure_at_commit")
    commit = next(each for each in performance.drill.expects if each.name == "COMMIT")
    lacking = performance.seen.without(commit)
    red = replace(performance, moved=0, seen=lacking, findings=judge(performance.drill, lacking))
    screen = DrillScreen()
    screen.played(red)
    shown = " ".join(capsys.readouterr().out.split())
    assert "✗ the recipient has 0.00 more; due: 1.00" in shown
    assert "✗ span COMMIT: CLIENT, status ERROR, error.type=40001" in shown
    assert "not seen; by this name there is: Span(" in shown
    assert shown.count("✗ span") == 1
