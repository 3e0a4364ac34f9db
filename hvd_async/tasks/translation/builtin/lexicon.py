"""The words of the built-in corpus: some real, most made of syllables, each with its English and its German forms.

The lexicon is drawn once from a fixed seed, so that all corpora share one language whatever the seed of their sentences.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_LEXICON_SEED = 20170612
_NUM_NOUNS, _NUM_ADJECTIVES, _NUM_VERBS = 150, 60, 80

# English singular, plural; German singular, gender, plural.
_NOUNS = """
dog dogs Hund m Hunde|cat cats Katze f Katzen|man men Mann m Männer|woman women Frau f Frauen|child children Kind n Kinder
house houses Haus n Häuser|garden gardens Garten m Gärten|book books Buch n Bücher|tree trees Baum m Bäume
street streets Straße f Straßen|door doors Tür f Türen|table tables Tisch m Tische|city cities Stadt f Städte
car cars Auto n Autos|bird birds Vogel m Vögel|horse horses Pferd n Pferde|letter letters Brief m Briefe
flower flowers Blume f Blumen|window windows Fenster n Fenster|king kings König m Könige
sister sisters Schwester f Schwestern|friend friends Freund m Freunde|lamp lamps Lampe f Lampen
picture pictures Bild n Bilder|ship ships Schiff n Schiffe
"""

# English word; German stem, to which endings are added.
_ADJECTIVES = "big groß|small klein|old alt|new neu|good gut|red rot|green grün|young jung|white weiß|cold kalt|fast schnell"

# English base, third person, participle; German infinitive, first person, third person, participle, prefix or -, frame.
_VERBS = """
see sees seen sehen sehe sieht gesehen - object|find finds found finden finde findet gefunden - object
read reads read lesen lese liest gelesen - object|carry carries carried tragen trage trägt getragen - object
love loves loved lieben liebe liebt geliebt - object|buy buys bought kaufen kaufe kauft gekauft - object
help helps helped helfen helfe hilft geholfen - dative|thank thanks thanked danken danke dankt gedankt - dative
give gives given geben gebe gibt gegeben - both|show shows shown zeigen zeige zeigt gezeigt - both
bring brings brought bringen bringe bringt gebracht - both|send sends sent schicken schicke schickt geschickt - both
sleep sleeps slept schlafen schlafe schläft geschlafen - none|work works worked arbeiten arbeite arbeitet gearbeitet - none
laugh laughs laughed lachen lache lacht gelacht - none|sing sings sung singen singe singt gesungen - none
"""

# English particle, German prefix of separable verbs.
_PARTICLES = (("up", "auf"), ("off", "ab"), ("on", "an"), ("out", "aus"), ("in", "ein"), ("along", "mit"))

_ENGLISH = (
    "b bl br cl d dr f fl g gr h j k l m n p pl pr r s sk sl sn sp st t tr v w".split(),
    "a e i o u ai ea oo ou".split(),
    "b ck d g l ll m mp n nd ng nk p r rd rk rm rn t v".split(),
)
_GERMAN = (
    "b bl br d dr f fl g gl gr h j k kl kn kr l m n p pf r sch schl schn schw str tr w z zw".split(),
    "a e i o u au ei eu ie ä ö ü".split(),
    "b ch ck f ff g k ll lm m mm n ng nk nn p pf r rf rg rk rm".split(),
)


_FUNCTION_WORDS = "will near mein dein sein wenn muss".split()
"""Words of the grammar that the syllables could form."""


@dataclass(frozen=True)
class Noun:
    """A noun; forms are indexed by number, 0 singular and 1 plural."""

    english: tuple[str, str]
    german: tuple[str, str]
    gender: str
    """m, f or n."""


@dataclass(frozen=True)
class Adjective:
    """An adjective: the English word and the German stem before its ending."""

    english: str
    german: str


@dataclass(frozen=True)
class Verb:
    """A verb. German forms are without the separable prefix, except for the participle."""

    english: tuple[str, str, str]
    """Base, third person singular, participle."""
    particle: str
    """The particle of an English phrasal verb, with the space before it; empty for most."""
    german: tuple[str, str, str]
    """Infinitive, first person singular, third person singular."""
    participle: str
    prefix: str
    """The separable prefix of the German verb; empty for most."""
    frame: str
    """The objects of the verb: none, object (accusative), dative, or both."""


@dataclass(frozen=True)
class Lexicon:
    """The open word classes, more frequent words first."""

    nouns: tuple[Noun, ...]
    adjectives: tuple[Adjective, ...]
    verbs: dict[str, tuple[Verb, ...]]
    """Verbs by frame."""


@functools.cache
def lexicon() -> Lexicon:
    """Return the only lexicon."""
    rng = random.Random(_LEXICON_SEED)
    # No real word and no word of the grammar may be made again.
    real = {*re.findall(r"\w+", f"{_NOUNS} {_ADJECTIVES} {_VERBS}".lower()), *_FUNCTION_WORDS}
    english, german = _new_words(rng, real, *_ENGLISH), _new_words(rng, real, *_GERMAN)
    nouns = [_real_noun(entry) for entry in _entries(_NOUNS)]
    adjectives = [Adjective(*entry.split()) for entry in _entries(_ADJECTIVES)]
    verbs = [_real_verb(entry) for entry in _entries(_VERBS)]
    nouns += [_made_noun(rng, english(), german()) for _ in range(_NUM_NOUNS - len(nouns))]
    adjectives += [Adjective(english(), german()) for _ in range(_NUM_ADJECTIVES - len(adjectives))]
    verbs += [_made_verb(rng, english(), german()) for _ in range(_NUM_VERBS - len(verbs))]
    for words in (nouns, adjectives, verbs):
        rng.shuffle(words)  # otherwise the real words would all be among the frequent ones
    frames = ("none", "object", "dative", "both")
    return Lexicon(tuple(nouns), tuple(adjectives), {f: tuple(verb for verb in verbs if verb.frame == f) for f in frames})


def _entries(table: str) -> list[str]:
    return table.strip().replace("\n", "|").split("|")


def _new_words(
    rng: random.Random, taken: set[str], onsets: list[str], vowels: list[str], codas: list[str]
) -> Callable[[], str]:
    used = set(taken)

    def draw() -> str:
        while True:
            first = rng.choice(onsets) + rng.choice(vowels)
            second = rng.choice(onsets) + rng.choice(vowels) if rng.random() < 0.4 else ""
            word = first + second + rng.choice(codas)
            if word not in used:
                used.add(word)
                return word

    return draw


def _real_noun(entry: str) -> Noun:
    singular, plural, german_singular, gender, german_plural = entry.split()
    return Noun((singular, plural), (german_singular, german_plural), gender)


def _made_noun(rng: random.Random, english: str, german: str) -> Noun:
    gender = rng.choice("mfn")
    if gender == "f" and rng.random() < 0.6:
        german += "e"
    plural_ending = {"m": "e", "n": "er", "f": "n" if german.endswith("e") else "en"}[gender]
    german = german.capitalize()
    return Noun((english, english + "s"), (german, german + plural_ending), gender)


def _real_verb(entry: str) -> Verb:
    base, third, participle, infinitive, german_first, german_third, german_participle, prefix, frame = entry.split()
    german = (infinitive, german_first, german_third)
    return Verb((base, third, participle), "", german, german_participle, prefix.strip("-"), frame)


def _made_verb(rng: random.Random, english: str, german: str) -> Verb:
    frame = rng.choices(("none", "object", "dative", "both"), weights=(3, 5, 1, 1))[0]
    particle, prefix = rng.choice(_PARTICLES) if frame in ("none", "object") and rng.random() < 0.4 else ("", "")
    return Verb(
        english=(english, english + "s", english + "ed"),
        particle=f" {particle}" if particle else "",
        german=(german + "en", german + "e", german + "t"),
        participle=f"{prefix}ge{german}t",
        prefix=prefix,
        frame=frame,
    )
