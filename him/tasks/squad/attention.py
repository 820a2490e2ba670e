"""Attention examples: a few validation questions, made ready for drawing."""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from him.attention_maps import AttentionExample
from him.core.compute import Compute
from him.tasks.squad.answers import best_spans
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.features import word_spans
from him.tasks.squad.reader import SquadData


def first_to_last(total: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers 0 to total - 1, evenly spread, with the first and the last of them."""
    return np.linspace(0, total - 1, min(wanted, total)).astype(int).tolist()


def choose_windows(lengths: np.ndarray, num_examples: int) -> list[int]:
    """Windows spread over the shorter half, which a person can take in; the same ones for the same data."""
    shorter = np.argsort(lengths, kind="stable")[: max(num_examples, len(lengths) // 2)]
    return [int(shorter[index]) for index in first_to_last(len(shorter), num_examples)]


@torch.inference_mode()
def attention_example(
    name: str,
    model: nn.Module,
    compute: Compute,
    batches: SquadBatches,
    window: int,
    data: SquadData,
    tokenizer: Tokenizer,
    max_answer_words: int,
) -> AttentionExample:
    """Runs a `QuestionAnsweringModel` on one of the windows of `data`, and takes all its attention weights.

    The example is called `name` in file names, and its tokens as `tokenizer` names them.
    """
    model.eval()
    features = batches.features
    batch = compute.to_device(batches.batch([window]))
    with compute.autocast():
        output = model(batch, return_weights=True)
    length = int(features.lengths[window])
    number = int(features.window_question[window])
    context = int(features.context_of[number])
    first = len(features.questions.ids[number]) + 2
    (spans,) = best_spans(output.start_logits_BL, output.end_logits_BL, batch["word_ids"], max_answer_words)
    answer, predicted = None, "nothing"
    if spans:  # none in a window without a whole word
        best, words = spans[0], batch["word_ids"][0]
        positions = ((words >= best.first_word) & (words <= best.last_word)).nonzero()
        answer = (int(positions[0]), int(positions[-1]))
        starts, ends = word_spans(features.contexts, context)
        predicted = data.paragraphs[context].context[starts[best.first_word] : ends[best.last_word]]
    question = data.questions[number]
    gold = question.answers[0].text if question.answers else "no answer"
    sections = (("question", 1, first - 2), ("context", first, length - 2))
    ids = batch["input_ids"][0, :length].tolist()
    special_ids = {batches.pad_id, batches.cls_id, batches.sep_id}
    return AttentionExample(
        name=name,
        title=f"{question.text.strip()} Predicted: {predicted}. Gold: {gold}.",
        tokens=[tokenizer.id_to_token(id) for id in ids],
        weights=[weights[0, :, :length, :length].float().cpu().numpy() for weights in output.attention_weights],
        special=[id in special_ids for id in ids],
        answer=answer,
        sections=tuple(section for section in sections if section[1] <= section[2]),
    )
