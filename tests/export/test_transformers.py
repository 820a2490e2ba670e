"""Folders of stock classes, opened in a process that knows nothing of HIM."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from tokenizers import Tokenizer

import him.export.stock_weights
from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.export.stock_weights import stock_class
from him.export.transformers import export_transformers
from him.tasks import task_class
from him.tasks.lm.export import LanguageModelStock
from him.tasks.squad.export import SquadStock
from him.tasks.squad.reader import squad_from_document
from him.tasks.summarization.task import SummarizationTask
from him.text.tokenizer import SPECIAL_TOKENS
from him.workflows.predict import Predictor
from tests.export.tiny_runs import make_run, opened
from tests.small_runs import tree

PLAIN = {"conv_kernel_size": 0, "positions": "learned", "num_encoder_layers": 2}
SQUAD = {**PLAIN, "task_type": "squad", "lexical_features": False}
CASES = {
    "BertForQuestionAnswering": {**SQUAD, "norm_first": False, "activation": "relu_squared"},
    "RobertaPreLayerNormForQuestionAnswering": SQUAD,
    "RoFormerForQuestionAnswering": {**SQUAD, "norm_first": False, "positions": "rotary"},
    # Pruning may take as many neurons from each layer.
    "BertGenerationDecoder": {**PLAIN, "task_type": "lm", "norm_first": False, "layer_feedforward": [32, 32]},
}
QUESTION, CONTEXT = "Who built the mill?", "Ann Bell built the mill in 1902. Her brother Tom Reed sold it in 1910."
TEXT = "The mill was [SEP] sold in 1910,\n and\t<unk> then…"
PLACE = TemporaryDirectory()

OPEN = """
import json, pickle, sys
import torch
import transformers

def refuse(*_, **__):
    raise AssertionError("a pickle was read")

sys.modules["him"] = None
pickle.load = torch.load = refuse
given, found = json.load(sys.stdin), {}
for name, folder in given["folders"].items():
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if name == "BertGenerationDecoder":
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = tokenizer(given["text"], return_tensors="pt")
        with torch.no_grad():
            logits = [model(**ids).logits[0].tolist()]
            written = model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()
        found[name] = {"logits": logits, "written": written, "read": tokenizer.decode(ids["input_ids"][0, 1:])}
    else:
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
        ids = tokenizer(given["question"], given["context"], return_tensors="pt", padding="max_length")
        with torch.no_grad():
            output = model(**ids)
        found[name] = {"logits": [output.start_logits[0].tolist(), output.end_logits[0].tolist()]}
    found[name] |= {key: each[0].tolist() for key, each in ids.items()}
    found[name] |= {"class": type(model).__name__, "longest": tokenizer.model_max_length}
