# SPDX-License-Identifier: Apache-2.0
"""What the bank answers."""

import json

import django
from django.db import OperationalError, connection
from django.db.models import Sum
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from .forms import TransferForm
from .models import Account
from .transfers import InsufficientFunds, move

SERIALIZATION_FAILURE = "40001"


@csrf_exempt
@require_POST
def transfer(request: HttpRequest) -> JsonResponse:
    """Make a transfer: JSON or form fields ``from``, ``to`` and ``amount``, in cents."""
    form = TransferForm(_order(request))
    if not form.is_valid():
        return JsonResponse({"error": "not a transfer", "fields": form.errors}, status=400)
    try:
        made = move(**form.cleaned_data)
    except Account.DoesNotExist as error:
        return JsonResponse({"error": f"no such account: {error}"}, status=404)
    except InsufficientFunds:
        return JsonResponse({"error": "insufficient funds"}, status=422)
    except OperationalError as error:
        if sqlstate_of(error) != SERIALIZATION_FAILURE:
            raise
        # Nothing was moved, and the same request may well go through if it is sent again.
        refusal = {"error": "refused by the database, try again", "sqlstate": SERIALIZATION_FAILURE}
        return JsonResponse(refusal, status=409)
    return JsonResponse({"transfer": made.pk}, status=201)


@require_GET
def accounts(_: HttpRequest) -> JsonResponse:
    """List every account: its balance, and what its ledger entries come to."""
    listed = Account.objects.annotate(ledger=Sum("entries__amount")).order_by("owner")
    return JsonResponse({"accounts": list(listed.values("owner", "balance", "ledger"))})


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


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that the driver's error below Django's carries; psycopg2 calls it pgcode."""
    while error is not None:
        sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if sqlstate:
            return sqlstate
        error = error.__cause__
    return None


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
    return {"sender": fields.get("from"), "recipient": fields.get("to"), "amount": fields.get("amount")}
