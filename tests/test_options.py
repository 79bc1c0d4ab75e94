# SPDX-License-Identifier: Apache-2.0
"""Options: read from the setting, the variables and the keyword arguments, checked where they are read."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

import otel_crdb
from otel_crdb import config, option_page, option_sources

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

#: A value of each option that is not its default: as a variable spells it, and as it is kept.
SPELLED = {
    "traces": ("off", False),
    "metrics": ("No", False),
    "logs": ("0", False),
    "python_logs": ("no", False),
    "exporter": ("fastotel", "fastotel"),
    "exclude_health_checks": ("FALSE", False),
    "excluded_urls": ("^/a/$, b+", ("^/a/$", "b+")),
    "excluded_statements": ("^SELECT 1$", ("^SELECT 1$",)),
    "excluded_aliases": ("other", ("other",)),
    "request_hook": ("tests.test_options.called", "called"),
    "response_hook": ("tests.test_options.called", "called"),
    "transaction_hook": ("tests.test_options.called", "called"),
    "statement_hook": ("tests.test_options.called", "called"),
    "application_name": ("bank", "bank"),
    "statement_owner": ("driver", "driver"),
    "node_id": ("false", False),
    "query_text_limit": ("100", 100),
    "query_parameters": ("yes", True),
    "mask_secrets": ("off", False),
    "secret_names": ("iban, bic", ("iban", "bic")),
    "secret_patterns": (r"\bDE\d{20}\b", (r"\bDE\d{20}\b",)),
    "slow_statement": ("0.25", 0.25),
    "log_limit": ("100", 100),
    "sql_comments": ("on", True),
    "sql_comment_tags": ('{"application": "bank"}', {"application": "bank"}),
    "thread_context": ("false", False),
    "retry_atomic_requests": ('{"max_attempts": 3}', {"max_attempts": 3}),
}
PROVIDERS = {"tracer_provider", "meter_provider", "logger_provider"}


def called(*_):
    """What an option may name."""


def read(**keywords):
    return option_sources.read(keywords)


def test_each_option_has_a_variable(monkeypatch):
    """Every option but the providers can be said by a variable, and is kept as what that means."""
    assert SPELLED.keys() | PROVIDERS == {option.name for option in config.options()}
    for name, (text, _) in SPELLED.items():
        monkeypatch.setenv(f"OTEL_CRDB_{name.upper()}", text)
    chosen = read()
    for name, (_, kept) in SPELLED.items():
        assert getattr(chosen, name) == (called if kept == "called" else kept), name
        assert chosen.origins[name] == f"OTEL_CRDB_{name.upper()}"


def test_order_of_the_sources(monkeypatch):
    """A keyword argument goes before a variable, that before the setting, and that before the default."""
    assert read().query_text_limit == 4096
    with override_settings(OTEL_CRDB={"query_text_limit": 1, "node_id": False}):
        assert read().query_text_limit == 1
        monkeypatch.setenv("OTEL_CRDB_QUERY_TEXT_LIMIT", "2")
        assert read().query_text_limit == 2
        chosen = read(query_text_limit=3)
    assert (chosen.query_text_limit, chosen.node_id) == (3, False)
    assert chosen.origins == {"query_text_limit": "instrument()", "node_id": "OTEL_CRDB['node_id']"}


def test_empty_variable_is_as_good_as_none(monkeypatch):
    """An empty variable leaves the option to the setting, or to its default."""
    monkeypatch.setenv("OTEL_CRDB_QUERY_TEXT_LIMIT", " ")
    assert read().query_text_limit == 4096


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("traces", 1, "traces is a bool, not 1"),
        ("exporter", "zipkin", "exporter is one of 'otlp', 'fastotel', not 'zipkin'"),
        ("excluded_urls", "(", r"excluded_urls is a regular expression.*'\(': missing \)"),
        ("excluded_urls", 3, "excluded_urls is a regular expression, or a list of them, not 3"),
        ("excluded_aliases", [3], r"excluded_aliases is a str with commas, or a list of str, not \[3\]"),
        ("request_hook", 3, "request_hook is a function, or its dotted path, not 3"),
        (
            "request_hook",
            "tests.test_options.nobody",
            "request_hook is a function.*has no attribute 'nobody'",
        ),
        (
            "request_hook",
            "tests.nowhere.nobody",
            "request_hook is a function.*No module named 'tests.nowhere'",
        ),
        ("request_hook", "nobody", "request_hook is a function, or its dotted path, not 'nobody'"),
        ("request_hook", "django.contrib.auth.models.User", "request_hook is a function.*RuntimeError"),
        ("tracer_provider", "x", "tracer_provider is a provider of OpenTelemetry's, or None, not 'x'"),
        (
            "retry_atomic_requests",
            {"max_attempts": "x"},
            "retry_atomic_requests is a bool or options of retry_view",
        ),
        ("application_name", 3, "application_name is a str, or None, not 3"),
        ("query_text_limit", True, "query_text_limit is an int from 0 to 4096, not True"),
        ("query_text_limit", 5000, "query_text_limit is an int from 0 to 4096, not 5000"),
        ("retry_atomic_requests", 2, "retry_atomic_requests is a bool or options of retry_view, not 2"),
        (
            "retry_atomic_requests",
            {"max_attempt": 2},
            "retry_view has no option 'max_attempt'; did you mean 'max_attempts'",
        ),
    ],
)
def test_wrong_value_is_refused_where_it_is_read(name, wrong, told):
    """What cannot be meant is refused with what the option is: as a keyword argument, and in the setting."""
    with pytest.raises((TypeError, ValueError), match=told):
        read(**{name: wrong})
    with (
        override_settings(OTEL_CRDB={name: wrong}),
        pytest.raises(ImproperlyConfigured, match=rf"^OTEL_CRDB\['{name}'\]"),
    ):
        read()


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("TRACES", "maybe", "OTEL_CRDB_TRACES is a bool, not 'maybe': say one of true, 1, yes, on, false"),
        ("QUERY_TEXT_LIMIT", "1e3", "OTEL_CRDB_QUERY_TEXT_LIMIT is an int from 0 to 4096, not '1e3'"),
        ("QUERY_TEXT_LIMIT", "5000", "OTEL_CRDB_QUERY_TEXT_LIMIT is an int from 0 to 4096, not 5000"),
        ("RETRY_ATOMIC_REQUESTS", "{", "OTEL_CRDB_RETRY_ATOMIC_REQUESTS is a bool or options"),
        (
            "EXCLUDED_URL",
            "x",
            "The variable OTEL_CRDB_EXCLUDED_URL is no option; did you mean 'excluded_urls'",
        ),
        ("TRACER_PROVIDER", "x", "The variable OTEL_CRDB_TRACER_PROVIDER is no option"),
    ],
)
def test_wrong_variable_is_refused_by_its_name(monkeypatch, variable, text, told):
    """A variable that does not exist or cannot be read is refused by its own name, with the nearest right one."""
    monkeypatch.setenv(f"OTEL_CRDB_{variable}", text)
    with pytest.raises(ImproperlyConfigured, match=told):
        read()


def test_unknown_names_are_refused_with_the_nearest_right_one():
    """An option that does not exist is refused by the name of the nearest that does; so is an alias."""
    with pytest.raises(TypeError, match="has no option 'node_ids'; did you mean 'node_id'"):
        otel_crdb.instrument(node_ids=True)
    with (
        override_settings(OTEL_CRDB={"node_ids": True}),
        pytest.raises(
            ImproperlyConfigured, match=r"OTEL_CRDB\['node_ids'\] is no option; did you mean 'node_id'"
        ),
    ):
        otel_crdb.instrument()
    with pytest.raises(ImproperlyConfigured, match="DATABASES has no alias 'othr'; did you mean 'other'"):
        otel_crdb.instrument(excluded_aliases="othr")
    with (
        override_settings(OTEL_CRDB=["node_id"]),
        pytest.raises(ImproperlyConfigured, match="The setting OTEL_CRDB is a dict of options"),
    ):
        otel_crdb.instrument()


def test_reference_is_what_the_options_are():
    """docs/options.md is made from the options (`python -m otel_crdb.option_page > docs/options.md`)."""
    assert PAGE.read_text() == option_page.page()


def test_variables_of_kubernetes_are_no_options(monkeypatch):
    """What a Service called ``otel-crdb`` puts into every pod is passed over."""
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_HTTP",
        "PORT",
        "PORT_4318_TCP",
        "PORT_4318_TCP_ADDR",
    ):
        monkeypatch.setenv(f"OTEL_CRDB_{name}", "tcp://10.0.0.1:4318")
        monkeypatch.setenv(f"OTEL_CRDB_X_{name}", "tcp://10.0.0.1:4318")
    assert read() == config.Config()
