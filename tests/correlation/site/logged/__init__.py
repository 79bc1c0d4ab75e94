# SPDX-License-Identifier: Apache-2.0
"""The bank of the starts, with views that log, and a log file whose format has the ids."""
