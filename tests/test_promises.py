"""What HIM promises to programs that use it: names in Python, keys of files and of --json, tags, settings and flags.

All are written out here, so that no renaming inside can change them unseen. More may come; none of these may go.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compression.tiny import TASKS, compressed_run, quickly
from tests.small_runs import ROOT, call_main, call_script, records

# -- settings ----------------------------------------------------------------------------------------------------------

SETTINGS = """
    num_encoder_layers embed_dim num_heads dim_feedforward layer_heads layer_feedforward conv_kernel_size norm_first
    layer_norm_eps activation positions dropout variational_dropout attention_dropout word_dropout lexical_features
    copy_head
    task_type dataset dataset_config train_file train_file_weights end_with_first_file num_augmentations validation_file
    corpus_dir document_field summary_field text_field sample_size validation_size tokenizer tokenizer_type vocab_size
    max_seq_len max_target_len doc_stride eval_stride max_answer_words cache_dir
    optimizer learning_rate muon_learning_rate schedule warmup_ratio weight_decay beta1 beta2 max_grad_norm
    label_smoothing ema_decay
    num_epochs max_steps batch_size micro_batch_size eval_every_steps micro_batch_tokens early_stopping_epochs
    save_every_steps save_every_minutes keep_checkpoints init_from teacher distillation_weight seed precision device
    num_threads dry_run
    pretrain_epochs pretrain_files pretrain_learning_rate
    max_new_tokens num_beams length_penalty no_repeat_ngram_size no_repeat_words temperature top_k top_p
    compress pruning_amount pruning_method fine_tune_epochs fine_tune_learning_rate fine_tune_distillation_weight
    output_dir run_name attention_dir attention_examples eval_samples bertscore_model bertscore_samples
