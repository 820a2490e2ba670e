"""A plain PyTorch loop around `nn.TransformerEncoder` as a baseline: what one writes oneself."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_from_disk
from tokenizers import Tokenizer
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute
from him.data.batching import bucket_length, epoch_batches
from scripts.benchmarks.batch_plan import plan_steps
from scripts.benchmarks.measure import Meter

DROPOUT = 0.1  # the default of `nn.TransformerEncoderLayer`


class PlainReader(nn.Module):
    """`nn.TransformerEncoder` over token and position embeddings, and a Linear for start and end."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.embed_dim)
        self.positions = nn.Embedding(config.max_seq_len, config.embed_dim)
        layer = nn.TransformerEncoderLayer(
            config.embed_dim, config.num_heads, config.dim_feedforward, DROPOUT, activation="gelu", batch_first=True
        )
        # Nested tensors are for inference only; asked for, they would just warn.
        self.encoder = nn.TransformerEncoder(layer, config.num_encoder_layers, enable_nested_tensor=False)
        self.span = nn.Linear(config.embed_dim, 2)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Start and end logits (B, L) float32, from `input_ids` and `attention_mask` (boolean, True = token)."""
        ids_BL = batch["input_ids"]
        x_BLD = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        x_BLD = self.encoder(x_BLD, src_key_padding_mask=~batch["attention_mask"])
        start_BL, end_BL = self.span(x_BLD).float().unbind(dim=-1)
        return start_BL, end_BL


def run_plain(config: Config, folder: Path, compute: Compute, meter: Meter, **options: Any) -> None:
    """The loop that one writes oneself: HIM's epoch order and buckets, bf16 autocast, fused AdamW, nothing else."""
    dataset = load_from_disk(str(folder / "unpadded")).with_format("numpy")
    lengths = np.load(folder / "lengths.npy")
    batches = epoch_batches(lengths, config.batch_size, config.seed, epoch=0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    torch.manual_seed(config.seed)
    model = PlainReader(config, tokenizer.get_vocab_size()).to(compute.device).train()
    meter.watch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    for rows in plan_steps(batches, lengths, meter.num_warmup, meter.num_timed):
        batch = compute.to_device(plain_batch(dataset[rows], config.max_seq_len))
        with compute.autocast():
            start_BL, end_BL = model(batch)
            loss = F.cross_entropy(start_BL, batch["start_positions"]) + F.cross_entropy(end_BL, batch["end_positions"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter.step_done()


def plain_batch(rows: dict[str, Any], max_seq_len: int) -> dict[str, Tensor]:
    """Windows padded with 0 to their bucket's length."""
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    length = bucket_length(int(lengths.max()), max_seq_len)
    ids = np.zeros((len(lengths), length), np.int64)
    for row, window in enumerate(rows["input_ids"]):
        ids[row, : len(window)] = window
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(np.arange(length) < lengths[:, None]),
        "start_positions": torch.from_numpy(np.asarray(rows["start_positions"], np.int64)),
        "end_positions": torch.from_numpy(np.asarray(rows["end_positions"], np.int64)),
    }
