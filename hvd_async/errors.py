"""Exceptions that a caller may catch, and the exit status of each on the command line."""

from __future__ import annotations


class HvdAsyncError(Exception):
    """Base of every error meant for a user.

    The message has one line per problem, which says what is wrong, what was found, what was expected, and a hint. The
    command line prints the message without a traceback and exits with `exit_status`.
    """

    exit_status = 1
    is_on_all_ranks = False
    """Whether every rank raises the error alike, so that none has to notify or end the others."""


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
    """A checkpoint that is missing, damaged, or from another run."""

    exit_status = 5


class PeerError(HvdAsyncError):
    """Another rank failed, fell silent, or left while this rank depended on it.

    `is_reported`: the failed rank has reported the failure itself, so this rank need not. `is_state_lost`: the failed
    rank held a part of the parameters, so nothing complete is left to save. `is_none_left`: no other rank is left that would have
    to be ended. `exit_status`: 6, or what it is given, such as 1 if all workers failed and said why.
    """

    exit_status = 6

    def __init__(
        self,
        message: str,
        *,
        is_reported: bool = False,
        is_state_lost: bool = False,
        is_none_left: bool = False,
        exit_status: int | None = None,
    ) -> None:
        """Keep the message and the flags; see the class."""
        super().__init__(message)
        self.is_reported = is_reported
        self.is_state_lost = is_state_lost
        self.is_none_left = is_none_left
        if exit_status is not None:
            self.exit_status = exit_status


class DismissedError(PeerError):
    """The store takes this worker for dead, and goes on without it."""


class StoppedBySignal(HvdAsyncError):
    """The run was asked to stop (by a signal on some rank) and did so cleanly.

    `signal_number` decides the exit status, 128 + signal, as in shells.
    """

    is_on_all_ranks = True

    is_reporter: bool | None = None
    """Whether this rank reports the error; None: decide as for other errors."""

    def __init__(self, message: str, signal_number: int) -> None:
        """Derive the exit status from `signal_number`."""
        super().__init__(message)
        self.exit_status = 128 + signal_number


class DivergedError(HvdAsyncError):
    """A run whose gradients or validation losses are no longer finite: it has ended, and its result is useless."""

    exit_status = 8
    is_on_all_ranks = True


class OrphanedError(HvdAsyncError):
    """The launcher of this rank is gone. Everything is saved; nothing that needs the other ranks may be done any more."""

    exit_status = 143


class DifferenceError(HvdAsyncError):
    """A recorded run that gives a different result when it is computed again."""

    exit_status = 7
