# SPDX-License-Identifier: Apache-2.0
"""Each rule of `collector/agent.yaml`, run through the collector: what it changes, and what it leaves alone.

The records (`agent_records`) go through the agent as it is. Then they go through one more collector, which has for
each rule (statement, pattern, policy) a pipeline without that rule: where nothing comes out differently, the rule
has no record that it changes, and the test is red.
"""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e.agent import Agent, BackEnds, Sink, send
from e2e.agent_records import (
    AGENT,
    CONFIGURATION,
    FORMS,
    GIVEN,
    GROUPS,
    KEPT,
    KEYS,
    LONGEST,
    MASKED,
    PASSED_OVER,
    REASONS,
    RECORDS,
    SECRETS,
    SQL,
    TEXTS,
    VALUE,
    VARIANTS,
    DriverError,
    Records,
    known_errors,
)
from otel_crdb import sqlstates
from otel_crdb.errors import classify
from otel_crdb.testing.otlp import attributes_of, value_of
from stack import servers
from stack.programs import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The agent's, where all records go through it.
VARIABLES = {"AGENT_DECISION_WAIT": "1s", "AGENT_LONGEST_TEXT": str(LONGEST)}

# --- the agent -----------------------------------------------------------------------------------------------


class Seen:
    """What came of the records, by their names."""

    def __init__(self, back_ends: BackEnds) -> None:
        names = {span.span_id: record for record, (_, span) in RECORDS.spans.items()}
        self.spans = {names[span.span_id]: (resource, span) for resource, span in back_ends.spans}
        self.logs = {attributes_of(record.attributes)["record"]: record for _, record in back_ends.records}
        self.metrics = {
            metric.name: metric for _, metric in back_ends.metrics if metric.name in RECORDS.metrics
        }

    def attributes(self, record: str) -> dict[str, Any]:
        return attributes_of(self.spans[record][1].attributes)

    def of_log(self, record: str) -> dict[str, Any]:
        told = attributes_of(self.logs[record].attributes)
        del told["record"]
        return told

    def texts(self, record: str) -> dict[str, Any]:
        """Return all that a text came out as, by where it was."""
        resource, span = self.spans[record]
        told, (event,) = attributes_of(span.attributes), span.events
        point = self.metrics[record.replace(" ", ".")].histogram.data_points[0]
        return {
            "name": span.name,
            "status": span.status.message,
            "attribute": told["note"],
            "url": told["url.full"],
            "event": event.name,
            "exception": attributes_of(event.attributes)["exception.message"],
            "resource": attributes_of(resource.attributes)["process.command"],
            "body": value_of(self.logs[record].body),
            "log attribute": self.of_log(record)["note"],
            "point": attributes_of(point.attributes)["note"],
        }


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    """Send all records through the agent, once."""
    with BackEnds() as back_ends:
        with Agent(tmp_path_factory.mktemp("rules"), back_ends, VARIABLES) as agent:
            for request in RECORDS.requests():
                agent.send(request)
            decided = "otelcol_processor_tail_sampling_global_count_traces_sampled"
            back_ends.wait_for(
                lambda: agent.counted(decided) >= len(RECORDS.spans), "each trace is decided on"
            )
            kept = agent.counted(decided, sampled="true")
            back_ends.wait_for(
                lambda: (
                    len(back_ends.spans) >= kept
                    and len(back_ends.records) >= len(RECORDS.logs)
                    and {metric.name for _, metric in back_ends.metrics} >= set(RECORDS.metrics)
                ),
                "all that is kept has come",
            )
        return Seen(back_ends)


