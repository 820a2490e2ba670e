"""What generation keeps of the tokens read and written so far, so that each is computed once.

Keys and values of a prompt are kept once for all hypotheses of beam search that continue it (Shazeer 2019,
arXiv:1911.02150, section 2.3, on why reading them is what a step costs).

# B prompts   N hypotheses, the same number for each prompt   P longest prompt   T written tokens   D embed_dim
# H heads   K width of one head   W places of the convolution
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from him.model.cpu_kernels import as_many_side

FIRST_CAPACITY = 32  # written tokens that there is room for at first; doubled when needed


class LayerCache:
    """Keys, values and last convolution inputs of one layer.

    Args:
        prompt_lengths_B: tokens of each prompt; the rest of its row is padding.
        num_hypotheses: N / B.
    """

    def __init__(self, prompt_lengths_B: Tensor, num_hypotheses: int) -> None:
        self.prompt_lengths_B = prompt_lengths_B
        self.num_hypotheses = num_hypotheses
        self.num_written = 0
        self.prompt_keys_BHPK: Tensor | None = None
        self.prompt_values_BHPK: Tensor | None = None
        self._keys_NHTK: Tensor | None = None
        self._values_NHTK: Tensor | None = None
        self._last_inputs_NWD: Tensor | None = None

    @property
    def is_filled(self) -> bool:
        """Whether the prompts have been read."""
        return self.prompt_keys_BHPK is not None

    def fill(self, keys_BHPK: Tensor, values_BHPK: Tensor) -> None:
        """Keeps the prompts' keys and values."""
        self.prompt_keys_BHPK, self.prompt_values_BHPK = keys_BHPK.contiguous(), as_many_side(values_BHPK)
        B, H, _, K = keys_BHPK.shape
        shape = (B * self.num_hypotheses, H, FIRST_CAPACITY, K)
        self._keys_NHTK, self._values_NHTK = keys_BHPK.new_empty(shape), values_BHPK.new_empty(shape)

    def append(self, keys_NH1K: Tensor, values_NH1K: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps those of one more token and returns those of all written tokens, (N, H, T, K) each."""
        if self.num_written == self._keys_NHTK.shape[2]:
            self._keys_NHTK, self._values_NHTK = (
                F.pad(kept, (0, 0, 0, kept.shape[2])) for kept in (self._keys_NHTK, self._values_NHTK)
            )
        self._keys_NHTK[:, :, self.num_written] = keys_NH1K[:, :, 0]
        self._values_NHTK[:, :, self.num_written] = values_NH1K[:, :, 0]
        self.num_written += 1
        return self._keys_NHTK[:, :, : self.num_written], self._values_NHTK[:, :, : self.num_written]

    def keep_last(self, inputs_BPD: Tensor, number: int) -> None:
        """Keeps the last inputs of a convolution over the prompts, zeros where a prompt has fewer."""
        before_BPD = F.pad(inputs_BPD, (0, 0, number, 0))  # place p is now at p + number
        places_BW = self.prompt_lengths_B[:, None] + torch.arange(number, device=inputs_BPD.device)
        last_BWD = before_BPD.gather(1, places_BW[:, :, None].expand(-1, -1, inputs_BPD.shape[2]))
        self._last_inputs_NWD = last_BWD.repeat_interleave(self.num_hypotheses, dim=0)

    def shift_in(self, input_N1D: Tensor) -> Tensor:
        """Keeps one more input and returns the window of W that ends with it."""
        window_NWD = torch.cat((self._last_inputs_NWD, input_N1D), dim=1)
        self._last_inputs_NWD = window_NWD[:, 1:]
        return window_NWD

    def reorder(self, origins_N: Tensor) -> None:
        """Makes hypothesis n a continuation of hypothesis `origins_N[n]`.

        Either both belong to the same prompt, or each hypothesis has a prompt of its own, which goes with it.
        """
        if self.num_hypotheses == 1:
            self.prompt_keys_BHPK = self.prompt_keys_BHPK[origins_N]
            self.prompt_values_BHPK = self.prompt_values_BHPK[origins_N]
        written = slice(0, self.num_written)
        self._keys_NHTK[:, :, written] = self._keys_NHTK[origins_N, :, written]
        self._values_NHTK[:, :, written] = self._values_NHTK[origins_N, :, written]
        if self._last_inputs_NWD is not None:
            self._last_inputs_NWD = self._last_inputs_NWD[origins_N]


@dataclass
class DecodingCache:
    """All layers' caches, and where the hypotheses stand.

    Attributes:
        layers: a `LayerCache` each.
        prompt_mask_BP: boolean, True at the prompts' tokens.
        positions_N: place of each hypothesis' next token, counted from 0 at the beginning of its prompt.
    """

    layers: list[LayerCache]
    prompt_mask_BP: Tensor
    positions_N: Tensor

    @classmethod
    def empty(cls, prompt_mask_BP: Tensor, num_layers: int, num_hypotheses: int) -> "DecodingCache":
        """A cache for `num_hypotheses` continuations of each prompt; `Encoder.forward` fills it."""
        lengths_B = prompt_mask_BP.sum(dim=1)
        layers = [LayerCache(lengths_B, num_hypotheses) for _ in range(num_layers)]
        return cls(layers, prompt_mask_BP, lengths_B.repeat_interleave(num_hypotheses))

    def reorder(self, origins_N: Tensor) -> None:
        """See `LayerCache.reorder`."""
        if len(origins_N) == len(self.prompt_mask_BP):
            self.prompt_mask_BP = self.prompt_mask_BP[origins_N]
        self.positions_N = self.positions_N[origins_N]
        for layer in self.layers:
            layer.reorder(origins_N)
