"""The built-in corpus: sentences of an English-like language with their translations into a German-like one.

One seeded derivation yields both sides. The translation needs what makes translating hard: German cases, genders and
adjective endings; verbs at the end of subclauses, behind their objects when compound, before the subject after a fronted
adverbial; separable prefixes; relative pronouns; compounds written as one word. The corpus needs no download, and a small
Transformer learns it in minutes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hvd_async.tasks.translation.builtin.lexicon import Adjective, Noun, lexicon
from hvd_async.tasks.translation.text import write_texts

Word = TypeVar("Word")

NOMINATIVE, ACCUSATIVE, DATIVE = range(3)
_CASES = (NOMINATIVE, ACCUSATIVE, DATIVE)
_COLUMNS = "mfnp"  # masculine, feminine, neuter, plural

# Per case: endings of "der" words in the columns m f n p; the article itself is written out.
_THE = (("der", "die", "das", "die"), ("den", "die", "das", "die"), ("dem", "der", "dem", "den"))
_RELATIVE = (("der", "die", "das", "die"), ("den", "die", "das", "die"), ("dem", "der", "dem", "denen"))
# Endings of "ein" and the possessives; None: no such form (a plural "ein" is no article at all).
_EIN = (("", "e", "", "e"), ("en", "e", "", "e"), ("em", "er", "em", "en"))
# Adjective endings after "der" (weak), after "ein" (mixed) and after nothing (strong; the plural alone is used).
_WEAK = (("e", "e", "e", "en"), ("en", "e", "e", "en"), ("en", "en", "en", "en"))
_MIXED = (("er", "e", "es", "en"), ("en", "e", "es", "en"), ("en", "en", "en", "en"))
_STRONG_PLURAL = ("e", "e", "en")

_POSSESSIVES = (("my", "mein"), ("your", "dein"), ("his", "sein"), ("our", "unser"))
_PRONOUNS = (("I", "ich", 1, 0), ("he", "er", 3, 0), ("she", "sie", 3, 0), ("we", "wir", 1, 1), ("they", "sie", 3, 1))
_ADVERBS = (
    ("today", "heute"),
    ("now", "jetzt"),
    ("often", "oft"),
    ("here", "hier"),
    ("later", "später"),
    ("again", "wieder"),
)
_PREPOSITIONS = (
    ("in", "in", DATIVE), ("with", "mit", DATIVE), ("behind", "hinter", DATIVE), ("near", "bei", DATIVE),
    ("for", "für", ACCUSATIVE), ("without", "ohne", ACCUSATIVE), ("against", "gegen", ACCUSATIVE),
)  # fmt: skip
_CONJUNCTIONS = (("because", "weil"), ("while", "während"), ("if", "wenn"), ("although", "obwohl"))
_SAYING = (
    (("say", "says"), ("sage", "sagt", "sagen")), (("believe", "believes"), ("glaube", "glaubt", "glauben")),
    (("know", "knows"), ("weiß", "weiß", "wissen")),
)  # fmt: skip
_MODALS = (
    ("can", ("kann", "kann", "können")), ("must", ("muss", "muss", "müssen")), ("will", ("werde", "wird", "werden")),
)  # fmt: skip
_HAVE = ("habe", "hat", "haben")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase, or a pronoun as subject."""

    english: str
    german: tuple[str, str, str]
    """Forms by case."""
    person: int
    """1 or 3."""
    number: int
    """0 singular, 1 plural."""
    column: str = ""
    """m, f, n or p; empty for pronouns, which take no relative clause."""

    def agree(self, first: str, third: str, plural: str) -> str:
        """Return the German verb form that agrees with this subject."""
        return plural if self.number else (first if self.person == 1 else third)

    def agree_english(self, base: str, third: str) -> str:
        """Return the English verb form that agrees with this subject."""
        return third if (self.person, self.number) == (3, 0) else base


@dataclass(frozen=True)
class Predicate:
    """A clause without its subject, inflected for the subject."""

    english: str
    finite: str
    """The German verb that agrees, without its prefix: second in a main clause."""
    middle: str
    """Objects, negation, adverbials."""
    end: str
    """The last part of a main clause: participle, infinitive or separated prefix."""
    final: str
    """The whole German verb, as it ends a subclause."""

    def after_subject(self) -> str:
        """Return the German words of a main clause, from its verb on."""
        return _join(self.finite, self.middle, self.end)

    def inverted(self, subject: str) -> str:
        """Return the German words of a main clause from its verb on, with the subject behind the verb."""
        return _join(self.finite, subject, self.middle, self.end)

    def subordinate(self) -> str:
        """Return the German words of a subclause behind its subject."""
        return _join(self.middle, self.final)


