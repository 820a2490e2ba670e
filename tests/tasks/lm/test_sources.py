"""Which documents a language model gets: from files, the sample or the hub; what is held out; what is said about it."""

import json
import re
from pathlib import Path

import datasets
import pytest

from him.config import Config
from him.core.errors import ConfigError, DataError
from him.data import sample
from him.data.sources import Splits
from him.tasks.lm import sources as corpus_sources

REPOSITORY = Path(__file__).parents[3]
SHAKESPEARE = REPOSITORY.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"


def load_corpus(**settings) -> Splits:
    return corpus_sources.load_corpus(Config(task_type="lm", **settings))


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of so many files `00.txt`, `01.txt`, ...; each holds its number and ten letters."""

    def make(number: int, name: str = "corpus") -> Path:
        made = tmp_path / name
        made.mkdir()
        for place in range(number):
            (made / f"{place:02}.txt").write_text(text_of(place), encoding="utf-8")
        return made

    return make


def text_of(place: int) -> str:
    return f"{place:02} éabcdef"


def check_refused(kind: type[Exception], message: str, **flags) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$") as error:
        load_corpus(**flags)
    assert str(error.value).isprintable() and "; " in str(error.value)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "num_held"), [(10, 1), (19, 1), (20, 2), (35, 3)])
def test_a_tenth_of_the_files_is_held_out(folder, number, num_held):
    path = folder(number)
    found = load_corpus(corpus_dir=str(path), seed=3)
    assert len(found.validation) == num_held and len(found.train) == number - num_held
    assert sorted([*found.train, *found.validation]) == [text_of(place) for place in range(number)]
    assert list(found.train) == sorted(found.train) and list(found.validation) == sorted(found.validation)
    note = f"no --validation_file: {num_held} of {number} files, chosen by --seed 3, are held out for validation"
    assert found.notes == (note,)
    assert found.train.source == found.validation.source == str(path)


def test_the_seed_chooses_the_files(folder):
    path = str(folder(30))
    held = [list(load_corpus(corpus_dir=path, seed=seed).validation) for seed in (0, 0, 1, 2)]
    assert held[0] == held[1]
    assert len(set(map(tuple, held))) == 3


def test_few_files_are_cut(folder):
    found = load_corpus(corpus_dir=str(folder(9)))
    assert list(found.train) == [f"{place:02} éabcde" for place in range(9)]
    assert list(found.validation) == ["f"] * 9
    assert found.notes == (
        "no --validation_file: the last 10% of the characters of each of the 9 files (9 of 99 bytes) are held out for "
        "validation",
    )


def test_the_validation_file(folder, tmp_path):
    held = folder(2, "held")
    (tmp_path / "more.txt").write_text("more")
    path = str(folder(12))
    for name, expected in ((held, [text_of(0), text_of(1)]), (tmp_path / "more.txt", ["more"])):
        found = load_corpus(corpus_dir=path, validation_file=str(name))
        assert list(found.train) == [text_of(place) for place in range(12)]
        assert list(found.validation) == expected
        assert found.validation.source == str(name)
    assert found.notes == ()


def test_validation_files_in_the_corpus_are_not_trained_on(folder):
    path = folder(12)
    (path / "held").mkdir()
    (path / "03.txt").rename(path / "held" / "03.txt")
    (path / "link.txt").symlink_to(path / "held" / "03.txt")
    for name in ("held", "held/03.txt"):
        found = load_corpus(corpus_dir=str(path), validation_file=str(path / name))
        assert list(found.validation) == [text_of(3)]
        assert list(found.train) == [text_of(place) for place in range(12) if place != 3]
        note = f"not trained on, because --validation_file names them: 2 of 13 files in {path}"
        assert found.notes == (note,)
    fault = f"{path}: all its files are those of --validation_file; name another file or folder there"
    check_refused(DataError, fault, corpus_dir=str(path), validation_file=str(path))


def test_texts_on_both_sides_are_told(folder):
    path, held = folder(12), folder(3, "held")
    (held / "other.txt").write_text("other")
    found = load_corpus(corpus_dir=str(path), validation_file=str(held))
    assert found.notes == (
        "warning: the training data holds 3 of the 4 validation documents too; validation scores will be too good",
    )


def test_blank_files_are_left_out(folder):
    path = folder(11)
    for place in range(3):
        (path / f"{place:02}.txt").write_bytes([b"", b" \r\n", b"\xef\xbb\xbf"][place])
    found = load_corpus(corpus_dir=str(path))
    assert list(found.train) == [f"{place:02} éabcde" for place in range(3, 11)]
    assert found.notes[0] == f"left out as blank: 3 of 11 files in {path}"
    for file in path.iterdir():
        file.write_text("\n")
    check_refused(DataError, f"{path}: all 11 text files are blank; give files with text in them", corpus_dir=str(path))


def test_sample_size(folder):
    path = str(folder(40))
    found = load_corpus(corpus_dir=path, sample_size=20, seed=1)
    kept = [*found.train, *found.validation]
    assert (len(found.train), len(found.validation)) == (18, 2)
    assert set(kept) < {text_of(place) for place in range(40)} and len(set(kept)) == 20
    assert list(found.train) == sorted(found.train)
    again, other = (load_corpus(corpus_dir=path, sample_size=20, seed=seed) for seed in (1, 2))
    assert list(again.train) == list(found.train) != list(other.train)
    # A few files are cut, whatever the number of those that they were drawn from.
    few = load_corpus(corpus_dir=path, sample_size=2)
    assert (len(few.train), len(few.validation)) == (2, 2)
    more = load_corpus(corpus_dir=path, sample_size=50)
    assert len(more.train) + len(more.validation) == 40
    assert more.notes[0] == "--sample_size 50: there are only 40 documents"


def test_sample_size_leaves_a_validation_folder_whole(folder):
    found = load_corpus(corpus_dir=str(folder(12)), validation_file=str(folder(3, "held")), sample_size=1)
    assert (len(found.train), len(found.validation)) == (1, 3)


def test_validation_size(folder):
    path, held = str(folder(12)), str(folder(3, "held"))
    found = load_corpus(corpus_dir=path, validation_file=held, validation_size=2)
    assert list(found.validation) == [text_of(0), text_of(1)]
    assert len(found.train) == 12
    found = load_corpus(corpus_dir=path, validation_file=held, validation_size=4)
    assert len(found.validation) == 3
    assert found.notes[0] == "--validation_size 4: there are only 3 documents"


@pytest.mark.parametrize("flag", ["corpus_dir", "validation_file"])
def test_folder_without_text_files(folder, tmp_path, flag):
    flags = {"corpus_dir": str(folder(2)), flag: str(tmp_path / "empty")}
    (tmp_path / "empty" / "below").mkdir(parents=True)
    where, fix = f"--{flag} {tmp_path}/empty: no .txt file in it or below", "put UTF-8 text into files whose names end"
    check_refused(DataError, f"{where} (and no other file); {fix} in .txt", **flags)
    for name in ("a.pdf", "below/b.md", ".hidden.txt"):
        (tmp_path / "empty" / name).write_text("x")
    check_refused(DataError, f'{where} (2 other files, such as "a.pdf"); {fix} in .txt', **flags)


# --- single files -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the shared data is not here")
def test_the_usual_split_of_tinyshakespeare():
    text = SHAKESPEARE.read_bytes().decode("utf-8")
    found = load_corpus(train_file=[str(SHAKESPEARE)])
    cut = int(0.9 * len(text))
    assert list(found.train) == [text[:cut]]
    assert list(found.validation) == [text[cut:]]
    assert found.notes == (
        "no --validation_file: the last 10% of the characters of the file (111,540 of 1,115,394 bytes) are held out "
        "for validation",
    )


@pytest.mark.parametrize("number", [2, 3, 9, 10, 11, 100, 101])
def test_characters_are_counted_not_bytes(tmp_path, number):
    text = ("é東😀\r\n" * number)[:number]
    (tmp_path / "one.txt").write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    found = load_corpus(train_file=[str(tmp_path / "one.txt")])
    assert list(found.train) == [text[: int(0.9 * number)]]
    assert list(found.validation) == [text[int(0.9 * number) :]]


def test_several_files(folder):
    path = folder(12)
    files = [str(path / f"{place:02}.txt") for place in (4, 2, 11)]
    found = load_corpus(train_file=files, validation_file=str(path / "07.txt"))
    assert list(found.train) == [text_of(4), text_of(2), text_of(11)]
    assert list(found.validation) == [text_of(7)]
    assert found.train.source == f"{path}/04.txt and 2 more"
    assert len(load_corpus(train_file=[*files, *sorted(map(str, path.iterdir()))]).validation) == 1


def test_one_character_is_not_enough(tmp_path):
    (tmp_path / "one.txt").write_text("x")
    fault = (
        f"{tmp_path}/one.txt: one character is too little to hold some out; give more text, or --validation_file FILE"
    )
    check_refused(DataError, fault, train_file=[str(tmp_path / "one.txt")])


def test_a_part_without_a_character_is_left_out(tmp_path):
    for name, text in (("a.txt", "x"), ("b.txt", "0123456789")):
        (tmp_path / name).write_text(text)
    found = load_corpus(corpus_dir=str(tmp_path))
    assert list(found.train) == ["012345678"]
    assert list(found.validation) == ["x", "9"]


def test_a_blank_file(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    fault = f"{tmp_path}/a.txt: the file is blank; give files with text in them"
    check_refused(DataError, fault, train_file=[str(tmp_path / "a.txt")])
    (tmp_path / "b.txt").write_text("text")
    check_refused(DataError, fault, train_file=[str(tmp_path / "b.txt")], validation_file=str(tmp_path / "a.txt"))


def test_a_binary_file_is_named(folder):
    path = folder(12)
    (path / "05.txt").write_bytes(b"text\x00")
    fault = f"{path}/05.txt: byte 4 is NUL, so it is not text; save it as UTF-8, or leave the file out"
    check_refused(DataError, fault, corpus_dir=str(path))


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"corpus_dir": "no/such"}, "--corpus_dir no/such: no such folder; check the path"),
        ({"corpus_dir": ""}, "--corpus_dir : no such folder; check the path"),
        ({"corpus_dir": __file__}, f"--corpus_dir {__file__} is a file, not a folder; give it as --train_file"),
        (
            {"corpus_dir": "a", "train_file": ["b"]},
            "--corpus_dir a and --train_file name two sources of text; leave one of them out",
        ),
        (
            {"corpus_dir": "a", "dataset": "sample"},
            '--corpus_dir a and --dataset "sample" name two sources of text; leave one of them out',
        ),
        (
            {"train_file": ["b"], "dataset": "sample"},
            '--dataset "sample" and --train_file name two sources of data; leave one of them out',
        ),
        (
            {"validation_file": "b"},
            "--validation_file is given without --train_file; add --train_file FILE, or drop both",
        ),
        (
            {"corpus_dir": ".", "dataset_config": "x"},
            '--dataset_config "x" is about a set of the hub, and --corpus_dir is none; leave it out',
        ),
        (
            {"corpus_dir": ".", "text_field": "x"},
            '--text_field "x" is about a set of the hub, and --corpus_dir is none; leave it out',
        ),
        (
            {"train_file": ["b"], "text_field": "x"},
            '--text_field "x" is about a set of the hub, and --train_file is none; leave it out',
        ),
        (
            {"dataset": "sample", "text_field": "x"},
            '--text_field "x" is about a set of the hub, and --dataset sample is none; leave it out',
        ),
        ({"dataset": __file__}, None),
        (
            {"dataset": "wikitext"},
            '--dataset "wikitext" is not sample, a folder, or owner/name on the Hugging Face hub; write such a name in '
            "full, as Salesforce/wikitext",
        ),
    ],
)
def test_flags_that_contradict_each_other(flags, message):
    if message is None:
        with pytest.raises(ConfigError, match="is a file; give it as --train_file$"):
            load_corpus(**flags)
    else:
        check_refused(ConfigError, message, **flags)


# --- the built-in sample ----------------------------------------------------------------------------------------------


def test_the_sample(monkeypatch):
    monkeypatch.setattr(sample, "text_sample", lambda real=sample.text_sample: real(num_train=40, num_validation=6))
    found = load_corpus(dataset="sample", seed=1, sample_size=30, validation_size=5)
    assert (len(found.train), len(found.validation)) == (30, 5)
    assert found.train.source == "the built-in sample, train"
    assert found.validation.source == "the built-in sample, validation"
    assert found.notes == ()
    whole = [load_corpus(dataset="sample", seed=seed) for seed in (0, 1)]
    assert whole[0].train.fingerprint == whole[1].train.fingerprint
    assert set(found.train) < set(whole[0].train)
    assert found.train.fingerprint != load_corpus(dataset="sample", seed=2, sample_size=30).train.fingerprint


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub with one set, whose parts a test fills, and the names that it was asked for."""
    splits, asked = datasets.DatasetDict(), []

    def load(name, local_ways, notes, config_name=None):
        asked.append((name, config_name))
        notes.append("from the hub")
        return splits

    monkeypatch.setattr(corpus_sources, "load_hub_dataset", load)
    return splits, asked


