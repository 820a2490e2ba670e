"""How a story is told and asked about: from a `Story` to a paragraph whose every value has a known place.

The wordings are in `phrases/<kind>.txt`, one file for each kind of entity:

- `# relations`: `name: value type` (the types are those of `world.Dice.value`);
- `# clauses`: what a sentence says of its subject. `{relation}` is a value. A clause that names the subject itself, as
  `{s}`, stands alone; the others follow a subject and may be joined;
- `# ask RELATION`: questions that `RELATION` answers. `{s}` is the entity's name; `name` asks for the entity itself.

`[a|b]` is a choice, `{its}` the possessive pronoun, and `*` after a block's name keeps it for validation. The words of
validation wordings all occur in training wordings of the same kind, in other combinations.

`frames.txt` has, for any kind, `# asides`: sentences that answer nothing, with the same types of values as the facts,
so that a type alone finds nothing; `# others`: frames of a sentence that turns to the other entity; `# contrasts`:
frames of one about both. `{s}` and `{t}` are the subjects, `{a}` and `{b}` what is said of them.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from him.data.sample.world import TRAIN, VALIDATION, Dice, Story, make_story

_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\]]*)\]")
_POSSESSIVE = {"she": "her", "he": "his", "it": "its"}
_GRAMMAR_SLOTS = {"s", "its"}


@dataclass(frozen=True)
class Wording:
    """One way to say or ask something, and the split it belongs to."""

    text: str
    split: str

    @property
    def relations(self) -> tuple[str, ...]:
        """The facts it states or needs."""
        return tuple(slot for slot in _SLOT.findall(self.text) if slot not in _GRAMMAR_SLOTS)

    @property
    def stands_alone(self) -> bool:
        return "{s}" in self.text

    @property
    def variants(self) -> list[str]:
        """The text for each way to take its choices."""
        texts = [self.text]
        while found := _CHOICE.search(texts[0]):
            options = found.group(1).split("|")
            texts = [_CHOICE.sub(lambda _, taken=taken: taken, text, count=1) for text in texts for taken in options]
        return [" ".join(text.split()).replace(" ,", ",") for text in texts]  # an empty choice leaves a space


@dataclass
class Phrases:
    """All wordings for one kind of entity."""

    relations: dict[str, str] = field(default_factory=dict)
    clauses: list[Wording] = field(default_factory=list)
    questions: dict[str, list[Wording]] = field(default_factory=dict)


@cache
def load_phrases() -> dict[str, Phrases]:
    """The phrases of every kind, by kind, in a fixed order."""
    return {path.stem: _parse(path) for path in sorted((Path(__file__).parent / "phrases").glob("*.txt"))}


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Block, split and text of each line below the blocks' names."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            block = line[2:].rstrip("*")
            split = VALIDATION if line.endswith("*") else TRAIN
        else:
            yield block, split, line


def _parse(path: Path) -> Phrases:
    phrases = Phrases()
    for block, split, line in _lines(path):
        if block == "relations":
            name, value_type = line.split(": ")
            phrases.relations[name] = value_type
        elif block == "clauses":
            phrases.clauses.append(Wording(line, split))
        else:
            phrases.questions.setdefault(block.removeprefix("ask "), []).append(Wording(line, split))
    return phrases


@cache
def load_frames(block: str, split: str) -> list[str]:
    """The lines of a block of `frames.txt`."""
    path = Path(__file__).parent / "frames.txt"
    return [line for name, of, line in _lines(path) if (name, of) == (block, split)]


@dataclass
class Passage:
    """A paragraph and where everything is in it.

    Attributes:
        story: what it tells.
        asides: values for a sentence beside the point.
        text: the paragraph.
        offsets: offset of each value, by number of the entity (0 is the main one) and relation.
        names: offsets of the full names of each entity, in order.
        wordings: what it was written with.
    """

    story: Story
    asides: dict[str, str]
    text: str = ""
    offsets: dict[tuple[int, str], int] = field(default_factory=dict)
    names: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    wordings: list[Wording] = field(default_factory=list)


class Writer:
    """Tells stories in the wordings of one split."""

    def __init__(self, rng: random.Random, split: str):
        self.rng, self.split, self.dice = rng, split, Dice(rng, split)

    def story(self, kind: str) -> Story:
        """A new story of two entities of a kind."""
        return make_story(kind, load_phrases()[kind].relations, self.dice)

    def tell(self, story: Story) -> Passage:
        """Write a paragraph about a story.

        Up to five facts of the main entity are told and two or three of the other, in the same relations, so that no
        question can be answered without knowing whom it is about.
        """
        rng, relations = self.rng, list(load_phrases()[story.kind].relations)
        passage = Passage(story, self.dice.asides())
        told_main = rng.sample(relations, min(5, len(relations)))
        return self._tell(passage, told_main, rng.sample(told_main, rng.choice((2, 3))))

    def _tell(self, passage: Passage, told_main: list[str], told_other: list[str], other_opens: float = 0.0) -> Passage:
        """Tells these relations of the two entities; how probable it is that the other one comes first."""
        rng, phrases = self.rng, load_phrases()[passage.story.kind]
        clauses = [self._clauses(phrases, told_main), self._clauses(phrases, told_other)]
        contrast = self._contrast(clauses) if rng.random() < 0.4 else []
        about_main, about_other = (self._grouped(who, clauses[who]) for who in (0, 1))
        opening = about_other[:1] if other_opens and rng.random() < other_opens else []
        # The main entity often comes again after the other.
        cut = rng.randint(1, max(1, len(about_main)))
        sentences = opening + about_main[:cut] + contrast + about_other[len(opening) :] + about_main[cut:]
        if rng.random() < 0.7:
            sentences.insert(rng.randrange(1, len(sentences) + 1), [])

        last = None
        for sentence in sentences:
            self._write(passage, sentence, last)
            speakers = {who for who, _ in sentence}
            last = speakers.pop() if len(speakers) == 1 else None
        return passage

    def ask(self, passage: Passage, count: int) -> list[dict]:
        """Up to `count` questions on different facts, each with its one answer, as in a SQuAD file."""
        phrases = load_phrases()[passage.story.kind]
        asked = []
        candidates = list(passage.offsets) + [(0, "name"), (1, "name")]
        self.rng.shuffle(candidates)
        for who, relation in candidates:
            entity = passage.story.entities[who]
            told = {name for number, name in passage.offsets if number == who}
            possible = [
                wording
                for wording in phrases.questions[relation]
                if wording.split == self.split
                and told.issuperset(wording.relations)
                and all(passage.text.count(entity.facts[name]) == 1 for name in wording.relations)
            ]
            if not possible or len(asked) == count:
                continue
            wording = self.rng.choice(possible)
            question = self.rng.choice(wording.variants).format(
                s=entity.article + entity.name, its=_POSSESSIVE[entity.pronoun], **entity.facts
            )
            if relation == "name":
                # The last mention before the fact, where a reader has the answer from, or else the next one.
                mentions, place = passage.names[who], passage.offsets[who, wording.relations[0]]
                text, start = entity.name, max((at for at in mentions if at <= place), default=mentions[0])
            else:
                text, start = entity.facts[relation], passage.offsets[who, relation]
            text = passage.text[start : start + len(text)]  # as written: a sentence may open with it
            asked.append({"question": question, "answers": [{"text": text, "answer_start": start}]})
        return asked

    def _clauses(self, phrases: Phrases, told: list[str]) -> list[Wording]:
        """Clauses that together state each of the relations `told` once."""
        untold, chosen = set(told), []
        while untold:
            fitting = [c for c in phrases.clauses if c.split == self.split and untold.issuperset(c.relations)]
            chosen.append(self.rng.choice(fitting))
            untold.difference_update(chosen[-1].relations)
        return chosen

    def _contrast(self, clauses: list[list[Wording]]) -> list[list[tuple[int, Wording]]]:
        """Take one clause of each entity, of the same relation if there is one, for a sentence about both."""
        pairs = [(a, b) for a in clauses[0] for b in clauses[1] if not a.stands_alone and not b.stands_alone]
        if not pairs:
            return []
        alike = [(a, b) for a, b in pairs if set(a.relations) & set(b.relations)]
        a, b = self.rng.choice(alike or pairs)
        clauses[0].remove(a)
        clauses[1].remove(b)
        return [[(0, a), (1, b)]]

    def _grouped(self, who: int, clauses: list[Wording]) -> list[list[tuple[int, Wording]]]:
        """Sentences of one or two clauses about one entity."""
        sentences = [[(who, clause)] for clause in clauses if clause.stands_alone]
        joined = [clause for clause in clauses if not clause.stands_alone]
        while joined:
            size = 2 if self.rng.random() < 0.5 else 1
            sentences.append([(who, clause) for clause in joined[:size]])
            joined = joined[size:]
        self.rng.shuffle(sentences)
        return sentences

    def _write(self, passage: Passage, sentence: list[tuple[int, Wording]], last: int | None) -> None:
        """Add a sentence to the passage; an empty one is an aside."""
        rng = self.rng
        if passage.text:
            passage.text += " "
        sentence_start = len(passage.text)
        if not sentence:
            passage.text += rng.choice(load_frames("asides", self.split)).format(**passage.asides)
        elif sentence[0][1].stands_alone:
            who, clause = sentence[0]
            self._add_clause(passage, who, clause, passage.story.entities[who].noun if last == who else "")
        else:
            frame = "{s} {a}"
            if len({who for who, _ in sentence}) == 2:
                frame = rng.choice(load_frames("contrasts", self.split))
            elif len(sentence) == 2:
                frame = "{s} {a}, and {b}" if "," in sentence[0][1].text else "{s} {a} and {b}"
            elif last is not None and last != sentence[0][0]:
                frame = rng.choice(load_frames("others", self.split))
            for part in re.split(r"(\{\w\})", frame):
                match part:
                    case "{s}":
                        self._add_subject(passage, sentence[0][0], last)
                    case "{t}":
                        self._add_subject(passage, sentence[1][0], None)
                    case "{a}" | "{b}":
                        self._add_clause(passage, *sentence[0 if part == "{a}" else 1], "")
                    case _:
                        passage.text += part
        if sentence:
            passage.text += "."
        head, tail = passage.text[:sentence_start], passage.text[sentence_start:]
        passage.text = head + tail[0].upper() + tail[1:]

    def _add_subject(self, passage: Passage, who: int, last: int | None) -> None:
        """Name the subject, or point back to it if the sentence before was about it alone."""
        entity = passage.story.entities[who]
        manner = self.rng.random() if last == who else 1.0
        if manner < 0.45:
            passage.text += entity.pronoun
        elif manner < 0.7:
            passage.text += f"the {entity.noun}"
        else:
            passage.text += entity.article
            passage.names[who].append(len(passage.text))
            passage.text += entity.name

    def _add_clause(self, passage: Passage, who: int, clause: Wording, noun: str) -> None:
        """Add a clause, noting where its values stand; `noun` replaces the name of its subject, if not empty."""
        entity = passage.story.entities[who]
        passage.wordings.append(clause)
        for i, part in enumerate(_SLOT.split(self.rng.choice(clause.variants))):
            if i % 2 == 0:
                passage.text += part
            elif part == "its":
                passage.text += _POSSESSIVE[entity.pronoun]
            elif part == "s":
                if noun:
                    passage.text += f"the {noun}"
                else:
                    self._add_subject(passage, who, None)
            else:
                passage.offsets[who, part] = len(passage.text)
                passage.text += entity.facts[part]
