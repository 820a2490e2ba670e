"""Whatever is wrong with flags, files or the machine: one line on stderr, exit status 2, and nothing is harmed."""

import ctypes
import errno
import json
import os
import shutil
import sys
import time

import pytest
import torch
import yaml

from tests.small_runs import (
    Finished,
    ForkedMain,
    assert_one_line,
    call_main,
    call_script,
    flags,
    run_main,
    small_settings,
    trained_writer,
    tree,
    writing_settings,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict:
    return small_settings(tmp_path_factory.mktemp("data"), num_train=16, num_validation=8) | {"num_epochs": 1}


@pytest.fixture
def settings(shared, tmp_path) -> dict:
    return {**shared, "output_dir": str(tmp_path / "runs"), "run_name": "run"}


@pytest.fixture
def refused(settings, tmp_path):
    """Runs `main.py` with settings changed; nothing may be made or changed but the cache of prepared data."""

    def run(*more: str, **changes) -> Finished:
        before = tree(tmp_path)
        finished = call_main(*flags({**settings, **changes}), *more)
        assert tree(tmp_path) == before
        return finished

    return run


def squad(*questions: dict, context: str = "Ann Bell built the mill in 1902.") -> dict:
    return {"data": [{"title": "Mill", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(text: str = "Who built it?", answer: str = "Ann Bell", start: int = 0, **more) -> dict:
    return {"id": "q1", "question": text, "answers": [{"text": answer, "answer_start": start}], **more}


# -- data files --------------------------------------------------------------------------------------------------------

GOOD = json.dumps(squad(question()))
DATA_FAULTS = {
    "empty": (b"", ["the file is empty"]),
    "blank": (b" \n\n ", ["the file is empty"]),
    "broken off": (GOOD[:-30].encode(), ["line 1, column", "the JSON breaks off", "cut short"]),
    "not JSON": (b"question,answer\nwho,Ann\n", ["line 1, column 1", "not valid JSON"]),
    "no object": (b"[1, 2]", ["holds a list, not an object"]),
    "not UTF-8": (GOOD.replace("Ann", "Änn").encode("latin-1"), ["not UTF-8 at byte ", "byte value 0xc4"]),
    "binary": (bytes(range(256)) * 10, ["not UTF-8"]),
    "answer elsewhere": (
        json.dumps(squad(question(start=3))).encode(),
        ["question 1 (id q1), answer 1", 'the answer "Ann Bell" is not at character 3', "the text stands at 0"],
    ),
    "answer beyond the end": (json.dumps(squad(question(start=900))).encode(), ["the context has only 32"]),
    "no answers": (json.dumps(squad(question(answers=[]))).encode(), ["question 1 (id q1)", "has no answers"]),
    "no questions": (json.dumps(squad()).encode(), ["article 1, paragraph 1", '"qas" is empty']),
    "no context": (json.dumps(squad(question(), context=" ")).encode(), ['"context" is blank']),
    "no articles": (b'{"data": []}', ['"data" is empty']),
    "blank question": (json.dumps(squad(question(text=" "))).encode(), ['"question" is blank']),
    "deep": (b'{"data": ' + b"[" * 100_000, ["nested too deeply"]),
}


@pytest.mark.parametrize("flag", ["train_file", "validation_file"])
@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_data_files(refused, tmp_path, fault, flag):
    content, parts = DATA_FAULTS[fault]
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert_one_line(refused(**{flag: str(path)}), f"{path}: ", *parts)


def test_missing_files_and_folders(refused, tmp_path):
    assert_one_line(refused(train_file=tmp_path / "none.json"), "none.json: no such file; check the path")
    assert_one_line(refused(validation_file=tmp_path), "is a folder, not a file")


def test_one_bad_file_among_good_ones(refused, settings, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    assert_one_line(refused(train_file=[settings["train_file"], tmp_path / "bad.json"]), "bad.json: line 1, column 2")


def test_a_message_stays_one_line_whatever_the_file_says(refused, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps(squad(question(answer="a\nb\r\n\x1b[31m\u2028c"))))
    assert_one_line(refused(train_file=tmp_path / "bad.json"), "is not at character 0")
    name = tmp_path / "two\nlines.json"
    name.write_text("")
    assert_one_line(refused(train_file=name), "two\\nlines.json: the file is empty")


def test_contradicting_sources(refused, settings):
    assert_one_line(refused(dataset="sample"), "--dataset", "--train_file", "leave one of them out")
    assert_one_line(refused(train_file=None), "--validation_file is given without --train_file")
    assert_one_line(refused(corpus_dir="texts"), "--corpus_dir is for --task_type lm, not squad")
    assert_one_line(
        refused(train_file=None, validation_file=None, dataset="squad"), "owner/name on the Hugging Face hub"
    )
    file = {"train_file": None, "validation_file": None, "dataset": settings["train_file"]}
    assert_one_line(refused(**file), "is a file; give it as --train_file")


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (
            "--embed_dim 250 --num_heads 8",
            ["--embed_dim 250 is not divisible by --num_heads 8; use a multiple of 8, such as 248 or 256"],
        ),
        ("--embed_dim 6 --num_heads 2", ["heads of odd width 3", "use --positions learned"]),
        ("--learning_rate -1e-3", ["--learning_rate -0.001 is out of range; use more than 0 and at most 10"]),
        ("--learning_rate=-1", ["--learning_rate -1.0 is out of range"]),
        ("--learning_rate 0", ["--learning_rate 0.0 is out of range"]),
        ("--learning_rate nan", ["--learning_rate nan is not a number"]),
        ("--weight_decay -.5", ["--weight_decay -0.5 is out of range; use at least 0"]),
        ("--dropout -0.1", ["--dropout -0.1 is out of range; use at least 0 and less than 1"]),
        ("--dropout 1", ["--dropout 1.0 is out of range"]),
        ("--batch_size -4", ["--batch_size -4 is out of range; use at least 1"]),
        ("--num_epochs 0", ["--num_epochs 0 is out of range; use at least 1"]),
        ("--num_epochs 2.5", ["--num_epochs 2.5 is not a whole number"]),
        ("--num_epochs", ["--num_epochs", "expected one argument; see --help"]),
        ("--batch_size 4 --micro_batch_size 8", ["--micro_batch_size 8 is larger than --batch_size 4"]),
        ("--learnin_rate 1", ["unknown setting --learnin_rate; did you mean --learning_rate?"]),
        ("--no-norm_frist", ["unknown setting --no-norm_frist; did you mean --no-norm_first?"]),
        ("--schedule cosin", ["--schedule cosin is not known; use cosine or linear", "(cosine?)"]),
        ("--task_type sqad", ["--task_type sqad is not known; use squad", "(squad?)"]),
        ("--device gpu", ["--device gpu is not known; use auto, cpu, cuda or cuda:N"]),
        ("--doc_stride 96", ["--doc_stride 96 is not below --max_seq_len 96"]),
        ("--run_name a/b", ["--run_name 'a/b' is not a plain folder name; use --output_dir"]),
        ("--seed -1", ["--seed -1 is out of range"]),
        ("stray", ["stray: not a flag; see --help"]),
        ("--dropout 2 --batch_size 0", ["--dropout 2.0", "--batch_size 0"]),
    ],
)
def test_flags(refused, typed, parts):
    assert_one_line(refused(*typed.split()), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("learnin_rate: 0.1", ["unknown setting learnin_rate; did you mean learning_rate?"]),
        ("a: 1\nb: 2", ["unknown setting a", "unknown setting b"]),
        ("- one\n- two", ["not a list of `name: value` settings"]),
        ("embed_dim: [1", ["not YAML"]),
        ("embed_dim: wide", ["--embed_dim wide is not a whole number"]),
        ("embed_dim:", ["--embed_dim needs a value"]),
        ("embed_dim: true", ["--embed_dim True is not a whole number"]),
        ("norm_first: 1", ["--norm_first 1 is not true or false"]),
        ("learning_rate: -0.1", ["--learning_rate -0.1 is out of range"]),
        (b"dataset: \xff\xfe", ["not YAML"]),
        ("!!python/object/apply:os.system ['true']", ["not YAML"]),
    ],
)
def test_yaml_files(shared, tmp_path, content, parts):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_one_line(call_main("--config", path), *parts)


def test_yaml_files_that_cannot_be_read(tmp_path):
    assert_one_line(call_main("--config", tmp_path / "none.yaml"), "none.yaml: No such file or directory")
    assert_one_line(call_main("--config", tmp_path), "Is a directory; name a YAML file")


def test_sequences_too_short_for_the_questions(refused):
    finished = refused(max_seq_len=40)
    assert_one_line(
        finished, "--max_seq_len 40 leaves no room beside --doc_stride 32 and a question of", "use at least"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(refused):
    assert_one_line(refused(device="cuda"), "--device cuda: there are 0 GPUs; use --device cpu")
    assert_one_line(refused(device="cuda:3"), "--device cuda:3: there are 0 GPUs")


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_init_from_what_is_no_run(refused, tmp_path, kind):
    folder = tmp_path / "earlier"
    if kind != "missing":
        folder.mkdir()
    if kind == "other":
        (folder / "best").mkdir()
        (folder / "best" / "config.json").write_text('{"layers": 3}')
    said = {"other": "config.json: not a configuration of HIM"}.get(kind, "no finished model there")
    assert_one_line(refused(init_from=folder), "earlier", said)


@pytest.mark.parametrize("content", [None, "{}", "nonsense"])
def test_tokenizers(refused, tmp_path, content):
    """A missing path is not asked for at the hub, which could take long."""
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    started_at = time.perf_counter()
    assert_one_line(refused(tokenizer=str(path)), f"--tokenizer {path}: ")
    assert time.perf_counter() - started_at < 5


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(settings, tmp_path):
    run = tmp_path / "runs" / "run"
    run.mkdir(parents=True)
    (run / "dear.txt").write_text("?")
    before = tree(tmp_path)
    assert_one_line(call_main(*flags(settings)), f"{run} exists; choose another --run_name, remove it, or go on with")
    assert tree(tmp_path) == before


def test_a_run_is_not_overwritten_by_its_own_command(settings, tmp_path):
    assert call_main(*flags(settings)).status == 0
    before = tree(tmp_path)
    assert_one_line(call_main(*flags(settings)), "exists")
    assert tree(tmp_path) == before


def test_an_output_folder_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("?")
    assert_one_line(refused(output_dir=tmp_path / "file"), "file is a file; name a folder")
    assert_one_line(refused(output_dir=tmp_path / "file" / "below", cache_dir=None), "Not a directory")
    assert_one_line(refused(output_dir=tmp_path / "file" / "below"), "Not a directory")
    assert_one_line(refused(cache_dir=tmp_path / "file"), "file", "name another place")


def test_a_run_name_that_is_too_long(settings):
    assert_one_line(call_main(*flags({**settings, "run_name": "r" * 300})), "File name too long")


def drop_override() -> None:
    """Takes from a process of root the right to write where it is not allowed to (CAP_DAC_OVERRIDE, number 1)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(settings, tmp_path):
    """In a process of its own, which also shows that nothing but the line comes out of a real start."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    finished = run_main(*flags({**settings, "output_dir": folder / "runs"}), preexec_fn=drop_override)
    assert_one_line(finished, str(folder), "Permission denied; ")
    assert finished.out == ""
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits")
@pytest.mark.parametrize("is_prepared", [True, False], ids=["for the run", "for the prepared data"])
def test_no_space_before_the_run_begins(settings, tmp_path, is_prepared):
    """No file may grow beyond 100 bytes."""
    import resource

    settings = {**settings, "cache_dir": str(tmp_path / "cache")}
    if is_prepared:
        assert call_main(*flags({**settings, "output_dir": tmp_path / "other"})).status == 0
    before = tree(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    assert_one_line(ForkedMain(flags(settings), limit).finish(), "no space" if is_prepared else "File too large")
    made = tree(tmp_path).keys() - before.keys()
    assert made == ({"runs"} if is_prepared else {"cache", *(name for name in made if name.startswith("cache/"))})
    assert call_main(*flags(settings)).status == 0


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_the_hub_out_of_reach(settings, tmp_path):
    """A process of its own, whose hub is a closed port. The client itself would try for half a minute."""
    typed = {**settings, "train_file": None, "validation_file": None}
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    started_at = time.perf_counter()
    finished = run_main(*flags(typed), environment=environment)
    seconds = time.perf_counter() - started_at
    parts = ["hub is out of reach", '"rajpurkar/squad" is not in its cache', "--train_file FILE", "--dataset sample"]
    assert_one_line(finished, *parts)
    assert finished.out == ""
    assert seconds < 20
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_of_the_hub_out_of_reach(settings, tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    started_at = time.perf_counter()
    finished = run_main(*flags({**settings, "tokenizer": "nonsense"}), environment=environment)
    assert_one_line(finished, "--tokenizer nonsense: cannot be loaded (")
    assert time.perf_counter() - started_at < 20
    assert not (tmp_path / "runs" / "run").exists()


# -- while training ----------------------------------------------------------------------------------------------------


def test_a_rate_that_is_too_high_ends_with_advice(settings, monkeypatch):
    """Losses that stay NaN, as of a model that has diverged."""
    from him.tasks.squad.task import SquadTask

    original = SquadTask.loss

    def loss(*args):
        sums = original(*args)
        sums.loss = sums.loss * float("nan")
        return sums

    monkeypatch.setattr(SquadTask, "loss", loss)
    finished = call_main(*flags({**settings, "batch_size": 2, "num_epochs": 3}))
    advice = "again after going back once with a lower rate; lower --learning_rate (0.001), raise --warmup_ratio, or"
    assert_one_line(finished, "step 5: the loss for training examples ", " is not finite, ", advice)
    said = "step 1: loss nan, gradient norm nan; first not finite: the loss for training examples "
    assert [line for line in finished.out.splitlines() if line.startswith(said)]
    assert "back to step 0; from here on 0.5 of the learning rate" in finished.out.splitlines()


def test_settings_of_a_yaml_file_are_checked_with_the_flags(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"num_heads": 8}))
    assert_one_line(
        call_main("--config", tmp_path / "a.yaml", "--embed_dim", "250"), "--embed_dim 250 is not divisible"
    )


# -- tasks that write text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writing(tmp_path_factory) -> dict[str, dict]:
    made = {kind: writing_settings(kind, tmp_path_factory.mktemp(kind), 12, 2) for kind in ("summarization", "lm")}
    return {kind: settings | {"max_steps": 1, "run_name": "run"} for kind, settings in made.items()}


@pytest.fixture
def refused_writing(writing, tmp_path):
    """As `refused`, for a task that writes text."""

    def run(kind: str, *more: str, **changes) -> Finished:
        before = tree(tmp_path)
        finished = call_main(*flags({**writing[kind], "output_dir": tmp_path / "runs", **changes}), *more)
        assert tree(tmp_path) == before
        return finished

    return run


PAIR = json.dumps({"document": "Ann Bell built the mill in 1902.", "summary": "Ann built a mill."}) + "\n"
PAIR_FAULTS = {
    "empty file": (b"", ["there is no record in it", "give at least one document with its summary"]),
    "no object": (f'{PAIR}["a", "b"]\n'.encode(), [": line 2: is a list, not an object", "write one object a line"]),
    "an array": (f"[{PAIR}]".encode(), [": line 1: a JSON array begins", "write one object a line, without [ ]"]),
    "broken off": (f"{PAIR}{PAIR[:30]}".encode(), [": line 2, column", "the JSON breaks off"]),
    "no summary": (
        PAIR.encode() + b'{"document": "d"}\n',
        [': line 2: "summary" is missing (there is "document")', "name its field with --summary_field"],
    ),
    "no document": (b'{"article": "d", "summary": "s"}\n', [': line 1: "document" is missing', "--document_field"]),
    "blank document": (PAIR.encode() + b'\n{"document": " ", "summary": "s"}', [': line 3: "document" is blank']),
    "blank summary": (PAIR.encode() + b'{"document": "d", "summary": ""}', [': line 2: "summary" is blank']),
    "summary of another kind": (b'{"document": "d", "summary": 3}', ['"summary" is 3, not text']),
    "the same id": (
        b'{"id": 1, "document": "d", "summary": "s"}\n{"id": "1", "document": "e", "summary": "s"}',
        [': line 2: the id "1" is that of line 1 already'],
    ),
    "not UTF-8": (PAIR.replace("Ann", "Änn").encode("latin-1"), ["not UTF-8 at byte", "line 1, byte value 0xc4"]),
    "binary": (b"\x89PNG\r\n" + bytes(range(256)), ["not UTF-8 at byte 0"]),
    "deep": (b'{"document": ' + b"[" * 100_000, ["nested too deeply"]),
    "half a character": (b'{"document": "\\ud800", "summary": "s"}', ["half a character"]),
}


@pytest.mark.parametrize("flag", ["train_file", "validation_file"])
@pytest.mark.parametrize("fault", PAIR_FAULTS)
def test_files_of_pairs(refused_writing, tmp_path, fault, flag):
    content, parts = PAIR_FAULTS[fault]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    assert_one_line(refused_writing("summarization", **{flag: str(path)}), f"{path}", *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", PAIR, ['the ending ".json" of its name tells no format', "let its name end in .jsonl"]),
        ("a.txt", "text", ['the ending ".txt" of its name tells no format']),
        ("a.csv", "document;summary\na;b\n", ["has no column", "save the file with commas between the cells"]),
        ("a.csv", "document,summary\na\n", ["line 2: has 1 cells, and the header line 2"]),
        ("a.csv", "document,summary\n", ["has a header line and no row below it"]),
        ("a.parquet", "text", ["not a Parquet file"]),
    ],
)
def test_files_of_pairs_by_their_names(refused_writing, tmp_path, name, content, parts):
    (tmp_path / name).write_text(content)
    assert_one_line(refused_writing("summarization", train_file=tmp_path / name), f"{tmp_path / name}", *parts)


def test_one_document_cannot_be_held_out(refused_writing, tmp_path):
    (tmp_path / "one.jsonl").write_text(PAIR)
    finished = refused_writing("summarization", train_file=tmp_path / "one.jsonl", validation_file=None)
    assert_one_line(finished, "there is only one document", "give --validation_file FILE")


def test_folders_of_texts(refused_writing, tmp_path):
    folder = tmp_path / "corpus"
    given = {"corpus_dir": folder, "validation_file": None}
    assert_one_line(refused_writing("lm", **given), f"--corpus_dir {folder}: no such folder; check the path")
    folder.mkdir()
    assert_one_line(refused_writing("lm", **given), "no .txt file in it or below (and no other file)")
    (folder / "data.json").write_text("{}")
    assert_one_line(refused_writing("lm", **given), '1 other files, such as "data.json"', "names end in .txt")
    (folder / "blank.txt").write_text(" \n")
    assert_one_line(refused_writing("lm", **given), "the file is blank; give files with text in them")
    (folder / "good.txt").write_text("The mill stood on the river. " * 100)
    (folder / "image.txt").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    assert_one_line(
        refused_writing("lm", **given), f"{folder / 'image.txt'}: not UTF-8 at byte 0", "leave the file out"
    )
    (folder / "image.txt").write_bytes(b"abc\x00def")
    assert_one_line(refused_writing("lm", **given), "image.txt: byte 3 is NUL, so it is not text")
    (folder / "image.txt").write_bytes("The mill".encode("utf-16"))
    assert_one_line(refused_writing("lm", **given), "it looks like UTF-16; save it as UTF-8")


def test_files_of_text(refused_writing, writing, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("The mill stood on the river. " * 3)
    given = {"corpus_dir": None, "train_file": path}
    finished = refused_writing("lm", **given, max_seq_len=128)
    assert_one_line(finished, f"{path}: ", "tokens to train on are less than one sequence; use more text")
    assert_one_line(refused_writing("lm", train_file=path), "--corpus_dir", "--train_file name two sources of text")
    assert_one_line(refused_writing("lm", corpus_dir=path), "is a file, not a folder; give it as --train_file")
    assert_one_line(refused_writing("lm", validation_file=tmp_path / "none.txt"), "none.txt: no such file")
    finished = refused_writing("lm", validation_file=writing["lm"]["corpus_dir"])
    assert_one_line(finished, "all its files are those of --validation_file")
    folder = {"corpus_dir": None, "train_file": tmp_path}
    assert_one_line(refused_writing("lm", **folder), "is a folder, not a file; give it as --corpus_dir")


@pytest.mark.parametrize(
    ("kind", "typed", "parts"),
    [
        (
            "summarization",
            "--temperature 0.5 --num_beams 4",
            ["--temperature 0.5 with --num_beams 4", "use --num_beams 1"],
        ),
        (
            "lm",
            "--temperature 0.5 --num_beams 4",
            ["--temperature 0.5 with --num_beams 4: beam search does not sample"],
        ),
        (
            "summarization",
            "--max_target_len 127",
            ["--max_target_len 127 leave 0 tokens for a document; use --max_seq"],
        ),
        ("summarization", "--max_target_len 2000", ["leave -1873 tokens for a document; use --max_seq_len 2130"]),
        ("summarization", "--max_target_len 3", ["--max_target_len 3 is out of range; use at least 4"]),
        ("summarization", "--eval_stride 8", ["--eval_stride is for --task_type lm, not summarization; leave it out"]),
        ("summarization", "--corpus_dir .", ["--corpus_dir is for --task_type lm, not summarization"]),
        ("summarization", "--no-lexical_features", ["--lexical_features is for --task_type squad, not summarization"]),
        ("lm", "--no-copy_head", ["--copy_head is for --task_type summarization, not lm; leave it out"]),
        ("lm", "--max_target_len 20", ["--max_target_len is for --task_type summarization, not lm; leave it out"]),
        ("lm", "--doc_stride 4 --summary_field s", ["--doc_stride is for --task_type squad", "--summary_field is for"]),
        ("lm", "--eval_stride 65", ["--eval_stride 65 is above --seq_len 64; lower it"]),
        ("lm", "--tokenizer_type words", ["--tokenizer_type words is not known; use wordpiece or bpe or char"]),
        ("lm", "--text_field text", ['--text_field "text" is about a set of the hub, and --corpus_dir is none']),
        ("lm", "--conv_kernel_size 4", ["--conv_kernel_size 4 is even; use 5, or 0 for none"]),
        ("lm", "--top_p 0", ["--top_p 0.0 is out of range; use more than 0 and at most 1"]),
        ("lm", "--vocab_size 299", ["--vocab_size 299 is out of range; use at least 300"]),
        ("lm", "--task_type sumarization", ["--task_type sumarization is not known; use squad", "(summarization?)"]),
        ("lm", "--task_type ml", ["--task_type ml is not known; use squad or summarization or lm"]),
        ("lm", "--optimizer mion", ["--optimizer mion is not known", "(muon?)"]),
        (
            "summarization",
            "--document_field d --summary_field d",
            ['--document_field and --summary_field are both "d"'],
        ),
    ],
)
def test_flags_of_writing(refused_writing, kind, typed, parts):
    assert_one_line(refused_writing(kind, *typed.split()), *parts)


def test_what_summarization_has_no_room_for_is_said_before_data_is_read(refused_writing, tmp_path):
    """Reading and encoding a large set takes minutes."""
    finished = refused_writing("summarization", train_file=tmp_path / "none.jsonl", max_seq_len=48, max_target_len=48)
    assert_one_line(finished, "--max_seq_len 48 and --max_target_len 48 leave -1 tokens for a document")


@pytest.mark.parametrize("kind", ["summarization", "lm"])
def test_a_set_that_is_not_there(writing, tmp_path, kind):
    """A process of its own, whose hub is a closed port; nothing is made."""
    typed = {**writing[kind], "train_file": None, "validation_file": None, "corpus_dir": None}
    typed |= {"output_dir": tmp_path / "runs", "dataset": "nobody/nothing"}
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    finished = run_main(*flags(typed), environment=environment)
    assert_one_line(finished, "hub is out of reach", '"nobody/nothing" is not in its cache', "--dataset sample")
    assert finished.out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["summarization", "lm"])
def test_init_from_a_run_of_another_task(refused_writing, kind):
    other = "lm" if kind == "summarization" else "summarization"
    run = trained_writer(other)[1]
    before = tree(run)
    finished = refused_writing(kind, init_from=run)
    assert_one_line(finished, f"--init_from {run}: a {other} model, and --task_type is {kind}; name a run of {kind}")
    finished = refused_writing(kind, init_from=trained_writer(kind)[1], embed_dim=64)
    assert_one_line(finished, "model.safetensors: ", "has shape", "give the model flags of that run")
    assert tree(run) == before


def test_what_is_cut_is_said_once(writing, tmp_path):
    """In the output of a run, with its numbers, and nothing on stderr."""
    finished = call_main(
        *flags({**writing["summarization"], "output_dir": tmp_path, "num_epochs": 2, "max_steps": None})
    )
    assert (finished.status, finished.err) == (0, "")
    assert finished.out.count("of 12 training documents are longer than 95 tokens and are cut there") == 1


PREDICT_FAULTS = [
    ("summarization", ["--text", ""], ["--text is empty; give a document"]),
    ("summarization", ["--text", " \n"], ["--text is empty; give a document"]),
    ("summarization", ["--question", "Who?"], ["is a summarization run, which takes --text; give just that"]),
    ("lm", ["--question", "Who?", "--context", "Ann."], ["is a lm run, which takes --text; give just that"]),
    ("lm", ["--text", "a", "--context", "Ann."], ["is a lm run, which takes --text; give just that"]),
    ("lm", ["--text", "a", "--example"], ["are three ways; use one of them"]),
    ("lm", ["--text", "a", "--temperature", "1", "--num_beams", "4"], ["beam search does not sample"]),
    ("lm", ["--text", "a", "--temperature", "hot"], ["--temperature hot is not a number"]),
    ("lm", ["--text", "a", "--max_new_tokens", "0"], ["--max_new_tokens 0 is out of range"]),
    ("summarization", ["--text", "a", "--max_new_tokens", "5"], ["--max_new_tokens is for --task_type lm"]),
    ("lm", ["--text", "a", "--document_field", "d"], ["--document_field is for --task_type summarization, not lm"]),
    ("lm", ["--text"], ["expected one argument"]),
    ("lm", ["--file", "none.txt"], ["none.txt: no such file"]),
    ("lm", ["--file", "none.jsonl"], ["none.jsonl: no such file"]),
    ("summarization", ["--file", "none.jsonl"], ["none.jsonl: no such file"]),
    ("summarization", ["--file", "."], [".: is a folder, not a file"]),
    ("lm", ["--text", "a", "--device", "gpu"], ["--device gpu is not known"]),
]


@pytest.mark.parametrize(("kind", "typed", "parts"), PREDICT_FAULTS)
def test_predicting(kind, typed, parts):
    run = trained_writer(kind)[1]
    before = tree(run)
    finished = call_script("predict.py", run, *typed)
    assert_one_line(finished, *parts, prog="predict.py")
    assert finished.out == "", "no arrow before an error"
    assert tree(run) == before


@pytest.mark.parametrize(
    ("kind", "typed", "parts"),
    [
        ("lm", ["--eval_stride", "65"], ["--eval_stride 65 is above --seq_len 64"]),
        ("summarization", ["--eval_stride", "8"], ["--eval_stride is for --task_type lm"]),
        ("lm", ["--output", "no/such/folder.json"], ["--output no/such/folder.json: there is no such folder"]),
        ("lm", ["--output", "x.json", "--eval_samples", "0"], ["--output with --eval_samples 0: nothing was written"]),
        ("summarization", ["--validation_size", "0"], ["--validation_size 0 is out of range"]),
    ],
)
def test_evaluating(kind, typed, parts, tmp_path, monkeypatch):
    """A folder that is missing, and predictions that were not wanted, ended in a traceback after the evaluation."""
    monkeypatch.chdir(tmp_path)
    settings, run = trained_writer(kind)
    finished = call_script("evaluate.py", run, "--file", settings["validation_file"], *typed)
    assert_one_line(finished, *parts, prog="evaluate.py")
    assert finished.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["summarization", "lm"])
def test_evaluating_what_is_no_data(kind, tmp_path):
    run = trained_writer(kind)[1]
    path = tmp_path / {"summarization": "bad.jsonl", "lm": "bad.txt"}[kind]
    for content in (b"", b" \n", b"\xff\xfe\x00", b"[1]" if kind == "summarization" else b"a\x00"):
        path.write_bytes(content)
        assert_one_line(call_script("evaluate.py", run, "--file", path), str(path), prog="evaluate.py")
        assert_one_line(call_script("predict.py", run, "--file", path), str(path), prog="predict.py")


# -- compressing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished_run(tmp_path):
    """A copy of a finished run that was not compressed."""
    return shutil.copytree(trained_writer("lm")[1], tmp_path / "run")


@pytest.fixture
def refused_compressing(tmp_path):
    """`compress.py` with bad input; nothing may be made or changed."""

    def run(*typed) -> Finished:
        before = tree(tmp_path)
        finished = call_script("compress.py", *typed)
        assert tree(tmp_path) == before
        return finished

    return run


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("--pruning_amount 1.2", ["--pruning_amount 1.2 is out of range; use at least 0 and less than 1"]),
        ("--pruning_amount 1", ["--pruning_amount 1.0 is out of range"]),
        ("--pruning_amount -0.1", ["--pruning_amount -0.1 is out of range"]),
        ("--pruning_amount=-0.1", ["--pruning_amount -0.1 is out of range"]),
        ("--pruning_amount nan", ["--pruning_amount nan is not a number"]),
        ("--pruning_amount 30%", ["--pruning_amount 30% is not a number"]),
        ("--pruning_amount 0.99", ["--pruning_amount 0.99 is more than there is to remove", "use 0.", "or less"]),
        ("--pruning_method random", ["--pruning_method random is not known; use taylor or magnitude"]),
        ("--fine_tune_epochs -1", ["--fine_tune_epochs -1 is out of range; use at least 0"]),
        ("--fine_tune_epochs 1.5", ["--fine_tune_epochs 1.5 is not a whole number"]),
        ("--fine_tune_learning_rate 0", ["--fine_tune_learning_rate 0.0 is out of range"]),
        (
            "--fine_tune_distillation_weight 1.1",
            ["--fine_tune_distillation_weight 1.1 is out of range; use at least 0 and at most 1"],
        ),
        ("--sweep 0 0.3 1.2", ["--pruning_amount 1.2 is out of range"]),
        ("--sweep 0 0.3 0.30", ["--sweep names an amount twice; name each once"]),
        ("--sweep", ["--sweep", "expected at least one argument; see --help"]),
        ("--sweep 0.99", ["--pruning_amount 0.99 is more than there is to remove"]),
        ("--device gpu", ["--device gpu is not known"]),
        ("--corpus_dir none", ["--corpus_dir none: no such folder"]),
    ],
)
def test_compressing_with_bad_flags(refused_compressing, finished_run, typed, parts):
    assert_one_line(refused_compressing(finished_run, *typed.split()), *parts, prog="compress.py")


