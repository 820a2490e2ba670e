"""What the Hugging Face example `run_qa` does to SQuAD data, written anew: one question a row, a window a feature.

The example is `examples/pytorch/question-answering/run_qa.py` of `transformers`; its `prepare_train_features` is the
function whose windows and spans HIM's must equal.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars, load_from_disk
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from him.tasks.squad.reader import Question, SquadData
from him.text.tokenizer import CLS, MASK, PAD, SEP, UNK, special_id

FIRST, LAST = itemgetter(0), itemgetter(1)  # of a piece's character span


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """HIM's tokenizer as `transformers` has it, which adds [CLS] and [SEP] itself."""
    names = {token: tokenizer.id_to_token(special_id(tokenizer, token)) for token in (PAD, UNK, CLS, SEP, MASK)}
    cls, sep = names[CLS], names[SEP]
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        pad_token=names[PAD],
        unk_token=names[UNK],
        cls_token=cls,
        sep_token=sep,
        mask_token=names[MASK],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def squad_dataset(data: SquadData, folder: Path) -> Dataset:
    """SQuAD in the columns of `rajpurkar/squad`, written to `folder` and mapped into memory, as `load_dataset` does."""
    disable_progress_bars()
    rows = [
        _row(paragraph.title, paragraph.context, question)
        for paragraph in data.paragraphs
        for question in paragraph.questions
    ]
    Dataset.from_list(rows).save_to_disk(str(folder))
    return load_from_disk(str(folder))


def _row(title: str, context: str, question: Question) -> dict[str, Any]:
    answers = {
        "text": [answer.text for answer in question.answers],
        "answer_start": [answer.start for answer in question.answers],
    }
    return {"id": question.id, "title": title, "context": context, "question": question.text, "answers": answers}


def map_features(
    dataset: Dataset, tokenizer: PreTrainedTokenizerFast, max_seq_len: int, doc_stride: int, padded: bool
) -> Dataset:
    """Features of a data set through `datasets.map`, called as `run_qa` calls it.

    Args:
        dataset: see `squad_dataset`; the result is written beside it.
        tokenizer: see `wrap_tokenizer`.
        max_seq_len, doc_stride: longest sequence, and pieces that neighbouring windows share.
        padded: whether every window is filled up to `max_seq_len`, the default of `run_qa`.
    """
    return dataset.map(
        train_features_function(tokenizer, max_seq_len, doc_stride, padded),
        batched=True,
        remove_columns=dataset.column_names,
        load_from_cache_file=False,
    )


def train_features_function(
    tokenizer: PreTrainedTokenizerFast, max_seq_len: int, doc_stride: int, padded: bool
) -> Callable[[dict[str, list]], dict[str, list]]:
    """The function for `datasets.map`: a batch of columns to windows with `start_positions` and `end_positions`."""

    def prepare_train_features(examples: dict[str, list]) -> dict[str, list]:
        windows = tokenizer(
            [question.lstrip() for question in examples["question"]],
            examples["context"],
            truncation="only_second",
            max_length=max_seq_len,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length" if padded else False,
        )
        row_of = windows.pop("overflow_to_sample_mapping")
        offsets = windows.pop("offset_mapping")
        spans = [
            _span(examples["answers"][row], windows.sequence_ids(window), offsets[window])
            for window, row in enumerate(row_of)
        ]
        windows["start_positions"], windows["end_positions"] = (
            list(positions) for positions in zip(*spans, strict=True)
        )
        return windows

    return prepare_train_features


def _span(answers: dict[str, list], sequence_ids: list[int | None], offsets: list[tuple[int, int]]) -> tuple[int, int]:
    """Positions of the first answer's first and last piece in a window; 0, which is [CLS], if it is not inside.

    An answer that starts in the window's last piece is labelled as `run_qa` does: its search for the start runs on over
    [SEP] and padding, whose character spans are (0, 0), so that the start is the last position of all.
    """
    if not answers["answer_start"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = sequence_ids.index(1)
    after = len(sequence_ids) - sequence_ids[::-1].index(1)
    if offsets[first][0] > start or offsets[after - 1][1] < end:
        return 0, 0
    start_position = bisect_right(offsets, start, first, after, key=FIRST) - 1
    end_position = bisect_left(offsets, end, first, after, key=LAST)
    return (len(offsets) - 1 if start_position == after - 1 else start_position), end_position
