"""Files as an ill-meaning stranger may hand them over: pickles, archives, headers that lie, configs that name code."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from him.core.files import CHECKSUMS, checksum
from tests.reliability.recorder import MARK

CODE = f"import os\nos.system('touch {MARK}')\n"  # what must never run
MANY = 2**62


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, (CODE,)


def pickled() -> bytes:
    """A pickle that runs code."""
    return pickle.dumps({"model": Bomb()})


def zipped() -> bytes:
    """A zip archive with members outside of the folder that it is unpacked in, among them what torch.load looks for."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in ("archive/data.pkl", "../escaped.txt", "/hostile_mark.txt", f"{MARK}.py"):
            archive.writestr(name, CODE if name.endswith(".py") else pickled())
    return made.getvalue()


def tarred() -> bytes:
    """A tar archive like it, with a link that leads out."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name in ("../escaped.txt", "/hostile_mark.txt", "train.pkl", f"{MARK}.py"):
            part = tarfile.TarInfo(name)
            part.size = len(pickled())
            archive.addfile(part, io.BytesIO(pickled()))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return made.getvalue()


# -- safetensors -------------------------------------------------------------------------------------------------------


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A file of that header, whose length may be another one than it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _tensor(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "pickle": pickled,
    "zip": zipped,
    "tar": tarred,
    "empty": lambda: b"",
    "header of 2**62 bytes": lambda: safetensors(b"{}", length=MANY),
    "header of 2**64 - 1 bytes": lambda: safetensors(b"{}", length=2**64 - 1),
    "header of 100 MB announced": lambda: safetensors(b"{}", length=100_000_000),
    "header of 1 MB of spaces": lambda: safetensors(b"{" + b" " * 2**20 + b"}"),
    "header nested deeply": lambda: safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "header that is a pickle": lambda: safetensors(pickled()),
    "header of code": lambda: safetensors({"__metadata__": {"format": "pt", "auto_map": CODE}}),
    "offsets overlap": lambda: safetensors({"a": _tensor([4], 0, 16), "b": _tensor([4], 8, 24)}, bytes(24)),
    "offsets out of range": lambda: safetensors({"a": _tensor([4], 0, 16)}, bytes(8)),
    "offsets of 2**62": lambda: safetensors({"a": _tensor([4], MANY, MANY + 16)}, bytes(16)),
    "offsets backwards": lambda: safetensors({"a": _tensor([4], 16, 0)}, bytes(16)),
    "offsets negative": lambda: safetensors({"a": _tensor([4], -16, 0)}, bytes(16)),
    "shape of 2**80 numbers": lambda: safetensors({"a": _tensor([2**40, 2**40], 0, 16)}, bytes(16)),
    "shape that overflows to 4": lambda: safetensors({"a": _tensor([2**63 + 2, 2], 0, 16)}, bytes(16)),
    "shape of nothing, 2**62 times": lambda: safetensors({"a": _tensor([0, MANY], 0, 0)}),
    "shape negative": lambda: safetensors({"a": _tensor([-4], 0, 16)}, bytes(16)),
    "kind that is code": lambda: safetensors({"a": _tensor([4], 0, 16, "os.system")}, bytes(16)),
    "names that are paths": lambda: safetensors({"../../escaped": _tensor([4], 0, 16)}, bytes(16)),
}

# -- JSON --------------------------------------------------------------------------------------------------------------

JSON: dict[str, Callable[[], bytes]] = {
    "pickle": pickled,
    "zip": zipped,
    "tar": tarred,
    "nested deeply": lambda: b"[" * 20_000 + b"]" * 20_000,
    "number of 10,000 digits": lambda: b'{"seed": ' + b"9" * 10_000 + b"}",
    "code": lambda: CODE.encode(),
    "YAML tag": lambda: YAML_TAGS["apply"].encode(),
}

YAML_TAGS = {
    "apply": f'!!python/object/apply:os.system ["touch {MARK}"]\n',
    "apply as value": f'run_name: !!python/object/apply:os.system ["touch {MARK}"]\n',
    "new": f"run_name: !!python/object/new:exec [{json.dumps(CODE)}]\n",
    "module": f"run_name: !!python/module:{MARK}\n",
    "name": "run_name: !!python/name:os.system\n",
    "object": "run_name: !!python/object:him.config.config.Config {}\n",
    "tuple": "run_name: !!python/tuple [a, b]\n",
    "bomb of aliases": "run_name: &a0 [x, x]\n"
    + "".join(f"key{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
    "bomb of aliases in a value": "train_file: ["
    + ", ".join(["&a0 [x, x]"] + [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)])
    + "]\n",
    "bomb of merges": "".join(
        f"key{n}: &a{n} " + ("{x: 1}" if n == 0 else f"{{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}") + "\n"
        for n in range(12)
    ),
    "nested deeply": "[" * 300 + "]" * 300,
}


def write_code(folder: Path) -> Path:
    """A folder with Python files by every name that a library might look for; each would leave its mark."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("modeling", "configuration", "tokenization", "conftest", "setup", "him", "usercustomize", "__init__")
    for name in (*names, f"modeling_{MARK}", MARK, folder.name):
        (folder / f"{name}.py").write_text(CODE, encoding="utf-8")
    return folder


