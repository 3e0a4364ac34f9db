"""`hvd-async score`: files of translations and models alike, its JSON, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd_async.__main__ import main
from hvd_async.tasks.translation import comet
from hvd_async.tasks.translation.scoring import NUM_SAMPLES, difference_of, score_texts
from hvd_async.tasks.translation.translator import Translator
from tests.comparison.processes import until

SOURCES = ["The dog sees the cat.", "We sleep.", "A cat."]
REFERENCES = ["Der Hund sieht die Katze.", "Wir schlafen.", "Eine Katze."]
GOOD = ["Der Hund sieht die Katze.", "Wir schlafen.", "Ein Kater."]
BAD = ["Hund sieht die Katze.", "Wir gehen schlafen.", "Katze."]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, with texts."""
    for name, lines in {"s.en": SOURCES, "r.de": REFERENCES, "good.de": GOOD, "bad.de": BAD}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_translations_are_scored_and_compared_without_a_model(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "score",
        "--hypothesis",
        "good.de",
        "--reference",
        "r.de",
        "--against",
        "bad.de",
        "--metrics",
        "bleu,chrf,ter",
    ]
    assert main([*command, "--json", "out/scores.json"]) == 0
    scores = score_texts(GOOD, REFERENCES, ["bleu", "chrf", "ter"])
    than = difference_of(GOOD, BAD, REFERENCES, ["bleu", "chrf", "ter"])
    titles = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER"}
    parts = ", ".join(f"{titles[name]} {each.value:+.2f} (p = {each.p:.3f})" for name, each in than.items())
    assert capsys.readouterr().out.splitlines() == [
        *(f"{titles[name]} {score.value:.2f}  {score.signature}" for name, score in scores.items()),
        f"good.de minus bad.de: {parts}; paired bootstrap of {NUM_SAMPLES:,} samples, seed 12345",
    ]
    assert json.loads((files / "out/scores.json").read_text()) == {
        "hypothesis": "good.de",
        "reference": "r.de",
        "sentences": 3,
        "scores": {name: {"score": score.value, "signature": score.signature} for name, score in scores.items()},
        "against": [
            {"file": "bad.de", "differences": {name: {"difference": each.value, "p": each.p} for name, each in than.items()}}
        ],
        "bootstrap_samples": NUM_SAMPLES,
        "bootstrap_seed": 12345,
    }
    assert main([*command, "--json", "out/scores.json"]) == 2
    assert "--json: out/scores.json exists already; replace it with --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said", "kept"), [("0", "0", 0), ("7", "7", 7), ("None", "not fixed", None)])
