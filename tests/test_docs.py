# SPDX-License-Identifier: Apache-2.0
"""Every snippet of every page is run by a test, here or in one that is named here; every link leads somewhere.

Here: a snippet of Python is executed, as it stands unless the test says what it puts in; commands are looked at word by
word (tests/docs/commands.py) where they are not typed. A block that nobody runs makes this red.
"""

import ast
import asyncio
import contextlib
import logging
import os
import re
import sys
import types

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.http import HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.views import View
from opentelemetry.baggage.propagation import W3CBaggagePropagator

import otel_crdb
from otel_crdb import config, delivery

from .docs import commands, pages, trees
from .project.models import Account
from .retried_views import SERIALIZATION, Urls, balance
from .servers import earn, led_through_proxy
from .telemetry import Telemetry
from .test_pytest_plugin import PYTEST, Project

ON_PSYCOPG2 = os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2"
once = pytest.mark.skipif(ON_PSYCOPG2, reason="does not depend on the driver")

#: Pages all of whose blocks are run by a test of their own.
PAGES_OF_OTHERS = {
    "docs/backends.md": "e2e/test_docs_overlays.py",
    "docs/stack.md": "e2e/test_stack_page.py",
    "docs/start.md": "tests/starts/page.py",
    "docs/testing.md": "tests/test_pytest_plugin.py",
    "docs/tutorial.md": "tests/test_tutorial.py",
}
#: Blocks that are run by another test, by how they begin.
BLOCKS_OF_OTHERS = {
    ("docs/beside.md", "# bank/cockroachdb/base.py"): "tests/test_beside.py",
    ("docs/beside.md", "python -c"): "tests/test_beside.py",
    ("docs/options.md", "^/(_?health"): "tests/test_options.py",
    ("docs/logs.md", "# bank/settings.py"): "tests/test_logs_page.py",
    ("docs/logs.md", "LOGGING = {"): "tests/test_logs_page.py",
    ("docs/logs.md", "LOGGING["): "tests/test_logs_page.py",
    ("docs/logs.md", "2026-"): "tests/test_logs_page.py",
    ("docs/logs.md", "WARNING otel_crdb"): "tests/test_logs_page.py",
}
#: Blocks that are run here, by how they begin: which test.
BLOCKS_OF_OURS = {}
COMMANDS = ("", "sh", "bash", "console")


def runs(page, *beginnings):
    """Say of a test which blocks it runs."""

    def claim(test):
        for beginning in beginnings:
            BLOCKS_OF_OURS[page, beginning] = test.__name__
        return test

    return claim


def block(page, beginning):
    """Return the only block of a page that begins so."""
    (found,) = [each for each in pages.blocks(page) if each.text.startswith(beginning)]
    return found


def run(snippet, names, **changes):
    """Execute a block among these names; tracebacks show its page and line. Return the names after it."""
    text = snippet.text
    for old, new in changes.items():
        text = text.replace(old, new)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile("\n" * snippet.line + text, snippet.page, "exec", flags, dont_inherit=True)
    result = eval(code, names)
    if result is not None:  # it awaits
        asyncio.run(result)
    return names


# --- README.md -------------------------------------------------------------------------------------------------


@once
@runs("README.md", "# wsgi.py")
def test_the_two_lines(tmp_path):
    """With the README's file a process has its handler, and is instrumented."""
    project = bank(tmp_path)
    project.write("bank/wsgi.py", block("README.md", "# wsgi.py").text)
    status, said = project.run(
        "-c",
        "import bank.wsgi, otel_crdb.signals; assert otel_crdb.signals.current; print(bank.wsgi.application)",
        **SILENT,
    )
    assert status == 0, said
    assert "WSGIHandler" in said


SILENT = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


def bank(folder):
    """Lay out the project of docs/testing.md."""
    project = Project(folder)
    for each in pages.blocks("docs/testing.md"):
        if each.file:
            project.write(each.file, each.text)
    return project


