# SPDX-License-Identifier: Apache-2.0
"""What a view that is run again finds: its body, its uploads, its session, its messages, its request."""

import http.client
import json
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import closing

import pytest
from django.contrib import messages
from django.contrib.sessions.backends import cache as cached_sessions
from django.core.cache import cache
from django.core.files.storage import FileSystemStorage
from django.core.files.uploadedfile import SimpleUploadedFile, UploadedFile
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory, override_settings
from django.utils.functional import SimpleLazyObject

from otel_crdb import RetriesExhaustedError, retry_view

from .project.models import Account
from .retried_views import SERIALIZATION, answering, post
from .servers import earn, led_through_proxy

pytestmark = [
    pytest.mark.usefixtures("accounts", "naps", "quiet_requests"),
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
]

MULTIPART = b"".join(
    line + b"\r\n"
    for line in (
        b"--edge",
        b'Content-Disposition: form-data; name="to"',
        b"",
        b"ann",
        b"--edge",
        b'Content-Disposition: form-data; name="receipt"; filename="receipt.txt"',
        b"Content-Type: text/plain",
        b"",
        b"paid in full",
        b"--edge--",
    )
)
MULTIPART_TYPE = "multipart/form-data; boundary=edge"


@pytest.fixture
def proxy(crdb):
    """A fault proxy before the server of the default alias."""
    with led_through_proxy(crdb, "default") as proxy:
        yield proxy


@pytest.fixture
def refused(proxy, telemetry):
    """The first attempt's COMMIT is refused."""
    return proxy.inject(SERIALIZATION, on="commit")


def attempts(read):
    """Return a view that pays, and what ``read`` found in the request at each of its attempts."""
    found = []

    def view(request):
        found.append(read(request))
        earn()
        return HttpResponse("paid")

    return retry_view(view), found


def assert_kept_from_retrying(caplog, words):
    assert [record.getMessage() for record in caplog.records if words in record.getMessage()]


# --- the body -----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["wsgi", "asgi"])
@pytest.mark.parametrize(
    ("kind", "body", "read", "expected"),
    [
        ("application/json", b'{"to": "ann"}', lambda r: json.loads(r.body), {"to": "ann"}),
        ("application/json", b'{"to": "ann"}', lambda r: (r.body, r.read()), (b'{"to": "ann"}',) * 2),
        (
            "application/x-www-form-urlencoded",
            b"to=ann&n=1",
            lambda r: r.POST.dict(),
            {"to": "ann", "n": "1"},
        ),
        (
            MULTIPART_TYPE,
            MULTIPART,
            lambda r: (r.POST.dict(), r.FILES["receipt"].name, r.FILES["receipt"].read()),
            ({"to": "ann"}, "receipt.txt", b"paid in full"),
        ),
    ],
)
def test_body_is_there_for_each_attempt(request, refused, server, kind, body, read, expected):
    """Over real HTTP: body, form fields and uploads are the same for each attempt, read to the end by each."""
    view, found = attempts(read)
    with answering(view):
        port = request.getfixturevalue(server)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
            client.request("POST", "/view/", body, {"Content-Type": kind})
            assert client.getresponse().read() == b"paid"
    assert found == [expected, expected]


def test_large_uploads_are_there_for_each_attempt(refused, settings_of_uploads):
    """An upload that stands in a temporary file is read from its beginning by each attempt."""
    settings_of_uploads(FILE_UPLOAD_MAX_MEMORY_SIZE=10)
    view, found = attempts(lambda r: (hasattr(r.FILES["f"], "temporary_file_path"), len(r.FILES["f"].read())))
    assert post(view, {"f": SimpleUploadedFile("f", b"x" * 100_000)}).content == b"paid"
    assert found == [(True, 100_000)] * 2


@pytest.fixture
def settings_of_uploads():
    """Change settings for the test."""
    from contextlib import ExitStack

    from django.test import override_settings

    with ExitStack() as stack:
        yield lambda **changed: stack.enter_context(override_settings(**changed))


