"""The plain text sample: articles that hang together, of the size that is told, and nothing shared by the splits."""

import re
import subprocess
import sys
import time
import zlib
from collections import Counter

import pytest

from him.data.sample import text_sample
from him.data.sample.wording import load_frames, load_phrases
from him.data.sample.world import TRAIN, VALIDATION, WORDS


@pytest.fixture(scope="module")
def sample() -> tuple[list[str], list[str]]:
    return text_sample(0, 400, 100)


def test_layout(sample):
    for document in [*sample[0], *sample[1]]:
        title, *paragraphs = document.split("\n\n")
        assert re.fullmatch(r"(The )?[A-Z]\w+( [A-Z]\w+)?", title)
        assert 3 <= len(paragraphs) <= 7
        assert title.lower() in paragraphs[0].lower()
        for paragraph in paragraphs:
            assert paragraph == " ".join(paragraph.split()) and not set(paragraph) & set("{}[]|")
            assert paragraph[0].isupper() and paragraph.endswith(".")


@pytest.mark.parametrize(("num_train", "num_validation"), [(20, 3), (1, 0), (0, 1)])
def test_number_of_documents_is_as_asked(num_train, num_validation):
    train, validation = text_sample(3, num_train, num_validation)
    assert (len(train), len(validation)) == (num_train, num_validation)


@pytest.mark.timing
def test_default_size_and_time():
    started_at = time.perf_counter()
    train, validation = text_sample()
    assert time.perf_counter() - started_at < 10  # 1.9 s on an idle core; the bound leaves room for a busy machine
    assert 1.9e6 < sum(len(document.encode()) for document in train) < 2.1e6
    assert len(validation) == 100
    lengths = [len(document) for document in [*train, *validation]]
    assert 700 < min(lengths) and max(lengths) < 3500
    assert len(set(train)) == len(train)


def test_same_seed_same_sample_other_seed_another():
    assert text_sample(5, 10, 10) == text_sample(5, 10, 10)
    assert text_sample(5, 10, 10) != text_sample(6, 10, 10)
    assert text_sample(5, 20, 10)[0][:10] == text_sample(5, 10, 10)[0]


def test_another_process_makes_the_same_sample():
    code = "import zlib; from him.data.sample import *; print(zlib.crc32(repr(text_sample(5, 20, 5)).encode()))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(made.stdout) == zlib.crc32(repr(text_sample(5, 20, 5)).encode())


def test_no_name_or_number_in_both_splits(sample):
    """A word is a name if it is never written small; the second half of "Welkin Works" is what the thing is."""
    kept = []
    for documents in sample:
        text = "\n".join(documents)
        small = set(re.findall(r"\b[a-z]+\b", text))
        names = {word for word in re.findall(r"\b[A-Z][a-z]+", text) if word.lower() not in small}
        kept.append(names | set(re.findall(r"\d+", text)))
    assert len(kept[0]) > 2000 and len(kept[1]) > 800
    months = set("January February March April May June July August September October November December".split())
    nouns = set("Works Mills Brothers Company Foundry Expedition Tower Library Theatre Lighthouse Hall Museum".split())
    nouns |= set("Pump Lamp Loom Engine Clock Press Frog Beetle Owl Lizard Moth Otter".split())
    nouns |= set("Festival Fair Parade Carnival".split())
    openings = {
        words.split()[0].capitalize() for split in (TRAIN, VALIDATION) for words in load_frames("asides", split)
    }  # "An exhibition in ..."
    assert kept[0] & kept[1] <= months | nouns | openings


def test_no_sentence_in_both_splits_and_no_wording_of_the_other(sample):
    sentences = [{s for document in documents for s in re.split(r"(?<=\.)\s+", document)} for documents in sample]
    assert not sentences[0] & sentences[1]
    for documents, foreign in zip(sample, (VALIDATION, TRAIN), strict=True):
        text = "\n".join(documents)
        for phrases in load_phrases().values():
            # Long plain stretches tell a wording for sure; short ones occur in the other split's wordings as well.
            own_text = " # ".join(v for c in phrases.clauses if c.split != foreign for v in c.variants)
            for wording in phrases.clauses:
                if wording.split == foreign:
                    for variant in wording.variants:
                        stretch = max(re.split(r"\{\w+\}", variant), key=len).strip(" ,")
                        if len(stretch.split()) > 4 and stretch not in own_text:
                            assert stretch not in text, stretch


def test_paragraphs_come_back_to_what_earlier_ones_mention(sample):
    """At least half of the later paragraphs are about a name that an earlier paragraph has."""
    known = Counter()
    pattern = rf"[A-Z]\w+ [A-Z]\w+|[A-Z][a-z]+(?:{'|'.join(WORDS['place ends'])})\b"
    for document in sample[0]:
        title, *paragraphs = document.split("\n\n")
        for i, paragraph in enumerate(paragraphs[1:], start=1):
            names = set(re.findall(pattern, paragraph))
            known[any(name in "\n".join(paragraphs[:i]) for name in names)] += 1
    assert 0.5 < known[True] / known.total() < 0.95


def test_a_person_keeps_one_pronoun(sample):
    """Whoever is told of again, under a name that an earlier story gave, is she or he as the name says."""
    found = Counter()
    for document in sample[0]:
        for name, pronoun in re.findall(r"\n([A-Z]\w+) [A-Z]\w+ (?:was born|grew up|wrote)[^.]*\. (She|He) ", document):
            assert name.endswith(WORDS[f"{pronoun.lower()} ends"]), (name, document)
            found[pronoun] += 1
    assert min(found["She"], found["He"]) > 5
