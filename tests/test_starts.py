# SPDX-License-Identifier: Apache-2.0
"""Every way to start, as real processes: requests counted in, spans counted out.

Files and commands are those of docs/start.md. The exporters' delays are longer than any test, so that what
arrives was sent because a process ended as it should. ``OTEL_CRDB_TEST_STARTS=all`` runs the whole cross product.
"""

import os
import re
import signal

import pytest
from django.db import connection

from .processes import until
from .starts import page
from .starts.running import bank_in, ledger_table
from .starts.tally import Tally

EVERYTHING = os.environ.get("OTEL_CRDB_TEST_STARTS") == "all"
ON_PSYCOPG2 = os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2"
#: The forms that are started on psycopg2 too: how a process starts and ends is not the driver's matter.
ON_EACH_DRIVER = {"test_gunicorn[sync-preload]", "test_script", "test_uvicorn[2]"}

#: The two ways that opentelemetry-instrument finds what exports: a distro's configurator, or none, and then ours.
DISTROS = {
    "distro": {"OTEL_PYTHON_DISTRO": "distro", "OTEL_PYTHON_CONFIGURATOR": "configurator"},
    "no-distro": {"OTEL_PYTHON_DISTRO": "none", "OTEL_PYTHON_CONFIGURATOR": "none"},
}
no_code = pytest.mark.parametrize("bank", ["untouched"], indirect=True, ids=[""])


def one_of_the_product(*values):
    """Mark one form of the cross product, of which the short run starts a part."""
    skip = pytest.mark.skipif(not EVERYTHING, reason="the whole cross product: OTEL_CRDB_TEST_STARTS=all")
    return pytest.param(*values, marks=skip)


@pytest.fixture(scope="module")
def ledger(crdb):
    """The table of payments."""
    with ledger_table():
        yield


@pytest.fixture
def bank(crdb, ledger, tmp_path, request):
    """The bank, not yet started."""
    if ON_PSYCOPG2 and request.node.name not in ON_EACH_DRIVER:
        pytest.skip(
            "how a process starts and ends is not the driver's matter: psycopg 3 has the whole matrix"
        )
    untouched = getattr(request, "param", None) == "untouched"
    with bank_in(tmp_path, crdb.django_settings(), untouched=untouched) as laid_out:
        yield laid_out


def tally(bank):
    with connection.cursor() as cursor:
        cursor.execute("SELECT way FROM starts_ledger WHERE run = %s", [bank.run])
        rows = cursor.fetchall()
    connection.close()
    return Tally(bank, rows)


def serve_and_stop(bank, workers=2):
    bank.ask_until_served_by(workers)
    status = bank.stop()
    tally(bank).check()
    return status


def instrumented(heading, number=0):
    """Return the command of a part of the page as the part on no code has it."""
    variables, words = page.command(heading, number)
    loader_variables, loader_words = page.command("No code")
    return {**loader_variables, **variables}, [loader_words[0], *words]


# --- by a call in a file of the application's ----------------------------------------------------------------


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_gunicorn(bank, worker_class, preload):
    """Two workers tell of each request once, and send the rest when they are stopped."""
    words = ["--worker-class", worker_class, *["--preload"] * preload, "--bind", f"127.0.0.1:{bank.port}"]
    bank.start(page.command("gunicorn"), *words, *["--threads=2"] * (worker_class == "gthread"))
    assert serve_and_stop(bank) == 0


@pytest.mark.parametrize("number", [0, 1], ids=["", "preload"])
def test_gunicorn_with_gevent(bank, number):
    """Greenlets tell of each request once, patched in the worker or before the application is loaded."""
    bank.start(page.command("gunicorn with gevent", number), "--bind", f"127.0.0.1:{bank.port}")
    assert serve_and_stop(bank) == 0


@pytest.mark.parametrize("number", [0, 1], ids=["lazy-apps", "fork"])
def test_uwsgi(bank, number):
    """Workers that load the application, and workers that are forked with it, draw ids of their own."""
    bank.start(page.command("uWSGI", number), "--http-socket", f"127.0.0.1:{bank.port}")
    serve_and_stop(bank)


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn(bank, workers):
    """The asynchronous handler sends the rest before uvicorn raises the signal that stopped it once more."""
    bank.start(page.command("uvicorn"), "--workers", str(workers), "--port", str(bank.port))
    serve_and_stop(bank, workers)


def test_daphne(bank):
    """Django's other asynchronous server."""
    bank.start(page.command("daphne"), "--port", str(bank.port))
    serve_and_stop(bank, 1)


def serve_through_a_reload(bank):
    bank.ask()
    watching = "Watching for file changes"
    once = bank.written().count(watching)
    until(lambda: bank.touch_until("changed, reloading"), "the reload", bank.written)
    until(lambda: bank.written().count(watching) == 2 * once, "the new process", bank.written)
    bank.ask()
    bank.stop(signal.SIGINT, group=True)  # Ctrl-C
    assert len(bank.pids()) == 2
    tally(bank).check()


