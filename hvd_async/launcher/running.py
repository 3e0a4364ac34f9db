"""Running a command, and passing signals on to it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Mapping
from types import FrameType

from hvd_async.errors import SetupError
from hvd_async.launcher.command import Command
from hvd_async.ties import tie_to

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run_command(command: Command, environ: Mapping[str, str], stop_signal: int | None = None) -> int:
    """Run `command` on top of `environ`, pass SIGINT, SIGTERM and SIGUSR1 on to it, and return its exit status.

    They are passed on as `stop_signal`, if given, but for a second SIGINT: mpirun and srun would kill their ranks for the
    signal itself, but hand SIGUSR1 to all of them, who then save everything. Blocks until the command ends. To be called in
    the main thread, as signal handlers are.
    """
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    received: list[int] = []

    def forward(signal_number: int, frame: FrameType | None) -> None:
        # Ctrl-C again: it is not to wait. Batch systems repeat the others, and mean nothing by it.
        is_again = bool(received) and signal_number == signal.SIGINT
        passed_on = signal_number if is_again or stop_signal is None else stop_signal
        received.append(signal_number)
        if children:
            children[0].send_signal(passed_on)
        else:
            early.append(passed_on)

    # Handlers first: a signal that found the command started and no handler would leave it behind.
    previous = {number: signal.signal(number, forward) for number in _PASSED_ON}
    try:
        # A session of its own, or a terminal's Ctrl-C would come twice, once through us: mpirun kills on the second.
        # Tied to us: killed, we could not end it.
        tie = functools.partial(tie_to, os.getpid())
        children.append(subprocess.Popen(command.argv, env=command.environ(environ), start_new_session=True, preexec_fn=tie))
        for number in early:
            children[0].send_signal(number)
        status = children[0].wait()
    except OSError as error:
        raise SetupError(f"{command.argv[0]}: cannot be started: {error.strerror}; is it installed and on PATH?") from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received and stop_signal is not None and status in (-stop_signal, 128 + stop_signal):
        return 128 + received[0]  # it stopped for what we were sent
    return 128 - status if status < 0 else status
