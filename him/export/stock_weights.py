"""Trained weights under the names and in the order of stock `transformers` classes.

Which class computes what HIM computes depends on where the norms are, on how positions are told, and on the task, whose
`export.py` names it:

| task  | norms   | positions | class                                   |
|-------|---------|-----------|-----------------------------------------|
| squad | post-LN | learned   | BertForQuestionAnswering                |
| squad | pre-LN  | learned   | RobertaPreLayerNormForQuestionAnswering |
| squad | post-LN | rotary    | RoFormerForQuestionAnswering            |
| lm    | post-LN | learned   | BertGenerationDecoder                   |

# L length   V vocabulary   D embed_dim   H heads   K width of one head   E = H * K
"""

import torch
from torch import Tensor, nn

from him.config import Config
from him.core.errors import ConfigError
from him.model.attention import SelfAttention, rotary_tables
from him.model.embeddings import InputEmbedding
from him.model.encoder import EncoderBlock
from him.tasks.exporting import StockClass, StockExport

ACTIVATIONS = {"gelu": "gelu", "relu_squared": "relu2"}


def stock_class(stock: type[StockExport] | StockExport, config: Config) -> StockClass:
    """The class for a model of these settings.

    Raises:
        ConfigError: there is none; says all that is in the way, and the flags that avoid it.
    """
    obstacles = ["a convolution (--conv_kernel_size 0)"] if config.conv_kernel_size else []
    obstacles += stock.obstacles(config)
    if set(config.layer_heads) - {config.num_heads} or len(set(config.layer_feedforward)) > 1:
        obstacles.append("unequal layers (--stage trained)")
    if obstacles:
        raise ConfigError(
            f"--format transformers: no stock class has {', '.join(obstacles)}; take the flags in brackets, or "
            "--format onnx"
        )
    return stock.classes[config.norm_first, config.positions]


def stock_settings(stock: StockExport, model: nn.Module, pad_id: int) -> dict[str, object]:
    """Arguments of the class's configuration."""
    config, embedding, block = stock.config, model.embedding, model.encoder.blocks[0]
    return {
        "vocab_size": embedding.tokens.num_embeddings,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_encoder_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": block.feed_forward.expand.out_features,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_seq_len + _num_unused_positions(config, pad_id),
        "layer_norm_eps": block.attention_norm.eps,
        "pad_token_id": pad_id,
        **stock.settings(model),
    }


def stock_weights(stock: StockExport, model: nn.Module, pad_id: int) -> dict[str, Tensor]:
    """All weights of the class, by name."""
    config = stock.config
    prefix = stock_class(stock, config).prefix
    found = {f"embeddings.{name}": each for name, each in _embeddings(config, model.embedding, pad_id).items()}
    for number, block in enumerate(model.encoder.blocks):
        layer = _layer(block, interleave=config.positions == "rotary")
        found |= {f"encoder.layer.{number}.{name}": each for name, each in layer.items()}
    if config.positions == "rotary":
        found["encoder.embed_positions.weight"] = _sinusoids(config, model.embedding.tokens.weight)
    if config.norm_first:
        found |= _named("LayerNorm", model.encoder.final_norm)
    found = {f"{prefix}.{name}": each for name, each in found.items()}
    return {name: each.detach() for name, each in (found | stock.head_weights(model)).items()}


def _num_unused_positions(config: Config, pad_id: int) -> int:
    """RoBERTa numbers positions from `pad_id` + 1 on, and gives padding `pad_id`."""
    return pad_id + 1 if config.norm_first else 0


def _embeddings(config: Config, embedding: InputEmbedding, pad_id: int) -> dict[str, Tensor]:
    found = {"word_embeddings.weight": embedding.tokens.weight, **_named("LayerNorm", embedding.norm)}
    if embedding.segments is not None:
        found["token_type_embeddings.weight"] = embedding.segments.weight
    if embedding.positions is not None:
        positions_LD = embedding.positions.weight
        unused_LD = positions_LD.new_zeros(_num_unused_positions(config, pad_id), positions_LD.shape[1])
        found["position_embeddings.weight"] = torch.cat((unused_LD, positions_LD))
    return found


def _layer(block: EncoderBlock, interleave: bool) -> dict[str, Tensor]:
    norms = ("attention", "intermediate") if block.norm_first else ("attention.output", "output")
    return {
        **_projections(block.attention, interleave),
        **_named("attention.output.dense", block.attention.output),
        **_named("intermediate.dense", block.feed_forward.expand),
        **_named("output.dense", block.feed_forward.contract),
        **_named(f"{norms[0]}.LayerNorm", block.attention_norm),
        **_named(f"{norms[1]}.LayerNorm", block.feed_forward_norm),
    }


def _projections(attention: SelfAttention, interleave: bool) -> dict[str, Tensor]:
    """Queries, keys and values apart; with `interleave`, pairs that are turned together, k and k + K/2 here, become
    neighbours."""
    found = {}
    for kind in ("weight", "bias"):
        joint = getattr(attention.query_key_value, kind)
        parts = joint.unflatten(0, (3, attention.num_heads, attention.head_width))
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            if interleave and name != "value":
                part = part.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            found[f"attention.self.{name}.{kind}"] = part.flatten(0, 1)
    return found


def _sinusoids(config: Config, like: Tensor) -> Tensor:
    """(L, K): sine and cosine of the angle of each pair, as HIM computes them."""
    width = config.embed_dim // config.num_heads
    tables = rotary_tables(torch.arange(config.max_seq_len), 1, width, like)
    return torch.cat((tables.sin_LE[:, width // 2 : width], tables.cos_LE[:, : width // 2]), dim=1)


def _named(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