def test_runserver_reloads(bank):
    """The process before a reload and the one after it both send all they recorded."""
    bank.start(page.command("runserver"), f"127.0.0.1:{bank.port}")
    serve_through_a_reload(bank)


def run_fork_and_pay(bank, command):
    variables, words = command
    bank.start((variables, [*words[:-1], "fork_and_pay"]))
    assert bank.end() == 0, bank.written()
    counted = tally(bank)
    assert counted.paid == {"command": 2, "child": 2}
    counted.check()
    assert len({span.process for span in counted.spans}) == 3


def test_command_that_forks(bank):
    """A command sends what it recorded when it ends, and each child its own and no more."""
    run_fork_and_pay(bank, page.command("Management commands"))


def test_script(bank):
    """A script sends what it recorded when it ends."""
    bank.start(page.command("Scripts and cron"))
    assert bank.end() == 0, bank.written()
    counted = tally(bank)
    assert counted.paid.total() == 1
    counted.check()


def check_tasks(bank, server, worker):
    bank.start(server, "--bind", f"127.0.0.1:{bank.port}")
    answers = [bank.ask("/later/") for _ in range(6)]
    assert bank.stop() == 0
    # Only now: kombu's broker of files may be read while it is written.
    bank.start(worker, "--loglevel", "WARNING")
    until(lambda: tally(bank).paid["task"] == 6, "all tasks have run", bank.written)
    assert bank.stop() == 0
    counted = tally(bank)
    assert counted.paid == {"request": 6, "task": 6}
    counted.check()
    for answer in answers:
        commits = [s for s in counted.spans if s.trace_id == answer["trace"] and s.name == "COMMIT"]
        assert len({span.process for span in commits}) == 2


def test_celery(bank):
    """A task in a prefork worker continues the request's trace; the worker sends the rest when it is stopped."""
    variables, words = page.command("gunicorn")
    words = ["bank.wsgi_with_tasks" if word == "bank.wsgi" else word for word in words]
    check_tasks(bank, (variables, words), page.command("Celery"))


# --- by no code ------------------------------------------------------------------------------------------------


@no_code
@pytest.mark.parametrize(
    ("worker_class", "preload", "distro"),
    [
        ("sync", "", "distro"),
        one_of_the_product("sync", "", "no-distro"),
        one_of_the_product("sync", "--preload", "distro"),
        ("sync", "--preload", "no-distro"),
        one_of_the_product("gthread", "", "distro"),
        one_of_the_product("gthread", "", "no-distro"),
        ("gthread", "--preload", "distro"),
        one_of_the_product("gthread", "--preload", "no-distro"),
        ("gevent", "", "distro"),
        one_of_the_product("gevent", "", "no-distro"),
        one_of_the_product("gevent", "--preload", "distro"),
        ("gevent", "--preload", "no-distro"),
    ],
)
def test_no_code(bank, worker_class, preload, distro):
    """Under opentelemetry-instrument an application with no line of ours tells the same."""
    words = ["--worker-class", worker_class, *[preload] * bool(preload), "--bind", f"127.0.0.1:{bank.port}"]
    command = page.command("No code", 1 if worker_class == "gevent" else 0)
    bank.start(command, *words, variables=DISTROS[distro])
    assert serve_and_stop(bank) == 0


@no_code
def test_no_code_where_gevent_patches_late(bank):
    """Nothing of Django is loaded before gevent has patched in the worker: greenlets keep their own connections."""
    words = ["--worker-class", "gevent", "--bind", f"127.0.0.1:{bank.port}"]
    bank.start(page.command("No code"), *words, variables=DISTROS["no-distro"])
    assert serve_and_stop(bank) == 0


@no_code
def test_no_code_uwsgi(bank):
    """The loader runs in uWSGI's master; its workers are told of the fork."""
    bank.start(instrumented("uWSGI", 1), "--http-socket", f"127.0.0.1:{bank.port}")
    serve_and_stop(bank)


@no_code
@pytest.mark.parametrize("heading", [one_of_the_product("daphne"), "uvicorn"])
def test_no_code_asynchronous(bank, heading):
    """The loader runs in each new interpreter of the server's."""
    bank.start(instrumented(heading), "--port", str(bank.port))
    serve_and_stop(bank, 2 if heading == "uvicorn" else 1)


@no_code
def test_no_code_runserver(bank):
    """``manage.py`` names the settings after the loader has run: they are the application's all the same."""
    bank.start(instrumented("runserver"), f"127.0.0.1:{bank.port}", variables=DISTROS["no-distro"])
    serve_through_a_reload(bank)


@no_code
def test_no_code_command(bank):
    """A command with the settings exported, as where they are named only in ``manage.py``."""
    variables, words = instrumented("Management commands")
    variables |= {**DISTROS["no-distro"], "DJANGO_SETTINGS_MODULE": "bank.settings"}
    run_fork_and_pay(bank, (variables, words))


@no_code
def test_no_code_celery(bank):
    """A worker that is instrumented before it forks sends the rest from each fork."""
    check_tasks(bank, instrumented("gunicorn"), instrumented("Celery"))