def test_changed_form_fields_are_put_back(refused):
    """A view that replaces or changes POST finds the sender's own fields again."""

    def replace(request):
        before = request.POST.dict()
        request.POST = request.POST.copy()
        request.POST["to"] = "bob"
        return before

    view, found = attempts(replace)
    assert post(view, {"to": "ann"}).content == b"paid"
    assert found == [{"to": "ann"}] * 2


def test_form_fields_changed_in_place_are_put_back(refused):
    """Not even what is changed behind a QueryDict's back stays, parsed by an attempt or before it."""

    def change(request):
        before = (request.POST.dict(), request.GET.dict())
        for fields in (request.POST, request.GET):
            fields._mutable = True
            fields["to"] = "bob"
        return before

    for middleware in ((), (f"{__name__}.reading_first",)):
        view, found = attempts(change)
        refused.times += 1
        assert post(view, {"to": "ann"}, middleware=middleware).content == b"paid"
        assert found[0] == found[-1] == ({"to": "ann"}, {})


def reading_first(get_response):
    """Middleware that reads the form, as CSRF's does."""

    def middleware(request):
        request.POST, request.GET  # noqa: B018 - for its effect
        return get_response(request)

    return middleware


@pytest.mark.parametrize(
    "read",
    [
        lambda request: request.read(),
        lambda request: request.readline(),
        lambda request: (request.read(3), request.POST),
        list,
    ],
)
def test_raw_stream_that_was_read_keeps_the_view_from_being_run_again(refused, caplog, read):
    """What was read of the stream itself cannot be read again: 503 after the first attempt, with the reason logged."""
    view, found = attempts(read)
    response = post(view, {"to": "ann"})
    assert (response.status_code, len(found)) == (503, 1)
    assert_kept_from_retrying(caplog, "the request's raw stream was read")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_raw_stream_that_is_read_below_a_middleware_which_asked_for_the_form(refused, caplog, method):
    """Where a body is no form, to ask for POST reads nothing: the view's own reading counts."""
    view, found = attempts(lambda request: request.read())
    middleware = (f"{__name__}.reading_first",)
    with answering(view, *middleware):
        response = Client(raise_request_exception=False).generic(
            method, "/view/", '{"to": "ann"}', content_type="application/json"
        )
    assert (response.status_code, found) == (503, [b'{"to": "ann"}'])
    assert_kept_from_retrying(caplog, "the request's raw stream was read")


def test_uploads_that_nobody_can_read_are_left_alone(refused):
    """An upload that middleware has closed, or a handler has put elsewhere, changes nothing for the view."""
    for middleware in (closing_first, taking_away):
        view, found = attempts(lambda request: request.FILES["f"].name)
        refused.times += 1
        with_upload = {"f": SimpleUploadedFile("f", b"content")}
        assert post(view, with_upload, middleware=(f"{__name__}.{middleware.__name__}",)).content == b"paid"
        assert found == ["f"] * len(found)
        assert len(found) >= 2


def closing_first(get_response):
    """Middleware that reads an upload and closes it."""

    def middleware(request):
        request.FILES["f"].close()
        return get_response(request)

    return middleware


def taking_away(get_response):
    """Middleware that leaves of an upload only its name, as handlers do that send it elsewhere."""

    def middleware(request):
        request.FILES["f"] = UploadedFile(file=None, name="f")
        return get_response(request)

    return middleware


def test_upload_is_read_from_where_it_stood(refused):
    """Where middleware has read a little, each attempt reads the rest."""
    view, found = attempts(lambda request: request.FILES["f"].read())
    middleware = (f"{__name__}.tasting",)
    assert post(view, {"f": SimpleUploadedFile("f", b"content")}, middleware=middleware).content == b"paid"
    assert found == [b"tent", b"tent"]


def tasting(get_response):
    """Middleware that reads the first bytes of an upload."""

    def middleware(request):
        request.FILES["f"].read(3)
        return get_response(request)

    return middleware


