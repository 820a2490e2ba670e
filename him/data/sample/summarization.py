"""The built-in sample for abstractive summarization: a told passage, and what it is mainly about in one line.

A passage is about the entity that it says most of, which is not always the one that it opens with. The summary names it
and its most telling facts: an order for each kind, of which those count that the passage tells. The second entity has
facts in the same relations, also in some that are not told of the first, and none of them may come up.

The wordings of summaries are in `summaries.txt`: for each kind a block `# KIND: relations, most telling first` and in
it sentences as in `wording`. Documents of validation are told in wordings that training never shows, as in the SQuAD
sample. Summaries are not: their style is what is to be learned, and no model can guess a wording that it never saw.
Which of the wordings for its facts a summary takes is chance: all facts, worded anew, score a ROUGE-L of about 73.
"""

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from him.data.sample.wording import Passage, Wording, Writer, load_phrases
from him.data.sample.world import TRAIN, VALIDATION, Story


def summarization_sample(
    seed: int = 0, num_train: int = 8000, num_validation: int = 400
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Invent passages and a summary of each, in one line.

    Everything a summary says is in its document, with names and values to the letter. Validation shares no name, number
    or fact with training, whatever the seed, and tells its documents in other wordings.

    Args:
        seed: the same seed gives the same sample on every machine; a larger sample begins like a smaller one.
        num_train: number of training documents.
        num_validation: number of validation documents.

    Returns:
        The training and the validation examples, each with `id`, `document` and `summary`.
    """
    return _split_examples(seed, TRAIN, num_train), _split_examples(seed, VALIDATION, num_validation)


def _split_examples(seed: int, split: str, num_examples: int) -> list[dict[str, str]]:
    rng = random.Random(f"summarization {split} {seed}")
    writer = DocumentWriter(rng, split)
    kinds = list(load_phrases())
    examples = []
    for number in range(num_examples):
        if number % len(kinds) == 0:
            rng.shuffle(kinds)
        passage = writer.tell(writer.story(kinds[number % len(kinds)]))
        summary = summarize(passage, rng)
        examples.append({"id": f"sample-{split}-{number:05d}", "document": passage.text, "summary": summary})
    return examples


@dataclass
class SummaryPhrases:
    """How entities of one kind are summed up.

    Attributes:
        order: the relations, most telling first.
        wordings: by the facts that they state; each is the list of its variants.
    """

    order: list[str]
    wordings: dict[frozenset[str], list[list[str]]] = field(default_factory=dict)

    @property
    def num_facts(self) -> int:
        """How many facts a summary has: two or three, half of what there is to tell."""
        return (len(self.order) + 1) // 2


@cache
def load_summary_phrases() -> dict[str, SummaryPhrases]:
    """The wordings of summaries, by kind."""
    phrases: dict[str, SummaryPhrases] = {}
    for line in (Path(__file__).parent / "summaries.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind, order = line[2:].split(": ")
            phrases[kind] = SummaryPhrases(order.split(", "))
        else:
            wording = Wording(line, TRAIN)
            phrases[kind].wordings.setdefault(frozenset(wording.relations), []).append(wording.variants)
    return phrases


def telling_facts(passage: Passage) -> list[str]:
    """The relations of the main entity that a summary of the passage states."""
    phrases = load_summary_phrases()[passage.story.kind]
    return [relation for relation in phrases.order if (0, relation) in passage.offsets][: phrases.num_facts]


def summarize(passage: Passage, rng: random.Random) -> str:
    """One line about the main entity of a passage: its most telling facts among those that are told."""
    main, wordings = passage.story.main, load_summary_phrases()[passage.story.kind].wordings
    variants = rng.choice(wordings[frozenset(telling_facts(passage))])
    summary = rng.choice(variants).format(s=main.article + main.name, **main.facts)
    return summary[0].upper() + summary[1:]


class DocumentWriter(Writer):
    """Tells passages that have to be read to the end: neither the opening nor a fixed choice of facts sums them up."""

    def tell(self, story: Story) -> Passage:
        """Write a passage that says more of the main entity than of the other, which may still come first.

        Mostly one fact of the main entity is left out, so that what to sum up has to be looked for, and the first
        sentence never has all of it.
        """
        asides = self.dice.asides()
        rng, facts, relations = self.rng, story.main.facts, list(load_phrases()[story.kind].relations)
        while True:
            told_main = rng.sample(relations, len(relations) - (rng.random() < 0.75))
            told_other = rng.sample(relations, rng.randint(2, min(3, len(told_main) - 1)))
            passage = self._tell(Passage(story, asides), told_main, told_other, other_opens=0.3)
            offsets = {relation: start for (who, relation), start in passage.offsets.items() if who == 0}
            # A value that opens a sentence has a capital letter there, and could not be copied from it.
            copyable = all(passage.text.startswith(facts[name], start) for name, start in offsets.items())
            first_end = passage.text.index(".")
            if copyable and any(offsets[relation] > first_end for relation in telling_facts(passage)):
                return passage
