"""The files: a PNG per sheet, and `index.html`, a page to browse them.

Each PNG carries its example's title in a text chunk and the index is made from the PNGs alone. So there is no second
file that could go stale: a resumed run, a deleted or a copied sheet all give a right index at the next writing.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from him.attention_maps.example import AttentionExample
from him.attention_maps.sheet import draw_sheet
from him.core.files import write_file
from him.core.pictures import encode_png


class Sheet(NamedTuple):
    """One drawn sheet: its TensorBoard tag, the picture as uint8 (height, width, 3), and the file it was written to."""

    tag: str
    image: np.ndarray
    path: Path


def write_sheets(folder: str | Path, epoch: int, examples: Sequence[AttentionExample]) -> list[Sheet]:
    """Draws every layer of every example, writes the PNGs and renews `index.html`.

    Files are written aside and renamed, so that an interrupted run leaves no half picture. Sheets of other epochs in
    `folder` stay and are listed too.

    Args:
        folder: made if missing.
        epoch: as in the file names.
        examples: their layers count from 1 in names and tags.

    Returns:
        The sheets in order of examples and layers; the tag is `Attention/<example>/layer<i>`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for example in examples:
        for layer in range(1, len(example.weights) + 1):
            image = draw_sheet(example, layer, epoch=epoch)
            path = folder / f"epoch{epoch}_{example.name}_layer{layer}.png"
            write_file(path, encode_png(image, example.title))
            sheets.append(Sheet(f"Attention/{example.name}/layer{layer}", image, path))
    write_index(folder)
    return sheets


def _read_title(path: Path) -> str:
    """Title of a sheet, or "" for a picture that is not one of ours. Only the head of the file is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return str(image.info.get("Title", ""))
    except (UnidentifiedImageError, OSError):
        return ""


def write_index(folder: str | Path) -> Path:
    """Writes `index.html` for the sheets that `folder` holds now, and returns its path."""
    folder = Path(folder)
    found = []
    for path in folder.glob("epoch*_layer*.png"):
        match = re.fullmatch(r"epoch(\d+)_([\w.-]+)_layer(\d+)\.png", path.name, re.ASCII)
        if match:
            found.append((int(match[1]), match[2], int(match[3]), path))
    # Natural order of names: example 10 after example 9.
    found.sort(key=lambda sheet: (sheet[0], [(len(p), p) for p in re.split(r"(\D+)", sheet[1])], sheet[2]))
    sheets, links = [], []
    for (epoch, example), group in groupby(found, key=lambda sheet: sheet[:2]):
        files = [(layer, path) for _, _, layer, path in group]
        title = _read_title(files[0][1])  # an epoch's own, since it names the answer predicted then
        for layer, path in files:
            sheets.append({"epoch": epoch, "example": example, "layer": layer, "title": title, "file": path.name})
        heading = html.escape(f"Epoch {epoch}, example {example}: {title}")
        anchors = [f'<a href="{html.escape(path.name)}">layer {layer}</a>' for layer, path in files]
        links += [f"<p>{heading}<br>", *anchors, "</p>"]
    links = links or ["<p>No sheets yet.</p>"]
    # JSON inside <script>: only "<" can end the element early.
    data = json.dumps(sheets, ensure_ascii=False).replace("<", "\\u003c")
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # Titles are escaped, so they hold no "<" that would make one of them a placeholder.
    page = page.replace("<!-- links -->", "\n".join(links)).replace("<!-- sheets -->", data)
    path = folder / "index.html"
    write_file(path, page.encode("utf-8"))
    return path