class Grammar:
    """Draws sentence pairs."""

    def __init__(self, seed: int) -> None:
        """Seed the random choices; the lexicon does not depend on the seed."""
        self._rng = random.Random(seed)
        self._lexicon = lexicon()

    def sentence(self) -> tuple[str, str]:
        """Draw a pair (English, German), capitalised and with a full stop."""
        forms = (self._plain, self._fronted, self._reported, self._reasoned, self._reasoned_first)
        english, german = self._rng.choices(forms, weights=(4, 4, 2, 2, 1))[0]()
        return _finish(english), _finish(german)

    def _plain(self) -> tuple[str, str]:
        subject = self._subject(depth=1)
        predicate = self._predicate(subject, depth=1)
        german = _join(subject.german[NOMINATIVE], predicate.after_subject())
        return _join(subject.english, predicate.english), german

    def _fronted(self) -> tuple[str, str]:
        english, german = self._adverbial()
        subject = self._subject(depth=1)
        predicate = self._predicate(subject, depth=0)
        return _join(english, subject.english, predicate.english), _join(
            german, predicate.inverted(subject.german[NOMINATIVE])
        )

    def _reported(self) -> tuple[str, str]:
        speaker = self._subject(depth=0)
        english_verb, german_verb = self._rng.choice(_SAYING)
        english, german = self._subclause("that", "dass")
        return _join(speaker.english, speaker.agree_english(*english_verb), english), _join(
            speaker.german[NOMINATIVE], speaker.agree(*german_verb), ",", german
        )

    def _reasoned(self) -> tuple[str, str]:
        subject = self._subject(depth=0)
        predicate = self._predicate(subject, depth=0)
        english, german = self._subclause(*self._rng.choice(_CONJUNCTIONS))
        return _join(subject.english, predicate.english, english), _join(
            subject.german[NOMINATIVE], predicate.after_subject(), ",", german
        )

    def _reasoned_first(self) -> tuple[str, str]:
        english, german = self._subclause(*self._rng.choice(_CONJUNCTIONS))
        subject = self._subject(depth=0)
        predicate = self._predicate(subject, depth=0)
        return _join(english, ",", subject.english, predicate.english), _join(
            german, ",", predicate.inverted(subject.german[NOMINATIVE])
        )

    def _subclause(self, english: str, german: str) -> tuple[str, str]:
        subject = self._subject(depth=0)
        predicate = self._predicate(subject, depth=0)
        return _join(english, subject.english, predicate.english), _join(
            german, subject.german[NOMINATIVE], predicate.subordinate()
        )

    def _predicate(self, subject: Phrase, depth: int) -> Predicate:
        """Draw a predicate for `subject`: present, negated, perfect or with a modal. `depth`: relative clauses allowed."""
        frame = self._rng.choices(("none", "object", "dative", "both"), weights=(3, 6, 2, 2))[0]
        verb = self._frequent(self._lexicon.verbs[frame])
        objects, german_objects = self._objects(frame, depth)
        place, german_place = self._prepositional() if self._rng.random() < 0.35 else ("", "")
        rest = _join(objects, place)
        tense = self._rng.choices(("present", "negated", "perfect", "modal"), weights=(5, 1, 2, 2))[0]
        middle = _join(german_objects, german_place, "nicht" if tense == "negated" else "")
        infinitive, first, third = verb.german
        base, english_third, participle = (form + verb.particle for form in verb.english)
        if tense == "perfect":
            finite = subject.agree(*_HAVE)
            english = _join(subject.agree_english("have", "has"), participle, rest)
            return Predicate(english, finite, middle, verb.participle, f"{verb.participle} {finite}")
        if tense == "modal":
            modal, forms = self._rng.choice(_MODALS)
            finite, whole = subject.agree(*forms), verb.prefix + infinitive
            return Predicate(_join(modal, base, rest), finite, middle, whole, f"{whole} {finite}")
        if tense == "negated":
            english = _join(subject.agree_english("do", "does"), "not", base, rest)
        else:
            english = _join(subject.agree_english(base, english_third), rest)
        finite = subject.agree(first, third, infinitive)
        return Predicate(english, finite, middle, verb.prefix, verb.prefix + finite)

    def _objects(self, frame: str, depth: int) -> tuple[str, str]:
        if frame == "none":
            return "", ""
        if frame == "both":
            receiver, thing = self._noun_phrase(0), self._noun_phrase(depth)
            return _join(receiver.english, thing.english), _join(receiver.german[DATIVE], thing.german[ACCUSATIVE])
        phrase = self._noun_phrase(depth)
        return phrase.english, phrase.german[DATIVE if frame == "dative" else ACCUSATIVE]

    def _adverbial(self) -> tuple[str, str]:
        return self._rng.choice(_ADVERBS) if self._rng.random() < 0.6 else self._prepositional()

    def _prepositional(self) -> tuple[str, str]:
        english, german, case = self._rng.choice(_PREPOSITIONS)
        phrase = self._noun_phrase(0)
        return _join(english, phrase.english), _join(german, phrase.german[case])

    def _subject(self, depth: int) -> Phrase:
        if self._rng.random() < 0.3:
            english, german, person, number = self._rng.choice(_PRONOUNS)
            return Phrase(english, (german,) * 3, person, number)
        return self._noun_phrase(depth)

    def _noun_phrase(self, depth: int) -> Phrase:
        noun = self._compound() if self._rng.random() < 0.12 else self._frequent(self._lexicon.nouns)
        number = int(self._rng.random() < 0.35)
        column = "p" if number else noun.gender
        adjective = self._frequent(self._lexicon.adjectives) if self._rng.random() < 0.4 else None
        determiner = self._rng.choices(("the", "a", "possessive"), weights=(5, 3, 2))[0]
        possessive = self._rng.choice(_POSSESSIVES)
        english = _english_noun_phrase(determiner, possessive[0], adjective, noun, number)
        german = [
            _german_noun_phrase(determiner, possessive[1], adjective, noun, case, _COLUMNS.index(column)) for case in _CASES
        ]
        phrase = Phrase(english, (german[0], german[1], german[2]), 3, number, column)
        return self._with_relative_clause(phrase) if depth and self._rng.random() < 0.2 else phrase

    def _with_relative_clause(self, phrase: Phrase) -> Phrase:
        """Return `phrase` with a relative clause, of which it is the subject."""
        predicate = self._predicate(phrase, depth=0)
        clause = _join(_RELATIVE[NOMINATIVE][_COLUMNS.index(phrase.column)], predicate.subordinate())
        nominative, accusative, dative = (_join(form, ",", clause, ",") for form in phrase.german)
        english = _join(phrase.english, "that", predicate.english)
        return Phrase(english, (nominative, accusative, dative), phrase.person, phrase.number, phrase.column)

    def _compound(self) -> Noun:
        """Join two nouns: the first modifies, the second decides gender and plural."""
        which, what = self._frequent(self._lexicon.nouns), self._frequent(self._lexicon.nouns)
        english = f"{which.english[0]} {what.english[0]}", f"{which.english[0]} {what.english[1]}"
        german = which.german[0] + what.german[0].lower(), which.german[0] + what.german[1].lower()
        return Noun(english, german, what.gender)

    def _frequent(self, words: Sequence[Word]) -> Word:
        """Draw a word, earlier ones more often; the last is still about a tenth as frequent as the first."""
        return words[int(len(words) * self._rng.random() ** 1.6)]


