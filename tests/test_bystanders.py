# SPDX-License-Identifier: Apache-2.0
"""What a view that is retried does on other aliases: written once, however it was written."""

import contextlib
import io
import logging
import threading

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.models import F
from django.http import HttpResponse

from otel_crdb import retry_view, run_transaction

from .project.models import Account
from .retried_views import SERIALIZATION, atomic_requests, balance, counting, paying, post
from .servers import earn, led_through_proxy, needs_postgresql
from .telemetry import Telemetry

pytestmark = pytest.mark.usefixtures("accounts", "naps", "quiet_requests")


@pytest.fixture
def proxy(crdb):
    """A fault proxy before the server of the default alias."""
    with led_through_proxy(crdb, "default") as proxy:
        yield proxy


def other_balance():
    return Account.objects.get(email="b@example.com").balance


def earn_on_other():
    Account.objects.using("other").filter(email="b@example.com").update(balance=F("balance") + 1)


def paying_on_both(request):
    """Pay one in on either alias."""
    earn_on_other()
    return paying(request)


@pytest.mark.parametrize("alias", ["other", "sqlite"])
def test_not_run_again_where_another_alias_has_committed(telemetry, proxy, caplog, alias):
    """What was written to another alias stays: a second attempt would write it twice."""
    make = "CREATE TABLE IF NOT EXISTS elsewhere (n integer)"

    def writing_elsewhere(request):
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO elsewhere VALUES (1)")
        earn()
        return HttpResponse("paid")

    with connections[alias].cursor() as cursor:
        cursor.execute(make)
    try:
        view, calls = counting(writing_elsewhere)
        proxy.inject(SERIALIZATION, on="commit")
        with caplog.at_level(logging.WARNING, "otel_crdb.db"):
            assert post(retry_view(view)).status_code == 500
        assert len(calls) == 1
        assert f"it has changed {alias!r}, which a ROLLBACK does not undo" in caplog.text
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM elsewhere")
            assert cursor.fetchone() == (1,)
        assert balance() == 100
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TABLE elsewhere")


def execute_on_other(sql):
    with connections["other"].cursor() as cursor:
        cursor.execute(sql)


def copy_to_other():
    with connections["other"].cursor() as cursor:
        if is_psycopg3:
            with cursor.copy("COPY elsewhere FROM STDIN") as copy:
                copy.write_row((1,))
        else:
            cursor.copy_from(io.StringIO("1\n"), "elsewhere")


def call_on_other():
    with connections["other"].cursor() as cursor:
        cursor.callproc("write_elsewhere")


def commit_behind_django(commit):
    with contextlib.suppress(ValueError), transaction.atomic(using="other"):
        execute_on_other("INSERT INTO elsewhere VALUES (1)")
        commit()
        raise ValueError


WAYS_TO_WRITE = {
    "insert": lambda: execute_on_other("INSERT INTO elsewhere VALUES (1)"),
    "second statement": lambda: execute_on_other("SELECT 1; INSERT INTO elsewhere VALUES (1)"),
    "CTE": lambda: execute_on_other(
        "WITH made AS (INSERT INTO elsewhere VALUES (1) RETURNING n) SELECT * FROM made"
    ),
    "EXPLAIN ANALYZE": lambda: execute_on_other("EXPLAIN ANALYZE INSERT INTO elsewhere VALUES (1)"),
    "function": lambda: execute_on_other("SELECT write_elsewhere()"),
    "callproc": call_on_other,
    "COPY": copy_to_other,
    "COMMIT as text": lambda: commit_behind_django(lambda: execute_on_other("COMMIT")),
    "nested transaction": lambda: run_transaction(
        lambda: execute_on_other("INSERT INTO elsewhere VALUES (1)"), using="other"
    ),
}


@pytest.mark.parametrize("way", WAYS_TO_WRITE)
@pytest.mark.filterwarnings("ignore:.*there is already a transaction in progress")
def test_every_way_to_write_to_another_alias_counts(telemetry, proxy, way):
    """However a view writes to another alias, it is written once."""
    needs_postgresql()
    execute_on_other("CREATE TABLE elsewhere (n integer)")
    execute_on_other(
        "CREATE FUNCTION write_elsewhere() RETURNS integer LANGUAGE sql AS "
        "'INSERT INTO elsewhere VALUES (1) RETURNING 1'"
    )
    try:

        def writing_elsewhere(request):
            WAYS_TO_WRITE[way]()
            earn()

        proxy.inject(SERIALIZATION, on="commit")
        assert post(retry_view(writing_elsewhere)).status_code == 500
        with connections["other"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM elsewhere")
            assert cursor.fetchone() == (1,)
        assert balance() == 100
    finally:
        connections["other"].close()
        execute_on_other("DROP FUNCTION write_elsewhere")
        execute_on_other("DROP TABLE elsewhere")


READING = [
    "SELECT 1",
    "SELECT count(*) FROM account",
    "SELECT * FROM account FOR UPDATE",
    "SELECT 'INSERT INTO account; UPDATE' FROM account",
    "SHOW search_path",
    "SET application_name = 'reader'",
]


@pytest.mark.parametrize("sql", READING)
def test_reading_another_alias_counts_for_nothing(telemetry, proxy, sql):
    """Statements that only read, lock or set leave nothing behind."""

    def reading_elsewhere(request):
        execute_on_other(sql)
        earn()
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(reading_elsewhere)).content == b"paid"


