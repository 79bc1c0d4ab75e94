# SPDX-License-Identifier: Apache-2.0
"""Views that are run again: when, how often, and what is answered in the end."""

import asyncio
import logging
import os
import subprocess
import sys
import unittest
from pathlib import Path

import django
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.core.handlers.base import BaseHandler
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse
from django.test import RequestFactory, TestCase
from django.utils.decorators import method_decorator
from django.utils.functional import cached_property
from django.views import View
from opentelemetry.trace import SpanKind, StatusCode

import otel_crdb
from otel_crdb import AmbiguousCommitError, RetriesExhaustedError, retry_view, run_transaction

from .project.models import Account
from .retried_views import SERIALIZATION, apost, atomic_requests, balance, counting, paying, post
from .servers import earn, led_through_proxy
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts", "naps", "quiet_requests")


@pytest.fixture
def proxy(accounts, crdb):
    """A fault proxy before the server of the default alias."""
    asyncio.run(sync_to_async(connections.close_all)())  # what an earlier test has left open in that thread
    with led_through_proxy(crdb, "default") as proxy:
        yield proxy


@pytest.fixture
def optioned():
    """An instrumented process whose ATOMIC_REQUESTS are retried, and both CockroachDB aliases free."""
    with Telemetry(retry_atomic_requests=True) as telemetry, atomic_requests("default"):
        yield telemetry


def server_span(telemetry):
    (span,) = [span for span in telemetry.spans if span.kind is SpanKind.SERVER]
    return span


# --- whether it is run again --------------------------------------------------------------------


@pytest.mark.parametrize("on", ["statement", "commit"])
def test_view_of_atomic_requests_is_run_again_by_option(optioned, proxy, naps, on):
    """A view that ATOMIC_REQUESTS makes atomic is run again where its transaction was refused, and pays once."""
    view, calls = counting(paying)
    proxy.inject(SERIALIZATION, on=on, times=2)
    response = post(view)
    assert (response.status_code, response.content) == (200, b"paid")
    assert len(calls) == 3
    assert len(naps) == 2
    assert balance() == 101


def test_view_of_atomic_requests_is_run_once_without_the_option(telemetry, proxy):
    """Retrying whole views is opt-in: without the option a refused view is Django's 500."""
    view, calls = counting(paying)
    proxy.inject(SERIALIZATION, on="commit")
    with atomic_requests("default"):
        assert post(view).status_code == 500
    assert len(calls) == 1
    assert balance() == 100


def test_option_lets_views_be_that_are_not_atomic(optioned, proxy):
    """A view marked non-atomic has no transaction of Django's, and is not run again."""
    view, calls = counting(paying)
    proxy.inject(SERIALIZATION, matching="UPDATE")
    assert post(transaction.non_atomic_requests(view)).status_code == 500
    assert len(calls) == 1


def test_option_takes_options(proxy):
    """The option may be a mapping: how often, for how long, and the rest of a retry's options."""
    view, calls = counting(paying)
    proxy.inject(SERIALIZATION, on="commit", times=None)
    with Telemetry(retry_atomic_requests={"max_attempts": 2}), atomic_requests("default"):
        assert post(view).status_code == 503
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("option", "error", "said"),
    [
        (1, TypeError, "retry_atomic_requests is a bool or options of retry_view"),
        ({"max_attempts": 0}, ValueError, "max_attempts is at least 1"),
        ({"max_attempt": 2}, TypeError, "max_attempt"),
    ],
)
def test_option_that_cannot_be_meant_is_refused(option, error, said):
    """A wrong value is an error where instrument() is called, and leaves nothing behind."""
    before = dict(vars(BaseHandler))
    with pytest.raises(error, match=said), Telemetry(retry_atomic_requests=option):
        pass
    assert vars(BaseHandler)["make_view_atomic"] is before["make_view_atomic"]
    assert not otel_crdb.CockroachDBInstrumentor().is_instrumented_by_opentelemetry


def test_uninstrument_gives_django_its_method_back(accounts):
    """After uninstrument() Django makes views atomic by its own method."""
    before = BaseHandler.make_view_atomic
    with Telemetry(retry_atomic_requests=True):
        assert BaseHandler.make_view_atomic is not before
    assert BaseHandler.make_view_atomic is before


