"""Starting from a pretrained BERT encoder: its weights exactly, its shape, its tokenizer, and one line where not."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

import him
from him.config.bert import RECIPE, is_bert
from him.config.config import Config
from him.config.resolve import resolve
from him.core.errors import CheckpointError, ConfigError
from him.runs.checkpoint import load_tensors
from him.runs.folder import read_earlier
from him.tasks.squad.task import SquadTask
from him.text.tokenizer import parse_tokenizer
from him.workflows.prepare import load_bert
from tests.small_runs import assert_one_line, call_main, flags, small_settings, writing_settings

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
OF_ENCODER = ("embed_dim", "num_encoder_layers", "num_heads", "dim_feedforward", "max_seq_len", "vocab_size")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    settings = small_settings(tmp_path_factory.mktemp("data"))
    return {name: value for name, value in settings.items() if name not in OF_ENCODER}


@pytest.fixture(scope="module")
def encoder(data, tmp_path_factory) -> Path:
    """A folder as the hub has them, with weights that are large enough to be felt."""
    from him.text.training import train_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    text = Path(data["train_file"]).read_text(encoding="utf-8")
    tokenizer = train_tokenizer([text], 400)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    bert = BertModel(
        BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=200, layer_norm_eps=1e-3, **SHAPE)
    )
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bert.save_pretrained(folder)
    return folder


def copy_of(encoder: Path, folder: Path, **changes) -> Path:
    folder.mkdir()
    for path in encoder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("lexical", [False, True])
def test_outputs_are_those_of_the_encoder(encoder, lexical):
    config = resolve(Config(init_from=encoder, lexical_features=lexical), read_earlier(str(encoder)))
    assert (config.embed_dim, config.num_encoder_layers, config.norm_first, config.max_seq_len) == (32, 2, False, 200)
    assert config.learning_rate == RECIPE["learning_rate"]
    task = SquadTask(config, parse_tokenizer(encoder / "tokenizer.json"), None, False)
    model = task.build_model().eval()
    load_bert(model, encoder)
    batch = task.dummy_batch(3, 40)
    batch["attention_mask"] = torch.arange(40)[None] < torch.tensor([40, 31, 7])[:, None]
    with torch.no_grad():
        found = model.encoder(model.embedding(batch), batch["attention_mask"], False).hidden_BLD
        expected = BertModel.from_pretrained(encoder).eval()(
            batch["input_ids"], batch["attention_mask"].long(), batch["token_type_ids"].contiguous()
        )
    present = batch["attention_mask"]
    assert expected.last_hidden_state.std() > 0.5
    torch.testing.assert_close(found[present], expected.last_hidden_state[present], atol=1e-5, rtol=0)


def test_names_of_a_model_with_a_head(encoder, tmp_path):
    """`BertForQuestionAnswering` and the like put `bert.` before the names."""
    from him.runs.checkpoint import save_tensors

    folder = copy_of(encoder, tmp_path / "bert")
    weights = load_tensors(encoder / "model.safetensors")
    save_tensors({f"bert.{name}": each for name, each in weights.items()}, folder / "model.safetensors")
    config = resolve(Config(init_from=folder), read_earlier(str(folder)))
    model = SquadTask(config, parse_tokenizer(folder / "tokenizer.json"), None, False).build_model()
    load_bert(model, folder)
    assert torch.equal(model.embedding.tokens.weight, weights["embeddings.word_embeddings.weight"])


def test_from_the_command_line_to_int8(data, encoder, tmp_path):
    """Trained, pruned and quantized as other models are; then used without the encoder's folder."""
    folder = copy_of(encoder, tmp_path / "bert")
    run = Path(data["output_dir"]) / "warm"
    finished = call_main(*flags({**data, "compress": True, "dry_run": True, "run_name": run.name, "init_from": folder}))
    assert (finished.status, finished.err) == (0, "")
    assert (run / "compressed" / "int8" / "model.safetensors").is_file()
    tokenizers = [json.loads((each / "tokenizer.json").read_text()) for each in (run / "best", folder)]
    assert tokenizers[0] == tokenizers[1]
    folder.rename(tmp_path / "gone")
    for stage in ("trained", "int8"):
        assert him.load(run, stage).predict(question="Who?", context="Ann Bell built it.").text
    finished = call_main("--resume", run)
    assert (finished.status, finished.err) == (0, "")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "relu"}, "an encoder of another kind (hidden_act relu); use one like bert-base-uncased"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type relative_key"),
        ({"num_hidden_layers": "many"}, "config.json: not of an encoder"),
        ({"hidden_size": 64}, "has shape"),
        ({"num_hidden_layers": 3}, "it has no encoder.layer.2.attention.self.query.weight"),
    ],
)
def test_encoders_that_cannot_be_taken(data, encoder, tmp_path, changes, part):
    folder = copy_of(encoder, tmp_path / "bert", **changes)
    assert_one_line(call_main(*flags({**data, "run_name": "no", "init_from": folder})), part)
    assert not (Path(data["output_dir"]) / "no").exists()


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ({"norm_first": True}, "--norm_first True is False there; leave these flags out"),
        ({"embed_dim": 64, "conv_kernel_size": 7}, "--embed_dim 64 is 32 there, --conv_kernel_size 7 is 0 there"),
        ({"max_seq_len": 201}, "--max_seq_len 201: the encoder has 200 positions; use at most that"),
    ],
)
def test_flags_that_make_another_model(data, encoder, typed, part):
    finished = call_main(*flags({**data, **typed, "run_name": "no", "init_from": encoder}))
    assert_one_line(finished, f"--init_from {encoder}: " if "init" in part else "", part)