def of_texts(*texts: str, column: str = "text") -> datasets.Dataset:
    return datasets.Dataset.from_dict({column: list(texts)})


def test_wikitext_by_default(hub):
    splits, asked = hub
    splits["train"] = of_texts("", " = One = \n", "", " text\n", " = Two = \n", " text\n")
    splits["validation"] = of_texts(" = Three = \n", " text\n")
    found = load_corpus()
    assert list(found.train) == [" = One = \n\n text\n", " = Two = \n text\n"]
    assert list(found.validation) == [" = Three = \n text\n"]
    assert found.notes == ("from the hub",)
    assert found.train.source == "Salesforce/wikitext, split train"
    load_corpus(dataset_config="wikitext-103-raw-v1")
    load_corpus(dataset="Salesforce/wikitext")
    assert asked == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
        ("Salesforce/wikitext", "wikitext-103-raw-v1"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    ]


def test_other_sets_have_a_document_a_row(hub):
    splits, asked = hub
    splits["train"] = of_texts("one\n", " = Two = \n", "", "three", column="story")
    splits["validation"] = of_texts("four", "five", column="story")
    found = load_corpus(dataset="owner/name", dataset_config="plain", text_field="story", validation_size=1)
    assert list(found.train) == ["one\n", " = Two = \n", "three"]
    assert list(found.validation) == ["four"]
    assert asked == [("owner/name", "plain")]
    load_corpus(dataset="owner/name", text_field="story")
    assert asked[1] == ("owner/name", None)
    few = load_corpus(dataset="owner/name", text_field="story", sample_size=2)
    assert (len(few.train), len(few.validation)) == (2, 2)


