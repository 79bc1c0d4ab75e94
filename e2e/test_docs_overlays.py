# SPDX-License-Identifier: Apache-2.0
"""docs/backends.md: its overlay for the collector and its variables, run against a receiver that wants a key.

The receiver stands where a hosted service stands. Of the services themselves nothing is said.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from demo.receiver import Receiver
from stack import servers
from stack.programs import path_of
from stack.queries import until
from tests.docs import pages

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = "docs/backends.md"
AGENT = pages.ROOT / "collector" / "agent.yaml"
COCKROACHDB = pages.ROOT / "collector" / "cockroachdb.yaml"
SIGNALS = {"/v1/traces", "/v1/metrics", "/v1/logs"}
#: An application that tells of something by each signal, and ends.
APPLICATION = """
import logging
import django
from django.conf import settings
settings.configure()
import otel_crdb
otel_crdb.instrument()
django.setup()
from opentelemetry import metrics, trace
with trace.get_tracer("shop").start_as_current_span("sold"):
    logging.getLogger("shop").warning("sold")
    metrics.get_meter("shop").create_counter("sold").add(1)
otel_crdb.flush()
"""


def block(beginning: str) -> str:
    """Return the text of the only block of the page that begins so."""
    (found,) = [each.text for each in pages.blocks(PAGE) if each.text.startswith(beginning)]
    return found


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """The page's second file, as it stands."""
    path = tmp_path / "hosted.yaml"
    path.write_text(block("# hosted.yaml"))
    return path


