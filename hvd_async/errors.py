"""What a caller may catch, and the exit status that each becomes on the command line."""

from __future__ import annotations


class HvdAsyncError(Exception):
    """Base of every error meant for a user.

    The message is one line (or one line per fault) that says what is wrong, what was found, what was expected and how to
    hint it. The command line prints it without a traceback and ends with `exit_status`.
    """

    exit_status = 1
    is_on_all_ranks = False
    """Whether every rank raises it alike, so that none has to tell or to end the others."""


class ConfigError(HvdAsyncError):
    """A configuration file, an override or a command-line argument that cannot be used."""

    exit_status = 2


class DataError(HvdAsyncError):
    """A corpus, vocabulary, model folder or text file that is missing, empty, misaligned or damaged."""

    exit_status = 3


class SetupError(HvdAsyncError):
    """The machine, the launcher or an installed package does not fit what was asked for."""

    exit_status = 4


class CheckpointError(HvdAsyncError):
    """A checkpoint that is missing, damaged, or of another run."""

    exit_status = 5


class PeerError(HvdAsyncError):
    """Another rank failed, fell silent, or left while this one depended on it.

    `is_reported`: the rank that failed has said so itself, and this one need not. `is_state_lost`: it held a part of the
    parameters, so that there is nothing whole to save.
    """

    exit_status = 6

    def __init__(self, message: str, *, is_reported: bool = False, is_state_lost: bool = False) -> None:
        """See the class."""
        super().__init__(message)
        self.is_reported = is_reported
        self.is_state_lost = is_state_lost


class StoppedBySignal(HvdAsyncError):
    """The run was asked to stop (by a signal on some rank) and did so cleanly.

    `signal_number` decides the exit status, 128 + signal, as shells have it.
    """

    is_on_all_ranks = True

    is_reporter: bool | None = None
    """Whether this rank tells it; None: as of other errors."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Keep the signal, from which the exit status follows."""
        super().__init__(message)
        self.exit_status = 128 + signal_number


class DivergedError(HvdAsyncError):
    """A run whose gradients or validation losses are not finite any more: it has ended, and what it made is of no use."""

    exit_status = 8
    is_on_all_ranks = True


class OrphanedError(HvdAsyncError):
    """The launcher of this rank is gone. Everything is saved; nothing may be done any more that needs the other ranks."""

    exit_status = 143


class DifferenceError(HvdAsyncError):
    """A recorded run that gives something else when it is computed again."""

    exit_status = 7