@pytest.mark.parametrize("typed", [["--norm_first"], ["--embed_dim", "8"], ["--pruning", "0.2", "stray"]])
def test_compressing_with_flags_that_are_none(refused_compressing, finished_run, typed):
    assert_one_line(refused_compressing(finished_run, *typed), "see --help", prog="compress.py")


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "unfinished", "unfinished best"])
@pytest.mark.parametrize("sweeping", [False, True])
def test_compressing_what_is_no_finished_run(refused_compressing, tmp_path, kind, sweeping):
    folder = tmp_path / "run"
    if kind == "file":
        folder.write_text("?")
    elif kind != "missing":
        folder.mkdir()
    if kind.startswith("unfinished"):
        settings = trained_writer("lm")[1]
        shutil.copy(settings / "config.json", folder)
        shutil.copytree(settings / "checkpoints", folder / "checkpoints")
    if kind == "unfinished best":
        (folder / "best").mkdir()
        shutil.copy(settings / "config.json", folder / "best")
    said = {
        "missing": "no such run; name its folder, such as runs/NAME",
        "file": "no such run; name its folder, such as runs/NAME",
    }.get(kind, "no finished model there; train the run first, or go on with --resume")
    more = ["--sweep", "0", "0.3"] if sweeping else []
    assert_one_line(refused_compressing(folder, *more), f"{folder}: {said}", prog="compress.py")


