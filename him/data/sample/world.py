"""The invented world of the built-in sample: who and what there is, before any sentence is written.

A `Story` holds two entities of one kind, each with typed facts. Everything later said or asked about them comes from
those facts, so that questions, a summary and plain text can be written from one and the same story.

Every value (a name, a place, a number, a reason) belongs to exactly one split, decided by a checksum of its words. So
no seed can make a validation name or number turn up in training, while both are built from the same syllables.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TRAIN, VALIDATION = "train", "validation"


def _read_words() -> dict[str, tuple[str, ...]]:
    """The lists of `words.txt`; a value of two words is one of `TYPE` and one of `TYPE of`."""
    lines = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").splitlines()
    return {name: tuple(words.split(", ")) for name, words in (line.split(": ") for line in lines)}


WORDS = _read_words()
_STEMS = tuple(onset + rime for onset in WORDS["onsets"] for rime in WORDS["rimes"])
_ASIDE_TYPES = {"person": "person", "place": "place", "year": "year", "date": "date", "count": "count 12 990"}


def split_of(value: str) -> str:
    """The only split in which `value` may occur; about a quarter of all values are kept for validation."""
    return VALIDATION if zlib.crc32(value.encode()) % 4 == 0 else TRAIN


class Dice:
    """Random values of one split, none handed out twice until `forget` is called."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.split = split
        self._used: set[str] = set()

    def forget(self) -> None:
        """Start a new story: values of earlier ones may come again."""
        self._used.clear()

    def fresh(self, make: Callable[[], str]) -> str:
        """Draw with `make` until a value belongs to the split and is new in this story."""
        while True:
            value = make()
            if value not in self._used and split_of(value) == self.split:
                self._used.add(value)
                return value

    def pair(self, starts: tuple[str, ...], ends: tuple[str, ...], joint: str = "") -> str:
        """A fresh value made of one of `starts` and one of `ends`."""
        return self.fresh(lambda: self.rng.choice(starts) + joint + self.rng.choice(ends))

    def number(self, low: int, high: int) -> str:
        """A fresh number in [low, high], as digits."""
        return self.fresh(lambda: str(self.rng.randint(low, high)))

    def surname(self) -> str:
        return self.pair(_STEMS, WORDS["surname ends"])

    def person(self, pronoun: str) -> str:
        return f"{self.pair(_STEMS, WORDS[f'{pronoun} ends'])} {self.surname()}"

    def value(self, value_type: str) -> str:
        """A value of a fact: `value_type` is a name of this table or of `words.txt`, or "unit low high"."""
        match value_type.split():
            case ["person"]:
                return self.person(self.rng.choice(("she", "he")))
            case ["place"]:
                return self.pair(_STEMS, WORDS["place ends"])
            case ["year"]:
                return self.number(1701, 1989)
            case ["date"]:
                return f"{self.value('day')} {self.value('year')}"
            case ["day"]:
                return f"{self.number(1, 28)} {self.rng.choice(WORDS['months'])}"
            case ["firm"]:
                return f"{self.surname()} {self.rng.choice(WORDS['firms'])}"
            case ["ship"]:
                return self.pair(_STEMS, WORDS["she ends"])
            case ["count", low, high]:
                return self.number(int(low), int(high))
            case [unit, low, high]:
                return f"{self.number(int(low), int(high))} {unit}"
        return self.pair(WORDS[value_type], WORDS[f"{value_type} of"], " ")

    def asides(self) -> dict[str, str]:
        """Values for a sentence beside the point: a person, a place, a year, a date and a count."""
        return {name: self.value(value_type) for name, value_type in _ASIDE_TYPES.items()}


@dataclass
class Entity:
    """A person, town, firm, ...: what it is called and what is true of it.

    Attributes:
        name: full name without article.
        article: "the " where the name takes one, else "".
        noun: what it is ("painter", "firm"), for "the painter".
        pronoun: "she", "he" or "it".
        facts: values, as they are written, by relation.
    """

    name: str
    article: str
    noun: str
    pronoun: str
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Story:
    """Two entities of one kind; the first is what the paragraph is about."""

    kind: str
    main: Entity
    other: Entity

    @property
    def entities(self) -> tuple[Entity, Entity]:
        return self.main, self.other


def _named(kind: str, dice: Dice) -> Entity:
    rng = dice.rng
    if kind == "person":
        pronoun = rng.choice(("she", "he"))
        return Entity(dice.person(pronoun), "", rng.choice(WORDS["person nouns"]), pronoun)
    if kind in ("town", "firm"):
        return Entity(dice.value("place" if kind == "town" else kind), "", rng.choice(WORDS[f"{kind} nouns"]), "it")
    end = "Expedition" if kind == "expedition" else rng.choice(WORDS[f"{kind} names"])
    start = dice.value("place") if kind == "animal" else dice.surname()
    nouns = WORDS.get(f"{kind} nouns", ())
    if kind in ("building", "invention", "animal"):
        nouns = (end.lower(), *nouns)
    return Entity(f"{start} {end}", "the ", rng.choice(nouns) if len(nouns) > 1 else nouns[0], "it")


def make_story(kind: str, relations: dict[str, str], dice: Dice) -> Story:
    """Invent two entities of `kind` and a value for each of its `relations` (name to value type)."""
    dice.forget()
    main, other = _named(kind, dice), _named(kind, dice)
    for entity in (main, other):
        entity.facts = {relation: dice.value(value_type) for relation, value_type in relations.items()}
        years = [relation for relation, value_type in relations.items() if value_type == "year"]
        entity.facts.update(zip(years, sorted(entity.facts[relation] for relation in years), strict=True))
    # Now and then a value has two roles in one story, so that knowing a name is not knowing what was asked: the second
    # entity gets a person or place that the first has in another relation.
    if dice.rng.random() < 0.3:
        pairs = [
            (mine, its)
            for mine, mine_type in relations.items()
            for its, its_type in relations.items()
            if mine != its and mine_type == its_type and mine_type in ("person", "place", "firm")
        ]
        if pairs:
            mine, its = dice.rng.choice(pairs)
            other.facts[its] = main.facts[mine]
    return Story(kind, main, other)
