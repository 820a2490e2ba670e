"""Small models that write text, with weights so large that every input is felt."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from him.model.embeddings import EmbeddingShape, InputEmbedding
from him.model.encoder import Encoder, EncoderShape
from him.model.generative import GenerativeModel
from him.model.initialization import initialize
from him.tasks.lm.model import LanguageModel
from him.tasks.summarization.model import SummarizationModel

D, H, F = 16, 2, 24


@pytest.fixture(scope="session")
def make_writer() -> Callable[..., GenerativeModel]:
    """Makes a model of a kind: "lm", "summaries" or "copying", the one that copies too; in evaluation mode."""

    def make(
        kind: str,
        *,
        norm_first: bool = True,
        rotary: bool = True,
        conv_kernel_size: int = 0,
        activation: str = "gelu",
        vocab_size: int = 20,
        max_seq_len: int = 128,
        large_weights: bool = True,
    ) -> GenerativeModel:
        torch.manual_seed(5)
        embedding = InputEmbedding(
            EmbeddingShape(
                vocab_size=vocab_size,
                embed_dim=D,
                max_seq_len=max_seq_len,
                mask_id=4,
                learned_positions=not rotary,
                num_segments=0 if kind == "lm" else 2,
            )
        )
        shape = EncoderShape(
            2,
            D,
            H,
            F,
            norm_first=norm_first,
            rotary=rotary,
            conv_kernel_size=conv_kernel_size,
            activation=activation,
            causal=True,
        )
        encoder = Encoder(shape)
        if kind == "lm":
            model = LanguageModel(embedding, encoder, max_seq_len)
        else:
            model = SummarizationModel(embedding, encoder, D, copies=kind == "copying")
        initialize(model)
        if large_weights:
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    nn.init.normal_(parameter, std=0.35)
                else:
                    parameter.data += 0.3 * torch.randn_like(parameter)
        return model.eval()

    return make