def classified(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return what the rules for errors can set."""
    names = ("db.response.status_code", "error.type", "cockroachdb.error.class", "cockroachdb.retry.reason")
    return {name: attributes[name] for name in names if name in attributes}


@pytest.mark.parametrize("signal", ["span", "log"])
def test_errors_mean_what_otel_crdb_says(seen, signal):
    """Each SQLSTATE, and each text that its meaning hangs on, gets the class and reason of otel_crdb's tables."""
    look = seen.attributes if signal == "span" else seen.of_log
    wrong = {}
    for record, code, message in known_errors():
        meant = classify(DriverError(code, message))
        assert meant is not None
        expected = {
            "db.response.status_code": code,
            "error.type": code,
            "cockroachdb.error.class": meant.error_class,
        }
        if code == "40001":
            expected["cockroachdb.retry.reason"] = meant.retry_reason
        if classified(look(record)) != expected:
            wrong[record] = (classified(look(record)), expected)
    assert wrong == {}


def test_the_words_of_variants_are_all_here():
    """Each text of sqlstates.VARIANTS has a record, so that a new one turns this red."""
    for code, variants in sqlstates.VARIANTS.items():
        words = VARIANTS.get(code) or tuple(REASONS.values())
        for pattern, _ in variants:
            assert any(pattern.search(said) for said in words), (code, pattern.pattern)


@pytest.mark.parametrize("form", FORMS)
def test_errors_of_other_languages(seen, form):
    """A SQLSTATE is found where other languages put it; CockroachDB's names need a sign of CockroachDB."""
    attributes, _, _, code = FORMS[form]
    found = classified(seen.attributes(f"form {form}"))
    assert found.get("db.response.status_code") == code
    assert found.get("error.type") == (attributes.get("error.type") or code)
    error_class = classify(DriverError(code, "")).error_class if code else None
    assert found.get("cockroachdb.error.class") == (None if form.startswith("postgresql") else error_class)
    assert ("cockroachdb.retry.reason" in found) is (code == "40001" and form != "postgresql")


def test_errors_in_log_records(seen):
    """A record with a SQLSTATE in body or exception is classified like a span."""
    classes = {
        record: classified(seen.of_log(record)) for record in RECORDS.logs if record.startswith("form ")
    }
    assert {record: found.get("cockroachdb.error.class") for record, found in classes.items()} == {
        "form go": None,
        "form php": None,
        "form java": "retryable",
        "form words": "ambiguous",
        "form no code": None,
        "form in exception": "license",
        "form port": "constraint",
        "form old port": "constraint",
        "form old system": "constraint",
        "form number": None,
    }
    assert classes["form go"]["db.response.status_code"] == "42P01"
    assert classes["form java"]["cockroachdb.retry.reason"] == "ABORT_REASON_CLIENT_REJECT"
    assert classes["form number"] == {}


def test_what_is_there_is_not_overwritten(seen):
    """Class, reason, code and type that a span or record has stay as they are; success is no error."""
    for look in (seen.attributes, seen.of_log):
        for record, there in GIVEN.items():
            told = look(record)
            assert {name: told[name] for name in there} == there
        assert look("given class") == GIVEN["given class"]
        assert look("success") == GIVEN["success"]
        assert look("given code")["cockroachdb.error.class"] == "ambiguous"


def test_nothing_of_the_agents_own_stays(seen):
    """Attributes that rules hand each other are gone."""
    assert not [
        name for record in seen.spans for name in seen.attributes(record) if name.startswith("otel_agent")
    ]
    assert not [name for record in seen.logs for name in seen.of_log(record) if name.startswith("otel_agent")]
    events = [event for _, span in seen.spans.values() for event in span.events]
    assert not [
        pair.key for event in events for pair in event.attributes if pair.key.startswith("otel_agent")
    ]


# --- how long a text may be ----------------------------------------------------------------------------------


def test_long_texts_are_cut(seen):
    """What is longer than the limit ends there, at a whole character; what has just that length stays."""
    for kind, expected in (("short", TEXTS["short"]), ("long", "x" * (LONGEST - 1))):
        marked = expected if kind == "short" else expected[: LONGEST - len("…".encode())] + "…"
        resource, span = seen.spans[f"{kind} texts"]
        assert (span.name, span.status.message) == (expected, expected)
        assert attributes_of(span.attributes)["note"] == marked
        assert attributes_of(span.events[0].attributes)["exception.stacktrace"] == marked
        assert span.events[0].name == expected
        assert attributes_of(resource.attributes)["process.command"] == marked
        assert value_of(seen.logs[f"{kind} texts"].body) == expected + ("" if kind == "short" else "…")
        assert seen.of_log(f"{kind} texts")["note"] == marked
    assert value_of(seen.logs["short map"].body) == {"within": [TEXTS["short"][1000:]]}
    cut = value_of(seen.logs["long map"].body)
    assert cut.startswith('{"within":["xxx')
    assert cut.endswith("y…")
    assert len(cut.encode()) == LONGEST + len("…".encode())


# --- what may be seen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SECRETS)), ids=[secret[:20] for secret, _, _ in SECRETS])
def test_secrets_are_masked_and_what_is_like_them_stays(seen, number):
    """A secret is masked wherever a text can be, and a text that is like it comes out as it was."""
    _, masked, alike = SECRETS[number]
    assert {where: text for where, text in seen.texts(f"secret {number}").items() if text != masked} == {}
    assert {where: text for where, text in seen.texts(f"alike {number}").items() if text != alike} == {}
    assert seen.attributes(f"alike {number}")["list"] == [alike]


def test_secrets_within_arrays_and_maps_are_masked(seen):
    """What stands deeper is masked too."""
    for number, (secret, _, alike) in enumerate(SECRETS):
        assert secret not in str(seen.attributes(f"secret {number}")["list"])
        assert secret not in str(value_of(seen.logs[f"secret {number} in a map"].body))
        assert value_of(seen.logs[f"alike {number} in a map"].body) == {"within": {"a": [alike]}}
    assert seen.attributes("card as a number") == {
        "n": "****",
        "row": 962345678901234567,
        "s": 0.4111111111111111,
    }


def test_keys_of_secrets(seen):
    """A name of a secret masks its value, of parameters and headers each; names like these do not."""
    expected = {key: VALUE for _, key in KEYS} | {key: "****" for key, _ in KEYS}
    resource, span = seen.spans["keys"]
    point = seen.metrics["keys"].histogram.data_points[0]
    assert attributes_of(span.attributes) == expected
    assert attributes_of(span.events[0].attributes) == expected
    assert seen.of_log("keys") == expected
    assert attributes_of(point.attributes) == expected
    assert value_of(seen.logs["keys"].body) == {**expected, "within": expected}
    assert attributes_of(resource.attributes) == {"service.name": "bank", "app.secret": "****"}


def test_what_is_masked_already_stays_so(seen):
    """A value that was masked at the source keeps the sign that it got there."""
    assert seen.attributes("masked before") == MASKED == seen.of_log("masked before")


def test_keys_that_are_passed_over(seen):
    """The keys that hold no text of the application's are not looked at; none has a secret's name."""
    expected = dict.fromkeys(PASSED_OVER, "ann@example.com")
    assert seen.attributes("passed over") == expected == seen.of_log("passed over")
    names = AGENT["processors"]["redaction/names"]
    for key in (*PASSED_OVER, *names["ignored_keys"]):
        assert not [pattern for pattern in names["blocked_key_patterns"] if re.search(pattern, key)], key


_ALLOWED = [re.compile(pattern) for pattern in AGENT["processors"]["redaction/values"]["allowed_values"]]
_BLOCKED = [
    re.compile(pattern.replace(r"\z", r"\Z"))
    for pattern in AGENT["processors"]["redaction/values"]["blocked_values"]
]


def test_no_secret_looks_harmless():
    """What is passed over for its harmless look is none of the secrets."""
    for secret, _, _ in SECRETS:
        assert not [allowed.pattern for allowed in _ALLOWED if allowed.search(secret)], secret


#: Of what secrets and what is like them are made.
_PIECES = sorted({piece for texts in SECRETS for text in texts for piece in re.findall(r"\w+|\W", text)})


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=6), st.sampled_from(["", " "]))
def test_what_looks_harmless_matches_no_pattern(pieces, between):
    """A text that has a harmless look matches none of the expressions that it is spared."""
    text = between.join(pieces)
    if any(allowed.search(text) for allowed in _ALLOWED):
        assert not [blocked.pattern for blocked in _BLOCKED if blocked.search(text)], text