def test_what_is_set_on_an_upload_is_put_back(refused):
    """An upload has the name and the type that it came with."""

    def rename(request):
        upload = request.FILES["f"]
        before = (upload.name, upload.content_type)
        upload.name, upload.content_type = "renamed", "text/changed"
        return before

    view, found = attempts(rename)
    assert post(view, {"f": SimpleUploadedFile("f", b"x", content_type="text/csv")}).content == b"paid"
    assert found == [("f", "text/csv")] * 2


@pytest.mark.parametrize(
    ("limit", "started", "length", "buffered"),
    [(None, False, "2", True), (100, True, "2", False), (100, False, "x", False), (100, False, "2", True)],
)
def test_body_is_read_beforehand_where_that_can_be(
    telemetry, settings_of_uploads, limit, started, length, buffered
):
    """Not where its length is not known, or somebody has begun to read it."""
    settings_of_uploads(DATA_UPLOAD_MAX_MEMORY_SIZE=limit)
    request = RequestFactory().post("/", b"{}", content_type="application/json")
    request.META["CONTENT_LENGTH"] = length
    if started:
        request.read(1)
    retry_view(lambda request: None)(request)
    assert not hasattr(request, "_body")
    retry_view(buffer_body=True)(lambda request: None)(request)
    assert hasattr(request, "_body") is buffered


def test_body_of_unknown_length_is_not_read_beforehand(telemetry):
    """A chunked body may be larger than Django would hold."""
    found = []

    @retry_view(buffer_body=True)
    def view(request):
        found.append(hasattr(request, "_body"))
        return HttpResponse("seen")

    view(RequestFactory().post("/", b"{}", content_type="application/json", CONTENT_LENGTH=""))
    view(HttpRequest())
    assert found == [False, False]


def test_body_can_be_read_beforehand(refused):
    """With buffer_body=True a view that reads the raw stream, as REST framework's parsers do, is run again."""
    found = []

    @retry_view(buffer_body=True)
    def view(request):
        found.append(json.load(request))
        earn()
        return JsonResponse(found[-1])

    assert post(view, '{"to": "ann"}', content_type="application/json").json() == {"to": "ann"}
    assert found == [{"to": "ann"}] * 2


@pytest.mark.parametrize("kind", [MULTIPART_TYPE, "application/octet-stream"])
def test_what_django_would_not_hold_in_memory_is_not_read_beforehand(refused, settings_of_uploads, kind):
    """An upload, and a body above DATA_UPLOAD_MAX_MEMORY_SIZE, are left to the view."""
    settings_of_uploads(DATA_UPLOAD_MAX_MEMORY_SIZE=100 if kind == MULTIPART_TYPE else 10)
    found = []

    @retry_view(buffer_body=True)
    def view(request):
        found.append(hasattr(request, "_body"))
        return HttpResponse("seen")

    body = MULTIPART[:90] if kind == MULTIPART_TYPE else MULTIPART
    assert post(view, body, content_type=kind).content == b"seen"
    assert found == [False]


def test_closed_upload_keeps_the_view_from_being_run_again(refused, caplog):
    """An upload that the view has closed cannot be read again."""
    view, found = attempts(lambda request: request.FILES["f"].close())
    assert post(view, {"f": SimpleUploadedFile("f", b"content")}).status_code == 503
    assert len(found) == 1
    assert_kept_from_retrying(caplog, "an upload was closed")


def test_stored_upload(refused, caplog, settings_of_uploads, tmp_path):
    """A small upload is stored by each attempt; a large one, which storing moves away, keeps it from a second."""
    storage = FileSystemStorage(tmp_path)
    view, found = attempts(lambda request: storage.save("stored", request.FILES["f"]))
    assert post(view, {"f": SimpleUploadedFile("f", b"content")}).content == b"paid"
    assert [(tmp_path / name).read_bytes() for name in found] == [b"content"] * 2
    settings_of_uploads(FILE_UPLOAD_MAX_MEMORY_SIZE=1)
    refused.times += 1
    assert post(view, {"f": SimpleUploadedFile("f", b"content")}).status_code == 503
    assert_kept_from_retrying(caplog, "an upload was moved away")


