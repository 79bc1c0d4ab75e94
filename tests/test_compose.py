# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml and what it mounts: sound in themselves, and of one mind about names, ports and files."""

import graphlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement

from otel_crdb.testing import FaultProxy
from otel_crdb.testing.rules import read_rules
from stack.programs import PROGRAMS

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
COCKROACH = ROOT / "collector" / "cockroach"
DOCKERFILE = (ROOT / "demo" / "Dockerfile").read_text()
NODES = ["roach1", "roach2", "roach3"]
BANKS = ["bank", "bank-behind-faults"]
BUILT = "otel-crdb-bank"
#: What surely is in an image: its own program; what its Dockerfile says that it stands on.
HELD = {
    "cockroachdb/cockroach": {"/cockroach/cockroach", "/bin/bash"},
    "jaegertracing/jaeger": {"wget"},  # alpine
    "grafana/grafana": {"wget"},  # alpine
    "grafana/loki": {"/usr/bin/loki"},  # distroless
    "prom/prometheus": {"/bin/promtool"},
    BUILT: {"python", "sh", "otel-crdb"},
    "busybox": {"chown"},
}
#: Where the images listen by themselves; everybody else is told where by a file that is mounted.
LISTENING = {
    "roach": {26257, 8080},
    "bank": {8000},
    "fault-proxy": {8000},
    "prometheus": {9090},
    "grafana": {3000},
}
ENVIRONMENT = re.compile(r"\$\{(?:env:)?([A-Z_]+):-([^}]*)\}")
ADDRESS = re.compile(r"(?<![\w./])(?:[a-z]+://)?(?:\w+@)?([a-z][a-z0-9\-]*):(\d{2,5})\b")


def mounts(service):
    """What a service mounts: files by their path here, volumes by their name; where; whether to read only."""
    for mount in SERVICES[service].get("volumes", ()):
        source, target, *mode = mount.split(":")
        yield source, PurePosixPath(target), mode == ["ro"]