@pytest.mark.parametrize("number", range(len(SQL)))
def test_sql_loses_its_literals(seen, number):
    """Of SQL the literals and comments go; names, types, place holders and what is masked stay."""
    for key in ("db.query.text", "db.statement"):
        assert seen.attributes(f"sql {number} {key}")[key] == SQL[number][1]
        assert seen.of_log(f"sql {number} {key}")[key] == SQL[number][1]


def test_names_that_are_sql_lose_their_literals(seen):
    """The name of a call of the database loses what its text would; other names stay."""
    assert seen.spans["named by its text"][1].name == "SELECT a1 FROM t WHERE b = ? AND c=?"
    assert seen.spans["no call of the database"][1].name == "ann's 12 errands"


def test_exemplars_stay_without_what_a_view_left_out(seen):
    """An exemplar keeps value, time and ids; the attributes that a view left out of its point are gone."""
    for record, metric in RECORDS.metrics.items():
        (sent,), (came,) = (
            each.histogram.data_points[0].exemplars for each in (metric, seen.metrics[record])
        )
        expected = copy.deepcopy(sent)
        del expected.filtered_attributes[:]
        assert came == expected


# --- which traces are kept -----------------------------------------------------------------------------------


def test_traces_that_are_kept_and_dropped(seen):
    """Each policy keeps what it is for; a rollback that was asked for, and what is fast and well, is the rest."""
    sent = {record for record in RECORDS.spans if record.split()[0] in ("kept", "dropped")}
    assert sent & set(seen.spans) == {record for record in sent if record.startswith("kept")}


