"""Running a command, and passing signals on to it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from hvd_async.errors import SetupError
from hvd_async.handlers import handling
from hvd_async.launcher.command import Command
from hvd_async.ties import tie_to

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, 128 + signal if one killed it, and the first signal that we were sent meanwhile."""

    status: int
    signal: int | None = None


def run_command(
    command: Command, environ: Mapping[str, str], stop_signal: int | None = None, errors: int | None = None
) -> Ended:
    """Run `command` on top of `environ`, pass SIGINT, SIGTERM and SIGUSR1 on to it, until it ends.

    They are passed on as `stop_signal`, if given: mpirun and srun keep others for themselves, but hand SIGUSR1 to all ranks, who
    then save everything. At a second SIGINT it is SIGTERM, for which they kill their ranks. `errors`: a descriptor for the
    command's standard error, in place of ours; its standard input is empty. Blocks. To be called in the main thread, as signal
    handlers are. Raises `SetupError` where the command cannot be started.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    received: list[int] = []

    def forward(signal_number: int, frame: FrameType | None) -> None:
        # Ctrl-C again: it is not to wait. Batch systems repeat the others, and mean nothing by it.
        is_again = bool(received) and signal_number == signal.SIGINT
        passed_on = signal_number if stop_signal is None else signal.SIGTERM if is_again else stop_signal
        received.append(signal_number)
        if children:
            children[0].send_signal(passed_on)
        else:
            early.append(passed_on)

    # Handlers first: a signal that found the command started and no handler would leave it behind.
    with handling(_PASSED_ON, forward):
        # A session of its own, or a terminal's Ctrl-C would come twice, once through us: mpirun kills on the second.
        # Tied to us: killed, we could not end it.
        tie = functools.partial(tie_to, os.getpid())
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
        status = children[0].wait()
    return Ended(128 - status if status < 0 else status, received[0] if received else None)
