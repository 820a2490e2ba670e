"""Text on a sheet: what a token is called, what the fonts can show, how wide it is and where it breaks.

Lengths are in pixels of the finished picture.
"""

from __future__ import annotations

import textwrap
from functools import lru_cache

from him.attention_maps.example import AttentionExample

DPI = 100
GAP_MARK = "⋯"  # "…" at the height of the letters' middle
LABEL_CHARS = 13  # of a token label, longer ones are cut

# For scripts that matplotlib's own DejaVu Sans lacks; those of the machine are used, in this order.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "MS Gothic",
    "Malgun Gothic", "WenQuanYi Micro Hei", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai",
    "Nirmala UI", "Arial Unicode MS", "Noto Sans Symbols", "Segoe UI Symbol", "Apple Symbols", "Unifont",
)  # fmt: skip


def token_label(example: AttentionExample, slot: range) -> str:
    """Names the token of a slot, cut to LABEL_CHARS, or marks a gap."""
    if len(slot) > 1:
        return GAP_MARK
    label = drawable(example.tokens[slot.start])
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 1] + "…"


def drawable(text: str, unknown: str | None = None) -> str:
    """Replaces what cannot be drawn: line ends and tabs by arrows, what has no glyph by `unknown` or its U+XXXX."""
    text = text.replace("\n", "↵").replace("\r", "↵").replace("\t", "⇥")
    if text.isascii() and text.isprintable():
        return text if text.strip() else "␣" * max(1, len(text))
    return "".join(c if c.isprintable() and _has_glyph(c) else unknown or f"U+{ord(c):04X}" for c in text)


@lru_cache(maxsize=1)
def font_families() -> list[str]:
    """Font families that this machine has, in the order in which matplotlib seeks a glyph."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]


@lru_cache(maxsize=4)
def _fonts(bold: bool) -> list:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    weight = "bold" if bold else "normal"
    return [get_font(findfont(FontProperties(family=family, weight=weight))) for family in font_families()]


@lru_cache(maxsize=10_000)
def _has_glyph(character: str) -> bool:
    return any(font.get_char_index(ord(character)) for font in _fonts(bold=False))


@lru_cache(maxsize=10_000)
def text_width(text: str, pixels: float, bold: bool = False) -> float:
    """Width in pixels, in DejaVu Sans; a character of another font counts as one em, which none exceeds by much."""
    font = _fonts(bold)[0]
    known = "".join(c for c in text if font.get_char_index(ord(c)))
    font.set_size(points(pixels), DPI)
    font.set_text(known)
    return font.get_width_height()[0] / 64 + pixels * (len(text) - len(known))


def wrap(text: str, width: float, pixels: float, max_lines: int | None = None) -> list[str]:
    """Breaks `text` into lines no wider than `width` pixels; what does not fit into `max_lines` ends in “…”."""
    chars = max(20, int(width * len(text) / max(text_width(text, pixels), 1.0)))
    while True:
        lines = textwrap.wrap(text, chars, max_lines=max_lines, placeholder=" …")
        if chars <= 20 or all(text_width(line, pixels) <= width for line in lines):
            return lines
        chars = int(chars * 0.97)


def points(pixels: float) -> float:
    """The unit in which matplotlib takes font sizes."""
    return pixels * 72 / DPI