def test_spans_that_come_late(tmp_path):
    """What comes late of a kept trace follows it; an error that comes late is kept though its trace was dropped."""

    def request(record, trace_id, **more):
        late = Records()
        late.span(record, {}, name=record, trace_id=trace_id, **more)
        return late.requests()[0]

    kept, dropped = (RECORDS.trace_id(kept=kept) for kept in (True, False))
    decided = "otelcol_processor_tail_sampling_global_count_traces_sampled"
    with BackEnds() as back_ends, Agent(tmp_path, back_ends, {"AGENT_DECISION_WAIT": "1s"}) as agent:
        agent.send(request("kept first", kept))
        agent.send(request("dropped first", dropped))
        back_ends.wait_for(lambda: agent.counted(decided) >= 2, "both are decided on")
        agent.send(request("kept later", kept))
        agent.send(request("kept error", dropped, status="failed"))
        back_ends.wait_for(lambda: len(back_ends.spans) >= 3, "what is kept")
    assert {span.name for _, span in back_ends.spans} == {"kept first", "kept later", "kept error"}


def test_each_policy_is_named_here():
    """A policy that is added has to have its records."""
    names = {policy["name"] for policy in AGENT["processors"]["tail_sampling"]["policies"]}
    assert names == {*KEPT, "share"}


# --- each rule has a record ----------------------------------------------------------------------------------

#: What a processor is run in: the rest is needed to see what it does.
_SEEN = ["transform/expose", "redaction/names", "redaction/values", "transform/restore"]
_CHAINS = {
    "transform/lengths": ["transform/lengths"],
    "transform/errors": ["transform/errors"],
    **dict.fromkeys(_SEEN, _SEEN),
    "tail_sampling": ["tail_sampling"],
}


