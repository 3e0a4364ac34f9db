"""Records of a run survive whatever ends it: measurements, the best model, scalars, checkpoints by time."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from hvd_async.errors import CheckpointError, DataError, DivergedError, HvdAsyncError
from hvd_async.runs import scalars
from hvd_async.runs.evaluations import EvaluationHistory, EvaluationResult
from hvd_async.runs.summary import summary_lines
from hvd_async.system.background_writer import BackgroundWriter
from hvd_async.tasks.metric import Metric
from hvd_async.training.options import TrainOptions
from hvd_async.training.run import train
from tests.mpi.toy import Settings, ToyTask, make_config, parse_config

MEASURED = {"every": 3, "when": "after"}


def settings_of(folder: pathlib.Path, **sections: Any) -> Settings:
    """Return settings of the toy in one process, with 12 updates."""
    training = {"epochs": 1, "device": "cpu", "tensorboard": False, "threads": 1, **sections.pop("training", {})}
    return Settings(make_config(folder, training=training, **sections), num_batches=12)


def run(settings: Settings, task: type[ToyTask] = ToyTask, resume: bool = False) -> dict[str, Any]:
    config = parse_config(settings.config, source="toy")
    return train(config, lambda _: task(settings, rank=0), TrainOptions(resume=resume), environ={})


def versions(summary: Mapping[str, Any]) -> list[int]:
    return sorted(measurement["version"] for measurement in summary["measurements"])


def snapshots(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.stem[1:]) for path in (folder / "snapshots").iterdir())


class FullDisk(ToyTask):
    """A task for which the disk is full when the last model is exported."""

    def export(self, folder: pathlib.Path, *arguments: Any) -> None:
        if folder.name == "last":
            raise DataError(f"{folder}: cannot be written: No space left on device")
        super().export(folder, *arguments)


class FailsAtThirdEvaluation(ToyTask):
    """A task that fails at its third evaluation."""

    def evaluate(self, *arguments: Any) -> Any:
        if self._evaluations == 2:
            raise OSError("injected")
        return super().evaluate(*arguments)


def test_a_disk_too_full_for_the_last_model_costs_no_measurement(tmp_path: pathlib.Path) -> None:
    settings = settings_of(tmp_path / "run", validation=MEASURED)
    with pytest.raises(DataError, match="last: cannot be written: No space left on device"):
        run(settings, FullDisk)
    summary = run(settings, resume=True)
    assert versions(summary) == [3, 6, 9, 12] and summary["status"] == "finished" and summary["unmeasured"] == []
    assert snapshots(tmp_path / "run") == [] and (tmp_path / "run/models/last/exported.json").exists()


def test_a_death_while_measuring_costs_only_the_measurement_under_way(tmp_path: pathlib.Path) -> None:
    settings = settings_of(tmp_path / "run", validation=MEASURED)
    with pytest.raises(OSError, match="injected"):
        run(settings, FailsAtThirdEvaluation)
    best = json.loads((tmp_path / "run/models/best/exported.json").read_text())["version"]
    assert snapshots(tmp_path / "run") == sorted({best, 9, 12})  # the snapshot of the best version is kept until the end
    counted: list[int] = []

    class Counts(ToyTask):
        def evaluate(self, *arguments: Any) -> Any:
            counted.append(1)
            return super().evaluate(*arguments)

    summary = run(settings, Counts, resume=True)
    assert versions(summary) == [3, 6, 9, 12] and len(counted) == 2
    whole = run(settings_of(tmp_path / "whole", validation=MEASURED))
    assert [m["scores"]["loss"] for m in summary["measurements"]] == [m["scores"]["loss"] for m in whole["measurements"]]


@pytest.mark.parametrize("step", [5, 11])
def test_a_file_that_cannot_be_written_ends_a_run_and_costs_nothing_else(tmp_path: pathlib.Path, step: int) -> None:
    folder = tmp_path / "run"

    class Vanishes(ToyTask):
        def loss(self, *arguments: Any) -> Any:
            if self._steps == step:
                (folder / "snapshots").rename(tmp_path / "elsewhere")
            return super().loss(*arguments)

    settings = settings_of(folder, validation={**MEASURED, "every": 1})
    with pytest.raises(DataError, match=r"v000000\d\d.safetensors: cannot be written: .*No such file or directory"):
        run(settings, Vanishes)
    assert len(list((folder / "checkpoints").glob("v*"))) == 1
    summary = run(settings, resume=True)
    assert summary["updates"] == 12 and 12 in versions(summary)
    assert sorted(versions(summary) + summary["unmeasured"]) == list(range(1, 13))


def test_scalars_that_cannot_be_written_do_not_end_a_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").write_text("in the way")
    summary = run(settings_of(tmp_path / "run", training={"tensorboard": True}))
    assert summary["status"] == "finished"
    assert capsys.readouterr().out.count("tensorboard: cannot be written: ") == 1


def test_a_missing_snapshot_is_reported(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(tmp_path / "run", validation=MEASURED)
    with pytest.raises(OSError, match="injected"):
        run(settings, FailsAtThirdEvaluation)
    (tmp_path / "run/snapshots/v00000009.safetensors").unlink()
    summary = run(settings, resume=True)
    assert versions(summary) == [3, 6, 12] and summary["unmeasured"] == [9]
    assert "got no snapshots of versions 9, which are not measured" in capsys.readouterr().out


def test_the_best_model_follows_the_log_after_later_versions_were_lost(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    settings = settings_of(folder, validation={"every": 2}, training={"checkpoint_every": 5})

    class KilledTask(ToyTask):
        def loss(self, *arguments: Any) -> Any:
            if self._steps == 9:
                raise KeyboardInterrupt  # after this nothing is saved
            return super().loss(*arguments)

    class GetsWorse(ToyTask):
        def evaluate(self, *arguments: Any) -> Any:
            return [1e9, *super().evaluate(*arguments)[1:]]

    with pytest.raises(SystemExit):
        run(settings, KilledTask)
    exported = folder / "models/best/exported.json"
    assert json.loads(exported.read_text())["version"] == 8  # of the later versions that are lost
    summary = run(settings, GetsWorse, resume=True)
    assert summary["best"]["version"] == json.loads(exported.read_text())["version"] == 4
    assert snapshots(folder) == []


ACCURACY = (40.0, 50.0, 60.0, 50.0, 60.0, 55.0)  # of versions 2, 4, ...; the loss falls all the time


class Scripted(ToyTask):
    """A task whose evaluations give these scores, one after another, in all processes together."""

    scores_in_order = ACCURACY

    def evaluate(self, *arguments: Any) -> Any:
        number = len(list(pathlib.Path(self._settings.config["output"]).parent.glob("*.evaluated")))
        (pathlib.Path(self._settings.config["output"]).parent / f"{number}.evaluated").touch()
        percent = round(self.scores_in_order[number])
        return [10 * (100.0 - number), 100, percent]


BY_ACCURACY = {"every": 2, "score": "bleu"}


def accurate(folder: pathlib.Path, **validation: Any) -> Settings:
    return dataclasses.replace(settings_of(folder, validation={**BY_ACCURACY, **validation}), has_accuracy=True)


def exported(folder: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "models/best/exported.json").read_text())
    return found


def test_the_best_model_is_that_of_the_score(tmp_path: pathlib.Path) -> None:
    summary = run(accurate(tmp_path / "run"), Scripted)
    assert [round(m["scores"]["bleu"]) for m in summary["measurements"]] == [40, 50, 60, 50, 60, 55]
    assert summary["best"]["version"] == exported(tmp_path / "run")["version"] == 6 and summary["score"] == "bleu"
    (tmp_path / "other").mkdir()
    by_loss = run(accurate(tmp_path / "other/run", score="loss"), Scripted)
    assert by_loss["best"]["version"] == exported(tmp_path / "other/run")["version"] == 12


def test_patience_counts_by_the_score(tmp_path: pathlib.Path) -> None:
    summary = run(accurate(tmp_path / "run", patience=2), Scripted)
    assert summary["status"] == "finished early" and versions(summary) == [2, 4, 6, 8, 10] and summary["updates"] == 10
    assert summary_lines(summary, "run")[-1].startswith(
        "finished early, since validation.patience is exhausted: version 10, "
    )


def test_a_resumed_run_continues_its_patience_and_its_best_score(tmp_path: pathlib.Path) -> None:
    class Stops(Scripted):
        def loss(self, *arguments: Any) -> Any:
            if self._steps == 8:
                raise OSError("injected")
            return super().loss(*arguments)

    settings = accurate(tmp_path / "run", patience=2)
    with pytest.raises(OSError, match="injected"):
        run(settings, Stops)
    assert exported(tmp_path / "run")["version"] == 6
    summary = run(settings, Scripted, resume=True)
    assert summary["status"] == "finished early" and summary["updates"] == 10 and versions(summary) == [2, 4, 6, 8, 10]
    assert summary["best"]["version"] == exported(tmp_path / "run")["version"] == 6


def test_a_run_is_not_resumed_with_another_score(tmp_path: pathlib.Path) -> None:
    run(accurate(tmp_path / "run"), Scripted)
    longer = dataclasses.replace(accurate(tmp_path / "run", score="loss"), num_batches=14)
    with pytest.raises(
        HvdAsyncError, match=r"--resume: validation.score: got 'loss', expected 'bleu' as in .*start another run"
    ):
        run(longer, Scripted, resume=True)


def test_a_score_that_the_task_does_not_give_is_refused_before_anything_is_written(tmp_path: pathlib.Path) -> None:
    settings = settings_of(tmp_path / "run", validation=BY_ACCURACY)
    with pytest.raises(HvdAsyncError) as caught:
        run(settings)
    assert str(caught.value) == "validation.score: got 'bleu', expected a score that the task measures: loss"
    assert not (tmp_path / "run").exists()


def test_a_score_that_no_evaluation_gave_is_reported(tmp_path: pathlib.Path) -> None:
    class WithoutIt(ToyTask):
        def scores(self, statistics: Sequence[float]) -> dict[str, float]:
            return {"loss": super().scores(statistics)["loss"]}

    settings = accurate(tmp_path / "run", patience=1)
    summary = run(settings, WithoutIt)
    assert summary["status"] == "finished" and summary["best"] is None and not (tmp_path / "run/models/best").exists()
    assert "no evaluation measured a finite bleu, so there is no models/best" in summary_lines(summary, "run")


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, list(range(1, 13))), (0.0, [12]), (10.0, [12])])
def test_checkpoints_are_saved_by_time_too(tmp_path: pathlib.Path, minutes: float, saved: list[int]) -> None:
    run(settings_of(tmp_path / "run", training={"checkpoint_minutes": minutes, "keep_checkpoints": 99}))
    assert sorted(int(path.name[1:]) for path in (tmp_path / "run/checkpoints").iterdir()) == saved


def test_scalars_have_every_step_once_after_a_resume(tmp_path: pathlib.Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    run_twice(folder, tensorboard=True)
    scalars = EventAccumulator(str(folder / "tensorboard"))
    scalars.Reload()
    assert [event.step for event in scalars.Scalars("validation/loss")] == list(range(1, 13))


def run_twice(folder: pathlib.Path, **training: Any) -> None:
    """Run to version 12, evaluating each; then again from version 10, as if killed before the last checkpoint was saved."""
    training = {"checkpoint_every": 5, "keep_checkpoints": 9, **training}
    settings = settings_of(folder, validation={"every": 1}, training=training)
    run(settings)
    shutil.rmtree(folder / "checkpoints/v00000012")
    (folder / "summary.json").unlink()
    run(settings, resume=True)


def test_mlflow_gets_the_configuration_and_one_run_for_a_resumed_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run_twice(tmp_path / "run", trackers=["mlflow"])
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["training.checkpoint_every"] == "5" and found.data.params["optimizer.kind"] == "adam"
    history = client.get_metric_history(found.info.run_id, "validation/loss")
    assert sorted({metric.step for metric in history}) == list(range(1, 13)) and len(history) == 14  # 11 and 12 made again
    assert "training/loss" in found.data.metrics


def test_wandb_gets_the_configuration_and_one_run_for_a_resumed_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_twice(tmp_path / "run", trackers=["wandb"])
    name = json.loads((tmp_path / "run/tracker.wandb.json").read_bytes())["id"]
    files = sorted((tmp_path / "run/wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    versions = [
        int(item.value_json)
        for record in records
        for item in record.history.item
        if "validation/loss" in {each.nested_key[0] if each.nested_key else each.key for each in record.history.item}
        and (item.nested_key[0] if item.nested_key else item.key) == "version"
    ]
    assert len(files) == 2 and versions == [*range(1, 13), 11, 12]
    keys = {update.key: update.value_json for record in records for update in record.run.config.update}
    assert keys["training.checkpoint_every"] == "5" and {record.run.project for record in records} == {"", "hvd_async"}


def wandb_records(path: pathlib.Path) -> list[Any]:
    """Return the records of a file that wandb writes when it is offline: a log of LevelDB's format after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, begun, found = path.read_bytes(), 7, b"", []
    while len(content) - place >= 7:
        if (rest := 32768 - place % 32768) < 7:  # no room in this block for another head
            place += rest
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        begun += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(begun)
            found.append(record)
            begun = b""
    return found