@pytest.mark.parametrize("script", ["predict.py", "evaluate.py"])
@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("int8", ["no model of the stage int8 there, only trained; make it with scripts/compress.py "]),
        ("pruned", ["no model of the stage pruned there, only trained"]),
        ("int4", ["--stage int4 is not known; use trained, pruned, fine_tuned or int8"]),
        ("", ["--stage  is not known"]),
    ],
)
def test_stages_that_are_not_there(tmp_path, finished_run, script, stage, parts):
    before = tree(tmp_path)
    more = {"predict.py": ["--text", "Ann"], "evaluate.py": ["--file", trained_writer("lm")[0]["validation_file"]]}
    finished = call_script(script, finished_run, "--stage", stage, *more[script])
    assert_one_line(finished, *(" ".join(part.split()) for part in parts), prog=script)
    assert tree(tmp_path) == before


def test_compressing_on_a_full_disk_says_so(finished_run, monkeypatch):
    """What is written aside is cleared away, and the run is unharmed."""
    from him.runs import checkpoint

    before = tree(finished_run)

    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    finished = call_script("compress.py", finished_run, "--pruning_amount", "0")
    assert_one_line(finished, "no space to write it", prog="compress.py")
    left = {name: content for name, content in tree(finished_run).items() if not name.startswith("compressed.part")}
    assert left == before
