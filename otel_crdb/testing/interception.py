# SPDX-License-Identifier: Apache-2.0
"""What goes to the server and to the client in place of what the other has said, message for message.

No input and no output happen here: bytes go in, bytes come out, and `ending` tells when the link has to end.

The server itself keeps the state: where a statement is to fail, it gets one that it refuses, and the client
gets the fault in place of that refusal. So the transaction is aborted in truth, ReadyForQuery says so, and
what comes after is refused, by the server.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import faults
from .cockroach_restart import before_refusal, initial_savepoints, refusal, start_again
from .control_statements import control_of
from .exchanges import REFUSED, Exchange, Exchanges, Injection, execution, refused_execution
from .fault import Fault, Link, Upstream
from .frames import Frame, message, query, sqlstate
from .sql_transaction import ABORTED, IDLE, OPEN, SqlTransaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control_statements import Control
    from .fault import ErrorFields, Place

IN_FAILED_TRANSACTION = b"25P02"
_COPY_IN = re.compile(rb"\A\s*COPY\b.*\bFROM\s+STDIN\b", re.IGNORECASE | re.DOTALL)


class Interception:
    """One session after its start.

    `tell` takes note of a message for the client and gives its bytes; `pass_on` does that for one to the
    server. `strike` asks the rules. `emulates` says that the server behind does not know `cockroach_restart`,
    `version` which CockroachDB it is, or plays.
    """

    def __init__(
        self,
        tell: Callable[[Frame], bytes],
        pass_on: Callable[[Frame], bytes],
        strike: Callable[..., Fault | None],
    ) -> None:
        self._tell, self._pass_on, self._strike = tell, pass_on, strike
        self._exchanges = Exchanges()
        self._transaction = SqlTransaction()
        self._committed = False  # by RELEASE of cockroach_restart: it waits for its COMMIT
        # Up to the client's Sync: we drop its messages, or the server does, as it does after an error.
        self._skipping = self._server_skips = False
        self._committing: Exchange | None = None  # the Sync of a RELEASE that is not answered yet
        self.emulates = True
        self.version = (0, 0)
        self.ending: Link | None = None

    @property
    def held(self) -> bool:
        """Whether what the client says next has to wait: a RELEASE that fails has it skipped."""
        return self._committing is not None

    @property
    def waits(self) -> Place | None:
        """Where the session waits for the next statement; None: it has one."""
        if self._exchanges:
            return None
        return "idle" if self._transaction.status == IDLE else "idle_in_transaction"

    # --- from the client -----------------------------------------------------------------------------------

    def fault_for(self, kind: str, text: bytes | None) -> Fault | None:
        """Give the fault that meets a message with that text (None: it has none)."""
        if text is None or self._skipping or self._server_skips:
            return None
        control, transaction = control_of(text), self._transaction
        if kind == "P":
            runs = transaction.status != ABORTED
            return self._strike("statement", text, ordinary=False, planning=True) if runs else None
        if self._committed and control.kind not in ("commit", "rollback"):
            return faults.committed()
        refused = refusal(transaction, control, emulated=self.emulates)
        if refused is not None:
            return refused
        if transaction.status == ABORTED and control.kind != "rollback_to":
            return None  # the server runs nothing: it has no occasion to fail
        commits = control.kind == "commit" or (control.commits and transaction.has(control.savepoint))
        at_commit = self._strike("commit", text) if commits and transaction.status == OPEN else None
        return at_commit or self._strike("statement", text, ordinary=control.kind == "other")

    def passed(self, frame: Frame, text: bytes | None) -> bytes:
        """Give what goes to the server of a message that no fault meets."""
        if self._skipping and frame.kind not in "SX":
            return b""
        if frame.kind == "S":
            self._skipping = self._server_skips = False
        data = self._pass_on(frame)
        if frame.rest:
            return data
        if text is not None and frame.kind == "P":
            data = self._parsed(data, text)
        elif text is not None:
            control = control_of(text)
            if self.emulates and control.kind == "release" and control.commits:
                if self._transaction.status == OPEN and self._transaction.has(control.savepoint):
                    return self._committed_by_release(frame.kind)
            elif (again := start_again(self._transaction, control)) is not None:
                self._transaction.sent(control_of(again), again)
                return self._closed(frame) + self._run(frame.kind, [again], shown=True)
            self._transaction.sent(control, text)
        self._exchanges.sent(Exchange(frame.kind))
        return data

    def _closed(self, frame: Frame) -> bytes:
        """Give what closes the portal that was to be executed: the server cannot drop it in silence."""
        if frame.kind == "Q":
            return b""
        self._exchanges.sent(Exchange("C", shown=False))
        return message("C", b"P" + frame.strings(1)[0].encode() + b"\0")

    def _parsed(self, data: bytes, text: bytes) -> bytes:
        """Give what the server parses: in an aborted transaction it would refuse SAVEPOINT."""
        again = start_again(self._transaction, control_of(text))
        if again is None:
            return data
        name, _, types = data[5:].split(b"\0", 2)
        return message("P", b"\0".join((name, again, types)))

    def struck(self, frame: Frame, text: bytes, fault: Fault) -> bytes:
        """Give what goes to the server in place of a message that a fault meets."""
        data = self._pass_on(frame)
        control, transaction = control_of(text), self._transaction
        retry = any(error.sqlstate == "40001" for error in fault.errors)
        injection = Injection(fault.errors, fault.link)
        if transaction.status == OPEN:
            transaction.struck, transaction.restarted = True, retry
        if fault.upstream is Upstream.APPLIED and (
            control.commits or (transaction.status == IDLE and not _COPY_IN.match(text))
        ):
            return self._applied(frame.kind, data, control, text, injection)
        if control.kind == "commit" and transaction.status == OPEN:
            transaction.sent(control, text)
            return self._run(frame.kind, [b"ROLLBACK"], injection)
        before: list[bytes] = []
        if transaction.status == OPEN:
            released = fault.upstream is Upstream.RELEASED
            before = before_refusal(
                transaction, control, released=released, retry=retry, version=self.version
            )
            transaction.status = ABORTED
        injection.refused = True
        return self._run(frame.kind, before, injection)

    def _applied(self, kind: str, data: bytes, control: Control, text: bytes, injection: Injection) -> bytes:
        """Have the server run the statement for good, and the client hear something else of it."""
        if control.kind == "release":
            self._transaction.status = ABORTED
            injection.refused = True
            return self._run(kind, [b"COMMIT", b"BEGIN"], injection)
        self._transaction.sent(control, text)
        if kind == "Q":
            self._exchanges.sent(Exchange("Q", shown=False, injection=injection))
            return data
        # What stands outside a transaction takes effect at the Sync only.
        self._exchanges.sent(Exchange("E", shown=False, prepares=injection))
        self._exchanges.sent(Exchange("S", shown=False, ready=False, injection=injection))
        self._skipping = True
        return data + message("S", b"")

    def _committed_by_release(self, kind: str) -> bytes:
        """Commit where CockroachDB does, and leave the server in a transaction that waits for its end."""
        self._transaction.status = ABORTED  # so the server sees it: it refuses all but COMMIT and ROLLBACK
        commit = self._run(kind, [b"COMMIT"], shown=True, ready=False)
        if kind != "Q":
            # Whether it succeeds or not, what follows has to run.
            self._committing = Exchange("S", shown=False, ready=False)
            self._exchanges.sent(self._committing)
            commit += message("S", b"")
        # With its savepoints: a COMMIT that is refused leaves them, and the client may go back to them.
        again = [self._transaction.begun_by, *initial_savepoints(self._transaction)]
        refused = self._run(kind, again, Injection(refused=True))
        if kind != "Q":
            self._exchanges.sent(Exchange("S", shown=False, ready=False))
            self._server_skips = False
            refused += message("S", b"")
        return commit + refused

    def _run(
        self,
        kind: str,
        texts: list[bytes],
        injection: Injection | None = None,
        *,
        shown: bool = False,
        ready: bool = True,
    ) -> bytes:
        """Run statements of ours in place of the client's, and one that is refused if the injection needs it.

        The answer to the last of them is `shown`, or is the `injection`.
        """
        refused = injection is not None and injection.refused
        if kind == "Q":
            messages = [("Q", query(text)) for text in texts] + ([("Q", query(REFUSED))] if refused else [])
        else:
            messages = [part for text in texts for part in execution(text)]
            messages += refused_execution() if refused else []
            # After a refusal the server skips by itself; where there is none, the client believes in one.
            self._skipping, self._server_skips = injection is not None and not refused, refused
        for each, _ in messages[:-1]:
            self._exchanges.sent(Exchange(each, shown=False, ready=False))
        self._exchanges.sent(Exchange(messages[-1][0], shown=shown, ready=ready, injection=injection))
        # An error is heard at once, whoever waits for a Sync: what stands for it has to be, too.
        flush = message("H", b"") if kind != "Q" and injection is not None and not refused else b""
        return b"".join(data for _, data in messages) + flush

    # --- from the server -----------------------------------------------------------------------------------

    def heard(self, frame: Frame) -> bytes:
        """Give what the client hears in place of a message of the server."""
        answer = self._exchanges.received(frame)
        if answer is None:
            return self._tell(frame)
        exchange, ended = answer
        heard = b""
        if frame.kind == "E" and not exchange.shown:
            heard += self._refused(exchange, frame)
        elif exchange.shown and frame.kind != "Z":
            heard += self._tell(self._as_cockroachdb(frame))
            self._committed |= frame.kind == "C" and not exchange.ready
        injection = exchange.injection
        if ended and injection is not None and not injection.undone:
            heard += self.told(injection.errors)
            self.ending = injection.link if injection.link is not Link.OPEN else None
        if frame.kind == "Z":
            heard += self._ready(exchange, frame)
            if exchange is self._committing:
                self._committing, self._skipping = None, not self._committed
        return heard

    def told(self, errors: tuple[ErrorFields, ...]) -> bytes:
        """Give the bytes of errors that come from us, and take note of them as of any other."""
        return b"".join(self._tell(Frame("E", error.to_bytes())) for error in errors)

    def _refused(self, exchange: Exchange, frame: Frame) -> bytes:
        """Give what is heard of the error of a statement of ours: nothing where it was meant to fail."""
        injection = exchange.injection or exchange.prepares
        if injection is None or injection.refused:
            return b""
        injection.undone = True
        return self._tell(frame)

    def _ready(self, exchange: Exchange, frame: Frame) -> bytes:
        status = chr(frame.data[5])
        if not self._exchanges:  # else more was sent since, and what we know is newer
            self._transaction.answered(status)
        if not exchange.ready or self.ending is not None:
            return b""
        frame = self._as_cockroachdb(frame)
        if status == IDLE:
            self._committed = False
        return self._tell(frame)

    def _as_cockroachdb(self, frame: Frame) -> Frame:
        """Put in CockroachDB's words what PostgreSQL says in a state that stands for one it has not."""
        kind = frame.kind
        if kind == "E" and sqlstate(frame.data[5:]) == IN_FAILED_TRANSACTION:
            if self._committed:
                return Frame("E", faults.committed().errors[0].to_bytes())
            if self._transaction.struck:
                return Frame("E", faults.aborted().errors[0].to_bytes())
        if self._committed and kind == "C" and frame.data[5:] == b"ROLLBACK\0":
            return Frame("C", message("C", b"COMMIT\0"))
        if self._committed and kind == "Z" and chr(frame.data[5]) == ABORTED:
            return Frame("Z", message("Z", OPEN.encode()))
        return frame