def test_a_tracker_that_never_answers_is_given_up(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.setattr(scalars, "_LAST_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        summary = run(settings_of(tmp_path / "run", training={"trackers": ["mlflow"]}))
    assert summary["status"] == "finished"
    assert (
        capsys.readouterr().out.count("mlflow: cannot be written: it did not answer in time; what was not sent is lost") == 1
    )


def test_mlflow_without_an_address_is_reported_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run(settings_of(tmp_path / "run", training={"trackers": ["mlflow"]}))["status"] == "finished"
    assert capsys.readouterr().out.count("MLFLOW_TRACKING_URI is not set, expected the address of a server") == 1


def test_a_tracker_that_cannot_be_reached_does_not_end_a_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file/mlruns").as_uri())
    summary = run(settings_of(tmp_path / "run", training={"trackers": ["mlflow"]}))
    assert summary["status"] == "finished"
    assert capsys.readouterr().out.count("mlflow: cannot be written: ") == 1


def test_a_log_that_was_cut_is_continued_with_a_gap_that_is_reported(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(tmp_path / "run")
    run(settings)
    log = tmp_path / "run/events.jsonl"
    log.write_bytes(log.read_bytes()[:-900])
    summary = run(dataclasses.replace(settings, num_batches=15), resume=True)
    assert summary["updates"] == 15 and summary["status"] == "finished"
    assert "with a gap of" in capsys.readouterr().out
    assert next(json.loads(line) for line in log.read_text().splitlines() if '"gap"' in line)["version"] == 12


def test_a_checkpoint_that_another_rank_does_not_see_is_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hvd_async.runs.checkpoint import SavedData
    from hvd_async.training import resume as module

    monkeypatch.setattr(module, "_LISTING_SECONDS", 0.0)
    with pytest.raises(
        CheckpointError, match=r"rank 2: .*v00000003: no such folder here, expected the checkpoint from which rank 0"
    ):
        module._find_tensors(SavedData(tmp_path / "v00000003", {}, 1), 2)


# --- Parts of the recorder --------------------------------------------------------------------------------------------


def measured(*losses: float) -> EvaluationHistory:
    return scored(Metric("loss", "loss"), *({"loss": loss} for loss in losses))


def scored(metric: Metric, *scores: Mapping[str, float]) -> EvaluationHistory:
    history = EvaluationHistory(metric)
    for version, each in enumerate(scores, start=1):
        history.add(EvaluationResult(version, 0, 0.0, each))
    return history


@pytest.mark.parametrize(
    ("losses", "best", "without"),
    [
        ((), None, 0),
        ((3.0, 2.0, 2.0, 4.0), 2, 2),
        ((float("nan"), float("inf")), None, 2),
        ((3.0, float("nan"), float("nan")), 1, 2),
    ],
)
def test_progress_is_a_finite_lower_loss(losses: tuple[float, ...], best: int | None, without: int) -> None:
    found = measured(*losses)
    assert (found.best.version if found.best else None) == best and found.num_without_progress() == without


@pytest.mark.parametrize(
    ("is_higher_better", "scores", "best", "without"),
    [
        (True, (3.0, 5.0, 5.0, 4.0), 2, 2),
        (False, (3.0, 5.0, 2.0, 4.0), 3, 1),
        (True, (float("nan"), 1.0, float("inf")), 2, 1),
        (True, (3.0, None, 2.0, None, None), 1, 1),  # None: not measured, which is no lack of progress
        (True, (None, None), None, 0),
        (True, (float("nan"), None, float("nan")), None, 2),
    ],
)
def test_progress_is_a_better_score_in_the_direction_of_its_metric(
    is_higher_better: bool, scores: tuple[float | None, ...], best: int | None, without: int
) -> None:
    metric = Metric("quality", "quality", is_higher_better=is_higher_better)
    evaluations = ({"loss": 9.0 - number, "quality": score} for number, score in enumerate(scores))
    found = scored(metric, *({name: each for name, each in one.items() if each is not None} for one in evaluations))
    assert (found.best.version if found.best else None) == best and found.num_without_progress() == without


def test_a_submission_beyond_the_limit_waits_for_the_disk() -> None:
    is_free, done, order = threading.Event(), threading.Event(), []

    def slow() -> None:
        is_free.wait(60)
        order.append("slow")

    with BackgroundWriter(max_bytes=10) as writer:
        writer.submit(slow, num_bytes=6)
        writer.submit(order.append, "small", num_bytes=4)  # there is room for it

        def bring() -> None:
            writer.submit(order.append, "large", num_bytes=5)
            done.set()

        thread = threading.Thread(target=bring)
        thread.start()
        assert not done.wait(0.1)
        is_free.set()
        thread.join()
    assert order == ["slow", "small", "large"]


def test_a_failed_write_is_raised_once() -> None:
    def fail() -> None:
        raise DataError("no room")

    with BackgroundWriter(10) as writer:
        writer.submit(fail)
        with pytest.raises(DataError, match="no room"):
            writer.wait()
        writer.submit(fail)
        writer.forget_failures()
        writer.wait()


def test_a_run_that_has_made_no_update_of_its_gradients_has_diverged(tmp_path: pathlib.Path) -> None:
    class NeverFinite(ToyTask):
        def loss(self, *arguments: Any) -> Any:
            loss, weight = super().loss(*arguments)
            return loss * float("nan"), weight

    with pytest.raises(DivergedError):
        run(settings_of(tmp_path / "run"), NeverFinite)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "diverged" and summary["updates"] == 0 and summary["refused"] == {"not_finite": 12}
