"""Progress of a compression: what is done once is not done again, unless it is damaged or the settings are others."""

import pytest

from him.compression.pipeline import Progress
from him.core.files import write_folder
from him.core.signals import Stopped
from him.runs.folder import CompressionFolder

SETTINGS = {"pruning_amount": 0.3}


@pytest.fixture
def part(tmp_path) -> CompressionFolder:
    return CompressionFolder(tmp_path / "compressed.part")


def do(progress: Progress, stage: str, loss: float = 1.0) -> bool:
    """Does a stage whose model is one file; returns whether it was not done before."""
    done = []

    def work() -> dict[str, float]:
        done.append(stage)
        if stage != "trained":
            write_folder(progress.part.model(stage), lambda aside: (aside / "weights").write_text(stage))
        return {"Loss": loss}

    progress.once(stage, work)
    return done != []


def begun(part: CompressionFolder) -> Progress:
    """With three stages, the last of them float."""
    progress = Progress(part, SETTINGS)
    assert all(do(progress, stage, loss) for stage, loss in (("trained", 1.0), ("pruned", 2.0), ("fine_tuned", 1.5)))
    return progress


def test_a_stage_is_done_once(part):
    progress = begun(part)
    again = Progress(part, SETTINGS)
    assert (
        again.metrics
        == progress.metrics
        == {"trained": {"Loss": 1.0}, "pruned": {"Loss": 2.0}, "fine_tuned": {"Loss": 1.5}}
    )
    assert again.last_float == "fine_tuned"
    assert [do(again, stage) for stage in ("trained", "pruned", "fine_tuned", "int8")] == [False, False, False, True]
    assert again.last_float == "fine_tuned"


def test_what_was_not_noted_is_done_again(part):
    progress = begun(part)

    def stop() -> dict[str, float]:
        write_folder(part.model("int8"), lambda aside: (aside / "weights").write_text("?"))
        raise Stopped(2)

    with pytest.raises(Stopped):
        progress.once("int8", stop)
    assert do(Progress(part, SETTINGS), "int8")


@pytest.mark.parametrize(
    "change", ["other settings", "damaged model", "missing model", "damaged progress", "unknown stage"]
)
def test_it_begins_anew(part, change):
    begun(part)
    settings = SETTINGS
    if change == "other settings":
        settings = {"pruning_amount": 0.4}
    elif change == "damaged model":
        (part.model("pruned") / "weights").write_text("?")
    elif change == "missing model":
        (part.model("fine_tuned") / "weights").unlink()
    elif change == "damaged progress":
        part.progress.write_text('{"settings": {')
    else:
        part.progress.write_text(part.progress.read_text().replace("fine_tuned", "tuned"))
    progress = Progress(part, settings)
    assert progress.metrics == {}
    assert [path.name for path in part.path.iterdir()] == ["progress.json"]
    assert do(progress, "trained")
