"""Which question-answering data a run gets: from files, the sample or the hub; what is said about it."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from him.config import Config
from him.core.errors import ConfigError, DataError
from him.data.sources import Splits
from him.tasks.squad import sources
from him.tasks.squad.reader import Answer, Paragraph, Question, SquadData, read_squad
from him.tasks.squad.sources import first_questions, hold_out

REPOSITORY = Path(__file__).parents[3]
V1 = str(REPOSITORY / "tests" / "fixtures" / "squad_v1.json")
V2 = str(REPOSITORY / "tests" / "fixtures" / "squad_v2.json")
SHARED = REPOSITORY.parent / "shared" / "data"


def load_squad(**settings) -> Splits:
    return sources.load_squad(Config(task_type="squad", **settings))


def made_up(num_articles: int, paragraphs_each: int = 2, questions_each: int = 3) -> SquadData:
    """Data with ids such as `a0p1q2`, whose contexts all differ."""
    return SquadData.from_paragraphs(
        (
            Paragraph(
                f"title {a}",
                f"context {a} {p}",
                tuple(
                    Question(f"a{a}p{p}q{q}", f"question {q}", (Answer("context", 0),), False)
                    for q in range(questions_each)
                ),
            )
            for a in range(num_articles)
            for p in range(paragraphs_each)
        ),
        "made up",
    )


def write_squad(path: Path, data: SquadData) -> str:
    articles = [
        {
            "title": p.title,
            "paragraphs": [
                {
                    "context": p.context,
                    "qas": [
                        {
                            "id": q.id,
                            "question": q.text,
                            "answers": [{"text": a.text, "answer_start": a.start} for a in q.answers],
                        }
                        for q in p.questions
                    ],
                }
            ],
        }
        for p in data.paragraphs
    ]
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return str(path)


def ids(data: SquadData) -> list[str]:
    return [question.id for paragraph in data.paragraphs for question in paragraph.questions]


def check_one_line(error: pytest.ExceptionInfo) -> None:
    assert str(error.value).isprintable() and "; " in str(error.value)


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"validation_file": V1}, "--validation_file is given without --train_file; add --train_file FILE"),
        (
            {"dataset": "sample", "train_file": [V1]},
            '--dataset "sample" and --train_file name two sources of data; leave one of them out',
        ),
        ({"dataset": "a/b", "validation_file": V1}, '--dataset "a/b" and --validation_file name two sources'),
        ({"dataset": V1}, "is a file; give it as --train_file"),
        (
            {"dataset": "squad_v2"},
            '--dataset "squad_v2" is not sample, a folder, or owner/name .*; write such a name in',
        ),
        ({"dataset": "json"}, '--dataset "json" is not sample, a folder, or owner/name'),  # a reader of `datasets`
        ({"dataset": "a/b/c"}, '--dataset "a/b/c" is not'),
        ({"dataset": "../no-such-folder"}, '--dataset "../no-such-folder" is not'),
        (
            {"dataset_config": "v1", "train_file": [V1]},
            '--dataset_config "v1" chooses among configurations of a hub set, and --train_file has none; leave it out',
        ),
        ({"dataset_config": "v1", "dataset": "sample"}, "hub set, and --dataset sample has none; leave it out"),
        ({"dataset": "bad name!\n"}, r'--dataset "bad name!\\n" is not'),
    ],
)
def test_flags_that_contradict_or_are_out_of_range(flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_squad(**flags)
    check_one_line(error)


# --- local files -----------------------------------------------------------------------------------------------------


def test_train_and_validation_file():
    splits = load_squad(train_file=[V1], validation_file=V2, seed=0)
    assert splits.train == read_squad(V1)
    assert splits.validation == read_squad(V2) and splits.validation.has_impossible
    assert splits.notes == (
        "warning: 1 of the 1 validation contexts are in the training data too; validation scores will be too good",
    )


def test_files_apart_need_no_note(tmp_path):
    train = write_squad(tmp_path / "a.json", made_up(2))
    assert load_squad(train_file=[train], validation_file=V1).notes == ()


def test_several_train_files_are_joined_and_repeats_dropped():
    splits = load_squad(train_file=[V1, V2], validation_file=V1, seed=0)
    assert ids(splits.train) == ["orsa1", "orsa2", "orsa3", "mill1", "mill2"]
    assert [len(paragraph.questions) for paragraph in splits.train.paragraphs] == [2, 1, 2]
    assert splits.train.has_impossible and splits.train.source == f"{V1}, {V2}"
    assert splits.notes[0] == "questions that stand in several training files are taken once (1 dropped)"


def test_the_same_file_twice_counts_once():
    assert load_squad(train_file=[V1, V1], validation_file=V2).train.paragraphs == read_squad(V1).paragraphs


@pytest.mark.parametrize(
    ("context", "text", "answer", "message"),
    [
        ("other 0 0", "question 0", "other", "context"),
        ("context 0 0", "Else?", "context", "question or answers"),
        ("context 0 0", "question 0", "0", "question or answers"),
    ],
)
def test_one_id_for_two_questions_is_refused(tmp_path, context, text, answer, message):
    first = write_squad(tmp_path / "a.json", made_up(1))
    question = Question("a0p0q0", text, (Answer(answer, context.index(answer)),), False)
    other = SquadData.from_paragraphs([Paragraph("title 0", context, (question,))], "b")
    second = write_squad(tmp_path / "b.json", other)
    expected = rf'b\.json: the id "a0p0q0" is in .*a\.json too, with another {message}; give each question an id of its'
    with pytest.raises(DataError, match=expected) as error:
        load_squad(train_file=[first, second])
    check_one_line(error)


def test_fault_in_a_file_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        load_squad(train_file=[V1, str(tmp_path / "none.json")])
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        load_squad(train_file=[V1], validation_file=str(tmp_path / "none.json"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data here")
def test_squad_and_squad_v2_can_be_mixed():
    """4,420 of the questions stand in both, word for word."""
    files = [str(SHARED / name / "train.json") for name in ("squad", "squad_v2")]
    splits = load_squad(train_file=files, validation_file=str(SHARED / "squad" / "validation.json"))
    assert splits.train.num_questions == 6_618 + 8_760 - 4_420
    assert len({paragraph.context for paragraph in splits.train.paragraphs}) == len(splits.train.paragraphs)
    assert splits.notes == ("questions that stand in several training files are taken once (4,420 dropped)",)


# --- holding out -----------------------------------------------------------------------------------------------------


def test_a_tenth_of_the_articles_is_held_out(tmp_path):
    path = write_squad(tmp_path / "a.json", made_up(30))
    splits = load_squad(train_file=[path], seed=3)
    titles = [{paragraph.title for paragraph in part.paragraphs} for part in (splits.train, splits.validation)]
    assert len(titles[0]) == 27 and len(titles[1]) == 3 and not titles[0] & titles[1]
    assert sorted(ids(splits.train) + ids(splits.validation)) == sorted(ids(made_up(30)))
    assert splits.notes == (
        "no --validation_file: 3 of 30 articles (18 of 180 questions), chosen by --seed 3, are held out for validation",
    )


def test_the_seed_alone_decides_what_is_held_out():
    chosen = [ids(hold_out(made_up(30), 0.1, seed, [])[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("num_articles", "share", "expected"), [(2, 0.1, 1), (2, 0.9, 1), (10, 0.25, 2), (3, 0.99, 2)])
def test_neither_part_is_ever_empty(num_articles, share, expected):
    notes = []
    train, validation = hold_out(made_up(num_articles), share, 0, notes)
    assert len({p.title for p in validation.paragraphs}) == expected
    assert len({p.title for p in train.paragraphs}) == num_articles - expected


def test_contexts_are_held_out_where_there_is_one_title():
    """One context that stands there twice falls on one side."""
    data = made_up(1, paragraphs_each=20)
    again = Paragraph("title 0", "context 0 3", (Question("again", "Why?", (Answer("context", 0),), False),))
    data = SquadData.from_paragraphs([*data.paragraphs, again], "made up")
    for seed in range(20):
        notes = []
        train, validation = hold_out(data, 0.1, seed, notes)
        assert len({p.context for p in validation.paragraphs}) == 2
        assert not {p.context for p in train.paragraphs} & {p.context for p in validation.paragraphs}
        assert notes[0].startswith("no --validation_file: 2 of 20 contexts (")


def test_a_single_context_cannot_be_held_out(tmp_path):
    path = write_squad(tmp_path / "a.json", made_up(1, paragraphs_each=1))
    with pytest.raises(
        DataError, match=r"a\.json: there is only one context, .*; give --validation_file FILE"
    ) as error:
        load_squad(train_file=[path])
    check_one_line(error)


def test_sample_size_takes_the_first_questions_and_leaves_validation_whole(tmp_path):
    data = made_up(4)
    path = write_squad(tmp_path / "a.json", data)
    splits = load_squad(train_file=[path], validation_file=V1, sample_size=7)
    assert ids(splits.train) == ids(data)[:7]
    assert [len(paragraph.questions) for paragraph in splits.train.paragraphs] == [3, 3, 1]
    assert splits.validation == read_squad(V1)


def test_sample_size_beyond_the_data_takes_all_and_says_so():
    notes = []
    assert first_questions(made_up(2), 5_000, notes) == made_up(2)
    assert notes == ["--sample_size 5,000: there are only 12 training questions"]
    assert first_questions(made_up(2), 12, notes) == made_up(2) and len(notes) == 1


# --- the sample ------------------------------------------------------------------------------------------------------


@pytest.mark.run
def test_sample_is_sound_and_the_same_whatever_the_seed():
    pytest.importorskip("him.data.sample")
    splits = load_squad(dataset="sample", seed=0)
    assert splits.train.num_questions > splits.validation.num_questions > 0 and splits.notes == ()
    assert load_squad(dataset="sample", seed=1) == splits
    assert load_squad(dataset="sample", sample_size=5).train.num_questions == 5


# --- the hub ---------------------------------------------------------------------------------------------------------


def rows_of(data: SquadData) -> list[dict]:
    return [
        {
            "id": question.id,
            "title": paragraph.title,
            "context": paragraph.context,
            "question": question.text,
            "answers": {
                "text": [a.text for a in question.answers],
                "answer_start": [a.start for a in question.answers],
            },
        }
        for paragraph in data.paragraphs
        for question in paragraph.questions
    ]


def hub_copy(**splits: SquadData) -> datasets.DatasetDict:
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows_of(data)) for name, data in splits.items()})


@pytest.mark.parametrize(("flag", "config", "name"), [(None, None, "rajpurkar/squad"), ("me/mine", "v2", "me/mine")])
def test_hub_rows_become_paragraphs(monkeypatch, reachable, flag, config, name):
    asked = []
    answer = hub_copy(train=read_squad(V2), validation=read_squad(V1))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or answer)
    splits = load_squad(dataset=flag, dataset_config=config)
    assert asked == [(name, config)]
    assert splits.train.paragraphs == read_squad(V2).paragraphs and splits.train.has_impossible
    assert splits.validation.paragraphs == read_squad(V1).paragraphs
    assert splits.train.source == f"{name}, split train"


def test_hub_set_without_a_split_or_a_column(monkeypatch, reachable):
    data = read_squad(V1)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: hub_copy(train=data, test=data))
    expected = (
        r'--dataset "a/b" has no split validation \(there is train, test\); name another one, or use --train_file'
    )
    with pytest.raises(DataError, match=expected) as error:
        load_squad(dataset="a/b")
    check_one_line(error)
    without = hub_copy(train=data, validation=data).remove_columns(["id", "answers"])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: without)
    expected = r'"a/b" has no column "id", "answers" \(there is "title", "context", "question"\); name a set'
    with pytest.raises(DataError, match=expected) as error:
        load_squad(dataset="a/b")
    check_one_line(error)


def test_hub_rows_are_checked(monkeypatch, reachable):
    data = SquadData.from_paragraphs([Paragraph("t", "A cat.", (Question("q", "?", (Answer("dog", 2),), False),))], "x")
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config: hub_copy(train=data, validation=data))
    with pytest.raises(
        DataError, match=r'^a/b, split train: row 1 \(id q\), answer 1: the answer "dog" is not at char'
    ):
        load_squad(dataset="a/b")


def test_local_folder_of_rows(tmp_path, empty_cache):
    """What the reader of SQuAD files advises for JSON Lines."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, file in (("train", V2), ("validation", V1)):
        text = "\n".join(map(json.dumps, rows_of(read_squad(file))))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    splits = load_squad(dataset=str(folder))
    assert splits.train.paragraphs == read_squad(V2).paragraphs
    assert splits.validation.paragraphs == read_squad(V1).paragraphs


def test_datasets_is_imported_only_for_the_hub():
    """It takes 0.6 s, which flag errors and local files should not pay."""
    program = f"""
import sys
from him.config import Config
from him.tasks.squad.sources import load_squad
load_squad(Config(task_type=\"squad\", train_file=[{V1!r}], validation_file={V2!r}))
assert not {{"datasets", "torch", "huggingface_hub"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
