"""Training a new run, from its settings to its results."""

import warnings
from typing import Any

from him.compression.pipeline import naming
from him.config import Config
from him.config.resolve import resolve
from him.core.compute import choose_compute
from him.runs.folder import RunFolder, read_earlier
from him.training.trainer import Trainer
from him.workflows.finish import OnResult, alone, train_to_the_end
from him.workflows.prepare import build, load_initial
from him.workflows.pretrain import pretrain


@alone()
def train(config: Config, on_result: OnResult | None = None, *, announce: OnResult | None = None) -> dict[str, Any]:
    """Trains a new run, then compresses its best model.

    Args:
        config: all settings.
        on_result: called with the result as soon as the model is trained and measured, before it is compressed.
        announce: what `on_result` was called before.

    Returns:
        `run` (its folder), `best_step`, `best_epoch`, `train_seconds`, `tokens_per_second`, `metrics`: those of the
        best model on the whole validation set, by TensorBoard tag without `/val`; and, unless `compress` is off,
        `compression`: the report of what made the model smaller and faster.

    Raises:
        HimError: a setting, the data or the machine does not allow it.
        Interrupted: a signal ended it; `resume` goes on.
    """
    if announce is not None:
        warnings.warn("announce is called on_result", DeprecationWarning, stacklevel=3)  # past `alone`
        on_result = on_result or announce
    config = resolve(config, read_earlier(config.init_from))
    folder = RunFolder.for_new_run(config)
    compute = choose_compute(config.device, config.precision, config.num_threads)
    task, objective, model = build(config, compute)
    load_initial(model, config)
    folder.create(config)
    with folder.locked(), naming(folder):
        pretrain(model, task, config, compute, folder)
        trainer = Trainer(task, config, folder, compute, model.to(compute.device), objective=objective)
        return train_to_the_end(trainer, on_result)