@runs("README.md", "POST transfer/")
@runs("docs/retries.md", "POST transfer/")
@pytest.mark.parametrize("page", ["README.md", "docs/retries.md"])
def test_trace_of_a_retried_transfer(crdb, accounts, telemetry, page):
    """A transfer whose COMMIT is refused once leaves the trace that the page draws."""

    def transfer():
        list(Account.objects.using("other").all())
        earn(using="other")

    def view(request):
        otel_crdb.run_transaction(transfer, using="other", name="bank.views.transfer")
        return HttpResponse("paid")

    with override_settings(ROOT_URLCONF=Urls(path("transfer/", view))), led_through_proxy(crdb) as proxy:
        with proxy.inject(SERIALIZATION, on="commit"):
            assert Client().post("/transfer/").status_code == 200
    picture = trees.drawn(block(page, "POST transfer/").text)
    names = {"transaction bank": f"transaction {crdb.database}"}
    names |= {f"{word} bank_account": f"{word} account" for word in ("SELECT", "UPDATE")}
    trees.compare(telemetry, picture, telemetry.one("POST transfer/"), names)


@once
@runs("README.md", "otel_crdb.instrument(")
@runs("docs/options.md", "# bank/telemetry.py", "# bank/settings.py")
def test_functions_that_add(accounts, monkeypatch):
    """The functions of docs/options.md, by the names in its settings and in the README, add to what is told."""
    functions = types.ModuleType("bank.telemetry")
    run(block("docs/options.md", "# bank/telemetry.py"), vars(functions))
    monkeypatch.setitem(sys.modules, "bank", types.ModuleType("bank"))
    monkeypatch.setitem(sys.modules, "bank.telemetry", functions)
    settings = run(block("docs/options.md", "# bank/settings.py"), {})
    with override_settings(OTEL_CRDB=settings["OTEL_CRDB"]), Telemetry() as telemetry:
        Client().get("/read/", HTTP_X_TENANT="ann")
        assert telemetry.one("GET read/").attributes["bank.tenant"] == "ann"
        assert telemetry.one("SELECT account").attributes["bank.alias"] == "default"
    telemetry = Telemetry()
    ours = types.SimpleNamespace(instrument=telemetry.instrument)
    try:
        run(block("README.md", "otel_crdb.instrument("), {"otel_crdb": ours})
        Client().get("/static/bank.css")
        Client().get("/read/", HTTP_X_TENANT="ben")
        (span,) = [span for span in telemetry.spans if span.kind.name == "SERVER"]
        assert span.attributes["bank.tenant"] == "ben"
    finally:
        otel_crdb.uninstrument()


@once
@runs("README.md", "@pytest.mark.django_db")
@runs("docs/retries.md", "import pytest")
def test_tests_to_copy(tmp_path, crdb):
    """The README's test and that of docs/retries.md pass, in the project of docs/testing.md."""
    project = bank(tmp_path)
    project.write("bank/urls.py", project_file("bank/urls.py") + VIEW_TO_PAY)
    (readme, retries) = block("README.md", "@pytest.mark"), block("docs/retries.md", "import pytest")
    for number, text in enumerate([f"import pytest\n{ACCOUNTS}\n{readme.text}", retries.text]):
        project.write(f"tests/test_{number}.py", text)
    (tmp_path / "tests" / "test_failures.py").unlink()
    status, said = project.run(*PYTEST, "tests", OTEL_CRDB_TEST_URL=crdb.url)
    assert status == 0, said
    assert "2 passed" in said


ACCOUNTS = """
from bank.models import Account

@pytest.fixture(autouse=True)
def accounts(transactional_db):
    Account.objects.create(owner="ann", balance=100)
    Account.objects.create(owner="ben", balance=100)
"""
VIEW_TO_PAY = """
from django.http import HttpResponse
from otel_crdb import retry_view
from bank.models import Account

@retry_view
def pay(request):
    Account.objects.create(owner="carl", balance=int(request.POST["amount"]))
    return HttpResponse("paid")

urlpatterns += [path("pay/", pay)]
"""


