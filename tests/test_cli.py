# SPDX-License-Identifier: Apache-2.0
"""The command `otel-crdb`: drills, the proxy that stands by itself, and what it says of slips."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from django.db import connection

from demo.receiver import Receiver
from otel_crdb import __version__, cli
from otel_crdb.testing import drills, faults

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 90
DRILL = "serialization_failure_at_commit"
RETRY = "serialization_failure.RETRY_SERIALIZABLE"


def environment(**variables):
    """The surroundings of a command: this machine's, on the driver of the run, without others' exporters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_EXPORTER_")}
    driver = {"DRIVER": os.environ["OTEL_CRDB_TEST_DRIVER"]} if "OTEL_CRDB_TEST_DRIVER" in os.environ else {}
    return {**kept, "COLUMNS": "100", **driver, **variables}


@contextmanager
def started(*arguments, cwd=ROOT, **variables):
    """Run the command as a process of its own, its output piped; none is left at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "otel_crdb", *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()


def run(*arguments, **options):
    """Run the command to its end; return exit status and output."""
    with started(*arguments, **options) as process:
        output, _ = process.communicate(timeout=LONGEST)
    return process.returncode, output


# --- drills ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played():
    """One drill, played from the clone, its telemetry handed on: exit status, output, the collector."""
    with Receiver() as collector:
        status, output = run("drill", DRILL, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        yield status, output, collector


def test_a_drill_shows_what_is_done_what_was_answered_and_what_was_told(played, crdb):
    """It names the server, the fault, the answer, the tree of the retried transfer, and every expectation."""
    status, output, _ = played
    assert status == 0, output
    one = drills.named(DRILL)
    assert crdb.description in output
    words = " ".join(output.split())
    for told in (one.title, one.summary, one.user_notices, one.on_call):
        assert told in words
    assert f"Done {RETRY} at COMMIT, once; POST /transfer/ Users notice" in words
    assert "✓ POST /transfer/ → 201, after " in output
    assert "└─ run_transaction bank.transfers.move" in output
    assert "• cockroachdb.txn.retry" in output
    for wanted in one.expects:
        assert f"✓ {wanted}" in words
    assert "✓ 1 of 1 drills went as they have to." in output


def test_a_drill_runs_on_the_driver_that_is_asked_for(played):
    """DRIVER decides, as for the demo."""
    driver = os.environ.get("OTEL_CRDB_TEST_DRIVER") or "psycopg"
    assert f"Serve the bank: gunicorn, on {driver}, behind the fault proxy" in played[1]


def test_a_drill_hands_its_telemetry_on_to_a_collector(played):
    """With OTEL_EXPORTER_OTLP_ENDPOINT set, one can practise on one's own dashboards."""
    collector = played[2]
    assert [each.retries for each in collector.telemetry.transactions if each.retries] == [
        ("RETRY_SERIALIZABLE",)
    ]


def test_piped_output_is_plain_text(played):
    """No colour, no cursor movement, no trailing blanks."""
    output = played[1]
    assert "\x1b" not in output
    assert "\r" not in output
    assert not [line for line in output.splitlines() if line != line.rstrip()]


def test_a_drill_is_red_where_the_telemetry_is_missing():
    """The exit status is 1, each expectation says that it was not met, and the drill is named at the end."""
    status, output = run("drill", DRILL, "--patience", "0.2", OTEL_SDK_DISABLED="true")
    assert status == 1, output
    assert "✓ POST /transfer/ → 201" in output
    assert output.count("✗ span") >= 3
    assert "not seen, nor anything by this name" in output
    assert f"✗ 1 of 1 drills went otherwise: {DRILL}" in output


