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

TRAIN, VALIDATION = "train", "validation"

# fmt: off
_ONSETS = ("B", "Br", "C", "Cl", "D", "Dr", "F", "Fl", "G", "Gr", "H", "J", "K", "Kr", "L", "M", "N", "P", "Pr", "R",
           "S", "St", "T", "Th", "Tr", "V", "W", "Y")
_RIMES = ("al", "an", "ar", "el", "en", "er", "il", "im", "in", "ol", "on", "or", "un", "os", "as")
_STEMS = tuple(onset + rime for onset in _ONSETS for rime in _RIMES)
_GIVEN_ENDS = {"she": ("a", "ina", "eth", "ise", "ela", "ora", "ika"),
               "he": ("ek", "us", "ard", "o", "im", "ulf", "ric")}
_SURNAME_ENDS = ("ley", "wick", "man", "sen", "wood", "rell", "dale", "by", "lock", "ton", "field", "more", "worth",
                 "kin", "shaw", "gren")
_PLACE_ENDS = ("mouth", "stead", "haven", "bridge", "ford", "mere", "gate", "vik", "burg", "minster", "holm", "port",
               "bury", "fell")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")

_ROLES = ("painter", "chemist", "poet", "botanist", "composer", "astronomer")
_FIRMS = ("Works", "Mills", "Brothers", "Company", "Foundry")
_BUILDINGS = ("Tower", "Library", "Theatre", "Lighthouse", "Hall", "Museum")
_MACHINES = ("Pump", "Lamp", "Loom", "Engine", "Clock", "Press")
_ANIMALS = ("Frog", "Beetle", "Owl", "Lizard", "Moth", "Otter")
_FESTIVALS = ("Festival", "Fair", "Parade", "Carnival")

_QUALITIES = ("wooden", "copper", "painted", "silver", "woollen", "folding", "heavy", "striped", "glass", "iron")
_GOODS = ("chairs", "bells", "boots", "ropes", "kettles", "toys", "saddles", "bottles", "carpets", "knives")
_STONES = ("grey", "red", "white", "black", "pale", "green", "yellow", "dark")
_MATERIALS = ("granite", "brick", "marble", "sandstone", "limestone", "slate")
_FOODS = ("river", "marsh", "forest", "mountain", "desert", "coastal", "winter", "wild")
_PREY = ("worms", "berries", "snails", "seeds", "spiders", "ants", "roots", "mushrooms")
_STUDIES = ("early", "rare", "common", "ancient", "northern", "southern", "tropical", "local")
_THEMES = ("mosses", "comets", "ballads", "birds", "storms", "coins", "dialects", "fossils")
_TROUBLES = ("a shortage of", "a quarrel over", "the rising price of", "a sudden lack of", "a long dispute about",
             "the theft of", "the loss of")
_MATTERS = ("coal", "water", "timber", "money", "land", "food", "wages", "paper", "salt", "tools")
_TASKS = ("cleaning", "sorting", "drying", "cutting", "counting", "grinding", "folding", "washing")
_OBJECTS = ("wool", "grain", "leather", "letters", "apples", "cloth", "sand", "stamps")
# fmt: on


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
        return self.pair(_STEMS, _SURNAME_ENDS)

    def place(self) -> str:
        return self.pair(_STEMS, _PLACE_ENDS)

    def person(self, pronoun: str = "") -> str:
        pronoun = pronoun or self.rng.choice(("she", "he"))
        return f"{self.pair(_STEMS, _GIVEN_ENDS[pronoun])} {self.surname()}"

    def value(self, value_type: str) -> str:
        """A value of a fact: `value_type` is a name of this table, or "unit low high" for a measure."""
        match value_type.split():
            case ["person"]:
                return self.person()
            case ["place"]:
                return self.place()
            case ["year"]:
                return self.number(1701, 1989)
            case ["date"]:
                return f"{self.number(1, 28)} {self.rng.choice(_MONTHS)} {self.number(1701, 1989)}"
            case ["day"]:
                return f"{self.number(1, 28)} {self.rng.choice(_MONTHS)}"
            case ["firm"]:
                return f"{self.surname()} {self.rng.choice(_FIRMS)}"
            case ["ship"]:
                return self.pair(_STEMS, _GIVEN_ENDS["she"])
            case ["goods"]:
                return self.pair(_QUALITIES, _GOODS, " ")
            case ["material"]:
                return self.pair(_STONES, _MATERIALS, " ")
            case ["food"]:
                return self.pair(_FOODS, _PREY, " ")
            case ["theme"]:
                return self.pair(_STUDIES, _THEMES, " ")
            case ["reason"]:
                return self.pair(_TROUBLES, _MATTERS, " ")
            case ["task"]:
                return self.pair(_TASKS, _OBJECTS, " ")
            case ["count", low, high]:
                return self.number(int(low), int(high))
            case [unit, low, high]:
                return f"{self.number(int(low), int(high))} {unit}"
        raise AssertionError(f"unknown value type {value_type!r}")


