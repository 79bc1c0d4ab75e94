# SPDX-License-Identifier: Apache-2.0
"""docker-compose.yml through the tools it is for: docker compose's own loader, and the programs that it starts."""

import contextlib
import json
import os
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from stack.programs import path_of
from stack.servers import Ports, Server, agent, jaeger, loki

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
GRAFANA = ROOT / "collector" / "grafana" / "provisioning" / "datasources" / "otel_crdb.yaml"
SOURCES = {source["uid"]: source["jsonData"] for source in yaml.safe_load(GRAFANA.read_text())["datasources"]}
#: Which program a service runs.
PROGRAMS = {"collector": "otelcol", "jaeger": "jaeger", "loki": "loki", "prometheus": "prometheus"}


def loaded(path, **variables):
    """What docker compose's loader makes of a file; its status, the model, what it complained of."""
    ended = subprocess.run(
        [path_of("compose-go"), path],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    return ended.returncode, json.loads(ended.stdout) if ended.returncode == 0 else None, ended.stderr


def test_the_file_is_one_that_docker_compose_takes():
    """With all profiles, its loader validates it against the specification, resolves and merges it without a word of complaint."""
    status, model, complaint = loaded("docker-compose.yml")
    assert (status, complaint) == (0, "")
    assert set(model["services"]) == set(SERVICES)
    assert model["services"]["bank"]["ports"] == [
        {"mode": "ingress", "host_ip": "127.0.0.1", "target": 8000, "published": "8000", "protocol": "tcp"}
    ]
    for name, service in model["services"].items():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        binds = [each["source"] for each in service.get("volumes", ()) if each["type"] == "bind"]
        assert all(Path(source).is_relative_to(ROOT) and Path(source).exists() for source in binds)
    # Merging of anchors has left each its own.
    assert json.loads(model["services"]["bank"]["environment"]["BANK_DATABASE"])["USER"] == "bank"
    behind = model["services"]["bank-behind-faults"]
    assert set(behind["depends_on"]) == {"bank-setup", "collector", "fault-proxy"}
    assert behind["depends_on"]["fault-proxy"]["restart"] is True
    assert "ports" not in behind


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mem_limit: 32m", "memory_limit: 32m"),
        ("restart: unless-stopped", "restart: [sometimes]"),
        ("bank-setup: {condition: service_completed_successfully}", "bank-setup: {condition: service_done}"),
        ('- "127.0.0.1:3000:3000"', '- "127.0.0.1:3000:grafana"'),
        ("retries: 6", "retries: {often: true}"),
        ("build: *build", "build: *bild"),
        ("- loki:/loki", "- lokki:/loki"),
        ("mem_limit: 32m", "mem_limit: much"),
        ("interval: 10s", "interval: often"),
    ],
)
def test_the_loader_finds_what_is_wrong(right, wrong, tmp_path):
    """Each of some slips of the pen is refused: that the file is taken says something."""
    assert right in TEXT
    path = tmp_path / "docker-compose.yml"
    path.write_text(TEXT.replace(right, wrong, 1))
    status, _, complaint = loaded(path)
    assert status != 0
    assert complaint


