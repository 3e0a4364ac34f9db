"""Rules for starting and resuming a run: in which folder, and with which changes."""

from __future__ import annotations

import pathlib
import shutil
import zlib
from typing import Any

import pytest
import torch

from hvd_async.config import RunConfig, load_config, parse_config
from hvd_async.errors import CheckpointError, ConfigError, DataError
from hvd_async.runs.checkpoint import Checkpoint, save_checkpoint
from hvd_async.runs.continuation import Supply, needs_more_training
from hvd_async.runs.event_log import EventLog
from hvd_async.runs.folder import Beginning, RunFolder
from tests.trees import replaced


def make_config(**sections: Any) -> RunConfig:
    smallest = {"output": "runs/x", "task": {"data": {"folder": "data"}}, "training": {"epochs": 1}}
    return parse_config(replaced(smallest, sections), source="test")


def saved(version: int = 3, weight: int = 300, used: int = 7, seconds: float = 9.5, hole: int = 0) -> dict[str, Any]:
    """Return the data of a checkpoint, as far as they decide whether a run may resume: the last batch but one is not
    applied yet.
    """
    store = {
        "version": version,
        "weight": weight,
        "ledger": {"watermark": used - hole, "above": [used - 1] if hole > 1 else []},
    }
    return {"data_fingerprint": "text", "store": store, "recorder": {"seconds": seconds, "log": [0, 0]}}


SUPPLY = Supply("text", 7)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> RunFolder:
    """A run with a checkpoint of version 3."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(make_config(), overwrite=False)
    save_version(folder, 3)
    return folder


def save_version(folder: RunFolder, version: int, log: bytes = b"", keep: int = 9) -> None:
    """Save a checkpoint of `version` that covers the log up to `log`."""
    data = saved(version)
    data["recorder"]["log"] = [len(log), zlib.crc32(log)]
    save_checkpoint(folder.checkpoints, version, Checkpoint({"t": torch.zeros(1)}, data), keep)


def test_naming_a_folder_touches_nothing(tmp_path: pathlib.Path) -> None:
    RunFolder(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_its_whole_configuration(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    folder.begin(make_config(seed=5), overwrite=False)
    assert load_config(folder.config) == make_config(seed=5)
    assert folder.snapshots.is_dir() and folder.snapshot(12) == folder.root / "snapshots" / "v00000012.safetensors"


def test_a_run_does_not_begin_in_the_folder_of_another(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="holds a run already; resume it with --resume, replace it with --overwrite"):
        folder.begin(make_config(seed=5), overwrite=False)
    assert load_config(folder.config).seed == 1 and folder.checkpoints.exists()


def touch(root: pathlib.Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def names_in(root: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


THEIRS = (
    "notes.txt",
    "checkpoints/mine.pt",
    "models/v500/model.safetensors",
    "snapshots/a.png",
    "tensorboard/mine/events.txt",
)


def test_overwriting_removes_what_a_run_made_and_nothing_else(folder: RunFolder) -> None:
    ours = (
        "models/best/meta.json",
        "models/.last.x.old/meta.json",
        "snapshots/v00000001.safetensors",
        "checkpoints/.v00000003.x.tmp/a",
    )
    touch(
        folder.root,
        *THEIRS,
        *ours,
        "events.jsonl",
        "summary.json",
        "tensorboard/events.out.tfevents.1",
        "tracker.wandb.json",
        "wandb/offline-run-1-x/run-x.wandb",
        "wandb/debug.log",
        ".summary.json.7.tmp",
    )
    folder.begin(make_config(seed=5), overwrite=True)
    assert names_in(folder.root) == sorted(["config.yaml", *THEIRS])
    assert load_config(folder.config).seed == 5


@pytest.mark.parametrize(
    "names",
    [
        ("models/best/weights.bin",),
        ("events.jsonl",),
        ("summary.json",),
        ("config.yaml",),
        ("config.yaml", "events.jsonl", "checkpoints/v00000001/weights.bin", "models/last/x"),
    ],
)
def test_a_folder_is_not_taken_for_a_run_by_file_names_alone(tmp_path: pathlib.Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names, "notes.txt")
    with pytest.raises(ConfigError, match="not files of a run; expected a run to replace, or none of these names"):
        RunFolder(tmp_path).begin(make_config(), overwrite=True)
    assert names_in(tmp_path) == sorted([*names, "notes.txt"])
    with pytest.raises(
        ConfigError, match=r"without config\.yaml, expected a whole run|got a config\.yaml that is not of a run"
    ):
        RunFolder(tmp_path).begin(make_config(), overwrite=False)


def test_a_damaged_configuration_does_not_keep_a_run_from_being_replaced(folder: RunFolder) -> None:
    folder.config.write_text("output: [")
    folder.begin(make_config(seed=5), overwrite=True)
    assert names_in(folder.root) == ["config.yaml"] and load_config(folder.config).seed == 5


def test_checkpoints_in_another_folder_are_replaced_there(folder: RunFolder, tmp_path: pathlib.Path) -> None:
    scratch = folder.checkpoints.rename(tmp_path / "scratch")
    folder.checkpoints.symlink_to(scratch)
    folder.begin(make_config(seed=5), overwrite=True)
    assert folder.checkpoints.is_symlink() and list(scratch.iterdir()) == []


def make_remains(root: pathlib.Path, name: str) -> pathlib.Path:
    """Create a file of a run whose configuration is missing; `name` is relative to the run's folder."""
    path = root / (f"{name}/v00000003/data.json" if name == "checkpoints" else name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"event": "start"}' if name == "events.jsonl" else '{"status": "finished", "num_workers": 2}')
    return path