def mounted_files(service):
    """The files of this repository that a service reads."""
    for source, _, _ in mounts(service):
        if source.startswith("."):
            path = ROOT / source
            yield from (each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def words(service):
    """All that is said to the processes of a service."""
    told = SERVICES[service]
    environment = told.get("environment", {}).values()
    return [*told.get("entrypoint", ()), *told.get("command", ()), *map(str, environment)]


def host_ports(service):
    """What a service listens on, by what it is told, and by what its image is known for."""
    known = next((ports for name, ports in LISTENING.items() if service.startswith(name)), set())
    texts = (path.read_text() for path in mounted_files(service) if path.suffix == ".yaml")
    told = {port for text in texts for port in re.findall(r"0\.0\.0\.0:(\d+)", without_comments(text))}
    variables = {
        name: value
        for text in map(Path.read_text, mounted_files(service))
        for name, value in ENVIRONMENT.findall(text)
    }
    told |= {value for name, value in variables.items() if name.endswith("_PORT")}
    return known | set(map(int, told))


def without_comments(text):
    return re.sub(r"(?m)(?:^|\s)#.*$", "", text)


def database(service):
    return json.loads(SERVICES[service]["environment"]["BANK_DATABASE"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_bounded_and_on_loopback_only(name):
    """Its image has a version or is built here; its ports are this machine's; it has limits, a policy, a time to end."""
    service = SERVICES[name]
    if service["image"] == BUILT:
        build = service["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    else:
        assert re.fullmatch(r"[a-z/\-]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", ()))
    assert service.get("network_mode", "service:").startswith("service:")
    assert not {"privileged", "cap_add", "devices", "pid"} & set(service)
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["cpus"] > 0
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] in ("no", "unless-stopped")
    assert (service["restart"] == "no") or re.fullmatch(r"\d+s", service["stop_grace_period"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_mounts_is_there(name):
    """Files of the repository exist and are read only; volumes are declared."""
    for source, target, read_only in mounts(name):
        assert target.is_absolute()
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert read_only
        else:
            assert source in COMPOSE["volumes"]


def test_no_volume_is_declared_for_nobody():
    """Every volume is mounted by somebody who writes to it."""
    written = {source for name in SERVICES for source, _, read_only in mounts(name) if not read_only}
    assert written == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_can_come(name):
    """Who is waited for until healthy has a check; who is waited for until done ends; nobody waits for a profile."""
    profile = SERVICES[name].get("profiles")
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        if how["condition"] == "service_completed_successfully":
            assert SERVICES[other]["restart"] == "no"
        assert SERVICES[other].get("profiles") in (None, profile)


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_runs_only_what_the_image_holds(name):
    """Neither a shell nor a tool is hoped for; who runs on and has no check is the collector alone."""
    service = SERVICES[name]
    kind, *command = service.get("healthcheck", {}).get("test", ["none"])
    assert kind in ("CMD", "none")
    held = HELD.get(service["image"].partition(":")[0], set())
    if command:
        assert command[0] in held
        check = service["healthcheck"]
        assert seconds(check["timeout"]) <= seconds(check["interval"])
        ports = {int(port) for port in re.findall(r"127\.0\.0\.1(?::|', )(\d+)", " ".join(command))}
        assert ports <= host_ports(name) | {26257}
    elif service["restart"] != "no":
        assert name in ("collector", "load", "load-behind-faults")
    first = service.get("entrypoint", service.get("command", [None]))[0]
    assert first in held or not first or first.startswith("-") or first == "start"


def seconds(text):
    return int(text.removesuffix("s"))


def addresses(name):
    """Each host:port that a service is told of, in its own words and in its files."""
    texts = [*words(name), *(without_comments(path.read_text()) for path in mounted_files(name))]
    for host, port in itertools.chain.from_iterable(ADDRESS.findall(text) for text in texts):
        if host not in ("localhost",):
            yield host, int(port)


@pytest.mark.parametrize("name", SERVICES)
def test_whoever_is_called_is_a_service_and_listens_there(name):
    """Each host:port in a mounted file, a command or a variable is a service of this file and a port of it."""
    aliases = {
        alias: other
        for other in SERVICES
        for alias in SERVICES[other].get("networks", {}).get("default", {}).get("aliases", ())
    }
    for host, port in addresses(name):
        assert host in SERVICES, f"{host}:{port}"
        assert port in host_ports(aliases.get(host, host)), f"{host}:{port}"
    for mapping in SERVICES[name].get("ports", ()):
        assert int(mapping.rpartition(":")[2]) in host_ports(name)


def test_no_two_services_wait_for_each_other_and_every_time_is_one():
    """There is an order to start in, networks that are shared included; every duration is a number of seconds."""
    waits = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    for name, service in SERVICES.items():
        shared = service.get("network_mode", "").removeprefix("service:")
        waits[name] |= {shared} - {""}
        assert waits[name] <= set(SERVICES)
        check = service.get("healthcheck", {})
        times = [check[key] for key in ("interval", "timeout", "start_period") if key in check]
        assert all(re.fullmatch(r"\d+s", time) for time in times)
        assert not check or len(times) == 3
    assert set(graphlib.TopologicalSorter(waits).static_order()) == set(SERVICES)


def test_no_two_services_publish_one_port():
    """Everything can run at once, the profile too."""
    published = [
        mapping.rpartition(":")[0] for name in SERVICES for mapping in SERVICES[name].get("ports", ())
    ]
    assert len(published) == len(set(published))


@pytest.mark.parametrize("name", SERVICES)
def test_variables_are_spelled_as_they_are_read(name):
    """What a service is given is read by the bank's settings, by OpenTelemetry, by Grafana or by its files."""
    settings = (ROOT / "demo" / "bank" / "settings.py").read_text()
    read = set(re.findall(r"environ(?:\.get)?[\(\[]\"([A-Z_]+)", settings))
    read |= {
        variable for path in mounted_files(name) for variable, _ in ENVIRONMENT.findall(path.read_text())
    }
    for variable in SERVICES[name].get("environment", {}):
        foreign = "GF_" if name == "grafana" else "OTEL_"
        assert variable in read or variable.startswith(foreign), variable


# --- CockroachDB -----------------------------------------------------------------------------------------


def test_the_nodes_are_one_cluster_and_differ_by_name_and_zone_only():
    """Each joins all of them, by the name that it has; each is in a zone of its own; each has its own volumes."""
    commands = []
    for node in NODES:
        service = SERVICES[node]
        assert service["hostname"] == node
        flags = dict(flag.split("=", 1) for flag in service["command"][2:])
        assert flags.pop("--advertise-addr") == f"{node}:26257"
        assert flags["--join"].split(",") == [f"{each}:26257" for each in NODES]
        commands.append(flags)
        assert {source for source, _, read_only in mounts(node) if not read_only} == {node, f"{node}-logs"}
    assert len({flags.pop("--locality") for flags in commands}) == len(NODES)
    assert commands[0] == commands[1] == commands[2]
    assert set(SERVICES["cluster-init"]["depends_on"]) == set(NODES)


def test_the_collector_reads_the_logs_that_the_nodes_write():
    """Where CockroachDB's files are, by its configuration, its volumes are; the collector's pattern finds them."""
    told = yaml.safe_load((COCKROACH / "log.yaml").read_text())
    folder = PurePosixPath(told["file-defaults"]["dir"])
    assert told["file-defaults"]["format"] == "json"
    assert told["file-defaults"]["redactable"] is True
    assert told["file-defaults"]["file-permissions"] == "644"
    for node in NODES:
        (flag,) = [flag for flag in SERVICES[node]["command"] if flag.startswith("--log-config-file=")]
        targets = {source: target for source, target, _ in mounts(node)}
        assert targets["./collector/cockroach/log.yaml"] == PurePosixPath(flag.partition("=")[2])
        assert targets[f"{node}-logs"] == folder
    pattern = dict(ENVIRONMENT.findall((ROOT / "collector" / "cockroachdb.yaml").read_text()))[
        "COCKROACHDB_LOGS"
    ]
    for node in NODES:
        ((target, read_only),) = [
            (target, ro) for source, target, ro in mounts("collector") if source == f"{node}-logs"
        ]
        assert read_only
        name = f"cockroach-sql-slow.{node}.root.2026-11-23T20_00_00Z.000001.log"
        assert (target / name).match(pattern.replace("**", "*"))


def test_every_user_that_the_bank_takes_is_made_and_may_no_more_than_it_needs():
    """Its tables' owner makes them, and serves nobody; who serves may read and write rows; nobody is root."""
    sql = re.sub(r"--.*", "", (COCKROACH / "init.sql").read_text())
    statements = [" ".join(each.split()) for each in sql.split(";") if each.strip()]
    users = {name for each in statements for name in re.findall(r"^CREATE USER IF NOT EXISTS (\w+)$", each)}
    assert users == {"bank_owner", "bank", "monitor"}
    databases = {service: database(service) for service in ("bank-setup", *BANKS)}
    assert {service: each["USER"] for service, each in databases.items()} == {
        "bank-setup": "bank_owner",
        "bank": "bank",
        "bank-behind-faults": "bank",
    }
    assert {each["NAME"] for each in databases.values()} == {"bank"}
    assert "CREATE DATABASE IF NOT EXISTS bank" in statements
    granted = {each for each in statements if re.search(r"\bTO bank$", each)}
    assert granted == {
        "ALTER DEFAULT PRIVILEGES FOR ALL ROLES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO bank"
    }
    assert "GRANT SYSTEM VIEWACTIVITYREDACTED, VIEWCLUSTERMETADATA TO monitor" in statements
    assert not [each for each in statements if re.search(r"\badmin\b|\bALL PRIVILEGES\b|GRANT ALL", each)]


def test_the_script_for_a_new_cluster_may_run_again():
    """Every statement says what to do where it was done: no bare CREATE, no DROP."""
    sql = re.sub(r"--.*", "", (COCKROACH / "init.sql").read_text())
    for statement in filter(None, map(str.strip, sql.split(";"))):
        assert re.match(
            r"CREATE \w+ IF NOT EXISTS|USE |GRANT |REVOKE |ALTER DEFAULT|SET CLUSTER SETTING", statement
        ), statement


#: What stands for the program `cockroach`: it refuses as often as it is told, and notes what it was asked for.
STAND_IN = """#!/bin/bash
echo "$*" >> "$NOTES"
left=$(cat "$NOTES.left" 2>/dev/null || echo "$REFUSALS")
if [ "$left" -gt 0 ]; then echo $((left - 1)) > "$NOTES.left"; echo "ERROR: $SAYING"; exit 1; fi
if [ "$1" = init ] && [ -n "$DONE" ]; then echo "ERROR: cluster has already been initialized"; exit 1; fi
if [[ "$*" == *--file=* ]]; then exit "$SQL_STATUS"; fi
"""


def initialise(folder, **told):
    """Run the script of the cluster's first start against a stand-in; its status, output, and what was asked."""
    program = folder / "cockroach"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    variables = {"REFUSALS": "0", "SAYING": "connection refused", "DONE": "", "SQL_STATUS": "0", **told}
    ended = subprocess.run(
        ["/bin/bash", COCKROACH / "init.sh"],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(folder / "notes"), **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    asked = [shlex.split(line)[0] for line in (folder / "notes").read_text().splitlines()]
    return ended.returncode, ended.stdout + ended.stderr, asked


def test_the_cluster_is_made_once_its_nodes_are_there(tmp_path):
    """A node that does not answer yet is asked again; then come a first question and the statements."""
    assert initialise(tmp_path, REFUSALS="1") == (0, "the cluster is ready\n", ["init", "init", "sql", "sql"])


def test_a_cluster_that_is_made_already_is_left_as_it_is(tmp_path):
    """That it was initialised before is no error: the statements run again, and end well."""
    assert initialise(tmp_path, DONE="yes") == (0, "the cluster is ready\n", ["init", "sql", "sql"])


def test_a_cluster_that_cannot_be_made_is_told_of(tmp_path):
    """Where no node ever answers, or a statement fails, the script fails, and shows what was said."""
    status, said, asked = initialise(tmp_path, REFUSALS="9", TRIES="2")
    assert (status, asked) == (1, ["init", "init"])
    assert said == "ERROR: connection refused\n"
    (tmp_path / "notes").unlink()
    (tmp_path / "notes.left").unlink()
    assert initialise(tmp_path, SQL_STATUS="3") == (3, "", ["init", "sql", "sql"])


# --- The bank --------------------------------------------------------------------------------------------


def test_the_bank_knows_all_nodes_and_the_scrape_too():
    """Its list of hosts, the owner's and the collector's targets are the three nodes; the order is by chance."""
    for service in ("bank", "bank-setup"):
        assert database(service)["HOST"].split(",") == NODES
        assert database(service)["OPTIONS"]["load_balance_hosts"] == "random"
    targets = dict(ENVIRONMENT.findall((ROOT / "collector" / "cockroachdb.yaml").read_text()))
    assert yaml.safe_load(targets["COCKROACHDB_HTTP_TARGETS"]) == [f"{node}:8080" for node in NODES]


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="the image has psycopg 3")
def test_a_list_of_hosts_leads_past_nodes_that_are_gone_or_refuse(crdb):
    """With the bank's options a connection comes about as long as one node takes it, however the list is shuffled."""
    import psycopg

    options = database("bank")["OPTIONS"]
    with (
        FaultProxy(crdb, node_id=1) as draining,
        FaultProxy(crdb, node_id=2) as gone,
        FaultProxy(crdb, node_id=3) as well,
    ):
        draining.inject("not_accepting_clients", times=None)
        gone.inject("connection_refused")
        settings = well.server.django_settings()
        ports = ",".join(str(each.server.port) for each in (draining, gone, well))
        for _ in range(8):
            with psycopg.connect(
                host=",".join(["127.0.0.1"] * 3),
                port=ports,
                user=settings["USER"],
                password=settings["PASSWORD"],
                dbname=settings["NAME"],
                **{**settings["OPTIONS"], **options},
            ) as connection:
                assert connection.info.port == well.server.port


def test_the_bank_is_called_by_names_that_it_answers_to():
    """The hosts that health checks and loads name are in ALLOWED_HOSTS; each load calls a bank."""
    for name in BANKS:
        allowed = SERVICES[name]["environment"]["BANK_HOSTS"].split(",")
        assert {"127.0.0.1", "localhost", *BANKS} == set(allowed)
    for load, bank in (("load", "bank"), ("load-behind-faults", "bank-behind-faults")):
        command = SERVICES[load]["command"]
        assert command[command.index("--address") + 1] == f"http://{bank}:8000"
        assert SERVICES[load]["depends_on"] == {bank: {"condition": "service_healthy"}}


def test_workers_are_given_the_time_to_end():
    """The container's end waits for longer than gunicorn waits for its workers."""
    graceful = int(re.search(r'"--graceful-timeout", "(\d+)"', DOCKERFILE)[1])
    assert all(seconds(SERVICES[name]["stop_grace_period"]) > graceful for name in BANKS)


def test_the_profile_puts_the_proxy_between_a_second_bank_and_the_cluster():
    """The bank behind it shares the proxy's network, and its database is where the proxy listens."""
    profiled = {name for name in SERVICES if "profiles" in SERVICES[name]}
    assert profiled == {"fault-proxy", "bank-behind-faults", "load-behind-faults"}
    assert all(SERVICES[name]["profiles"] == ["faults"] for name in profiled)
    proxy = SERVICES["fault-proxy"]
    assert SERVICES["bank-behind-faults"]["network_mode"] == "service:fault-proxy"
    assert proxy["networks"]["default"]["aliases"] == ["bank-behind-faults"]
    behind = database("bank-behind-faults")
    assert f"--listen={behind['HOST']}:{behind['PORT']}" in proxy["command"]
    upstream = next(word for word in proxy["command"] if word.startswith("postgresql://"))
    assert upstream.startswith(f"postgresql://{behind['USER']}@roach1:26257/{behind['NAME']}?")
    ((source, target, _),) = mounts("fault-proxy")
    assert f"--rules={target}" in proxy["command"]
    rules = read_rules(ROOT / source)
    assert {rule.on for rule in rules} == {"statement", "commit"}
    assert all(rule.times is None and rule.probability < 0.1 for rule in rules)
    image = SERVICES["roach1"]["image"].rpartition(":")[2]
    assert f"--version={image}" in proxy["command"]


def test_the_image_holds_what_the_commands_need():
    """What the Dockerfile copies exists and is let through to the builder; what runs in it is among that."""
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    ]
    assert {"demo", "otel_crdb", "pyproject.toml"} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in let_through
    assert {line[1:] for line in let_through if line.startswith("!")} == set(copied)
    for path in ("demo/bank/wsgi.py", "demo/manage.py", "demo/load.py"):
        assert (ROOT / path).is_file()
    assert "WORKDIR /bank/demo" in DOCKERFILE
    assert "PYTHONPATH=/bank/demo:/bank" in DOCKERFILE
    assert len(set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M))) == 1
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+ AS build$", DOCKERFILE, re.M)


def test_the_image_is_built_from_pinned_packages():
    """What the Dockerfile makes of the lock file is a list of constraints: each a package at one version, unhashed."""
    (expressions,) = re.findall(r"RUN sed (.*) (\S+) > constraints.txt", DOCKERFILE)
    made = subprocess.run(
        ["sed", *shlex.split(expressions[0]), ROOT / expressions[1]],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    pins = [
        Requirement(line) for line in made.stdout.splitlines() if line and not line.lstrip().startswith("#")
    ]
    assert {"django", "gunicorn", "psycopg", "psycopg-binary", "opentelemetry-sdk"} <= {
        pin.name for pin in pins
    }
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) for pin in pins)


