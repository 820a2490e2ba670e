"""Regression check of a refactoring: two revisions train the same small runs and have to write the same bits.

    python scripts/compare_revisions.py                              the working tree against BASE, all runs
    python scripts/compare_revisions.py --only squad lm              some runs, and those that they start from
    python scripts/compare_revisions.py --base HEAD~1 --jobs 2

A change of the layout, of names or of interfaces must not change what is computed. Seeds alone do not show that: an
initialization drawn in another order, a lost dropout or a schedule one step off trains just as well. So both revisions
run each of `RUNS` here, with the same Python and one thread, each in a scratch folder of its own, and the files that
hold results are compared bit for bit (`COMPARED`). Settings, timings and pictures are not compared.

The project is used by its command lines alone, and by the names of flags that BASE knows, so that its packages may be
cut otherwise. The revision to compare with is checked out as a temporary git worktree, which is removed at the end.

Exit status: 0 if all is the same, 1 if something differs or a run fails, 2 if the comparison cannot be made, 130
after Ctrl-C. All runs take two to three minutes on two free cores.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
BASE = "9861f1d"
COMPARED = (
    "**/*.safetensors",
    "**/metrics.jsonl",
    "**/metrics.json",
    "best/tokenizer.json",
    "predictions.json",
    "evaluated.json",
)
TINY = (
    "main.py --output_dir {runs} --run_name {name} --attention_dir {runs}/pictures --num_encoder_layers 2 "
    "--embed_dim 32 --num_heads 2 --dim_feedforward 64 --vocab_size 400 --batch_size 8 --max_steps 8 --seed 1 "
    "--num_threads 1 --device cpu --precision fp32 --save_every_minutes 0 --bertscore_samples 0 "
    "--attention_examples 0 --eval_samples 4 "
)
SQUAD = TINY.replace("--eval_samples 4 ", "") + "--task_type squad --max_seq_len 128 --doc_stride 32 "
SUMMARIZATION = TINY + "--task_type summarization --max_seq_len 128 --max_target_len 24 --num_beams 2 "
LM = TINY + "--task_type lm --max_seq_len 64 --max_new_tokens 8 "
SAMPLE = "--dataset sample --sample_size 80 "
SQUAD_FILES = "--train_file {data}/a.json {data}/b.json --validation_file {data}/validation.json "
PAIR_FILES = "--train_file {data}/a.jsonl {data}/b.jsonl --validation_file {data}/validation.jsonl "

# Name of a run: its command lines. {runs}: folder of a revision's runs; {data}: files that both revisions read.
RUNS: dict[str, tuple[str, ...]] = {
    "squad": (SQUAD + SAMPLE + "--pretrain_epochs 1 --variants 2",),
    "summarization": (SUMMARIZATION + SAMPLE + "--pretrain_epochs 1 --optimizer muon --no-compress",),
    "lm": (LM + SAMPLE + "--optimizer muon --ema_decay 0.8 --dropout 0.1",),
    "squad_post_ln": (
        SQUAD + SQUAD_FILES + "--no-norm_first --positions learned --pretrain_epochs 0 --conv_width 0 --dropout 0.3 "
        "--label_smoothing 0.1 --schedule linear --pruning_method magnitude --fine_tune_epochs 1 --distillation 0.3",
    ),
    "squad_files": (
        SQUAD + SQUAD_FILES + "--train_weights 1 0.5 --first_file_last --variants 3 --max_steps 18 --batch_size 16 "
        "--pretrain_epochs 1 --pretrain_files {data}/corpus --optimizer muon --ema_decay 0.9 --no-compress",
        "scripts/evaluate.py {runs}/{name} --file {data}/validation.json --output {runs}/{name}/evaluated.json "
        "--num_threads 1",
    ),
    "squad_teacher": (
        SQUAD + SQUAD_FILES + "--teacher {runs}/squad --teacher_weight 0.7 --schedule plateau --max_steps 16 "
        "--eval_every_steps 2 --pretrain_epochs 0 --conv_width 3 --variants 2 --shared_dropout --no-compress",
    ),
    "squad_init_from": (
        SQUAD + SQUAD_FILES + "--init_from {runs}/squad --pretrain_epochs 0 --micro_batch_size 3 --activation "
        "relu_squared --attention_dropout 0.1 --warmup_share 0.3 --no-compress",
        "main.py --resume {runs}/{name} --max_steps 12",
    ),
    "squad_plain": (
        SQUAD + SQUAD_FILES + "--no-lexical_features --conv_width 0 --word_dropout 0 --pretrain_epochs 0 --schedule "
        "constant --precision bf16 --no-compress",
    ),
    "summarization_post_ln": (
        SUMMARIZATION + PAIR_FILES + "--train_weights 1.5 0.5 --first_file_last --no-norm_first --no-copy_head "
        "--positions learned --tokenizer_type wordpiece --label_smoothing 0 --dropout 0.1 --schedule linear "
        "--pretrain_epochs 1 --pretrain_files {data}/corpus --fine_tune_epochs 1",
    ),
    "summarization_teacher": (
        SUMMARIZATION + PAIR_FILES + "--teacher {runs}/summarization --ema_decay 0.9 --schedule plateau "
        "--eval_every_steps 3 --no_repeat_ngram_size 0 --no-no_repeat_words --bertscore_samples 2 --no-compress",
    ),
    "summarization_init_from": (
        SUMMARIZATION + PAIR_FILES + "--init_from {runs}/summarization --micro_batch_tokens 300 --word_dropout 0.1 "
        "--no-compress",
        "scripts/compress.py {runs}/{name} --pruning_amount 0.5 --pruning_method magnitude --num_threads 1",
    ),
    "lm_post_ln": (
        LM + "--corpus_dir {data}/corpus --validation_file {data}/validation.txt --tokenizer_type char --no-norm_first "
        "--positions learned --conv_width 3 --eval_stride 16 --schedule plateau --eval_every_steps 2 --num_beams 2 "
        "--label_smoothing 0.1 --dropout 0.2 --shared_dropout --no-compress",
    ),
    "lm_teacher": (LM + SAMPLE + "--teacher {runs}/lm --temperature 0.8 --top_k 20 --top_p 0.9 --no-compress",),
    "lm_init_from": (LM + SAMPLE + "--init_from {runs}/lm --early_stopping_epochs 1 --max_steps 6 --no-compress",),
}


# -- the comparison ----------------------------------------------------------------------------------------------------


def compare_runs(base: Path, new: Path) -> tuple[int, str | None]:
    """Compares the files of two runs that hold results, those of `COMPARED`.

    Returns:
        How many files were compared, and the first difference, or None if there is none.
    """
    names = {
        path.relative_to(run).as_posix()
        for run, pattern in itertools.product((base, new), COMPARED)
        for path in run.glob(pattern)
    }
    if not names:
        return 0, f"neither run has a file to compare: {base}, {new}"
    for name in sorted(names):
        missing = [which for which, run in (("base", base), ("new", new)) if not (run / name).is_file()]
        if missing:
            return len(names), f"{name}: missing in the {missing[0]} revision's run"
        difference = _FILE_KINDS[Path(name).suffix](base / name, new / name)
        if difference:
            return len(names), f"{name}: {difference}"
    return len(names), None


def tensor_difference(base: Path, new: Path) -> str | None:
    """The first tensor of two safetensors files whose name, type, shape or bits differ; None if all are the same."""
    before, after = load_file(base), load_file(new)
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            return f"{name} is {'new' if name in after else 'gone'}"
        old, now = before[name], after[name]
        if (old.dtype, old.shape) != (now.dtype, now.shape):
            return f"{name} was {old.dtype} {tuple(old.shape)}, is {now.dtype} {tuple(now.shape)}"
        if not torch.equal(_bytes_of(old), _bytes_of(now)):
            other = (_bytes_of(old) != _bytes_of(now)).any(dim=1)
            most = (old.double() - now.double()).abs().max().item()
            return f"{name} differs in {int(other.sum())} of {other.numel()} values, by up to {most:.3g}"
    return None


def lines_difference(base: Path, new: Path) -> str | None:
    """The first record in which two `metrics.jsonl` differ; throughput, which depends on the clock, is left out."""
    before, after = (
        [record for line in path.read_text(encoding="utf-8").splitlines() if not _is_throughput(record := _parse(line))]
        for path in (base, new)
    )
    for number, (old, now) in enumerate(zip(before, after, strict=False), start=1):
        if difference := value_difference(old, now):
            return f"record {number} (step {old.get('step')}, {old.get('tag')}): {difference}"
    return None if len(before) == len(after) else f"had {len(before)} records, has {len(after)}"


def json_difference(base: Path, new: Path) -> str | None:
    """The first place in which two JSON files differ; None if they hold the same."""
    return value_difference(*(_parse(path.read_text(encoding="utf-8")) for path in (base, new)))


def value_difference(old: Any, now: Any, place: str = "") -> str | None:
    """The first place in which two parsed JSON values differ, such as `answers.0.text: was 'a', is 'b'`."""
    if type(old) is type(now) and isinstance(old, dict | list) and len(old) == len(now):
        if isinstance(old, list):
            old, now = dict(enumerate(old)), dict(enumerate(now))
        if old.keys() == now.keys():
            inner = (value_difference(old[key], now[key], f"{place}.{key}".lstrip(".")) for key in old)
            return next(filter(None, inner), None)
    if old == now and type(old) is type(now):
        return None
    return f"{place or 'value'}: was {old!r:.80}, is {now!r:.80}"


_FILE_KINDS = {".safetensors": tensor_difference, ".jsonl": lines_difference, ".json": json_difference}


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor, so that NaN equals itself and -0 is not 0: (values, bytes of one) uint8."""
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


