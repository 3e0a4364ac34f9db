"""Child processes: how they are told to stop, and how none of them outlives this one."""

from __future__ import annotations

import codecs
import contextlib
import functools
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from hvd_async.errors import SetupError, StoppedBySignal
from hvd_async.system import interpreter
from hvd_async.system.parent_death import tie_to
from hvd_async.system.signals import STOP_SIGNALS, SignalForwarder, handling

_LOOK_SECONDS = 0.5
# Time between asking a command to end by SIGTERM and killing it.
_LAST_SECONDS = 15.0
# Time until a process that was asked to end is asked again: it first saves everything, on all its ranks.
_PATIENCE_SECONDS = 60.0
# Time until it is then killed: at a Ctrl-C after another signal `launch` has its ranks killed, which would outlive it.
_SECOND_PATIENCE_SECONDS = 10.0
_KEPT_CHARACTERS = 4096  # bytes of the end of a process's output


@dataclass(frozen=True)
class Command:
    """An argument vector, with variables to add to the caller's environment and variables to remove from it."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    without: tuple[str, ...] = ()

    def environ(self, callers: Mapping[str, str]) -> dict[str, str]:
        """Return the environment to run the command in, derived from the caller's."""
        return {**{name: value for name, value in callers.items() if name not in self.without}, **self.environment}

    def shell_text(self) -> str:
        """Return one line that runs the command when pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        if self.without:
            words = ["env", *(word for name in self.without for word in ("-u", name)), *words]
        return " ".join([*words, shlex.join(self.argv)])


@dataclass(frozen=True)
class Ended:
    """Outcome of a command: its exit status (128 + signal if a signal killed it), and the first signal that this process
    got in the meantime.

    `is_killed`: SIGKILL ended the command itself, and the processes that it started may still exist.
    """

    status: int
    signal: int | None = None
    is_killed: bool = False


@dataclass(frozen=True)
class Stopping:
    """Rules for asking a command to stop.

    `signal`: sent instead of the signal that we get; mpirun and srun handle other signals themselves, but pass SIGUSR1 to
    all ranks, which then save everything. `patience_seconds`: how long the command may take; longer while `is_saving`,
    but no longer than `saving_seconds`. After that it is sent SIGTERM, on which mpirun kills its ranks, and is killed in
    the end. `is_in_vain`, asked with its process id: whether it is to be killed although nobody asked it to stop.
    """

    signal: int | None = None
    patience_seconds: float = 180.0
    is_saving: Callable[[], bool] = lambda: False
    saving_seconds: float = 3600.0
    is_in_vain: Callable[[int], bool] = lambda process: False


def ask(argv: Sequence[str], hint: str, timeout_seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command with empty standard input and return the text that it prints, whatever its exit status.

    Raises `SetupError`, which ends with `hint`, if the command cannot be started or does not answer in time. Blocks.
    """
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_seconds,  # a broken installation may hang rather than answer
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{' '.join(argv)}: {error}; {hint}") from None


def run_command(
    command: Command, environ: Mapping[str, str], stopping: Stopping = Stopping(), errors: int | None = None
) -> Ended:
    """Run `command` on top of `environ`, and forward signals that ask us to stop, until it ends.

    A second SIGINT sends it SIGTERM at once. If this process is killed, the command is asked to stop as well. `errors`: a
    descriptor for the command's standard error, instead of ours; its standard input is empty. Blocks. Call it in the main
    thread, as signal handlers require. Raises `SetupError` if the command cannot be started.
    """

    def translate(number: int, is_repeated: bool) -> int:
        # Ctrl-C again: the user does not want to wait. Batch systems repeat other signals, and mean nothing by it.
        if is_repeated and number == signal.SIGINT:
            return signal.SIGTERM
        return number if stopping.signal is None else stopping.signal

    forwarder = SignalForwarder(translate)
    with forwarder.forwarding():
        # If we are killed, the kernel sends the command the signal that makes it save.
        tie = functools.partial(tie_to, os.getpid(), signal.SIGTERM if stopping.signal is None else stopping.signal)
        try:
            process = subprocess.Popen(
                command.argv,
                env=command.environ(environ),
                stdin=subprocess.DEVNULL,  # ours may be the list of a shell loop, which mpirun would read to its end
                stderr=errors,
                start_new_session=True,  # otherwise a terminal's Ctrl-C would come twice, and mpirun kills on the second
                preexec_fn=tie,
            )
        except OSError as error:
            raise SetupError(
                f"{command.argv[0]}: cannot be started: {error.strerror}; is it installed and on PATH?"
            ) from None
        forwarder.attach(process)
        status = _wait(process, stopping, lambda: forwarder.received[0][1] if forwarder.received else None)
    first = forwarder.received[0][0] if forwarder.received else None
    return Ended(128 - status if status < 0 else status, first, is_killed=status == -signal.SIGKILL)