# --- The back ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "program"),
    [("collector", "otelcol"), ("jaeger", "jaeger"), ("loki", "loki"), ("prometheus", "prometheus")],
)
def test_a_back_end_is_the_version_that_make_stack_runs(service, program):
    """Image and program are of one version, and each file given to it is one that is mounted there."""
    assert SERVICES[service]["image"].rpartition(":")[2].removeprefix("v") == PROGRAMS[program].version
    targets = {str(target) for _, target, _ in mounts(service)}
    given = re.findall(r"-config(?:\.file)?=(\S+)", " ".join(SERVICES[service]["command"]))
    assert given
    assert set(given) <= targets
    assert all(path.parent == ROOT / "collector" for path in mounted_files(service))


def test_the_collectors_pipelines_name_what_is_defined_and_guard_memory_first():
    """Every component is defined in one of its files, none is left over, and nothing comes before the limiter."""
    agent, cockroachdb = (
        yaml.safe_load(path.read_text()) for path in mounted_files("collector") if path.suffix == ".yaml"
    )
    pipelines = {**agent["service"]["pipelines"], **cockroachdb["service"]["pipelines"]}
    assert len(pipelines) == 6
    for kind in ("receivers", "processors", "exporters"):
        defined = {**agent.get(kind, {}), **cockroachdb.get(kind, {})}
        named = {component for pipeline in pipelines.values() for component in pipeline[kind]}
        assert named == set(defined), kind
    assert all(pipeline["processors"][0] == "memory_limiter" for pipeline in pipelines.values())
    assert set(agent["service"]["extensions"]) == set(agent["extensions"])


