"""Export of question answering: logits of start and end as a graph, and the stock classes that compute the same."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from him.config import Config
from him.data.sample import squad_sample
from him.tasks.exporting import ROWS_AT_ONCE, Batch, Graph, Outputs, StockClass, StockExport, some_rows
from him.tasks.squad.lexical import SIZES
from him.tasks.squad.model import SpanOutput
from him.text.tokenizer import CLS, SEP, special_id

AUTO = "AutoModelForQuestionAnswering"


class SpanLogits(nn.Module):
    """Logits of start and end, very low where none may be."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns two (B, L)."""
        output = self.model(batch)
        return output.start_logits_BL, output.end_logits_BL


class ExportedSpans(nn.Module):
    """An exported model, whose `outputs` are logits of start and end, in the place of a `QuestionAnsweringModel`; it
    takes a few rows at a time."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, batch: Batch) -> SpanOutput:
        parts = [self.outputs(rows) for rows in some_rows(batch, ROWS_AT_ONCE)]
        start_BL, end_BL = (torch.cat(each) for each in zip(*parts, strict=True))
        return SpanOutput(start_BL, end_BL)


def span_graph(model: nn.Module, lexical: bool, batches: list[Batch]) -> Graph:
    """What is exported of a model."""
    inputs = ("input_ids", "token_type_ids", "attention_mask", "may_start", "may_end")
    if lexical:
        inputs += (*SIZES, "scalars", "focus_ids")
    outputs, masks = ("start_logits", "end_logits"), ("may_start", "may_end")
    return Graph(SpanLogits(model).eval(), inputs, outputs, masks, batches, one_a_row=("focus_ids",))


class SquadStock(StockExport):
    """Stock classes for question answering.

    HIM allows answers to start at the first piece of a context word only and to end at a last one. Stock classes know
    nothing of words, so that their logits are those of all tokens.
    """

    classes: ClassVar[Mapping[tuple[bool, str], StockClass]] = {
        (False, "learned"): StockClass("BertForQuestionAnswering", AUTO, "bert"),
        (True, "learned"): StockClass("RobertaPreLayerNormForQuestionAnswering", AUTO, "roberta_prelayernorm"),
        (False, "rotary"): StockClass("RoFormerForQuestionAnswering", AUTO, "roformer"),
    }

    @classmethod
    def obstacles(cls, config: Config) -> list[str]:
        found = []
        if config.lexical_features:
            found.append("lexical inputs (--no-lexical_features)")
        if config.positions == "rotary" and config.norm_first:
            found.append("rotary positions with pre-LN (--positions learned, or --no-norm_first)")
        return found

    def settings(self, model: nn.Module) -> dict[str, object]:
        types = model.embedding.segments.num_embeddings
        return {"type_vocab_size": types, "bos_token_id": None, "eos_token_id": None}

    def head_weights(self, model: nn.Module) -> dict[str, Tensor]:
        return {"qa_outputs.weight": model.span.weight, "qa_outputs.bias": model.span.bias}

    def templates(self, cls: str, sep: str) -> dict[str, str]:
        return {"single": f"{cls} $A {sep}", "pair": f"{cls} $A {sep} $B:1 {sep}:1"}

    def tokenizer_settings(self, sep: str) -> dict[str, Any]:
        return {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}

    def outputs(self, model: nn.Module, opened: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        mask_BL = batch["attention_mask"]
        hidden_BLD = model.encoder(model.embedding(batch), mask_BL).hidden_BLD
        own = model.span(hidden_BLD)[mask_BL].unbind(dim=-1)  # before some positions are forbidden
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
        found = opened(**inputs, attention_mask=mask_BL.long())
        return list(own), [found.start_logits[mask_BL], found.end_logits[mask_BL]]

    def example(self) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        paragraph = squad_sample(0, 0, 1)[1]["data"][0]["paragraphs"][0]
        texts = (paragraph["qas"][0]["question"], paragraph["context"])
        cls, sep = (special_id(self.tokenizer, token) for token in (CLS, SEP))
        asked, read = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        types = [0] * (len(asked) + 2) + [1] * (len(read) + 1)
        return texts, {"input_ids": [cls, *asked, sep, *read, sep], "token_type_ids": types}
