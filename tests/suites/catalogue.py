# SPDX-License-Identifier: Apache-2.0
"""Whose tests are run, of which version, and what must be told of them."""

from dataclasses import dataclass, field


def _words(*lines):
    return " ".join(lines).split()


#: Django's packages that are run on every change.
SHORT = _words(
    "async backends basic bulk_create db_utils delete get_or_create handlers logging_tests middleware queries",
    "raw_query select_for_update test_client transaction_hooks transactions update",
)
#: What is run besides where there is time.
LONG = _words(
    "admin_views aggregation aggregation_regress annotations asgi auth_tests cache constraints",
    "contenttypes_tests csrf_tests custom_columns db_functions dbshell defer deprecation expressions",
    "expressions_case file_uploads fixtures foreign_object generic_views httpwrappers introspection lookup",
    "many_to_many messages_tests migrations model_fields multiple_database prefetch_related requests_tests",
    "schema serializers servers sessions_tests settings_tests signals test_client_regress test_runner",
    "test_utils timezones user_commands view_tests",
)
#: What has ``logging_config()`` in force, in the run with the package.
WITH_LOGGING_CONFIG = ["handlers", "logging_tests"]
#: What is run behind the fault proxy too.
BEHIND_PROXY = ["backends", "queries", "transaction_hooks", "transactions"]

#: What the tests of Django's packages do, beside what their set-up does: of each there must be a span.
WITH_REQUESTS = frozenset(
    _words(
        "admin_views asgi auth_tests csrf_tests generic_views handlers middleware servers test_client",
        "test_client_regress view_tests",
    )
)
WITHOUT_STATEMENTS = frozenset(
    _words(
        "asgi csrf_tests db_utils dbshell deprecation handlers httpwrappers logging_tests middleware requests_tests",
        "settings_tests test_runner user_commands",
    )
)
WITH_TRANSACTIONS = frozenset(
    _words("backends migrations schema select_for_update transaction_hooks transactions")
)


@dataclass(frozen=True)
class Archive:
    """A file of PyPI's, of one version and with one content."""

    name: str
    version: str
    sha256: str | None = None


@dataclass(frozen=True)
class Application:
    """An application whose source distribution brings its tests."""

    source: Archive
    aliases: tuple[str, ...]  # of the databases that its tests use
    settings: str = ""  # the module that ours takes over but for the databases; "": pytest, and a URL
    folder: str = "."  # where its tests are run
    labels: tuple[str, ...] = ()
    needs: tuple[Archive, ...] = ()  # wheels, put into a folder of their own
    django: tuple[int, int] = (4, 2)  # the oldest that it supports
    kinds: frozenset[str] = field(default=frozenset({"request", "savepoint", "statement"}))


APPLICATIONS = {
    "django-guardian": Application(
        Archive(
            "django-guardian", "3.5.2", "ca14b7c9cc37bc852f3749f8a998a76cfd0ebbd66ac85726ef331289a712d389"
        ),
        aliases=("default",),
        settings="guardian.testapp.testsettings",
        labels=("guardian.testapp",),
        needs=(
            Archive(
                "django-environ", "0.14.0", "8dbe8a57f0a540ab8abd6f54f230de5e99e3a2c9d797cb9caecb037bca3d47d8"
            ),
        ),
    ),
    "django-reversion": Application(
        Archive(
            "django-reversion", "6.4.0", "fce089d8bab8d64b4ec41e9db758ce552ba06a008e42a1c9e4eb2f5faaa01cbc"
        ),
        aliases=("default", "postgres", "mysql"),
        settings="test_project.settings",
        folder="tests",
    ),
    "djangorestframework": Application(
        Archive(
            "djangorestframework",
            "3.18.3",
            "446a9b352e7eff630421ab3f2328bd2401b109a9470afa4a31189994911ed030",
        ),
        aliases=("default",),
        needs=(
            Archive(
                "dj-database-url", "3.1.2", "544e015fee3efa5127a1eb1cca465f4ace578265b3671fe61d0ed7dbafb5ec8a"
            ),
        ),
        django=(5, 2),
    ),
}
#: The one that is run on every change.
SHORT_APPLICATIONS = ["django-reversion"]


def kinds_of(package):
    """Give the kinds of spans that must be told of where this package of Django's is run."""
    kinds = frozenset()
    if package in WITH_REQUESTS:
        kinds |= {"request"}
    if package not in WITHOUT_STATEMENTS:
        kinds |= {"statement"}
    if package in WITH_TRANSACTIONS:
        kinds |= {"transaction", "COMMIT"}
    return kinds
