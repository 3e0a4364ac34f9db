from __future__ import annotations

from pathlib import Path

import pytest

from hvd_async.tasks.translation.builtin.grammar import Grammar, Phrase, Predicate, generate, write_corpus
from hvd_async.tasks.translation.builtin.lexicon import lexicon

LADY = Phrase("the woman", ("die Frau", "die Frau", "der Frau"), 3, 0, "f")


def test_generation_depends_only_on_the_seed() -> None:
    assert generate(50, seed=1) == generate(50, seed=1)
    assert generate(50, seed=1) != generate(50, seed=2)
    assert generate(50, seed=1)[:20] == generate(20, seed=1)


def test_sentences_are_distinct_and_well_formed() -> None:
    pairs = generate(2000, seed=1)
    assert len({source for source, _ in pairs}) == 2000
    for sentence in (side for pair in pairs for side in pair):
        assert sentence[0].isupper() and sentence.endswith(".") and sentence.count(".") == 1
        assert "  " not in sentence and " ," not in sentence and ",," not in sentence and ",." not in sentence


def test_sentences_have_the_length_of_captions_and_many_word_forms() -> None:
    pairs = generate(3000, seed=1)
    words = [sentence.rstrip(".").split() for pair in pairs for sentence in pair]
    assert 8 < sum(map(len, words)) / len(words) < 14
    assert len({word for sentence in words for word in sentence}) > 3000


def test_a_main_clause_has_the_verb_second_and_the_prefix_last() -> None:
    predicate = Predicate("picks up a book", "hebt", "ein Buch", "auf", "aufhebt")
    assert predicate.after_subject() == "hebt ein Buch auf"
    assert predicate.inverted("die Frau") == "hebt die Frau ein Buch auf"
    assert predicate.subordinate() == "ein Buch aufhebt"


@pytest.mark.parametrize(
    ("person", "number", "german", "english"), [(1, 0, "sehe", "see"), (3, 0, "sieht", "sees"), (3, 1, "sehen", "see")]
)
def test_verbs_agree_with_their_subject(person: int, number: int, german: str, english: str) -> None:
    phrase = Phrase("", ("", "", ""), person, number)
    assert phrase.agree("sehe", "sieht", "sehen") == german
    assert phrase.agree_english("see", "sees") == english


def test_articles_and_adjectives_agree_with_gender_case_and_number() -> None:
    """Every noun phrase drawn is one that the textbook tables allow for its noun."""
    grammar = Grammar(seed=5)
    allowed = {
        "m": {"der", "den", "dem", "ein", "einen", "einem"},
        "f": {"die", "der", "eine", "einer"},
        "n": {"das", "dem", "ein", "einem"},
        "p": {"die", "den"},
    }
    possessive = ("mein", "dein", "sein", "unser")
    for _ in range(300):
        phrase = grammar._noun_phrase(0)
        for form in phrase.german:
            article = form.split()[0]
            if (
                article[0].islower()
                and not article.startswith(possessive)
                and phrase.english.split()[0] in ("the", "a", "an")
            ):
                assert article in allowed[phrase.column], form


def test_a_relative_clause_puts_its_verb_last_between_commas() -> None:
    grammar = Grammar(seed=1)
    phrase = grammar._with_relative_clause(LADY)
    nominative, _, dative = phrase.german
    assert nominative.startswith("die Frau , die ") and nominative.endswith(" ,")
    assert dative.startswith("der Frau , die ")
    assert phrase.english.startswith("the woman that ")


def test_the_lexicon_gives_every_word_one_translation() -> None:
    words = lexicon()
    nouns = [noun.english[0] for noun in words.nouns]
    verbs = [verb.english[0] for group in words.verbs.values() for verb in group]
    adjectives = [adjective.english for adjective in words.adjectives]
    assert all(words.verbs.values())
    assert len({*nouns, *verbs, *adjectives}) == len(nouns) + len(verbs) + len(adjectives)


def test_splits_are_disjoint_and_held_out_ones_do_not_depend_on_the_size_of_training(tmp_path: Path) -> None:
    write_corpus(tmp_path / "small", train=50, validation=20, test=10)
    write_corpus(tmp_path / "large", train=80, validation=20, test=10)
    sides: dict[str, list[str]] = {path.name: path.read_text().splitlines() for path in (tmp_path / "small").iterdir()}
    assert {name: len(lines) for name, lines in sides.items()} == {
        "train.en": 50, "train.de": 50, "val.en": 20, "val.de": 20, "test.en": 10, "test.de": 10,
    }  # fmt: skip
    assert len({*sides["train.en"], *sides["val.en"], *sides["test.en"]}) == 80
    for name in ("val.en", "val.de", "test.en", "test.de"):
        assert (tmp_path / "large" / name).read_text().splitlines() == sides[name]