def test_prometheus_is_given_every_switch_that_make_stack_gives_it():
    """It takes OTLP and keeps exemplars in both, and writes to its volume."""
    command = SERVICES["prometheus"]["command"]
    switches = re.findall(
        r"\"(--(?:web\.enable|enable)[^\"]*)\"", (ROOT / "stack" / "servers.py").read_text()
    )
    assert len(switches) == 2
    assert set(switches) <= set(command)
    targets = {source: str(target) for source, target, _ in mounts("prometheus")}
    assert f"--storage.tsdb.path={targets['prometheus']}" in command


def test_who_is_no_root_owns_the_volume_that_it_writes_to():
    """The folders that the collector's and Jaeger's images lack are given to their user before they start."""
    owner = SERVICES["volumes-owner"]
    given = {source: str(target) for source, target, _ in mounts("volumes-owner")}
    assert owner["command"] == ["chown", "10001:10001", *given.values()]
    variables = dict(ENVIRONMENT.findall("".join(path.read_text() for path in mounted_files("collector"))))
    variables |= dict(ENVIRONMENT.findall((ROOT / "collector" / "jaeger.yaml").read_text()))
    variables |= dict(ENVIRONMENT.findall((ROOT / "collector" / "loki.yaml").read_text()))
    for service, volume, variable in (
        ("collector", "collector-queue", "AGENT_QUEUE_DIRECTORY"),
        ("jaeger", "jaeger", "JAEGER_DATA"),
        ("loki", "loki", "LOKI_DATA"),
    ):
        targets = {source: str(target) for source, target, _ in mounts(service)}
        assert targets[volume] == variables[variable]
        assert service == "loki" or (volume in given and "volumes-owner" in SERVICES[service]["depends_on"])


