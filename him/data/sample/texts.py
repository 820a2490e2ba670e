"""The built-in sample for language modelling: articles of plain prose, several told passages each.

A later passage is often about a person, a place or a firm that an earlier one mentions, so that what was read helps to
foresee what comes. Nothing else ties the passages together: the years of different stories need not agree.
"""

import random

from him.data.sample.wording import Writer, load_phrases
from him.data.sample.world import TRAIN, VALIDATION, WORDS, Story

_KIND_OF_VALUE = {"person": "person", "place": "town", "firm": "firm"}


def text_sample(seed: int = 0, num_train: int = 1100, num_validation: int = 100) -> tuple[list[str], list[str]]:
    """Invent articles of plain prose: a title line, then three to seven paragraphs, with blank lines between.

    An article has about 1 to 3 KB, the default training set 2 MB. Validation shares no name, number or wording with
    training, whatever the seed.

    Args:
        seed: the same seed gives the same sample on every machine; a larger sample begins like a smaller one.
        num_train: number of training documents.
        num_validation: number of validation documents.

    Returns:
        The training and the validation documents.
    """
    return _split_documents(seed, TRAIN, num_train), _split_documents(seed, VALIDATION, num_validation)


def _split_documents(seed: int, split: str, num_documents: int) -> list[str]:
    rng = random.Random(f"text {split} {seed}")
    writer = Writer(rng, split)
    return [_document(writer) for _ in range(num_documents)]


def _document(writer: Writer) -> str:
    stories: list[Story] = []
    paragraphs = []
    for _ in range(writer.rng.randint(3, 7)):
        stories.append(_next_story(stories, writer))
        paragraphs.append(writer.tell(stories[-1]).text)
    main = stories[0].main
    title = main.article.capitalize() + main.name
    return "\n\n".join([title, *paragraphs])


def _next_story(stories: list[Story], writer: Writer) -> Story:
    """A story about someone or something that the main entities of `stories` have to do with, or about others."""
    known = {entity.name for story in stories for entity in story.entities}
    mentioned = [
        (_KIND_OF_VALUE[value_type], story.main.facts[relation])
        for story in stories
        for relation, value_type in load_phrases()[story.kind].relations.items()
        if value_type in _KIND_OF_VALUE and story.main.facts[relation] not in known
    ]
    if not mentioned or writer.rng.random() < 0.3:
        return writer.story(writer.rng.choice(list(load_phrases())))
    kind, name = writer.rng.choice(mentioned)
    while True:
        story = writer.story(kind)
        values = {value for entity in story.entities for value in entity.facts.values()}
        fits = kind != "person" or name.split()[0].endswith(WORDS[f"{story.main.pronoun} ends"])
        if fits and name not in values | {story.other.name}:
            story.main.name = name
            return story
