"""Translations of a few validation sentences are kept with each evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hvd_async.__main__ import main
from hvd_async.config import dump_config
from hvd_async.runs.folder import RunFolder
from hvd_async.runs.samples import as_markdown, forget_samples, read_samples
from hvd_async.tasks.translation.text import read_split
from hvd_async.tasks.translation.translator import Translator
from tests.translation.settings import make_config

EVERY = {"every": 2}
TRAINING = {"epochs": None, "updates": 4, "device": "cpu", "threads": 1}


def configured(folder: Path, place: Path, **changes: Any) -> str:
    """Write the configuration of a run in `place`/run, and return its path."""
    sections = {"training": TRAINING, "validation": EVERY, **changes}
    (place / "run.yaml").write_text(
        dump_config(make_config(folder, **sections)).replace(str(folder / "run"), str(place / "run"))
    )
    return str(place / "run.yaml")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("verb", ["train", "simulate"])
@pytest.mark.parametrize("when", ["during", "after"])
def test_each_evaluation_keeps_the_first_sentences(folder: Path, tmp_path: Path, verb: str, when: str) -> None:
    config = configured(folder, tmp_path, samples=4, decoding={"validation_beam": 2}, validation={**EVERY, "when": when})
    assert main([verb, config]) == 0
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["v00000002.jsonl", "v00000004.jsonl"]
    validation = read_split(folder, "val", "en", "de")
    best = json.loads((run / "summary.json").read_text())["best"]["version"]
    translations = Translator.load(str(run / "models/best"), settings={"beam": 2}).translate(validation.sources[:4])
    expected = zip(range(1, 5), validation.sources, validation.targets, translations, strict=False)
    names = ("line", "source", "reference", "translation")
    assert lines_of(run / f"samples/v{best:08d}.jsonl") == [dict(zip(names, each, strict=True)) for each in expected]


@pytest.mark.parametrize(
    ("metrics", "samples", "kept"),
    [(["bleu"], None, 3), ([], None, 0), ([], 1, 1), (["bleu"], 0, 0), (["chrf"], 99, 12)],
)
def test_as_many_samples_are_kept_as_asked_for(
    folder: Path, tmp_path: Path, metrics: list[str], samples: int | None, kept: int
) -> None:
    assert main(["train", configured(folder, tmp_path, metrics=metrics, samples=samples, validation={"every": None})]) == 0
    found = [len(lines_of(path)) for path in (tmp_path / "run").glob("samples/*")]
    assert found == ([kept] if kept else [])


def test_samples_do_not_change_the_run(folder: Path, tmp_path: Path) -> None:
    models = []
    for name, samples in (("with", 5), ("without", 0)):
        (tmp_path / name).mkdir()
        assert main(["train", configured(folder, tmp_path / name, samples=samples)]) == 0
        models.append((tmp_path / name / "run/models/last/model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_tensorboard_shows_the_samples(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", configured(folder, tmp_path, samples=2)]) == 0
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    found = {event.step: event for event in events.Tensors("validation/samples/text_summary")}
    assert sorted(found) == [2, 4]
    text = found[4].tensor_proto.string_val[0].decode()
    assert text == as_markdown(lines_of(tmp_path / "run/samples/v00000004.jsonl")) and text.startswith("| line | source |")


def test_a_folder_that_cannot_be_written_costs_the_samples_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/samples").write_text("in the way")
    assert main(["train", configured(folder, tmp_path)]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("cannot be written" in line for line in errors)
    assert errors[0].endswith("; continuing without the samples of version 2")


def test_a_resumed_run_makes_the_samples_after_its_checkpoint_again(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path)
    assert main(["train", config]) == 0
    run = RunFolder(tmp_path / "run")
    for version in (2, 4, 6, 8):
        run.samples_of(version).write_text('{"old": 1}\n')
    (run.samples / "v00000009.txt").write_text("of someone else")
    assert main(["train", config, "--resume", "--set", "training.updates=6"]) == 0
    assert [read_samples(run, version) == [{"old": 1}] for version in (2, 4, 6)] == [True, True, False]
    assert read_samples(run, 8) == [] and len(read_samples(run, 6)) == 3 and (run.samples / "v00000009.txt").exists()


def test_a_new_run_in_the_place_of_another_has_no_samples_of_it(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path)
    assert main(["train", config]) == 0
    assert main(["train", config, "--overwrite", "--set", "task.samples=0"]) == 0
    assert not (tmp_path / "run/samples").exists()


def test_damaged_samples_are_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.samples.mkdir()
    assert read_samples(run, 1) == []
    for content in (b"\xff", b"{", b"[1]\n"):
        run.samples_of(1).write_bytes(content)
        assert read_samples(run, 1) == []
    forget_samples(run, 1)
    assert not run.samples_of(1).exists()


def test_a_table_shows_texts_as_they_are() -> None:
    samples = [{"line": 1, "source": "a|b *c*"}, {"line": 2, "translation": "<b>\n`x`"}]
    assert as_markdown(samples).splitlines() == [
        "| line | source | translation |",
        "| --- | --- | --- |",
        "| 1 | a\\|b \\*c\\* |  |",
        "| 2 |  | \\<b\\> \\`x\\` |",
    ]