def project_file(name):
    """Return the text of a file of docs/testing.md."""
    (found,) = [each for each in pages.blocks("docs/testing.md") if each.file == name]
    return found.text


@once
@runs("docs/delivery.md", "# bank/settings.py")
def test_headers_of_strangers_stay_out_of_the_log(caplog):
    """With the page's LOGGING, a header that OpenTelemetry cannot read is logged no more; before, it was."""
    logged = logging.getLogger("opentelemetry.baggage.propagation")

    def read_huge_header():
        caplog.clear()
        W3CBaggagePropagator().extract({"baggage": "x" * 9000})
        return len(caplog.records)

    assert read_huge_header() == 1
    loggers = run(block("docs/delivery.md", "# bank/settings.py"), {})["LOGGING"]["loggers"]
    try:
        logged.setLevel(loggers[logged.name]["level"])
        assert read_huge_header() == 0
    finally:
        logged.setLevel(logging.NOTSET)


@once
@runs("README.md", "from otel_crdb.testing import server")
def test_server_for_tests(crdb, monkeypatch):
    """The README's block gives an entry of `DATABASES` for a running server."""
    monkeypatch.setenv("OTEL_CRDB_TEST_URL", crdb.url)
    databases = run(block("README.md", "from otel_crdb.testing import server"), {})["DATABASES"]
    assert databases["default"]["PORT"] == crdb.port


# --- docs/retries.md -------------------------------------------------------------------------------------------

RETRIES = "docs/retries.md"


class InsufficientFundsError(Exception):
    """What an application raises itself."""


@pytest.fixture
def names(accounts):
    """What the snippets of docs/retries.md take as known; the accounts are 1 and 2."""
    Account.objects.all().delete()
    Account.objects.bulk_create(
        [Account(id=number, email=f"{number}@example.com", balance=100) for number in (1, 2)]
    )
    known = {
        "__name__": "bank.ledger",
        "Account": Account,
        "HttpResponse": HttpResponse,
        "InsufficientFunds": InsufficientFundsError,
        "OperationalError": OperationalError,
        "View": View,
        "connection": connection,
        "otel_crdb": otel_crdb,
        "receipts": [],
        "transaction": transaction,
    }
    known["send_receipt"] = known["receipts"].append
    return known


def balances():
    return dict(Account.objects.values_list("id", "balance"))


@runs(RETRIES, "from django.db import transaction", "from otel_crdb import arun_transaction")
def test_run_transaction_and_its_kin(names):
    """The first snippet moves money and sends one receipt; the second does so by decorator, and from a coroutine."""
    run(block(RETRIES, "from django.db import transaction"), names)
    assert balances() == {1: 50, 2: 150}
    assert names["receipts"] == [1]
    with pytest.raises(InsufficientFundsError):
        otel_crdb.run_transaction(names["transfer"], 1, 2, 500)
    run(block(RETRIES, "from otel_crdb import arun_transaction"), names)
    assert balances() == {1: 0, 2: 200}
    names["pay"](2, 30)
    assert names["receipts"] == [1, 1, 2]


@runs(RETRIES, "otel_crdb.instrument(retry_atomic")
def test_option_that_has_views_run_again(names):
    """The option stands in the configuration in force."""
    told = []
    run(
        block(RETRIES, "otel_crdb.instrument(retry_atomic"),
        {
            "otel_crdb": types.SimpleNamespace(
                instrument=lambda **options: told.append(config.Config(**options))
            )
        },
    )
    assert [each.retry_atomic_requests for each in told] == [True]


