"""A finished run as something that answers: single questions, long contexts, odd texts, damaged folders."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

import him
from him.core.errors import CheckpointError, ConfigError, DataError
from him.core.files import write_checksums
from him.tasks.squad.reader import read_squad, squad_from_document
from him.workflows.predict import Predictor
from tests.small_runs import trained_run, trained_writer, tree

CONTEXT = "Ann Bell built the mill in 1902. Her brother Tom Reed sold it to the town of Norwick in 1910."


@pytest.fixture(scope="module")
def settings() -> dict:
    return trained_run(1)[0]


@pytest.fixture(scope="module")
def run() -> Path:
    return trained_run(1)[1]


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return him.load(run)


@pytest.fixture(scope="module")
def v2_predictor() -> Predictor:
    return him.load(trained_run(2)[1])


@pytest.fixture
def copied(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


# -- answers -----------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_part_of_its_context(predictor):
    answer = predictor.predict(question="Who built the mill?", context=CONTEXT)
    assert answer.text
    assert answer.text == CONTEXT[answer.start : answer.end]
    assert 0 < answer.score <= 1
    assert (answer.no_answer_probability, answer.answerable) == (0.0, True)
    assert 1 <= len(answer.alternatives) <= 4
    scores = [answer.score, *(score for _, score in answer.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1 + 1e-9
    assert all(text in CONTEXT for text, _ in answer.alternatives)
    assert len({answer.text, *(text for text, _ in answer.alternatives)}) > 1


def test_the_same_question_has_the_same_answer(predictor):
    answers = [predictor.predict(question="Who sold it?", context=CONTEXT) for _ in range(2)]
    assert answers[0] == answers[1]


def test_no_answer_is_longer_than_asked_for(run):
    limited = him.load(run, max_answer_words=1)
    answer = limited.predict(question="Who built the mill?", context=CONTEXT)
    assert re.fullmatch(r"\w+|[^\w\s]", answer.text)


def test_a_long_context_is_read_to_its_end(predictor, settings):
    """The same question about a text of many windows: the answer lies far beyond the first one."""
    data = read_squad(settings["validation_file"])
    paragraph = data.paragraphs[0]
    filler = "Rain fell on the hills and the river rose by a little every day. " * 40
    expected = [predictor.predict(question=q.text, context=paragraph.context) for q in paragraph.questions]
    found = [predictor.predict(question=q.text, context=filler + paragraph.context) for q in paragraph.questions]
    features = predictor.task._features(
        squad_from_document(
            {"data": [{"paragraphs": [{"context": filler, "qas": [{"id": "1", "question": "Who?"}]}]}]},
            "test",
            answers_required=False,
        )
    )
    assert len(features.window_start) > 8
    for answer in found:
        assert answer.text == (filler + paragraph.context)[answer.start : answer.end]
    beyond = [answer for answer in found if answer.start >= len(filler)]
    assert len(beyond) >= len(found) / 2, "the filler answers nothing"
    assert {answer.text for answer in beyond} & {answer.text for answer in expected}


@pytest.mark.parametrize("layout", [{"max_seq_len": 512, "doc_stride": 32}, {"max_seq_len": 96, "doc_stride": 40}])
def test_one_window_or_several_see_the_same_words(run, layout):
    """Whatever the windows, an answer is a part of the text, and all of the text is covered."""
    other = him.load(run, **layout)
    context = " ".join(f"In {1800 + year} the mill made {year} tons of flour." for year in range(60))
    data = squad_from_document(
        {"data": [{"paragraphs": [{"context": context, "qas": [{"id": "1", "question": "How much?"}]}]}]},
        "test",
        answers_required=False,
    )
    features = other.task._features(data)
    covered = set()
    for start, end in zip(features.window_start.tolist(), features.window_end.tolist(), strict=True):
        covered |= set(range(start, end))
    assert covered == set(range(len(features.contexts.ids[0])))
    answer = other.predict(question="How much?", context=context)
    assert answer.text == context[answer.start : answer.end] != ""


def test_one_window_alone_or_in_a_batch(predictor, settings):
    """A file's questions come in batches with others, longer ones; single ones do not."""
    data = read_squad(settings["validation_file"])
    together = predictor.predict_file(settings["validation_file"])
    for paragraph in data.paragraphs[:4]:
        for question in paragraph.questions:
            alone = predictor.predict(question=question.text, context=paragraph.context)
            other = together[question.id]
            assert (alone.text, alone.start, alone.end) == (other.text, other.start, other.end)
            assert alone.score == pytest.approx(other.score, abs=1e-4)


