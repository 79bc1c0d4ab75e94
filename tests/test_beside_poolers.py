# SPDX-License-Identifier: Apache-2.0
"""Behind a pool of connections: the driver's own, and a pooler between the process and the server."""

import logging

import pytest
from django.db import OperationalError, connections
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from otel_crdb import facts, neighbours

from .beside import pgbouncer
from .beside.stage import Stage, assert_undisturbed
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts")

HAS_POOLS = pytest.mark.skipif(
    not is_psycopg3 or not hasattr(type(connections["default"]), "pool"),
    reason="pools: psycopg 3 and Django 5.1",
)
#: min_size: none is opened in the background while a scene looks.
POOLED = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 4}}}


@pytest.fixture(scope="module")
def stage(crdb):
    """Where the scenes are played, each once."""
    return Stage(crdb)


@pytest.fixture(scope="module")
def pooler(crdb):
    """A PgBouncer with transaction pooling: its port."""
    try:
        with pgbouncer.running(crdb) as port:
            yield port
    except pgbouncer.NotToBeHadError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def _nothing_said():
    """Nothing has been said, and no pooler has shown itself."""
    neighbours.forget_what_was_said()
    yield
    neighbours.forget_what_was_said()


def wrapper_at(port, **options):
    """Return a wrapper of the default alias's class that connects to a port of this machine."""
    default = connections["default"]
    settings = {
        **default.settings_dict,
        "HOST": "127.0.0.1",
        "PORT": port,
        "OPTIONS": {**default.settings_dict["OPTIONS"], **options},
    }
    return type(default)(settings, "pooled")


def select(wrapper):
    """Connect anew and run one statement; return the process id that the backend key tells."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT balance FROM account")
        cursor.fetchall()
    pid = wrapper.connection.info.backend_pid
    wrapper.close()
    return pid & 0xFFFFFFFF


# --- psycopg's pool ----------------------------------------------------------------------------


@HAS_POOLS
def test_pool_of_the_driver(stage):
    """With Django's pool, a request is told as without; only that it waits for the pool in place of connecting."""
    nobody, told = stage.play("nobody"), stage.play("pool", database=POOLED)
    assert_undisturbed(told)
    spans = [{**span, "name": span["name"].replace("pool acquire", "connect")} for span in told.both["spans"]]
    assert spans == nobody.both["spans"]
    assert told.both["theirs"]["requests_num"] == 2
    assert list(told.found) == ["psycopg-pool"]
    assert told.said == []


@HAS_POOLS
def test_pool_beside_a_driver_instrumentation(stage):
    """A pool makes its connections in threads of its own: contrib is seen in them all the same."""
    told = stage.play("contrib", database=POOLED)
    assert_undisturbed(told)
    assert {span["scope"] for span in told.both["spans"] if span["kind"] == "CLIENT"} == {"otel_crdb"}
    assert len(told.both["spans"]) == len(stage.play("nobody").both["spans"])


# --- a pooler ----------------------------------------------------------------------------------


def test_request_behind_a_pooler(stage, pooler):
    """Behind a pooler with transaction pooling, a request is told as without one, and no node with node_id=False."""
    nobody, told = stage.play("nobody"), stage.play("nobody", database={"PORT": pooler}, node_id=False)
    assert_undisturbed(told)
    assert told.both["tree"] == nobody.both["tree"]
    assert told.both["spans"] == [{**span, "node": None} for span in nobody.both["spans"]]
    assert {span["version"] for span in told.both["spans"] if span["kind"] == "CLIENT"} == {"v25.4.0"}
    assert told.said == []


