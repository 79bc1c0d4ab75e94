# SPDX-License-Identifier: Apache-2.0
"""What a request for a transfer must hold."""

from django import forms


class TransferForm(forms.Form):
    """Who pays whom, and how many cents."""

    sender = forms.CharField(max_length=60)
    recipient = forms.CharField(max_length=60)
    amount = forms.IntegerField(min_value=1)

    def clean(self) -> dict:
        """Refuse a transfer of an account to itself."""
        order = super().clean()
        if order.get("sender") and order.get("sender") == order.get("recipient"):
            raise forms.ValidationError("from and to are the same account")
        return order
