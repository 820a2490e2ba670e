"""Damage is seen: no file of a checkpoint or of a model can be cut or changed by one bit without being found out.

What is damaged is named and left aside; what is whole is used, or made again; and a resumed run ends with the same bits
as one that nothing happened to.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import him
from him import Config
from him.compression.quantization import save_int8
from him.core.compute import choose_compute
from him.core.errors import CheckpointError
from him.core.files import CHECKSUMS, verify_folder
from him.model.int8 import quantize
from him.runs.checkpoint import Checkpoints
from him.tasks import task_class
from him.training.trainer import Trainer
from him.workflows.train import train
from tests.small_runs import Finished, assert_one_line, assert_same_run, call_main, call_script, small_settings, tree

PROMISE = "damage is seen"
EDGE = 16  # bytes at both ends of a file at which it is cut
NUM_STEPS = 10


@dataclass(frozen=True)
class Damage:
    """What happened to a file: it lost its end, or a bit changed.

    Attributes:
        length: that is left.
        bit: that changed.
    """

    length: int | None = None
    bit: int | None = None

    def of(self, content: bytes) -> bytes:
        if self.length is not None:
            return content[: self.length]
        changed = bytearray(content)
        changed[self.bit // 8] ^= 1 << self.bit % 8
        return bytes(changed)


@contextmanager
def damaged(path: Path, damage: Damage) -> Iterator[None]:
    """While entered, a file is damaged."""
    content = path.read_bytes()
    path.write_bytes(damage.of(content))
    try:
        yield
    finally:
        path.write_bytes(content)


def cuts(size: int, num_random: int, choose: random.Random) -> list[Damage]:
    """A file without its last bytes, with only its first ones, and cut anywhere."""
    lengths = {*range(min(EDGE, size)), *range(max(0, size - EDGE), size)}
    lengths |= {choose.randrange(size) for _ in range(num_random)}
    return [Damage(length=length) for length in sorted(lengths)]


def flips(size: int, number: int, choose: random.Random) -> list[Damage]:
    return [Damage(bit=bit) for bit in choose.sample(range(8 * size), min(number, 8 * size))]


def some_damage(files: Sequence[Path], number: int, seed: int) -> list[tuple[Path, Damage]]:
    """Damage of both kinds, spread over files."""
    choose = random.Random(seed)
    made = []
    for turn in range(number):
        path = files[turn % len(files)]
        size = path.stat().st_size
        (damage,) = flips(size, 1, choose) if turn // len(files) % 2 else [Damage(length=choose.randrange(size))]
        made.append((path, damage))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with EMA, three checkpoints, and its model in int8."""
    settings = small_settings(tmp_path_factory.mktemp("data"), num_train=20, num_validation=4)
    more = {"batch_size": 8, "save_every_steps": 3, "keep_checkpoints": 2, "ema_decay": 0.9, "learning_rate": 0.003}
    made = Path(train(Config(**settings | more, run_name="run"))["run"])
    assert len(Checkpoints(made / "checkpoints", 2).list()) == 3  # the best one too
    predictor = him.load(made)
    (made / "compressed").mkdir()
    metrics = {"F1": 1.0}
    save_int8(made / "compressed" / "int8", predictor.config, quantize(predictor.model), predictor.task, metrics)
    return made


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(autouse=True)
def one_thread():
    """A damaged configuration may have asked for more before it was refused."""
    yield
    torch.set_num_threads(1)


def newest_of(run: Path) -> tuple[Path, Path]:
    """The newest checkpoint and the one before."""
    before, newest = Checkpoints(run / "checkpoints", 1).list()[-2:]
    return newest, before


PLACES = {"checkpoint": lambda run: newest_of(run)[0], "best": lambda run: run / "best"}
PLACES |= {"int8": lambda run: run / "compressed" / "int8"}