def test_upload_handlers_of_the_views_own_keep_it_from_being_run_again(refused, caplog):
    """Handlers can be set only before the upload is read, and it is read once."""
    from django.core.files.uploadhandler import MemoryFileUploadHandler

    def read(request):
        request.upload_handlers = [MemoryFileUploadHandler(request)]
        return request.FILES["f"].read()

    view, found = attempts(read)
    assert post(view, {"f": SimpleUploadedFile("f", b"content")}).status_code == 503
    assert len(found) == 1
    assert_kept_from_retrying(caplog, "upload handlers of its own")


# --- the session, the messages ------------------------------------------------------------------

SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"


@pytest.fixture
def session_table():
    """A table for sessions in the database."""
    from django.contrib.sessions.models import Session

    with connection.schema_editor() as editor:
        editor.create_model(Session)
    yield
    connection.close()
    with connection.schema_editor() as editor:
        editor.delete_model(Session)


def with_session(engine):
    return {
        "middleware": (SESSIONS,),
        "settings": {"SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}"},
    }


@pytest.fixture
def client(session_table):
    """A client with cookies, and a cache that begins empty."""
    cache.clear()
    return Client(raise_request_exception=False)


ENGINES = ["signed_cookies", "cache", "db", "cached_db", "file"]


@pytest.mark.parametrize("engine", ENGINES)
def test_session_is_put_back(telemetry, proxy, client, engine):
    """What an attempt put into the session, or changed deep in it, is not there for the next one."""

    def change(request):
        session = request.session
        before = json.loads(json.dumps(dict(session.items())))
        session["visits"] = session.get("visits", 0) + 1
        session.setdefault("basket", {"items": []})["items"].append("book")
        session.modified = True
        return before

    view, found = attempts(change)
    for _ in range(2):
        proxy.inject(SERIALIZATION, on="commit", times=2)
        assert post(view, client=client, **with_session(engine)).content == b"paid"
        proxy.clear()
    assert found == [{}] * 3 + [{"visits": 1, "basket": {"items": ["book"]}}] * 3


@pytest.mark.parametrize("engine", ENGINES)
def test_new_session_key(refused, proxy, client, engine, caplog):
    """A login changes the session's key: repeated where that is undone too, and otherwise not repeated."""
    view, found = attempts(lambda request: request.session.update({"seen": True}))
    proxy.clear()
    assert post(view, client=client, **with_session(engine)).content == b"paid"

    def log_in(request):
        kept = dict(request.session.items())
        request.session.cycle_key()
        return kept

    view, found = attempts(log_in)
    proxy.inject(SERIALIZATION, on="commit")
    response = post(view, client=client, **with_session(engine))
    if engine in ("cache", "cached_db", "file"):
        assert (response.status_code, len(found)) == (503, 1)
        assert_kept_from_retrying(caplog, "the session was saved, in a store that keeps no transactions")
    else:
        assert response.content == b"paid"
        assert found == [{"seen": True}] * 2
        view, found = attempts(lambda request: dict(request.session.items()))
        post(view, client=client, **with_session(engine))
        assert found == [{"seen": True}]


def test_first_session_may_be_made_by_each_attempt(refused, client):
    """Where there was no session before, each attempt may make one; the last one's is sent."""
    view, found = attempts(lambda request: request.session.create())
    response = post(view, client=client, **with_session("cache"))
    assert response.content == b"paid"
    assert len(found) == 2
    assert cached_sessions.SessionStore(response.cookies["sessionid"].value).exists(
        response.cookies["sessionid"].value
    )