@pytest.mark.usefixtures("_nothing_said")
def test_pooler_is_known_by_its_keys(pooler, caplog, monkeypatch):
    """The first key that CockroachDB would not give shows the pooler: it is said once, no node is told from then on."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # else it may be said that it comes too late
    wrapper = wrapper_at(pooler)
    with Telemetry() as telemetry, caplog.at_level(logging.WARNING, "otel_crdb"):
        # Every other key of a random kind is one that CockroachDB would not give.
        for _ in range(200):
            select(wrapper)
            if caplog.records:
                break
        telemetry.clear()
        for _ in range(10):
            select(wrapper)
        assert [span.attributes.get("cockroachdb.node.id") for span in telemetry.named("SELECT account")] == [
            None
        ] * 10
        assert {span.attributes["cockroachdb.version"] for span in telemetry.named("SELECT account")} == {
            "v25.4.0"
        }
    (record,) = caplog.records
    assert f"127.0.0.1:{pooler}" in record.getMessage()
    assert "node_id=False" in record.getMessage()
    assert [finding.name for finding in neighbours.found()][-1] == f"pooler at 127.0.0.1:{pooler}"


@pytest.mark.usefixtures("_nothing_said")
def test_pooler_does_not_take_the_node_from_others(pooler, crdb):
    """What one address invents does not keep another from being believed."""
    assert neighbours.invents_keys("127.0.0.1", pooler, 1 << 31)
    wrapper = wrapper_at(crdb.port)
    with Telemetry() as telemetry:
        select(wrapper)
        assert telemetry.one("SELECT account").attributes["cockroachdb.node.id"] == 1


@pytest.mark.usefixtures("_nothing_said")
@pytest.mark.parametrize(
    ("key", "believed"),
    [
        (1 << 20, True),
        (2047 << 20 | 0xFFFFF, True),
        (1 << 31 | 2048, True),
        (-(1 << 31) | 4096, True),
        (0xFFFFF, False),  # node 0
        (1 << 31 | 2047, False),  # in the long form, though the short one would do
        (1 << 31 | 1 << 20, False),  # more than a million nodes
        (-1, False),
    ],
)
def test_keys_that_cockroachdb_gives(key, believed):
    """A backend key is believed where it has the form that CockroachDB gives an id of that size."""
    assert neighbours.invents_keys("db.example.com", 26257, key) is not believed


def test_name_of_the_application_passes_a_pooler(pooler):
    """The name that a session gets by fallback_application_name is known to the server behind the pooler."""
    wrapper = wrapper_at(pooler, fallback_application_name="bank")
    with Telemetry(), wrapper.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == ("bank",)
    wrapper.close()


def test_default_name_of_the_application_passes_a_pooler(pooler, monkeypatch):
    """The name that instrument() gives sessions by default reaches the server behind the pooler."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "counter")
    wrapper = wrapper_at(pooler)
    with Telemetry(), wrapper.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == ("counter",)
    wrapper.close()


def test_startup_options_that_a_pooler_refuses(pooler, crdb):
    """PgBouncer refuses ``options`` at start-up, with us as without; ignore_startup_parameters lets them pass."""
    wrapper = wrapper_at(pooler, options="-c statement_timeout=10000")
    with pytest.raises(OperationalError, match="unsupported startup parameter") as alone:
        wrapper.ensure_connection()
    with Telemetry() as telemetry:
        with pytest.raises(OperationalError, match="unsupported startup parameter") as told:
            wrapper.ensure_connection()
        assert (
            str(told.value).splitlines()[0].split("port")[0]
            == str(alone.value).splitlines()[0].split("port")[0]
        )
        (span,) = telemetry.named(f"connect {crdb.database}")
        assert span.attributes["error.type"].endswith("OperationalError")
        with pgbouncer.running(crdb, "ignore_startup_parameters = options") as port:
            select(wrapper_at(port, options="-c statement_timeout=10000"))
        assert len(telemetry.named("SELECT account")) == 1


def test_server_that_announces_no_version(crdb):
    """Where a pooler keeps ``crdb_version`` back, neither version nor node is told, and all else is."""
    if crdb.direct_host is None:
        pytest.skip("only the embedded server can be reached past what announces it")
    default = connections["default"]
    direct = crdb.django_settings(direct=True)
    wrapper = type(default)(
        {**default.settings_dict, "HOST": direct["HOST"], "PORT": direct["PORT"]}, "direct"
    )
    with Telemetry() as telemetry:
        select(wrapper)
        span = telemetry.one("SELECT account")
        assert "cockroachdb.version" not in span.attributes
        assert "cockroachdb.node.id" not in span.attributes
        assert span.attributes["db.system.name"] == "cockroachdb"


def test_facts_are_read_through_proxies(crdb):
    """Version, node and transaction status are read where the driver's connection is wrapped in proxies."""
    wrapt = pytest.importorskip("wrapt")
    wrapper = wrapper_at(crdb.port)
    wrapper.ensure_connection()
    try:
        proxied = wrapt.ObjectProxy(wrapt.ObjectProxy(wrapper.connection))
        assert facts.of_connection(proxied).span["cockroachdb.version"] == "v25.4.0"
        assert facts.transaction_status(proxied) == facts.IDLE
        assert neighbours.watchers_of(proxied) is neighbours.NOBODY
    finally:
        wrapper.close()


def test_instrumentation_within_proxies_is_seen():
    """An instrumentation's cursor is known within proxies of others, and so are two at once."""
    wrapt = pytest.importorskip("wrapt")

    class Traced:
        __module__ = "opentelemetry.instrumentation.psycopg"

    class OfDatadog(wrapt.ObjectProxy):
        __module__ = "ddtrace.contrib.dbapi"

    seen = neighbours.watchers_of(OfDatadog(wrapt.ObjectProxy(Traced())))
    assert (seen.opentelemetry, seen.datadog) == (True, True)
    seen = neighbours.watchers_of(wrapt.ObjectProxy(Traced()))
    assert (seen.opentelemetry, seen.datadog) == (True, False)
    assert neighbours.watchers_of(wrapt.ObjectProxy(object())) is neighbours.NOBODY