def test_drills_play_where_the_package_is_installed_with_the_demo_inside(tmp_path):
    """In a wheel the demo lies in the package, and no clone is there."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "otel_crdb", tmp_path / "otel_crdb", ignore=ignored)
    shutil.copytree(ROOT / "demo", tmp_path / "otel_crdb" / "demo", ignore=ignored)
    status, output = run("drill", "drain_idle_connection", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert status == 0, output
    assert "1 of 1 drills went" in output


def test_an_interrupted_drill_leaves_nothing_behind():
    """Ctrl-C ends bank, proxy and server, and the exit status is the shell's for it."""
    with started("drill") as process:
        line = ""
        while "Serve the bank" not in line:
            line = process.stdout.readline()
            assert line, "it ended by itself"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 130, output
        _, alive = psutil.wait_procs(children, timeout=LONGEST)
        assert not alive


def test_a_driver_that_cannot_be_is_refused():
    """The demo's own words for it, and exit status 2: nothing was played."""
    status, output = run("drill", DRILL, DRIVER="oracle")
    assert status == 2
    assert "DRIVER=oracle: there are psycopg and psycopg2" in output


def test_the_drills_are_listed_without_playing_one(capsys):
    """All by family, or those that are named."""
    assert cli.main(["drill", "--list"]) == 0
    listed = capsys.readouterr().out
    for each in drills.CATALOGUE.values():
        assert f"  {each.name} " in listed
        assert each.title in listed
    assert cli.main(["drill", "--list", DRILL]) == 0
    assert capsys.readouterr().out.splitlines()[1:2] == [
        line for line in listed.splitlines() if f"  {DRILL} " in line
    ]


def test_an_unknown_drill_is_answered_with_the_nearest(capsys):
    """Nothing is played, not even of the ones that are known."""
    assert cli.main(["drill", DRILL, "silent_abbort"]) == 2
    assert capsys.readouterr().err == (
        "otel-crdb drill: no drill 'silent_abbort'; did you mean 'silent_abort'?\n"
    )


def test_missing_extras_are_named_with_the_line_that_brings_them(capsys, monkeypatch):
    """Without gunicorn or rich it says what to install."""
    monkeypatch.setattr(cli, "NEEDED_BY_DRILLS", ("gunicorn", "not_installed_at_all"))
    assert cli.main(["drill", DRILL]) == 2
    told = 'not_installed_at_all is not installed: pip install "otel-crdb[demo]"'
    assert capsys.readouterr().err == f"otel-crdb drill: {told}\n"


# --- faults, and the rest --------------------------------------------------------------------------------


def test_the_faults_are_listed_by_family(capsys):
    """Every name of the catalogue, under its family, with its summary."""
    assert cli.main(["faults"]) == 0
    listed = capsys.readouterr().out
    for family, members in faults.FAMILIES.items():
        assert f"{family}\n" in listed
        for each in members:
            assert f"  {each.name} " in listed
            assert each.summary in listed


def test_the_version_is_told(capsys):
    """`--version` ends well."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"otel_crdb {__version__}\n"


def test_the_commands_are_listed(capsys):
    """The help names every command, the one that a newcomer needs first of all."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    assert "{doctor,drill,fault-proxy,faults}" in capsys.readouterr().out


