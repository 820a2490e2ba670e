"""The attention sheets: what is drawn, what is left out, which files appear, and what the index lists."""

import dataclasses
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from him.attention_maps import MAX_SLOTS, AttentionExample, choose_slots, draw_sheet, write_index, write_sheets


def make_example(
    length: int = 12,
    heads: tuple[int, ...] = (2,),
    question: int = 4,
    answer: tuple[int, int] | None = (8, 9),
    seed: int = 0,
    **changes,
) -> AttentionExample:
    """An example [CLS] question [SEP] context [SEP] with random attention, a layer for each entry of `heads`."""
    generator = np.random.default_rng(seed)
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


def shown_tokens(example: AttentionExample, max_slots: int = MAX_SLOTS) -> list[int]:
    return [slot.start for slot in choose_slots(example, max_slots) if len(slot) == 1]


def has_color(image: np.ndarray, color: str) -> bool:
    return bool((image == np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)).all(-1).any())


class TestChooseSlots:
    def test_short_input_is_shown_whole(self):
        assert shown_tokens(make_example(length=MAX_SLOTS)) == list(range(MAX_SLOTS))

    @pytest.mark.parametrize("answer", [(20, 22), (150, 153), (295, 298)])
    def test_long_input_keeps_question_specials_answer_and_its_surroundings(self, answer):
        example = make_example(length=300, question=11, answer=answer)
        shown = shown_tokens(example)
        assert {0, 12, 299} <= set(shown)
        assert set(range(1, 12)) <= set(shown)
        assert set(range(answer[0], answer[1] + 1)) <= set(shown)
        assert {answer[0] - 3, min(answer[1] + 3, 299)} <= set(shown)

    @pytest.mark.parametrize("answer", [None, (0, 0), (150, 153), (100, 290)])
    @pytest.mark.parametrize("question", [1, 11, 60])
    @pytest.mark.parametrize("max_slots", [5, 16, 38])
    def test_slots_cover_all_tokens_in_order_and_fill_the_room(self, answer, question, max_slots):
        example = make_example(length=300, question=question, answer=answer)
        slots = choose_slots(example, max_slots)
        assert [position for slot in slots for position in slot] == list(range(300))
        assert max_slots - 2 <= len(slots) <= max_slots
        gaps = [len(slot) > 1 for slot in slots]
        assert not any(left and right for left, right in zip(gaps, gaps[1:], strict=False))

    def test_very_long_question_leaves_room_around_the_answer(self):
        shown = shown_tokens(make_example(length=300, question=100, answer=(200, 201)))
        assert {1, 100, 197, 204} <= set(shown)

    def test_very_long_answer_keeps_both_its_ends(self):
        shown = shown_tokens(make_example(length=300, question=8, answer=(100, 200)))
        assert {100, 101, 199, 200} <= set(shown) and 150 not in shown
        assert set(range(1, 9)) <= set(shown)

    def test_without_answer_the_longest_section_starts_at_its_beginning(self):
        shown = shown_tokens(make_example(length=300, question=8, answer=None))
        assert shown == [*range(0, len(shown) - 1), 299]

    def test_many_special_tokens_do_not_push_the_answer_out(self):
        example = make_example(length=300, answer=(20, 22))
        example = dataclasses.replace(example, special=[i == 0 or i > 100 for i in range(300)])
        assert {0, 20, 21, 22} <= set(shown_tokens(example))