@no_code
def test_no_code_elsewhere_than_in_the_directory(bank):
    """The settings are found by gunicorn's ``--chdir``, after the loader has run."""
    site = bank.directory
    bank.directory = site.parent
    variables = {**DISTROS["no-distro"], "DJANGO_SETTINGS_MODULE": "bank.settings"}
    words = ["--chdir", str(site), "--bind", f"127.0.0.1:{bank.port}"]
    bank.start(page.command("No code"), *words, variables=variables)
    assert serve_and_stop(bank) == 0


@no_code
def test_no_code_and_settings_that_fail(bank):
    """Settings that cannot be loaded are told by Django in its own words, and ours are none."""
    with (bank.directory / "bank" / "settings.py").open("a") as settings:
        settings.write("\nfrom django.core.exceptions import ImproperlyConfigured\n")
        settings.write("raise ImproperlyConfigured('the vault is closed')\n")
    bank.start(instrumented("Scripts and cron"), variables=DISTROS["no-distro"])
    assert bank.end() == 1
    assert bank.written().rstrip().endswith("ImproperlyConfigured: the vault is closed")
    assert "otel_crdb: " not in bank.written()


@no_code
def test_no_code_left_out(bank):
    """Left out by OpenTelemetry's variable we change nothing: contrib's request spans keep the names they have."""
    variables = {**DISTROS["distro"], "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_crdb"}
    words = ["--bind", f"127.0.0.1:{bank.port}"]
    bank.start(page.command("No code"), *words, variables=variables, DJANGO_SETTINGS_MODULE="bank.settings")
    bank.ask()
    assert bank.stop() == 0
    (server,) = [span for span in bank.raw.spans if span.kind == "SERVER"]
    assert server["http.method"] == "GET"
    assert not [
        name for span in bank.raw.spans for name in span.attributes if name.startswith("cockroachdb.")
    ]


# --- what befalls processes ------------------------------------------------------------------------------------


def test_fork_amid_a_request(bank):
    """A child of a request tells in the request's trace, under a name of its own, what it did and no more."""
    bank.start(page.command("gunicorn"), "--bind", f"127.0.0.1:{bank.port}")
    answers = [bank.ask("/fork/") for _ in range(3)]
    assert bank.stop() == 0
    assert [answer["child"] for answer in answers] == [0, 0, 0]
    counted = tally(bank)
    assert counted.paid == {"request": 6, "child": 3}
    counted.check()
    for answer in answers:
        commits = [s for s in counted.spans if s.trace_id == answer["trace"] and s.name == "COMMIT"]
        assert len(commits) == 3
        assert len({span.process for span in commits}) == 2


def test_killed_worker(bank):
    """SIGKILL of a worker loses its last batch at most, and nothing of the other worker's."""

    def arrived():
        return {span.trace_id for span in bank.raw.spans if span.kind == "SERVER"}

    soon = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    bank.start(page.command("gunicorn"), "--bind", f"127.0.0.1:{bank.port}", variables=soon)
    bank.ask_until_served_by(2)
    before = {answer["trace"] for answer in bank.answers}
    until(lambda: before <= arrived(), "all that was sent before", bank.written)
    last = bank.ask()
    os.kill(last["pid"], signal.SIGKILL)
    bank.ask_until_served_by(3)
    assert bank.stop() == 0
    tally(bank).check(lost=True)
    assert {answer["trace"] for answer in bank.answers} - arrived() <= {last["trace"]}


def test_recycled_workers(bank):
    """A worker that ends after its number of requests sends what it holds; its follower has a name of its own."""
    bank.start(page.command("gunicorn"), "--max-requests", "3", "--bind", f"127.0.0.1:{bank.port}")
    bank.ask_until_served_by(4)
    assert bank.stop() == 0
    tally(bank).check()


def test_replaced_workers(bank):
    """At SIGHUP the old workers send what they hold, and new ones serve."""
    bank.start(page.command("gunicorn"), "--bind", f"127.0.0.1:{bank.port}")
    bank.ask_until_served_by(2)
    bank.child.send_signal(signal.SIGHUP)
    bank.ask_until_served_by(4)
    assert bank.stop() == 0
    tally(bank).check()


# --- the page --------------------------------------------------------------------------------------------------


def test_every_command_of_the_page_is_started_here():
    """A command that is added to the page is added to this matrix."""
    commands = {heading: len(page.blocks(heading, "sh")) for heading in page.parts()}
    assert commands == {
        "gunicorn": 1,
        "gunicorn with gevent": 2,
        "uWSGI": 2,
        "uvicorn": 1,
        "daphne": 1,
        "runserver": 1,
        "Management commands": 1,  # `migrate` stands for the application's own
        "Scripts and cron": 1,
        "Celery": 1,
        "No code": 2,
        "Forks of your own": 0,
    }


def test_each_part_of_the_page_tells_how_to_verify_it():
    """No part is without it, and each link of the page's table leads to a part."""
    parts = page.parts()
    assert all("**Verify it**" in text for text in parts.values())
    anchors = {heading.lower().replace(" ", "-") for heading in parts}
    assert set(re.findall(r"\]\(#([^)]+)\)", page.PAGE.read_text())) == anchors
