# SPDX-License-Identifier: Apache-2.0
"""The real stack, built before by `make stack-programs`: one for all tests, and one of a test's own."""

import contextlib

import pytest

from stack.programs import StackError, missing
from stack.servers import Ports, Stack


def pytest_configure():
    """Say at once what is missing: a test that skips itself would prove nothing."""
    absent = [f"{program.name} {program.version}" for program in missing()]
    if absent:
        pytest.exit(f"not built: {', '.join(absent)}. make stack-programs", returncode=2)


#: All traces are kept, and soon: what is counted here is not what sampling leaves.
COUNTED = {"AGENT_KEEP_PERCENT": 100, "AGENT_DECISION_WAIT": "2s"}


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """The collector with the three back ends behind it, on free ports."""
    with _said(), Stack(tmp_path_factory.mktemp("stack"), Ports.free(), variables=COUNTED) as running:
        yield running


@pytest.fixture
def new_stack(tmp_path_factory):
    """Make a stack of the test's own, with these variables of agent.yaml besides, and end it with the test."""
    with contextlib.ExitStack() as running:

        def make(**variables):
            folder = tmp_path_factory.mktemp("stack")
            return running.enter_context(Stack(folder, Ports.free(), variables={**COUNTED, **variables}))

        yield make


@contextlib.contextmanager
def _said():
    try:
        yield
    except StackError as error:
        pytest.fail(str(error))