def test_hub_set_without_a_split_column_or_text(hub):
    splits, _ = hub
    splits["train"] = of_texts("a", column="story")
    fix = "name the column of the text with --text_field COLUMN"
    fault = f'--dataset "owner/name" has no column "text" (there is "story"); {fix}'
    check_refused(DataError, fault, dataset="owner/name")
    fault = '--dataset "owner/name" has no split validation (there is train); name another one, or use --corpus_dir FOL'
    with pytest.raises(DataError, match=f"^{re.escape(fault)}"):
        load_corpus(dataset="owner/name", text_field="story")
    splits["validation"] = of_texts("", " ", column="story")
    fault = (
        'owner/name, split validation: all 2 rows are blank in column "story"; name another with --text_field COLUMN'
    )
    check_refused(DataError, fault, dataset="owner/name", text_field="story")


def test_a_local_folder_of_rows(tmp_path, empty_cache):
    folder = tmp_path / "my-wikitext"
    folder.mkdir()
    for name in ("train", "validation"):
        rows = [" = One = ", "text", " = Two = ", name]
        lines = (json.dumps({"text": row}) for row in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = load_corpus(dataset=str(folder))
    assert list(found.train) == [" = One = \ntext\n", " = Two = \ntrain\n"]
    assert found.notes == (
        "warning: the training data holds 1 of the 2 validation documents too; validation scores will be too good",
    )
