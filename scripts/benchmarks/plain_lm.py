"""A plain PyTorch language model in float32 with its training loop: what one writes oneself, with the best settings.

The model is that of Radford et al. 2019 and the loop that of nanoGPT's CPU configuration, written anew.

# B batch   L length   D embed_dim   H heads   K width of one head   V vocabulary
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute

INITIAL_DEVIATION = 0.02
LOWEST_RATE_SHARE = 0.1  # the cosine ends at a tenth of the highest rate


class PlainBlock(nn.Module):
    """Pre-LN: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, embed_dim: int, num_heads: int, dim_feedforward: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.query_key_value = nn.Linear(embed_dim, 3 * embed_dim)
        self.output = nn.Linear(embed_dim, embed_dim)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(embed_dim, dim_feedforward), nn.GELU(), nn.Linear(dim_feedforward, embed_dim)
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        qkv_BLPHK = self.query_key_value(self.attention_norm(x_BLD)).unflatten(-1, (3, self.num_heads, -1))
        q_BHLK, k_BHLK, v_BHLK = qkv_BLPHK.permute(2, 0, 3, 1, 4)
        attended_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)
        x_BLD = x_BLD + self.output(attended_BHLK.transpose(1, 2).flatten(2))
        return x_BLD + self.feed_forward(self.feed_forward_norm(x_BLD))


class PlainGPT(nn.Module):
    """Token and learned position embeddings, blocks, a final norm, and an output layer that is the token embedding."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.embed_dim)
        self.positions = nn.Embedding(config.max_seq_len, config.embed_dim)
        self.blocks = nn.ModuleList(
            PlainBlock(config.embed_dim, config.num_heads, config.dim_feedforward)
            for _ in range(config.num_encoder_layers)
        )
        self.final_norm = nn.LayerNorm(config.embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for last in (block.output, block.feed_forward[-1]):
                nn.init.normal_(last.weight, std=INITIAL_DEVIATION / (2 * config.num_encoder_layers) ** 0.5)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Logits (B, L, V)."""
        x_BLD = self.tokens(ids_BL) + self.positions.weight[: ids_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return F.linear(self.final_norm(x_BLD), self.tokens.weight)


def plain_lr_at(step: int, config: Config) -> float:
    """A linear rise over `warmup_ratio` of all steps, then a cosine down to a tenth."""
    num_warmup = math.ceil(config.warmup_ratio * config.max_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, config.max_steps - num_warmup))
    share = LOWEST_RATE_SHARE + (1 - LOWEST_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * share


def plain_steps(model: nn.Module, ids: np.ndarray, config: Config, compute: Compute) -> Iterator[int]:
    """Trains for ever, a step for each item that is asked for, which is the number of its tokens.

    Args:
        model: a `PlainGPT` on its device.
        ids: (tokens,) of the training text, mapped into memory.
        config: length, batch, rates and decay; `max_steps` is what the schedule is made for.
        compute: the device.
    """
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
    model.train()
    step = 0
    while True:
        for group in optimizer.param_groups:
            group["lr"] = plain_lr_at(step, config)
        inputs_BL, labels_BL = random_windows(ids, config.batch_size, config.max_seq_len, compute)
        loss = F.cross_entropy(model(inputs_BL).flatten(0, 1), labels_BL.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        yield labels_BL.numel()


def random_windows(ids: np.ndarray, batch_size: int, length: int, compute: Compute) -> tuple[Tensor, Tensor]:
    """Tokens and those that follow them, (B, L) each, from anywhere in the text."""
    starts = torch.randint(len(ids) - length, (batch_size,)).tolist()
    rows = torch.from_numpy(np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64))
    rows = rows.to(compute.device, non_blocking=True)
    return rows[:, :-1], rows[:, 1:]
