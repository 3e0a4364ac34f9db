"""The command `bench`: the arguments that it refuses, the jobs that it starts, the files that it writes."""

from __future__ import annotations

import io
import json
import pathlib

import pytest

from hvd_async.__main__ import main
from hvd_async.benchmarks import command
from hvd_async.benchmarks.command import BENCHMARKS, FLAGS, ON_RANKS, Output, bench
from hvd_async.benchmarks.options import Options
from hvd_async.benchmarks.ranks import ranks_command
from hvd_async.benchmarks.report import BenchMachine, Result, read_results
from hvd_async.errors import ConfigError
from hvd_async.launcher import LaunchOptions, RankLayout
from tests.ranks import run_ranks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speed"], "got 'speed', expected one of store, transport"),
        (["store", "--sizes", "many"], "--sizes: got 'many'"),
        (["store", "--workers", "2"], "--workers: bench store does not take it"),
        (["step", "--model", "huge"], "--model: got 'huge', expected one of multi30k, base"),
        (["step", "--config", "a.yaml", "--model", "base"], "--config, --model: got both, expected one of them"),
        (["step", "--sizes", "1"], "--sizes: bench step does not take it"),
        (["scaling", "--workers", "0"], "--workers: got 0"),
        (["--repeats", "0"], "--repeats: got 0"),
        (["store", "--json", "/"], "--json: got the folder /"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line_with_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and error.startswith("hvd-async: ")


def test_benchmarks_of_one_process_are_refused_under_a_launcher() -> None:
    environ = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    for name in ("store", None):
        with pytest.raises(ConfigError, match="under a launcher, name one of transport, step, scaling"):
            bench(name, {}, Output(), environ)


def test_a_single_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 1 rank, expected at least 2"):
        bench("step", {}, Output(), {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"})


def test_the_store_is_measured_in_this_process(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store.json"
    assert main(["bench", "store", "--sizes", "0.001", "--repeats", "2", "--threads", "1", "--json", str(path)]) == 0
    assert "update of 4 arrivals, Adam, 0.001 M" in capsys.readouterr().out
    assert json.loads(path.read_text())["results"][0]["options"]["repeats"] == 2
    assert main(["bench", "store", "--sizes", "0.001", "--repeats", "2", "--table", "none"]) == 0
    assert capsys.readouterr().out == ""


def test_without_a_name_all_benchmarks_run_each_with_the_flags_it_takes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, tuple[str, ...], int]] = []

    def start(name: str, arguments: tuple[str, ...], num_ranks: int, threads: int) -> tuple[int, list[Result]]:
        started.append((name, arguments, num_ranks))
        return 0, [Result(name, BenchMachine("cpu", 1, 0.0, "3", "2"), Options(), ())]

    monkeypatch.setattr(command, "start_ranks", start)
    monkeypatch.setattr(
        command, "run_here", lambda name, options: Result(name, BenchMachine("cpu", 1, 0.0, "3", "2"), options, ())
    )
    given = dict.fromkeys(FLAGS) | {"workers": 3, "repeats": 2, "sizes": "0.001"}
    assert bench(None, given, Output(tmp_path / "all.json", stream=io.StringIO()), {}) == 0
    assert [result.benchmark for result in read_results(tmp_path / "all.json")] == list(BENCHMARKS)
    assert {name: num_ranks for name, _, num_ranks in started} == {"transport": 2, "step": 2, "scaling": 4}
    assert all(arguments[arguments.index("--repeats") + 1] == "2" for _, arguments, _ in started)
    assert ["--workers" in arguments for _, arguments, _ in started] == [False, False, True]


def test_a_failed_job_gives_its_status_and_no_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "start_ranks", lambda *_: (6, []))
    assert bench("transport", {}, Output(tmp_path / "none.json"), {}) == 6
    assert not (tmp_path / "none.json").exists()


def test_ranks_are_started_without_a_shell() -> None:
    program = ("python", "-m", "hvd_async", "bench", "transport")
    made = ranks_command(program, RankLayout.of_ranks(2, cores=8), 3, LaunchOptions(mpirun="mpirun"))
    assert made.argv[:3] == ("mpirun", "-np", "2") and made.argv[-5:] == program
    assert made.environment["OMP_NUM_THREADS"] == "3"


# One job for both benchmarks: most of its time is spent starting the ranks.
ON_REAL_RANKS = """
import sys
from hvd_async.__main__ import main
small = ["--sizes", "0.01", "--repeats", "1", "--seconds", "0.2", "--json"]
status = main(["bench", "transport", *small, sys.argv[1]])
sys.exit(status or main(["bench", "scaling", "--step-seconds", "0.001", *small, sys.argv[2]]))
"""


@pytest.mark.mpi
def test_the_benchmarks_of_ranks_run_on_real_ranks(tmp_path: pathlib.Path) -> None:
    transport, scaling = tmp_path / "transport.json", tmp_path / "scaling.json"
    done = run_ranks(3, ["-c", ON_REAL_RANKS], str(transport), str(scaling)).check()
    (one,), (other,) = read_results(transport), read_results(scaling)
    assert [figure.name for figure in one.figures] == [
        "push, same host, 0.01 M",
        "pull, same host, 0.01 M",
        "push served, same host, 1000 parameters",
        "store, idle workers",
    ]
    assert [figure.name for figure in other.figures] == ["1 worker, 0.01 M", "2 workers, 0.01 M"]
    assert all(figure.name in done.stdout for figure in (*one.figures, *other.figures))
    assert one.machine.mpi and one.machine.hosts == 1


def test_the_benchmarks_of_ranks_are_benchmarks() -> None:
    assert set(ON_RANKS) < set(BENCHMARKS)
