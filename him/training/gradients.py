"""Gradient accumulation: a batch in as many passes as memory needs; and the source of gradients that are not finite."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from him.config import Config
from him.core.compute import Compute, is_out_of_memory, release_memory
from him.core.errors import HimError
from him.data.batching import bucket_length
from him.metrics.running import RunningMean
from him.tasks.base import Task
from him.training.non_finite import find_non_finite_source
from him.training.objective import Objective

CPU_TOKENS = 6144  # 2,080 MB -> 1,360 MB for batches of 32 SQuAD windows, at the same speed


def step_seed(seed: int, step: int) -> int:
    """Seed of one step's dropout: a pure function of (seed, step), so that a resumed run draws the same masks."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


@dataclass(eq=False)
class Gradients:
    """Gradient accumulation: forward and backward passes of a batch, cut into micro-batches that fit into memory.

    Attributes:
        most_tokens: in a pass, padding included, since memory ran out with more; None if it never did.
        say: prints a line.
    """

    task: Task
    objective: Objective
    config: Config
    compute: Compute
    model: nn.Module
    say: Callable[[str], None]
    most_tokens: int | None = None

    def accumulate(self, examples: np.ndarray, step: int) -> tuple[RunningMean, RunningMean, int]:
        """Leaves the gradients of a batch in the model's parameters.

        Where memory runs out, the micro-batches are halved from then on: the gradients stay the same, but for the order
        of sums and the masks of dropout.

        Args:
            examples: numbers of the batch's training examples.
            step: updates made so far; decides the dropout.

        Returns:
            Loss and accuracy over all targets, and the number of tokens.

        Raises:
            HimError: a single example is too large for the memory.
        """
        while True:
            torch.manual_seed(step_seed(self.config.seed, step))
            try:
                return self._accumulate_once(examples)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = " ".join(str(error).split())[:200] or type(error).__name__
            # Here, where the error's frames no longer hold the tensors of the pass.
            self.model.zero_grad(set_to_none=True)
            release_memory()
            self._halve(examples, step, said)

    def _accumulate_once(self, examples: np.ndarray) -> tuple[RunningMean, RunningMean, int]:
        """Accumulates gradients; the sum over all targets is divided once, by their number."""
        batches = [self.task.train_batch(part) for part in self._micro_batches(examples)]
        loss, accuracy = RunningMean(), RunningMean()
        num_targets = sum(self.task.num_targets(batch) for batch in batches)
        for batch in batches:
            with self.compute.autocast():
                sums = self.objective(self.model, self.compute.to_device(batch))
            (sums.loss / num_targets).backward()
            loss.add(float(sums.loss.detach()), sums.num_targets)
            accuracy.add(float(sums.num_correct), sums.num_targets)
        return loss, accuracy, sum(int(batch["attention_mask"].sum()) for batch in batches)

    def _micro_batches(self, examples: np.ndarray) -> list[np.ndarray]:
        return np.array_split(examples, math.ceil(len(examples) / self.micro_batch_size(examples)))

    def micro_batch_size(self, examples: np.ndarray) -> int:
        """Examples per forward pass; a batch of long ones is cut, on a CPU without being asked."""
        most_tokens = self.config.micro_batch_tokens
        if most_tokens is None:
            most_tokens = CPU_TOKENS if self.compute.device.type == "cpu" else math.inf
        fitting = most_tokens / int(self.task.train_lengths[examples].max())
        if self.most_tokens is not None:
            fitting = min(fitting, self.most_tokens / self._row_length(examples))
        return max(1, int(min(fitting, self.config.micro_batch_size or len(examples))))

    def _row_length(self, examples: np.ndarray) -> int:
        """Tokens that a row of a batch has room for: no later batch may need more memory than one that fitted."""
        longest = int(self.task.train_lengths[examples].max())
        return bucket_length(longest, self.config.max_seq_len or longest)

    def _halve(self, examples: np.ndarray, step: int, said: str) -> None:
        """Remembers that a pass may have half of the tokens that it had with these examples."""
        rows, longest = self.micro_batch_size(examples), int(self.task.train_lengths[examples].max())
        if rows == 1:
            raise HimError(
                f"step {step + 1}: out of memory with a single example of {longest} tokens ({said}); lower "
                "--max_seq_len, --embed_dim or --num_encoder_layers"
            )
        self.most_tokens = rows // 2 * self._row_length(examples)
        self.say(
            f"step {step + 1}: out of memory with {rows} examples of up to {longest} tokens in a pass; from here on "
            f"{rows // 2} at a time, with as many more passes before each update"
        )

    def try_longest_batch(self, step: int) -> None:
        """Makes the passes that need the most memory first, so that a lack of it shows now and not after hours."""
        longest = np.argsort(-self.task.train_lengths, kind="stable")[: self.config.batch_size]
        self.model.train()
        self.accumulate(longest, step)
        self.model.zero_grad(set_to_none=True)

    def non_finite_source(self, examples: np.ndarray, step: int, loss_is_finite: bool) -> str:
        """What was the first to be not finite in a step with finite weights, whose gradients are still there; repeats
        its forward pass, dropout too."""
        torch.manual_seed(step_seed(self.config.seed, step))
        micro_batches = self._micro_batches(examples)
        batches = [self.compute.to_device(self.task.train_batch(part)) for part in micro_batches]

        def forward(batch: dict[str, Tensor]) -> None:
            with self.compute.autocast():
                self.objective(self.model, batch)

        parts = [(self.task.source_indices(part), batch) for part, batch in zip(micro_batches, batches, strict=True)]
        gradients = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
        return find_non_finite_source(self.model, parts, forward, loss_is_finite, gradients)