AUTO_MAP = {
    "auto_map": {
        "AutoConfig": f"configuration.{MARK}",
        "AutoModel": f"modeling.{MARK}",
        "AutoTokenizer": [f"tokenization.{MARK}", f"tokenization.{MARK}"],
    },
    "trust_remote_code": True,
}


def reseal(folder: Path) -> None:
    """Writes the checksums anew, as whoever changes files can."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def put(path: Path, content: bytes | dict[str, Any]) -> None:
    """Puts a file into a folder with checksums."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    if (path.parent / CHECKSUMS).exists():
        reseal(path.parent)


# -- data --------------------------------------------------------------------------------------------------------------


def columns_with_a_type(name: str) -> Any:
    """Two text columns of Arrow, of an extension type whose description is a pickle."""
    import pyarrow as pa

    about = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": pickled()}
    fields = [pa.field(column, pa.string(), metadata=about) for column in ("document", "summary")]
    metadata = {b"pandas": CODE.encode(), b"huggingface": json.dumps({"info": AUTO_MAP}).encode()}
    arrays = [pa.array(["Ann Bell built the mill.", "Tom Reed sold the mill."]) for _ in fields]
    return pa.table(arrays, pa.schema(fields, metadata))


def parquet(table: Any) -> bytes:
    """A Parquet file."""
    import pyarrow.parquet as pq

    made = io.BytesIO()
    pq.write_table(table, made)
    return made.getvalue()


