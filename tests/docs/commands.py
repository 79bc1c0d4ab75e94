# SPDX-License-Identifier: Apache-2.0
"""Commands that a page shows and no test runs: whether they could be, word by word.

A package that is to be installed is one that this project names, a target stands in the Makefile, a program is
installed, options parse, a variable is one that somebody reads.
"""

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import yaml
from django.core.management import load_command_class

from otel_crdb import cli, config

from .pages import ROOT

BIN = Path(sys.executable).parent
#: What a shell has; `exec`, `&` and redirections are looked at by :func:`commands_in`.
OF_THE_SHELL = {"echo", "kill", "curl", "docker", "export", "cd", "make", "python", "python3", "bash"}
#: Variables that are read by somebody else than OpenTelemetry and this package.
FOREIGN_VARIABLES = {"DRIVER", "DJANGO_SETTINGS_MODULE", "PYTHON", "DJANGO", "VENV", "EXAMPLES"}
#: Of the packages that others make, those that a page may ask to install.
FOREIGN_PACKAGES = {"pytest-django", "gunicorn", "uv"}


class NotACommandError(AssertionError):
    """Somebody who types this line gets an error."""


def check(block):
    """Look at every command of a block; raise :class:`NotACommandError` with the page and the line."""
    for number, line in enumerate(block.text.replace("\\\n", " ").splitlines(), block.line + 1):
        for words in commands_in(line):
            try:
                check_words(words)
            except (AssertionError, SystemExit, AttributeError, KeyError, ValueError) as error:
                raise NotACommandError(f"{block.page}:{number}: {line.strip()}: {error!r}") from error


def commands_in(line):
    """Return the commands of a line, each as its words, without comments, background marks and redirections."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    words.whitespace_split = True
    words.commenters = "#"
    command = []
    for word in words:
        if set(word) <= set("&;|"):
            yield from [command] if command else []
            command = []
        else:
            command.append(word)
    if command:
        yield command


def checked_only(text):
    """Whether a block's commands cannot be run in a test: what they install is not published, or needs Docker."""
    return all(words[0] in ("pip", "docker") for line in text.splitlines() for words in commands_in(line))


def check_words(words):
    """Look at one command."""
    words = words[: next((index for index, word in enumerate(words) if re.match(r"\d?>", word)), None)]
    while words and re.match(r"[A-Z][A-Z0-9_]*=", words[0]):
        check_variable(words.pop(0).partition("=")[0])
    if not words:
        return
    program, arguments = Path(words[0]).name, words[1:]
    known = CHECKS.get(program)
    if known is not None:
        known(arguments)
    else:
        assert program in OF_THE_SHELL or shutil.which(program, path=str(BIN)), "there is no such program"


def check_variable(name):
    """A variable before a command is read by somebody."""
    if name.startswith("OTEL_CRDB_TEST_") or name in FOREIGN_VARIABLES:
        return
    if name.startswith("OTEL_CRDB_"):
        options = {option.name for option in config.options()}
        assert name.removeprefix("OTEL_CRDB_").lower() in options, f"{name} is no option"
    elif name.startswith("OTEL_"):
        assert name in _variables_of_opentelemetry(), f"{name} is no variable of OpenTelemetry's"


def _variables_of_opentelemetry():
    found = set()
    for module in (opentelemetry.environment_variables, opentelemetry.sdk.environment_variables):
        found |= {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}
    folders = (
        Path(opentelemetry.environment_variables.__file__).parents[1] / "instrumentation",
        ROOT / "otel_crdb",
    )
    texts = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    return found | set(re.findall(r"OTEL_[A-Z_]+", texts))


def _pip(arguments):
    assert arguments[0] == "install", "pip is to install"
    extras = set(importlib.metadata.metadata("otel-crdb").get_all("Provides-Extra"))
    for package in arguments[1:]:
        name, _, brackets = package.partition("[")
        if name == "otel-crdb":
            assert set(brackets.rstrip("]").split(",")) - {""} <= extras, f"{package}: there is no such extra"
        elif not name.startswith("-"):
            assert name in FOREIGN_PACKAGES or importlib.metadata.version(name), name


def _make(arguments):
    named = [word for word in arguments if "=" not in word]
    for target in named:
        subprocess.run(
            ["make", "--dry-run", f"VENV={BIN.parent}", target], cwd=ROOT, capture_output=True, check=True
        )


def _python(arguments):
    if arguments[:1] == ["-c"]:
        compile(arguments[1], "a page", "exec")
    elif arguments[:2] == ["-m", "pytest"]:
        for path in arguments[2:]:
            assert path.startswith("-") or (ROOT / path).exists(), f"there is no {path}"
    elif arguments[:1] == ["-m"]:
        _module(arguments[1], arguments[2:])
    elif arguments[:1] == ["manage.py"]:
        _management_command(arguments[1])


def _module(name, arguments):
    if name == "otel_crdb":
        _otel_crdb(arguments)
    else:
        module = subprocess.run(
            [sys.executable, "-c", f"import importlib.util; assert importlib.util.find_spec({name!r})"],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert module.returncode == 0, f"there is no module {name}"
        if name == "soak":
            _options_of_the_soak(arguments)


def _options_of_the_soak(arguments):
    known = subprocess.run(
        [sys.executable, "-m", "soak", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for word in arguments:
        assert not word.startswith("--") or word in known, f"the soak has no {word}"


def _management_command(name):
    homes = ("django.core", "otel_crdb", "django.contrib.staticfiles")
    for home in homes:
        try:
            return load_command_class(home, name)
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"there is no command {name}")


def _otel_crdb(arguments):
    asked = cli._parser().parse_args(arguments)
    for name in getattr(asked, "names", []):
        cli._named(name)


def _docker(arguments):
    assert arguments[0] == "compose"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for word in arguments[2:]:
        assert word.startswith("-") or word in services, f"there is no service {word}"


CHECKS = {
    "pip": _pip,
    "make": _make,
    "python": _python,
    "otel-crdb": _otel_crdb,
    "docker": _docker,
}
