"""What the tests of attention sheets share: a maker of examples, and one sheet that is drawn once."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from him.attention_maps import AttentionExample, draw_sheet


@pytest.fixture(scope="session")
def make_example() -> Callable[..., AttentionExample]:
    """Makes an example [CLS] question [SEP] context [SEP] with random attention, a layer for each entry of `heads`."""

    def make(
        length: int = 12,
        heads: tuple[int, ...] = (2,),
        question: int = 4,
        answer: tuple[int, int] | None = (8, 9),
        **changes,
    ) -> AttentionExample:
        generator = np.random.default_rng(0)
        words = [f"w{position}" for position in range(length)]
        special = [position in (0, question + 1, length - 1) for position in range(length)]
        example = AttentionExample(
            name="1",
            title="When? | predicted: then | gold: now",
            tokens=["[S]" if flag else word for flag, word in zip(special, words, strict=True)],
            weights=[generator.dirichlet(np.ones(length), size=(count, length)).astype(np.float32) for count in heads],
            special=special,
            answer=answer,
            sections=[("question", 1, question), ("context", question + 2, length - 2)],
        )
        return dataclasses.replace(example, **changes)

    return make


@pytest.fixture(scope="session")
def plain_sheet(make_example) -> np.ndarray:
    """The sheet of `make_example()`, two heads of twelve tokens, for tests that compare another one with it."""
    image = draw_sheet(make_example(), 1)
    image.flags.writeable = False
    return image