def test_a_task_that_may_not_look_ahead(encoder, tmp_path):
    settings = writing_settings("lm", tmp_path)
    settings = {name: value for name, value in settings.items() if name not in OF_ENCODER}
    finished = call_main(*flags({**settings, "run_name": "no", "init_from": encoder}))
    assert_one_line(finished, "the encoder reads in both directions, and --task_type lm does not")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_files_that_are_missing(encoder, tmp_path, name):
    folder = copy_of(encoder, tmp_path / "bert")
    (folder / name).unlink()
    assert is_bert(folder)
    with pytest.raises(CheckpointError, match=f"it has no {name}; use a folder with config.json, model.safetensors"):
        read_earlier(str(folder))


# -- the same from Python ----------------------------------------------------------------------------------------------


def test_python_and_the_command_line_are_one_program(data, encoder, tmp_path):
    """`him.train` used to refuse eight settings that nobody had set, and to train without the encoder's recipe."""
    settings = {**data, "init_from": str(encoder), "max_steps": 2, "compress": False}
    finished = call_main(*flags({**settings, "run_name": "typed"}))
    assert (finished.status, finished.err) == (0, "")
    run = Path(him.train(Config(**settings, run_name="called"))["run"])
    typed = run.with_name("typed")
    assert {**json.loads((run / "config.json").read_text()), "run_name": "typed"} == json.loads(
        (typed / "config.json").read_text()
    )
    assert (run / "best/model.safetensors").read_bytes() == (typed / "best/model.safetensors").read_bytes()


def test_an_earlier_run_from_python(data, tmp_path):
    """Its shape used to be taken over by the command line alone; from Python the weights did not fit."""
    own = {"embed_dim": 32, "num_encoder_layers": 1, "num_heads": 2, "dim_feedforward": 64, "max_seq_len": 96}
    settings = {**data, "max_steps": 2, "compress": False, "output_dir": str(tmp_path)}
    earlier = him.train(Config(**settings, **own, vocab_size=500, run_name="earlier"))["run"]
    settings |= {"init_from": earlier}
    run = Path(him.train(Config(**settings, run_name="called"))["run"])
    config = Config.load(run / "config.json")
    assert own.items() <= config.to_dict().items() and config.pretrain_epochs == 0
    assert call_main(*flags({**settings, "run_name": "typed"})).status == 0
    assert (run / "best/model.safetensors").read_bytes() == (tmp_path / "typed/best/model.safetensors").read_bytes()


def test_what_was_given_and_is_not_as_in_the_encoder_is_refused(data, encoder):
    with pytest.raises(ConfigError, match="--norm_first True is False there; leave these flags out$"):
        him.train(Config(**{**data, "init_from": encoder, "norm_first": True}))
    with pytest.raises(ConfigError, match="the encoder reads in both directions, and --task_type lm does not"):
        him.train(Config(task_type="lm", init_from=encoder))