@pytest.mark.parametrize("on", ["statement", "commit"])
@pytest.mark.parametrize("instrumented", [True, False])
def test_decorated_view_is_run_again(proxy, request, instrumented, on):
    """@retry_view runs one view again, with and without instrument(), with and without ATOMIC_REQUESTS."""
    if instrumented:
        request.getfixturevalue("telemetry")
    proxy.inject(SERIALIZATION, on=on)
    view, calls = counting(paying)
    try:
        assert post(retry_view(view)).content == b"paid"
        proxy.inject(SERIALIZATION, on=on)
        with atomic_requests("default"):
            assert post(retry_view(max_attempts=2)(view)).content == b"paid"
    finally:
        if not instrumented:
            from otel_crdb import recording, signals

            recording.stop()
            signals.stop()
    assert len(calls) == 4
    assert balance() == 102


def test_class_based_views(telemetry, proxy):
    """A class's view is decorated as as_view() makes it, or by method_decorator; and is named after its class."""

    class Pay(View):
        def post(self, request):
            return paying(request)

    @method_decorator(retry_view, name="dispatch")
    class Decorated(Pay):
        pass

    for number, view in enumerate((retry_view(Pay.as_view()), Decorated.as_view()), 1):
        telemetry.clear()
        proxy.inject(SERIALIZATION, on="commit")
        with atomic_requests("default"):
            assert post(view).content == b"paid"
        assert balance() == 100 + number
        (logical,) = [span for span in telemetry.spans if span.name.startswith("run_transaction")]
        assert logical.name.endswith(
            ("test_class_based_views.<locals>.Pay", "View.dispatch", "Decorated.dispatch")
        )


def test_method_without_method_decorator_is_refused(telemetry):
    """On a method the first argument is no request: what to write instead is said."""

    class Pay(View):
        @retry_view
        def dispatch(self, request):
            """Never get here."""

    with pytest.raises(TypeError, match="method_decorator"):
        Pay.as_view()(RequestFactory().post("/"))


@pytest.mark.parametrize(
    "error", [Http404("no"), PermissionDenied("no"), ValueError("no"), IntegrityError("no")]
)
def test_exceptions_of_the_application_pass_through(telemetry, proxy, error):
    """What the view raises itself is answered as ever, after one attempt, and nothing is written."""

    def refusing(request):
        earn()
        raise error

    view, calls = counting(refusing)
    expected = {Http404: 404, PermissionDenied: 403}.get(type(error), 500)
    assert post(retry_view(view)).status_code == expected
    assert len(calls) == 1
    assert balance() == 100


def test_view_that_answers_an_error_itself_has_its_way(optioned, proxy):
    """A view that catches a constraint's error and says 409 is not run again; it is rolled back, as by Django."""

    def doubling(request):
        earn()
        try:
            Account.objects.create(email="a@example.com")
        except IntegrityError:
            return HttpResponse("taken", status=409)
        return HttpResponse("paid")

    view, calls = counting(doubling)
    response = post(view)
    assert (response.status_code, response.content) == (409, b"taken")
    assert len(calls) == 1
    assert balance() == 100
    assert (
        optioned.one("run_transaction " + calls_name(doubling)).attributes["cockroachdb.txn.outcome"]
        == "rolled_back"
    )


def calls_name(view):
    return f"{counting.__module__}.counting.<locals>.counted"


def test_view_that_swallows_a_refusal_is_run_again(optioned, proxy):
    """A view that catches what calls for a retry, and answers as if all were well, is run again all the same."""

    def swallowing(request):
        try:
            earn()
        except OperationalError:
            return HttpResponse("later", status=409)
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, matching="UPDATE")
    assert post(swallowing).content == b"paid"
    assert balance() == 101


def test_view_whose_connection_was_closed_has_not_gone_well(optioned):
    """What a view wrote and lost without an error is not answered as if it were written."""

    def closing(request):
        earn()
        connection.close()
        return HttpResponse("paid")

    assert post(closing).status_code == 500
    assert balance() == 100


