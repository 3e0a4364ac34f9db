"""Reading ahead of time: the same batches as without processes, and no process that outlives its rank."""

from __future__ import annotations

import collections
import os
import pathlib
import subprocess
import sys
import time
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import TensorDataset

from hvd_async.errors import DataError
from hvd_async.tasks.reading import WHOLE, BatchReader, Reading, map_tensors
from tests.tasks.noisy import Noisy, noisy_reader

ROOT = pathlib.Path(__file__).parents[2]


def test_processes_read_the_same_batches_and_draw_the_same_numbers() -> None:
    chosen = {number: [3 * number, 3 * number + 1, 3 * number + 2] for number in range(8)}
    alone, several = noisy_reader(0), noisy_reader(2)
    assert (alone.num_ahead, several.num_ahead, several.obstacle) == (0, 4, "")
    alone.expect((*each, WHOLE) for each in chosen.items())
    several.expect([(*each, WHOLE) for each in chosen.items()][:6])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = {number: several.read(number, examples) for number, examples in reversed(chosen.items())}
    expected = {number: alone.read(number, examples) for number, examples in chosen.items()}
    assert torch.equal(torch.get_rng_state(), before)
    for number, batch in expected.items():
        assert torch.equal(found[number][:, 0], batch[:, 0])
    assert len({tuple(batch[:, 0].frac().tolist()) for batch in expected.values()}) == 8
    ahead = [found[number][0] for number in range(6)]
    assert all(int(row[1]) != os.getpid() and int(row[2]) in (0, 1) for row in ahead)
    assert all(int(found[number][0, 1]) == os.getpid() for number in (6, 7))  # which were not expected
    several.close()
    assert torch.equal(several.read(0, chosen[0])[:, 0], expected[0][:, 0])


def test_errors_of_the_dataset_are_raised_where_the_batch_is_read() -> None:
    reader = noisy_reader(1, trouble=5)
    reader.expect([(0, [4], WHOLE), (1, [5], WHOLE)])
    assert reader.read(0, [4])[0, 0] > 4
    with pytest.raises(KeyError, match="no such example"):
        reader.read(1, [5])
    reader.close()


def test_a_process_that_dies_is_told() -> None:
    reader = noisy_reader(1, death=2)
    reader.expect([(0, [2], WHOLE)])
    with pytest.raises(DataError, match="batch 0: a process that reads batches ended by itself, perhaps out of memory"):
        reader.read(0, [2])
    reader.close()


def test_what_cannot_be_sent_is_an_obstacle() -> None:
    data = TensorDataset(torch.arange(4))
    reader = BatchReader(Reading(data, lambda rows: rows, True, seed=1), num_workers=2)
    assert reader.num_ahead == 0 and reader.obstacle.startswith("it cannot be sent to another process: ")
    reader.expect([(0, [1], WHOLE)])
    assert reader.read(0, [1])[0][0] == 1


def test_a_script_without_a_guard_is_an_obstacle(tmp_path: pathlib.Path) -> None:
    lines = "from tests.tasks.noisy import noisy_reader\nprint(noisy_reader(1).obstacle)\n"
    for number, (text, expected) in enumerate(
        ((lines, "the script has no `if __name__"), (f"if __name__ == '__main__':\n    {lines.replace(chr(10), ';')}", ""))
    ):
        script = tmp_path / f"train{number}.py"
        script.write_text(text)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.strip().startswith(expected), done.stderr
        assert expected or not done.stdout.strip()


def test_processes_end_with_a_rank_that_is_killed() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.tasks.noisy"]
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, timeout=60)
    processes = [int(word) for word in done.stdout.split()]
    assert done.returncode == -9 and 1 <= len(processes) <= 2
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a process outlived its rank"
        time.sleep(0.05)


def test_a_dataset_that_reads_several_examples_at_once_is_asked_so() -> None:
    class Several(Noisy):
        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            return [torch.tensor(indices)]

    assert BatchReader(Reading(Several(), torch.stack, True, seed=1)).read(0, [4, 5]).tolist() == [[4, 5]]


class Encoding(collections.UserDict[str, Any]):
    """A batch of texts as tokenizers make it, which moves itself."""

    def to(self, device: str) -> Encoding:
        self.data = {name: value.to(device) for name, value in self.data.items()}
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]


class NamedRow(NamedTuple):
    x: torch.Tensor
    name: str


def test_batches_keep_their_types_when_they_are_moved() -> None:
    x = torch.ones(2)
    encoding = Encoding(input_ids=x)
    moved = map_tensors({"texts": encoding, "rows": [NamedRow(x, "a")]}, lambda tensor: tensor.to("meta"))
    assert moved["texts"] is encoding and encoding.input_ids.is_meta
    assert moved["rows"][0].x.is_meta and moved["rows"][0].name == "a"
    packed = torch.nn.utils.rnn.pack_sequence([x])
    assert map_tensors(packed, lambda tensor: tensor.to("meta")).data.is_meta
    several = collections.defaultdict(list, {"x": x})
    moved = map_tensors(several, lambda tensor: tensor + 1)
    assert moved["x"].tolist() == [2, 2] and moved["other"] == [] and several["x"] is x
    assert map_tensors(collections.UserDict(x=x), lambda tensor: tensor + 1)["x"].tolist() == [2, 2]
    assert type(map_tensors(types.MappingProxyType({"x": x}), lambda tensor: tensor + 1)) is types.MappingProxyType
    assert type(map_tensors(torch.Size([1, 2]), lambda tensor: tensor)) is torch.Size


def test_what_cannot_be_pinned_itself_is_pinned_inside() -> None:
    encoding = Encoding(input_ids=torch.ones(2))
    calls: list[Any] = []
    map_tensors(encoding, calls.append, "pin_memory")
    assert len(calls) == 1 and isinstance(calls[0], torch.Tensor)
