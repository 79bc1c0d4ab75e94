# SPDX-License-Identifier: Apache-2.0
"""`bench/agent.py` works: what it sends is the bank's, what it counts is true. No assertion on speed."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 240
sys.path.insert(0, str(ROOT / "bench"))

import agent_rig  # noqa: E402 - beside the bench, which is no package


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Run it in a short form; give what it printed, and its figures."""
    figures = tmp_path_factory.mktemp("bench") / "figures.json"
    ended = subprocess.run(
        [
            *(sys.executable, str(ROOT / "bench" / "agent.py"), "--json", str(figures)),
            *("--rates", "30", "--keep", "10,100", "--record", "3", "--warm-up", "3", "--seconds", "3"),
            *("--outage", "3"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LONGEST,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout, json.loads(figures.read_text())


def test_each_step_sends_what_the_bank_sent_and_all_of_it_comes_through(found):
    """So many spans, records and points as the rate asks for; none is refused, lost or missing."""
    output, figures = found
    assert [(step["rate"], step["keep"]) for step in figures["steps"]] == [(30, 10), (30, 100)]
    for step in figures["steps"]:
        assert step["offered"] == step["accepted"], output
        assert (step["refused"], step["lost"], step["missing"]) == (0, 0, []), output
        share = figures["spans"] / figures["requests"]
        assert step["offered"]["spans"] == pytest.approx(30 * 6 * share, rel=0.5)
        assert step["offered"]["records"] > 0
        assert step["offered"]["points"] > 0


def test_the_sink_has_all_spans_where_all_are_kept_and_a_share_of_them_where_a_share_is(found):
    """The collector behind the agent counts each span that was sent, and with ten per cent kept fewer."""
    _, figures = found
    share, whole = figures["steps"]
    assert whole["arrived"]["spans"] == whole["offered"]["spans"]
    assert whole["arrived"]["records"] == whole["offered"]["records"]
    assert whole["traces_kept"] == 1
    assert 0 < share["arrived"]["spans"] < share["offered"]["spans"]
    assert share["arrived"]["records"] == share["offered"]["records"]
    assert 0 < share["traces_kept"] < 1


def test_processor_time_and_memory_are_the_agents(found):
    """They are there, and no more than a core and what the process has."""
    for step in found[1]["steps"]:
        assert step["per_1000_spans"] > 0
        assert 0 < step["heap"] < step["resident"]
        assert 0 < step["private"] <= step["resident"]
        assert 0 < step["p50"] <= step["p99"]


def test_while_nobody_is_behind_it_spans_wait_on_the_disk_and_are_sent_then(found):
    """The last line before the back end comes has spans that wait, and all that was queued arrives."""
    told = found[0].partition("Nobody behind it")[2]
    assert "answers to the sender: {200: " in told
    assert "not taken into the queue: {'spans': 0, 'records': 0, 'points': 0}" in told
    assert "MiB on disk" in told
    sent, _, arrived = told.partition("; sent {")[2].partition("}, arrived {")
    assert sent.split(", ")[:2] == arrived.partition("}")[0].split(", ")[:2]
    assert not sent.startswith("'spans': 0")


def test_sent_again_a_recording_is_of_new_traces_and_else_the_same():
    """Each pass replaces the ids of traces, one for one, in spans and in what goes with them."""
    request = trace.ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number, name in ((1, "a"), (2, "b"), (1, "c")):
        scope.spans.add(trace_id=bytes([number]) * 16, span_id=bytes([number]) * 8, name=name, kind=2)
    recording = agent_rig.recording_of([("/v1/traces", request.SerializeToString())])
    assert (recording.requests, recording.traces, recording.count("spans")) == (3, 2, 3)

    sent = agent_rig.encoded(recording, rate=30, seconds=0.15)

    ids = set()
    for _, number, packed in sent:
        assert number == 0
        spans = (
            trace.ExportTraceServiceRequest.FromString(gzip.decompress(packed))
            .resource_spans[0]
            .scope_spans[0]
            .spans
        )
        assert [(span.name, span.span_id) for span in spans] == [
            (span.name, span.span_id) for span in scope.spans
        ]
        assert spans[0].trace_id == spans[2].trace_id != spans[1].trace_id
        ids |= {span.trace_id for span in spans}
    assert [round(due, 3) for due, _, _ in sent] == [0, 0.1]
    assert len(ids) == 4
    assert not ids & {bytes([1]) * 16, bytes([2]) * 16}