def test_view_that_asks_for_rollback_has_its_way(optioned, proxy):
    """set_rollback(True) rolls back and the response is sent, in one attempt."""

    def undoing(request):
        earn()
        transaction.set_rollback(True)
        return HttpResponse("never mind")

    view, calls = counting(undoing)
    assert post(view).content == b"never mind"
    assert len(calls) == 1
    assert balance() == 100


def test_hooks_on_commit_run_once(optioned, proxy):
    """What waits for COMMIT runs once, for the attempt that was committed."""
    sent = []

    def announcing(request):
        earn()
        transaction.on_commit(lambda: sent.append("receipt"))
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit", times=2)
    assert post(announcing).content == b"paid"
    assert sent == ["receipt"]


# --- middleware ---------------------------------------------------------------------------------

seen = []


class Watching:
    """Middleware that notes each of its calls."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        seen.append("request")
        response = self.get_response(request)
        seen.append(response.status_code)
        return response

    def process_view(self, request, view, args, kwargs):
        seen.append("view")

    def process_exception(self, request, exception):
        seen.append(type(exception).__name__)
        return HttpResponse("mine", status=418) if request.headers.get("X-Answer") else None

    def process_template_response(self, request, response):
        seen.append("template")
        return response


WATCHING = (f"{__name__}.Watching",)


@pytest.fixture
def watched():
    """What the middleware has seen."""
    seen.clear()
    return seen


def test_middleware_runs_once(optioned, proxy, watched):
    """However often the view runs, its request passes the middleware once."""
    proxy.inject(SERIALIZATION, on="commit", times=3)
    assert post(paying, middleware=WATCHING).content == b"paid"
    assert watched == ["request", "view", 200]


def test_process_exception_sees_the_last_word_once_and_may_answer_it(optioned, proxy, watched):
    """Exhausted retries reach process_exception once; where that answers, its answer is sent."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    assert post(paying, middleware=WATCHING).status_code == 503
    assert watched == ["request", "view", "RetriesExhaustedError", 503]
    watched.clear()
    assert post(paying, middleware=WATCHING, headers={"X-Answer": "1"}).status_code == 418
    assert watched == ["request", "view", "RetriesExhaustedError", 418]


def test_template_is_rendered_once_after_commit(optioned, proxy, watched):
    """A template response is rendered outside, once, as Django does."""

    class Template:
        def render(self, context, request=None):
            watched.append("render")
            return "rendered"

    def templated(request):
        earn()
        return SimpleTemplateResponse("any")

    proxy.inject(SERIALIZATION, on="commit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTemplateResponse, "resolve_template", lambda *_: Template())
        assert post(templated, middleware=WATCHING).content == b"rendered"
    assert watched == ["request", "view", "template", "render", 200]


def test_csrf_is_checked_once_and_its_token_is_there_for_each_attempt(optioned, proxy):
    """CSRF's check stands outside; an attempt that changed the token has it put back."""
    from django.middleware.csrf import get_token, rotate_token
    from django.test import Client

    tokens = []

    def rotating(request):
        tokens.append((get_token(request), request.META["CSRF_COOKIE"]))
        rotate_token(request)
        earn()
        return HttpResponse("paid")

    csrf = ("django.middleware.csrf.CsrfViewMiddleware",)
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    assert post(rotating, middleware=csrf, client=client).status_code == 403
    assert tokens == []
    client.cookies["csrftoken"] = secret = "a" * 32
    proxy.inject(SERIALIZATION, on="commit")
    response = post(rotating, {"csrfmiddlewaretoken": secret}, middleware=csrf, client=client)
    assert response.content == b"paid"
    assert [cookie for _, cookie in tokens] == [secret, secret]
    assert response.cookies["csrftoken"].value not in (secret, "")


# --- what is answered in the end ----------------------------------------------------------------


def test_exhausted_retries_are_503_with_retry_after(optioned, proxy):
    """Nothing was applied, and the same request may go through a little later: that is what is answered."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    view, calls = counting(paying)
    response = post(view)
    assert response.status_code == 503
    assert response["Retry-After"] == "2"
    assert b"nothing was changed" in response.content
    assert len(calls) == 5
    proxy.clear()
    assert balance() == 100


def test_page_of_exhausted_retries_is_the_projects_503_html(optioned, proxy):
    """Where the project has a template 503.html, that is the page."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    templates = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"503.html": "Closed."})]},
        }
    ]
    assert post(paying, settings={"TEMPLATES": templates}).content == b"Closed."