json.dump(found, sys.stdout)
"""


@cache
def exported(name: str) -> tuple[Predictor, Path, dict]:
    run = make_run(Path(PLACE.name) / name, **CASES[name])
    predictor = opened(run)
    return predictor, run / "export", export_transformers(predictor, run / "export")


@cache
def seen_from_outside() -> dict:
    """What a program without HIM gets of all folders."""
    folders = {name: str(exported(name)[1]) for name in CASES}
    given = {"folders": folders, "question": QUESTION, "context": CONTEXT, "text": TEXT}
    finished = subprocess.run(
        [sys.executable, "-P", "-c", OPEN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=PLACE.name,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", CASES)
def test_stock_classes_compute_the_same(name):
    predictor, _, report = exported(name)
    found = seen_from_outside()[name]
    assert found["class"] == name == report["class"]
    assert found["longest"] == predictor.config.max_seq_len
    assert report["max_difference"] <= 1e-5 and {1, 3} <= {rows for rows, _ in report["checked_shapes"]}
    mask = torch.tensor([found["attention_mask"]]).bool()
    ids = torch.tensor([found["input_ids"]])
    model, task = predictor.model, predictor.task
    with torch.no_grad():
        if task.name == "lm":
            hidden_BLD = model({"input_ids": ids}).hidden_BLD
            expected = [model.embedding.tokens.project(hidden_BLD, model.output_bias)[0]]
        else:
            batch = {"input_ids": ids, "token_type_ids": torch.tensor([found["token_type_ids"]])}
            hidden_BLD = model.encoder(model.embedding(batch), mask).hidden_BLD
            expected = model.span(hidden_BLD)[0].unbind(dim=-1)
    for own, theirs in zip(expected, found["logits"], strict=True):
        own, theirs = own[mask[0]], torch.tensor(theirs)[mask[0]]
        assert own.std() > 0.1
        torch.testing.assert_close(theirs, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "Question" in name])
def test_tokenizers_make_what_the_model_learned(name):
    """Question and context, their types, and the padding."""
    predictor, _, _ = exported(name)
    task, found = predictor.task, seen_from_outside()[name]
    document = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": [{"id": "0", "question": QUESTION}]}]}]}
    batches = task._batches(task._features(squad_from_document(document, "test", answers_required=False)))
    batch = batches.batch([0])
    length = int(batch["attention_mask"].sum())
    assert len(found["input_ids"]) == predictor.config.max_seq_len and sum(found["attention_mask"]) == length > 20
    for key in ("input_ids", "token_type_ids", "attention_mask"):
        assert found[key][:length] == batch[key][0, :length].long().tolist(), key
        assert not any(found[key][length:]), key


def test_a_text_begins_as_the_model_learned_and_goes_on_alike():
    predictor, _, _ = exported("BertGenerationDecoder")
    found = seen_from_outside()["BertGenerationDecoder"]
    prompt = predictor.task._prompt(TEXT)
    assert found["input_ids"] == prompt
    assert found["read"] == TEXT
    assert "token_type_ids" not in found
    written = list(prompt)
    with torch.no_grad():
        for _ in range(len(found["written"]) - len(prompt)):
            written.append(int(predictor.model.recompute([written], [[]]).argmax()))
    assert len(written) > len(prompt) and found["written"] == written


@pytest.mark.parametrize("name", CASES)
def test_what_is_written(name):
    _, folder, report = exported(name)
    assert "model.safetensors" in tree(folder) and not [path for path in tree(folder) if path.endswith((".bin", ".pt"))]
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(report))
    assert report["file_mb"] == pytest.approx((folder / "model.safetensors").stat().st_size / 1e6)


@pytest.mark.parametrize("name", CASES)
def test_swapped_weights_are_an_error(name, tmp_path, monkeypatch):
    """The comparison feels that queries have become keys, and the wrong order of pairs too."""
    predictor, _, _ = exported(name)
    weights = him.export.stock_weights.stock_weights(predictor.task.stock_export(), predictor.model, 0)
    (query,) = (key for key in weights if key.endswith("layer.1.attention.self.query.weight"))
    changed = {**weights, query: weights[query.replace("query", "key")]}
    if name.startswith("RoFormer"):
        joint = predictor.model.encoder.blocks[1].attention.query_key_value.weight
        changed = {**weights, query: joint[: len(joint) // 3].detach()}
    monkeypatch.setattr("him.export.transformers.stock_weights", lambda *_: changed)
    with pytest.raises(CheckpointError, match=f"^{name}: its outputs differ from the trained model's by .*; nothing"):
        export_transformers(predictor, tmp_path / "out")
    assert tree(tmp_path) == {}


def test_another_tokenizer_is_an_error(tmp_path, monkeypatch):
    predictor, _, _ = exported("BertForQuestionAnswering")
    other = exported("BertGenerationDecoder")[0].task
    wrong = him.export.transformers._tokenizer_of(other.stock_export())
    monkeypatch.setattr("him.export.transformers._tokenizer_of", lambda _: wrong)
    with pytest.raises(CheckpointError, match="^the tokenizer gives other ids in transformers than in HIM; nothing"):
        export_transformers(predictor, tmp_path / "out")
    assert tree(tmp_path) == {}


def test_positions_are_counted_from_the_padding_of_other_tokenizers(tmp_path):
    """RoBERTa's padding has id 1, and its first place is 2 then."""
    predictor = opened(make_run(tmp_path / "run", **CASES["RobertaPreLayerNormForQuestionAnswering"]))
    text = predictor.task.tokenizer.to_str()
    for old, new in zip(SPECIAL_TOKENS, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), strict=True):
        text = text.replace(old, new)
    settings = json.loads(text)
    settings["model"]["unk_token"] = "<unk>"
    predictor.task.tokenizer = Tokenizer.from_str(json.dumps(settings))
    report = export_transformers(predictor, tmp_path / "out")
    assert report["max_difference"] <= 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == 1 and config["max_position_embeddings"] == predictor.config.max_seq_len + 2


CONV, LEXICAL = r"a convolution \(--conv_kernel_size 0\)", r"lexical inputs \(--no-lexical_features\)"
ROTARY = r"rotary positions \(--positions learned\)"
PRE_ROTARY = r"rotary positions with pre-LN \(--positions learned, or --no-norm_first\)"
UNEQUAL = r"unequal layers \(--stage trained\)"


@pytest.mark.parametrize(
    ("settings", "obstacles"),
    [
        ({"task_type": "squad"}, f"{CONV}, {LEXICAL}, {PRE_ROTARY}"),
        ({**SQUAD, "conv_kernel_size": 3}, CONV),
        ({**SQUAD, "lexical_features": True}, LEXICAL),
        ({**SQUAD, "positions": "rotary"}, PRE_ROTARY),
        ({**SQUAD, "layer_heads": [8, 4]}, UNEQUAL),
        ({**SQUAD, "layer_heads": [4, 4]}, UNEQUAL),
        ({**SQUAD, "layer_feedforward": [32, 64]}, UNEQUAL),
        ({"task_type": "lm", "conv_kernel_size": 3}, rf"{CONV}, {ROTARY}, pre-LN \(--no-norm_first\)"),
        ({**CASES["BertGenerationDecoder"], "norm_first": True}, r"pre-LN \(--no-norm_first\)"),
    ],
)
def test_what_no_stock_class_has(settings, obstacles):
    config = task_class(settings["task_type"]).resolve(Config(**settings))
    message = f"^--format transformers: no stock class has {obstacles}; take the flags in brackets, or --format onnx$"
    with pytest.raises(ConfigError, match=message):
        stock_class({"squad": SquadStock, "lm": LanguageModelStock}[config.task_type], config)


def test_summaries_have_no_stock_class():
    with pytest.raises(ConfigError, match="no stock class for --task_type summarization, .*; use --format onnx$"):
        SummarizationTask.stock_export(SummarizationTask)


@pytest.mark.parametrize("name", CASES)
def test_the_advised_flags_lead_to_a_class(name):
    predictor = exported(name)[0]
    assert stock_class(predictor.task.stock_export(), predictor.config).name == name


def test_examples_are_padded_and_of_several_lengths():
    batches = exported("BertForQuestionAnswering")[0].task.stock_export().batches
    lengths = {batch["input_ids"].shape[1] for batch in batches}
    assert len(lengths) >= 2
    assert any(not batch["attention_mask"].all() for batch in batches)
