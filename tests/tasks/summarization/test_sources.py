"""Which documents with summaries a run gets: from files, the sample or the hub; what is said about it."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from him.config import Config
from him.core.errors import ConfigError, DataError
from him.data.records import Pair, PairData
from him.data.sources import Splits
from him.tasks.summarization import sources
from him.tasks.summarization.sources import hold_out

REPOSITORY = Path(__file__).parents[3]
LEAK = "warning: {} of the {} validation documents are in the training data too; validation scores will be too good"


def load_pairs(**settings) -> Splits:
    return sources.load_pairs(Config(task_type="summarization", **settings))


def made_up(num_pairs: int, name: str = "made up") -> PairData:
    return PairData(tuple(Pair(str(n), f"{name}, document {n}", (f"summary {n}",)) for n in range(num_pairs)), name)


def records_of(data: PairData) -> list[dict]:
    return [{"id": pair.id, "document": pair.document, "summary": pair.summaries[0]} for pair in data.pairs]


def write(path: Path, records: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return str(path)


def documents(data: PairData) -> list[str]:
    return [pair.document for pair in data.pairs]


def check_one_line(error: pytest.ExceptionInfo) -> None:
    assert str(error.value).isprintable() and "; " in str(error.value)


@pytest.fixture
def file_of(tmp_path):
    """Writes `made_up` pairs to a file and tells its name."""
    return lambda num_pairs, name="a": write(tmp_path / f"{name}.jsonl", records_of(made_up(num_pairs, name)))


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"validation_file": "v.jsonl"}, "--validation_file is given without --train_file; add --train_file FILE"),
        ({"dataset": "sample", "train_file": ["a.jsonl"]}, '--dataset "sample" and --train_file name two sources'),
        ({"dataset": "xsum"}, '"xsum" is not sample, a folder, or owner/name .* in full, as abisee/cnn_dailymail$'),
        (
            {"dataset": "sample", "document_field": "text"},
            "--document_field names a field of your own data, not of --dataset sample; leave it out",
        ),
        ({"dataset": "sample", "summary_field": "text"}, "--summary_field names a field of your own data"),
        (
            {"dataset": "sample", "dataset_config": "3.0.0"},
            '--dataset_config "3.0.0" chooses .* sample has none; leave',
        ),
        ({"train_file": ["a.jsonl"], "dataset_config": "x"}, "and --train_file has none; leave it out"),
        ({"train_file": ["a.jsonl"], "document_field": "x", "summary_field": "x"}, 'are both "x"; name two different'),
        ({"document_field": "highlights"}, '--document_field and --summary_field are both "highlights"'),
        ({"dataset": "a/b", "summary_field": ""}, "--summary_field is blank; give the name of a field"),
    ],
)
def test_flags_that_contradict_or_are_out_of_range(flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_pairs(**flags)
    check_one_line(error)


# --- local files -----------------------------------------------------------------------------------------------------


def test_train_and_validation_file(file_of):
    splits = load_pairs(train_file=[file_of(3)], validation_file=file_of(2, "b"))
    assert splits.train.pairs == made_up(3, "a").pairs and splits.validation.pairs == made_up(2, "b").pairs
    assert splits.notes == () and splits.validation.source.endswith("b.jsonl")


def test_fields_hold_for_all_files(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": "d", "tldr": "s"}])
    (tmp_path / "b.csv").write_text("tldr,text\ns,e\n", encoding="utf-8")
    splits = load_pairs(
        train_file=[train], validation_file=str(tmp_path / "b.csv"), document_field="text", summary_field="tldr"
    )
    assert splits.train.pairs == (Pair("0", "d", ("s",)),) and splits.validation.pairs == (Pair("0", "e", ("s",)),)


def test_several_train_files_are_joined_and_their_ids_kept_apart(file_of):
    files = [file_of(2, "a"), file_of(3, "b"), file_of(1, "c")]
    splits = load_pairs(train_file=files, validation_file=file_of(1, "d"))
    assert [pair.id for pair in splits.train.pairs] == ["0", "1", "2/0", "2/1", "2", "3/0"]
    parts = (made_up(2, "a"), made_up(3, "b"), made_up(1, "c"))
    assert documents(splits.train) == [document for part in parts for document in documents(part)]
    assert splits.train.source == ", ".join(files)


def test_documents_in_training_and_validation_are_noted(file_of):
    splits = load_pairs(train_file=[file_of(5)], validation_file=file_of(5))
    assert splits.notes == (LEAK.format(5, 5),)
    splits = load_pairs(train_file=[file_of(5)], validation_file=file_of(5), sample_size=2, validation_size=4)
    assert splits.notes == (LEAK.format(2, 4),)


def test_fault_in_a_file_names_the_file(file_of, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load_pairs(train_file=[file_of(1), str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        load_pairs(train_file=[file_of(1)], validation_file=str(tmp_path / "none.csv"))


def test_sizes_take_the_first_pairs(file_of):
    splits = load_pairs(train_file=[file_of(9)], validation_file=file_of(8, "b"), sample_size=4, validation_size=3)
    assert splits.train.pairs == made_up(9, "a").pairs[:4] and splits.validation.pairs == made_up(8, "b").pairs[:3]
    assert splits.notes == ()


def test_sizes_beyond_the_data_take_all_and_say_so(file_of):
    splits = load_pairs(train_file=[file_of(3)], validation_file=file_of(2, "b"), sample_size=5_000, validation_size=3)
    assert len(splits.train) == 3 and len(splits.validation) == 2
    assert splits.notes == (
        "--sample_size 5,000: there are only 3 training pairs",
        "--validation_size 3: there are only 2 validation pairs",
    )


# --- holding out -----------------------------------------------------------------------------------------------------


def test_a_twentieth_of_the_documents_is_held_out(file_of):
    splits = load_pairs(train_file=[file_of(60)], seed=3)
    assert len(splits.train) == 57 and len(splits.validation) == 3
    assert sorted(documents(splits.train) + documents(splits.validation)) == sorted(documents(made_up(60, "a")))
    assert splits.notes == ("no --validation_file: 3 of 60 documents, chosen by --seed 3, are held out for validation",)


def test_the_seed_alone_decides_what_is_held_out():
    chosen = [documents(hold_out(made_up(50), 0.1, seed, [])[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("num_pairs", "share", "expected"), [(2, 0.05, 1), (2, 0.9, 1), (10, 0.25, 2), (3, 0.99, 2)])
def test_neither_part_is_ever_empty(num_pairs, share, expected):
    train, validation = hold_out(made_up(num_pairs), share, 0, [])
    assert len(validation) == expected and len(train) == num_pairs - expected


def test_a_document_that_occurs_twice_falls_on_one_side():
    pairs = made_up(20).pairs
    data = PairData((*pairs, *(Pair(f"{pair.id} again", pair.document, ("other",)) for pair in pairs)), "x")
    for seed in range(10):
        train, validation = hold_out(data, 0.1, seed, [])
        assert len(validation) == 4 and not set(documents(train)) & set(documents(validation))


def test_a_single_document_cannot_be_held_out(file_of):
    with pytest.raises(DataError, match=r"a\.jsonl: there is only one document, .*; give --validation_file") as error:
        load_pairs(train_file=[file_of(1)])
    check_one_line(error)


# --- the sample ------------------------------------------------------------------------------------------------------


def test_sample_is_sound_and_the_same_whatever_the_seed():
    splits = load_pairs(dataset="sample", seed=0, sample_size=50, validation_size=20)
    assert len(splits.train) == 50 and len(splits.validation) == 20 and splits.notes == ()
    assert splits.train.source == "the built-in sample, train"
    assert load_pairs(dataset="sample", seed=1, sample_size=50, validation_size=20) == splits
    few = load_pairs(dataset="sample", sample_size=5, validation_size=2)
    assert few.train.pairs == splits.train.pairs[:5] and few.validation.pairs == splits.validation.pairs[:2]


def test_sample_has_its_own_size_if_none_is_asked_for(monkeypatch):
    asked = []
    rows = records_of(made_up(3)), records_of(made_up(2, "other"))
    monkeypatch.setattr("him.data.sample.summarization_sample", lambda **sizes: asked.append(sizes) or rows)
    splits = load_pairs(dataset="sample")
    assert asked == [{}] and len(splits.train) == 3 and len(splits.validation) == 2


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_gives(monkeypatch, reachable):
    """Makes the hub answer with splits of rows; returns what it is asked for."""

    def give(**splits: list[dict]) -> list[tuple]:
        asked: list[tuple] = []
        made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
        monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or made)
        return asked

    return give


def articles(num_rows: int, name: str) -> list[dict]:
    return [{"id": f"{name}{n}", "article": f"{name} article {n}", "highlights": f"{n}"} for n in range(num_rows)]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ({}, ("abisee/cnn_dailymail", "3.0.0")),
        ({"dataset": "abisee/cnn_dailymail", "dataset_config": "1.0.0"}, ("abisee/cnn_dailymail", "1.0.0")),
        ({"dataset": "a/b", "document_field": "article", "summary_field": "highlights"}, ("a/b", None)),
    ],
)
def test_hub_rows_become_pairs(hub_gives, flags, asked):
    calls = hub_gives(train=articles(3, "t"), validation=articles(2, "v"), test=articles(1, "x"))
    splits = load_pairs(**flags)
    assert calls == [asked]
    assert splits == Splits(
        PairData(tuple(Pair(f"t{n}", f"t article {n}", (f"{n}",)) for n in range(3)), f"{asked[0]}, split train"),
        PairData(tuple(Pair(f"v{n}", f"v article {n}", (f"{n}",)) for n in range(2)), f"{asked[0]}, split validation"),
    )


def test_one_field_of_the_default_set_may_be_another(hub_gives):
    rows = [{"article": "a", "highlights": "b", "title": "c"}, {"article": "d", "highlights": "e", "title": "f"}]
    hub_gives(train=rows[:1], validation=rows[1:])
    assert load_pairs(summary_field="title").train.pairs == (Pair("row 1", "a", ("c",)),)


def test_sizes_of_a_hub_set(hub_gives):
    hub_gives(train=articles(9, "t"), validation=articles(9, "v"))
    splits = load_pairs(sample_size=3, validation_size=20)
    assert [pair.id for pair in splits.train.pairs] == ["t0", "t1", "t2"] and len(splits.validation) == 9
    assert splits.notes == ("--validation_size 20: there are only 9 validation pairs",)


def test_references_of_a_hub_set(hub_gives):
    rows = [{"document": f"{n}", "summaries": ["a", "b", "a"]} for n in range(2)]
    hub_gives(train=rows[:1], validation=rows[1:])
    assert load_pairs(dataset="a/b").train.pairs == (Pair("row 1", "0", ("a", "b")),)


def test_rows_that_nobody_can_fix_are_left_out_and_counted(hub_gives):
    train = [{"id": n // 2, "document": f"d{n}", "summary": f"s{n}"} for n in range(8)]
    train[1]["document"], train[2]["summary"], train[4]["document"], train[5]["id"] = "", " \n", None, None
    hub_gives(train=train, validation=[{"id": "x", "document": "d", "summary": "s"}])
    splits = load_pairs(dataset="a/b")
    assert documents(splits.train) == ["d0", "d3", "d5", "d6", "d7"]
    assert [pair.id for pair in splits.train.pairs] == ["0", "1", "row 6", "3", "row 8"]
    assert splits.notes == ("a/b, split train: 3 rows without a document or a summary are left out",)


def test_hub_set_with_nothing_but_blank_rows(hub_gives):
    hub_gives(train=[{"document": "", "summary": "s"}], validation=[{"document": "d", "summary": "s"}])
    with pytest.raises(DataError, match="^a/b, split train: there is no record in it; give at least one"):
        load_pairs(dataset="a/b")


def test_hub_set_without_validation_split(hub_gives):
    hub_gives(train=articles(2, "t"), test=articles(2, "v"))
    expected = (
        r'^--dataset "abisee/cnn_dailymail" has no split validation \(there is train, test\); name another one, or'
    )
    with pytest.raises(DataError, match=expected) as error:
        load_pairs()
    check_one_line(error)


@pytest.mark.parametrize(
    ("flags", "missing"),
    [({}, '"document", "summary"'), ({"document_field": "article"}, '"summary"'), ({"summary_field": "x"}, '.*"x"')],
)
def test_hub_set_without_a_column(hub_gives, flags, missing):
    hub_gives(train=articles(2, "t"), validation=articles(2, "v"))
    expected = (
        rf'^--dataset "a/b" has no column {missing} \(there is "id", "article", "highlights"\); '
        "name the columns of its texts with --document_field and --summary_field$"
    )
    with pytest.raises(DataError, match=expected) as error:
        load_pairs(dataset="a/b", **flags)
    check_one_line(error)


def test_column_that_is_not_text(hub_gives):
    hub_gives(train=[{"document": 5, "summary": "s"}], validation=[{"document": 5, "summary": "s"}])
    expected = '^a/b, split train: row 1: "document" is 5, not text; .* name another field with --document_field'
    with pytest.raises(DataError, match=expected):
        load_pairs(dataset="a/b")


def test_local_folder(tmp_path, empty_cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, size in (("train", 3), ("validation", 2)):
        write(folder / f"{name}.jsonl", records_of(made_up(size, name)))
    splits = load_pairs(dataset=str(folder))
    assert splits.train.pairs == made_up(3, "train").pairs and splits.validation.pairs == made_up(2, "validation").pairs


def test_datasets_is_imported_only_for_the_hub(file_of):
    """It takes 0.6 s, which flag errors and local files should not pay."""
    program = f"""
import sys
from him.config import Config
from him.tasks.summarization.sources import load_pairs
load_pairs(Config(task_type=\"summarization\", train_file=[{file_of(3)!r}]))
assert not {{"datasets", "torch", "huggingface_hub", "pyarrow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
