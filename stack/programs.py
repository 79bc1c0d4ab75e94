# SPDX-License-Identifier: Apache-2.0
"""The programs of the stack: which versions, how each is built from its Go module, where it is kept.

Everything is pinned: a program's own `go.sum` says what it is made of, and those of `stack/otelcol` and
`stack/compose` for the two that have no module of their own. What is built is kept outside the tree, under a
name that changes with the pins.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).resolve().parent
LINES_OF_AN_ERROR = 15


class StackError(Exception):
    """The stack cannot be had, or does not do what it should. The message says in plain words why."""


class Progress(Protocol):
    """Who is told how far a build is."""

    def begin(self, title: str, packages: int) -> None:
        """Something of so many packages is begun."""

    def advance(self) -> None:
        """One more package is compiled."""


@dataclass(frozen=True)
class Program:
    """One program: a package of a Go module at one version, and what its build needs besides."""

    name: str
    version: str
    package: str
    #: The module with its version as Go spells it; empty: its sources are in a folder beside this file.
    module: str = ""
    tags: str = ""
    sources: str = ""
    #: Modules that its go.mod replaces by a folder which the published module lacks.
    without_replace: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where it is kept, built or not."""
        pins = [repr(self)]
        if self.sources:
            pins += [each.read_text() for each in sorted((HERE / self.sources).iterdir())]
        key = hashlib.sha256("\n".join(pins).encode()).hexdigest()[:12]
        return cache() / f"{self.name}-{self.version}-{key}" / self.name


# Service discovery of Prometheus is of no use here, and most of what there is to compile.
_NO_DISCOVERY = "remove_all_sd"
_PROMETHEUS = "github.com/prometheus/prometheus@v0.316.0"
PROGRAMS = {
    program.name: program
    for program in (
        Program("otelcol", "0.158.0", ".", sources="otelcol", tags=_NO_DISCOVERY),
        # The module's number is its first generation's; its cmd/jaeger is Jaeger 2.13.0.
        Program("jaeger", "2.13.0", "./cmd/jaeger", "github.com/jaegertracing/jaeger@v1.76.0"),
        Program(
            "loki",
            "3.7.8",
            "./cmd/loki",
            "github.com/grafana/loki/v3@v3.7.8",
            without_replace=("github.com/grafana/loki/pkg/push",),
        ),
        Program("prometheus", "3.16.0", "./cmd/prometheus", _PROMETHEUS, _NO_DISCOVERY),
        Program("promtool", "3.16.0", "./cmd/promtool", _PROMETHEUS, _NO_DISCOVERY),
        # What docker compose reads its files with.
        Program("compose-go", "2.9.1", ".", sources="compose"),
    )
}


def cache() -> Path:
    """Return the folder that programs are kept in: OTEL_CRDB_TEST_STACK_CACHE, else in the user's cache."""
    chosen = os.environ.get("OTEL_CRDB_TEST_STACK_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel_crdb" / "stack"


def path_of(name: str) -> Path:
    """Return the path of a program that was built.

    Raises:
        StackError: it was not.

    """
    path = PROGRAMS[name].path
    if not path.exists():
        raise StackError(f"{name} {PROGRAMS[name].version} is not built here: make stack-programs")
    return path


def missing(names: Iterable[str] = PROGRAMS) -> list[Program]:
    """Return those that are not built yet."""
    return [PROGRAMS[name] for name in names if not PROGRAMS[name].path.exists()]


def build(progress: Progress, names: Iterable[str] = PROGRAMS) -> None:
    """Build what is not there, one after another; another process that does so already is waited for.

    Modules and compiled packages are kept in a folder that goes with the end of the build: Go's own caches
    are left as they were.

    Raises:
        StackError: Go is missing, or a build failed.

    """
    if not missing(names):
        return
    go = shutil.which("go")
    if go is None:
        raise StackError(
            "Go is not on the PATH. The collector, Jaeger, Loki and Prometheus are built from their modules: "
            "install Go 1.26 or newer, or use `docker compose up` instead"
        )
    cache().mkdir(parents=True, exist_ok=True)
    with _alone():
        workshop = cache() / "workshop"
        # What an interrupted build has left is used on: it is of the same modules.
        for program in missing(names):
            _Build(go, workshop, program).run(progress)
        shutil.rmtree(workshop, ignore_errors=True)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Build:
    """One program's build."""

    def __init__(self, go: str, workshop: Path, program: Program) -> None:
        self._go = go
        self._workshop = workshop
        self._program = program
        self._environment = {
            **os.environ,
            "GOCACHE": str(workshop / "compiled"),
            "GOMODCACHE": str(workshop / "modules"),
            # Writable: the folder is removed in the end.
            "GOFLAGS": "-modcacherw -buildvcs=false",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
        }

    def run(self, progress: Progress) -> None:
        """Build it, and put it in its place as one step."""
        title = f"{self._program.name} {self._program.version}"
        progress.begin(title, 0)
        sources = self._sources()
        options = self._options(sources)
        packages = self._output(sources, "list", "-deps", *options, self._program.package).count("\n")
        progress.begin(title, packages)
        made = self._workshop / self._program.name
        self._compile(
            sources,
            progress,
            ["build", "-v", *options, "-trimpath", "-ldflags=-s -w", "-o", str(made), self._program.package],
        )
        self._program.path.parent.mkdir(parents=True, exist_ok=True)
        made.replace(self._program.path)

    def _sources(self) -> Path:
        if self._program.sources:
            return HERE / self._program.sources
        self._workshop.mkdir(parents=True, exist_ok=True)
        told = self._output(self._workshop, "mod", "download", "-json", self._program.module)
        return Path(json.loads(told)["Dir"])

    def _options(self, sources: Path) -> list[str]:
        options = [f"-tags={self._program.tags}"] if self._program.tags else []
        if not self._program.without_replace:
            return [*options, "-mod=readonly"]
        folder = self._workshop / f"{self._program.name}-mod"
        folder.mkdir(exist_ok=True)
        for name in ("go.mod", "go.sum"):
            (folder / name).write_bytes((sources / name).read_bytes())
        for module in self._program.without_replace:
            self._output(folder, "mod", "edit", f"-dropreplace={module}", "go.mod")
        return [*options, f"-modfile={folder / 'go.mod'}", "-mod=mod"]

    def _output(self, folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            [self._go, *arguments],
            cwd=folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self._judge(done.returncode, done.stderr.splitlines() or done.stdout.splitlines())
        return done.stdout

    def _compile(self, sources: Path, progress: Progress, arguments: list[str]) -> None:
        """Run the build, which names each package as it is done with it."""
        last: deque[str] = deque(maxlen=LINES_OF_AN_ERROR)
        with subprocess.Popen(
            [self._go, *arguments],
            cwd=sources,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stderr is not None
            try:
                for line in child.stderr:
                    last.append(line.rstrip())
                    progress.advance()
            except BaseException:
                child.kill()
                raise
        self._judge(child.returncode, list(last))

    def _judge(self, status: int, told: list[str]) -> None:
        if status:
            end = "\n".join(told[-LINES_OF_AN_ERROR:])
            raise StackError(f"{self._program.name} {self._program.version} could not be built:\n{end}")
