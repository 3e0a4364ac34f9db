"""How a worker reads parameters while the store makes the next ones: what it read, and whether that is whole."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_async.store.wire.layout import NUM_PROVISIONAL, StoreWindow, Word, WorkerWord


@dataclass(frozen=True)
class Base:
    """Parameters on which a worker computes: those of `version` if `provisional` is 0; else provisional parameters number
    `number`, with `provisional` arrivals on top of `version`."""

    version: int
    provisional: int = 0
    number: int = 0


NO_BASE = Base(-1)


class Readings:
    """One worker's side of the words that guard the buffers. Used by one thread."""

    def __init__(self, window: StoreWindow, worker: int) -> None:
        """`window` reaches shard 0."""
        self._window = window
        self._layout = window.layout
        self._word = window.layout.worker_word(worker, WorkerWord.READING)

    def reserve(self, version: int) -> bool:
        """Ask the store not to overwrite the buffer of `version` until `release`; return whether the request came in time.

        Each side writes its own word (READING, NEXT_VERSION) before it reads the other's, so neither can miss the other."""
        self._window.store(self._word, version + 1)
        if self._window.load(Word.NEXT_VERSION) < version + self._layout.num_buffers:
            return True
        self.release()
        return False

    def release(self) -> None:
        """Let the store overwrite the buffer again."""
        self._window.store(self._word, 0)
        self._window.ring(Word.STORE_BELL)

    def newest_base(self, version: int) -> Base | None:
        """Return the base to read, `version` having been the newest a moment ago; None if a newer version is out by now.

        Then the buffers may be reused already, and neither they nor `version` need contain this worker's last gradient:
        retry.
        """
        number = self._window.load(Word.PROVISIONAL)
        if number == 0:
            return Base(version)
        words = self._window.load_words(Word.PROVISIONAL_VERSION, 2 * NUM_PROVISIONAL)
        place = number % NUM_PROVISIONAL
        below, num_arrivals = words[place], words[NUM_PROVISIONAL + place]
        if below > version:
            return None
        return Base(version, num_arrivals, number) if below == version else Base(version)

    def is_whole(self, base: Base) -> bool:
        """Whether the vector of `base` that was just read, and its words, were not overwritten meanwhile.

        Vectors are reused in turn, and the store announces each reuse before it writes the first byte of any shard.
        """
        if base.provisional == 0:
            return self._window.load(Word.NEXT_VERSION) < base.version + self._layout.num_buffers
        return self._window.load(Word.NEXT_PROVISIONAL) < base.number + NUM_PROVISIONAL