def test_no_answer_probability(v2_predictor, settings):
    """Of questions that belong to another text it is higher than of those that belong to theirs, on average."""
    paragraphs = read_squad(settings["validation_file"]).paragraphs
    own, foreign = [], []
    for number, paragraph in enumerate(paragraphs):
        for found, questions in ((own, paragraph.questions), (foreign, paragraphs[number - 3].questions)):
            for question in questions:
                answer = v2_predictor.predict(question=question.text, context=paragraph.context)
                assert 0 < answer.no_answer_probability < 1
                assert answer.no_answer_probability + answer.score < 1 + 1e-9
                assert answer.text, "the best span is given in any case"
                assert answer.answerable == (answer.no_answer_probability <= v2_predictor.task.no_answer_threshold)
                found.append(answer.no_answer_probability)
    assert sum(foreign) / len(foreign) > sum(own) / len(own) + 0.02


# -- odd texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0\u2003"])
def test_blank_texts(predictor, blank):
    with pytest.raises(DataError, match='^question and context: .*"question" is blank; fill it in') as error:
        predictor.predict(question=blank, context=CONTEXT)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match='^question and context: .*"context" is blank; fill it in'):
        predictor.predict(question="Who?", context=blank)


@pytest.mark.parametrize("value", [None, 3, b"Who?", ["Who?"]])
def test_what_is_no_text(predictor, value):
    with pytest.raises(DataError, match='"question" is .*, not a string'):
        predictor.predict(question=value, context=CONTEXT)


@pytest.mark.parametrize(
    "text",
    [
        "?",
        "x",
        "\u200b",
        "\u200b\u200d?",
        "\ufffd",
        "\x00",
        "東京はどこですか",
        "ما اسمك؟",
        "🦀🦀🦀 crab?",
        "e\u0301\u0301\u0301te\u0301",
        "a" * 5000,
        "word " * 15,
        "İstanbul ẞ ﬁne Ǆ",
        "\r\nWho\r\n?",
        "[CLS] [SEP] [MASK] [PAD] [UNK]",
        "٣ ½ ² Ⅷ",
    ],
)
def test_odd_texts(predictor, v2_predictor, text):
    """Characters that the tokenizer drops, splits, changes the case of or does not know, and long words."""
    for each in (predictor, v2_predictor):
        for question, context in ((text, CONTEXT), ("Who built it?", text), (text, text), (text, f"{text} {CONTEXT}")):
            answer = each.predict(question=question, context=context)
            assert answer.text == context[answer.start : answer.end]
            assert 0 <= answer.score <= 1
            assert 0 <= answer.no_answer_probability <= 1


def test_offsets_count_code_points(predictor):
    context = "🦀 Ānn Bell büilt the mïll 東京 in 1902."
    answer = predictor.predict(question="Who built the mill?", context=context)
    assert answer.text == context[answer.start : answer.end] != ""


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_run_its_best_folder_and_its_old_one_answer_alike(run, copied):
    expected = him.load(run).predict(question="Who?", context=CONTEXT)
    assert him.load(str(run / "best")).predict(question="Who?", context=CONTEXT) == expected
    os.rename(copied / "best", copied / "best.old")
    assert him.load(copied).predict(question="Who?", context=CONTEXT) == expected
    for name in ("checkpoints", "config.json", "metrics.jsonl"):
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert him.load(copied).predict(question="Who?", context=CONTEXT) == expected


def test_using_a_run_changes_nothing_in_it(copied, settings):
    before = tree(copied)
    predictor = him.load(copied)
    predictor.predict(question="Who?", context=CONTEXT)
    predictor.evaluate(settings["validation_file"])
    assert tree(copied) == before


def test_the_model_is_in_eval_mode_and_needs_no_gradient(predictor):
    assert not predictor.model.training
    torch.manual_seed(1)
    one = predictor.predict(question="Who?", context=CONTEXT)
    torch.manual_seed(2)
    assert predictor.predict(question="Who?", context=CONTEXT) == one