def test_session_of_another_alias_is_not_undone(telemetry, proxy, client):
    """Sessions that a router sends to another alias are saved for good."""

    class Router:
        def db_for_write(self, model, **hints):
            return "other"

        db_for_read = db_for_write

    settings = with_session("db")
    settings["settings"]["DATABASE_ROUTERS"] = [Router()]
    view, _ = attempts(lambda request: request.session.update({"seen": True}))
    with override_settings(DATABASE_ROUTERS=[Router()]):
        assert post(view, client=client, **settings).status_code == 200
        view, found = attempts(lambda request: request.session.cycle_key())
        proxy.inject(SERIALIZATION, on="commit")
        assert post(view, client=client, **settings).status_code in (500, 503)
    assert len(found) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_session_that_the_view_saves_itself(telemetry, proxy, client, engine):
    """What an attempt has saved is never what the next one begins with."""
    view, _ = attempts(lambda request: request.session.update({"visits": 1}))
    assert post(view, client=client, **with_session(engine)).content == b"paid"

    def count(request):
        before = request.session["visits"]
        request.session["visits"] += 1
        request.session.save()
        return before

    view, found = attempts(count)
    proxy.inject(SERIALIZATION, on="commit")
    response = post(view, client=client, **with_session(engine))
    if engine in ("cache", "cached_db", "file"):
        assert (response.status_code, found) == (503, [1])
    else:
        assert (response.content, found) == (b"paid", [1, 1])


def test_exhausted_request_says_nothing_of_what_was_not_done(telemetry, proxy, client):
    """A message of an attempt that came to nothing is not shown on the next page."""
    settings = with_session("signed_cookies")
    settings["middleware"] += ("django.contrib.messages.middleware.MessageMiddleware",)
    settings["settings"]["MESSAGE_STORAGE"] = "django.contrib.messages.storage.cookie.CookieStorage"
    view, _ = attempts(lambda request: messages.info(request, "paid"))
    proxy.inject(SERIALIZATION, on="commit", times=None)
    assert post(view, client=client, **settings).status_code == 503
    proxy.clear()
    view, found = attempts(lambda request: [message.message for message in messages.get_messages(request)])
    assert post(view, client=client, **settings).content == b"paid"
    assert found == [[]]


@pytest.mark.parametrize(
    "storage", ["session.SessionStorage", "cookie.CookieStorage", "fallback.FallbackStorage"]
)
def test_messages_are_said_once(refused, proxy, client, storage):
    """A message is there as often as one attempt has said it; those read by an attempt are there for the next."""
    settings = with_session("signed_cookies")
    settings["middleware"] += ("django.contrib.messages.middleware.MessageMiddleware",)
    settings["settings"]["MESSAGE_STORAGE"] = f"django.contrib.messages.storage.{storage}"
    view, _ = attempts(lambda request: messages.info(request, "paid"))
    assert post(view, client=client, **settings).content == b"paid"
    proxy.inject(SERIALIZATION, on="commit")
    view, found = attempts(lambda request: [message.message for message in messages.get_messages(request)])
    assert post(view, client=client, **settings).content == b"paid"
    assert found == [["paid"], ["paid"]]


# --- the request --------------------------------------------------------------------------------


def dressing(get_response):
    """Middleware that hangs things on the request, as applications do."""

    def middleware(request):
        request.account = Account.objects.get(email="a@example.com")
        request.user = SimpleLazyObject(lambda: Account.objects.get(email="b@example.com"))
        request.notes = {"list": [1], "set": {1}, "dict": {"deep": [1]}}
        request.myself = request.notes["me"] = request.notes
        return get_response(request)

    return middleware


def test_attributes_of_the_request_are_put_back(refused):
    """New attributes go, replaced ones return, containers and model instances are what they were."""

    def change(request):
        notes = request.notes
        before = (
            request.account.balance,
            request.user.balance,
            request.account._state.adding,
            [sorted(notes["set"]), list(notes["list"]), list(notes["dict"]["deep"])],
            hasattr(request, "new"),
            request.META.get("X_NEW"),
            request.encoding,
            request.myself is notes["me"],
        )
        request.account.balance = request.user.balance = 0
        request.account._state.adding = True
        notes["set"].add(2)
        notes["list"].append(2)
        notes["dict"]["deep"].clear()
        request.new = True
        request.META["X_NEW"] = "new"
        request.encoding = "latin-1"
        request.myself = None
        return before

    view, found = attempts(change)
    assert post(view, middleware=(f"{__name__}.dressing",)).content == b"paid"
    assert found[0] == (100, 100, False, [[1], [1], [1]], False, None, None, True)
    assert found == [found[0]] * 2