def test_retried_view_within_another_on_another_alias(telemetry, proxy):
    """A retried view that calls one on another alias works, and is not repeated after what that has committed."""

    @retry_view(using="other")
    def inner(request):
        Account.objects.using("other").filter(email="b@example.com").update(balance=F("balance") + 1)

    def outer(request):
        inner(request)
        earn()
        return HttpResponse("paid")

    assert post(retry_view(outer)).content == b"paid"
    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(outer)).status_code == 500
    assert balance() == 101
    assert Account.objects.get(email="b@example.com").balance == 102


def test_alias_whose_backend_is_not_installed_is_none_that_is_written(telemetry, proxy):
    """A view does not fail for an alias that nobody here can use."""
    proxy.inject(SERIALIZATION, on="commit")
    with pytest.MonkeyPatch.context() as patch:
        legacy = {**connections.settings["sqlite"], "ENGINE": "nowhere.legacy"}
        patch.setitem(connections.settings, "legacy", legacy)
        assert post(retry_view(paying)).content == b"paid"


def test_run_again_where_another_alias_was_only_read(telemetry, proxy):
    """Reading elsewhere, and what was written there and rolled back, keep no view from being run again."""

    def reading_elsewhere(request):
        Account.objects.using("other").count()
        with pytest.raises(ValueError), transaction.atomic(using="other"):
            Account.objects.using("other").filter(email="b@example.com").update(balance=0)
            raise ValueError
        with transaction.atomic(using="other"):
            Account.objects.using("other").count()
        earn()
        return HttpResponse("paid")

    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(reading_elsewhere)).content == b"paid"
    assert balance() == 101


@pytest.mark.parametrize("decorated", [True, False])
def test_two_atomic_aliases_are_rolled_back_and_run_again_together(proxy, decorated):
    """With ATOMIC_REQUESTS on two aliases, a refused statement undoes both, and both are run again."""
    view, calls = counting(paying_on_both)
    proxy.inject(SERIALIZATION, matching="email.* = 'a@|UPDATE", on="statement")
    with Telemetry(retry_atomic_requests=True), atomic_requests("default", "other"):
        assert post(retry_view(view) if decorated else view).content == b"paid"
    assert len(calls) == 2
    assert balance() == 101
    assert Account.objects.get(email="b@example.com").balance == 101


def test_two_atomic_aliases_of_which_one_has_committed_are_not_run_again(proxy):
    """The other alias commits first; where the first one's COMMIT is refused then, it is too late."""
    view, calls = counting(paying_on_both)
    proxy.inject(SERIALIZATION, on="commit")
    with Telemetry(retry_atomic_requests=True), atomic_requests("default", "other"):
        assert post(view).status_code == 500
    assert len(calls) == 1
    assert Account.objects.get(email="b@example.com").balance == 101


def test_two_atomic_aliases_whose_inner_commit_is_refused_are_run_again(proxy):
    """A COMMIT of the other alias that was definitely refused leaves nothing behind: both are run again."""
    view, calls = counting(paying_on_both)
    with led_through_proxy(proxy.server, "other") as other:
        other.inject(SERIALIZATION, on="commit")
        with Telemetry(retry_atomic_requests=True), atomic_requests("default", "other"):
            assert post(view).content == b"paid"
    assert len(calls) == 2
    assert (balance(), Account.objects.get(email="b@example.com").balance) == (101, 101)