class Service(Receiver):
    """A service that notes each request's path and headers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(hand_on=lambda path, headers, _: self.seen.append((path, headers)))

    def has_all(self) -> bool:
        """Whether each signal came."""
        return {path for path, _ in self.seen} == SIGNALS

    def values(self, header: str) -> set[str | None]:
        """Return what this header was in all requests."""
        return {headers.get(header) for _, headers in self.seen}


def run(command: list[str], variables: Mapping[str, str], folder: Path) -> tuple[int, str]:
    """Run a command without the OTEL_ variables of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "HOSTED_"))}
    ended = subprocess.run(
        command,
        env={**kept, **variables},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def sell(endpoint: str, folder: Path) -> None:
    """Run the application with its telemetry to an endpoint."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "shop"}
    status, said = run([sys.executable, "-c", APPLICATION], variables, folder)
    assert status == 0, said


def given(service: Service, **variables: str) -> dict[str, str]:
    """Return what the agent is told: nobody is at port 1, and what went there would be in its log."""
    return {
        "HOSTED_ENDPOINT": service.endpoint,
        "AGENT_KEEP_PERCENT": "100",
        "AGENT_JAEGER": "127.0.0.1:1",
        "AGENT_LOKI": "http://127.0.0.1:1/otlp",
        "AGENT_PROMETHEUS": "http://127.0.0.1:1/api/v1/otlp",
        **variables,
    }


def through_the_agent(service: Service, overlay: Path, folder: Path, **variables: str) -> str:
    """Sell through an agent with the overlay, whose own back ends are not there; return the agent's log."""
    told = given(service, **variables)
    with servers.agent(folder / "agent", servers.Ports.free(), variables=told, more=[overlay]) as agent:
        sell(agent.address, folder)
        until(service.has_all, "all signals at the service")
    return agent.log.read_text()


def test_commands_of_the_page_are_valid(overlay, tmp_path):
    """The page's `validate` ends well, word by word; its second command differs in that word only."""
    validate, started = (line.split() for line in block("otelcol-contrib validate").splitlines())
    assert started == [word for word in validate if word != "validate"]
    (tmp_path / "collector").symlink_to(AGENT.parent)
    variables = {"HOSTED_ENDPOINT": "https://otlp.example.com", "HOSTED_TOKEN": "t"}
    assert run([str(path_of("otelcol")), *validate[1:]], variables, tmp_path) == (0, "")


def test_overlay_goes_with_the_file_for_cockroachdb(overlay, tmp_path):
    """All three files together are valid."""
    files = [word for path in (AGENT, COCKROACHDB, overlay) for word in ("--config", str(path))]
    variables = {"HOSTED_ENDPOINT": "https://otlp.example.com", "HOSTED_TOKEN": "t"}
    assert run([str(path_of("otelcol")), "validate", *files], variables, tmp_path) == (0, "")


def test_endpoint_that_is_not_set_is_said(overlay, tmp_path):
    """Without the variable, `validate` ends with an error that names the exporter and what it lacks."""
    files = [word for path in (AGENT, overlay) for word in ("--config", str(path))]
    status, said = run([str(path_of("otelcol")), "validate", *files], {}, tmp_path)
    assert status == 1
    assert "otlp_http/hosted" in said
    assert "endpoint" in said


@pytest.mark.parametrize("token", ["0123456", "with-words_and=signs"])
def test_overlay_sends_all_to_the_service_with_the_key(overlay, tmp_path, token):
    """Each signal comes to the service alone, packed, with the key as it is; no log has the key."""
    with Service() as service:
        said = through_the_agent(service, overlay, tmp_path, HOSTED_TOKEN=token)
    assert service.values("authorization") == {f"Bearer {token}"}
    assert service.values("content-encoding") == {"gzip"}
    assert token not in said
    assert "127.0.0.1:1/" not in said
    assert "connection refused" not in said


def in_file(overlay: Path, text: str) -> None:
    """Have the overlay read the key from a file, as the page has it, with this text."""
    secret = overlay.with_name("hosted_token")
    secret.write_text(text)
    from_environment, from_file = "Bearer ${env:HOSTED_TOKEN}", "Bearer ${file:/run/secrets/hosted_token}"
    assert from_environment in overlay.read_text()
    assert f'`"{from_file}"`' in pages.text_of(PAGE)
    read = from_file.replace("/run/secrets/hosted_token", str(secret))
    overlay.write_text(overlay.read_text().replace(from_environment, read))


def test_key_from_a_file(overlay, tmp_path):
    """`${file:…}` in the place of `${env:…}` is the file's text."""
    in_file(overlay, "0123456")
    with Service() as service:
        through_the_agent(service, overlay, tmp_path)
    assert service.values("authorization") == {"Bearer 0123456"}


def test_key_from_a_file_with_a_line_break(overlay, tmp_path):
    """As the page says: such a header cannot be sent, and nothing goes out; the log says so without the key."""
    in_file(overlay, "0123456\n")
    with Service() as service:
        variables = given(service)
        with servers.agent(tmp_path, servers.Ports.free(), variables=variables, more=[overlay]) as agent:
            sell(agent.address, tmp_path)
            until(lambda: "invalid header field value" in agent.log.read_text(), "an error in the log")
    assert service.seen == []
    assert "0123456" not in agent.log.read_text()


def test_to_both(overlay, tmp_path):
    """With both exporters in a pipeline, and without `readers`, spans come to Jaeger and to the service."""
    text = overlay.read_text()
    reader_less = text[: text.index("  telemetry:")] + text[text.index("  pipelines:") :]
    overlay.write_text(
        reader_less.replace(
            "exporters: [otlp_http/hosted]", "exporters: [otlp_grpc/jaeger, otlp_http/hosted]", 1
        )
    )
    ports = servers.Ports.free()
    with Service() as service, servers.jaeger(tmp_path / "jaeger", ports) as jaeger:
        through_the_agent(
            service,
            overlay,
            tmp_path,
            HOSTED_TOKEN="t",
            AGENT_JAEGER=f"127.0.0.1:{ports.jaeger_otlp}",
            AGENT_PROMETHEUS=service.endpoint,
        )
        from stack.queries import Jaeger

        assert until(lambda: Jaeger(jaeger.address).traces("shop"), "the trace in Jaeger")


def test_straight_from_the_application(tmp_path):
    """The page's variables give each request of all signals the key, decoded, and pack it."""
    script = block("export OTEL_SERVICE_NAME")
    (tmp_path / "shop.py").write_text(APPLICATION)
    with Service() as service:
        script = script.replace("https://otlp.example.com", service.endpoint)
        script = script.replace("gunicorn bank.wsgi", f"exec {sys.executable} shop.py")
        status, said = run(["bash", "-ec", script], {"HOSTED_TOKEN": "t0ken"}, tmp_path)
        assert status == 0, said
        assert service.has_all()
    assert service.values("authorization") == {"Bearer t0ken"}
    assert service.values("content-encoding") == {"gzip"}


def test_every_block_of_the_page_is_run_here():
    """The page has no block that no test above runs."""
    beginnings = ("export OTEL_SERVICE_NAME", "# hosted.yaml", "otelcol-contrib validate")
    assert [each for each in pages.blocks(PAGE) if not each.text.startswith(beginnings)] == []
