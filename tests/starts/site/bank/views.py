# SPDX-License-Identifier: Apache-2.0
"""The bank's views."""

from django.http import JsonResponse

from . import forks, ledger


def pay(request):
    """Pay now."""
    return JsonResponse(ledger.pay())


def later(request):
    """Pay now, and once more by way of a task."""
    from .tasks import pay_later

    paid = ledger.pay()
    pay_later.delay()
    return JsonResponse(paid)


def fork(request):
    """Pay, have a child process pay amid it, and pay again."""
    paid = ledger.pay()
    status = forks.pay_in_a_child()
    ledger.pay()
    return JsonResponse({**paid, "child": status})