@runs(RETRIES, "from otel_crdb import retry_view")
def test_views_that_are_run_again(names, telemetry):
    """Each view of the snippet is one that is retried: its request tells of an attempt."""
    snippet = block(RETRIES, "from otel_crdb import retry_view")
    body = "(request): return HttpResponse('paid')"
    method = "class PayView(View):\n    def post(self, request): return HttpResponse('paid')"
    run(snippet, names, **{"(request): ...": body, "class PayView(View): ...": method})
    patterns = [
        path("pay/", names["pay"]),
        path("pay-async/", names["pay_async"]),
        path("pay-class/", names["PayView"].as_view()),
    ]
    with override_settings(ROOT_URLCONF=Urls(*patterns)):
        assert Client().post("/pay/").content == b"paid"
        assert asyncio.run(AsyncClient().post("/pay-async/")).content == b"paid"
        assert Client().post("/pay-class/").content == b"paid"
    attempts = [
        span.attributes["cockroachdb.request.attempts"] for span in telemetry.spans if span.parent is None
    ]
    assert attempts == [1, 1, 1]


@runs(RETRIES, "def execute_with_retry")
def test_loop_that_looks_at_pgcode(names, crdb):
    """As the page says: with psycopg 3 the loop never runs anything again; with psycopg2 it does, at once."""
    calls = []

    def pay():
        calls.append(None)
        Account.objects.using("other").filter(id=1).update(balance=0)

    other = types.SimpleNamespace(atomic=lambda: transaction.atomic("other"))
    looped = run(block(RETRIES, "def execute_with_retry"), {**names, "transaction": other})
    with led_through_proxy(crdb) as proxy, proxy.inject(SERIALIZATION, on="commit"):
        expected = contextlib.nullcontext() if ON_PSYCOPG2 else pytest.raises(OperationalError)
        with expected:
            looped["execute_with_retry"](pay)
    assert len(calls) == (2 if ON_PSYCOPG2 else 1)


def retry(retry_on_exception):
    """Do what the decorator of that name does in the libraries that have it."""

    def decorate(function):
        def repeated():
            for _ in range(3):
                try:
                    return function()
                except Exception as error:
                    if not retry_on_exception(error):
                        raise
            raise AssertionError("three times in vain")

        return repeated

    return decorate


@runs(RETRIES, "@retry(")
def test_retry_on_any_operational_error_pays_twice(names, crdb):
    """As the page says: where COMMIT took effect and its answer was lost, such a retry pays twice."""
    snippet = block(RETRIES, "@retry(")
    decorated = pages.Block(snippet.page, snippet.line, "python", f"{snippet.text}def pay(): earn_one()\n")

    def earn_one():
        with transaction.atomic("other"):
            Account.objects.using("other").filter(id=1).update(balance=F("balance") + 1)

    names = run(decorated, names | {"retry": retry, "earn_one": earn_one})
    with led_through_proxy(crdb) as proxy, proxy.inject("lost_commit.applied"):
        names["pay"]()
    assert balances()[1] == 102


@runs(RETRIES, "cursor.execute(")
def test_builtin_that_is_not_there(names):
    """As the page says: there is no such function, and the statement fails."""
    with connection.cursor() as cursor, pytest.raises(DatabaseError):
        run(block(RETRIES, "cursor.execute("), {**names, "cursor": cursor})


@runs(RETRIES, "run_transaction(func)")
def test_what_they_all_become(accounts):
    """One line in place of all of them."""
    run(block(RETRIES, "run_transaction(func)"), {"run_transaction": otel_crdb.run_transaction, "func": earn})
    assert balance() == 101


# --- docs/delivery.md ------------------------------------------------------------------------------------------


@once
@runs("docs/delivery.md", "WARNING otel_crdb: ")
def test_lines_of_a_spell_of_trouble(caplog, monkeypatch):
    """What is said when trouble begins and when it is over has the words of the page."""
    monkeypatch.setattr(delivery, "CALM_SECONDS", 0)
    spell = delivery.Spell("traces")
    with caplog.at_level(logging.INFO, "otel_crdb.delivery"):
        spell.trouble("http://collector:4318/v1/traces: ConnectionRefusedError: refused")
        spell.lost = 512
        spell.well()
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    shown = block("docs/delivery.md", "WARNING otel_crdb: ").text.splitlines()
    for line, pattern in zip(said, shown, strict=True):
        assert re.fullmatch(as_pattern(pattern), line), line


