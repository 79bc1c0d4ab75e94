# SPDX-License-Identifier: Apache-2.0
"""What the bank answers."""

import json

import django
from django.db import connection
from django.db.models import Count, Sum
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from otel_crdb import AmbiguousCommitError, RetriesExhaustedError

from . import transfers
from .forms import DepositForm, TransferForm
from .models import Account, Transfer


@csrf_exempt
@require_POST
def transfer(request: HttpRequest) -> JsonResponse:
    """Make a transfer: JSON or form fields ``from``, ``to`` and ``amount``, in cents.

    ``attempts`` limits how often it is tried, for those who would rather hear a no than wait.
    """
    form = TransferForm(_order(request))
    if not form.is_valid():
        return JsonResponse({"error": "not a transfer", "fields": form.errors}, status=400)
    try:
        made = transfers.transfer(**form.cleaned_data)
    except Account.DoesNotExist as error:
        return JsonResponse({"error": f"no such account: {error}"}, status=404)
    except transfers.InsufficientFunds:
        return JsonResponse({"error": "insufficient funds"}, status=422)
    except RetriesExhaustedError as error:
        # Nothing was moved, and the same request may well go through if it is sent again.
        refusal = {
            "error": "refused by the database, try again",
            "sqlstate": error.attempts[-1].failure.sqlstate,
            "attempts": len(error.attempts),
        }
        return JsonResponse(refusal, status=409)
    except AmbiguousCommitError:
        unknown = {"error": "perhaps made, perhaps not: look at the accounts before you send it again"}
        return JsonResponse(unknown, status=503)
    return JsonResponse({"transfer": made.pk}, status=201)


@csrf_exempt
@require_POST
def deposit(request: HttpRequest) -> JsonResponse:
    """Pay in: JSON or form fields ``to`` and ``amount``, in cents."""
    form = DepositForm(_order(request))
    if not form.is_valid():
        return JsonResponse({"error": "not a deposit", "fields": form.errors}, status=400)
    try:
        made = transfers.deposit(**form.cleaned_data)
    except Account.DoesNotExist as error:
        return JsonResponse({"error": f"no such account: {error}"}, status=404)
    return JsonResponse(made, status=201)


@require_GET
def accounts(_: HttpRequest) -> JsonResponse:
    """List every account: its balance, and what its ledger entries come to."""
    listed = Account.objects.annotate(ledger=Sum("entries__amount")).order_by("owner")
    return JsonResponse({"accounts": list(listed.values("owner", "balance", "ledger"))})


@require_GET
def report(_: HttpRequest) -> JsonResponse:
    """Sum up all transfers that were ever made."""
    return JsonResponse(Transfer.objects.aggregate(transfers=Count("pk"), moved=Sum("amount")))


@require_GET
def nodes(_: HttpRequest) -> JsonResponse:
    """List the cluster's nodes. CockroachDB v26.1 and later no longer tell applications of them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT node_id, is_live FROM crdb_internal.gossip_nodes")
        found = cursor.fetchall()
    return JsonResponse({"nodes": [{"node": node, "live": live} for node, live in found]})


@require_GET
def health(_: HttpRequest) -> JsonResponse:
    """Say that the database answers, and what the bank runs on."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    driver = connection.Database
    return JsonResponse(
        {
            "database": "ok",
            "driver": f"{driver.__name__} {driver.__version__.split(' ')[0]}",
            "django": django.get_version(),
        }
    )


def _order(request: HttpRequest) -> dict:
    """Read the request's fields; a body that cannot be read is an empty order."""
    fields = request.POST
    if request.content_type == "application/json":
        try:
            fields = json.loads(request.body)
        except ValueError:
            fields = {}
    if not hasattr(fields, "get"):
        fields = {}
    return {
        "sender": fields.get("from"),
        "recipient": fields.get("to"),
        "amount": fields.get("amount"),
        "attempts": fields.get("attempts"),
    }
