# SPDX-License-Identifier: Apache-2.0
"""Secrets of real programs, with the application's own redaction off, are in none of the real back ends."""

import json
import time
import urllib.parse
import urllib.request

import pytest

from e2e.test_agent_secrets import found_in, plant
from stack.queries import Jaeger, Loki, Prometheus, until

SERVICES = ("shop", "script")


def ask(address, **parameters):
    """Return the bytes of an answer, and the same unescaped: what JSON writes as an escape is found too."""
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        told = answer.read()
    return told + json.dumps(json.loads(told), ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def planted(stack, tmp_path_factory):
    """Plant them through the agent; wait until all three back ends have what both programs told."""
    secrets = plant(stack.agent.address, tmp_path_factory.mktemp("planted"))
    jaeger, loki = Jaeger(stack.jaeger.address), Loki(stack.loki.address)
    prometheus = Prometheus(stack.prometheus.address)
    for service in SERVICES:
        until(lambda name=service: jaeger.traces(name), f"traces of {service}")
        until(lambda name=service: loki.count(f'{{service_name="{name}"}}'), f"lines of {service}")
        until(lambda name=service: prometheus.series(f'{{job="{name}"}}'), f"series of {service}")
    until(lambda: loki.count('{service_name="shop"} |= "signed in"'), "the last line of the shop")
    until(
        lambda: any(span.name == "measured" for trace in jaeger.traces("script").values() for span in trace),
        "the last span of the script",
    )
    return secrets


@pytest.mark.parametrize("service", SERVICES)
def test_jaeger_has_the_traces_and_no_secret(planted, stack, service):
    """Neither in attributes and events nor in names, status and resource."""
    told = ask(f"{stack.jaeger.address}/api/traces", service=service, limit=1000, lookback="1h")
    assert b'"INSERT' in told
    assert found_in(told, planted) == {}


@pytest.mark.parametrize("service", SERVICES)
def test_loki_has_the_lines_and_no_secret(planted, stack, service):
    """Neither in the text nor in labels and structured metadata."""
    now = time.time_ns()
    told = ask(
        f"{stack.loki.address}/loki/api/v1/query_range",
        query=f'{{service_name="{service}"}}',
        limit=5000,
        start=now - 3600 * 10**9,
        end=now + 60 * 10**9,
    )
    assert b"duplicate key" in told
    assert found_in(told, planted) == {}


def test_prometheus_has_the_series_and_no_secret(planted, stack):
    """Neither in labels nor in exemplars."""
    now = time.time()
    matching = f'{{job=~"{"|".join(SERVICES)}"}}'
    told = ask(f"{stack.prometheus.address}/api/v1/query", query=matching)
    told += ask(
        f"{stack.prometheus.address}/api/v1/query_exemplars",
        query=matching,
        start=now - 3600,
        end=now + 60,
    )
    assert b"seen_bucket" in told
    assert b"trace_id" in told
    assert found_in(told, planted) == {}
