"""Running a command, and passing signals on to it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType

from hvd_async.errors import SetupError
from hvd_async.handlers import handling
from hvd_async.launcher.command import Command
from hvd_async.ties import tie_to

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_LOOK_SECONDS = 0.5
# Between asking a command to end by SIGTERM and killing it.
_LAST_SECONDS = 15.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, 128 + signal if one killed it, and the first signal that we were sent meanwhile.

    `is_killed`: SIGKILL ended the command itself, and whatever it had started may still be there.
    """

    status: int
    signal: int | None = None
    is_killed: bool = False


@dataclass(frozen=True)
class Stopping:
    """How a command is asked to stop.

    `signal`: what it is sent in place of what we are; mpirun and srun keep others for themselves, but hand SIGUSR1 to all ranks,
    who then save everything. `patience_seconds`: how long it may take, and longer while `is_saving`, but no longer than
    `saving_seconds`; then it is sent SIGTERM, for which mpirun kills its ranks, and killed in the end.
    """

    signal: int | None = None
    patience_seconds: float = 180.0
    is_saving: Callable[[], bool] = lambda: False
    saving_seconds: float = 3600.0


def run_command(
    command: Command, environ: Mapping[str, str], stopping: Stopping = Stopping(), errors: int | None = None
) -> Ended:
    """Run `command` on top of `environ`, and pass SIGINT, SIGTERM, SIGUSR1 and SIGHUP on to it, until it ends.

    At a second SIGINT it is sent SIGTERM at once. If this process is killed, the command is asked to stop all the same. `errors`:
    a descriptor for the command's standard error, in place of ours; its standard input is empty. Blocks. To be called in the main
    thread, as signal handlers are. Raises `SetupError` where the command cannot be started.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    received: list[tuple[int, float]] = []

    def forward(signal_number: int, frame: FrameType | None) -> None:
        # Ctrl-C again: it is not to wait. Batch systems repeat the others, and mean nothing by it.
        is_again = bool(received) and signal_number == signal.SIGINT
        own = signal_number if stopping.signal is None else stopping.signal
        passed_on = signal.SIGTERM if is_again else own
        received.append((signal_number, time.monotonic()))
        if children:
            children[0].send_signal(passed_on)
        else:
            early.append(passed_on)

    # Handlers first: a signal that found the command started and no handler would leave it behind.
    with handling(_PASSED_ON, forward):
        # A session of its own, or a terminal's Ctrl-C would come twice, once through us: mpirun kills on the second.
        # Tied to us: killed, we could not end it; and by the signal that lets it save.
        tie = functools.partial(tie_to, os.getpid(), signal.SIGTERM if stopping.signal is None else stopping.signal)
        own = command.environ(environ)
        try:
            # Our input may be a shell loop's list, of which mpirun would leave nothing.
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(
                command.argv, env=own, stdin=nothing, stderr=errors, start_new_session=True, preexec_fn=tie
            )
            children.append(process)
        except OSError as error:
            raise SetupError(
                f"{command.argv[0]}: cannot be started: {error.strerror}; is it installed and on PATH?"
            ) from None
        for number in early:
            children[0].send_signal(number)
        status = _wait(children[0], stopping, lambda: received[0][1] if received else None)
    first = received[0][0] if received else None
    return Ended(128 - status if status < 0 else status, first, is_killed=status == -signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes], stopping: Stopping, asked_at: Callable[[], float | None]) -> int:
    """Wait for `child`, which is to end some time after it was asked to."""
    last = [(_LAST_SECONDS, signal.SIGKILL), (0.0, signal.SIGTERM)]
    while True:
        try:
            return child.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            asked = asked_at()
        if asked is None:
            continue
        late = time.monotonic() - asked - stopping.patience_seconds
        if late < stopping.saving_seconds and stopping.is_saving():
            continue
        if last and late > last[-1][0]:
            child.send_signal(last.pop()[1])