def test_a_list_that_nobody_reads_to_its_end_is_no_failure():
    """`otel-crdb faults | head -1` says nothing of a broken pipe."""
    command = [sys.executable, "-m", "otel_crdb", "faults"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# --- the proxy that stands by itself ---------------------------------------------------------------------


@contextmanager
def standing(upstream, *arguments):
    """Run the proxy on a free port; give its process and its first line."""
    with started("fault-proxy", upstream, "--listen", "127.0.0.1:0", *arguments) as process:
        line = process.stdout.readline()
        assert " listening: postgresql://" in line, line + process.stdout.read()
        yield process, line


def port_of(line):
    """The port that the line says it listens on."""
    return int(line.partition("127.0.0.1:")[2].partition("/")[0])


def connected(port):
    """Connect to it by the driver of the run."""
    parameters = connection.get_connection_params()
    parameters.pop("cursor_factory", None)
    parameters.pop("context", None)
    parameters.pop("prepare_threshold", None)
    made = connection.Database.connect(**{**parameters, "host": "127.0.0.1", "port": port})
    made.autocommit = True
    return made


def write_rules(path, *rules):
    path.write_text(json.dumps([{"fault": name, **rest} for name, rest in rules]))


def test_the_proxy_stands_and_fails_by_its_rules_until_it_is_told_to_end(crdb, tmp_path):
    """It says where it listens, each strike, that rules were read again, and why they were not."""
    rules = tmp_path / "rules.json"
    write_rules(rules, (RETRY, {"matching": "SELECT 1"}))
    with standing(crdb.url, "--rules", rules) as (process, line):
        assert line.endswith("1 rule in force\n")
        session = connected(port_of(line))
        cursor = session.cursor()
        with pytest.raises(connection.Database.OperationalError, match="RETRY_SERIALIZABLE"):
            cursor.execute("SELECT 1")
        assert process.stdout.readline().endswith(f"struck: {RETRY} on statement SELECT, 1 so far\n")
        cursor.execute("SELECT 1")

        rules.write_text("[{}]")
        process.send_signal(signal.SIGHUP)
        assert "the rules stay as they were: " in process.stdout.readline()

        write_rules(rules, ("statement_timeout", {}), ("latency", {"delay": 0.01}))
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().endswith("the rules were read again, 2 rules in force\n")
        with pytest.raises(connection.Database.OperationalError, match="statement timeout"):
            cursor.execute("SELECT 2")
        assert "struck: statement_timeout on statement SELECT, 1 so far" in process.stdout.readline()
        session.close()

        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=LONGEST)[0] == ""
        assert process.returncode == 0


def test_the_proxy_brings_a_server_of_its_own(crdb):
    """`embedded` starts one, which announces itself as it was told to, and goes with the proxy."""
    if crdb.kind != "embedded":
        pytest.skip("the embedded server is not what this run stands on")
    with standing("embedded", "--version", "v26.1.0", "--node-id", "7") as (process, line):
        assert "embedded PostgreSQL" in line
        session = connected(port_of(line))
        assert "v26.1.0" in session.info.parameter_status("crdb_version")
        assert session.info.backend_pid >> 20 == 7
        session.close()
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LONGEST)
        assert process.returncode == 0
        _, alive = psutil.wait_procs(children, timeout=LONGEST)
        assert not alive


def test_a_password_is_not_told(crdb):
    """The line with the address is for logs: it lacks the password."""
    with standing(crdb.url.replace(f"{crdb.user}@", f"{crdb.user}:secret@")) as (_, line):
        assert "secret" not in line


def test_what_cannot_be_is_said_in_plain_words(capsys, tmp_path, crdb):
    """A wrong URL, rules that are none, an unknown fault, a node id out of range, a version, a taken port."""
    rules = tmp_path / "rules.json"
    for arguments, told in (
        (["http://somewhere"], "must look like postgresql://"),
        ([crdb.url, "--rules", str(rules)], "No such file"),
        ([crdb.url, "--node-id", "4000"], "node_id must be from 1 to 2047"),
        ([crdb.url, "--version", "26.2"], "version must be like v25.4.0, not '26.2'"),
    ):
        assert cli.main(["fault-proxy", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("otel-crdb fault-proxy: ")
        assert told in error
    write_rules(rules, ("statement_timeuot", {}))
    assert cli.main(["fault-proxy", crdb.url, "--rules", str(rules)]) == 2
    assert (
        "rule 1: no fault 'statement_timeuot'; did you mean 'statement_timeout'?" in capsys.readouterr().err
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["fault-proxy", crdb.url, "--listen", str(taken.getsockname()[1])]) == 2
    assert "address already in use" in capsys.readouterr().err.lower()  # asyncio spells it in two ways


@pytest.mark.parametrize(
    ("address", "told"), [("0.0.0.0:1", "on 127.0.0.1 only"), ("x", "no port"), ("1:70000", "127.0.0.1")]
)
def test_an_address_that_cannot_be_is_refused(address, told, capsys):
    """It asks nobody for a password, so it listens to this machine alone."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["fault-proxy", "embedded", "--listen", address])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
