"""The stage of quantization: the last float model in int8, on the kernels that this machine has."""

from him.compression.quantization import backend_note, find_backend, pack, quantize, save_int8
from him.compression.stages import Stages
from him.runs.folder import INT8


def quantize_stage(stages: Stages, stage: str) -> dict[str, float]:
    """Quantizes the model of a stage, saves it, and returns its metrics on all validation data."""
    config = stages.config_of(stage)
    task = stages.task.with_config(config)
    model = quantize(stages.load(stage))
    backend = find_backend(stages.compute.device)
    print(backend_note(backend, stages.compute.bf16, stages.compute.device), flush=True)
    pack(model.to(stages.compute.device), backend, stages.compute.bf16)
    metrics = stages.evaluate(task, model)
    save_int8(stages.part.model(INT8), stages.as_saved(config), model, task, metrics)
    return metrics