class TestDrawSheet:
    def test_is_an_rgb_picture_of_a_screen(self):
        image = draw_sheet(make_example(length=300, heads=(8,)), 1, epoch=3)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert 1600 <= image.shape[1] <= 1920 and 900 <= image.shape[0] <= 1100

    def test_same_input_same_picture(self):
        assert np.array_equal(draw_sheet(make_example(), 1), draw_sheet(make_example(), 1))

    def test_one_changed_weight_changes_only_its_head(self):
        """Rows of head 2 are swapped, so that its title (entropy) stays. Any change left of it would be a mix-up."""
        example = make_example(heads=(2,))
        weights = example.weights[0].copy()
        weights[1, [5, 6]] = weights[1, [6, 5]]
        before, after = draw_sheet(example, 1), draw_sheet(dataclasses.replace(example, weights=[weights]), 1)
        changed_columns = (before != after).any(axis=(0, 2)).nonzero()[0]
        assert len(changed_columns) > 0
        assert changed_columns.min() > before.shape[1] / 2

    def test_each_layer_is_its_own_picture_and_may_have_its_own_heads(self):
        example = make_example(heads=(1, 3, 8))
        sizes = [draw_sheet(example, layer).shape for layer in (1, 2, 3)]
        assert len(set(sizes)) == 3
        assert sizes[0][1] < sizes[2][1]

    @pytest.mark.parametrize("count", [0, 5, 6, 16])
    def test_any_number_of_heads(self, count):
        image = draw_sheet(make_example(length=60, heads=(count,)), 1)
        assert image.shape[1] <= 1920

    def test_answer_and_special_tokens_are_marked_in_their_colors(self):
        example = make_example()
        both = draw_sheet(example, 1)
        no_answer = draw_sheet(dataclasses.replace(example, answer=None), 1)
        no_special = draw_sheet(dataclasses.replace(example, special=[False] * 12), 1)
        assert has_color(both, "#d55e00") and not has_color(no_answer, "#d55e00")
        assert has_color(both, "#0072b2") and not has_color(no_special, "#0072b2")

    def test_frame_follows_the_answer(self):
        def rows_of_frame(answer):
            image = draw_sheet(make_example(answer=answer), 1)[80:]  # below the key
            middle = image[:, image.shape[1] // 4].astype(int)
            return np.abs(middle - [0xD5, 0x5E, 0x00]).sum(-1).argmin()

        assert rows_of_frame((2, 3)) < rows_of_frame((8, 9))

    def test_every_row_and_column_of_heatmaps_has_its_labels(self):
        """Labels are drawn for the first row and column of heatmaps and copied as pixels to the others."""
        image = draw_sheet(make_example(length=20, heads=(6,)), 1)  # 2 rows and 3 columns
        dark = image.min(axis=-1) < 130
        # The brackets of the two sections are the leftmost ink, and the long dark lines below the heatmaps.
        lines = dark[70:-70, 5:40]
        brackets = lines[:, lines.sum(axis=0).argmax()]
        starts = 70 + np.flatnonzero(np.diff(brackets.astype(int)) == 1)
        assert len(starts) == 4
        first, second = (image[start : start + 150, 5:60] for start in (starts[0], starts[2]))
        assert np.array_equal(first, second)
        long_runs = [re.findall("1{50,}", "".join(map(str, line.astype(int)))) for line in dark[-110:]]
        assert max(map(len, long_runs)) == 6

    def test_what_is_left_out_is_marked_grey(self):
        long, short = (draw_sheet(make_example(length=length), 1) for length in (60, 30))
        grey_long, grey_short = ((image == 0xDC).all(axis=-1).sum() for image in (long, short))
        assert grey_long > 10_000 and grey_short < 1_000  # a few pixels of any text have that grey too

    def test_sections_are_drawn(self):
        example = make_example()
        assert not np.array_equal(draw_sheet(example, 1), draw_sheet(dataclasses.replace(example, sections=()), 1))

    def test_odd_tokens_are_drawn_without_a_warning(self):
        """Between two dollar signs matplotlib would parse mathtext and raise; it warns of each missing glyph."""
        odd = [
            "[CLS]",
            "$x_1^2$",
            "a_b",
            "##ing",
            "人工",
            "😀👍🏽",
            "مرحبا",
            "x" * 80,
            "\n",
            " ",
            "",
            "$\\oops$",
            "\x00",
            "$",
        ]
        example = make_example(length=len(odd), answer=(1, 1), tokens=odd, title="Is $\\frac{ $ 人 <b>\nso?")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = draw_sheet(example, 1)
        plain = draw_sheet(dataclasses.replace(example, tokens=[odd[0], "x12", *odd[2:]]), 1)
        assert not np.array_equal(image, plain)

    def test_weights_that_are_not_numbers_do_not_stop_a_training(self):
        example = make_example(weights=[np.full((2, 12, 12), np.nan)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert draw_sheet(example, 1).size

    def test_leaves_no_figure_behind(self):
        import matplotlib.pyplot as plt

        draw_sheet(make_example(), 1)
        assert plt.get_fignums() == []


class Links(HTMLParser):
    """Collects the targets of links, the text and the number of script elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.text += data


def read_index(folder: Path) -> Links:
    return Links((folder / "index.html").read_text(encoding="utf-8"))


class TestWriteSheets:
    def test_writes_each_layer_and_returns_the_same_pictures(self, tmp_path):
        first, second = make_example(heads=(2, 1)), make_example(heads=(1,), name="no-2", seed=1)
        sheets = write_sheets(tmp_path / "new" / "run", 3, [first, second])
        names = ["epoch3_1_layer1.png", "epoch3_1_layer2.png", "epoch3_no-2_layer1.png"]
        assert [sheet.path.name for sheet in sheets] == names
        assert [tag for tag, _, _ in sheets] == ["Attention/1/layer1", "Attention/1/layer2", "Attention/no-2/layer1"]
        assert sorted(os.listdir(tmp_path / "new" / "run")) == [*names, "index.html"]  # nothing left aside
        for _, image, path in sheets:
            assert np.array_equal(np.asarray(Image.open(path)), image)

    def test_index_lists_exactly_the_sheets_present(self, tmp_path):
        for epoch in (1, 2, 10):
            write_sheets(tmp_path, epoch, [make_example()])
        (tmp_path / "notes.png").write_bytes(b"")
        (tmp_path / "epoch2_1_layer1.png").unlink()
        write_index(tmp_path)
        page = read_index(tmp_path)
        assert page.links == ["epoch1_1_layer1.png", "epoch10_1_layer1.png"]
        assert set(re.findall(r'"file": "([^"]+)"', page.text)) == set(page.links)

    def test_titles_of_earlier_epochs_survive_a_resumed_run(self, tmp_path):
        """The title names the answer predicted then, so it belongs to the epoch; a resumed run knows only its own."""
        write_sheets(tmp_path, 1, [make_example(title="predicted: früher 人")])
        write_sheets(tmp_path, 2, [make_example(title="predicted: later")])
        write_sheets(tmp_path, 2, [make_example(title="predicted: after resuming")])
        text = read_index(tmp_path).text
        assert "predicted: früher 人" in text and "predicted: after resuming" in text
        assert "predicted: later" not in text

    def test_titles_cannot_inject_html(self, tmp_path):
        title = '</script><script>alert("x")</script><img src=x> & \ud800'
        write_sheets(tmp_path, 1, [make_example(title=title)])
        raw = (tmp_path / "index.html").read_text(encoding="utf-8")
        page = Links(raw)
        assert page.scripts == 2  # the data and the code of the page itself
        assert "<script>alert" not in raw and "<img src=x>" not in raw
        assert "&lt;/script&gt;&lt;script&gt;alert" in raw

    def test_a_foreign_or_broken_picture_is_listed_without_title(self, tmp_path):
        (tmp_path / "epoch1_1_layer1.png").write_bytes(b"not a picture")
        write_index(tmp_path)
        assert read_index(tmp_path).links == ["epoch1_1_layer1.png"]

    def test_empty_folder_gives_a_page(self, tmp_path):
        write_sheets(tmp_path, 1, [])
        assert "No sheets yet." in read_index(tmp_path).text

    def test_page_needs_no_network(self, tmp_path):
        write_sheets(tmp_path, 1, [make_example()])
        assert not re.search(r"https?:|//[a-z]+\.", (tmp_path / "index.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"special": [True]},
        {"answer": (9, 12)},
        {"answer": (4, 3)},
        {"sections": [("question", 3, 99)]},
        {"weights": [np.zeros((2, 12, 11))]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_contradictory_example_is_refused(changes):
    with pytest.raises(AssertionError):
        make_example(**changes)


def test_import_is_cheap_and_silent():
    """Start-up: `main.py --help` must not pay for matplotlib."""
    code = "import him.attention_maps, sys; print([m for m in ('matplotlib', 'seaborn', 'PIL') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""