@pytest.mark.parametrize("place", PLACES)
def test_every_damage_is_detected(run, place, amount, reached):
    """By `verify_folder`, which all that read a checkpoint or a model go through."""
    folder = PLACES[place](run)
    names = sorted(path.name for path in folder.iterdir())
    assert {CHECKSUMS, "model.safetensors"} < set(names) and len(names) >= 5
    choose = random.Random(place)
    num_flips = num_cuts = 0
    for name in names:
        path = folder / name
        size = path.stat().st_size
        number = amount(60, 1200) // len(names) + 1
        flipped = flips(size, 8 * size if name == CHECKSUMS and amount(0, 1) else number, choose)
        cut = cuts(size, amount(5, 100), choose)
        for damage in [*flipped, *cut]:
            with damaged(path, damage), pytest.raises(CheckpointError) as raised:
                verify_folder(folder)
            assert str(folder) in str(raised.value)
            assert name == CHECKSUMS or name in str(raised.value)
        num_flips, num_cuts = num_flips + len(flipped), num_cuts + len(cut)
    verify_folder(folder)
    reached(PROMISE, f"{place}: {num_flips} of {num_flips} flipped bits and {num_cuts} of {num_cuts} cuts detected")


def test_the_newest_whole_checkpoint_is_used(copy, amount, reached):
    """What is damaged is quarantined under another name, and the line about it holds all that is known."""
    newest, before = newest_of(copy)
    step = int(before.name[5:])
    aside = newest.with_name(f"{newest.name}.damaged")
    choose = random.Random(1)
    number = 0
    for path in sorted(newest.iterdir()):
        size = path.stat().st_size
        for damage in [*flips(size, amount(4, 120), choose), *choose.sample(cuts(size, 4, choose), amount(4, 36))]:
            said: list[str] = []
            with damaged(path, damage):
                found = Checkpoints(copy / "checkpoints", 1).load_newest(said.append)
                assert found.step == step
                (line,) = said
                assert line.startswith(str(newest)) and line.endswith(f"; it is quarantined as {aside.name}")
                assert path.name in line or path.name == CHECKSUMS
                assert "\n" not in line
                assert not newest.exists()
                aside.rename(newest)
            number += 1
    assert Checkpoints(copy / "checkpoints", 1).load_newest().step == NUM_STEPS
    reached(PROMISE, f"load_newest: in {number} of {number} cases the checkpoint before is used, the damaged one named")