def _without_one(values: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    for index, value in enumerate(values):
        yield value, values[:index] + values[index + 1 :]


def _transforms_without_a_statement(processor: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield signal, statement and the processor without it."""
    for signal in ("trace", "log", "metric"):
        for index, group in enumerate(processor.get(f"{signal}_statements", ())):
            for statement, rest in _without_one(group["statements"]):
                less = copy.deepcopy(processor)
                # An empty list is none: so one that does nothing.
                less[f"{signal}_statements"][index]["statements"] = rest or _NOTHING[group["context"]]
                yield f"{signal}s", f"{index}: {statement}", less


_NOTHING = {
    **{
        context: ['delete_key(attributes, "nothing")'] for context in ("span", "log", "spanevent", "resource")
    },
    "exemplar": ['delete_key(filtered_attributes, "nothing")'],
}


#: These change nothing, and are there for speed alone: the tests above say that they hide no secret.
_FOR_SPEED = {("redaction/names", "ignored_keys"), ("redaction/values", "allowed_values")}


def _redactions_without_a_pattern(
    name: str, processor: dict[str, Any]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for option, patterns in processor.items():
        if isinstance(patterns, list) and (name, option) not in _FOR_SPEED:
            for pattern, rest in _without_one(patterns):
                yield "traces", pattern, {**processor, option: rest}
    if processor.get("redact_all_types"):
        yield "traces", "redact_all_types", {**processor, "redact_all_types": False}


def _samplings_without_a_condition(processor: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for index, policy in enumerate(processor["policies"]):
        others = processor["policies"][:index] + processor["policies"][index + 1 :]
        if policy["type"] != "ottl_condition":
            yield "traces", policy["name"], {**processor, "policies": others}
            continue
        for kind in ("span", "spanevent"):
            for condition, rest in _without_one(policy["ottl_condition"].get(kind, [])):
                less = {**policy["ottl_condition"], kind: rest}
                yield (
                    "traces",
                    condition,
                    {**processor, "policies": [*others, {**policy, "ottl_condition": less}]},
                )


def rules(processors: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield each rule of agent.yaml: processor, signal, the rule, and the processor without it."""
    for name, processor in processors.items():
        if name.startswith("transform/"):
            without = _transforms_without_a_statement(processor)
        elif name.startswith("redaction/"):
            without = _redactions_without_a_pattern(name, processor)
        elif name == "tail_sampling":
            without = _samplings_without_a_condition(processor)
        else:
            assert name == "memory_limiter", f"{name}: its rules have to be enumerated here"
            continue
        for signal, rule, less in without:
            yield name, signal, rule, less


class Pipelines:
    """A collector in which what comes in goes through many pipelines, each to a path of its own."""

    def __init__(self, folder: Path, sink: Sink) -> None:
        # With the doubled dollars: it is written out again.
        self.processors = dict(yaml.safe_load(CONFIGURATION.read_text())["processors"])
        self._sink = sink
        self._folder = folder
        self._exporters: dict[str, Any] = {}
        self._pipelines: dict[str, Any] = {}

    def add(self, name: str, group: str, signal: str, processors: list[str]) -> None:
        """Add a pipeline for a group of records. It has no queue: what was taken has been sent on."""
        self._exporters[f"otlp_http/{name}"] = {
            "endpoint": f"{self._sink.endpoint}/{name}", "compression": "none",
            "sending_queue": {"enabled": False}, "retry_on_failure": {"enabled": False},
        }  # fmt: skip
        self._pipelines[f"{signal}/{name}"] = {
            "receivers": [f"otlp/{group}"], "processors": processors, "exporters": [f"otlp_http/{name}"],
        }  # fmt: skip

    def run(self) -> None:
        """Start it, send, and stop it: what is still undecided is decided then."""
        ports = servers.Ports.free()
        addresses = dict(
            zip(
                GROUPS,
                (f"127.0.0.1:{port}" for port in (ports.otlp_http, ports.jaeger, ports.loki, ports.bank)),
                strict=True,
            )
        )
        file = self._folder / "pipelines.yaml"
        file.write_text(
            json.dumps(
                {
                    "receivers": {
                        f"otlp/{group}": {"protocols": {"http": {"endpoint": address}}}
                        for group, address in addresses.items()
                    },
                    "processors": self.processors,
                    "exporters": self._exporters,
                    "extensions": {"health_check": {"endpoint": f"127.0.0.1:{ports.agent_health}"}},
                    "service": {
                        "extensions": ["health_check"],
                        "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
                        "pipelines": self._pipelines,
                    },
                }
            )
        )
        with servers.Server(
            "pipelines",
            [path_of("otelcol"), "--config", file],
            VARIABLES,
            folder=self._folder,
            address=f"http://127.0.0.1:{ports.otlp_http}",
            ready=f"http://127.0.0.1:{ports.agent_health}/",
        ):
            for group, address in addresses.items():
                for request in RECORDS.requests((group,)):
                    send(f"http://{address}", request)


def test_each_rule_has_a_record_that_it_changes(tmp_path):
    """Without any one statement, pattern, policy or condition something comes out differently."""
    with Sink() as sink:
        pipelines = Pipelines(tmp_path, sink)
        for chain, processors in _CHAINS.items():
            for signal in ("traces", "logs", "metrics"):
                if signal == "traces" or (chain in AGENT["service"]["pipelines"][signal]["processors"]):
                    pipelines.add(_base(chain, signal), _group(chain), signal, processors)
                    pipelines.add(f"again_{_base(chain, signal)}", _group(chain), signal, processors)
        without = {}
        for number, (chain, signal, rule, less) in enumerate(list(rules(pipelines.processors))):
            pipelines.processors[f"{chain.partition('/')[0]}/{number}"] = less
            replaced = [
                f"{chain.partition('/')[0]}/{number}" if name == chain else name for name in _CHAINS[chain]
            ]
            pipelines.add(str(number), _group(chain), signal, replaced)
            without[str(number)] = (chain, signal, rule)
        pipelines.run()
    idle = [
        rule for number, rule in without.items() if sink.came[number] == sink.came[_base(rule[0], rule[1])]
    ]
    for name, came in sink.came.items():
        if name.startswith("again_"):
            assert came == sink.came[name.removeprefix("again_")], "what comes out hangs on no rule"
    assert idle == [], f"{len(idle)} of {len(without)}"
    assert len(without) > 150, "the rules were not all found"


def _group(chain: str) -> str:
    groups = {"transform/lengths": "lengths", "transform/errors": "errors", "tail_sampling": "sampling"}
    return groups.get(chain, "seen")


def _base(chain: str, signal: str) -> str:
    return f"{chain.replace('/', '_')}_{signal}"
