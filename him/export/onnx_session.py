"""Inference with ONNX Runtime: an ONNX file in place of a trained model, so that a task can evaluate it as its own.

# B batch   L length   N rows at once   V vocabulary
"""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from him.export.graphs import Graph
from him.tasks.base import Task
from him.tasks.squad.model import SpanOutput

ROWS_AT_ONCE = 8
OUTPUTS_AT_ONCE = 2**24  # numbers
WARM_UP_RUNS = 3
TIMED_RUNS = 15


class OnnxModel(nn.Module):
    """What an ONNX file computes, with the methods by which the tasks use a model.

    Args:
        path: the file.
        graph: what was exported.
    """

    def __init__(self, path: Path, graph: Graph) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # it never gives memory back, and batches have many sizes
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.graph = graph

    def compute(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The outputs for a batch."""
        feed = {name: np.ascontiguousarray(each.numpy()) for name, each in self.graph.feed(batch).items()}
        return [torch.from_numpy(each) for each in self.session.run(list(self.graph.outputs), feed)]

    def forward(self, batch: dict[str, Tensor]) -> SpanOutput:
        """As `QuestionAnsweringModel`, a few rows at a time."""
        parts = [self.compute(rows) for rows in _rows(batch, ROWS_AT_ONCE)]
        start_BL, end_BL = (torch.cat(each) for each in zip(*parts, strict=True))
        return SpanOutput(start_BL, end_BL)

    def loss(self, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """As the models that write text; without smoothing, which is for training."""
        loss, num_correct = torch.zeros(()), torch.zeros(())
        vocab_size = self.session.get_outputs()[0].shape[-1]
        num_rows = max(1, min(ROWS_AT_ONCE, OUTPUTS_AT_ONCE // (batch["input_ids"].shape[1] * vocab_size)))
        for rows in _rows(batch, num_rows):
            (predicted_NLV,) = self.compute(rows)
            labels_NT = rows["labels"]
            if "label_positions" in rows:  # of a summary, which has fewer places than its row
                places_NT1 = rows["label_positions"][:, :, None]
                predicted_NLV = predicted_NLV.gather(1, places_NT1.expand(-1, -1, vocab_size))
            counts_NT = rows.get("is_target", labels_NT >= 0)
            predicted_V, labels = predicted_NLV[counts_NT], labels_NT[counts_NT]
            loss += F.cross_entropy(predicted_V, labels, reduction="sum")
            num_correct += (predicted_V.argmax(dim=-1) == labels).sum()
        return loss, num_correct


def _rows(batch: dict[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    """The batch cut into some of at most so many rows."""
    starts = range(0, len(batch["input_ids"]), number)
    return [{name: each[start : start + number] for name, each in batch.items()} for start in starts]


@torch.inference_mode()
def latency_ms(model: nn.Module, task: Task, length: int) -> float:
    """Milliseconds that one row of this length takes, without padding: the median of `TIMED_RUNS`.

    Args:
        model: computes a tuple of tensors from a batch; an `OnnxModel` or a graph's module.
        task: makes the row.
        length: L.
    """
    batch = task.dummy_batch(1, length)
    run = model.compute if isinstance(model, OnnxModel) else model
    for _ in range(WARM_UP_RUNS):
        run(batch)
    seconds = []
    for _ in range(TIMED_RUNS):
        started_at = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started_at)
    return 1000.0 * statistics.median(seconds)
