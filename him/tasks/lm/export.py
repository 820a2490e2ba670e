"""Export of a language model: logits of the next token as a graph, and the stock class that computes the same."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.config import Config
from him.data.sample import text_sample
from him.model.generative import GenerativeModel, padded
from him.tasks.exporting import Batch, StockClass, StockExport
from him.text.tokenizer import PAD, SEP, special_id


class NextTokenLogits(nn.Module):
    """Logits of the token after each position."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor]:
        """Returns (B, L, V)."""
        tokens = self.model.embedding.tokens
        return (tokens.project(self.model(batch).hidden_BLD, self.model.output_bias),)


def example_batches(config: Config, tokenizer: Tokenizer) -> list[Batch]:
    """Stretches of a built-in text."""
    text = text_sample(0, 0, 1)[1][0]
    ids = [special_id(tokenizer, SEP), *tokenizer.encode(text, add_special_tokens=False).ids]
    longest = min(config.max_seq_len, len(ids) - 2)
    lengths = [longest, max(2, longest // 2), max(2, longest // 3)]
    pad_id = special_id(tokenizer, PAD)
    chosen = ([0, 1], [0, 1, 2], [2], [0])
    rows = [[ids[start : start + lengths[start]] for start in starts] for starts in chosen]
    return [{"input_ids": padded(each, torch.device("cpu"), pad_id)[0]} for each in rows]


class LanguageModelStock(StockExport):
    """The stock class for language models."""

    classes: ClassVar[Mapping[tuple[bool, str], StockClass]] = {
        (False, "learned"): StockClass("BertGenerationDecoder", "AutoModelForCausalLM", "bert")
    }

    @classmethod
    def obstacles(cls, config: Config) -> list[str]:
        rotary = ["rotary positions (--positions learned)"] if config.positions == "rotary" else []
        return rotary + (["pre-LN (--no-norm_first)"] if config.norm_first else [])

    def settings(self, model: nn.Module) -> dict[str, object]:
        end_id = special_id(self.tokenizer, SEP)
        return {"is_decoder": True, "bos_token_id": end_id, "eos_token_id": end_id}

    def head_weights(self, model: nn.Module) -> dict[str, Tensor]:
        biases = ("lm_head.bias", "lm_head.decoder.bias")
        return {"lm_head.decoder.weight": model.embedding.tokens.weight} | dict.fromkeys(biases, model.output_bias)

    def templates(self, cls: str, sep: str) -> dict[str, str]:
        return {"single": f"{sep} $A"}  # the end of the text before begins a text

    def tokenizer_settings(self, sep: str) -> dict[str, Any]:
        inputs = ["input_ids", "attention_mask"]
        return {"model_input_names": inputs, "bos_token": sep, "eos_token": sep, "split_special_tokens": True}

    def outputs(self, model: nn.Module, opened: nn.Module, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        hidden_BLD = model(batch).hidden_BLD
        logits_BLV = model.embedding.tokens.project(hidden_BLD, model.output_bias)
        return [logits_BLV], [opened(input_ids=batch["input_ids"]).logits]

    def example(self) -> tuple[tuple[str, ...], dict[str, list[int]]]:
        text = text_sample(0, 0, 1)[1][0][:400]
        ids = [special_id(self.tokenizer, SEP), *self.tokenizer.encode(text, add_special_tokens=False).ids]
        return (text,), {"input_ids": ids}
