"""BPE dropout (Provilkov et al. 2020): training text cut anew in each epoch, some merges of its pieces left out at random.

The cut of a sentence is a function of the run's seed, the epoch and the sentence alone. SentencePiece samples too, but from
one generator of the process, which cannot be set back; so the merges are made here, from its pieces and their scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hvd_async.errors import DataError
from hvd_async.tasks.translation.vocabulary import SPACE, Vocabulary

Tokens = npt.NDArray[np.integer]

_NEVER = -np.inf  # score of two pieces that make none together
_MOST_WORDS = 1 << 17  # that are remembered
# Constants of splitmix64 (Steele et al. 2014), a generator whose k-th number follows from k.
_STEP, _FIRST, _SECOND = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class _CutWord:
    """Pieces that are cut together. `num_merges` made them of `characters`; a cut takes at most `num_draws` numbers."""

    characters: tuple[str, ...]
    num_merges: int
    num_draws: int


class BpeDropout:
    """Cuts sentences of a BPE vocabulary anew."""

    def __init__(self, vocabulary: Vocabulary, share: float, seed: int) -> None:
        """`share`: of the merges, to be left out, in [0, 1). `seed`: the run's."""
        self._share = share
        self._seed = np.array([seed % 2**64], dtype=np.uint64)  # an array, since a number would warn that it overflows
        pieces, scores = vocabulary.pieces(range(len(vocabulary))), vocabulary.scores()
        is_text = vocabulary.are_text()
        self._numbers = {piece: number for number, piece in enumerate(pieces) if is_text[number]}
        self._scores = {piece: scores[number] for piece, number in self._numbers.items()}
        self._pieces = pieces
        # Others stay whole: unknown characters, bytes, and what users have defined, which merges do not make.
        self._can_be_cut = [is_text[i] and all(each in self._numbers for each in piece) for i, piece in enumerate(pieces)]
        # If no piece goes on after a space, words are cut apart from each other, and each only once.
        has_words = not any(SPACE in piece[1:] for piece in self._numbers)
        self._begins = [not can or (has_words and pieces[i].startswith(SPACE)) for i, can in enumerate(self._can_be_cut)]
        self._words: dict[tuple[int, ...], _CutWord] = {}

    def cut(self, sentences: Sequence[Tokens], numbers: Sequence[int], epoch: int, side: int, longest: int) -> list[Tokens]:
        """Return `sentences`, each [length], as they are cut in `epoch`. `numbers` are theirs in the text; sides draw apart.

        A sentence whose cut has more than `longest` pieces stays as it is.
        """
        words = [self._words_of(sentence.tolist()) for sentence in sentences]
        draws = np.array([sum(word.num_draws for _, word in each) for each in words], dtype=np.int64)
        is_left_out = self._draw(np.asarray(numbers, dtype=np.uint64), draws, epoch, side)
        num_before = np.concatenate(([0], np.cumsum(is_left_out))).tolist()  # left out before each draw
        left_out = is_left_out.tolist()
        found, position = [], 0
        for sentence, parts in zip(sentences, words, strict=True):
            result: list[int] = []
            for pieces, word in parts:
                if num_before[position + word.num_merges] == num_before[position]:
                    result += pieces  # no merge is left out
                else:
                    result += self._merged(word.characters, left_out[position : position + word.num_draws])
                position += word.num_draws
            found.append(np.array(result, dtype=sentence.dtype) if len(result) <= longest else sentence)
        return found

    def check(self, sentences: Sequence[Tokens]) -> None:
        """Raise `DataError` unless merges without dropout make `sentences` of their characters, as BPE does."""
        for sentence in sentences:
            for pieces, word in self._words_of(sentence.tolist()):
                if word.characters and tuple(self._merged(word.characters, [False] * word.num_draws)) != pieces:
                    text = " ".join(self._pieces[number] for number in pieces)
                    raise DataError(
                        f"task.vocabulary.bpe_dropout: got a vocabulary that does not cut `{text}` by merges,"
                        " expected one of kind bpe"
                    )

    def _words_of(self, tokens: list[int]) -> list[tuple[tuple[int, ...], _CutWord]]:
        """Return the pieces of each word, with what is known of it."""
        begins, words = self._begins, []
        starts = [i for i, token in enumerate(tokens) if i == 0 or begins[token] or not self._can_be_cut[tokens[i - 1]]]
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            key = tuple(tokens[start:end])
            word = self._words.get(key)
            if word is None:
                if len(self._words) >= _MOST_WORDS:
                    self._words.clear()
                word = self._words[key] = self._describe(key)
            words.append((key, word))
        return words

    def _describe(self, pieces: tuple[int, ...]) -> _CutWord:
        if not self._can_be_cut[pieces[0]]:
            return _CutWord((), 0, 0)
        characters = tuple("".join(self._pieces[number] for number in pieces))
        # Each of the pairs at the beginning, and two more after each merge, may take a number.
        return _CutWord(characters, len(characters) - len(pieces), 3 * (len(characters) - 1))

    def _merged(self, characters: Sequence[str], left_out: Sequence[bool]) -> list[int]:
        """Merge the best pair of neighbours, the first of equals, until none is left; a pair whose turn is left out never comes
        again."""
        scores, symbols = self._scores, list(characters)
        pairs = [scores.get(a + b, _NEVER) for a, b in itertools.pairwise(symbols)]
        for is_left_out in left_out:
            best = max(pairs, default=_NEVER)
            if best == _NEVER:
                break
            i = pairs.index(best)
            if is_left_out:
                pairs[i] = _NEVER
                continue
            symbols[i] += symbols.pop(i + 1)
            del pairs[i]
            if i > 0:
                pairs[i - 1] = scores.get(symbols[i - 1] + symbols[i], _NEVER)
            if i < len(pairs):
                pairs[i] = scores.get(symbols[i] + symbols[i + 1], _NEVER)
        return [self._numbers[symbol] for symbol in symbols]

    def _draw(
        self, numbers: npt.NDArray[np.uint64], draws: npt.NDArray[np.int64], epoch: int, side: int
    ) -> npt.NDArray[np.bool_]:
        """Return whether each merge is left out: `draws` of them for each of the sentences `numbers`, one after another."""
        keys = _mixed(_mixed(_mixed(_mixed(self._seed + _STEP) + np.uint64(epoch)) + np.uint64(side)) + numbers)
        first = np.repeat(np.cumsum(draws) - draws, draws)
        counts = (np.arange(len(first)) - first).astype(np.uint64)
        bits = _mixed(np.repeat(keys, draws) + counts * _STEP)
        return (bits >> np.uint64(11)) * 2.0**-53 < self._share


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output of splitmix64 for each `state`."""
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