def _english_noun_phrase(determiner: str, possessive: str, adjective: Adjective | None, noun: Noun, number: int) -> str:
    words = _join(adjective.english if adjective else "", noun.english[number])
    if determiner == "a":
        article = "" if number else ("an" if words[0] in "aeiou" else "a")
        return _join(article, words)
    return _join("the" if determiner == "the" else possessive, words)


def _german_noun_phrase(
    determiner: str, possessive: str, adjective: Adjective | None, noun: Noun, case: int, column: int
) -> str:
    is_plural = _COLUMNS[column] == "p"
    ending = (_WEAK if determiner == "the" else _MIXED)[case][column]
    if determiner == "the":
        article = _THE[case][column]
    elif determiner == "possessive":
        article = possessive + _EIN[case][column]
    elif is_plural:
        article, ending = "", _STRONG_PLURAL[case]
    else:
        article = "ein" + _EIN[case][column]
    form = noun.german[is_plural]
    if is_plural and case == DATIVE and form[-1] not in "ns":
        form += "n"
    return _join(article, adjective.german + ending if adjective else "", form)


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _finish(words: str) -> str:
    """Attach commas (two become one, none stays before the full stop), capitalise, and add the full stop."""
    text = " ".join(words.split()).replace(" ,", ",").replace(",,", ",").rstrip(",")
    return text[0].upper() + text[1:] + "."


def sentences(seed: int) -> Iterator[tuple[str, str]]:
    """Yield pairs (English, German) without end, each English sentence at most once."""
    grammar, seen = Grammar(seed), set[str]()
    while True:
        pair = grammar.sentence()
        if pair[0] not in seen:
            seen.add(pair[0])
            yield pair


def generate(num_sentences: int, seed: int) -> list[tuple[str, str]]:
    """Return the first `num_sentences` of `sentences(seed)`."""
    return list(itertools.islice(sentences(seed), num_sentences))


def write_corpus(
    folder: Path, *, seed: int = 1, train: int = 20000, validation: int = 500, test: int = 500, overwrite: bool = False
) -> None:
    """Write `train`, `val` and `test` with the endings `.en` and `.de` to `folder`; no sentence is in two of them.

    Test and validation come first, so that they do not depend on the size of the training split. Raises `ConfigError` if
    one of the files exists with other text and `overwrite` is not set.
    """
    pairs, texts = iter(generate(test + validation + train, seed)), {}
    for split, size in (("test", test), ("val", validation), ("train", train)):
        chosen = list(itertools.islice(pairs, size))
        for side, language in enumerate(("en", "de")):
            texts[f"{split}.{language}"] = "".join(pair[side] + "\n" for pair in chosen).encode()
    write_texts(folder, texts, overwrite=overwrite)