def test_page_is_rendered_for_the_request(optioned, proxy):
    """The page may use what context processors make of the request; Retry-After is at least a second."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    loaders = [("django.template.loaders.locmem.Loader", {"503.html": "{{ request.path }}"})]
    options = {"loaders": loaders, "context_processors": ["django.template.context_processors.request"]}
    engine = {"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": options}
    response = post(retry_view(backoff_cap=0)(paying), settings={"TEMPLATES": [engine]})
    assert (response.content, response["Retry-After"]) == (b"/view/", "1")


def test_error_that_follows_a_retried_views_last_word_is_its_own(telemetry, proxy):
    """A view that calls a retried one, and raises something else where that gave up, is Django's 500."""

    def calling(request):
        try:
            return retry_view(max_attempts=1)(paying)(request)
        except RetriesExhaustedError:
            raise ValueError from None

    proxy.inject(SERIALIZATION, on="commit")
    assert post(calling).status_code == 500


FRESH = """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.project.settings")
if os.environ.get("OTEL_CRDB_TEST_DRIVER") == "psycopg2":
    sys.modules["psycopg"] = None
import django; django.setup()
from django.db import OperationalError
from django.test import Client
from otel_crdb import errors, retry_view
from tests.retried_views import answering

class Refused(Exception):
    sqlstate = "40001"

@retry_view(max_attempts=2, backoff_base=0)
def refused(request):
    raise OperationalError("restart transaction") from Refused("restart transaction")

with answering(refused):
    response = Client(raise_request_exception=False).get("/view/")
print(response.status_code, response.headers.get("Retry-After"))
"""


