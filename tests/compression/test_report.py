"""Verdicts, table and last line, by hand: what is called smaller, faster and a success."""

import pytest

from him.compression.report import front_table, judge, not_faster_line, report_table, summary_line, time_of


def stage(name="trained", file_mb=10.0, ms=20.0, F1=60.0, **more):
    return {
        "stage": name,
        "precision": "fp32",
        "parameters": 1_000_000,
        "file_mb": file_mb,
        "latency_ms_1x128": ms / 3,
        "latency_ms_1x384": ms,
        "examples_per_second_32x384": 1000 / ms,
        "F1": F1,
        **more,
    }


def judged(*stages):
    judge(stages)
    return stages


@pytest.mark.parametrize(
    ("file_mb", "ms", "verdict"),
    [
        (5.0, 10.0, "smaller, faster"),
        (5.0, 20.0, "smaller, not faster"),
        (10.0, 10.0, "not smaller, faster"),
        (10.0, 20.0, "not smaller, not faster"),
        (9.6, 19.2, "not smaller, not faster"),
        (9.4, 18.8, "smaller, faster"),
        (12.0, 30.0, "not smaller, not faster"),
    ],
)
def test_verdicts(file_mb, ms, verdict):
    """4 % are within the noise of a timing, 6 % are not."""
    trained, other = judged(stage(), stage("int8", file_mb, ms))
    assert "verdict" not in trained
    assert other["verdict"] == verdict
    line = summary_line([trained, other], "F1")
    assert line.startswith("compressed: ") == (verdict == "smaller, faster")
    assert verdict == "smaller, faster" or line.startswith(f"not a success ({verdict}): ")


def test_every_stage_is_judged_by_the_trained_model():
    _, pruned, int8 = judged(stage(), stage("pruned", 5.0, 10.0), stage("int8", 6.0, 12.0))
    assert [pruned["verdict"], int8["verdict"]] == ["smaller, faster"] * 2


def test_the_last_stage_decides_and_a_better_one_before_it_does_not():
    stages = judged(stage(), stage("pruned", 5.0, 10.0), stage("int8", 2.0, 30.0))
    line = summary_line(stages, "F1")
    assert line == "not a success (smaller, not faster): 10 → 2 MB, 20 → 30 ms, F1 60 → 60"


def test_the_last_line_by_hand():
    stages = judged(stage(), stage("int8", 2.5, 5.04, F1=58.765))
    assert summary_line(stages, "F1") == "compressed: 10 → 2.5 MB, 20 → 5.04 ms, F1 60 → 58.77"
    stages[0]["bf16"] = {"latency_ms_1x384": 7.123}
    assert "20 (7.12 in bf16) → 5.04 ms" in summary_line(stages, "F1")


@pytest.mark.parametrize(
    ("precision", "ms", "faster"),
    [
        ("fp32", 12.0, "faster"),
        ("int8 and fp32", 12.0, "faster"),
        ("int8 and bf16", 12.0, "not faster"),
        ("int8 and bf16", 7.7, "not faster"),
        ("int8 and bf16", 7.5, "faster"),
        ("fp32", 19.2, "not faster"),
    ],
)
def test_bf16_is_not_what_a_stage_brought(precision, ms, faster):
    """The trained model takes 20 ms in fp32 and 8 in bf16."""
    trained = stage(bf16={"latency_ms_1x384": 8.0})
    _, other = judged(trained, stage("int8", 2.0, ms) | {"precision": precision})
    assert other["verdict"] == f"smaller, {faster}"


