"""Pictures of the report and of the sweep: they are drawn, and what they show is in them."""

import numpy as np
import pytest

from him.compression.report import draw_front, draw_report
from tests.compression.test_report import stage

STAGES = [stage(), stage("pruned", 7.0, 14.0), stage("int8", 2.0, 5.0, F1=58.0)]
SHORT = {"latency_ms_1x384": None, "examples_per_second_32x384": None}


def points(amounts=(0.0, 0.5), **more):
    return [
        {
            "pruning_amount": amount,
            **stage(name, 10 * (1 - amount) * part, 20 * (1 - amount) * part, 60 - amount, **more),
        }
        for amount in amounts
        for name, part in (("fine_tuned", 1.0), ("int8", 0.25))
    ]


def is_picture(image):
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert min(image.shape[:2]) > 200
    assert (image == 255).mean() > 0.5 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    return image


def test_the_report_has_a_bar_for_each_stage():
    """Half of the heights doubled: more ink in the same picture."""
    image = is_picture(draw_report(STAGES, "F1"))
    blue = (image == (0x2F, 0x6F, 0x9F)).all(axis=2)
    starts = np.flatnonzero(np.diff(blue.any(axis=0).astype(int)) == 1)
    assert len(starts) == 6, "two stages after the first, in three panels"


@pytest.mark.parametrize("changed", [{"file_mb": 9.0}, {"latency_ms_1x384": 19.0}, {"F1": 30.0}])
def test_every_panel_shows_its_own_measure(changed):
    before = draw_report(STAGES, "F1")
    after = draw_report([*STAGES[:2], {**STAGES[2], **changed}], "F1")
    different = (before != after).any(axis=(0, 2))
    third = {"file_mb": 0, "latency_ms_1x384": 1, "F1": 2}[next(iter(changed))]
    places = np.flatnonzero(different) * 3 // before.shape[1]
    assert set(places) == {third}


def test_models_of_short_texts():
    stages = [{**each, **SHORT, "latency_ms_example": 3.0} for each in STAGES]
    is_picture(draw_report(stages, "F1"))
    is_picture(draw_front(points(**SHORT, latency_ms_example=3.0), "F1"))


def test_the_front_has_a_mark_for_each_point():
    image = is_picture(draw_front(points(), "F1"))
    assert (is_picture(draw_front(points((0.0,)), "F1")) != image).any()
    assert (draw_front(points(), "F1") == image).all()
