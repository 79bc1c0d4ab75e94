# SPDX-License-Identifier: Apache-2.0
"""Types what a page says, in a folder of its own, and looks for what the page says is to be seen."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

from demo.receiver import Receiver
from tests.processes import DEADLINE, free_port, until

from . import commands

BIN = Path(sys.executable).parent
#: Of our own run, which the page's reader has not.
OURS = re.compile("DJANGO_SETTINGS_MODULE|TEST_DATABASES|PYTEST_|OTEL_|PYTHONPATH")


class Typist:
    """A reader with two terminals: one for the server, one for everything else."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.stack = stack
        #: The page's ports, and those of this run.
        self.ports = {"26257": free_port(), "8000": free_port(), "4318": free_port()}
        self.terminal, self.server_log = folder / "terminal.log", folder / "server.log"
        self.server = self.receiver = None
        self._marks = {self.terminal: 0, self.server_log: 0}
        for log in self._marks:
            log.touch()
        (folder / ".curlrc").write_text("silent\n")  # as it is on a terminal

    def do(self, block):
        """Do what a block says."""
        {"sh": self.type, "python": self.write, "text": self.look_for}[block.language](block)

    # --- what is written -----------------------------------------------------------------------------------

    def write(self, block):
        """Write the file that a block is, or add to it."""
        path = self.folder / block.file
        before = path.read_text() if block.at_end else ""
        path.write_text(before + self._with_ports(block.text))

    # --- what is typed -------------------------------------------------------------------------------------

    def type(self, block):
        """Type a block's lines; what cannot be done here is looked at."""
        text = self._with_ports(block.text)
        if "docker compose" in text:
            self._start_collector()
        if commands.checked_only(text):
            commands.check(block)
        elif "runserver" in text:
            self._start_server(text)
        else:
            self._run(text)

    def _run(self, text):
        self._mark()
        text = text.replace("fault-proxy embedded", f"fault-proxy embedded --listen {self.ports['26257']}")
        shell = self._shell(text, self.terminal)
        assert shell.wait(DEADLINE) in self._statuses(text), self.everything()

    @staticmethod
    def _statuses(text):
        return (0, 1) if "doctor" in text else (0,)  # which has an opinion

    def _start_server(self, text):
        self.stop_server()
        self._mark()
        self.server = self._shell(f"exec env {text.strip()} {self.ports['8000']}", self.server_log)
        self._until(lambda: listens(self.ports["8000"]), "the server listens")

    def stop_server(self):
        """Stop the server as Ctrl-C does."""
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGINT)
            assert self.server.wait(DEADLINE) == 0, self.everything()
            self.server = None

    def _start_collector(self):
        if self.receiver is None:
            self.receiver = self.stack.enter_context(Receiver())
            self.ports["4318"] = int(self.receiver.endpoint.rpartition(":")[2])

    def _shell(self, text, log):
        inherited = {name: value for name, value in os.environ.items() if not OURS.match(name)}
        environment = {
            **inherited,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "CURL_HOME": str(self.folder),
            "PYTHONWARNINGS": "error",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            # A reader has none either; where the page says nothing, nobody listens there.
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://localhost:{self.ports['4318']}",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-e", "-c", text],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.stack.callback(_end, process)
        return process

    # --- what is seen --------------------------------------------------------------------------------------

    def look_for(self, block):
        """Wait until a block's lines have been printed in their order since the last command; … is anything."""
        lines = [_pattern(line) for line in self._with_ports(block.text).splitlines()]
        self._until(lambda: any(_has_in_order(lines, self._since(log)) for log in self._marks), str(block))

    def _mark(self):
        for log in self._marks:
            self._marks[log] = log.stat().st_size

    def _since(self, log):
        return log.read_bytes()[self._marks[log] :].decode(errors="replace")

    def everything(self):
        """Return all that was printed."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self._marks)

    def _with_ports(self, text):
        for port, ours in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(ours), text)
        return text

    def _until(self, condition, what):
        until(condition, what, self.everything)


def _end(process):
    try:
        os.killpg(process.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    process.wait()


def _pattern(line):
    words = line.strip().rstrip(",")
    return re.compile(r"\s*".join(".*".join(map(re.escape, word.split("…"))) for word in words.split()))


def _has_in_order(patterns, text):
    lines = iter([line.strip().rstrip(",") for line in text.splitlines()])
    return all(any(pattern.fullmatch(line) for line in lines) for pattern in patterns)


def listens(port):
    """Whether somebody listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