def test_the_seed_of_the_bootstrap_is_that_of_sacrebleu(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: str, said: str, kept: int | None
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", given)
    assert main(["score", "--hypothesis", "good.de", "--reference", "r.de", "--against", "bad.de", "--json", "a.json"]) == 0
    assert capsys.readouterr().out.endswith(f"samples, seed {said}\n")
    assert json.loads((files / "a.json").read_text())["bootstrap_seed"] == kept


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", ""])
def test_a_seed_that_is_none_is_refused_in_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", seed)
    assert main(["score", "--hypothesis", "good.de", "--reference", "r.de"]) == 2
    line = f"hvd-async: SACREBLEU_SEED: got {seed!r}, expected a whole number, 0 or more, or none\n"
    assert capsys.readouterr().err == line


def test_a_model_scores_as_its_translations_do(model_folder: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(model_folder), "--source", "s.en", "--reference", "r.de", "--length-penalty", "0.5"]
    assert main([*command, "--output", "mine.de", "--json", "a.json"]) == 0
    printed = capsys.readouterr().out
    translator = Translator.load(model_folder, settings={"length_penalty": 0.5})
    assert (files / "mine.de").read_text().splitlines() == translator.translate(SOURCES)
    found = json.loads((files / "a.json").read_text())
    assert (found["models"], found["beam"], found["length_penalty"]) == ([str(model_folder)], 5, 0.5)
    assert main(["score", "--hypothesis", "mine.de", "--reference", "r.de", "--json", "b.json"]) == 0
    assert capsys.readouterr().out == printed and [line[:4] for line in printed.splitlines()] == ["BLEU", "chrF"]
    assert json.loads((files / "b.json").read_text())["scores"] == found["scores"]


def test_the_likelihood_is_in_the_json(model_folder: Path, files: Path) -> None:
    command = ["score", str(model_folder), "--source", "s.en", "--reference", "r.de", "--likelihood", "--json", "a.json"]
    assert main(command) == 0
    found = json.loads((files / "a.json").read_text())
    likelihoods = Translator.load(model_folder).likelihoods(SOURCES, REFERENCES)
    assert found["pieces"] == sum(len(one.pieces) for one in likelihoods)
    assert found["nats_per_piece"] == pytest.approx(-sum(one.log_probability for one in likelihoods) / found["pieces"])
    assert found["perplexity"] == pytest.approx(math.exp(found["nats_per_piece"]))
    assert (found["sentences"], found["unknown_pieces"]) == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--reference", "r.de"], 2, "got neither MODEL nor --hypothesis, expected one of them"),
        (["m", "--reference", "r.de"], 2, "--source: missing, expected the file of the text that MODEL translates"),
        (
            ["m", "--hypothesis", "bad.de", "--reference", "r.de"],
            2,
            "got MODEL m and --hypothesis bad.de, expected one of them",
        ),
        (
            ["--hypothesis", "bad.de", "--reference", "r.de", "--beam", "2"],
            2,
            "--beam has no effect with --hypothesis, which needs no model; remove one of them",
        ),
        (
            ["--hypothesis", "bad.de", "--reference", "r.de", "--likelihood"],
            2,
            "--likelihood has no effect with --hypothesis",
        ),
        (
            ["m", "--source", "s.en", "--reference", "r.de", "--likelihood", "--metrics", "ter"],
            2,
            "--metrics has no effect with --likelihood, which translates nothing; remove one of them",
        ),
        (["--hypothesis", "bad.de", "--reference", "r.de", "--metrics", "blue"], 2, "--metrics: got 'blue', expected names"),
        (
            ["--hypothesis", "bad.de", "--reference", "r.de", "--json", "r.de", "--overwrite"],
            2,
            "--json: got r.de, the file of --r",
        ),
        (
            ["m", "--source", "s.en", "--reference", "r.de", "--json", "x", "--output", "x"],
            2,
            "--json: got x, the file of --output",
        ),
        (["--hypothesis", "short", "--reference", "r.de"], 3, "short: got 1 lines, expected 3, a translation of each"),
        (["--hypothesis", "bad.de", "--reference", "empty"], 3, "empty: got no line, expected at least one"),
        (["--hypothesis", "none", "--reference", "r.de"], 3, "none: cannot be read: No such file or directory"),
    ],
)
def test_wrong_arguments_are_one_line(
    files: Path, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "short").write_text("one\n")
    (files / "empty").write_text("")
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    assert main(["score", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith(f"hvd-async: {message}") and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


# Stands in for `comet-score`, whose models cannot be had everywhere: a sentence scores the share of words of the reference.
COMET_SCORE = """#!{python}
import argparse, json, sys
parser = argparse.ArgumentParser()
for flag in ("-s", "-r", "--model", "--to_json", "--gpus"):
    parser.add_argument(flag, required=True)
parser.add_argument("-t", nargs="+")
parser.add_argument("--quiet", action="store_true")
parser.add_argument("--only_system", action="store_true")
given = parser.parse_args()
if given.model == "none":
    sys.exit("Traceback (most recent call last):\\nKeyError: \\"Model 'none' not supported by COMET.\\"")
sources, references = (open(path).read().splitlines() for path in (given.s, given.r))
assert len(sources) == len(references)
scores = {{}}
for path in given.t:
    lines = open(path).read().splitlines()
    shares = [len({{*a.split()}} & {{*b.split()}}) / len(b.split()) for a, b in zip(lines, references)]
    scores[path] = [{{"COMET": share}} for share in shares[: -1 if given.model == "short" else None]]
json.dump(scores, open(given.to_json, "w"))
"""


@pytest.fixture
def comet_score(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "bin").mkdir()
    (files / "bin/comet-score").write_text(COMET_SCORE.format(python=sys.executable))
    (files / "bin/comet-score").chmod(0o755)
    monkeypatch.setenv("PATH", str(files / "bin"), prepend=":")


OWN, OTHER = [1.0, 1.0, 0.0], [4 / 5, 1.0, 1 / 2]  # of GOOD and BAD, sentence by sentence


@pytest.mark.usefixtures("comet_score")
def test_comet_is_printed_last_with_its_model_and_its_difference(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", "--hypothesis", "good.de", "--source", "s.en", "--reference", "r.de", "--against", "bad.de"]
    assert main([*command, "--metrics", "comet,ter", "--comet-model", "made", "--json", "scores.json"]) == 0
    found = json.loads((files / "scores.json").read_text())
    assert found["scores"]["comet"] == {"score": pytest.approx(2 / 3), "signature": "model:made"}
    [than] = found["against"]
    assert than["differences"]["comet"] == {"difference": pytest.approx(-0.1), "p": comet.difference(OWN, OTHER).p}
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("TER ") and second == "COMET 0.6667  model:made"
    assert third.startswith("good.de minus bad.de: COMET -0.1000 (p = ") and ", TER " in third


@pytest.mark.usefixtures("comet_score")
def test_comet_of_a_model_and_its_own_translations_differ_by_nothing(
    model_folder: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(model_folder), "--source", "s.en", "--reference", "r.de", "--metrics", "bleu,comet"]
    assert main([*command, "--output", "own.de"]) == 0
    capsys.readouterr()
    assert main([*command, "--against", "own.de"]) == 0
    out = capsys.readouterr().out
    assert "  model:Unbabel/wmt22-comet-da\n" in out
    assert "this model minus own.de: BLEU +0.00 (p = 1.000), COMET +0.0000 (p = 1.000);" in out


@pytest.mark.usefixtures("comet_score")
@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["--metrics", "comet"],
            2,
            "--source: missing, expected the file of the text that is translated, which comet reads too",
        ),
        (
            ["--source", "s.en"],
            2,
            "--source: got a file beside --hypothesis, which only comet reads; add comet to --metrics, or remove the flag",
        ),
        (
            ["--comet-model", "x", "--source", "s.en"],
            2,
            "--comet-model has no effect without comet in --metrics; add it, or remove the flag",
        ),
        (
            ["--source", "s.en", "--metrics", "bleu,comet", "--comet-model", "none"],
            4,
            "comet-score failed with status 1: KeyError: \"Model 'none' not supported by COMET.\"",
        ),
        (
            ["--source", "s.en", "--metrics", "comet,bleu", "--comet-model", "short"],
            4,
            "comet-score gave too few scores, or some that are not finite; expected 3 for each text",
        ),
    ],
)
def test_what_keeps_comet_from_scoring_is_one_line(
    files: Path, arguments: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--hypothesis", "good.de", "--reference", "r.de", *arguments]) == status
    found = capsys.readouterr()
    assert ("BLEU" in found.out) == (status == 4)  # other scores do not wait for it
    assert found.err == f"hvd-async: {line}\n"


def test_without_its_program_comet_is_refused_before_the_search(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(files))
    assert main(["score", "none", "--source", "s.en", "--reference", "r.de", "--metrics", "comet"]) == 2
    assert "no program comet-score is on PATH; install it" in capsys.readouterr().err


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_difference_of_means_is_antisymmetric_and_its_p_a_probability(pairs: list[tuple[float, float]]) -> None:
    own, other = ([pair[side] for pair in pairs] for side in range(2))
    there, back = comet.difference(own, other), comet.difference(other, own)
    assert there.value == pytest.approx(-back.value) and there.p == back.p and 0 < there.p <= 1


def test_a_clear_difference_of_means_is_not_by_chance() -> None:
    better = [0.8 + 0.001 * (i % 7) for i in range(200)]
    assert comet.difference(better, [value - 0.1 - 0.001 * (i % 3) for i, value in enumerate(better)]).p < 0.002
    assert comet.difference(better, [value + 0.1 * (-1) ** i + 1e-4 for i, value in enumerate(better)]).p > 0.5


@pytest.mark.usefixtures("comet_score")
def test_a_signal_ends_the_program_and_leaves_nothing_behind(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "tmp").mkdir()
    program = "#!/bin/sh\necho $$ > pid.new\nmv pid.new pid\nexec sleep 600\n"
    (files / "bin/comet-score").write_text(program)
    command = [
        sys.executable,
        "-m",
        "hvd_async",
        "score",
        "--hypothesis",
        "good.de",
        "--source",
        "s.en",
        "--reference",
        "r.de",
    ]
    environment = {**os.environ, "TMPDIR": str(files / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([*command, "--metrics", "comet"], env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: (files / "pid").exists(), process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "score: stopped by SIGTERM; COMET was not computed" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((files / "pid").read_text()), 0)
    assert not list((files / "tmp").iterdir())
