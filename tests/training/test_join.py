"""`hvd-async join` where there is nothing to join: one line each, without a start of MPI."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
from typing import Any

import pytest

from hvd_async.config import PushConfig, ScriptConfig, StrategyConfig, dump_config
from hvd_async.errors import DataError, HvdAsyncError, SetupError
from hvd_async.runs.folder import RunFolder
from hvd_async.strategies.invitation import FORMAT, Invitation
from hvd_async.tasks.registry import make_task
from hvd_async.training.join import JoinOptions, join
from hvd_async.training.stop_request import StopRequest
from tests.comparison.made import CONFIG

PLACE = {"process": 1, "scope": 5, "descriptor": 25, "num_bytes": 64, "token": 7}
WORKER = {"rank": 1, "host": "a", "local_rank": 1, "role": "worker", "worker": 0, "device": "cpu", "threads": 1}
WHOLE: dict[str, Any] = {
    "format": FORMAT,
    "places": [PLACE],
    "layouts": [{"num_elements": 4, "num_workers": 2, "slot_format": {"dtype": "bfloat16", "capacity": 4}}],
    "groups": [[0, 4]],
    "plans": [WORKER],
    "ledger": None,
    "is_direct": True,
    "address": None,
}


def write(folder: pathlib.Path, text: str) -> None:
    (folder / "join.json").write_text(text)
    (folder / "join.json").chmod(0o600)


def attempt(folder: pathlib.Path) -> None:
    join(folder, make_task, JoinOptions(), StopRequest(), lambda line: None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 9}, f"got format 9, expected {FORMAT}; use the hvd_async that runs the job"),
        ({"places": "x"}, "places: .*: the invitation is damaged"),
        ({"places": [{**PLACE, "process": "me"}]}, "places.0.process: .*: the invitation is damaged"),
        ({"plans": []}, "got no store or no worker: the invitation is damaged"),
        ({"plans": [{**WORKER, "role": "king"}]}, "plans.0.role: .*: the invitation is damaged"),
    ],
    ids=str,
)
def test_a_damaged_invitation_is_told_in_one_line(tmp_path: pathlib.Path, changes: dict[str, Any], words: str) -> None:
    write(tmp_path, json.dumps({**WHOLE, **changes}))
    with pytest.raises(SetupError, match=rf"join.json: {words}"):
        attempt(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("", "cannot be read"), ("[1]", "got no JSON object"), ("{", "cannot be read")])
def test_a_file_that_is_no_invitation_is_told_in_one_line(tmp_path: pathlib.Path, text: str, words: str) -> None:
    write(tmp_path, text)
    with pytest.raises(DataError, match=words):
        attempt(tmp_path)


def test_a_folder_without_a_run_under_way_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(
        HvdAsyncError, match=r"nothing: no such folder .*, expected the folder of a run that trains at the moment"
    ):
        attempt(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    with pytest.raises(HvdAsyncError, match="got a run that is not begun, expected one that trains at the moment"):
        attempt(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": StrategyConfig(kind="ddp")}, "got a run of strategy ddp, expected async"),
        ({"task": ScriptConfig(kind="script")}, "got the run of a script, whose loop cannot be joined"),
        (
            {"strategy": StrategyConfig(kind="async"), "push": PushConfig(node_sum=True)},
            "got no run that can be joined, expected one that has begun to train",
        ),
    ],
)
def test_a_run_under_way_says_why_it_takes_nobody(tmp_path: pathlib.Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG.model_copy(update=changes)))
    (tmp_path / "events.jsonl").touch()
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=words):
            attempt(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_invitation_of_another_user_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, json.dumps(WHOLE))
    os.chown(tmp_path / "join.json", 12345, -1)
    with pytest.raises(DataError, match=r"got a file of user 12345 with mode 600, expected one of this user \(0\) alone"):
        attempt(tmp_path)


def test_an_invitation_that_others_may_read_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path, json.dumps(WHOLE))
    (tmp_path / "join.json").chmod(0o640)
    with pytest.raises(DataError, match="with mode 640, expected one of this user"):
        attempt(tmp_path)


def test_an_invitation_is_for_its_user_alone_and_comes_back_whole(tmp_path: pathlib.Path) -> None:
    folder, invitation = RunFolder(tmp_path), Invitation.from_json(WHOLE)
    folder.write_invitation(invitation.to_json())
    assert folder.invitation.stat().st_mode & 0o777 == 0o600
    assert Invitation.from_json(folder.read_invitation()) == invitation
    folder.withdraw_invitation()
    folder.withdraw_invitation()
    assert not folder.invitation.exists()
