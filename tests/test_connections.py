# SPDX-License-Identifier: Apache-2.0
"""Connections as spans: how long they took, where they went, why they failed."""

import socket

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from opentelemetry.trace import SpanKind, StatusCode

from otel_crdb import facts

from .project.models import Account
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")


@pytest.fixture
def closed():
    """Begin without a connection."""
    connection.close()


def wrapper_with(**settings):
    """Return a wrapper of the default alias's class with other settings."""
    default = connections["default"]
    return type(default)({**default.settings_dict, **settings}, "changed")


def test_connect_is_a_span_with_the_gateway(closed, telemetry, crdb):
    """Connecting is a CLIENT span that tells the node and version which the server announced."""
    connection.ensure_connection()
    span = telemetry.one(f"connect {crdb.database}")
    assert span.kind is SpanKind.CLIENT
    assert dict(span.attributes) == {
        "db.system.name": "cockroachdb",
        "db.namespace": crdb.database,
        "db.operation.name": "connect",
        "server.address": crdb.host,
        "server.port": crdb.port,
        "cockroachdb.node.id": 1,
        "cockroachdb.version": "v25.4.0",
    }
    (point,) = telemetry.points("db.client.connection.create_time")
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9)
    assert "db.client.connection.pool.name" in point.attributes
    assert "cockroachdb.node.id" not in point.attributes


def test_connect_within_a_block_lies_beside_its_transaction(closed, telemetry, crdb):
    """The connection comes before the transaction: neither is the other's child."""
    with transaction.atomic():
        Account.objects.count()
    connect, block = telemetry.one(f"connect {crdb.database}"), telemetry.one(f"transaction {crdb.database}")
    assert connect.parent is None
    assert block.parent is None
    assert block.start_time >= connect.end_time


def test_refused_connection(telemetry):
    """A connection that nobody takes is an error by class, counted, with no SQLSTATE made up."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        wrapper = wrapper_with(PORT=unheard.getsockname()[1])
        with pytest.raises(DatabaseError):
            wrapper.ensure_connection()
    span = telemetry.spans[-1]
    assert span.name.startswith("connect ")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["cockroachdb.error.class"] == "connection"
    assert span.attributes["error.type"].endswith("OperationalError")
    assert "db.response.status_code" not in span.attributes
    assert [point.value for point in telemetry.points("cockroachdb.client.errors")] == [1]


def test_database_that_does_not_exist_is_known_by_its_text(telemetry):
    """The driver gives no SQLSTATE for a failed connect; the server's words tell it."""
    wrapper = wrapper_with(NAME="nowhere")
    with pytest.raises(DatabaseError):
        wrapper.ensure_connection()
    span = telemetry.one("connect nowhere")
    assert span.attributes["cockroachdb.error.class"] == "schema"


def test_node_id_can_be_switched_off(closed, crdb):
    """``node_id=False`` keeps an invented backend key from being told as a node."""
    with Telemetry(node_id=False) as telemetry:
        Account.objects.count()
        attributes = [span.attributes for span in telemetry.spans]
        assert all("cockroachdb.node.id" not in found for found in attributes)
        assert any("cockroachdb.version" in found for found in attributes)


@pytest.mark.parametrize(
    ("backend_pid", "node"),
    [(3 << 20 | 0x5A5A5, 3), (2047 << 20, 2047), (-(1 << 31) | 4096, 4096), (1 << 31 | 5000, 5000)],
)
def test_node_is_decoded_from_both_forms_of_the_backend_key(backend_pid, node):
    """Small ids stand in the upper 12 bits, larger ones in the lower 31, signed as libpq hands them out."""
    assert facts.node_of(backend_pid) == node


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has pools")
def test_pool_is_told_as_a_pool_and_left_as_it_is(crdb):
    """Waiting for a pool is named as that; ``instrument()`` opens no pool and takes no counters."""
    pytest.importorskip("django.db.backends.postgresql.psycopg_any")
    if not hasattr(type(connections["default"]), "pool"):
        pytest.skip("Django 5.1 and later have pools")
    options = {**connections["default"].settings_dict["OPTIONS"], "pool": {"min_size": 1, "max_size": 2}}
    wrapper = wrapper_with(OPTIONS=options)
    with Telemetry() as telemetry:
        assert type(wrapper)._connection_pools == {}
        try:
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT id FROM account")
            span = telemetry.one(f"pool acquire {crdb.database}")
            assert span.attributes["db.operation.name"] == "acquire"
            assert span.attributes["cockroachdb.version"] == "v25.4.0"
            assert telemetry.named("SELECT account") != []
            (point,) = telemetry.points("db.client.connection.wait_time")
            assert point.count == 1
            assert wrapper.pool.get_stats()["requests_num"] == 1
        finally:
            wrapper.close()
            wrapper.close_pool()


@pytest.mark.skipif(not is_psycopg3, reason="psycopg 3 has pools")
def test_exhausted_pool_is_an_overload(crdb):
    """A pool that has no connection to give in time is an error of class overload."""
    if not hasattr(type(connections["default"]), "pool"):
        pytest.skip("Django 5.1 and later have pools")
    pool = {"min_size": 1, "max_size": 1, "timeout": 0.05}
    options = {**connections["default"].settings_dict["OPTIONS"], "pool": pool}
    first, second = wrapper_with(OPTIONS=options), wrapper_with(OPTIONS=options)
    with Telemetry() as telemetry:
        try:
            first.ensure_connection()
            with pytest.raises(Exception, match="couldn't get a connection"):
                second.ensure_connection()
            span = telemetry.named(f"pool acquire {crdb.database}")[-1]
            assert span.attributes["cockroachdb.error.class"] == "overload"
        finally:
            first.close()
            first.close_pool()


def test_default_port_is_not_told_and_hosts_behind_cloud_proxies_tell_no_node():
    """``server.port`` is left out where it is CockroachDB's; a proxy's backend key is not read as a node."""

    class Info:
        dbname, host, port, backend_pid = "bank", "x.cockroachlabs.cloud", 26257, 3 << 20

        @staticmethod
        def parameter_status(name):
            return "CockroachDB CCL v25.2.1 (x86_64)"

    class Connection:
        info = Info

    assert dict(facts.of_connection(Connection).span) == {
        "db.system.name": "cockroachdb",
        "db.namespace": "bank",
        "server.address": "x.cockroachlabs.cloud",
        "cockroachdb.version": "v25.2.1",
    }


def test_which_of_several_hosts_is_not_known_before_there_is_a_connection():
    """Of hosts that libpq takes by commas, only the connection tells which it has come to be."""
    told = facts.of_settings({"NAME": "bank", "HOST": "a.example.com,b.example.com", "PORT": "26257,26258"})
    assert dict(told.metric) == {"db.system.name": "cockroachdb", "db.namespace": "bank"}


def test_facts_are_those_of_the_connection_in_use(telemetry, crdb):
    """A wrapper that reconnects elsewhere tells the new place."""
    wrapper = wrapper_with()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT id FROM account")
    wrapper.close()
    wrapper.settings_dict["HOST"] = "localhost"
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT id FROM account")
    wrapper.close()
    places = [span.attributes["server.address"] for span in telemetry.named("SELECT account")]
    assert places == [crdb.host, "localhost"]
