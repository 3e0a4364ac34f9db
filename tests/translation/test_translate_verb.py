"""`hvd-async translate`: its formats, its file, its use as a server on standard input and output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvd_async.__main__ import main
from hvd_async.tasks.translation.sampling import Sampling
from hvd_async.tasks.translation.translator import Translator

LINES = ["The dog sees the cat.", "", "We sleep.", "The cat sees the old dog."]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.en"
    path.write_text("".join(f"{line}\n" for line in LINES))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["translate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_n_best_translations_are_numbered_and_have_scores(
    model_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row.split("\t", 2) for row in run(capsys, model_folder, "--input", text, "--n-best", 2).splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "3", "3", "4", "4"]
    expected = Translator.load(model_folder).n_best(LINES, 2)
    assert [row[2] for row in rows] == [one.text for each in expected for one in each]
    assert [float(row[1]) for row in rows] == pytest.approx([one.score for each in expected for one in each], rel=1e-4)


def test_the_length_penalty_of_the_command_line_counts(
    model_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(capsys, model_folder, "--input", text, "--n-best", 1, "--length-penalty", 0)
    sums = [one.log_probability for [one] in Translator.load(model_folder, settings={"length_penalty": 0}).n_best(LINES, 1)]
    assert [float(row.split("\t")[1]) for row in printed.splitlines()] == pytest.approx(sums, rel=1e-4)


def test_samples_repeat_by_seed_and_line(model_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = (model_folder, "--input", text, "--sample", "--top-k", 50, "--temperature", 0.9, "--seed", 7)
    printed = run(capsys, *sampled, "--batch", 1)
    assert run(capsys, *sampled, "--threads", 1) == printed
    expected = Translator.load(model_folder).sample(LINES, Sampling(0.9, 50, 7))
    assert printed.split("\n") == [*(one.text for [one] in expected), ""]
    assert run(capsys, *sampled[:-1], 8) != printed
    rows = run(capsys, *sampled, "--n-best", 3).splitlines()
    assert [row.split("\t")[0] for row in rows] == ["1", "1", "1", "2", "3", "3", "3", "4", "4", "4"]
    cold = run(capsys, model_folder, "--input", text, "--sample", "--temperature", 1e-6)
    assert cold == run(capsys, model_folder, "--input", text, "--beam", 1)


def test_the_output_file_holds_what_would_be_printed(
    model_folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "text.de"
    printed = run(capsys, model_folder, "--input", text)
    assert run(capsys, model_folder, "--input", text, "--output", output) == f"{output}: translations of 4 lines\n"
    assert output.read_text() == printed
    assert main(["translate", str(model_folder), "--input", str(text), "--output", str(output)]) == 2
    assert f"--output: {output} exists already; replace it with --overwrite" in capsys.readouterr().err
    run(capsys, model_folder, "--input", text, "--output", output, "--overwrite", "--n-best", 1)
    assert output.read_text().startswith("1\t-") and [path.name for path in output.parent.iterdir()] == ["text.de"]


def test_an_output_that_cannot_be_finished_is_not_there(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, output = tmp_path / "text.gz", tmp_path / "out.de"
    broken.write_bytes(b"\x1f\x8b\x08 no more")
    assert main(["translate", str(model_folder), "--input", str(broken), "--output", str(output)]) == 3
    assert "damaged gzip file" in capsys.readouterr().err and [*tmp_path.iterdir()] == [broken]


def test_a_bad_line_is_reported_and_keeps_its_place_in_the_file(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, output = tmp_path / "bad.en", tmp_path / "bad.tsv"
    bad.write_bytes(b"We sleep.\n\xff\nA cat.\n")
    assert main(["translate", str(model_folder), "--input", str(bad), "--output", str(output), "--n-best", "1"]) == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "greatest length" not in line]
    assert told == [
        f"hvd-async: {bad}: line 2: not UTF-8 (invalid start byte); left empty",
        f"hvd-async: {bad}: 1 of 3 lines could not be translated and are empty",
    ]
    rows = output.read_text().split("\n")
    assert rows[0].startswith("1\t-") and rows[1] == "2\tnan\t" and rows[2].startswith("3\t-") and rows[3:] == [""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n-best", "0"], "--n-best: got 0, expected 1 or more"),
        (["--n-best", "6"], "--n-best: got 6, expected at most the beam size, 5; add --beam 6"),
        (["--length-penalty", "-1"], "--length-penalty: got -1, expected a number from 0 to 100"),
        (["--length-penalty", "nan"], "--length-penalty: got nan, expected at most 100"),
        (["--batch", "0"], "--batch: got 0, expected 1 or more"),
        (["--batch-tokens", "0"], "--batch-tokens: got 0, expected 1 or more"),
        (["--sample", "--temperature", "0"], "--temperature: got 0, expected a number above 0; --beam 1 takes the most"),
        (["--sample", "--top-k", "0"], "--top-k: got 0, expected 1 or more"),
        (["--sample", "--beam", "3"], "--beam 3 has no effect with --sample; remove one of them"),
        (["--sample", "--length-penalty", "0"], "--length-penalty has no effect with --sample but in scores; add --n-best"),
        (["--top-k", "3"], "--top-k 3 has no effect without --sample; add it, or remove --top-k"),
        (["--seed", "3"], "--seed 3 has no effect without --sample; add it, or remove --seed"),
        (["--output", "text.en", "--overwrite"], "--output: got text.en, the file of --input; expected another file"),
        (["--output", ".", "--overwrite"], "--output: got the folder ., expected a file"),
    ],
)
def test_wrong_arguments_are_one_line(
    model_folder: Path,
    text: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(text.parent)
    assert main(["translate", str(model_folder), "--input", "text.en", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hvd-async: {message}") and error.count("\n") == 1
    assert [path.name for path in text.parent.iterdir()] == ["text.en"]


@pytest.mark.parametrize("arguments", [[], ["--batch", "1", "--n-best", "1"]])
def test_a_server_answers_each_line_before_it_gets_the_next(model_folder: Path, arguments: list[str]) -> None:
    """A reader that waited for more lines, or an answer that stayed in a buffer, would stop this test for ever."""
    command = [sys.executable, "-m", "hvd_async", "translate", str(model_folder), *arguments]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}  # empty: as if it were not set
    expected = Translator.load(model_folder).translate(LINES)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        for line, translation in zip(LINES, expected, strict=True):
            print(line, file=server.stdin, flush=True)
            assert server.stdout.readline().rstrip("\n").split("\t")[-1] == translation
        server.stdin.close()
        assert server.stdout.read() == "" and server.wait(60) == 0


def test_translations_that_may_be_cut_are_reported(
    model_folder: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translator = Translator.load(model_folder)
    translator.translate(LINES)
    assert main(["translate", str(model_folder), "--input", str(text)]) == 0
    ratio = translator.decoding.max_length_ratio
    told = f"{translator.num_cut} translations have the greatest length allowed, 10 + {ratio:g} x source tokens, and may"
    assert translator.num_cut > 0 and capsys.readouterr().err.startswith(f"hvd-async: {told}")
