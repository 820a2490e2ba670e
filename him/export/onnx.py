"""A trained model as an ONNX file, and as one with int8 weights, each compared with the model before it is kept."""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from him.core.errors import ConfigError
from him.core.files import write_folder, write_json
from him.export.folders import REPORT, Differences, check_packages, exportable, quiet
from him.export.onnx_int8 import quantize_file
from him.runs.folder import ModelFolder
from him.tasks.base import Task
from him.tasks.exporting import Graph, Outputs
from him.workflows.predict import Predictor

FLOAT, INT8 = "model.onnx", "model_int8.onnx"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
LENGTHS = (128, 384)  # of the rows that are timed
WARM_UP_RUNS = 3
TIMED_RUNS = 15
MOST_MB = 1900  # of weights: an ONNX file of one piece ends at 2 GiB


def export_onnx(
    predictor: Predictor, output: Path, validation_file: str | None = None, stage: str = "trained"
) -> dict[str, Any]:
    """Writes a folder with both files, the tokenizer and the configuration; whole or not at all.

    Args:
        predictor: a trained model, in float32 on a CPU.
        output: folder to write.
        validation_file: a file of the task's format, on which all forms are evaluated; None for none.
        stage: which model of its run this is, for the report.

    Returns:
        What `export.json` holds.

    Raises:
        ConfigError: a package is missing, the model is too large or int8, or its task cannot be exported.
        CheckpointError: the ONNX file computes something else.
        DataError: the validation file is not sound.
    """
    check_packages(PACKAGES, "--format onnx")
    task, model = exportable(predictor), predictor.model
    graph = task.export_graph(model)
    # What is quick, and the same whatever the run was validated on.
    quick = predictor.config.with_values(bertscore_samples=0, validation_size=None, **task.export_settings)
    evaluated = task.with_config(quick)
    weights_mb = sum(each.numel() * each.element_size() for each in model.state_dict().values()) / 1e6
    if weights_mb > MOST_MB:
        raise ConfigError(f"--format onnx: {weights_mb:,.0f} MB of weights do not fit into one file of {MOST_MB:,} MB")
    own = {"form": "HIM float", "file_mb": weights_mb, **_latencies(graph.module, task)}
    report: dict[str, Any] = {"format": "onnx", "task": task.name, "stage": stage, "forms": [own]}
    if validation_file is not None:  # first, because it may not be sound
        own |= evaluated.evaluate_file(model, predictor.compute, validation_file).metrics

    def fill(folder: Path) -> None:
        with quiet():
            opset = _write_float(graph, folder / FLOAT)
            quantize_file(folder / FLOAT, folder / INT8)
        report.update(opset=opset, inputs=_described(graph), outputs=list(graph.outputs))
        for name, form in ((FLOAT, "ONNX float"), (INT8, "ONNX int8")):
            compute = _open(folder / name, graph)
            differences = _compared(graph, compute)
            if name == FLOAT:
                differences.check(name)
                report.update(differences.to_dict())
            row = {"form": form, "file": name, "file_mb": (folder / name).stat().st_size / 1e6}
            row |= {"max_difference": differences.largest, **_latencies(compute, task)}
            if validation_file is not None:
                exported = task.exported_model(compute)
                row |= evaluated.evaluate_file(exported, predictor.compute, validation_file).metrics
            report["forms"].append(row)
        predictor.config.save(ModelFolder(folder).config)
        task.save(folder)
        write_json(folder / REPORT, report)

    write_folder(output, fill)
    return report


def _write_float(graph: Graph, path: Path) -> int:
    """Writes the float32 file; returns its opset."""
    batch = graph.feed(graph.batches[0])
    with torch.no_grad():
        program = torch.onnx.export(
            graph.module,
            (),
            kwargs={"batch": batch},
            # The older exporter gave an attention model wrong logits.
            dynamo=True,
            dynamic_shapes={"batch": graph.dynamic_shapes()},
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    proto = program.model_proto
    _forget_origin(proto)
    path.write_bytes(proto.SerializeToString())
    return next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))


def _forget_origin(proto: Any) -> None:
    """Removes notes of which line of which source file each node comes from."""
    parts = [proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]
    for part in [*parts, *proto.graph.input, *proto.graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""


def _open(path: Path, graph: Graph) -> Outputs:
    """What the ONNX file of a graph computes, in ONNX Runtime."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # it never gives memory back, and batches have many sizes
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def compute(batch: dict[str, Tensor]) -> list[Tensor]:
        feed = {name: np.ascontiguousarray(each.numpy()) for name, each in graph.feed(batch).items()}
        return [torch.from_numpy(each) for each in session.run(list(graph.outputs), feed)]

    return compute


@torch.inference_mode()
def _compared(graph: Graph, compute: Outputs) -> Differences:
    """Both on real inputs, at the positions that count."""
    differences = Differences()
    for batch in graph.batches:
        differences.shapes.append(list(batch["input_ids"].shape))
        for name, expected, found in zip(graph.masks, graph.module(batch), compute(batch), strict=True):
            counts = slice(None) if name is None else batch[name]
            differences.add(expected[counts], found[counts])
    return differences


@torch.inference_mode()
def latency_ms(outputs: Outputs, task: Task, length: int) -> float:
    """Milliseconds that one row of this length takes, without padding: the median of `TIMED_RUNS`.

    Args:
        outputs: computes them of a batch; a file's, from `_open`, or a graph's module.
        task: makes the row.
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


def _latencies(outputs: Outputs, task: Task) -> dict[str, float]:
    """By the names of `compressed/report.json`; lengths that the model was made for."""
    lengths = [length for length in LENGTHS if length <= task.config.max_seq_len]
    return {f"latency_ms_1x{length}": latency_ms(outputs, task, length) for length in lengths}


def _described(graph: Graph) -> list[dict[str, Any]]:
    """Name, type and dimensions of each input."""
    batch, shapes = graph.batches[0], graph.dynamic_shapes()
    return [
        {
            "name": name,
            "type": str(batch[name].dtype).removeprefix("torch."),
            "shape": [shapes[name].get(axis, size) for axis, size in enumerate(batch[name].shape)],
        }
        for name in graph.inputs
    ]