SOURCES = {
    source["uid"]: source
    for source in yaml.safe_load(
        (ROOT / "collector/grafana/provisioning/datasources/otel_crdb.yaml").read_text()
    )["datasources"]
}


def test_grafanas_data_sources_are_services_and_lead_to_each_other():
    """Each has the address of a back end; trace leads to logs and metrics, log and exemplar lead to the trace."""
    assert {uid: source["type"] for uid, source in SOURCES.items()} == {
        "jaeger": "jaeger",
        "loki": "loki",
        "prometheus": "prometheus",
    }
    traces, logs, metrics = (SOURCES[uid]["jsonData"] for uid in ("jaeger", "loki", "prometheus"))
    assert traces["tracesToLogsV2"]["datasourceUid"] == "loki"
    assert traces["tracesToMetrics"]["datasourceUid"] == "prometheus"
    (field,) = logs["derivedFields"]
    assert (field["datasourceUid"], field["matcherType"], field["matcherRegex"]) == (
        "jaeger",
        "label",
        "trace_id",
    )
    (exemplar,) = metrics["exemplarTraceIdDestinations"]
    assert exemplar == {"name": "trace_id", "datasourceUid": "jaeger"}
    ((_, target, _), *_) = mounts("grafana")
    assert target == PurePosixPath("/etc/grafana/provisioning/datasources")
    assert [source["uid"] for source in SOURCES.values() if source.get("isDefault")] == ["prometheus"]


def test_what_grafana_fills_in_is_not_taken_for_a_variable_of_its_environment():
    """Every dollar sign in the file is written twice, for Grafana reads it as a variable otherwise."""
    text = without_comments((ROOT / "collector/grafana/provisioning/datasources/otel_crdb.yaml").read_text())
    assert "$${__trace.traceId}" in text
    assert "$${__value.raw}" in text
    assert not re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", text)