def test_settings_for_the_use(run):
    assert him.load(run, device="cpu", num_threads=1).config.device == "cpu"
    with pytest.raises(ConfigError, match="--device gpu is not known"):
        him.load(run, device="gpu")


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="none: no such run; name its folder, such as runs/NAME"):
        him.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no finished model there; train the run first, or go on with --resume"):
        him.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "task.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_models(copied, name, damage):
    path = copied / "best" / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(
        CheckpointError,
        match=r"no finished model there|such file|cannot be read|not a configuration|damaged",
    ) as e:
        him.load(copied)
    assert "\n" not in str(e.value)


def test_a_model_of_another_shape(copied):
    path = copied / "best" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "embed_dim": 64}))
    with pytest.raises(CheckpointError, match=r"config\.json: damaged, its checksum is another one; restore it"):
        him.load(copied)
    write_checksums(copied / "best")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* has shape \[.*\], this model has"):
        him.load(copied)


def test_a_file_without_answers_can_be_predicted_but_not_scored(predictor, settings, tmp_path):
    document = json.loads(Path(settings["validation_file"]).read_text(encoding="utf-8"))
    for paragraph in document["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:
            del question["answers"]
    (tmp_path / "asked.json").write_text(json.dumps(document))
    found = predictor.predict_file(str(tmp_path / "asked.json"))
    expected = predictor.predict_file(settings["validation_file"])
    assert {id: answer.text for id, answer in found.items()} == {id: answer.text for id, answer in expected.items()}
    with pytest.raises(DataError, match='asked.json: .*"answers" is missing'):
        predictor.evaluate(str(tmp_path / "asked.json"))


# -- tasks that write text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["summarization", "lm"])
def writer(request) -> tuple[Path, Predictor]:
    run = trained_writer(request.param)[1]
    return run, him.load(run)


def test_a_writer_answers_alike_each_time(writer):
    run, predictor = writer
    assert not predictor.model.training
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(predictor.predict(text=CONTEXT))
    assert answers[0] == answers[1] == him.load(run / "best").predict(text=CONTEXT)
    sampler = him.load(run, num_beams=1, temperature=1.0)
    state = torch.random.get_rng_state()
    sampler.predict(text=CONTEXT)
    assert torch.equal(torch.random.get_rng_state(), state), "sampling has a generator of its own"


def test_a_writer_takes_settings_for_the_use(writer):
    run, predictor = writer
    assert him.load(run, num_beams=2, length_penalty=2.0).predict(text=CONTEXT).num_tokens > 0
    with pytest.raises(ConfigError, match="beam search does not sample"):
        him.load(run, num_beams=2, temperature=1.0)
    with pytest.raises(ConfigError, match="--max_answer_words is for --task_type squad"):
        him.load(run, max_answer_words=3)
    with pytest.raises(TypeError, match="question"):
        predictor.predict(question="Who?", context=CONTEXT)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damaged_writers(writer, tmp_path, name, damage):
    shutil.copytree(writer[0] / "best", tmp_path / "best")
    path = tmp_path / "best" / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(
        CheckpointError,
        match=r"no finished model there|such file|cannot be read|not a configuration|damaged",
    ) as error:
        him.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"embed_dim": 64}, {"positions": "learned"}, {"conv_kernel_size": 3}])
def test_a_writer_of_another_shape(writer, changes):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* has shape .*, this model has"):
        him.load(writer[0], **changes)


def test_a_writer_needs_texts_that_are_there(writer):
    """An empty prompt begins a text; an empty document has no summary."""
    run, predictor = writer
    if predictor.task.name == "lm":
        assert predictor.predict(text="").num_tokens > 0
        assert him.load(run, num_beams=2).predict(text=" ").num_cut == 0
        return
    for blank in ("", " ", "\n\t", "\u00a0"):
        with pytest.raises(ConfigError, match="^--text is empty; give a document$"):
            predictor.predict(text=blank)


def test_old_keywords_are_taken_with_a_warning(run, tmp_path):
    with pytest.warns(DeprecationWarning, match="^warmup_share is called warmup_ratio$") as found:
        assert him.load(run, warmup_share=0.25).config.warmup_ratio == 0.25
    assert [each.filename for each in found] == [__file__]
    (tmp_path / "file").write_text("")
    with pytest.warns(DeprecationWarning, match="^announce is called on_result$") as found:
        with pytest.raises(ConfigError, match="is a file; name a folder"):
            him.train(him.Config(output_dir=tmp_path / "file"), announce=print)
    assert [each.filename for each in found] == [__file__]