@pytest.mark.parametrize("reached", [384, 128, 0])
def test_a_model_is_judged_by_the_longest_input_that_it_reaches(reached):
    """With learned positions; an example of the built-in data always fits."""
    out_of_reach = {"latency_ms_1x384": None, "examples_per_second_32x384": None} if reached < 384 else {}
    out_of_reach |= {"latency_ms_1x128": None} if reached < 128 else {}
    deciding = {384: "latency_ms_1x384", 128: "latency_ms_1x128", 0: "latency_ms_example"}[reached]
    before, after = ({**out_of_reach, "latency_ms_example": 5.0, deciding: value} for value in (4.0, 1.0))
    stages = judged(stage() | before, stage("int8", 5.0, 99.0) | after)
    assert time_of(stages[0]) == deciding
    assert stages[1]["verdict"] == "smaller, faster"
    assert "4 → 1 ms" in summary_line(stages, "F1")
    title = report_table(stages, "F1").splitlines()[0]
    assert ("ms 1x384" in title, "ms 1x128" in title) == (reached >= 384, reached >= 128)
    assert ("ms example" in title) == (reached == 0), "or it depends on what each model happens to write"


def test_the_table():
    """A line for each stage, what it has in bf16 below it, numbers under their titles."""
    stages = judged(
        stage(bf16={"latency_ms_1x384": 7.77}),
        stage("pruned", 7.0, 12.0, F1=58.5),
        stage("int8", 2.0, 30.0, F1=61.25, precision="int8 and bf16", latency_ms_token=0.5),
    )
    lines = report_table(stages, "F1").splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "",
        "trained (fp32)",
        "",
        "pruned (fp32)",
        "int8 (int8 and bf16)",
    ]
    assert lines[1].split()[2:] == ["1,000,000", "10.00", "6.7", "20.0", "50.0", "60"]
    assert lines[2].split() == ["the", "same", "in", "bf16", "7.8"]
    assert lines[3].endswith("58.5   -1.5  smaller, faster")
    assert lines[4].endswith("0.50  61.25  +1.25  smaller, not faster")
    for title, value in (("ms 1x384", "20.0"), ("file MB", "10.00"), ("F1", "60")):
        row = lines[1] if title != "ms 1x384" else lines[1]
        end = lines[0].index(title) + len(title)
        assert row[:end].endswith(value), (title, lines)
    assert lines[2].index("7.8") + 3 == lines[0].index("ms 1x384") + len("ms 1x384")


def test_a_column_that_no_stage_has_is_left_out():
    assert "ms/token" not in report_table(judged(stage(), stage("int8")), "F1")


@pytest.mark.parametrize(("ms", "is_said"), [(7.7, False), (8.0, True), (31.0, True)])
def test_int8_that_is_not_faster_than_bf16_says_why(ms, is_said):
    """Pruned models count, not the trained one, unless nothing was pruned."""
    trained, pruned, fine_tuned = (
        stage(name, bf16={"latency_ms_1x384": bf16_ms})
        for name, bf16_ms in (("trained", 7.0), ("pruned", 8.4), ("fine_tuned", 8.0))
    )
    stages = [trained, pruned, fine_tuned, stage("int8", ms=ms)]
    line = not_faster_line(stages, "products are made in bf16")
    if is_said:
        assert line == f"int8 is not faster than fine_tuned in bf16 ({ms:.3g} and 8 ms): products are made in bf16"
    else:
        assert line is None
    assert "than trained in bf16" in not_faster_line([trained, stages[-1]], "")
    for each in stages[:-1]:
        del each["bf16"]
    assert not_faster_line(stages, "") is None, "nothing was measured in bf16"


def test_the_front_lists_floats_then_int8_by_amount():
    points = [
        {"pruning_amount": amount, **stage(name, size, 10 * size, F1=50 + size)}
        for amount, name, size in (
            (0.5, "fine_tuned", 5.0),
            (0.5, "int8", 1.25),
            (0.0, "trained", 10.0),
            (0.0, "int8", 2.5),
        )
    ]
    lines = [line.split() for line in front_table(points, "F1").splitlines()]
    assert lines[0] == ["pruned", "file", "MB", "ms", "1x384", "F1"]
    assert lines[1:] == [
        ["0", "trained", "10.00", "100.00", "60"],
        ["0.5", "fine_tuned", "5.00", "50.00", "55"],
        ["0", "int8", "2.50", "25.00", "52.5"],
        ["0.5", "int8", "1.25", "12.50", "51.25"],
    ]