@pytest.mark.parametrize("name", ["checkpoints", "events.jsonl", "summary.json"])
def test_a_run_does_not_begin_among_the_remains_of_another(tmp_path: pathlib.Path, name: str) -> None:
    folder, remains = RunFolder(tmp_path), make_remains(tmp_path, name)
    what = f"{tmp_path}: got {name} without config.yaml, expected a whole run or none; restore config.yaml, pass --overwrite"
    with pytest.raises(ConfigError) as caught:
        folder.begin(make_config(), overwrite=False)
    assert str(caught.value) == f"{what} to delete the remaining files, or set another output"
    with pytest.raises(ConfigError) as caught:
        folder.how_to_begin(make_config())
    assert str(caught.value) == (
        f"--auto-resume: {what} in place of --auto-resume to delete the remaining files, or set another output"
    )
    assert remains.exists() and not folder.config.exists() and not folder.snapshots.exists()
    folder.begin(make_config(), overwrite=True)
    assert not remains.exists() and load_config(folder.config) == make_config()


def test_all_remains_of_another_run_are_named(tmp_path: pathlib.Path) -> None:
    for name in ("checkpoints", "events.jsonl", "summary.json"):
        make_remains(tmp_path, name)
    with pytest.raises(ConfigError, match=r"got checkpoints, events\.jsonl, summary\.json without config"):
        RunFolder(tmp_path).begin(make_config(), overwrite=False)


