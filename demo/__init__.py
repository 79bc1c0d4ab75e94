# SPDX-License-Identifier: Apache-2.0
"""A bank on CockroachDB, driven until transactions are refused, and what its telemetry tells of it."""
