"""The contract of `Window`, checked by several threads or ranks at once.

python -m tests.transport.contract ARGUMENTS      ARGUMENTS: those of `main`, as a JSON list
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from hvd_async.store.wire.layout import Layout, SlotWord, StoreWindow, Word, WorkerWord
from hvd_async.transport.block import WORD_BYTES
from hvd_async.transport.group import Group
from hvd_async.transport.inprocess import MappedMemory
from hvd_async.transport.pulse import Rhythm
from hvd_async.vectors import arithmetic

# No wait lasts so long: if a bell fails to wake, the job ends at its time limit.
FOREVER = 3600.0
# More than one piece of a transfer between nodes (8 MiB) and of a copy past the cache (12 MiB), and a multiple of
# neither.
NUM_ELEMENTS = (12 << 20) // 4 + 1003


class ThreadGroup:
    """A `Group` of threads of this process; each thread has an object of its own."""

    def __init__(self, rank: int, texts: list[str], barrier: threading.Barrier) -> None:
        self.rank = rank
        self.size = len(texts)
        self._texts = texts
        self._barrier = barrier

    def allgather(self, text: str) -> list[str]:
        self._texts[self.rank] = text
        self._barrier.wait()
        texts = list(self._texts)
        self._barrier.wait()
        return texts

    def abort(self, status: int) -> NoReturn:
        self._barrier.abort()
        raise SystemExit(status)


def run_threads(size: int, action: Callable[[ThreadGroup], None]) -> None:
    """Call `action` in `size` threads, and raise the first error of any thread."""
    texts, barrier = [""] * size, threading.Barrier(size)

    def run(rank: int) -> None:
        try:
            action(ThreadGroup(rank, texts, barrier))
        except BaseException:
            barrier.abort()
            raise

    run_together([functools.partial(run, rank) for rank in range(size)])


def run_together(actions: Sequence[Callable[[], None]]) -> None:
    """Call each action in a thread, and raise the first error of any thread."""
    errors: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def make_layout(num_actors: int) -> Layout:
    return Layout(NUM_ELEMENTS, num_actors, num_buffers=2, num_slots=1)


@dataclass(frozen=True)
class Actor:
    """A thread or rank that uses a block together with others. `is_owner`: its rank owns the block."""

    group: Group
    window: StoreWindow
    is_owner: bool

    def meet(self) -> None:
        self.group.allgather("")

    def my_word(self, actor: int | None = None) -> int:
        """Return a word that only the given actor, by default this one, writes."""
        return self.window.layout.worker_word(self.group.rank if actor is None else actor, WorkerWord.HEARTBEAT)

    def wait_for(self, bell: int, word: int, value: int) -> None:
        """Wait until `word` holds `value`; `bell` announces the change."""
        while True:
            heard = self.window.heard(bell)
            if self.window.load(word) == value:
                return
            self.window.wait(bell, heard, FOREVER if self.window.has_bells else 0.0005)


def a_block_begins_as_zeros(actor: Actor) -> None:
    layout = actor.window.layout
    words = actor.window.load_words(0, layout.num_words)
    words[Word.STORE_BELL] = 0  # the bell may have rung before anything happened
    assert words == [0] * layout.num_words
    block = torch.full((layout.total_bytes - layout.partials_offset,), 9, dtype=torch.uint8)
    actor.window.get(layout.partials_offset, block)
    assert block.count_nonzero() == 0


def a_word_holds_any_int64(actor: Actor) -> None:
    for value in (1, -1, 2**62, -(2**63), 2**63 - 1, 0):
        actor.window.store(actor.my_word(), value - (actor.group.rank if value > 0 else 0))
        actor.meet()
        words = [actor.window.load(actor.my_word(other)) for other in range(actor.group.size)]
        assert words == [value - (other if value > 0 else 0) for other in range(actor.group.size)]
        actor.meet()


def words_are_written_and_read_together(actor: Actor) -> None:
    layout, rank = actor.window.layout, actor.group.rank
    actor.window.store_words(layout.worker_word(rank, WorkerWord.STATISTICS), [rank - 5, 2**60 + rank, -rank])
    actor.window.flush()
    actor.meet()
    for other in range(actor.group.size):
        first = layout.worker_word(other, WorkerWord.STATISTICS)
        assert actor.window.load_words(first - 1, 5) == [0, other - 5, 2**60 + other, -other, 0]
        assert actor.window.load(first + 1) == 2**60 + other


def fetch_and_add_loses_nothing(actor: Actor) -> None:
    mine = [actor.window.fetch_add(Word.CLAIMS, 1) for _ in range(200)]
    assert mine == sorted(mine)
    everyone = [number for text in actor.group.allgather(json.dumps(mine)) for number in json.loads(text)]
    assert sorted(everyone) == list(range(200 * actor.group.size))
    assert actor.window.load(Word.CLAIMS) == 200 * actor.group.size
    actor.meet()
    before = actor.window.fetch_add(Word.CLAIMS, -200)
    assert before % 200 == 0 and before > 0
    actor.meet()
    assert actor.window.load(Word.CLAIMS) == 0


def a_flag_is_seen_after_everything_written_before_it(actor: Actor) -> None:
    """The writer never waits, so a reader may see later values, but no earlier ones."""
    layout, rounds = actor.window.layout, 40
    for writer in range(actor.group.size):
        flag = actor.my_word(writer)
        words = layout.worker_word(writer, WorkerWord.STATISTICS)
        offsets = (layout.published_offset(0) + 4 * 7, layout.slot_offset(0) + 4 * (NUM_ELEMENTS - 20_001))
        actor.window.store(actor.my_word(), 0)
        actor.meet()
        if actor.group.rank == writer:
            for number in range(1, rounds + 1):
                for offset in offsets:
                    actor.window.put(offset, torch.full((20_001,), number, dtype=torch.float32))
                actor.window.store_words(words, [number] * 9)
                actor.window.flush()
                actor.window.store(flag, number)
        else:
            seen, target = 0, torch.empty(20_001)
            while seen < rounds:
                seen = actor.window.load(flag)
                assert min(actor.window.load_words(words, 9)) >= seen or seen == 0
                for offset in offsets:
                    actor.window.get(offset, target)
                    assert target.min() >= seen or seen == 0
                time.sleep(0)
        actor.meet()


def copies_are_exact_at_any_offset_and_of_any_type(actor: Actor) -> None:
    """Each actor writes in turn; all of them read, including the bytes beside the copy."""
    layout = actor.window.layout
    begin = layout.slot_offset(0)
    for writer in range(actor.group.size):
        for number, dtype in enumerate(
            (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
        ):
            long = [(8 << 20) // dtype.itemsize, (8 << 20) // dtype.itemsize + 1] if dtype.itemsize in (1, 4) else []
            for count in (0, 1, 3, 1001, *long):
                value = torch.arange(count + writer + number, dtype=torch.int64)[writer + number :].to(dtype)
                offset = begin + dtype.itemsize * (3 + number)
                if actor.group.rank == writer:
                    actor.window.put(offset - dtype.itemsize, torch.full((count + 2,), 7, dtype=dtype))
                    actor.window.flush()
                    actor.window.put(offset, value)
                    actor.window.flush()
                actor.meet()
                target = torch.empty(count + 2, dtype=dtype)
                actor.window.get(offset - dtype.itemsize, target)
                assert torch.equal(target[1:-1], value), (writer, dtype, count)
                assert target[0] == 7 and target[-1] == 7
                actor.meet()


def a_whole_slot_is_written_and_read_back(actor: Actor) -> None:
    offset = actor.window.layout.slot_offset(0)
    for writer in range(actor.group.size):
        vector = torch.arange(NUM_ELEMENTS, dtype=torch.float32) + writer
        if actor.group.rank == writer:
            actor.window.put(offset, vector)
            actor.window.flush()
        actor.meet()
        target = torch.empty(NUM_ELEMENTS)
        actor.window.get(offset, target)
        assert torch.equal(target, vector)
        actor.meet()


def mapped_memory_is_the_block_itself(actor: Actor) -> None:
    offset = actor.window.layout.published_offset(1)
    for writer in range(actor.group.size):
        mapped = actor.window.mapped(offset, 1000, torch.bfloat16)
        if actor.group.rank == writer and mapped is not None:
            mapped.copy_(torch.arange(1000) % 200 + writer)
            actor.window.store(actor.my_word(), 1)
        elif actor.group.rank == writer:
            actor.window.put(offset, (torch.arange(1000) % 200 + writer).bfloat16())
            actor.window.flush()
        actor.meet()
        target = torch.empty(1000, dtype=torch.bfloat16)
        actor.window.get(offset, target)
        assert torch.equal(target.long(), torch.arange(1000) % 200 + writer)
        assert mapped is None or torch.equal(mapped, target)
        assert mapped is not None or not actor.is_owner
        actor.meet()


def no_ring_is_lost(actor: Actor) -> None:
    """The owner and each other actor in turn wake each other, by the store's bell and by a slot's."""
    window, rounds = actor.window, 100
    owner = [text == "owner" for text in actor.group.allgather("owner" if actor.is_owner else "")].index(True)
    answer, bell = window.layout.slot_word(0, SlotWord.DRAINED), window.layout.slot_word(0, SlotWord.BELL)
    for other in range(actor.group.size):
        if actor.is_owner:
            window.store(answer, 0)
        window.store(actor.my_word(), 0)
        actor.meet()
        if actor.is_owner and other != owner:
            for number in range(1, rounds + 1):
                actor.wait_for(Word.STORE_BELL, actor.my_word(other), number)
                window.store(answer, number)
                window.ring(bell)
        elif actor.group.rank == other and other != owner:
            for number in range(1, rounds + 1):
                window.store(actor.my_word(), number)
                window.ring(Word.STORE_BELL)
                actor.wait_for(bell, answer, number)
        actor.meet()


def threads_of_an_actor_do_not_disturb_each_other(actor: Actor) -> None:
    """Each thread has a range of its own, which holds its values as soon as its flush has returned."""
    window, count = actor.window, 100_003

    def work(thread: int) -> None:
        number = 2 * actor.group.rank + thread
        offset, target = window.layout.slot_offset(0) + 4 * count * number, torch.empty(count)
        for turn in range(15):
            window.put(offset, torch.full((count,), 100.0 * turn + number))
            window.flush()
            window.get(offset, target)
            assert target.eq(100.0 * turn + number).all()
            window.fetch_add(Word.CLAIMS, 1)

    run_together([lambda: work(0), lambda: work(1)])
    actor.meet()
    assert window.load(Word.CLAIMS) == 30 * actor.group.size


def a_beat_counts_a_word_up_until_it_is_stopped(actor: Actor) -> None:
    window, others = actor.window, [actor.my_word(other) for other in range(actor.group.size)]
    actor.meet()
    pulse = window.beat(actor.my_word(), Rhythm(0.001, 3600.0, hung=-7))
    while min(map(window.load, others)) < 5:
        pulse.touch()
        time.sleep(0.001)
    actor.meet()
    pulse.stop()
    window.get(window.layout.slot_offset(0), torch.empty(8192))  # its answer comes after the last beat, if both are messages
    actor.meet()
    counts = [window.load(word) for word in others]
    assert min(counts) >= 5
    time.sleep(0.01)  # ten beats
    assert [window.load(word) for word in others] == counts
    actor.meet()
    pulse = window.beat(actor.my_word(), Rhythm(0.001, 0.0, hung=-7))
    while [window.load(word) for word in others] != [-7] * actor.group.size:
        time.sleep(0.001)
    actor.meet()
    pulse.stop()


def a_wait_without_a_ring_ends(actor: Actor) -> None:
    for seconds in (0.0, 0.002):
        bell = actor.window.layout.slot_word(0, SlotWord.BELL)
        actor.window.wait(bell, actor.window.heard(bell), seconds)


CONTRACT: tuple[Callable[[Actor], None], ...] = (
    a_block_begins_as_zeros,
    a_word_holds_any_int64,
    words_are_written_and_read_together,
    fetch_and_add_loses_nothing,
    a_flag_is_seen_after_everything_written_before_it,
    copies_are_exact_at_any_offset_and_of_any_type,
    a_whole_slot_is_written_and_read_back,
    mapped_memory_is_the_block_itself,
    no_ring_is_lost,
    threads_of_an_actor_do_not_disturb_each_other,
    a_beat_counts_a_word_up_until_it_is_stopped,
    a_wait_without_a_ring_ends,
)


def check_contract(actor: Actor, checks: Sequence[Callable[[Actor], None]]) -> None:
    """Run the checks, then fill the block with values other than zero."""
    for check in checks:
        check(actor)
        actor.meet()
    if actor.is_owner:
        layout = actor.window.layout
        actor.window.put(0, torch.full((WORD_BYTES * layout.num_words,), 255, dtype=torch.uint8))
        actor.window.put(layout.published_offset(0), torch.full((1 << 20,), 255, dtype=torch.uint8))
        actor.window.flush()
    actor.meet()


def a_flag_in_one_block_is_seen_after_writes_to_the_others(actors: Sequence[Actor]) -> None:
    """Like a push to several shards: the gradient goes to all blocks, the word that announces it to the first."""
    first, size = actors[0], actors[0].group.size
    offset, rounds, target = first.window.layout.slot_offset(0), 30, torch.empty(70_001)
    for writer in range(size):
        flag = first.my_word(writer)
        first.window.store(first.my_word(), 0)
        first.meet()
        if first.group.rank == writer:
            for number in range(1, rounds + 1):
                for actor in actors:
                    actor.window.put(offset, torch.full((70_001,), number, dtype=torch.float32))
                for actor in actors:
                    actor.window.flush()
                first.window.store(flag, number)
        else:
            seen = 0
            while seen < rounds:
                seen = first.window.load(flag)
                for actor in actors:
                    actor.window.get(offset, target)
                    assert target.min() >= seen or seen == 0
                time.sleep(0)
        first.meet()


def main(owners: Sequence[int], without_c: int | None) -> None:
    """Open one block on each rank of `owners`, all at once and twice: the second time, their memory has been used before.
    Rank `without_c` does without the C extension."""
    from hvd_async.transport.bootstrap import MpiGroup, init_mpi

    torch.set_num_threads(1)
    group = MpiGroup(init_mpi())
    if group.rank == without_c:
        arithmetic._c = None
        MappedMemory.has_bells = False
    try:
        from hvd_async.transport.mpi import open_blocks

        for turn in range(2):
            with open_blocks(group, [make_layout(group.size)] * len(owners), owners) as windows:
                actors = [Actor(group, window, group.rank == owner) for owner, window in zip(owners, windows, strict=True)]
                for actor in actors:
                    check_contract(actor, CONTRACT if turn == 0 else [a_block_begins_as_zeros])
                a_flag_in_one_block_is_seen_after_writes_to_the_others(actors)
        sys.stdout.write(f"rank {group.rank}: {', '.join(window.name for window in windows)}\n")
    except BaseException:
        traceback.print_exc()
        group.abort(1)


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