def test_a_lock_and_the_leftovers_of_a_killed_start_are_no_run(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock.touch()
    for path in (folder.snapshots, folder.checkpoints):
        path.mkdir()
    assert folder.how_to_begin(make_config()) is Beginning.NEW
    folder.begin(make_config(), overwrite=False)
    assert load_config(folder.config) == make_config()


def test_replacing_a_run_keeps_its_lock(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(print):
        before = folder.lock.stat()
        for overwrite in (False, True):
            folder.begin(make_config(), overwrite=overwrite)
        assert folder.lock.stat().st_ino == before.st_ino


def test_a_run_resumes_from_its_latest_checkpoint(folder: RunFolder) -> None:
    assert folder.resume(make_config(), SUPPLY).saved.data == saved()


@pytest.mark.parametrize(
    "sections",
    [
        {"output": "elsewhere"},
        {"data": {"folder": "moved", "prepared": "there"}},
        {"training": {"updates": 9, "threads": 2}},
        {"validation": {"every": 3}},
        {"decoding": {"beam": 1}},
        {"emulation": {"slow_workers": {0: 2.0}}},
    ],
    ids=lambda sections: next(iter(sections)),
)
def test_settings_that_do_not_affect_results_may_change(folder: RunFolder, sections: dict[str, Any]) -> None:
    assert folder.resume(make_config(**sections), SUPPLY).saved.data == saved()


def test_settings_that_affect_results_may_not_change_and_every_change_is_named(folder: RunFolder) -> None:
    changed = make_config(
        seed=2,
        optimizer={"learning_rate": 0.5, "schedule": {"warmup": 3}},
        data={"folder": "data", "source": "fr"},
        strategy={"kind": "async", "arrivals_per_update": 3},
        training={"epochs": 9},
        label_smoothing=0.0,
    )
    with pytest.raises(ConfigError) as caught:
        folder.resume(changed, SUPPLY)
    as_before = f"as in {folder.config}; or start another run"
    assert str(caught.value).splitlines() == [
        f"--resume: seed: got 2, expected 1 {as_before}",
        f"--resume: task.data.source: got 'fr', expected 'en' {as_before}",
        f"--resume: task.label_smoothing: got 0.0, expected 0.1 {as_before}",
        f"--resume: optimizer.learning_rate: got 0.5, expected 0.001 {as_before}",
        f"--resume: optimizer.schedule.warmup: got 3, expected 0 {as_before}",
        f"--resume: strategy.arrivals_per_update: got 3, expected 'workers' {as_before}",
        f"--resume: strategy.kind: got 'async', expected 'single' {as_before}",
    ]


@pytest.mark.parametrize("flag", ["--resume", "--auto-resume"])
def test_other_text_in_the_same_place_is_refused(folder: RunFolder, flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        folder.resume(make_config(), Supply("other", 7), flag)
    assert str(caught.value) == (
        f"{flag}: task: got data that differ from the run's training data (data); restore them, or start another run"
    )


@pytest.mark.parametrize(
    ("training", "num_batches", "got"),
    [
        ({"updates": 2}, None, "updates: got 2, expected 3 or more"),
        ({"seconds": 9.0}, None, "seconds: got 9, expected 9.5 or more"),
        ({"weight": 250}, 6, "weight: got 250, which is 6 batches, expected 7 batches or more"),
        ({"epochs": 1}, 6, "epochs: got 1, which is 6 batches, expected 7 batches or more"),
    ],
)
def test_a_run_is_not_resumed_to_an_end_that_it_has_passed(
    folder: RunFolder, training: dict[str, Any], num_batches: int | None, got: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        folder.resume(make_config(training=training), Supply("text", num_batches))
    assert str(caught.value) == f"--resume: training.{got}, which the run has reached; or start another run"


@pytest.mark.parametrize("training", [{"updates": 3}, {"seconds": 9.5}, {"seconds": 9.0}, {"weight": 250}, {"epochs": 1}])
def test_a_run_that_has_reached_its_end_may_be_resumed_unchanged(folder: RunFolder, training: dict[str, Any]) -> None:
    folder.keep_config(make_config(training=training))
    assert folder.resume(make_config(training=training), SUPPLY).saved.data == saved()


@pytest.mark.parametrize(("unit", "total"), [("versions", 3), ("weight", 300)])
def test_a_run_does_not_resume_past_the_end_of_its_schedule(folder: RunFolder, unit: str, total: int) -> None:
    optimizer = {"schedule": {"kind": "linear", "unit": unit, "total": total}}

    def config(epochs: int) -> RunConfig:
        return make_config(optimizer=optimizer, training={"epochs": epochs})

    folder.keep_config(config(1))
    assert folder.resume(config(1), SUPPLY).saved.data == saved()
    with pytest.raises(ConfigError) as caught:
        folder.resume(config(2), Supply("text", 14))
    assert str(caught.value) == (
        f"--resume: optimizer.schedule.total: got {total} {unit}, which the run has reached, expected more; the learning"
        " rate is 0 from there on, so nothing would be learned; start another run"
    )


def test_a_run_resumes_past_the_end_of_a_cosine_that_keeps_a_rate_but_not_with_another_end(folder: RunFolder) -> None:
    cosine = {"kind": "cosine", "final": 0.1}

    def config(updates: int, **schedule: Any) -> RunConfig:
        return make_config(optimizer={"schedule": {**cosine, **schedule}}, training={"updates": updates})

    folder.keep_config(config(3))
    assert folder.resume(config(9, total=3), SUPPLY).saved.data == saved()
    with pytest.raises(ConfigError, match=r"--resume: optimizer\.schedule\.total: got 9, expected 3 as in "):
        folder.resume(config(9), SUPPLY)  # whose rates up to here would have been others


def test_a_finished_run_stays_finished_until_more_training_is_configured(folder: RunFolder) -> None:
    def finished(num_batches: int = 7, **sections: Any) -> dict[str, Any] | None:
        config, supply = make_config(**sections), Supply("text", num_batches)
        return folder.finished(config, folder.resume(config, supply).saved, supply)

    assert finished() is None
    folder.summary.write_text('{"status": "stopped"}')
    assert finished() is None
    folder.summary.write_text('{"status": "finished"}')
    assert finished(decoding={"beam": 1}) == {"status": "finished"}
    assert finished(num_batches=8) is None and finished(8, training={"epochs": 2}) is None
    assert finished(validation={"every": 2}) is None
    folder.summary.write_text('{"status": "finished early"}')
    assert finished(num_batches=8) == {"status": "finished early"}
    assert finished(8, training={"epochs": 2}) is None
    folder.prepare_resume(make_config(training={"epochs": 2}))
    assert finished(8, training={"epochs": 2}) is None  # the longer run may not have reached its end


def test_a_run_with_missing_batches_has_more_to_train() -> None:
    config, supply = make_config(), Supply("text", 7)
    assert not needs_more_training(config, saved(), supply)
    assert needs_more_training(config, saved(hole=2), supply) and needs_more_training(config, saved(used=6), supply)


def test_settings_of_provisional_parameters_are_compared_by_their_meaning(folder: RunFolder) -> None:
    def strategy(**options: Any) -> RunConfig:
        return make_config(strategy={"kind": "async", "arrivals_per_update": 2, **options})

    assert folder.resume(make_config(strategy={"kind": "single", "provisional": False}), SUPPLY).saved.data == saved()
    folder.keep_config(strategy())
    assert folder.resume(strategy(provisional=True), SUPPLY).saved.data == saved()
    with pytest.raises(ConfigError, match=r"--resume: strategy\.provisional: got False, expected True"):
        folder.resume(strategy(provisional=False), SUPPLY)


def test_a_simulated_run_is_not_resumed_by_real_ranks(folder: RunFolder) -> None:
    folder.events.write_text('{"event": "start", "seconds": 0.0, "simulated": true}\n')
    with pytest.raises(ConfigError, match=r"got a simulated run, .*expected a run of `hvd-async train`"):
        folder.resume(make_config(), SUPPLY)


def test_there_is_nothing_to_resume_without_a_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"got no run to resume, expected config.yaml; leave out --resume"):
        RunFolder(tmp_path).resume(make_config(), SUPPLY)


def test_there_is_nothing_to_resume_without_a_checkpoint(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(make_config(), overwrite=False)
    with pytest.raises(CheckpointError, match="expected one to resume from; start with --overwrite in place of --resume"):
        folder.resume(make_config(), SUPPLY)
    with pytest.raises(CheckpointError, match="start with --overwrite in place of --auto-resume"):
        folder.resume(make_config(), SUPPLY, "--auto-resume")


# Jobs that may have been started before.


def test_an_empty_folder_means_a_new_run(tmp_path: pathlib.Path) -> None:
    assert RunFolder(tmp_path).how_to_begin(make_config()) is Beginning.NEW
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_means_to_resume_whether_intact_or_not(folder: RunFolder) -> None:
    assert folder.how_to_begin(make_config()) is Beginning.RESUME
    assert folder.how_to_begin(make_config(training={"updates": 9})) is Beginning.RESUME
    (folder.checkpoints / "v00000003" / "data.json").unlink()
    assert folder.how_to_begin(make_config()) is Beginning.RESUME


def test_a_run_that_was_interrupted_before_its_first_checkpoint_starts_again(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(make_config(), overwrite=False)
    (folder.checkpoints / ".v00000003.abc.tmp").mkdir(parents=True)  # it was being written
    assert folder.how_to_begin(make_config()) is Beginning.AGAIN
    lost = f"{tmp_path}: a run was interrupted before its first checkpoint, and begins again; lost:"
    assert folder.describe_loss() == f"{lost} 0 updates, 0 s; see training.checkpoint_every"
    folder.events.write_text('{"event": "start", "seconds": 0.0}\n' + '{"event": "update", "seconds": 7.5}\n' * 2 + '{"ev')
    assert folder.describe_loss() == f"{lost} 2 updates, 8 s; see training.checkpoint_every"


def test_a_run_that_was_saved_is_not_started_again_if_its_checkpoint_is_missing(tmp_path: pathlib.Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(make_config(), overwrite=False)
    folder.summary.write_text("{}")
    assert folder.how_to_begin(make_config()) is Beginning.RESUME  # resuming reports what is missing


def test_leftovers_of_dead_processes_are_removed_and_what_they_were_replacing_is_restored(folder: RunFolder) -> None:
    whole = folder.checkpoints / "v00000003"
    whole.rename(folder.checkpoints / ".v00000003.0a1b.old")  # as after a crash between two renames
    (folder.checkpoints / ".v00000003.77aa.tmp").mkdir()
    (folder.checkpoints / ".v00000009.77aa.tmp").mkdir()
    for name in (".config.yaml.12ab.tmp", "snapshots/.v00000002.safetensors.12ab.tmp", ".lock", ".hidden", "notes.tmp"):
        (folder.root / name).write_text("x")
    (folder.models / ".best.12ab.old").mkdir(parents=True)
    (folder.models / "best").mkdir()
    assert folder.how_to_begin(make_config()) is Beginning.AGAIN
    folder.remove_leftovers()
    assert folder.how_to_begin(make_config()) is Beginning.RESUME
    left = sorted(str(path.relative_to(folder.root)) for path in folder.root.rglob("*"))
    checkpoint = ["checkpoints", "checkpoints/v00000003", *(f"checkpoints/v00000003/{n}" for n in ("data.json", TENSORS))]
    assert left == sorted(
        [*checkpoint, ".hidden", ".lock", "config.yaml", "models", "models/best", "notes.tmp", "snapshots"]
    )


TENSORS = "tensors.safetensors"
EVENT = b'{"event": "update"}\n'


@pytest.mark.parametrize(
    ("log", "version", "kept", "gap", "words"),
    [
        (4 * EVENT, 8, 3 * len(EVENT), False, ""),
        ((3 * EVENT)[:-1], 5, 2 * len(EVENT), False, "since v00000008 was saved; resumes from v00000005"),
        (2 * EVENT + bytes(len(EVENT)), 5, 2 * len(EVENT), False, "resumes from v00000005"),
        (EVENT + b'{"event": "upd', 8, len(EVENT), True, f"with a gap of {2 * len(EVENT)} bytes in the log"),
        (bytes(3 * len(EVENT)), 8, 0, True, "the run cannot be replayed"),
        (None, 8, 0, True, f"with a gap of {3 * len(EVENT)} bytes in the log"),
    ],
)
def test_a_run_resumes_from_the_latest_checkpoint_that_the_log_fits(
    folder: RunFolder, log: bytes | None, version: int, kept: int, gap: bool, words: str
) -> None:
    shutil.rmtree(folder.checkpoints)
    save_version(folder, 5, 2 * EVENT)
    save_version(folder, 8, 3 * EVENT)
    if log is not None:
        folder.events.write_bytes(log)
    found = folder.resume(make_config(), SUPPLY)
    assert (found.saved.data["store"]["version"], found.log.num_bytes, found.has_gap) == (version, kept, gap)
    assert words in found.remark and bool(found.remark) == bool(words)
    with EventLog(folder.events, found.log):  # the log begins with it
        pass


def test_overwriting_empties_a_link_and_keeps_it(folder: RunFolder, tmp_path: pathlib.Path) -> None:
    scratch = tmp_path / "scratch"
    folder.checkpoints.rename(scratch)
    folder.checkpoints.symlink_to(scratch)
    folder.begin(make_config(), overwrite=True)
    assert folder.checkpoints.is_symlink() and list(scratch.iterdir()) == []
    save_version(folder, 1)
    assert [path.name for path in scratch.iterdir()] == ["v00000001"]


def test_a_folder_that_overwriting_cannot_remove_is_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DataError, match=r"--overwrite: .*: cannot be removed: Permission denied; remove it"):
        folder.begin(make_config(), overwrite=True)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_different_run_is_never_replaced(tmp_path: pathlib.Path, has_checkpoint: bool) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(make_config(), overwrite=False)
    if has_checkpoint:
        save_version(folder, 3)
    with pytest.raises(ConfigError, match=r"^--auto-resume: seed: got 2, expected 1 as in"):
        folder.how_to_begin(make_config(seed=2))
    folder.events.write_text('{"event": "start", "seconds": 0.0, "simulated": true}\n')
    with pytest.raises(ConfigError, match=r"^--auto-resume: .*: got a simulated run"):
        folder.how_to_begin(make_config())


def test_a_simulation_does_not_replace_a_real_run(folder: RunFolder) -> None:
    folder.events.write_text('{"event": "start", "seconds": 0.0}\n')
    with pytest.raises(ConfigError, match="holds a real run, which a simulation does not replace; set another output"):
        folder.begin(make_config(), overwrite=True, is_simulated=True)
    assert folder.has_checkpoint()
    folder.events.write_text('{"event": "start", "seconds": 0.0, "simulated": true}\n')
    folder.begin(make_config(), overwrite=True, is_simulated=True)
    assert not folder.has_checkpoint()


def test_an_output_that_is_a_file_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output: got .*file, which is a file, expected a folder or a new name"):
        RunFolder(tmp_path / "file").check_vacant()