def as_pattern(shown):
    """Return a line of a page as a pattern: … is anything, a number of seconds any number."""
    words = " ".join(re.sub(r"\b42 s\b", "… s", shown).split())
    return ".*".join(map(re.escape, words.split("…")))


# --- other pages -----------------------------------------------------------------------------------------------


@once
@runs("docs/beside.md", 'DATABASES = {"default": {"ENGINE"')
def test_setting_of_a_backend_of_ones_own():
    """The setting names the folder of the backend that stands above it."""
    engine = (
        block("docs/beside.md", "# bank/cockroachdb/base.py").file.removesuffix("/base.py").replace("/", ".")
    )
    snippet = block("docs/beside.md", 'DATABASES = {"default": {"ENGINE"')
    assert run(snippet, {}, **{", ...": ""})["DATABASES"]["default"] == {"ENGINE": engine}


@once
@runs("docs/doctor.md", "# bank/settings.py")
def test_application_of_the_doctor(tmp_path):
    """With the setting, manage.py has the doctor's command and the checks find nothing wrong."""
    project = bank(tmp_path)
    settings = run(block("docs/doctor.md", "# bank/settings.py"), {})
    project.write(
        "bank/settings.py",
        project_file("bank/settings.py") + f"INSTALLED_APPS += {settings['INSTALLED_APPS']}\n",
    )
    status, said = project.run("manage.py", "crdb_doctor", "--help", DJANGO_SETTINGS_MODULE="bank.settings")
    assert status == 0, said
    assert "--timeout" in said


@once
@runs("docs/doctor.md", "otel_crdb 0.1.0 on")
def test_report_of_the_doctor(tmp_path, crdb):
    """The doctor's report on the bank has the parts and the lines of the page's example."""
    project = bank(tmp_path)
    settings = project_file("bank/settings.py") + f'DATABASES = {{"default": {crdb.django_settings()!r}}}\n'
    project.write("bank/settings.py", settings)
    project.write("bank/wsgi.py", block("README.md", "# wsgi.py").text)
    arguments = ("doctor", "--settings", "bank.settings", "--wsgi", "bank.wsgi:application", "--timeout", "5")
    _, said = project.run(
        "-m",
        "otel_crdb",
        *arguments,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_CRDB_QUERY_TEXT_LIMIT="100",
    )
    example = shape(block("docs/doctor.md", "otel_crdb 0.1.0 on").text)
    seen = shape(said)
    assert [line for line in example if line not in seen] == [], said


def shape(report):
    """Return the parts of a report, and of each line what it is about: its mark and its label."""
    parts = re.findall(r"^\w+$", report, re.MULTILINE)
    return parts + re.findall(r"^  (?:ok|note|WARN|FAIL) +\S+(?: signals)?", report, re.MULTILINE)


@once
@runs("docs/soak.md", " 4 workers")
def test_picture_of_the_soak():
    """The picture has the numbers of workers and threads that a soak has by itself."""
    from soak import __main__ as soak

    arguments, sys.argv = sys.argv, ["soak"]
    try:
        options = soak._options()
    finally:
        sys.argv = arguments
    picture = block("docs/soak.md", " 4 workers").text
    assert f"{options.workers} workers" in picture
    assert f"{options.threads} threads" in picture


@once
@runs("docs/architecture.md", " application ── OTLP")
def test_the_picture_of_the_stack():
    """Both of the agent's files stand in it, and are there."""
    picture = block("docs/architecture.md", " application ── OTLP").text
    named = set(re.findall(r"collector/\w+\.yaml", picture))
    assert named == {"collector/agent.yaml", "collector/cockroachdb.yaml"}
    assert all((pages.ROOT / name).is_file() for name in named)


