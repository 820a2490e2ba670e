"""ONNX Runtime: the outputs of an exported file, and how long they take."""

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from him.tasks.base import Task
from him.tasks.exporting import Graph, Outputs

WARM_UP_RUNS = 3
TIMED_RUNS = 15


class OnnxSession:
    """What an ONNX file computes.

    Args:
        path: the file.
        graph: what was exported.
    """

    def __init__(self, path: Path, graph: Graph) -> None:
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


@torch.inference_mode()
def latency_ms(outputs: Outputs, task: Task, length: int) -> float:
    """Milliseconds that one row of this length takes, without padding: the median of `TIMED_RUNS`.

    Args:
        outputs: computes them of a batch; an `OnnxSession.compute` or a graph's module.
        task: makes the row.
        length: L.
    """
    batch = task.dummy_batch(1, length)
    for _ in range(WARM_UP_RUNS):
        outputs(batch)
    seconds = []
    for _ in range(TIMED_RUNS):
        started_at = time.perf_counter()
        outputs(batch)
        seconds.append(time.perf_counter() - started_at)
    return 1000.0 * statistics.median(seconds)