def test_an_unreadable_list_of_checksums_is_named(copy):
    newest, _ = newest_of(copy)
    for content in (b"", b"\xff", b'{"model'):
        (newest / CHECKSUMS).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{newest.name}/{CHECKSUMS}: damaged, it cannot be read \("):
            verify_folder(newest)


def test_resumed_runs_end_with_the_same_bits(run, tmp_path, amount, reached):
    """`main.py --resume` after damage of the newest checkpoint, of the two newest ones, or of the best model too."""
    number = amount(3, 30)
    checkpoints = Checkpoints(run / "checkpoints", 1).list()
    files = [path.relative_to(run) for path in sorted(checkpoints[-1].iterdir())]
    choose = random.Random(2)
    for turn, (path, damage) in enumerate(some_damage([run / name for name in files], number, seed=2)):
        again = tmp_path / "again"
        shutil.copytree(run, again)
        name = path.relative_to(run)
        hurt = [(name, damage)]
        if turn % 3 == 1:
            older = Path("checkpoints") / checkpoints[-2].name / name.name
            hurt += [(older, flips((run / older).stat().st_size, 1, choose)[0])]
        if turn % 3 == 2:
            best = choose.choice(sorted((run / "best").iterdir())).relative_to(run)
            hurt += [(best, flips((run / best).stat().st_size, 1, choose)[0])]
        for each, kind in hurt:
            (again / each).write_bytes(kind.of((again / each).read_bytes()))
        finished = call_main("--resume", again)
        assert (finished.status, finished.err) == (0, ""), finished
        for each, _ in hurt:
            aside = again / each.parent.with_name(f"{each.parent.name}.damaged")
            assert f"quarantined as {aside.name}" in finished.out, (hurt, finished.out)
            shutil.rmtree(aside)
        assert_same_run(again, run)
        shutil.rmtree(again)
    reached(PROMISE, f"--resume after damage: {number} of {number} runs end with the bits of the straight run")


def test_best_is_made_again_from_its_checkpoint(run, copy, amount, reached):
    best = copy / "best"
    weights = (best / "model.safetensors").read_bytes()
    config = Config.load(copy / "config.json")
    task, compute = (
        task_class(config.task_type).prepare(config),
        choose_compute(config.device, config.precision, config.num_threads),
    )
    checkpoint = Checkpoints(copy / "checkpoints", 1).load_newest()
    trainer = Trainer(task, config, copy, compute, task.build_model(), checkpoint, resumes=True)
    said: list[str] = []
    trainer.say = said.append
    number = amount(10, 100)
    for path, damage in some_damage(sorted(best.iterdir()), number, seed=3):
        shutil.rmtree(best)
        shutil.copytree(run / "best", best)
        path.write_bytes(damage.of(path.read_bytes()))
        trainer.restore_best()
        verify_folder(best)
        assert (best / "model.safetensors").read_bytes() == weights
        assert str(best) in said[-1] and said[-1].endswith("quarantined as best.damaged")
        shutil.rmtree(copy / "best.damaged")
    trainer.restore_best()
    trainer.writer.close()
    assert len(said) == number, "one line each, and none about what is whole"
    reached(PROMISE, f"best model: {number} of {number} times made again from its checkpoint, bit for bit")


QUESTION = ("--question", "Who?", "--context", "The cat sat.")
SCRIPTS: dict[str, Callable[[Path], Finished]] = {
    "predict.py": lambda run: call_script("predict.py", run, *QUESTION),
    "evaluate.py": lambda run: call_script("evaluate.py", run, "--file", Config.load(run / "config.json").train_file),
    "compress.py": lambda run: call_script("compress.py", run, "--pruning_amount", "0"),
    "predict.py --stage int8": lambda run: call_script("predict.py", run, *QUESTION, "--stage", "int8"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_refuse_a_damaged_model(copy, script, amount, reached):
    folder = copy / ("compressed/int8" if "int8" in script else "best")
    number = amount(6, 60)
    for path, damage in some_damage(sorted(folder.iterdir()), number, seed=4):
        with damaged(path, damage):
            before = tree(copy)
            finished = SCRIPTS[script](copy)
            assert tree(copy) == before
        assert_one_line(finished, str(folder), prog=script.split()[0])
    reached(PROMISE, f"{script}: {number} of {number} damaged models refused in one line")


def test_verify_script(copy, amount, reached):
    """`scripts/verify.py` names each damage, says nothing bad of a sound run, and changes neither."""
    before = tree(copy)
    sound = call_script("verify.py", copy)
    assert (sound.status, sound.err) == (0, ""), sound
    assert "BAD" not in sound.out and "all bits agree" in sound.out
    assert tree(copy) == before
    folders = [*Checkpoints(copy / "checkpoints", 1).list(), copy / "best", copy / "compressed" / "int8"]
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    number = max(len(files), amount(0, 300))
    for path, damage in some_damage(files, number, seed=5):
        with damaged(path, damage):
            damaged_tree = tree(copy)
            finished = call_script("verify.py", copy, "--no-replay")
            assert tree(copy) == damaged_tree
        assert (finished.status, finished.err) == (1, ""), (path, damage, finished)
        (line,) = (line for line in finished.out.splitlines() if not line.startswith("good "))
        assert line.startswith("BAD ") and path.parent.name in line and (path.name in line or path.name == CHECKSUMS)
    reached(PROMISE, f"scripts/verify.py: {number} of {number} damaged files named, none in a sound run")