@once
@runs("docs/architecture.md", "wsgi.py ──", " rules ────")
@pytest.mark.parametrize(
    ("beginning", "folder"), [("wsgi.py ──", "otel_crdb"), (" rules ────", "otel_crdb/testing")]
)
def test_pictures_of_the_architecture(beginning, folder):
    """Every room in the pictures is a module."""
    words = set(re.findall(r"[a-z_]+", block("docs/architecture.md", beginning).text))
    rooms = {path.stem for path in (pages.ROOT / folder).glob("*.py")}
    assert len(words & rooms) >= 3
    assert {word for word in words if "_" in word} <= rooms | {"set_autocommit"}


# --- all pages -------------------------------------------------------------------------------------------------


def runner_of(each):
    """Return the test that runs a block, or None."""
    if each.page in PAGES_OF_OTHERS:
        return PAGES_OF_OTHERS[each.page]
    for claims in (BLOCKS_OF_OTHERS, BLOCKS_OF_OURS):
        for (page, beginning), test in claims.items():
            if each.page == page and each.text.startswith(beginning):
                return test
    if each.language in COMMANDS:
        return "test_commands_could_be_typed"
    return None


COMMAND_BLOCKS = [each for each in pages.all_blocks() if runner_of(each) == "test_commands_could_be_typed"]


@once
def test_every_block_is_run_by_a_test():
    """A fenced block that nobody runs has no place on a page."""
    assert [str(each) for each in pages.all_blocks() if runner_of(each) is None] == []


@once
@pytest.mark.parametrize("each", COMMAND_BLOCKS, ids=str)
def test_commands_could_be_typed(each):
    """What a block would have a reader type is installed, has these options, reads these variables."""
    commands.check(each)


@once
def test_runners_are_there():
    """The tests that are named as running a page do read it, and every claim has its block."""
    for page, test in {
        **PAGES_OF_OTHERS,
        **{page: test for (page, _), test in BLOCKS_OF_OTHERS.items()},
    }.items():
        assert page.removeprefix("docs/") in (pages.ROOT / test).read_text(), f"{test} does not read {page}"
    for page, beginning in (*BLOCKS_OF_OTHERS, *BLOCKS_OF_OURS):
        assert block(page, beginning)


@once
@pytest.mark.parametrize("page", pages.names())
def test_links_lead_somewhere(page):
    """Every link within the project leads to a file, and to a heading that is there."""
    here = (pages.ROOT / page).parent
    for link in pages.links(page):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (here / name).resolve() if name else pages.ROOT / page
        assert target.exists(), f"{page}: {link} leads nowhere"
        if anchor:
            headings = pages.anchors(str(target.relative_to(pages.ROOT)))
            assert anchor in headings, f"{page}: {link}: there is no such heading"


@once
@pytest.mark.parametrize("page", pages.names())
def test_variables_are_read_by_somebody(page):
    """Every variable of OpenTelemetry's or ours that a page names is one."""
    for name in set(re.findall(r"\bOTEL_[A-Z_]*[A-Z]\b", pages.text_of(page))):
        if not name.endswith("OTEL_CRDB"):
            commands.check_variable(name)


#: A reader of these asks for something else than telemetry; drills and faults are verified by the drills themselves.
WITHOUT_VERIFY = {"docs/faults.md", "docs/architecture.md", "docs/drills.md", "docs/soak.md"}


@once
@pytest.mark.parametrize("page", sorted(set(pages.names()) - WITHOUT_VERIFY))
def test_page_says_how_to_verify_it(page):
    """Each page has a part, or a line in its parts, that says how to see that it is true."""
    assert re.search(r"^## Verify it|\*\*Verify it\*\*", pages.prose(page), re.MULTILINE)


@pytest.fixture(autouse=True)
def _connections_closed(_tables):
    yield
    for each in connections.all():
        each.close()