def test_decorator_alone_is_enough():
    """In a process without instrument() the decorated view is answered as with it."""
    said = subprocess.run(
        [sys.executable, "-c", FRESH],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.stdout == "503 2\n", said.stderr


def test_page_that_cannot_be_rendered_is_replaced_by_plain_words(optioned, proxy, caplog):
    """A 503.html that fails, perhaps for want of the database, does not make a 500 of the answer."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    broken = {"503.html": "{% nonsense %}"}
    templates = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", broken)]},
        }
    ]
    response = post(paying, settings={"TEMPLATES": templates})
    assert (response.status_code, response["Retry-After"]) == (503, "2")
    assert "503.html could not be rendered" in caplog.text


@pytest.mark.parametrize(
    ("decorate", "said"),
    [
        (lambda: retry_view(3), "retry_view is for views"),
        (lambda: retry_view(ambiguous_commit_page=3), "a function or its dotted path"),
        (lambda: retry_view(max_attempt=3), "max_attempt"),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(decorate, said):
    """A wrong option is told at decoration, not amid an incident."""
    with pytest.raises(TypeError, match=said):
        decorate()


def in_doubt(request, error):
    """The page of an ambiguous commit."""
    return HttpResponse(f"perhaps, after {len(error.attempts)}", status=202)


@pytest.mark.parametrize("page", [in_doubt, f"{__name__}.in_doubt"])
@pytest.mark.parametrize(("fault", "paid"), [("lost_commit", 0), ("lost_commit.applied", 1)])
def test_ambiguous_commit_has_a_page_of_its_own(telemetry, proxy, fault, paid, page):
    """COMMIT without an answer is not run again; the page for it is the application's own."""
    view, calls = counting(paying)
    proxy.inject(fault)
    response = post(retry_view(ambiguous_commit_page=page)(view))
    assert (response.status_code, response.content) == (202, b"perhaps, after 1")
    assert len(calls) == 1
    assert balance() == 100 + paid


@pytest.mark.parametrize("page", [None, lambda request, error: None])
def test_ambiguous_commit_without_a_page_is_an_error_of_djangos(telemetry, proxy, page):
    """Where no page is given, or it declines, the error goes its way: process_exception, the signal, 500."""
    proxy.inject("lost_commit")
    assert post(retry_view(ambiguous_commit_page=page)(paying)).status_code == 500


def test_idempotent_view_is_run_again_after_a_lost_commit(telemetry, proxy):
    """A view that says it is idempotent is run again where the answer to COMMIT was lost."""

    def setting(request):
        Account.objects.filter(email="a@example.com").update(balance=7)
        return HttpResponse("set")

    proxy.inject("lost_commit.applied")
    assert post(retry_view(idempotent=True)(setting)).content == b"set"
    assert balance() == 7


def test_another_transactions_last_word_is_not_the_views(telemetry, proxy):
    """A run_transaction that gives up within a view is answered as any error; only the view's own end is 503."""

    def nesting(request):
        return run_transaction(earn, using="other", max_attempts=1)

    with led_through_proxy(proxy.server, "other") as other:
        other.inject(SERIALIZATION, on="commit")
        assert post(retry_view(nesting)).status_code == 500


def test_called_directly_it_raises(telemetry, proxy):
    """Without Django's handler the decorated view raises, as views do."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    with pytest.raises(RetriesExhaustedError):
        retry_view(paying)(RequestFactory().post("/"))
    proxy.clear()
    proxy.inject("lost_commit")
    with pytest.raises(AmbiguousCommitError):
        retry_view(paying)(RequestFactory().post("/"))


# --- what keeps it from being run again ---------------------------------------------------------


def test_methods_of_an_instance_begin_anew(telemetry, proxy):
    """What an attempt has kept on a view's instance is not there for the next one."""

    @method_decorator(retry_view, name="post")
    class Pay(View):
        @cached_property
        def account(self):
            return Account.objects.get(email="a@example.com")

        def post(self, request):
            self.account.balance += 1
            self.account.save()
            return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit", times=2)
    assert post(Pay.as_view()).content == b"paid"
    assert balance() == 101


def test_not_run_again_after_a_schema_change(telemetry, proxy, caplog):
    """CockroachDB commits what came before a schema change: whatever fails after it, the view is not repeated."""

    def changing(request):
        earn()
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE changed (n integer)")
        Account.objects.count()
        raise AssertionError("refused")

    view, calls = counting(changing)
    proxy.inject(SERIALIZATION, matching=r"SELECT COUNT\(")
    with caplog.at_level(logging.WARNING, "otel_crdb.db"):
        assert post(retry_view(view)).status_code == 500
    assert len(calls) == 1
    assert "CockroachDB commits what came before a schema change" in caplog.text


def test_idempotent_view_is_run_again_after_a_schema_change(telemetry, proxy):
    """A view that says it is idempotent may change the schema twice."""

    def changing(request):
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS changed (n integer)")
            cursor.execute("DROP TABLE changed")
        return paying(request)

    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(idempotent=True)(changing)).content == b"paid"


def test_streaming_body_is_not_part_of_the_view(telemetry, proxy):
    """Once a response has begun nothing is run again: what its body queries is outside of the view."""

    def streaming(request):
        earn()
        return StreamingHttpResponse(str(Account.objects.count()) for _ in range(2))

    view, calls = counting(streaming)
    response = post(retry_view(view))
    proxy.inject(SERIALIZATION, matching=r"SELECT COUNT\(")
    with pytest.raises(OperationalError):
        b"".join(response.streaming_content)
    assert len(calls) == 1
    assert balance() == 101


def test_response_of_an_attempt_that_came_to_nothing_is_closed(telemetry, proxy):
    """A response that is never sent does not keep its files and generators open."""
    closed = []

    class Body:
        def __init__(self, number):
            self.number = number

        def __iter__(self):
            return iter([b"body"])

        def close(self):
            closed.append(self.number)

    def streaming(request):
        earn()
        return StreamingHttpResponse(Body(len(calls)))

    view, calls = counting(streaming)
    proxy.inject(SERIALIZATION, on="commit", times=2)
    response = post(retry_view(view))
    assert closed == [1, 2]
    response.close()
    assert closed == [1, 2, 3]