""".split()
# Shorter names, and those of earlier versions.
ALIASES = {
    "num_layers": "num_encoder_layers",
    "ff_dim": "dim_feedforward",
    "seq_len": "max_seq_len",
    "epochs": "num_epochs",
    "epoch": "num_epochs",
    "conv_width": "conv_kernel_size",
    "shared_dropout": "variational_dropout",
    "train_weights": "train_file_weights",
    "first_file_last": "end_with_first_file",
    "variants": "num_augmentations",
    "warmup_share": "warmup_ratio",
    "teacher_weight": "distillation_weight",
    "distillation": "fine_tune_distillation_weight",
}
SWITCHES = {"shared_dropout", "first_file_last"}


def parsed(*arguments: str) -> dict:
    """The settings that `main.py` reads from its arguments."""
    from him.cli.parser import build_parser, parse_command_line

    return parse_command_line(build_parser(""), arguments)[0]


def test_every_setting_is_a_flag_with_help():
    lines = [line for line in call_main("--help").out.splitlines() if line.startswith("  -")]
    shown = {flag for line in lines for flag in re.findall(r"--[\w-]+", line)}
    assert len(SETTINGS) == len(set(SETTINGS)) > 90
    assert {f"--{name}" for name in (*SETTINGS, *ALIASES)} <= shown


def test_every_setting_is_a_key_of_a_config_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("".join(f"{name}: 1\n" for name in SETTINGS))
    assert parsed("--config", str(path)) == dict.fromkeys(SETTINGS, 1)


@pytest.mark.parametrize(("old", "new"), ALIASES.items())
def test_other_names_of_a_setting(tmp_path, old, new):
    """As flags, negated ones too, and as keys of a config file."""
    path = tmp_path / "settings.yaml"
    path.write_text(f"{old}: 1\n")
    assert parsed("--config", str(path)) == {new: 1}
    if old in SWITCHES:
        assert (parsed(f"--{old}"), parsed(f"--no-{old}")) == ({new: True}, {new: False})
    else:
        (found,) = parsed(f"--{old}", "1").items()
        assert found in ((new, "1"), (new, ["1"]))


@pytest.mark.parametrize("kind", TASKS)
def test_every_setting_is_in_a_runs_configuration(kind):
    written = json.loads((compressed_run(kind).run / "config.json").read_text(encoding="utf-8"))
    assert set(SETTINGS) <= set(written)


# -- Python ------------------------------------------------------------------------------------------------------------

INPUT = {
    "squad": {"question": "Who built the mill?", "context": "Ann Bell built the mill in 1902."},
    "summarization": {"text": "Ann Bell built the mill in 1902."},
    "lm": {"text": "Ann Bell built the"},
}
ANSWER = {
    "squad": {"text", "start", "end", "score", "no_answer_probability", "answerable", "alternatives"},
    "summarization": {"text", "num_tokens", "num_cut"},
    "lm": {"text", "num_tokens", "num_cut"},
}
OF_ALL = {"Loss", "Perplexity", "Accuracy", "Diversity/distinct-1", "Diversity/distinct-2"}
METRICS = {
    "squad": OF_ALL | {"F1", "Exact_Match"},
    "summarization": OF_ALL | {"ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"},
    "lm": OF_ALL | {"Bits_Per_Byte"},
}


def test_names_of_the_package():
    from him import Config, load, train

    assert Config(embed_dim=64, num_heads=4).embed_dim == 64
    assert callable(load) and callable(train)


@pytest.mark.parametrize("kind", TASKS)
def test_what_train_returns(kind):
    result = compressed_run(kind).result
    assert set(result) == {
        *("run", "metrics", "best_step", "best_epoch", "train_seconds", "tokens_per_second", "compression")
    }
    assert set(result["metrics"]) == METRICS[kind]
    assert isinstance(result["run"], str) and isinstance(result["best_step"], int)


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("stage", ["trained", "pruned", "fine_tuned", "int8"])
def test_what_a_predictor_answers(kind, stage):
    import him

    predictor = him.load(compressed_run(kind).run, stage, num_threads=1)
    answer = predictor.predict(**INPUT[kind])
    assert set(dataclasses.asdict(answer)) == ANSWER[kind]
    assert isinstance(answer.text, str)
    if kind == "squad":
        assert answer.text == INPUT[kind]["context"][answer.start : answer.end]
    pieces = predictor.stream(**INPUT[kind])
    if kind != "lm":
        assert pieces is None
    else:
        assert isinstance(pieces, Iterator)
        assert "".join(pieces) == answer.text


@pytest.mark.parametrize("kind", TASKS)
def test_what_a_predictor_says_of_a_file(kind):
    import him

    settings, run, result = compressed_run(kind)
    predictor = him.load(run)
    answers = predictor.predict_file(settings["validation_file"])
    assert answers and all(isinstance(id, str) for id in answers)
    for answer in answers.values():
        assert set(dataclasses.asdict(answer)) == ANSWER[kind]
    evaluation = predictor.evaluate(settings["validation_file"])
    assert evaluation.metrics == result["metrics"]
    assert set(evaluation.predictions) == {"predictions.json"}


# -- files -------------------------------------------------------------------------------------------------------------

TRAIN_TAGS = {"Loss/train", "Accuracy/train", "Gradient_Norm/train", "Learning_Rate", "Throughput/tokens_per_second"}
VALIDATION_TAGS = {
    kind: {name if name.startswith("Diversity/") else f"{name}/val" for name in METRICS[kind]} for kind in TASKS
}
SPEEDS = {"latency_ms_1x128", "latency_ms_1x384", "examples_per_second_32x384", "latency_ms_example"}


def tags_of(folder: Path) -> dict[str, set[str]]:
    """What TensorBoard shows of a folder's events, by kind."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {kind: set(tags) for kind, tags in events.Tags().items() if isinstance(tags, list) and tags}


@pytest.mark.parametrize("kind", TASKS)
def test_tags(kind):
    run = compressed_run(kind).run
    scalars = TRAIN_TAGS | VALIDATION_TAGS[kind]
    others = {
        "squad": {"images": {"Attention/1/layer1", "Attention/1/layer2"}},
        "summarization": {"tensors": {"Samples/val/text_summary"}},
        "lm": {"tensors": {"Samples/val/text_summary"}},
    }
    for folder in (run, run / "compressed" / "fine_tuned"):
        assert tags_of(folder) == {"scalars": scalars} | others[kind]
        assert {record["tag"] for record in records(folder)} == scalars
    shown = {"images": {"Compression"}, "tensors": {"Compression/table/text_summary"}}
    assert tags_of(run / "compressed") == shown


@pytest.mark.parametrize("kind", TASKS)
def test_report_of_the_compression(kind):
    _, run, result = compressed_run(kind)
    report = json.loads((run / "compressed" / "report.json").read_text(encoding="utf-8"))
    assert report == result["compression"]
    assert set(report) == {"settings", "metric", "stages", "table", "summary"}
    assert report["metric"] == {"squad": "F1", "summarization": "ROUGE-L", "lm": "Bits_Per_Byte"}[kind]
    assert [stage["stage"] for stage in report["stages"]] == ["trained", "pruned", "fine_tuned", "int8"]
    speeds = SPEEDS if kind == "squad" else SPEEDS | {"latency_ms_token"}
    for stage in report["stages"]:
        of_first = set() if stage["stage"] == "trained" else {"verdict"}
        expected = {"stage", "precision", "parameters", "file_mb"} | speeds | METRICS[kind] | of_first
        assert set(stage) - {"bf16"} == expected
        assert set(stage.get("bf16", speeds)) == speeds
    assert {
        *("trained", "pruning_amount", "pruning_method", "fine_tune_epochs", "fine_tune_learning_rate"),
        *("fine_tune_distillation_weight", "dataset", "validation_file", "validation_size", "corpus_dir"),
        *("sample_size", "seed", "dry_run", "data", "machine"),
    } == set(report["settings"])


