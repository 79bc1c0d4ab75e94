# SPDX-License-Identifier: Apache-2.0
"""docs/stack.md: its drill sends to a real stack, its queries are asked as they stand, and the answers are as it shows.

Ids, times and addresses are those of the run. An answer may have more than the page shows of it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from stack.queries import Agent, Jaeger, Loki, Prometheus, until
from stack.servers import Ports
from tests.docs import commands, pages

if TYPE_CHECKING:
    from stack.servers import Stack

PAGE = "docs/stack.md"
REASON = "RETRY_WRITE_TOO_OLD"
DRILL = "OTEL_EXPORTER_OTLP_ENDPOINT="
#: What is typed here and not run: there is no Docker, and the rest is in test_stack_command, test_retried_transfer.
ONLY_TYPED = ("docker compose up", "make stack", "make demo STACK=1")
QUERIES = {
    "traces of a kind": "curl -sG http://127.0.0.1:16686/api/traces",
    "a trace": "curl -s http://127.0.0.1:16686/api/traces/",
    "its lines": "curl -sG http://127.0.0.1:3100/loki/api/v1/query_range -d direction=forward",
    "lines of a reason": "curl -sG http://127.0.0.1:3100/loki/api/v1/query_range --data-urlencode",
    "retries": "curl -sG http://127.0.0.1:9090/api/v1/query --data-urlencode",
    "exemplars": "curl -sG http://127.0.0.1:9090/api/v1/query_exemplars",
}
ANSWERS = {
    "a trace": '{"data": [{"traceID"',
    "its lines": '{"status": "success", "data": {"resultType": "streams"',
    "retries": '{"status": "success", "data": {"resultType": "vector"',
    "exemplars": '{"status": "success", "data": [\n',
}
PICTURE = "application ──OTLP"


def block(beginning: str) -> str:
    """Return the text of the only block of the page that begins so."""
    (found,) = [each.text for each in pages.blocks(PAGE) if each.text.startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def trace_id(stack: Stack) -> str:
    """Play the page's drill with its telemetry to the stack, wait until all of it is there, give its trace."""
    command = block(DRILL).replace("http://127.0.0.1:4318", stack.agent.address)
    command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    ended = subprocess.run(
        ["bash", "-ec", command],
        cwd=pages.ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    jaeger, loki, prometheus = (each.address for each in stack.backends)

    def retried() -> str | None:
        for name, spans in Jaeger(jaeger).traces("bank", **{"cockroachdb.txn.outcome": "retryable"}).items():
            if len(spans) == 13 and any(REASON in str(span.events) for span in spans):
                return name
        return None

    found: str = until(retried, "the drill's trace, whole")
    until(
        lambda: len(Loki(loki).lines(f'{{service_name="bank"}} | trace_id="{found}"')) == 3, "its three lines"
    )
    series = f'cockroachdb_client_txn_retries_total{{cockroachdb_retry_reason="{REASON}"}}'
    until(
        lambda: any(each["labels"]["trace_id"] == found for each in Prometheus(prometheus).exemplars(series)),
        "its exemplar",
    )
    return found


def shown_trace() -> str:
    """Return the trace's id that the page has all along."""
    (found,) = set(re.findall(r"\b[0-9a-f]{32}\b", block(QUERIES["its lines"])))
    return str(found)


@pytest.fixture
def ask(stack: Stack, trace_id: str):
    """Run a query of the page, its addresses and its trace those of this run, and give the answer."""

    def asked(name: str) -> Any:
        command = block(QUERIES[name]).replace(shown_trace(), trace_id)
        for port, server in zip((16686, 3100, 9090), stack.backends, strict=True):
            command = command.replace(f"http://127.0.0.1:{port}", server.address)
        answer = subprocess.run(
            ["bash", "-ec", command], capture_output=True, encoding="utf-8", timeout=60, check=True
        )
        return json.loads(answer.stdout)

    return asked


def has(real: Any, shown: Any) -> bool:
    """Whether an answer has all that the page shows of it."""
    if isinstance(shown, dict):
        return isinstance(real, dict) and all(
            key in real and has(real[key], value) for key, value in shown.items()
        )
    if isinstance(shown, list):
        if shown and all(
            isinstance(each, (int, float, str)) for each in shown
        ):  # a time and what it was then
            return len(real) == len(shown) and all(map(has, real, shown))
        return isinstance(real, list) and all(any(has(each, item) for each in real) for item in shown)
    return kind(real) == kind(shown)


def kind(value: Any) -> Any:
    """Return a value without what differs from run to run: ids, times, fractions, great numbers."""
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and value > 99):
        return "a number"
    if isinstance(value, str):
        if re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{32}", value):
            return len(value)
        return re.sub(r"\d{10,}|\d+\.\d+", "…", value)
    return value


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_as_the_page_shows_them(ask, name):
    """Each query, as it stands, has the answer that stands below it."""
    real, shown = ask(name), json.loads(block(ANSWERS[name]))
    assert has(real, shown), json.dumps(real, indent=1)


