"""Computing the runs of a suite that are not there yet, each by processes of its own, in turns."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import fnmatch
import pathlib
import time
from collections.abc import Iterator, Sequence

from hvd_async.atomic import write_file
from hvd_async.comparison.board import Board
from hvd_async.comparison.children import Children, stopping_on_signals
from hvd_async.comparison.plan import OUTDATED, fault_file, folder_of, is_outdated, result
from hvd_async.comparison.runs import Run
from hvd_async.comparison.suite import Spec, Suite
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.run_folder import RunFolder

# For the runs of a comparison that was killed, which save everything before they end.
_LOCK_SECONDS = 60.0


class Execution:
    """Computes a suite. A run that is finished is not computed again; one that was interrupted goes on from its checkpoint, or
    begins again."""

    def __init__(self, suite: Suite, output: pathlib.Path, only: Sequence[str] = ()) -> None:
        """`only`: patterns (`*`, `?`) of the names of runs, variants or settings; empty: all. Raises `ConfigError` for one that
        fits nothing."""
        self._suite = suite
        self._output = output
        self._only = only
        self._planned = dict(zip(suite.specs, suite.plan.runs, strict=True))
        for pattern in only:
            if not any(_fits(spec, [pattern]) for spec in suite.specs):
                names = ", ".join(dict.fromkeys(spec.variant for spec in suite.specs))
                raise ConfigError(f"--only: got {pattern!r}, which fits no run, variant or setting; variants are {names}")

    def todo(self) -> list[tuple[Spec, Run | str]]:
        """Every run that is asked for, in the order of computation, with what is there of it. With several rates, the runs of all
        seeds but the first are those of the rates that are best so far."""
        return [(spec, self.result(spec)) for spec in [*self._first_stage(), *self._second_stage()]]

    def remark(self) -> str:
        """What a person should know of `todo`."""
        is_open = bool(self._suite.config.rates) and len(self._suite.config.seeds) > 1
        return "; other seeds follow at each variant's best rate" if is_open else ""

    def result(self, spec: Spec) -> Run | str:
        """See `comparison.plan.result`."""
        return result(self._output, self._planned[spec])

    def command(self, spec: Spec) -> list[str]:
        """The arguments of `hvd-async` that compute the run of `spec` as `run` would."""
        return self._suite.command(spec, resume=self._can_resume(spec))

    def run(self, jobs: int, board: Board) -> list[str]:
        """Compute what is missing, `jobs` at a time; what failed, in words. Blocks, in the main thread.

        Raises `StoppedBySignal` at Ctrl-C and SIGTERM, when the processes of the runs have ended, and `DataError` where another
        comparison is computed in the same folder.
        """
        message = "compare: finished runs are kept, the same command goes on"
        # Left from right to left: what runs is ended before the pool waits for it.
        with (
            stopping_on_signals(message),
            _locked(self._output, board) as lock,
            board.showing(),
            concurrent.futures.ThreadPoolExecutor(jobs) as pool,
            Children([lock]) as children,
        ):
            # Not before the folder is ours: another suite may be computed there.
            self._suite.plan.write(self._output)

            def compute(specs: Sequence[Spec]) -> list[str]:
                board.expect(sum(not isinstance(self.result(spec), Run) for spec in specs))
                found = pool.map(lambda spec: self._compute(spec, children, board), specs)
                return [failure for failure in found if failure]

            failures = compute(self._first_stage())
            return failures + compute(self._second_stage())

    def _first_stage(self) -> list[Spec]:
        """Without rates everything, variant after variant, then the next seed; with them the first seed at every rate."""
        seeds, has_rates = self._suite.config.seeds, bool(self._suite.config.rates)
        wanted = [spec for spec in self._suite.specs if not has_rates or spec.seed == seeds[0]]
        order = {value: number for number, value in enumerate(self._suite.config.rates)}
        wanted.sort(key=lambda spec: (seeds.index(spec.seed), 0 if spec.rate is None else order[spec.rate]))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _second_stage(self) -> list[Spec]:
        """The other seeds, each variant at its best rate."""
        if not self._suite.config.rates:
            return []
        results = {planned.name: self.result(spec) for spec, planned in self._planned.items()}
        best = {
            (spec.setting, spec.variant): self._suite.plan.best_rate(results, spec.setting, spec.variant)
            for spec in self._suite.specs
        }
        seeds = self._suite.config.seeds
        wanted = [s for s in self._suite.specs if s.seed != seeds[0] and s.rate == best[s.setting, s.variant]]
        wanted.sort(key=lambda spec: seeds.index(spec.seed))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _compute(self, spec: Spec, children: Children, board: Board) -> str:
        """Why it failed; nothing if it is there now, or the comparison is being stopped."""
        found = self.result(spec)
        if isinstance(found, Run):
            return ""
        planned = self._planned[spec]
        fault = fault_file(self._output, planned)
        is_another = is_outdated(self._output, planned)
        fault.unlink(missing_ok=True)
        if is_another:
            board.say(f"{spec.name}: {OUTDATED}; computed again")
        resume = self._can_resume(spec)
        folder = folder_of(self._output, planned)
        with board.running(spec.name, RunFolder(folder).events, self._suite.config.budget, is_resumed=resume):
            done = children.run(self._suite.command(spec, resume=resume))
            if done is not None and resume and done.returncode == CheckpointError.exit_status:
                board.say(f"{spec.name}: cannot go on ({_last_line(done.stderr)}); computed again")
                done = children.run(self._suite.command(spec))
        if done is None:
            return ""
        found = self.result(spec)
        if done.returncode == 0 and isinstance(found, Run):
            board.say(f"{spec.name}: {'diverged; ' if found.has_diverged else ''}{_last_line(done.stdout)}")
            return ""
        why = " ".join((done.stderr or done.stdout).split())[-500:] if done.returncode else found
        write_file(fault, f"exit status {done.returncode}: {why}\n".encode())
        board.say(f"{spec.name}: exit status {done.returncode}: {why}")
        return f"{spec.name}: exit status {done.returncode}: {why}"

    def _can_resume(self, spec: Spec) -> bool:
        """Whether a checkpoint of that very run is there; simulated runs do not go on."""
        if self._suite.config.launcher == "simulate" or is_outdated(self._output, self._planned[spec]):
            return False
        checkpoints = RunFolder(folder_of(self._output, self._planned[spec])).checkpoints
        return checkpoints.is_dir() and any(not path.name.startswith(".") for path in checkpoints.iterdir())


def _fits(spec: Spec, patterns: Sequence[str]) -> bool:
    names = (spec.name, spec.variant, spec.setting)
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


@contextlib.contextmanager
def _locked(output: pathlib.Path, board: Board) -> Iterator[int]:
    """Hold the folder; yields the descriptor of the lock, which stays held as long as a process has it."""
    path = output / ".lock"
    deadline, is_said = time.monotonic() + _LOCK_SECONDS, False
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{output}: another hvd-async compare, or a run of it, is at work there; wait for it or end it"
                    ) from None
            if not is_said:
                board.say(f"{output}: waiting for another hvd-async compare, or a run of it, to end")
                is_said = True
            time.sleep(0.2)  # flock has no time limit of its own
        yield file.fileno()
