"""The weights that training starts from."""

import math

import pytest
import torch
from torch import nn

from him.model.attention import SelfAttention
from him.model.embeddings import EmbeddingShape, InputEmbedding, LexicalEmbedding
from him.model.encoder import Encoder, EncoderShape
from him.model.initialization import initialize
from him.tasks.squad.model import QuestionAnsweringModel


def large_model(conv_kernel_size=0):
    lexical = LexicalEmbedding({"match": 9, "class_shape": 105}, 11, 128)
    embedding = InputEmbedding(EmbeddingShape(500, 128, 64, mask_id=4, learned_positions=True), lexical)
    encoder = Encoder(EncoderShape(6, 128, 4, 256, norm_first=True, conv_kernel_size=conv_kernel_size))
    return QuestionAnsweringModel(embedding, encoder, 128)


@pytest.mark.parametrize("conv_kernel_size", [0, 7])
def test_initial_weights(conv_kernel_size):
    """As the table of `initialize` says, for every parameter, whatever was there before."""
    model = large_model(conv_kernel_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(0)
    initialize(model)
    seen = 0
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            seen += parameter.numel()
            full = f"{module_name}.{name}"
            if name == "bias":
                assert not parameter.any(), full
            elif isinstance(module, nn.LayerNorm):
                assert (parameter == 1).all(), full
            else:
                expected = 1 / math.sqrt(3 * parameter.shape[1]) if isinstance(module, nn.Linear) else 0.02
                if full == "span.weight":
                    expected = 0.02
                if "lexical.tables" in full:
                    expected = 0.1
                if full.endswith(("attention.output.weight", "feed_forward.contract.weight")):
                    expected /= math.sqrt(12)
                if isinstance(module, nn.Conv1d):
                    expected = 1 / math.sqrt(7 * 12)
                # Five standard errors of a deviation and of a mean.
                error = 5 / math.sqrt(parameter.numel())
                assert abs(parameter.std().item() / expected - 1) < error, full
                assert abs(parameter.mean().item()) < error * expected, full
    assert seen == sum(parameter.numel() for parameter in model.parameters())


def test_initial_weights_come_from_the_seed():
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(large_model())
        initialize(models[-1])
    one, same, other = (torch.cat([p.flatten() for p in model.parameters()]) for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_depth_decides_the_residual_scale():
    """Of the encoder itself, not of a fixed number of layers."""
    for layers in (1, 8):
        torch.manual_seed(0)
        encoder = Encoder(EncoderShape(layers, 128, 4, 256))
        initialize(encoder)
        assert encoder.blocks[0].attention.output.weight.std().item() == pytest.approx(
            1 / math.sqrt(3 * 128 * 2 * layers), rel=0.05
        )
    assert sum(isinstance(module, SelfAttention) for module in encoder.modules()) == 8