class Containers:
    """The four services as processes: the command lines of the file, what is mounted there by where it is here."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = Ports.free()
        ports = self.ports
        self.variables = {
            "collector": {
                **agent(folder, ports).variables,
                "AGENT_QUEUE_DIRECTORY": self.place("collector", "/var/lib/otelcol"),
                "COCKROACHDB_HTTP_TARGETS": "[]",
                "COCKROACHDB_LOGS": f"{self.place('collector', '/var/log/cockroachdb/roach1')}/*.log",
                "COCKROACHDB_OTLP_GRPC": "127.0.0.1:0",
            },
            "jaeger": {
                **jaeger(folder, ports).variables,
                "JAEGER_DATA": self.place("jaeger", "/badger"),
            },
            "loki": {
                **loki(folder, ports).variables,
                "LOKI_DATA": self.place("loki", "/loki"),
            },
            "prometheus": {},
        }
        self.more = {"prometheus": [f"--web.listen-address=127.0.0.1:{ports.prometheus}"]}
        self.ready = {
            "collector": f"http://127.0.0.1:{ports.agent_health}/",
            "jaeger": f"http://127.0.0.1:{ports.jaeger_health}/status",
            "loki": f"http://127.0.0.1:{ports.loki}/ready",
            "prometheus": f"http://127.0.0.1:{ports.prometheus}/-/ready",
        }

    def place(self, service, target):
        """Where a path of a container is here: the file that is mounted, or a folder in place of a volume."""
        for mount in SERVICES[service]["volumes"]:
            source, where, *_ = mount.split(":")
            if where == target:
                return ROOT / source if source.startswith(".") else self.volume(source)
        raise AssertionError(f"{service} mounts nothing at {target}")

    def volume(self, name):
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def words(self, service):
        """The command line of a service, with each path that is mounted as it is here."""
        for word in SERVICES[service]["command"]:
            flag, equals, value = word.partition("=")
            yield (
                f"{flag}={self.place(service, value)}" if value.startswith("/") else f"{flag}{equals}{value}"
            )

    def start(self, service):
        """Start it as a process, ready at the end."""
        return Server(
            service,
            [path_of(PROGRAMS[service]), *self.words(service), *self.more.get(service, ())],
            self.variables[service],
            folder=self.folder,
            address="",
            ready=self.ready[service],
        )

    def health(self, service):
        """Run a service's health check, by the program that the image has too; whether it is content."""
        command = " ".join(SERVICES[service]["healthcheck"]["test"][1:])
        if service == "loki":
            assert command == "/usr/bin/loki -health"
            return self._run("loki", "-health", f"-health.url={self.ready['loki']}")
        if service == "prometheus":
            assert command == "/bin/promtool check ready --url=http://127.0.0.1:9090"
            return self._run("promtool", "check", "ready", f"--url=http://127.0.0.1:{self.ports.prometheus}")
        assert command == "wget -q -O /dev/null http://127.0.0.1:13133/status"
        with contextlib.suppress(OSError), urllib.request.urlopen(self.ready["jaeger"], timeout=4) as answer:
            return answer.status == 200
        return False

    def _run(self, program, *arguments):
        ended = subprocess.run([path_of(program), *arguments], capture_output=True, timeout=60)
        return ended.returncode == 0


@pytest.fixture
def containers(tmp_path):
    """The services of the file, none of them started."""
    return Containers(tmp_path)


@pytest.mark.parametrize("service", ["jaeger", "loki", "prometheus"])
def test_a_back_end_starts_by_its_command_line_and_its_check_tells_whether_it_is_well(containers, service):
    """With the words of the file it gets ready; its health check fails before and after, and passes in between."""
    assert not containers.health(service)
    with containers.start(service):
        assert containers.health(service)
    assert not containers.health(service)


def test_the_collector_takes_both_files_and_starts(containers):
    """With the words of the file its configuration is valid, and it gets ready, though Jaeger and Loki are not."""
    command = [path_of("otelcol"), "validate", *containers.words("collector")]
    variables = {name: str(value) for name, value in containers.variables["collector"].items()}
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    # Prometheus has to be there where it ends, for what it tells of itself last: its exit status is 1 otherwise.
    with containers.start("prometheus"), containers.start("collector"):
        assert any(containers.volume("collector-queue").iterdir())


def test_grafanas_queries_are_ones_that_the_back_ends_take(containers):
    """What the data sources ask, with a trace's id filled in, is parsed by Loki and by Prometheus."""
    of_logs = SOURCES["jaeger"]["tracesToLogsV2"]["query"].replace(
        "$${__trace.traceId}", "0af7651916cd43dd8448eb211c80319c"
    )
    assert "$" not in of_logs
    with containers.start("loki"):
        address = f"http://127.0.0.1:{containers.ports.loki}/loki/api/v1"
        assert answer(f"{address}/format_query", query=of_logs)["data"].startswith("{service_name=~")
        # Not only well formed: an empty matcher would be refused here.
        assert answer(f"{address}/query_range", query=of_logs)["data"]["result"] == []
    with containers.start("prometheus"):
        address = f"http://127.0.0.1:{containers.ports.prometheus}/api/v1"
        for query in SOURCES["jaeger"]["tracesToMetrics"]["queries"]:
            assert answer(f"{address}/query", query=query["query"])["data"]["result"] == []


def answer(address, **asked):
    """What a back end answers. Raises HTTPError where it does not take what it was asked."""
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(asked)}", timeout=30) as response:
        return json.loads(response.read())