def arrow_stream(table: Any) -> bytes:
    """An Arrow file as `datasets` and the cache of prepared data have them."""
    import pyarrow as pa

    made = io.BytesIO()
    with pa.ipc.new_stream(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


def pickles_in_parquet() -> bytes:
    """A Parquet file with pickles in its cells."""
    import pyarrow as pa

    return parquet(pa.table({"document": pa.array([pickled()] * 2), "summary": pa.array([pickled()] * 2)}))


PARQUET: dict[str, Callable[[], bytes]] = {
    "pickle": pickled,
    "zip": zipped,
    "tar": tarred,
    "begins as Parquet": lambda: b"PAR1" + pickled() + b"PAR1",
    "begins as Parquet, footer of 2 GB": lambda: b"PAR1" + pickled() + struct.pack("<I", 2**31 - 1) + b"PAR1",
    "extension type of Arrow": lambda: parquet(columns_with_a_type("arrow.py_extension_type")),
    "extension type of pandas": lambda: parquet(columns_with_a_type("pandas.period")),
    "extension type unknown": lambda: parquet(columns_with_a_type(MARK)),
    "pickles in cells": pickles_in_parquet,
}

ROW = json.dumps({"document": "Ann Bell built the mill.", "summary": "A mill."}) + "\n"


def _card(text: str) -> dict[str, str | bytes]:
    return {"README.md": f"---\n{text}\n---\n", "train.jsonl": ROW, "validation.jsonl": ROW}


def _card_naming(place: str) -> dict[str, str | bytes]:
    return _card(f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {place}")


DATA_FOLDERS: dict[str, Callable[[], dict[str, str | bytes]]] = {
    "script of its name": lambda: {"folder.py": CODE, "train.jsonl": ROW, "validation.jsonl": ROW},
    "script alone": lambda: {"folder.py": CODE},
    "pickle": lambda: {"train.pkl": pickled()},
    "pickle in an Arrow file": lambda: {"train.arrow": pickled()},
    "pickle in an HDF5 file": lambda: {"train.h5": pickled()},
    "extension type": lambda: {"train.arrow": arrow_stream(columns_with_a_type("arrow.py_extension_type"))},
    "zip": lambda: {"train.zip": zipped()},
    "zip as a log": lambda: {"train.eval": zipped()},
    "tar": lambda: {"train.tar": tarred()},
    "card with a tag": lambda: _card("configs: " + YAML_TAGS["apply"].strip()),
    "card with an address": lambda: _card_naming("https://hostile.example/train.jsonl"),
    "card with a name of the hub": lambda: _card_naming("hf://datasets/hostile/hostile/train.jsonl"),
    "card with an FTP address": lambda: _card_naming("ftp://hostile.example/train.jsonl"),
    "card with a zip at an address": lambda: _card_naming("zip://train.jsonl::https://hostile.example/train.zip"),
    "card with a file elsewhere": lambda: _card_naming("/etc/passwd"),
    "card with a folder above": lambda: _card_naming("../../outside/*"),
    "YAML with an address": lambda: {
        ".huggingface.yaml": "configs:\n- data_files: https://hostile.example/train.jsonl\n",
        "train.jsonl": ROW,
    },
    "features to import": lambda: {
        "dataset_infos.json": json.dumps({"default": {"features": {"document": {"_type": f"{MARK}.Type"}}}}),
        "train.jsonl": ROW,
    },
}

# -- tokenizers --------------------------------------------------------------------------------------------------------

_PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
_CUT = {"direction": "Right", "strategy": "LongestFirst", "stride": 0}


def _nested(levels: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(levels):
        made = {"type": "Sequence", "normalizers": [made]}
    return made


# Changes of a sound tokenizer.json; those that can be read are harmless.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "padding to 2**50": {"padding": {**_PADDING, "strategy": {"Fixed": 2**50}}},
    "padding to multiples of 2**45": {"padding": {**_PADDING, "strategy": "BatchLongest", "pad_to_multiple_of": 2**45}},
    "truncation to nothing": {"truncation": {**_CUT, "max_length": 0}},
    "truncation to 2**63": {"truncation": {**_CUT, "max_length": 2**63}},
    "normalizer that panics when read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "normalizer that panics when used": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAP///3////9/YWJjZA=="}
    },
    "normalizers nested deeply": {"normalizer": _nested(400)},
    "words of length 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "words by a program": {"pre_tokenizer": {"type": "Custom", "python": CODE}},
    "model by a program": {"model": {"type": f"{MARK}.Model", "module": MARK}},
    "pattern that is none": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "((("}, "behavior": "Isolated", "invert": False}
    },
    "no word for the unknown": {"model": {"type": "BPE", "vocab": {"[PAD]": 0}, "merges": [], "unk_token": "no"}},
    "code to import": AUTO_MAP,
}

# -- encoders of BERTScore ---------------------------------------------------------------------------------------------

# Changes of config.json and of tokenizer_config.json.
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "code beside it": (AUTO_MAP, AUTO_MAP),
    "code beside it for a kind unknown": ({**AUTO_MAP, "model_type": MARK}, {}),
    "code of the hub": ({"auto_map": {"AutoModel": f"hostile/{MARK}--modeling.X"}, "model_type": MARK}, {}),
    "tokenizer to import": ({}, {"tokenizer_class": f"{MARK}.Tokenizer", "auto_map": AUTO_MAP["auto_map"]}),
    "attention kernels of the hub": ({"_attn_implementation": f"hostile/{MARK}"}, {}),
    "attention kernels of the hub, public name": ({"attn_implementation": f"hostile/{MARK}"}, {}),
    "backbone of the hub": (
        {
            "model_type": "dpt",
            "backbone": f"hostile/{MARK}",
            "use_pretrained_backbone": True,
            "use_timm_backbone": False,
        },
        {},
    ),
    "quantizer to import": ({"quantization_config": {"quant_method": "gptq", "bits": 4, "modules": MARK}}, {}),
    "weights elsewhere": ({"transformers_weights": "../../outside/keep.txt"}, {}),
    "pickled weights named": ({"transformers_weights": "pytorch_model.bin"}, {}),
    "function to call": ({"hidden_act": "os.system", "dtype": "load"}, {}),
    "base model of the hub": ({"_name_or_path": f"hostile/{MARK}", "base_model": f"hostile/{MARK}"}, {}),
    "tokenizer files elsewhere": ({}, {"tokenizer_file": "/etc/passwd", "vocab_file": "/etc/passwd"}),
}