@pytest.mark.parametrize("sql", ["VALUES (write_elsewhere())", "SELECT * FROM write_elsewhere()"])
def test_functions_in_the_place_of_tables_count(telemetry, proxy, sql):
    """A function may write wherever it is called for itself."""
    needs_postgresql()

    def calling(request):
        with contextlib.suppress(Exception):
            execute_on_other(sql)
        earn()

    execute_on_other("CREATE FUNCTION write_elsewhere() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    try:
        proxy.inject(SERIALIZATION, on="commit")
        assert post(retry_view(calling)).status_code == 500
    finally:
        connections["other"].close()
        execute_on_other("DROP FUNCTION write_elsewhere")


def test_first_use_of_an_alias_is_no_writing(telemetry, proxy):
    """What Django asks of the server as it connects changes nothing."""

    def reading(request):
        Account.objects.using("other").count()
        earn()
        return HttpResponse("paid")

    answers = []

    def in_a_new_thread():
        answers.append(post(retry_view(reading)).content)
        connections.close_all()

    proxy.inject(SERIALIZATION, on="commit")
    thread = threading.Thread(target=in_a_new_thread)
    thread.start()
    thread.join()
    assert answers == [b"paid"]


def test_idempotent_view_may_write_elsewhere_twice(telemetry, proxy):
    """A view that says it is idempotent is run again whatever it has written."""

    def setting(request):
        Account.objects.using("other").filter(email="b@example.com").update(balance=7)
        return paying(request)

    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(idempotent=True)(setting)).content == b"paid"
    assert other_balance() == 7


@pytest.mark.parametrize("atomic", [True, False])
def test_doubt_on_another_alias_counts_as_written(telemetry, proxy, atomic):
    """A write elsewhere whose answer was lost, and which the view swallowed, may have been applied."""

    def doubting(request):
        block = transaction.atomic(using="other") if atomic else contextlib.nullcontext()
        with contextlib.suppress(OperationalError), block:
            earn_on_other()
        return paying(request)

    view, calls = counting(doubting)
    with led_through_proxy(proxy.server, "other") as other:
        other.inject(
            "lost_commit.applied" if atomic else "ambiguous_commit.propagate.applied", matching="UPDATE"
        )
        proxy.inject(SERIALIZATION, on="commit")
        assert post(retry_view(view)).status_code == 500
    assert len(calls) == 1
    assert other_balance() == 101


@pytest.mark.parametrize(("fault", "paid"), [("lost_commit", 0), ("lost_commit.applied", 1)])
def test_lost_commit_of_another_atomic_alias_is_ambiguous(telemetry, proxy, fault, paid):
    """Where ATOMIC_REQUESTS has several aliases, a lost COMMIT of any of them leaves the view in doubt."""
    view, calls = counting(paying_on_both)
    retried = retry_view(ambiguous_commit_page=lambda request, error: HttpResponse("perhaps", status=202))(
        view
    )
    with led_through_proxy(proxy.server, "other") as other, atomic_requests("default", "other"):
        other.inject(fault)
        assert post(retried).content == b"perhaps"
    assert len(calls) == 1
    assert (balance(), other_balance()) == (100, 100 + paid)


def test_write_in_a_transaction_that_was_open_before_counts(telemetry, proxy):
    """What a view writes in somebody else's open transaction is not undone with the view."""
    proxy.inject(SERIALIZATION, on="commit")
    with transaction.atomic(using="other"):
        assert post(retry_view(paying_on_both)).status_code == 500
    assert other_balance() == 101


def test_manual_transaction_that_was_rolled_back_counts_for_nothing(telemetry, proxy):
    """With autocommit off, what is rolled back is undone."""

    def writing(request):
        transaction.set_autocommit(False, using="other")
        earn_on_other()
        transaction.rollback(using="other")
        transaction.set_autocommit(True, using="other")
        return paying(request)

    proxy.inject(SERIALIZATION, on="commit")
    assert post(retry_view(writing)).content == b"paid"
    assert other_balance() == 100


def test_connections_are_left_as_they_were(telemetry, proxy):
    """After a view, refused or not, nothing stands before the other connections any more."""
    wrapper = connections["other"]
    before = (sorted(vars(wrapper)), list(wrapper.execute_wrappers))

    def failing(request):
        Account.objects.using("other").count()
        raise ValueError

    Account.objects.using("other").count()
    for view in (paying, failing):
        post(retry_view(view))
        assert (sorted(vars(wrapper)), wrapper.execute_wrappers) == before


@pytest.mark.parametrize(("alias", "runs"), [("other", 2), ("sqlite", 1)])
def test_option_takes_the_alias_that_is_atomic(proxy, alias, runs):
    """Of the aliases with ATOMIC_REQUESTS the option retries CockroachDB's; a view on none of them runs once."""

    def writing(request):
        earn_on_other()
        return HttpResponse("paid")

    view, calls = counting(writing)
    with led_through_proxy(proxy.server, "other") as other, Telemetry(retry_atomic_requests=True):
        other.inject(SERIALIZATION, matching="UPDATE")
        with atomic_requests(alias):
            post(view)
    assert len(calls) == runs


def test_option_with_an_alias_leaves_other_aliases_to_django(proxy):
    """An option that names an alias is for that one."""
    view, calls = counting(paying)
    proxy.inject(SERIALIZATION, on="commit")
    with Telemetry(retry_atomic_requests={"using": "other"}), atomic_requests("default"):
        assert post(view).status_code == 500
    assert len(calls) == 1
