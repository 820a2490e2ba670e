"""Windows and spans: the same as the `tokenizers` package cuts, and answers on the pieces that hold them."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from him.config import Config
from him.core.compute import Compute
from him.core.errors import ConfigError
from him.core.ragged import Ragged
from him.data.cache import load_columns, save_columns
from him.tasks.squad.attention import attention_example
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import (
    MAX_QUESTION_TOKENS,
    FeatureOptions,
    SquadFeatures,
    build_features,
    class_shape,
    context_words,
    cut_windows,
    find_spans,
)
from him.tasks.squad.lexical import QUESTION_CLASSES, SHAPES, DocumentFrequencies
from him.tasks.squad.task import SquadTask
from him.text.tokenizer import encode_texts

SPECIAL_IDS = (0, 2, 3)  # [PAD], [CLS], [SEP] of the shared tokenizer


def built(data, tokenizer, max_seq_len=384, doc_stride=128):
    return build_features(data, tokenizer, FeatureOptions(max_seq_len, doc_stride), None)[0]


def spans(features, question=0):
    return [tuple(span) for span in features.answers[question].tolist()]


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fast(tokenizer):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=copy, **names)


@pytest.mark.parametrize(
    ("max_seq_len", "doc_stride"), [(384, 128), (64, 16), (40, 0), (32, 1), (32, 17), (24, 10), (21, 10), (48, 30)]
)
def test_the_same_windows_as_the_fast_tokenizer(tokenizer, fast, squad_data, max_seq_len, doc_stride):
    """Ids and segments of every window, as `run_qa` gets them, on random texts from one word to 300."""
    random = np.random.default_rng(max_seq_len + doc_stride)
    vocabulary = ["the", "cats", "Cat", "sat", "sitting", "on", "red", "mat", "dog", "ran", ".", "x", "(in)", "😀"]

    def text(most):
        return " ".join(vocabulary[n] for n in random.integers(0, len(vocabulary), random.integers(1, most + 1)))

    # The longest question has 4 pieces a word at most; the smallest window leaves 11 - 10 positions for new ones.
    most_words = 3 if max_seq_len - doc_stride < 20 else 6
    data = squad_data(*((text(300), [(text(most_words)[:20], []), (text(2)[:9], [])]) for _ in range(25)))
    features = built(data, tokenizer, max_seq_len, doc_stride)
    batches = SquadBatches(features, SPECIAL_IDS, max_seq_len, lexical=False)
    questions = [(q.text.strip(), p.context) for p in data.paragraphs for q in p.questions]
    expected = fast(
        [question for question, _ in questions],
        [context for _, context in questions],
        max_length=max_seq_len,
        stride=doc_stride,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )
    assert features.window_question.tolist() == expected["overflow_to_sample_mapping"]
    assert features.lengths.tolist() == [len(row) for row in expected["input_ids"]]
    for window, (ids, segments) in enumerate(zip(expected["input_ids"], expected["token_type_ids"], strict=True)):
        batch = batches.batch([window])
        assert batch["input_ids"][0, : len(ids)].tolist() == ids
        assert batch["token_type_ids"][0, : len(ids)].tolist() == segments
        assert batch["attention_mask"][0].sum() == len(ids)
    if max_seq_len < 384:
        assert np.bincount(features.window_question).max() > 1


@pytest.mark.parametrize(
    ("context", "windows"),
    [
        # capacity 10 - 3 - 2 = 5, step 5 - 2 = 3
        (0, [(0, 0)]),
        (1, [(0, 1)]),
        (5, [(0, 5)]),
        (6, [(0, 5), (3, 6)]),
        (8, [(0, 5), (3, 8)]),
        (9, [(0, 5), (3, 8), (6, 9)]),
    ],
)
def test_windows_by_hand(context, windows):
    question, start, end = cut_windows(np.array([2]), np.array([context]), 10, 2)
    assert list(zip(start.tolist(), end.tolist(), strict=True)) == windows
    assert question.tolist() == [0] * len(windows)


def test_windows_of_several_questions():
    question, start, end = cut_windows(np.array([2, 4, 2]), np.array([6, 6, 1]), 10, 2)
    # the second question is longer: capacity 3, step 1
    assert question.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert start.tolist() == [0, 3, 0, 1, 2, 3, 0]
    assert end.tolist() == [5, 6, 3, 4, 5, 6, 1]


def test_no_room_beside_the_question():
    message = (
        "^--max_seq_len 20 leaves no room beside --doc_stride 8 and a question of 9 tokens; use at least 21, or a "
        "smaller stride$"
    )
    with pytest.raises(ConfigError, match=message):
        cut_windows(np.array([3, 9]), np.array([5, 5]), 20, 8)
    assert cut_windows(np.array([3, 9]), np.array([5, 11]), 21, 8)[0].tolist() == [0, 1, 1, 1]
    assert [len(part) for part in cut_windows(np.zeros(0, np.int64), np.zeros(0, np.int64), 20, 8)] == [0, 0, 0]


def test_long_question_is_cut(tokenizer, squad_data):
    question = "who sat " * 40 + "?"
    features = built(squad_data(("The cat sat.", [(question, [("cat", 4)]), ("who?", [])])), tokenizer, 128, 0)
    assert features.questions.ids.lengths.tolist() == [MAX_QUESTION_TOKENS, 2]
    assert features.questions.ids[0].tolist() == [5, 6] * 32
    # lexical inputs: 64 words of the question, 4 of the context
    assert features.match.lengths.tolist() == [68, 6]
    assert spans(features) == [(1, 1, 1)]
    batch = SquadBatches(features, SPECIAL_IDS, 128, lexical=True).batch([0, 1])
    assert batch["input_ids"][0, :72].tolist() == [2, *[5, 6] * 32, 3, 7, 8, 6, 13, 3, 0]
    # With less room than the longest question needs, the fault is named.
    with pytest.raises(ConfigError, match="a question of 64 tokens; use at least 68"):
        built(squad_data(("The cat sat.", [(question, [])])), tokenizer, 64, 0)


# --- spans ------------------------------------------------------------------------------------------------------------

#          0   4    9   13 16  20
CONTEXT = "The cats sat on red mat."
# pieces:  0   1 2  3   4  5   6  7


@pytest.mark.parametrize(
    ("answer", "start", "span"),
    [
        ("The", 0, (0, 0)),
        ("cats", 4, (1, 2)),
        ("cat", 4, (1, 1)),
        ("s", 7, (2, 2)),
        ("at", 5, (1, 1)),
        ("ats sa", 5, (1, 3)),
        ("red mat", 16, (5, 6)),
        ("mat.", 20, (6, 7)),
        (".", 23, (7, 7)),
        (CONTEXT, 0, (0, 7)),
        # spaces at the edges belong to no word: neither does the word beyond them
        (" cats", 3, (1, 2)),
        ("cats ", 4, (1, 2)),
        (" sat ", 8, (3, 3)),
    ],
)
def test_spans_at_and_inside_words(tokenizer, squad_data, answer, start, span):
    data = squad_data(
        ("A dog ran.", [("Who?", [("dog", 2)])]), (CONTEXT, [("Who?", [(answer, start)])]), ("On.", [("Who?", [])])
    )
    assert CONTEXT.startswith(answer, start)
    features = built(data, tokenizer)
    assert [spans(features, question) for question in range(3)] == [[(1, 1, 1)], [(*span, 1)], []]


@pytest.mark.parametrize(("answer", "start"), [(" ", 3), ("\x01", 13), ("\u200b", 15)])
def test_answer_without_a_piece(tokenizer, squad_data, answer, start):
    """Nothing that could be pointed at: no span, rather than the words around it."""
    context = "The cats sat \x01 \u200b on"
    assert context.startswith(answer, start)
    features = built(squad_data((context, [("Who?", [(answer, start), ("cats", 4)])])), tokenizer)
    assert spans(features) == [(1, 2, 1)]


def test_annotators_are_counted(tokenizer, squad_data):
    answers = [("cats", 4), ("The cats", 0), ("cats", 4), ("cats ", 4)]
    features = built(squad_data((CONTEXT, [("Who?", answers), ("Who?", [])])), tokenizer)
    assert spans(features) == [(1, 2, 3), (0, 2, 1)]
    assert spans(features, 1) == []
    assert features.answers.values.dtype == np.int32


def test_spans_against_plain_search(tokenizer):
    """Random spans of random contexts: the first and last piece that share a character with the span."""
    random = np.random.default_rng(2)
    vocabulary = ["the", "cats", "sitting", " ", "\x01", ".", "xyz", "é", "😀"]
    texts = [" ".join(vocabulary[n] for n in random.integers(0, 9, random.integers(0, 12))) for _ in range(40)]
    encoded = encode_texts(tokenizer, texts)
    context_of, starts, ends = [], [], []
    for context, text in enumerate(texts):
        for _ in range(20 if text else 0):
            start, end = sorted(random.integers(0, len(text) + 1, 2).tolist())
            if start < end:
                context_of.append(context), starts.append(start), ends.append(end)
    first, last = find_spans(encoded, *(np.array(row, np.int64) for row in (context_of, starts, ends)))
    touching = 0
    for place, context in enumerate(context_of):
        pieces = zip(encoded.starts[context].tolist(), encoded.ends[context].tolist(), strict=True)
        shared = [number for number, (a, b) in enumerate(pieces) if a < ends[place] and b > starts[place]]
        touching += bool(shared)
        if shared:
            assert (first[place], last[place]) == (shared[0], shared[-1])
        else:
            assert last[place] < first[place]
    assert 300 < touching < len(context_of)


def test_words_as_they_are_written(tokenizer):
    texts = ["The Cats' mat", "", "ÉÉ 😀."]
    assert context_words(texts, encode_texts(tokenizer, texts)) == [["The", "Cats", "'", "mat"], [], ["ÉÉ", "😀", "."]]


# --- lexical columns --------------------------------------------------------------------------------------------------


def test_lexical_columns(tokenizer, squad_data):
    data = squad_data((CONTEXT, [(" Who sat on cats? ", []), ("Which red mat?", [])]))
    features = built(data, tokenizer)
    assert features.context_of.tolist() == [0, 0]
    assert [QUESTION_CLASSES[kind] for kind in features.question_classes] == ["who", "which"]
    assert features.focus_ids.tolist() == [6, 11]  # sat, red
    # per word: Who sat on cats ? and The cats sat on red mat .
    assert features.match[0].tolist() == [1, 4, 2, 4, 1, 5, 8, 8, 6, 5, 5, 5]
    assert [SHAPES[shape][0] for shape in features.context_shapes[0]] == list("clllllp")
    assert [SHAPES[shape][0] for shape in features.question_shapes[0]] == list("clllp")
    assert features.scalars[0].shape == (12, 11)


def test_idf_of_training_is_used_for_other_data(tokenizer, squad_data):
    training = squad_data(("The cat.", [("Who?", [])]), ("The dog.", [("Who?", [])]))
    other = squad_data(("The mat.", [("Who?", [])]))
    _, frequencies = build_features(training, tokenizer, FeatureOptions(64, 16), None)
    assert (frequencies.num_documents, frequencies.frequencies) == (2, {"the": 2, ".": 2})
    features, same = build_features(other, tokenizer, FeatureOptions(64, 16), frequencies)
    assert same is frequencies
    assert features.scalars[0][2:, 0].tolist() == [0, 1, 0]  # The mat .


def test_class_shape_numbers_every_pair_apart():
    numbers = {
        int(class_shape(np.uint8(kind), np.array([shape], np.uint8))[0])
        for kind in range(len(QUESTION_CLASSES))
        for shape in range(len(SHAPES))
    }
    assert numbers == set(range(1, 1 + len(QUESTION_CLASSES) * len(SHAPES)))


def test_features_through_the_cache(tokenizer, squad_data, tmp_path):
    features = built(squad_data((CONTEXT, [("Who?", [("cats", 4)]), ("Who?", [])]), ("a", [("?", [])])), tokenizer)
    save_columns(tmp_path / "set", features.to_columns(), {})
    again = SquadFeatures.from_columns(load_columns(tmp_path / "set"))
    one, other = (each.to_columns() for each in (features, again))
    assert one.keys() == other.keys() and len(one) == 8 + 11
    for name, column in one.items():
        pairs = [(column, other[name])]
        if isinstance(column, Ragged):
            pairs = [(column.values, other[name].values), (column.offsets, other[name].offsets)]
        for before, after in pairs:
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
    assert again.lengths.tolist() == [2 + 8 + 3] * 2 + [1 + 1 + 3]


# --- texts that tokenize to nothing -----------------------------------------------------------------------------------

NOTHING = "\x00\x01\u200b"


@pytest.fixture(scope="module")
def untrained(tokenizer):
    config = SquadTask.resolve(
        Config(num_encoder_layers=1, embed_dim=16, num_heads=2, dim_feedforward=16, max_seq_len=32, doc_stride=4)
    )
    task = SquadTask(config, tokenizer, DocumentFrequencies(1, {}), False)
    torch.manual_seed(0)
    return task, task.build_model()


@pytest.mark.parametrize("context", [NOTHING, "😀", "\x01cat\x02", "cat"])
@pytest.mark.parametrize("question", [NOTHING, "😀", "?", "Who?"])
def test_texts_of_nothing(tokenizer, squad_data, untrained, context, question):
    """Neither features nor a model or a search for spans stumble over a context or a question without a piece."""
    data = squad_data((context, [(question, [(context, 0)])]), ("The cat sat.", [("Who?", [])]))
    features = built(data, tokenizer, 32, 4)
    batch = SquadBatches(features, SPECIAL_IDS, 32, lexical=True).batch([0, 1])
    assert batch["start_targets"].sum(dim=1).tolist() == [1.0, 1.0]
    has_pieces = context != NOTHING
    assert bool(batch["start_targets"][0, 0]) is not has_pieces
    assert (batch["word_ids"][0] >= 0).any().item() is has_pieces

    task, model = untrained
    answer = task.predict(model, Compute(torch.device("cpu"), bf16=False), question=question, context=context)
    assert answer.text == ("" if context == NOTHING else context.strip("\x01\x02"))
    assert context[answer.start : answer.end] == answer.text


@pytest.mark.parametrize(
    ("context", "question", "sections", "answer"),
    [
        ("cat", "Who?", (("question", 1, 2), ("context", 4, 4)), (4, 4)),
        (NOTHING, "Who?", (("question", 1, 2),), None),
        ("cat", NOTHING, (("context", 2, 2),), (2, 2)),
        (NOTHING, NOTHING, (), None),
    ],
)
def test_attention_of_nothing(tokenizer, squad_data, untrained, context, question, sections, answer):
    """The shortest windows are drawn first, so a context without a piece would stop every training run."""
    task, model = untrained
    data = squad_data((context, [(question, [])]))
    batches = SquadBatches(built(data, tokenizer, 32, 4), SPECIAL_IDS, 32, lexical=True)
    compute = Compute(torch.device("cpu"), bf16=False)
    example = attention_example("1", model, compute, batches, 0, data, tokenizer, 15)
    assert (example.sections, example.answer) == (sections, answer)
    assert len(example.tokens) == int(batches.lengths[0])
    assert f"Predicted: {context if answer else 'nothing'}. Gold: no answer." in example.title


# --- tokenizers of other families -------------------------------------------------------------------------------------


def test_byte_level_tokenizer(squad_data):
    """Its double spaces are words with empty offsets, and a character may be several pieces with equal ones."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["what year is it in the red barn"] * 3, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    context = "It   is 1999 😀 in  the red  barn"
    question = "In  what   year 😀?"
    answers = [("1999", 8), ("😀", 13), ("red  barn", 23)]
    assert all(context.startswith(text, start) for text, start in answers)
    features = built(squad_data((context, [(question, answers)])), made, 64, 8)
    (words,) = context_words([context], features.contexts)
    assert [word for word in words if word.strip()] == context.split()
    starts, ends = features.contexts.starts[0], features.contexts.ends[0]
    found = [context[starts[first] : ends[last]] for first, last, _ in spans(features)]
    assert found == [text for text, _ in answers]
    # The focus is the year: its first piece is the one with its space.
    (focus,) = features.focus_ids.tolist()
    assert "year".startswith(made.id_to_token(focus).lstrip("Ġ")) and made.id_to_token(focus) != "Ġ"


def test_tokenizer_that_drops_words(squad_data):
    """Without [UNK], words vanish; the lexical inputs of the others must stay theirs."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(["red cat sat who"], trainers.BpeTrainer(vocab_size=60, show_progress=False))
    features = built(squad_data(("ZZ red ZZ cat", [("who ZZ cat", [("cat", 10)])])), made, 64, 8)
    assert features.match[0].tolist() == [1, 4, 5, 8]  # who cat, red cat
    batch = SquadBatches(features, (0, 0, 0), 64, lexical=True).batch([0])
    context = batch["word_ids"][0] >= 0
    assert batch["match"][0][context].tolist() == [
        {0: 5, 1: 8}[word] for word in batch["word_ids"][0][context].tolist()
    ]