def _wait(child: subprocess.Popen[bytes], stopping: Stopping, asked_at: Callable[[], float | None]) -> int:
    """Wait for `child`, which must end some time after it was asked to."""
    last = [(_LAST_SECONDS, signal.SIGKILL), (0.0, signal.SIGTERM)]
    while True:
        try:
            return child.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            asked = asked_at()
        if asked is None:
            if stopping.is_in_vain(child.pid):
                child.kill()
            continue
        late = time.monotonic() - asked - stopping.patience_seconds
        if late < stopping.saving_seconds and stopping.is_saving():
            continue
        if last and late > last[-1][0]:
            child.send_signal(last.pop()[1])


class Children:
    """Processes that end with the block of this context manager, at the latest. Threads may run several at a time."""

    def __init__(self, inherited: Sequence[int] = ()) -> None:
        """Start without processes. `inherited`: file descriptors that all processes keep open as long as they live."""
        self._inherited = inherited
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether the block was left, so that no process is started any more."""
        return self._is_over

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
            left = list(self._running)
        for process in left:
            process.terminate()
        for process in left:
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_SECOND_PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()

    def run(
        self, arguments: Sequence[str], inherited: Sequence[int] = (), *, in_sight: bool = False
    ) -> subprocess.CompletedProcess[str] | None:
        """Run `hvd-async` with `arguments`; return None if it was ended, or not started, because the block was left.
        Blocks. `in_sight`: its output goes to ours, and is not in the result.

        The process is told to stop, too, if this one is killed. It keeps the descriptors `inherited` open besides those
        of all processes.
        """
        command = _tied(arguments)
        with self._lock:
            if self._is_over:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=None if in_sight else subprocess.PIPE,
                stderr=None if in_sight else subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                pass_fds=(*self._inherited, *inherited),
                start_new_session=True,  # a terminal's Ctrl-C goes to us, and we forward it
            )
            self._running.add(process)
        output, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
            return None if self._is_over else subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_in_sight(
    arguments: Sequence[str], verb: str, hint: str, inherited: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `hvd-async` with `arguments`; its output goes to ours, and the end of its errors is in the result, too. Blocks,
    in the main thread; `inherited` as for `Children`.

    At a stop signal the process is asked to end, and waited for: the batch system, which kills in the end, decides how
    long it may save. Raises `StoppedBySignal`, for `verb` and with `hint`, if the process ended for that reason.
    """

    def translate(number: int, is_repeated: bool) -> int | None:
        # Later ones are repetitions by batch systems; only a person who asks again wants it at once.
        if not is_repeated:
            return signal.SIGTERM
        return signal.SIGINT if number == signal.SIGINT else None

    forwarder = SignalForwarder(translate)
    with forwarder.forwarding():
        command = _tied(arguments)
        sys.stdout.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=inherited, start_new_session=True
        )
        forwarder.attach(process)
        errors = _Echo(process)
        errors.start()
        status = process.wait()
        errors.join(_SECOND_PATIENCE_SECONDS)  # processes that it started may outlive it, with the pipe open
    if forwarder.received and status in {sign for number in STOP_SIGNALS for sign in (128 + number, -number)}:
        first = forwarder.received[0][0]
        raise _stopped(verb, first, hint)
    return subprocess.CompletedProcess(command, status, "", errors.tail)


class _Echo(threading.Thread):
    """Copies the stderr of `process` to ours until it is closed, and keeps its end in `tail`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="hvd-async-echo", daemon=True)
        self._process = process
        self.tail = ""

    def run(self) -> None:
        assert self._process.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with self._process.stderr as stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                text = decoder.decode(chunk)
                self.tail = (self.tail + text)[-_KEPT_CHARACTERS:]
                with contextlib.suppress(OSError):  # ours has no reader; the run must not wait for that
                    sys.stderr.write(text)
                    sys.stderr.flush()


def _tied(arguments: Sequence[str]) -> list[str]:
    parent = ("--parent", str(os.getpid()))
    return [sys.executable, *interpreter.flags(), "-m", "hvd_async", *parent, *arguments]  # a list, no shell


def _stopped(verb: str, number: int, hint: str) -> StoppedBySignal:
    return StoppedBySignal(f"{verb}: stopped by {signal.Signals(number).name}; {hint}", number)


@contextlib.contextmanager
def stopping_on_signals(verb: str, hint: str) -> Iterator[None]:
    """Raise `StoppedBySignal`, for `verb` and with `hint`, at the first stop signal inside the block. In the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the processes are being ended, which a second signal must not prevent
        raise _stopped(verb, number, hint)

    with handling(STOP_SIGNALS, stop):
        yield