@pytest.mark.parametrize("fault", [SERIALIZATION, "lost_commit"])
def test_response_of_the_last_attempt_is_closed_too(telemetry, proxy, fault):
    """What an exhausted or a doubtful view would have sent is let go of, also where closing it fails."""
    closed = []

    class Body(list):
        def close(self):
            closed.append(1)
            raise ValueError

    def streaming(request):
        earn()
        return StreamingHttpResponse(Body())

    view, calls = counting(streaming)
    proxy.inject(fault, on="commit", times=2)
    post(retry_view(max_attempts=2)(view))
    assert len(closed) == len(calls) > 0


def test_in_djangos_testcase_other_aliases_are_rolled_back_with_it(telemetry, proxy):
    """What a view writes to another alias of a TestCase stays in that case's transaction."""

    def both(request):
        Account.objects.using("other").filter(email="b@example.com").update(balance=0)
        return paying(request)

    class Case(TestCase):
        databases = {"default", "other"}

        def test(self):
            proxy.inject(SERIALIZATION, matching="UPDATE")
            assert post(retry_view(both)).status_code == 503

    result = unittest.TestResult()
    unittest.TestSuite([Case("test")]).run(result)
    assert result.wasSuccessful(), result.failures + result.errors


def test_in_djangos_testcase_there_is_one_attempt(telemetry, proxy):
    """A TestCase's own transaction cannot be begun anew: one attempt, and the error as it ends."""
    view, calls = counting(paying)

    class Case(TestCase):
        databases = {"default"}

        def test(self):
            proxy.inject(SERIALIZATION, matching="UPDATE")
            assert post(retry_view(view)).status_code == 503
            assert len(calls) == 1

    result = unittest.TestResult()
    unittest.TestSuite([Case("test")]).run(result)
    assert result.wasSuccessful(), result.failures + result.errors


# --- asynchronous views -------------------------------------------------------------------------


def test_asynchronous_view_is_run_again(telemetry, proxy):
    """All that an async view asks of the ORM is in one transaction, which is run again where it is refused."""
    calls = []

    @retry_view
    async def apaying(request):
        calls.append(request)
        await Account.objects.filter(email="a@example.com").aupdate(balance=F("balance") + 1)
        account = await Account.objects.aget(email="b@example.com")
        await sync_to_async(lambda: transaction.on_commit(lambda: calls.append("committed")))()
        account.balance += 1
        await account.asave()
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit")
    with atomic_requests("default"):
        response = asyncio.run(apost(apaying))
    assert response.content == b"paid"
    assert [call for call in calls if call == "committed"] == ["committed"]
    assert len(calls) == 3
    assert balance() == 101
    assert Account.objects.get(email="b@example.com").balance == 101
    logical = next(span for span in telemetry.spans if span.name.startswith("run_transaction"))
    attempts = [span for span in telemetry.children(logical) if span.name.startswith("transaction ")]
    assert [[child.name for child in telemetry.children(span)][-1] for span in attempts] == [
        "COMMIT",
        "COMMIT",
    ]
    assert {len(telemetry.children(span)) for span in attempts} == {4}


@pytest.mark.parametrize("way", ["dispatch", "post", "as_view"])
def test_asynchronous_class(telemetry, proxy, way):
    """An async class's view is run again, however it was decorated."""
    if way == "post" and django.VERSION < (5,):
        pytest.skip("Django 4.2 takes a decorated async method for a plain one")

    class Pay(View):
        async def post(self, request):
            await Account.objects.filter(email="a@example.com").aupdate(balance=F("balance") + 1)
            return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit")
    view = (
        retry_view(Pay.as_view())
        if way == "as_view"
        else method_decorator(retry_view, name=way)(Pay).as_view()
    )
    assert asyncio.run(apost(view)).content == b"paid"
    assert balance() == 101