def test_containers_of_every_kind_are_put_back(refused):
    """Subclasses of the containers, those within tuples, and the view's own arguments are put back too."""
    made = {
        "counter": lambda: Counter(a=1),
        "ordered": lambda: OrderedDict(b=1, a=2),
        "default": lambda: defaultdict(list, a=[1]),
        "deque": lambda: deque([1, 2]),
        "bytes": lambda: bytearray(b"ab"),
        "within": lambda: ([1], {2}),
    }
    kept = {name: make() for name, make in made.items()}
    found = []

    @retry_view
    def view(request, argument, *, keyword):
        found.append(
            ({name: repr(value) for name, value in request.kept.items()}, dict(argument), keyword.balance)
        )
        kept["counter"]["a"] += 1
        kept["ordered"]["c"] = 3
        kept["ordered"].move_to_end("b")
        kept["default"]["new"].append(1)
        kept["deque"].popleft()
        kept["bytes"].clear()
        kept["within"][0].append(2)
        kept["within"][1].clear()
        argument["new"] = True
        keyword.balance += 1
        earn()

    request = RequestFactory().post("/")
    request.kept = kept
    view(request, {"old": True}, keyword=Account(balance=5))
    assert found == [({name: repr(make()) for name, make in made.items()}, {"old": True}, 5)] * 2


def test_models_that_refer_to_each_other(refused):
    """What refers to itself is noted once."""
    ann, bob = Account(balance=1), Account(balance=2)
    ann.partner, bob.partner = bob, ann
    found = []

    @retry_view
    def view(request):
        found.append((ann.balance, bob.balance))
        ann.balance = bob.balance = 0
        earn()

    request = RequestFactory().post("/")
    request.account = ann
    view(request)
    assert found == [(1, 2)] * 2


def test_route_is_put_back(refused):
    """What an attempt changes on the resolved route is not there for the next one."""

    def change(request):
        before = dict(request.resolver_match.kwargs)
        request.resolver_match.kwargs["new"] = 1
        return before

    view, found = attempts(change)
    assert post(view).content == b"paid"
    assert found == [{}, {}]


def test_state_that_cannot_be_noted_changes_no_request(telemetry, proxy, caplog):
    """Where noting the request's state fails, the view runs as ever, and is not run again."""
    view, found = attempts(lambda request: None)
    request = RequestFactory().post("/")
    nested = request.nested = []
    for _ in range(5000):
        nested.append([])
        nested = nested[0]
    assert view(request).content == b"paid"
    proxy.inject(SERIALIZATION, on="commit")
    with pytest.raises(RetriesExhaustedError):
        view(request)
    assert len(found) == 2
    assert_kept_from_retrying(caplog, "what it has changed on the request is not known")


def test_user_read_by_an_attempt_is_read_again(refused):
    """A lazy user that an attempt was the first to ask for is asked for anew, in the new transaction."""
    view, found = attempts(lambda request: id(request.user._wrapped) if request.user.email else None)
    assert post(view, middleware=(f"{__name__}.dressing",)).content == b"paid"
    assert len(set(found)) == 2


def test_lazy_user_that_nobody_asks_for_costs_no_query(telemetry):
    """Noting the request's state does not ask for the user."""
    asked = []

    def lazy(get_response):
        def middleware(request):
            request.user = SimpleLazyObject(lambda: asked.append(1))
            return get_response(request)

        return middleware

    view, _ = attempts(lambda request: None)
    globals()["lazy"] = lazy
    assert post(view, middleware=(f"{__name__}.lazy",)).content == b"paid"
    assert asked == []


def test_request_is_left_to_itself(refused):
    """Nothing of ours stays on the request, whose own methods are Django's again."""
    requests = []
    view, _ = attempts(requests.append)
    assert post(view).content == b"paid"
    assert not [name for name in vars(requests[-1]) if "otel_crdb" in name or name == "parse_file_upload"]
