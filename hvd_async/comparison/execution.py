"""Computation of the missing runs of a suite, each in processes of its own, in turns."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from hvd_async.comparison.collection import OUTDATED
from hvd_async.comparison.plan import fault_file, folder_of, is_outdated, result
from hvd_async.comparison.runs import Run
from hvd_async.comparison.suite import Spec, Suite
from hvd_async.comparison.suite_progress import Board
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import write_file
from hvd_async.system.locks import BusyError, locked
from hvd_async.system.processes import Children, run_in_sight, stopping_on_signals

_MOST_LETTERS = 500
_OF_A_RANK = re.compile(r"^hvd-async: (rank \d+: )?")
# Runs `hvd-async` with arguments; returns None if it is not to run any more.
_Process = Callable[[Sequence[str]], "subprocess.CompletedProcess[str] | None"]


class Execution:
    """Computes a suite. Finished runs are not computed again; an interrupted run resumes from its checkpoint, or starts
    again."""

    def __init__(self, suite: Suite, output: pathlib.Path, only: Sequence[str] = (), device: str | None = None) -> None:
        """Select the runs. `only`: patterns (`*`, `?`) for the names of runs, variants or environments; empty: all. `device`:
        where simulated runs are computed. Raises `ConfigError` for a pattern that matches nothing, and for a device in a suite
        of real runs."""
        if device is not None and suite.config.launcher != "simulate":
            raise ConfigError(
                f"--device: got {device} for a suite with launcher {suite.config.launcher}, expected a suite of simulated runs;"
                " `training.device` is the key for real ones"
            )
        self._where = [] if device is None else ["--device", device]
        self._suite = suite
        self._output = output
        self._only = only
        self._planned = dict(zip(suite.specs, suite.plan.runs, strict=True))
        for pattern in only:
            if not any(_fits(spec, [pattern]) for spec in suite.specs):
                names = ", ".join(dict.fromkeys(spec.variant for spec in suite.specs))
                raise ConfigError(
                    f"--only: got {pattern!r}, which matches no run, variant or environment; variants are {names}"
                )

    def todo(self) -> list[tuple[Spec, Run | str]]:
        """Return every selected run in the order of computation, with its present result. With several rates, seeds other
        than the first run at the best rates so far."""
        return [(spec, self.result(spec)) for spec in [*self._first_stage(), *self._second_stage()]]

    def remark(self) -> str:
        """Return what a user should know about `todo`."""
        is_open = bool(self._suite.config.rates) and len(self._suite.config.seeds) > 1
        return "; other seeds follow at each variant's best rate" if is_open else ""

    def result(self, spec: Spec) -> Run | str:
        """Return the run of `spec` if it counts, else the reason; see `comparison.plan.result`."""
        return result(self._output, self._planned[spec])

    def command(self, spec: Spec) -> list[str]:
        """Return the arguments of `hvd-async` with which `run` computes the run of `spec`."""
        return self._command(spec, resume=self._can_resume(spec))

    def run(self, jobs: int, board: Board) -> list[str]:
        """Compute the missing runs, `jobs` at a time; return the failures in words. Blocks, in the main thread.

        Raises `StoppedBySignal` at Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP, after the processes of the runs have ended, and
        `DataError` if another comparison is running in the folder.
        """
        hint = "finished runs are kept; run the same command again to resume"
        # Left in reverse order: the running processes end before the pool waits for them.
        with (
            stopping_on_signals("compare", hint),
            locked(
                self._output / ".lock", str(self._output), "another hvd-async compare, or a run of it,", board.say
            ) as lock,
            board.showing(),
            concurrent.futures.ThreadPoolExecutor(jobs) as pool,
            Children([lock]) as children,
        ):
            # Only once the folder is ours: another suite may be running there.
            self._suite.plan.write(self._output)

            def compute(specs: Sequence[Spec]) -> list[str]:
                board.expect(sum(not isinstance(self.result(spec), Run) for spec in specs))
                found = pool.map(lambda spec: self._compute(spec, children, board), specs)
                return [failure for failure in found if failure]

            failures = compute(self._first_stage())
            return failures + compute(self._second_stage())

    def num_runs(self) -> list[int]:
        """Return the number of runs in each stage: those known from the suite alone, and, with rates and several seeds,
        those that need the best rate."""
        second = list(self._second_slots())
        return [len(self._first_stage()), *([len(second)] if second else [])]

    def run_one(self, stage: int, number: int, board: Board) -> int:
        """Compute only run `number` (from 0) of `stage` (from 1), unless it is finished, and show its output. Returns its
        exit status. Blocks, in the main thread.

        Other processes may compute other runs of the folder, on any host. Raises `ConfigError` for a run that the suite
        does not have, `DataError` if its rate is not known yet or another process computes it, and `StoppedBySignal` if
        it was stopped.
        """
        spec = self._spec_of(stage, number, board)
        if spec is None:
            board.say(f"run {number} of stage {stage}: excluded by --only")
            return 0
        self._suite.plan.write(self._output)
        with self._locked(spec, board) as lock:
            if isinstance(self.result(spec), Run):
                board.say(f"{spec.name}: done before")
                return 0
            board.expect(1)
            hint = "run the same command again to resume"
            status, _ = self._compute_locked(spec, lambda arguments: run_in_sight(arguments, "compare", hint, [lock]), board)
            return status

    def _spec_of(self, stage: int, number: int, board: Board) -> Spec | None:
        """Return None for a run that is selected only at other rates than the best."""
        num_runs = self.num_runs()
        if not 1 <= stage <= len(num_runs):
            expected = "1 or 2" if len(num_runs) == 2 else "1: the suite has no rates to choose from, or only one seed"
            raise ConfigError(f"--stage: got {stage}, expected {expected}")
        if not 0 <= number < num_runs[stage - 1]:
            last = num_runs[stage - 1] - 1
            expected = f"0 to {last}" if last >= 0 else "none at all"
            raise ConfigError(f"--task: got {number}, expected {expected}: the numbers of the runs in stage {stage}")
        if stage == 1:
            return self._first_stage()[number]
        environment, variant, seed = list(self._second_slots())[number]
        results = self._results()
        rate = self._suite.plan.best_rate(results, environment, variant)
        first = [p for p in self._suite.plan.of(environment, variant) if p.seed == self._suite.config.seeds[0]]
        missing = ", ".join(p.name for p in first if not isinstance(results[p.name], Run))
        if rate is None:
            raise DataError(
                f"--task: {missing}: got none of these runs, expected at least one that has ended; compute stage 1 first"
            )
        if missing:
            board.say(f"missing: {missing}; the best rate of the others is {rate:g}")
        spec = Spec(environment, variant, rate, seed)
        return spec if _fits(spec, self._only) else None

    def _locked(self, spec: Spec, board: Board, is_over: Callable[[], bool] = lambda: False) -> AbstractContextManager[int]:
        """Lock one run. The lock is not in the run's folder, so that waiting for it does not create the folder."""
        folder = folder_of(self._output, self._planned[spec])
        return locked(self._output / ".locks" / spec.name, str(folder), "another process", board.say, is_over)

    def _first_stage(self) -> list[Spec]:
        """Return the first stage: without rates all runs, seed by seed; with rates the first seed at every rate."""
        seeds, has_rates = self._suite.config.seeds, bool(self._suite.config.rates)
        wanted = [spec for spec in self._suite.specs if not has_rates or spec.seed == seeds[0]]
        order = {value: number for number, value in enumerate(self._suite.config.rates)}
        wanted.sort(key=lambda spec: (seeds.index(spec.seed), 0 if spec.rate is None else order[spec.rate]))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _second_stage(self) -> list[Spec]:
        """Return the other seeds, each variant at its best rate."""
        results, wanted = self._results(), []
        for environment, variant, seed in self._second_slots():
            rate = self._suite.plan.best_rate(results, environment, variant)
            if rate is not None:
                wanted.append(Spec(environment, variant, rate, seed))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _second_slots(self) -> Iterator[tuple[str, str, int]]:
        """Yield environment, variant and seed of each selected run that takes the best rate of others."""
        suite = self._suite.config
        for seed in suite.seeds[1:] if suite.rates else ():
            for environment in suite.environments:
                for variant in suite.variants:
                    if any(_fits(Spec(environment, variant, rate, seed), self._only) for rate in suite.rates):
                        yield environment, variant, seed

    def _results(self) -> dict[str, Run | str]:
        return {planned.name: self.result(spec) for spec, planned in self._planned.items()}

    def _compute(self, spec: Spec, children: Children, board: Board) -> str:
        """Return why the run failed; empty if it is finished now, or if the comparison is being stopped."""
        if isinstance(self.result(spec), Run):
            return ""
        try:
            with self._locked(spec, board, lambda: children.is_over) as lock:
                return self._compute_locked(spec, lambda arguments: children.run(arguments, [lock]), board)[1]
        except BusyError as error:
            # Not recorded as a fault of the run, which may still end well.
            return "" if children.is_over else str(error)

    def _compute_locked(self, spec: Spec, process: _Process, board: Board) -> tuple[int, str]:
        """Return the exit status of `spec`, whose lock this process holds, and why it failed; empty if it is finished
        now, or was not to run."""
        if isinstance(self.result(spec), Run):  # the previous holder of the lock has computed it
            return 0, ""
        planned = self._planned[spec]
        fault = fault_file(self._output, planned)
        is_another = is_outdated(self._output, planned)
        fault.unlink(missing_ok=True)
        if is_another:
            board.say(f"{spec.name}: {OUTDATED}; computed again")
        resume = self._can_resume(spec)
        folder = folder_of(self._output, planned)
        with board.running(spec.name, RunFolder(folder).events, self._suite.config.budget, is_resumed=resume):
            done = process(self._command(spec, resume=resume))
            if done is not None and resume and done.returncode == CheckpointError.exit_status:
                board.say(f"{spec.name}: cannot resume ({''.join(_lines(done.stderr)[-1:])}); computed again")
                done = process(self._command(spec))
        if done is None:
            return 0, ""
        found = self.result(spec)
        if done.returncode == 0 and isinstance(found, Run):
            told = [*(["diverged"] if found.has_diverged else []), *_lines_of_run(done.stdout)[-1:]]
            if told:
                board.say(f"{spec.name}: {'; '.join(told)}")
            return 0, ""
        said = _said(done.stderr or done.stdout) or "no output on stderr"
        why = said if done.returncode else found
        write_file(fault, f"exit status {done.returncode}: {why}\n".encode())
        failure = f"{spec.name}: exit status {done.returncode}: {why}"
        board.say(failure)
        status = 128 - done.returncode if done.returncode < 0 else done.returncode  # as in shells
        return status or DataError.exit_status, failure

    def _command(self, spec: Spec, *, resume: bool = False) -> list[str]:
        return [*self._suite.command(spec, resume=resume), *self._where]

    def _can_resume(self, spec: Spec) -> bool:
        """Whether the run has a checkpoint of its own; simulated runs cannot resume."""
        if self._suite.config.launcher == "simulate" or is_outdated(self._output, self._planned[spec]):
            return False
        return RunFolder(folder_of(self._output, self._planned[spec])).has_checkpoint()


def _fits(spec: Spec, patterns: Sequence[str]) -> bool:
    names = (spec.name, spec.variant, spec.environment)
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _lines_of_run(text: str) -> list[str]:
    """Return the run's lines in the output of `launch`, which adds a line of its own at the end."""
    return [line for line in _lines(text) if not line.startswith("launch: ")]


def _said(text: str) -> str:
    """Return the end of what the ranks of a run said in one line, what several said alike only once."""
    said = " ".join(dict.fromkeys(" ".join(_OF_A_RANK.sub("", line).split()) for line in _lines(text)))
    return said if len(said) <= _MOST_LETTERS else f"… {said[-_MOST_LETTERS:].partition(' ')[2]}"


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()