def test_traces_and_lines_of_a_kind(ask, trace_id):
    """The searches for what was refused find the drill's trace, and its lines name it."""
    assert trace_id in {each["traceID"] for each in ask("traces of a kind")["data"]}
    lines = ask("lines of a reason")["data"]["result"]
    assert trace_id in {each["stream"]["trace_id"] for each in lines}


def test_words_to_search_for_are_attributes(trace_id, stack):
    """Of the page's table of tags, those that the drill leaves find it; the names of all are ours."""
    table = re.findall(r"^\| `(cockroachdb\.[\w.]+)=([^`]+)` \|", pages.prose(PAGE), re.MULTILINE)
    assert len(table) == 4
    names = pages.text_of("docs/attributes.md")
    assert [name for name, _ in table if name not in names] == []
    jaeger = Jaeger(stack.jaeger.address)
    assert trace_id in jaeger.traces("bank", **dict([table[0]]))
    transaction = next(
        span.attributes["cockroachdb.txn.id"]
        for span in jaeger.trace(trace_id)
        if "cockroachdb.txn.id" in span.attributes
    )
    assert set(jaeger.traces("bank", **{"cockroachdb.txn.id": transaction})) == {trace_id}


def test_metrics_of_the_collector_are_there(stack, trace_id):
    """Each metric that the page has one look at is one of the agent's, or of one that has lost something."""
    named = set(re.findall(r"`(otelcol_[a-z_]+)", pages.prose(PAGE)))
    assert len(named) >= 6
    own = Agent(stack.own_metrics)
    only_after_a_loss = {"otelcol_exporter_enqueue_failed_spans", "otelcol_exporter_send_failed_spans"}
    text = urllib.request.urlopen(stack.own_metrics, timeout=30).read().decode()
    assert {name for name in named - only_after_a_loss if f"\n{name}" not in text} == set()
    kept = own.total("otelcol_processor_tail_sampling_global_count_traces_sampled", sampled="true")
    assert kept > 0
    until(
        lambda: (
            own.total("otelcol_processor_tail_sampling_sampling_trace_dropped_too_early")
            >= own.total("otelcol_processor_tail_sampling_global_count_traces_sampled", sampled="true")
        ),
        "each kept trace among those dropped too early",
    )


def test_figures_are_those_of_the_agent():
    """Each variable with its figure in the page's table is one of agent.yaml's, with that default."""
    text = (pages.ROOT / "collector" / "agent.yaml").read_text()
    defaults = dict(re.findall(r"\$\{env:(AGENT_\w+):-([^}]*)\}", text))
    told = re.findall(r"`(AGENT_\w+)`, (\w+)", pages.prose(PAGE))
    assert len(told) == 6
    assert [(name, figure) for name, figure in told if defaults[name] != figure] == []
    files = text + (pages.ROOT / "collector" / "cockroachdb.yaml").read_text()
    named = set(re.findall(r"`(AGENT_\w+|COCKROACHDB_\w+)[`=]", pages.text_of(PAGE)))
    assert {name for name in named if f"env:{name}:-" not in files} == set()


def test_steps_are_those_of_the_agent():
    """The table's steps are the processors of the traces' pipeline, in their order."""
    pipelines = yaml.safe_load((pages.ROOT / "collector" / "agent.yaml").read_text())["service"]["pipelines"]
    part = pages.prose(PAGE).partition("## What the collector does")[2].partition("### ")[0]
    steps = [
        step
        for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE)
        for step in re.findall(r"`([a-z_/…]+)`", row)
    ]
    of_the_page = [re.sub(r"redaction/…", "redaction", step) for step in steps]
    processors = [re.sub(r"redaction.*", "redaction", name) for name in pipelines["traces"]["processors"]]
    assert of_the_page == list(dict.fromkeys(processors))
    picture = block(PICTURE)
    for name in ("jaeger", "loki", "prometheus"):
        assert any(name in exporter for each in pipelines.values() for exporter in each["exporters"])
        assert name in picture.lower()


def test_ports_are_those_of_the_stack():
    """Every port of the page is one where `make stack` listens."""
    known = {str(port) for port in vars(Ports()).values()} | {"4319"}
    assert set(re.findall(r"127\.0\.0\.1:(\d+)", pages.text_of(PAGE))) <= known


def test_every_block_of_the_page_is_run_here():
    """What no test above runs is typed: each word of it is one that there is."""
    claimed = (DRILL, PICTURE, *QUERIES.values(), *ANSWERS.values())
    rest = [each for each in pages.blocks(PAGE) if not each.text.startswith(claimed)]
    assert [each for each in rest if not each.text.startswith(ONLY_TYPED)] == []
    for each in rest:
        commands.check(each)


def test_pictures_are_small():
    """Each picture of the page is there, and of less than 200 kB; none lies about that no page shows."""
    shown = {Path(link).name for link in pages.links(PAGE) if link.endswith(".png")}
    folder = pages.ROOT / "docs" / "pictures"
    assert shown <= {path.name for path in folder.glob("*.png")}
    assert len(shown) == 4
    assert all((folder / name).stat().st_size < 200_000 for name in shown)