class Number(str):
    """A number of a JSON file as it is written there, all digits, NaN too."""

    __repr__ = str.__str__


def _parse(text: str) -> Any:
    return json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)


def _is_throughput(record: dict[str, Any]) -> bool:
    return record["tag"].startswith("Throughput")


# -- the runs ----------------------------------------------------------------------------------------------------------


class Tree:
    """A checked-out revision and the folder of its runs.

    Args:
        root: of the revision's files.
        runs: where its runs and caches are written.
        data: files that the runs of both revisions read.
    """

    def __init__(self, root: Path, runs: Path, data: Path) -> None:
        self.root, self.runs, self.data = root, runs, data
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, name: str, needed: Sequence[Future]) -> str | None:
        """Runs the command lines of `name` once the runs that it needs are there; what went wrong, or None."""
        for future in needed:
            if future.result() is not None:
                return "a run that it starts from failed"
        for command in RUNS[name]:
            arguments = shlex.split(command.format(name=name, runs=self.runs, data=self.data))
            status, text = self._call(arguments)
            if status != 0:
                return f"{arguments[0]} ended with status {status}: {(text.strip().splitlines() or ['no output'])[-1]}"
        return None

    def _call(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Exit status of a command line, and its output."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        with self._lock:
            if self._stopped:
                return 1, "stopped"
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._processes.add(process)
        text, _ = process.communicate()
        with self._lock:
            self._processes.remove(process)
        return process.returncode, text

    def stop(self) -> None:
        """Ends the processes that are still there, and starts no others."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.kill()


def with_needed(names: Sequence[str]) -> list[str]:
    """The runs of `names` and those that they start from, in the order of `RUNS`, in which these stand first."""
    chosen = set(names)
    for name in reversed(RUNS):
        if name in chosen:
            chosen |= needed_by(name)
    return [name for name in RUNS if name in chosen]


def needed_by(name: str) -> set[str]:
    """The other runs that the command lines of a run read."""
    return set(re.findall(r"\{runs\}/(\w+)", " ".join(RUNS[name]))) & RUNS.keys()


def compare_trees(base: Tree, new: Tree, names: Sequence[str], jobs: int) -> bool:
    """Runs `names` in both, so many at a time, and prints a line for each; whether all are the same."""
    pool = ThreadPoolExecutor(jobs)
    futures: dict[tuple[Tree, str], Future] = {}
    all_same = True
    try:
        for name, tree in itertools.product(names, (base, new)):
            needed = [futures[tree, other] for other in needed_by(name)]  # begun before: no job waits for a later one
            futures[tree, name] = pool.submit(tree.run, name, needed)
        for name in names:
            failed = [
                f"fails in the {which} revision: {failure}"
                for which, tree in (("base", base), ("new", new))
                if (failure := futures[tree, name].result())
            ]
            number, difference = compare_runs(base.runs / name, new.runs / name) if not failed else (0, failed[0])
            print(f"{name}: {difference or f'same ({number} files)'}", flush=True)
            all_same &= difference is None
    finally:
        base.stop()
        new.stop()
        pool.shutdown(cancel_futures=True)
    return all_same


# -- what they read ----------------------------------------------------------------------------------------------------

TOWNS = "Ankara Bergen Cuzco Delft Evora Fulda Ghent Hobart Izmir Jena Kyoto Lyon Mainz Nantes Oslo Porto".split()
PEOPLE = "Ada Boris Clara Dario Elena Felix Greta Hugo Irene Jonas Karla Luis Marta Nils Olga Pavel".split()
THINGS = "bridge market school harbour theatre library garden tower station museum".split()


def write_data(folder: Path) -> None:
    """Writes small files of each format: SQuAD JSON, JSONL of documents and summaries, and a folder of texts."""
    stories = [_story(number) for number in range(120)]
    parts = {"a": stories[:48], "b": stories[48:96], "validation": stories[96:]}
    (folder / "corpus").mkdir(parents=True)
    for name, part in parts.items():
        paragraphs = [{"context": story["document"], "qas": story["qas"]} for story in part]
        document = {"version": "1.1", "data": [{"title": name, "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
        lines = [json.dumps({key: story[key] for key in ("document", "summary")}) for story in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = "\n\n".join(story["document"] for story in part)
        place = folder if name == "validation" else folder / "corpus"
        (place / f"{name}.txt").write_text(text + "\n", encoding="utf-8")


def _story(number: int) -> dict[str, Any]:
    """A text with its summary and two questions; each number gives another one."""
    town, person, thing = TOWNS[number % 16], PEOPLE[number * 7 % 16], THINGS[number * 3 % 10]
    year, cost = 1801 + number, f"{3 * number + 12} thousand coins"
    context = (
        f"In {year}, {person} planned a {thing} for the people of {town}. The work took {number % 9 + 2} years and "
        f"cost {cost}. Today the {thing} stands beside the river, and visitors come from far away to see it."
    )
    asked = ((f"Who planned a {thing} for {town} in {year}?", person), (f"What did the {thing} of {town} cost?", cost))
    qas = [
        {
            "id": f"{number}-{place}",
            "question": question,
            "answers": [{"text": text, "answer_start": context.index(text)}],
        }
        for place, (question, text) in enumerate(asked)
    ]
    return {"document": context, "summary": f"{person} planned a {thing} in {town} in {year}.", "qas": qas}


# -- the command line --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A revision of this repository, checked out for as long as it is needed."""
    add = ["git", "worktree", "add", "--quiet", "--detach", str(folder), revision]
    try:
        subprocess.run(add, cwd=ROOT, check=True)
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BASE, metavar="REVISION", help=f"compare with this revision [{BASE}]")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, one thread each [2]")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs} is below 1; use the number of free cores")
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{given.base}^{{commit}}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    if found.returncode != 0:
        parser.error(f"--base {given.base}: no such revision in {ROOT}; name a commit of its history")
    return given


def main() -> int:
    given = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as after Ctrl-C
    with tempfile.TemporaryDirectory(prefix="compare_revisions-") as name:
        scratch = Path(name)
        write_data(scratch / "data")
        with worktree(given.base, scratch / "tree") as root:
            trees = [Tree(each, scratch / runs, scratch / "data") for each, runs in ((root, "base"), (ROOT, "new"))]
            return 0 if compare_trees(*trees, with_needed(given.only), given.jobs) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("compare_revisions.py: stopped", file=sys.stderr)
        sys.exit(130)
