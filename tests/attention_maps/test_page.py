"""Which files appear, and what the index lists."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from him.attention_maps import write_index, write_sheets

NO_HEADS = (0,)  # a layer that pruning emptied has a sheet like any other, and it takes a tenth of the time to draw


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


def test_writes_each_layer_and_returns_the_same_pictures(tmp_path, make_example):
    first, second = make_example(heads=(1, 0)), make_example(heads=NO_HEADS, name="no-2")
    sheets = write_sheets(tmp_path / "new" / "run", 3, [first, second])
    names = ["epoch3_1_layer1.png", "epoch3_1_layer2.png", "epoch3_no-2_layer1.png"]
    assert [sheet.path.name for sheet in sheets] == names
    assert [tag for tag, _, _ in sheets] == ["Attention/1/layer1", "Attention/1/layer2", "Attention/no-2/layer1"]
    assert sorted(os.listdir(tmp_path / "new" / "run")) == [*names, "index.html"]  # nothing left aside
    for _, image, path in sheets:
        assert np.array_equal(np.asarray(Image.open(path)), image)


def test_index_lists_exactly_the_sheets_present(tmp_path, make_example):
    for epoch in (1, 2, 10):
        write_sheets(tmp_path, epoch, [make_example(heads=NO_HEADS)])
    (tmp_path / "notes.png").write_bytes(b"")
    (tmp_path / "epoch2_1_layer1.png").unlink()
    write_index(tmp_path)
    page = read_index(tmp_path)
    assert page.links == ["epoch1_1_layer1.png", "epoch10_1_layer1.png"]
    assert set(re.findall(r'"file": "([^"]+)"', page.text)) == set(page.links)


def test_titles_of_earlier_epochs_survive_a_resumed_run(tmp_path, make_example):
    """The title names the answer predicted then, so it belongs to the epoch; a resumed run knows only its own."""
    write_sheets(tmp_path, 1, [make_example(heads=NO_HEADS, title="predicted: früher 人")])
    write_sheets(tmp_path, 2, [make_example(heads=NO_HEADS, title="predicted: later")])
    write_sheets(tmp_path, 2, [make_example(heads=NO_HEADS, title="predicted: after resuming")])
    text = read_index(tmp_path).text
    assert "predicted: früher 人" in text and "predicted: after resuming" in text
    assert "predicted: later" not in text


def test_titles_cannot_inject_html(tmp_path, make_example):
    title = '</script><script>alert("x")</script><img src=x><!-- sheets --> & \ud800'
    write_sheets(tmp_path, 1, [make_example(heads=NO_HEADS, title=title)])
    raw = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Links(raw)
    assert page.scripts == 2  # the data and the code of the page itself
    assert "<!--" not in raw  # each place of the template is filled, and by nothing of a title
    assert "<script>alert" not in raw and "<img src=x>" not in raw
    assert "&lt;/script&gt;&lt;script&gt;alert" in raw


def test_a_foreign_or_broken_picture_is_listed_without_title(tmp_path):
    (tmp_path / "epoch1_1_layer1.png").write_bytes(b"not a picture")
    write_index(tmp_path)
    assert read_index(tmp_path).links == ["epoch1_1_layer1.png"]


def test_empty_folder_gives_a_page(tmp_path):
    write_sheets(tmp_path, 1, [])
    assert "No sheets yet." in read_index(tmp_path).text


def test_page_needs_no_network(tmp_path, make_example):
    write_sheets(tmp_path, 1, [make_example(heads=NO_HEADS)])
    assert not re.search(r"https?:|//[a-z]+\.", (tmp_path / "index.html").read_text(encoding="utf-8"))
