"""Processes that this one starts: how they are told to stop, and that none outlives it."""

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
# Between asking a command to end by SIGTERM and killing it.
_LAST_SECONDS = 15.0
# Until a process that was asked to end is asked again: it saves everything first, on all its ranks.
_PATIENCE_SECONDS = 60.0
# Until it is killed then: at a Ctrl-C after another signal `launch` has its ranks killed, which would outlive it.
_SECOND_PATIENCE_SECONDS = 10.0
_KEPT_CHARACTERS = 4096  # of the end of what a process says


@dataclass(frozen=True)
class Command:
    """An argument vector, the variables added to the caller's environment, and those taken out of it."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    without: tuple[str, ...] = ()

    def environ(self, callers: Mapping[str, str]) -> dict[str, str]:
        """The environment to run it in, from the caller's."""
        return {**{name: value for name, value in callers.items() if name not in self.without}, **self.environment}

    def shell_text(self) -> str:
        """One line that does the same when pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.items())]
        if self.without:
            words = ["env", *(word for name in self.without for word in ("-u", name)), *words]
        return " ".join([*words, shlex.join(self.argv)])


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


def ask(argv: Sequence[str], hint: str, timeout_seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command that answers in text, with nothing on its standard input, and return what it says, whatever its status.

    Raises `SetupError`, which ends with `hint`, where the command cannot be started or does not answer in time. Blocks.
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
    """Run `command` on top of `environ`, and pass signals that ask us to stop on to it, until it ends.

    At a second SIGINT it is sent SIGTERM at once. If this process is killed, the command is asked to stop all the same. `errors`:
    a descriptor for the command's standard error, in place of ours; its standard input is empty. Blocks. To be called in the main
    thread, as signal handlers are. Raises `SetupError` where the command cannot be started.
    """

    def translate(number: int, is_repeated: bool) -> int:
        # Ctrl-C again: it is not to wait. Batch systems repeat the others, and mean nothing by it.
        if is_repeated and number == signal.SIGINT:
            return signal.SIGTERM
        return number if stopping.signal is None else stopping.signal

    forwarder = SignalForwarder(translate)
    with forwarder.forwarding():
        # Tied to us: killed, we could not end it; and by the signal that lets it save.
        tie = functools.partial(tie_to, os.getpid(), signal.SIGTERM if stopping.signal is None else stopping.signal)
        try:
            process = subprocess.Popen(
                command.argv,
                env=command.environ(environ),
                stdin=subprocess.DEVNULL,  # ours may be a shell loop's list, of which mpirun would leave nothing
                stderr=errors,
                start_new_session=True,  # else a terminal's Ctrl-C would come twice, and mpirun kills on the second
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


class Children:
    """Processes that end, at the latest, with the block of this context manager. Threads may run several at a time."""

    def __init__(self, inherited: Sequence[int] = ()) -> None:
        """There are none. `inherited`: file descriptors that they keep open as long as they live."""
        self._inherited = inherited
        self._running: set[subprocess.Popen[str]] = set()
        self._is_over = False
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Whether the block was left: nothing is begun any more."""
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

    def run(self, arguments: Sequence[str], inherited: Sequence[int] = ()) -> subprocess.CompletedProcess[str] | None:
        """`hvd-async` with `arguments`; None if it was ended, or not begun, since the block was left. Blocks.

        It is told to stop as well if this process is killed, and keeps the descriptors `inherited` open beside those of all.
        """
        command = _tied(arguments)
        with self._lock:
            if self._is_over:
                return None
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                pass_fds=(*self._inherited, *inherited),
                start_new_session=True,  # a terminal's Ctrl-C is for us, who pass it on
            )
            self._running.add(process)
        output, errors = process.communicate()
        with self._lock:
            self._running.discard(process)
            return None if self._is_over else subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_in_sight(arguments: Sequence[str], inherited: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """`hvd-async` with `arguments`, which says what it says where we do; the end of its errors is in the result too. Blocks, in
    the main thread; `inherited` as of `Children`.

    At a signal that asks us to stop, it is asked to end, and waited for: the batch system, which kills in the end, decides how
    long it may save. Raises `StoppedBySignal` if it did end for that.
    """

    def translate(number: int, is_repeated: bool) -> int | None:
        # Later ones are repetitions, as batch systems send them; only a person who asks again wants it at once.
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
        errors.join(_SECOND_PATIENCE_SECONDS)  # what it started may have outlived it, with the pipe open
    if forwarder.received and status in {sign for number in STOP_SIGNALS for sign in (128 + number, -number)}:
        first = forwarder.received[0][0]
        raise StoppedBySignal(
            f"compare: stopped by {signal.Signals(first).name}; run the same command again to resume", first
        )
    return subprocess.CompletedProcess(command, status, "", errors.tail)


class _Echo(threading.Thread):
    """Writes to our stderr what comes from that of `process`, until it is closed, and keeps the end of it in `tail`."""

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
                with contextlib.suppress(OSError):  # nobody reads ours; the run is not to wait for that
                    sys.stderr.write(text)
                    sys.stderr.flush()


def _tied(arguments: Sequence[str]) -> list[str]:
    parent = ("--parent", str(os.getpid()))
    return [sys.executable, *interpreter.flags(), "-m", "hvd_async", *parent, *arguments]  # a list, no shell


@contextlib.contextmanager
def stopping_on_signals(hint: str) -> Iterator[None]:
    """Raise `StoppedBySignal` with `hint` at the first stop signal inside the block. In the main thread."""

    def stop(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # the processes are being ended, which a second signal must not prevent
        raise StoppedBySignal(f"compare: stopped by {signal.Signals(number).name}; {hint}", number)

    with handling(STOP_SIGNALS, stop):
        yield
