"""No command replaces files without being asked to, and every path on the command line is read by the same rules."""

from __future__ import annotations

import argparse
import os
import pathlib

import pytest

from hvd_async.__main__ import main
from hvd_async.cli import make_parser
from hvd_async.cli.arguments import check_new, path_argument
from hvd_async.errors import ConfigError


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return `parser` and the parsers of all its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found += parsers(below)
    return found


def test_every_command_that_writes_has_a_flag_to_replace() -> None:
    """`compare` recognises its own folders by their contents; `doctor` and `status` write nothing, and print JSON."""
    flags = {parser.prog: set(parser._option_string_actions) for parser in parsers(make_parser())}
    writing = {prog for prog, options in flags.items() if options & {"--output", "--json"}}
    assert {prog for prog in writing if "--overwrite" not in flags[prog]} == {
        "hvd-async compare",
        "hvd-async doctor",
        "hvd-async status",
    }


@pytest.mark.parametrize("text", ["", "a\nb", "\x1b[2J", "caf\udce9"])
def test_a_path_that_is_not_printable_is_refused_by_every_command(text: str) -> None:
    for parser in parsers(make_parser()):
        for action in parser._actions:
            read = parser._registry_get("type", action.type, action.type)
            if action.type in (pathlib.Path, path_argument):
                with pytest.raises(argparse.ArgumentTypeError, match=r"got .* expected"):
                    read(text)


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    parsed = make_parser().parse_args(["data", "builtin", "--output=~/text"])
    assert parsed.output == pathlib.Path("/home/anna/text")
    assert make_parser().parse_args(["train", "~/run.yaml"]).config == "/home/anna/run.yaml"


def test_an_existing_file_is_replaced_only_on_request(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out"
    check_new("--output", None, overwrite=False)
    check_new("--output", path, overwrite=False)
    path.write_text("x")
    check_new("--output", path, overwrite=True)
    check_new("--output", pathlib.Path("/dev/null"), overwrite=False)
    with pytest.raises(ConfigError, match=f"--output: {path} exists already; replace it with --overwrite, or name"):
        check_new("--output", path, overwrite=False)
    with pytest.raises(ConfigError, match=f"--output: got the folder {tmp_path}, expected a file"):
        check_new("--output", tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["data", "builtin", "--output", ".", "--train", "2", "--validation", "1", "--test", "1"],
            "train.en is other text",
        ),
        (
            ["score", "m", "--source", "s", "--reference", "train.en", "--output", "train.en"],
            "--output: train.en exists",
        ),
        (
            ["score", "m", "--source", "s", "--reference", "train.en", "--output", "./train.en", "--overwrite"],
            "--output: got train.en, the file of --reference; expected another file",
        ),
        (["bench", "--json", "train.en"], "--json: train.en exists already"),
        (["simulate", "--calibrate", "r", "--output", "train.en"], "--output: train.en exists already"),
        (["data", "builtin", "--output", ".", "--train", "100000000"], "--train: got 100000000, expected 1 to 10,000,000"),
    ],
)
def test_files_of_the_user_are_not_replaced(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("train.en").write_text("mine\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("train.en", "mine\n")]


@pytest.mark.parametrize("command", ["launch", "compare"])
def test_a_configuration_in_a_pipe_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert main([command, "pipe"]) == 2
    error = "pipe: got no ordinary file, expected one, since the ranks read it too; write it to a file first"
    assert capsys.readouterr().err == f"hvd-async: {error}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "x", "--workers", str(2**63)], f"--workers: got {2**63}, expected at most 100,000"),
        (["launch", "x", "--nodes", str(2**63)], f"--nodes: got {2**63}, expected at most 10,000"),
        (["replay", "x", "--threads", str(2**63)], f"--threads: got {2**63}, expected at most 1,024"),
        (["translate", "x", "--beam", str(2**63)], f"--beam: got {2**63}, expected at most 1,000"),
        (["bench", "step", "--seconds", "nan"], "--seconds: got nan, expected at most 1,000,000,000"),
        (["compare", "x", "--jobs", str(10**40)], f"--jobs: got {10**40}, expected at most 100,000"),
    ],
)
def test_absurdly_large_numbers_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"hvd-async: {message}\n"
