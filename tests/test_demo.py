# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo.receiver import Receiver

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 120


def environment(**variables):
    """The surroundings of a demo: this machine's, without what other tests have set there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_EXPORTER_")}
    driver = {"DRIVER": os.environ["OTEL_CRDB_TEST_DRIVER"]} if "OTEL_CRDB_TEST_DRIVER" in os.environ else {}
    return {**kept, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **driver, **variables}


def start(*command, **variables):
    """Start a demo, its output piped."""
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "demo"))],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def run(*command, **variables):
    """Run a demo to its end; return exit status and output."""
    with start(*command, **variables) as demo:
        output, _ = demo.communicate(timeout=LONGEST)
    return demo.returncode, output


@pytest.fixture(scope="module")
def whole_run():
    """One whole demo that hands its telemetry on: exit status, output, the collector it went to."""
    with Receiver() as collector:
        status, output = run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        yield status, output, collector


def test_the_demo_shows_a_retried_and_a_refused_transfer_and_all_its_checks_pass(whole_run, crdb):
    """It ends well, says which server it ran on, and counts the same in every table and check."""
    status, output, _ = whole_run
    assert status == 0, output
    assert crdb.description in output
    told = re.search(r"(\d+) made, (\d+) refused with 40001 .*\n.* (\d+) spans received", output).groups()
    made, refused, spans = map(int, told)
    assert refused >= 5
    assert spans > 1000
    assert re.search(rf"POST transfer/  409 +{refused} ", output)
    retried = [int(count) for count in re.findall(r"^  committed, [23] attempts +(\d+) ", output, re.M)]
    at_once = int(re.search(r"^  committed, 1 attempt +(\d+) ", output, re.M).group(1))
    given_up = [int(count) for count in re.findall(r"^  failed, \d attempts? +(\d+) ", output, re.M)]
    assert sum(retried) > 0
    assert (at_once + sum(retried), sum(given_up)) == (made, refused)
    assert f"{sum(retried)} committed after retries and answered 201" in output
    assert f"{refused} answers, {refused} exhausted" in output
    retries = re.search(r"span events (\d+), log records \1, \S+ \1, requests' totals \1", output).group(1)
    assert re.search(rf"^  retryable +{int(retries) + refused} +{int(retries) + refused} ", output, re.M)
    assert "All 11 checks passed" in output


def test_the_retried_transfer_is_shown_as_one_transaction_of_several(whole_run):
    """Its logical span was committed and tells of the retry; below it stand the attempts with statements."""
    tree = whole_run[1].partition("Refused, run again, made")[2].partition("Refused: a transfer")[0]
    attempts = int(re.search(r"of (\d) attempts, trace [0-9a-f]{32}", tree).group(1))
    assert attempts > 1
    request, *transactions = re.split(r"^ .*─ transaction \w+ +INTERNAL ", tree, flags=re.M)
    assert re.search(r"^POST transfer/ +SERVER ", request, re.M)
    assert re.search(r"^└─ run_transaction bank\.transfers\.move +INTERNAL ", request, re.M)
    assert f"cockroachdb.txn.attempts {attempts}  cockroachdb.txn.outcome committed" in request
    assert request.count("• cockroachdb.txn.retry") == attempts - 1
    retry = request.partition("• cockroachdb.txn.retry")[2]
    for told in (r"txn\.attempt 1", r"status_code 40001", r"retry\.reason \w+", r"retry\.backoff [\d.]+ m?s"):
        assert re.search(rf"{told}\b", retry), told
    assert len(transactions) == attempts
    for number, transaction in enumerate(transactions, 1):
        assert f"cockroachdb.txn.attempt {number}  cockroachdb.txn.outcome " in transaction
        assert ("outcome committed" in transaction) == (number == attempts)
        assert ("status_code 40001" in transaction) == (number < attempts)
        assert "SELECT bank_account" in transaction
    assert re.search(r"└─ COMMIT +CLIENT ", transactions[-1])


def test_the_refused_transfer_is_shown_with_where_it_was_refused(whole_run):
    """Its logical span failed, and the operation that the database refused says so."""
    tree = whole_run[1].partition("Refused: a transfer")[2].partition("Checked against")[0]
    assert "http.response.status_code 409" in tree
    assert re.search(r"cockroachdb\.txn\.attempts \d  cockroachdb\.txn\.outcome failed", tree)
    assert "cockroachdb.txn.outcome retryable" in tree
    assert "db.response.status_code 40001" in tree


def test_piped_output_is_plain_text(whole_run):
    """No colour, no cursor movement, no line wider than asked for, no trailing blanks."""
    _, output, _ = whole_run
    assert "\x1b" not in output
    assert "\r" not in output
    shown = output.partition("What ran")[2].splitlines()
    assert max(map(len, shown)) <= 100
    assert not [line for line in output.splitlines() if line != line.rstrip()]


def test_a_collector_of_the_users_gets_everything_too(whole_run):
    """With OTEL_EXPORTER_OTLP_ENDPOINT set, as many spans and requests as the demo had arrive there."""
    _, output, collector = whole_run
    spans = int(re.search(r"(\d+) spans received", output).group(1))
    assert len(collector.telemetry.spans) == spans
    handed_on = int(re.search(r"Handed on +(\d+) export requests", output).group(1))
    assert sum(collector.requests.values()) == handed_on
    assert re.search(rf"in\s+{handed_on}\s+export\s+requests", output)


def test_the_demo_fails_in_plain_words_when_telemetry_is_missing():
    """With the SDK switched off the money is right and the demo is not: it says what is missing."""
    status, output = run(OTEL_SDK_DISABLED="true")
    assert status == 1, output
    assert "✓ No money was lost" in output
    assert "✗ The figures come from at least two processes" in output
    assert "✗ Every HTTP request is a SERVER span" in output
    assert "OTEL_SDK_DISABLED" in output
    assert "9 of 11 checks failed" in output
    log = Path(re.search(r"The whole log: (.+)", output).group(1))
    assert "gunicorn" in log.read_text()
    shutil.rmtree(log.parent)


def test_interrupting_the_demo_leaves_nothing_running():
    """Ctrl-C while the bank is being served ends every process that was started."""
    with start() as demo:
        started = []
        for line in demo.stdout:
            if line.startswith("✓ Serve the bank"):
                started = psutil.Process(demo.pid).children(recursive=True)
                demo.send_signal(signal.SIGINT)
                break
        output = demo.stdout.read()
        assert demo.wait(LONGEST) == 130, output
    assert len(started) > 4
    assert psutil.wait_procs(started, timeout=30)[1] == []


def test_a_demo_that_hangs_is_ended_by_its_deadline():
    """However far it has come, at the deadline it ends with a status of its own and says so."""
    hasty = "import sys, demo.__main__ as demo; demo.LONGEST = 1.0; sys.exit(demo.main())"
    status, output = run("-c", hasty)
    assert status == 124, output
    assert "not finished after 1 s" in output
    shutil.rmtree(Path(re.search(r"What the bank wrote: (.+)", output).group(1)).parent)


@pytest.mark.parametrize(
    ("driver", "words"), [("mysql", "there are psycopg and psycopg2"), ("psycopg2", "psycopg2 ")]
)
def test_the_driver_is_the_one_that_was_asked_for(driver, words):
    """DRIVER=psycopg2 runs on psycopg2 where both are installed; an unknown one is refused at once."""
    status, output = run(DRIVER=driver)
    assert status == (0 if driver == "psycopg2" else 2), output
    assert words in output


def test_the_bank_is_an_ordinary_project_but_for_one_call_and_its_retries():
    """Nothing of OpenTelemetry stands in the bank's code outside wsgi.py, where it is put in."""
    bank = ROOT / "demo" / "bank"
    imports = {
        path.name: re.findall(r"^(?:from|import) (?:otel_crdb|opentelemetry).*$", path.read_text(), re.M)
        for path in bank.rglob("*.py")
    }
    assert {name: lines for name, lines in imports.items() if lines} == {
        "settings.py": ["import otel_crdb"],  # LOGGING
        "wsgi.py": ["import otel_crdb"],
        "transfers.py": ["from otel_crdb import run_transaction"],
        "views.py": ["from otel_crdb import AmbiguousCommitError, RetriesExhaustedError"],
    }


ASK = """
import json, sys
from unittest import mock
import django
django.setup()
from django.test import RequestFactory
from bank import transfers, views
from otel_crdb import AmbiguousCommitError
order = {"from": "a", "to": "b", "amount": 1, **json.loads(sys.argv[1])}
request = RequestFactory().post("/transfer/", order, content_type="application/json")
with mock.patch.object(transfers, "run_transaction", side_effect=AmbiguousCommitError("", ())):
    answer = views.transfer(request)
print(answer.status_code, answer.content.decode())
"""


@pytest.mark.parametrize(
    ("fields", "said"),
    [({}, "503 .*perhaps made, perhaps not"), ({"attempts": 4}, "400 .*attempts"), ({"attempts": 0}, "400 ")],
)
def test_the_bank_answers_what_its_customers_cannot_bring_about(fields, said):
    """An unknown COMMIT is said to be unknown; more attempts than the bank's own limit are not to be had."""
    status, output = run(
        "-c",
        ASK,
        json.dumps(fields),
        DJANGO_SETTINGS_MODULE="bank.settings",
        PYTHONPATH=str(ROOT / "demo"),
    )
    assert status == 0, output
    assert re.search(rf"^{said}", output, re.M), output
