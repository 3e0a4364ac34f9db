"""The command line as a user meets it: help, one line for each fault, exit statuses, no traceback."""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys
from typing import get_args

import pytest
import yaml

import hvd_async
from hvd_async.__main__ import main
from hvd_async.cli import make_parser
from hvd_async.cli.batch_arguments import SUBMIT_COMMANDS
from hvd_async.cluster.mpi_family import MpiFamily
from hvd_async.comparison.suite import SuiteConfig
from hvd_async.config import dump_config, load_config
from hvd_async.launcher import LauncherName
from hvd_async.launcher.batch_dialect import DIALECTS, SCRIPTS
from hvd_async.tasks.translation.builtin.grammar import write_corpus
from tests.comparison.made import run, write_run

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = (
    "init",
    "data",
    "train",
    "launch",
    "join",
    "status",
    "translate",
    "score",
    "average",
    "compare",
    "report",
    "simulate",
    "replay",
    "bench",
    "doctor",
)
WINDOWS = ("10", "a:1", "-1:5", "0:0", "0:inf", "nan:1", "1:2:3")


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS), ["data", "builtin"], ["data", "multi30k"]])
def test_help_describes_every_command_and_its_exit_status(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith("usage: hvd-async")
    assert "exit status:" in text or len(arguments) == 2


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["launch", "run.yaml", "--slurm", "--conda", ""], "--conda"),
        (["launch", "run.yaml", "--slurm", "--account="], "--account"),
        (["launch", "run.yaml", "--extra", "", "--dry-run"], "--extra"),
        (["launch", "run.yaml", "--forward="], "--forward"),
    ],
)
def test_an_empty_value_as_of_an_unset_variable_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and f"{flag}: got an empty value, expected " in capsys.readouterr().err


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    """A tiny but complete configuration, with its corpus."""
    write_corpus(tmp_path / "text", train=120, validation=8, test=8)
    tree = {
        "output": str(tmp_path / "run"),
        "task": {
            "data": {"folder": str(tmp_path / "text")},
            "vocabulary": {"size": 300},
            "model": {"encoder_layers": 1, "decoder_layers": 1, "width": 16, "feed_forward": 32, "heads": 2},
            "batching": {"tokens": 200},
        },
        "training": {"epochs": 1, "device": "cpu", "tensorboard": False, "threads": 1},
        "validation": {"every": 4},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_train_translate_score_and_report_work_one_after_another(
    config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config)]) == 0
    assert "finished: version" in capsys.readouterr().out
    model, test = str(tmp_path / "run/models/best"), tmp_path / "text/test"
    assert main(["translate", model, "--input", f"{test}.en", "--beam", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    scored = ["score", model, "--source", f"{test}.en", "--reference", f"{test}.de", "--output", str(tmp_path / "out.de")]
    assert main(scored) == 0
    text = capsys.readouterr().out
    assert text.startswith("BLEU ") and "chrF " in text and "version:" in text
    assert len((tmp_path / "out.de").read_text().splitlines()) == 8
    assert main([*scored[:-2], "--against", str(tmp_path / "out.de")]) == 0
    assert f"this model minus {tmp_path / 'out.de'}: BLEU +0.00 (p = 1.000), chrF +0.00" in capsys.readouterr().out
    assert main([*scored[:-2], "--against", str(config)]) == 3
    assert f"{config}: got " in capsys.readouterr().err
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert main(["report", str(tmp_path / "run"), str(tmp_path / "other"), "--output", str(tmp_path / "report")]) == 0
    text = capsys.readouterr().out
    assert "1 (baseline)" in text and text.splitlines()[-1].startswith(f"written: {tmp_path / 'report/report.html'}, ")
    assert main(["train", str(config)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["train", str(config), "--overwrite", "--set", "training.threads=2"]) == 0


def test_text_unlike_the_corpus_is_translated_or_refused_with_its_line(
    config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--set", "task.metrics=[]"]) == 0
    model, path = str(tmp_path / "run/models/last"), tmp_path / "odd.en"
    path.write_text("Ünïcödé 漢字 😀\n\nend", encoding="utf-8")
    capsys.readouterr()
    assert main(["translate", model, "--input", str(path)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4 and lines[1] == ""
    path.write_bytes(b"fine\n\xff\xfe\n")
    assert main(["translate", model, "--input", str(path)]) == 3
    assert f"{path}: line 2" in capsys.readouterr().err
    path.write_text("word " * 5000)
    assert main(["translate", model, "--input", str(path)]) == 3
    assert main(["translate", model, "--device", "cuda:99", "--input", str(path)]) == 4
    assert main(["translate", model, "--beam", "0", "--input", str(path)]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "nowhere.yaml"], 2, "nowhere.yaml: no such file"),
        (["translate", "nowhere"], 3, "nowhere: no such folder"),
        (["compare", "nowhere.yaml"], 2, "nowhere.yaml: no such file; expected the YAML file of a suite"),
        (["report", "nowhere"], 3, "nowhere: no such folder, expected the folder of a run"),
        (["data", "multi30k", "--from", "nowhere", "--output", "unused"], 3, "nowhere"),
        (["data", "builtin", "--output", "unused", "--train", "0"], 2, "--train: got 0"),
    ],
)
def test_a_missing_file_is_reported_in_one_line(
    arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and error.startswith("hvd-async: ")


def test_every_fault_of_a_configuration_is_reported_at_once(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["task.model.heads=3", "strategy.kind=hvd", "trainig.epochs=1", "task.batching.tokens=0"]
    assert main(["train", str(config), *(word for override in overrides for word in ("--set", override))]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert any("did you mean 'training'?" in line for line in lines)


def test_a_dry_run_prints_one_line_that_a_shell_understands(
    config: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    override = "task.data.source=a b"
    arguments = ["launch", str(config), "--dry-run", "--mpi", "openmpi", "-w", "3", "--set", "strategy.kind=async"]
    assert main([*arguments, "--set", override]) == 0
    line = capsys.readouterr().out.strip()
    assert "-np 4" in line and "'task.data.source=a b'" in line
    assert not (tmp_path / "run").exists()


def test_what_only_plans_a_run_tells_which_keys_have_no_effect(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["launch", str(config), "--set", "strategy.kind=ddp", "--set", "strategy.micro_batches=4"]
    told = "strategy.micro_batches: has no effect with strategy.kind: ddp"
    assert main([*arguments, "--dry-run", "--mpi", "openmpi"]) == 0
    assert f"# {told}" in capsys.readouterr().out.splitlines()
    assert main([*arguments, "--slurm"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{told}\n" and told not in captured.out


def test_several_workers_for_one_process_are_refused(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", str(config), "--dry-run", "--workers", "2"]) == 4
    assert "expected 1 for strategy single" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *((["report", "run", f"--window={text}"], f"--window: got {text!r}, expected START:SECONDS") for text in WINDOWS),
        *(
            (["report", "run", "--target", text], f"--target: got {text!r}, expected NAME=VALUE, such as loss=2.5")
            for text in ("loss", "2.5", "loss=low", "accuracy=nan", "Loss=2", "=2", "loss=2=3")
        ),
        (
            ["report", "run", "--target", "bleu=20"],
            "target: got bleu, which no run has measured, expected one of loss, accuracy, perplexity",
        ),
        (["report", "run", "--baseline", "b"], "--baseline: got 'b', expected one of run"),
        (["report", "run", "--output", "file/below"], "--output: got file/below, but file is a file; expected a folder"),
        (["compare", "suite.yaml", "--output", "file"], "--output: got file, but file is a file; expected a folder"),
        (["compare", "suite.yaml", "--jobs", "0"], "--jobs: got 0, expected 1 or more"),
        (
            ["compare", "suite.yaml", "--only", "c"],
            "--only: got 'c', which matches no run, variant or environment; variants are a",
        ),
        (["compare", "run"], "run: cannot be read"),
    ],
)
def test_wrong_arguments_of_comparisons_are_reported_in_one_line(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(run((10.0, 4.0), folder=pathlib.Path("run")))
    pathlib.Path("file").write_text("")
    suite = {"base": "run/config.yaml", "budget": {"updates": 1}, "measure_every": 1, "baseline": "a", "variants": {"a": {}}}
    pathlib.Path("suite.yaml").write_text(yaml.safe_dump(suite))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and error.startswith("hvd-async: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run", "suite.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["report"],
        ["report", "run", "--target"],
        ["compare"],
        ["compare", "suite.yaml", "--jobs", "many"],
    ],
)
def test_arguments_that_do_not_go_together_are_reported_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert f"hvd-async {arguments[0]}: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parser", "meant"),
    [
        (["translate", "m", "--inptu", "x"], "hvd-async translate", "--input"),
        (["train", "a.yaml", "--reusme"], "hvd-async train", "--resume"),
        (["launch", "a.yaml", "--worker-per-nodes=2"], "hvd-async launch", "--workers-per-node"),
        (["data", "builtin", "--output", "x", "--sede", "2"], "hvd-async data builtin", "--seed"),
        (["data", "builtn"], "hvd-async data", "builtin"),
        (["lauch", "a.yaml"], "hvd-async", "launch"),
        (["launch", "a.yaml", "--launcher", "mpirnu"], "hvd-async launch", "mpirun"),
        (["train", "a.yaml", "--xyzzy"], "hvd-async train", None),
        (["train", "a.yaml", "b.yaml"], "hvd-async train", None),
    ],
)
def test_a_misspelt_argument_is_reported_by_its_own_command(
    arguments: list[str], parser: str, meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith(f"usage: {parser} [-h]") and f"\n{parser}: error: " in printed
    assert printed.endswith(f"; did you mean '{meant}'?\n") if meant else "did you mean" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("launch a.yaml --micro-batches 4", "--set strategy.micro_batches=4"),
        ("train a.yaml --seed=3 --output runs/x", "--set seed=3 --set output=runs/x"),
        ("simulate a.yaml optimizer.learning_rate=3", "--set optimizer.learning_rate=3"),
        ("launch a.yaml --optimizer.lr 3", "--set optimizer.learning_rate=..."),
        ("launch a.yaml --batch-size 64", "--set task.batching.tokens=..."),
        ("launch a.yaml --fp16", "--set training.precision=..."),
        ("launch a.yaml --epochs --resume", "--set training.epochs=..."),
    ],
)
def test_a_flag_that_is_a_key_is_answered_with_the_set_that_says_it(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments.split())
    several = "s" if words.count("--set") > 1 else ""
    assert capsys.readouterr().err.endswith(f"; write {words}; docs/configuration.md explains the key{several}\n")


@pytest.mark.parametrize(
    "arguments", ["compare a.yaml --lr 3", "replay runs/x --epochs 3", "launch a.yaml -x", "train a.yaml b"]
)
def test_other_unknown_arguments_are_no_keys(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {arguments.split(maxsplit=2)[2]}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["launch", "a.yaml", "--starter", "srun"], "--starter srun; --starter is now called --launcher"),
        (["report", "a", "--target-loss", "2"], "--target-loss 2; --target-loss is now called --target loss=VALUE"),
        (["report", "a", "--target-bleu=20"], "--target-bleu=20; --target-bleu is now called --target bleu=VALUE"),
    ],
)
def test_a_flag_that_was_renamed_is_reported_with_its_new_name(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {words}\n")


@pytest.mark.parametrize(
    "flags",
    [["--workers", "0"], ["--slurm", "--nodes", "0"], ["--slurm", "--workers", "0"], ["--slurm", "--workers-per-node", "0"]],
)
def test_numbers_out_of_range_have_the_same_exit_status(flags: list[str], config: pathlib.Path) -> None:
    assert main(["launch", str(config), "--dry-run", "--set", "strategy.kind=async", "--mpi", "openmpi", *flags]) == 2


@pytest.fixture
def started_run(config: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The configuration of a run whose folder exists, as far as a launcher looks at it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(dump_config(load_config(config)), encoding="utf-8")
    return config


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "run: holds a run already; resume it with --resume"),
        (["--resume", "--set", "task.model.width=32"], 2, "--resume: task.model.width: got 32, expected 16"),
        (["--auto-resume", "--set", "seed=5"], 2, "--auto-resume: seed: got 5, expected 1"),
        (["--resume", "--set", "output=elsewhere"], 5, "elsewhere: got no run to resume"),
        (["--overwrite", "--set", "task.data.train=nothing"], 3, "nothing.en: no such file, nor nothing.en.gz"),
        (["--overwrite", "--set", "task.data.validation=nothing"], 3, "nothing.en: no such file"),
    ],
)
def test_launch_refuses_before_the_start_what_its_ranks_would_refuse(
    arguments: list[str], status: int, words: str, started_run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(started_run.parent.rglob("*"))
    assert main(["launch", str(started_run), "--mpi", "openmpi", "--set", "strategy.kind=async", *arguments]) == status
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") <= 2
    assert printed.out == ""  # the command line is printed only when it is run
    assert sorted(started_run.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("pydantic", ["doctor"]), ("torch", ["doctor"]), ("pydantic", ["train", "x"]), ("yaml", ["report", "x"])],
)
def test_a_missing_package_is_reported_in_one_line(package: str, arguments: list[str]) -> None:
    hide = f"import sys; sys.modules[{package!r}] = None"  # the import fails as for a package that is not installed
    code = f"{hide}; from hvd_async.__main__ import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith(f"hvd-async: {package}: this package is not installed") and done.stderr.count("\n") == 1


def test_a_simulated_run_prints_that_its_seconds_are_virtual(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(config), "--set", "strategy.kind=async", "--set", "training.epochs=1"]) == 0
    assert " virtual s, staleness" in capsys.readouterr().out
    assert main(["report", str(config.parent / "run"), "--output", str(config.parent / "report")]) == 0
    assert "All runs are simulated: seconds are virtual." in capsys.readouterr().out


def test_a_report_lies_inside_the_one_folder_given_or_else_in_the_current_folder(
    config: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(config), "--set", "strategy.kind=async", "--set", "training.epochs=1"]) == 0
    run, desk = config.parent / "run", tmp_path / "desk"
    desk.mkdir()
    monkeypatch.chdir(desk)
    capsys.readouterr()
    for _ in range(2):  # the second replaces the report of the first
        assert main(["report", str(run)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"written: {run / 'report/report.html'}, ")
    assert (run / "report" / "report.html").is_file() and not any(desk.iterdir())
    assert main(["report", str(run), str(run)]) == 2
    shutil.copytree(run, config.parent / "other")
    assert main(["report", str(run), str(config.parent / "other")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("written: report/report.html, ")
    assert (desk / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--device", "cuda:99"], 4, "--device: got cuda:99, expected cpu or one of "),
        (["--device", "tpu"], 2, "--device: got 'tpu', expected cpu or cuda[:INDEX]"),
        (["--timing-only", "--device", "cpu"], 2, "--device cpu has no effect with --timing-only"),
    ],
)
def test_a_device_that_cannot_simulate_is_refused(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    assert main(["simulate", str(config), *arguments]) == status
    assert words in capsys.readouterr().err and not (config.parent / "run").exists()


def test_a_single_process_has_no_transport(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config), "--set", "task.metrics=[]"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rank 0 on ")]
    assert line.endswith(": worker 0, cpu, 1 thread")


def test_the_choices_of_launchers_mpi_libraries_and_scripts_are_complete() -> None:
    """The command line and suites have lists of their own, so that `--help` need not load these modules."""
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    choices = {flag: action.choices for action in commands.choices["launch"]._actions for flag in action.option_strings}
    assert choices["--launcher"] == get_args(LauncherName) and choices["--mpi"] == get_args(MpiFamily)
    assert get_args(SuiteConfig.model_fields["launcher"].annotation) == (*get_args(LauncherName), "simulate")
    assert [*(choices["--slurm"] or ()), "compare"] == list(SCRIPTS)
    for name, dialect in DIALECTS.items():
        assert set(dialect.scripts) - {"compare"} == set(choices[f"--{name}"] or ())
    assert {dialect.submit: name for name, dialect in DIALECTS.items()} == {c: s for s, c in SUBMIT_COMMANDS.items()}


def test_the_version_is_printed_and_cited(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"hvd_async {hvd_async.__version__}\n"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == hvd_async.__version__