def test_asynchronous_view_under_the_synchronous_handler(telemetry, proxy):
    """Under WSGI an async view is run again too."""

    @retry_view
    async def apaying(request):
        await Account.objects.filter(email="a@example.com").aupdate(balance=F("balance") + 1)
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit")
    assert post(apaying).content == b"paid"
    assert balance() == 101


def test_synchronous_view_under_the_asynchronous_handler(optioned, proxy):
    """Under ASGI a sync view is run again by option."""
    proxy.inject(SERIALIZATION, on="commit")
    assert asyncio.run(apost(paying)).content == b"paid"
    assert balance() == 101


def test_exhausted_asynchronous_view_is_503(telemetry, proxy):
    """An async view that is refused for good is answered as a sync one."""

    @retry_view(max_attempts=2)
    async def apaying(request):
        await Account.objects.filter(email="a@example.com").aupdate(balance=F("balance") + 1)
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit", times=None)
    response = asyncio.run(apost(apaying))
    assert (response.status_code, response["Retry-After"]) == (503, "2")


def test_asynchronous_view_with_atomic_requests_is_djangos_to_refuse(optioned):
    """The option does not change that Django refuses async views under ATOMIC_REQUESTS; the decorator does."""

    async def aview(request):
        """Never get here."""

    with pytest.raises(RuntimeError, match="You cannot use ATOMIC_REQUESTS with async views"):
        BaseHandler().make_view_atomic(aview)


# --- what is seen of it -------------------------------------------------------------------------


def test_request_span_tells_attempts_reasons_and_route(optioned, proxy):
    """The request's span has how often its view was run, why, and its route; its status is unset."""
    proxy.inject(SERIALIZATION, on="commit")
    proxy.inject("serialization_failure.WriteTooOld", matching="UPDATE", nth=2)
    assert post(paying).content == b"paid"
    span = server_span(optioned)
    assert span.attributes["cockroachdb.request.attempts"] == 3
    assert span.attributes["cockroachdb.request.retries"] == 2
    assert span.attributes["cockroachdb.request.retry_reasons"] == ("RETRY_SERIALIZABLE", "WriteTooOld")
    assert span.attributes["http.route"] == "view/"
    assert span.status.status_code is StatusCode.UNSET
    logical = optioned.one(f"run_transaction {paying.__module__}.paying")
    assert logical.attributes["cockroachdb.txn.attempts"] == 3
    assert logical.parent.span_id == span.context.span_id


def test_name_is_the_views_or_the_one_that_is_given(telemetry):
    """The transaction is named after the view, or as @retry_view(name=…) says."""
    post(retry_view(paying))
    post(retry_view(name="pay")(paying))
    names = [span.name for span in telemetry.spans if span.name.startswith("run_transaction")]
    assert names == [f"run_transaction {paying.__module__}.paying", "run_transaction pay"]


def test_refusal_that_is_not_run_again_is_told_as_failed(telemetry, proxy):
    """What might be run again and must not is a failure in the end."""

    def writing_elsewhere(request):
        Account.objects.using("other").filter(email="b@example.com").update(balance=0)
        return paying(request)

    proxy.inject(SERIALIZATION, on="commit")
    post(retry_view(name="pay")(writing_elsewhere))
    assert telemetry.one("run_transaction pay").attributes["cockroachdb.txn.outcome"] == "failed"


def test_request_of_one_attempt_says_so(optioned, proxy):
    """A view that is retried and went well at once has one attempt; others have no such attribute."""
    post(paying)
    assert server_span(optioned).attributes["cockroachdb.request.attempts"] == 1
    assert "cockroachdb.request.retry_reasons" not in server_span(optioned).attributes
    optioned.clear()
    post(transaction.non_atomic_requests(counting(paying)[0]))
    assert "cockroachdb.request.attempts" not in server_span(optioned).attributes


def test_exhausted_request_is_an_error(optioned, proxy):
    """A request that is answered by 503 is an error, and names each reason."""
    proxy.inject(SERIALIZATION, on="commit", times=None)
    post(paying)
    span = server_span(optioned)
    assert span.attributes["http.response.status_code"] == 503
    assert span.attributes["cockroachdb.request.attempts"] == 5
    assert span.status.status_code is StatusCode.ERROR
