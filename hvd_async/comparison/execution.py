"""Computing the runs of a suite that are not there yet, each by processes of its own, in turns."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from hvd_async.comparison.plan import OUTDATED, fault_file, folder_of, is_outdated, result
from hvd_async.comparison.runs import Run
from hvd_async.comparison.suite import Spec, Suite
from hvd_async.comparison.suite_progress import Board
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.runs.folder import RunFolder
from hvd_async.system.files import write_file
from hvd_async.system.locks import BusyError, held
from hvd_async.system.processes import Children, run_in_sight, stopping_on_signals

# Runs `hvd-async` with arguments; None if it is not to be run any more.
_Process = Callable[[Sequence[str]], "subprocess.CompletedProcess[str] | None"]


class Execution:
    """Computes a suite. A run that is finished is not computed again; one that was interrupted goes on from its checkpoint, or
    begins again."""

    def __init__(self, suite: Suite, output: pathlib.Path, only: Sequence[str] = ()) -> None:
        """`only`: patterns (`*`, `?`) of the names of runs, variants or environments; empty: all. Raises `ConfigError` for a
        pattern that fits nothing."""
        self._suite = suite
        self._output = output
        self._only = only
        self._planned = dict(zip(suite.specs, suite.plan.runs, strict=True))
        for pattern in only:
            if not any(_fits(spec, [pattern]) for spec in suite.specs):
                names = ", ".join(dict.fromkeys(spec.variant for spec in suite.specs))
                raise ConfigError(
                    f"--only: got {pattern!r}, which fits no run, variant or environment; variants are {names}"
                )

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

        Raises `StoppedBySignal` at Ctrl-C, SIGTERM and SIGUSR1, when the processes of the runs have ended, and `DataError` where
        another comparison is computed in the same folder.
        """
        message = "compare: finished runs are kept, the same command goes on"
        # Left from right to left: what runs is ended before the pool waits for it.
        with (
            stopping_on_signals(message),
            held(self._output / ".lock", str(self._output), "another hvd-async compare, or a run of it,", board.say) as lock,
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

    def num_runs(self) -> list[int]:
        """Of each stage: what is known from the suite alone, and, with rates and several seeds, what needs the best rate."""
        second = list(self._second_slots())
        return [len(self._first_stage()), *([len(second)] if second else [])]

    def run_one(self, stage: int, number: int, board: Board) -> int:
        """Compute run `number`, from 0, of `stage`, from 1, alone, with its output in sight, unless it is there; its exit status.
        Blocks, in the main thread.

        Others may compute other runs of the folder meanwhile, on any host. Raises `ConfigError` for a run that the suite does not
        have, `DataError` where its rate is not known yet or another process computes it, and `StoppedBySignal` when it was
        stopped.
        """
        spec = self._spec_of(stage, number, board)
        if spec is None:
            board.say(f"run {number} of stage {stage}: left out by --only")
            return 0
        self._suite.plan.write(self._output)
        with self._held(spec, board) as lock:
            if isinstance(self.result(spec), Run):
                board.say(f"{spec.name}: done before")
                return 0
            board.expect(1)
            status, _ = self._compute_held(spec, lambda arguments: run_in_sight(arguments, [lock]), board)
            return status

    def _spec_of(self, stage: int, number: int, board: Board) -> Spec | None:
        """None for a run that is asked for at other rates than the best."""
        num_runs = self.num_runs()
        if not 1 <= stage <= len(num_runs):
            expected = "1 or 2" if len(num_runs) == 2 else "1: the suite has no rates to choose from, or no other seeds"
            raise ConfigError(f"--stage: got {stage}, expected {expected}")
        if not 0 <= number < num_runs[stage - 1]:
            last = num_runs[stage - 1] - 1
            expected = f"0 to {last}" if last >= 0 else "none at all"
            raise ConfigError(f"--task: got {number}, expected {expected}: so many runs are in stage {stage}")
        if stage == 1:
            return self._first_stage()[number]
        environment, variant, seed = list(self._second_slots())[number]
        results = self._results()
        rate = self._suite.plan.best_rate(results, environment, variant)
        first = [p for p in self._suite.plan.of(environment, variant) if p.seed == self._suite.config.seeds[0]]
        missing = ", ".join(p.name for p in first if not isinstance(results[p.name], Run))
        if rate is None:
            raise DataError(f"--task: {missing}: got none of them, expected one that has ended; compute stage 1 first")
        if missing:
            board.say(f"not there: {missing}; of the others rate {rate:g} is the best")
        spec = Spec(environment, variant, rate, seed)
        return spec if _fits(spec, self._only) else None

    def _held(self, spec: Spec, board: Board, is_over: Callable[[], bool] = lambda: False) -> AbstractContextManager[int]:
        """The lock of one run. It is not in the run's folder: whoever waits for it makes none."""
        folder = folder_of(self._output, self._planned[spec])
        return held(self._output / ".locks" / spec.name, str(folder), "another process", board.say, is_over)

    def _first_stage(self) -> list[Spec]:
        """Without rates everything, variant after variant, then the next seed; with them the first seed at every rate."""
        seeds, has_rates = self._suite.config.seeds, bool(self._suite.config.rates)
        wanted = [spec for spec in self._suite.specs if not has_rates or spec.seed == seeds[0]]
        order = {value: number for number, value in enumerate(self._suite.config.rates)}
        wanted.sort(key=lambda spec: (seeds.index(spec.seed), 0 if spec.rate is None else order[spec.rate]))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _second_stage(self) -> list[Spec]:
        """The other seeds, each variant at its best rate."""
        results, wanted = self._results(), []
        for environment, variant, seed in self._second_slots():
            rate = self._suite.plan.best_rate(results, environment, variant)
            if rate is not None:
                wanted.append(Spec(environment, variant, rate, seed))
        return [spec for spec in wanted if _fits(spec, self._only)]

    def _second_slots(self) -> Iterator[tuple[str, str, int]]:
        """Setting, variant and seed of each run whose rate is the best of others; of those that are asked for at some rate."""
        suite = self._suite.config
        for seed in suite.seeds[1:] if suite.rates else ():
            for environment in suite.environments:
                for variant in suite.variants:
                    if any(_fits(Spec(environment, variant, rate, seed), self._only) for rate in suite.rates):
                        yield environment, variant, seed

    def _results(self) -> dict[str, Run | str]:
        return {planned.name: self.result(spec) for spec, planned in self._planned.items()}

    def _compute(self, spec: Spec, children: Children, board: Board) -> str:
        """Why it failed; nothing if it is there now, or the comparison is being stopped."""
        if isinstance(self.result(spec), Run):
            return ""
        try:
            with self._held(spec, board, lambda: children.is_over) as lock:
                return self._compute_held(spec, lambda arguments: children.run(arguments, [lock]), board)[1]
        except BusyError as error:
            # Not kept as a fault of the run, which may still end well.
            return "" if children.is_over else str(error)

    def _compute_held(self, spec: Spec, process: _Process, board: Board) -> tuple[int, str]:
        """Exit status of `spec`, whose lock is ours, and why it failed; nothing if it is there now, or was not to be run."""
        if isinstance(self.result(spec), Run):  # whoever held the lock before us computed it
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
            done = process(self._suite.command(spec, resume=resume))
            if done is not None and resume and done.returncode == CheckpointError.exit_status:
                board.say(f"{spec.name}: cannot go on ({''.join(_lines(done.stderr)[-1:])}); computed again")
                done = process(self._suite.command(spec))
        if done is None:
            return 0, ""
        found = self.result(spec)
        if done.returncode == 0 and isinstance(found, Run):
            told = [*(["diverged"] if found.has_diverged else []), *_lines_of_run(done.stdout)[-1:]]
            if told:
                board.say(f"{spec.name}: {'; '.join(told)}")
            return 0, ""
        said = " ".join((done.stderr or done.stdout).split())[-500:] or "it said nothing on stderr"
        why = said if done.returncode else found
        write_file(fault, f"exit status {done.returncode}: {why}\n".encode())
        failure = f"{spec.name}: exit status {done.returncode}: {why}"
        board.say(failure)
        status = 128 - done.returncode if done.returncode < 0 else done.returncode  # as shells have it
        return status or DataError.exit_status, failure

    def _can_resume(self, spec: Spec) -> bool:
        """Whether a checkpoint of that very run is there; simulated runs do not go on."""
        if self._suite.config.launcher == "simulate" or is_outdated(self._output, self._planned[spec]):
            return False
        return RunFolder(folder_of(self._output, self._planned[spec])).has_checkpoint()


def _fits(spec: Spec, patterns: Sequence[str]) -> bool:
    names = (spec.name, spec.variant, spec.environment)
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _lines_of_run(text: str) -> list[str]:
    """Of the output of `launch`, which has a line of its own after those of the run."""
    return [line for line in _lines(text) if not line.startswith("launch: ")]


def _lines(text: str) -> list[str]:
    return text.strip().splitlines()