@dataclass(frozen=True)
class Fact:
    """One thing that is true of an entity: its `relation` (a name) to a `value` (as it is written)."""

    relation: str
    value: str


@dataclass
class Entity:
    """A person, town, firm, ...: what it is called and what is true of it.

    Attributes:
        name: full name without article.
        article: "the " where the name takes one, else "".
        noun: what it is ("painter", "firm"), for "the painter".
        pronoun: "she", "he" or "it".
        facts: by relation.
    """

    name: str
    article: str
    noun: str
    pronoun: str
    facts: dict[str, Fact] = field(default_factory=dict)


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
    match kind:
        case "person":
            pronoun = rng.choice(("she", "he"))
            return Entity(dice.person(pronoun), "", rng.choice(_ROLES), pronoun)
        case "town":
            return Entity(dice.place(), "", rng.choice(("town", "port", "village")), "it")
        case "firm":
            return Entity(dice.value("firm"), "", rng.choice(("firm", "company", "business")), "it")
        case "expedition":
            return Entity(f"{dice.surname()} Expedition", "the ", rng.choice(("expedition", "party")), "it")
        case "building":
            noun = rng.choice(_BUILDINGS)
            return Entity(f"{dice.surname()} {noun}", "the ", noun.lower(), "it")
        case "festival":
            noun = rng.choice(_FESTIVALS)
            return Entity(f"{dice.surname()} {noun}", "the ", rng.choice(("festival", "event")), "it")
        case "invention":
            noun = rng.choice(_MACHINES)
            return Entity(f"{dice.surname()} {noun}", "the ", rng.choice((noun.lower(), "machine")), "it")
        case "animal":
            noun = rng.choice(_ANIMALS)
            return Entity(f"{dice.place()} {noun}", "the ", rng.choice((noun.lower(), "animal")), "it")
    raise AssertionError(f"unknown kind {kind!r}")


def make_story(kind: str, relations: dict[str, str], dice: Dice) -> Story:
    """Invent two entities of `kind` and a value for each of its `relations` (name to value type)."""
    dice.forget()
    main, other = _named(kind, dice), _named(kind, dice)
    for entity in (main, other):
        values = {relation: dice.value(value_type) for relation, value_type in relations.items()}
        years = [relation for relation, value_type in relations.items() if value_type == "year"]
        values.update(zip(years, sorted(values[relation] for relation in years), strict=True))
        entity.facts = {relation: Fact(relation, value) for relation, value in values.items()}
    # Now and then a value has two roles in one story, so that knowing a name is not knowing what was asked.
    if dice.rng.random() < 0.3:
        _share_a_value(main, other, relations, dice.rng)
    return Story(kind, main, other)


def _share_a_value(main: Entity, other: Entity, relations: dict[str, str], rng: random.Random) -> None:
    """Give the second entity a person or place that the first has in another relation."""
    pairs = [
        (mine, its)
        for mine, mine_type in relations.items()
        for its, its_type in relations.items()
        if mine != its and mine_type == its_type and mine_type in ("person", "place", "firm")
    ]
    if pairs:
        mine, its = rng.choice(pairs)
        other.facts[its] = Fact(its, main.facts[mine].value)
