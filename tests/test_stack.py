# SPDX-License-Identifier: Apache-2.0
"""The stack's programs: pinned, built once, and a clear word where that cannot be."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stack.programs import HERE, PROGRAMS, StackError, path_of
from stack.servers import Ports

ROOT = Path(__file__).resolve().parent.parent


def run_stack(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "stack", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_where_go_is_missing_it_says_what_to_do(tmp_path):
    """One sentence, no traceback, and a status that make understands."""
    ended = run_stack("--build-only", OTEL_CRDB_TEST_STACK_CACHE=str(tmp_path), PATH=str(tmp_path))
    assert ended.returncode == 1
    assert "Go is not on the PATH" in ended.stdout
    assert "docker compose up" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_a_build_that_fails_shows_what_go_said(tmp_path):
    """Here by a Go that refuses everything; nothing is left that would pass for a program."""
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go: this module is not to be had >&2\nexit 1\n")
    go.chmod(0o755)
    ended = run_stack(
        "--build-only", OTEL_CRDB_TEST_STACK_CACHE=str(tmp_path / "cache"), PATH=f"{tmp_path}:/usr/bin:/bin"
    )
    assert ended.returncode == 1
    assert "could not be built" in ended.stdout
    assert "this module is not to be had" in ended.stdout
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in PROGRAMS and path.is_file()]


def test_a_program_that_is_not_built_is_named_with_its_version(tmp_path, monkeypatch):
    """And with the command that builds it."""
    monkeypatch.setenv("OTEL_CRDB_TEST_STACK_CACHE", str(tmp_path))
    with pytest.raises(StackError, match=r"jaeger 2\.13\.0 is not built here: make stack-programs"):
        path_of("jaeger")


def test_a_changed_pin_is_another_program(monkeypatch, tmp_path):
    """What was built of other sources is never taken for it."""
    before = PROGRAMS["otelcol"].path
    monkeypatch.setattr("stack.programs.HERE", tmp_path)
    (tmp_path / "otelcol").mkdir()
    (tmp_path / "otelcol" / "go.sum").write_text("other sums")
    assert PROGRAMS["otelcol"].path != before


def test_the_collectors_sources_are_those_of_its_manifest():
    """Each module of builder.yaml stands in go.mod at that version, and in components.go or main.go."""
    sources = HERE / "otelcol"
    manifest = yaml.safe_load((sources / "builder.yaml").read_text())
    required = (sources / "go.mod").read_text()
    used = (sources / "components.go").read_text() + (sources / "main.go").read_text()
    kinds = ("receivers", "processors", "exporters", "extensions", "providers")
    modules = [each["gomod"] for kind in kinds for each in manifest[kind]]
    assert modules
    for module in modules:
        assert f"\t{module}\n" in required, module
        assert f'"{module.split()[0]}"' in used, module
    assert manifest["dist"]["version"] == PROGRAMS["otelcol"].version


def test_ports_that_are_taken_are_told():
    """Before anything is started that would end at the first of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        assert Ports(loki=taken).taken().count(taken) == 1


def test_free_ports_are_all_different():
    """Nobody listens on any of them."""
    ports = Ports.free()
    assert len(set(vars(ports).values())) == len(vars(ports))
    assert ports.taken() == []