# -- --json ------------------------------------------------------------------------------------------------------------


def json_of(name: str, *arguments: str | Path) -> dict:
    """What a script prints with --json, which is one line and nothing else."""
    finished = call_script(name, *arguments, "--json")
    assert (finished.status, len(finished.out.splitlines())) == (0, 1), finished
    return json.loads(finished.out)


@pytest.mark.parametrize("kind", TASKS)
def test_json_of_predicting(kind):
    settings, run, _ = compressed_run(kind)
    typed = [part for name, text in INPUT[kind].items() for part in (f"--{name}", text)]
    assert set(json_of("predict.py", run, *typed)) == ANSWER[kind]
    for answer in json_of("predict.py", run, "--file", settings["validation_file"]).values():
        assert set(answer) == ANSWER[kind]


@pytest.mark.parametrize("kind", TASKS)
def test_json_of_evaluating(kind):
    settings, run, result = compressed_run(kind)
    found = json_of("evaluate.py", run, "--file", settings["validation_file"])
    assert found == {"run": str(run), "file": settings["validation_file"], "metrics": result["metrics"]}


def test_json_of_verifying():
    run = compressed_run("lm").run
    found = json_of("verify.py", run, "--no-replay")
    assert set(found) == {"run", "good", "findings"}
    assert found["good"] is True
    assert found["findings"] and all(set(each) == {"what", "is_good", "note"} for each in found["findings"])


def test_json_of_comparing(tmp_path):
    run, picture = compressed_run("lm").run, tmp_path / "curves.png"
    found = json_of("compare.py", run, "--labels", "one", "--tags", "Loss/val", "--output", picture)
    assert set(found) == {"picture", "last"}
    assert (found["picture"], set(found["last"]), set(found["last"]["one"])) == (str(picture), {"one"}, {"Loss/val"})


def test_json_of_compressing_for_several_amounts(tmp_path):
    """For one amount it is `report.json`, of which tests/compression see."""
    run = tmp_path / "run"
    shutil.copytree(compressed_run("lm").run, run)
    with quickly():
        found = json_of("compress.py", run, "--sweep", "0")
    assert set(found) == {"points", "metric", "table", "picture", "summary"}
    assert [(point["pruning_amount"], point["stage"]) for point in found["points"]] == [(0, "trained"), (0, "int8")]
    assert found == json.loads((run / "sweep" / "sweep.json").read_text(encoding="utf-8"))


# -- command lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "shown"),
    {
        "main.py": "--config --resume --allow_inexact_resume",
        "scripts/predict.py": "--question --context --text --file --example --stage --device --num_threads --json "
        "--max_new_tokens --num_beams --length_penalty --no_repeat_ngram_size --no_repeat_words --temperature --top_k "
        "--top_p --document_field --summary_field --seed",
        "scripts/evaluate.py": "--file --output --stage --device --num_threads --json --document_field --summary_field "
        "--validation_size --eval_stride --eval_samples --num_beams --max_new_tokens --temperature",
        "scripts/compress.py": "--pruning_amount --pruning_method --fine_tune_epochs --fine_tune_learning_rate "
        "--fine_tune_distillation_weight --train_file --validation_file --corpus_dir --cache_dir --attention_dir "
        "--device --num_threads --sweep --json",
        "scripts/export.py": "--format --stage --output --file --num_threads --json",
        "scripts/verify.py": "--no-replay --json",
        "scripts/compare.py": "--tags --labels --output --json",
        "scripts/ablation.py": "--train_file --validation_file --extra_files --init_from --seeds --output_dir "
        "--configs --only --num_threads --json",
        "scripts/benchmark.py": "train features lm generate ngram",
    }.items(),
)
def test_flags_of_a_script(script, shown):
    command = [sys.executable, script, "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, "")
    words = set(re.findall(r"[\w-]+", finished.stdout))
    assert set(shown.split()) <= words
