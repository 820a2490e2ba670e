"""Where things are on a sheet, in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from him.attention_maps.text import text_width

SHEET_WIDTH, SHEET_HEIGHT = 1900, 1060  # what a sheet tries to fill: a full screen with a little browser left around it
MIN_PANEL, MAX_PANEL = 240, 800  # of one heatmap's side
MIN_CELL = 10.5  # of a slot, below which its label cannot be read; sheets of many heads grow beyond the screen


@dataclass(frozen=True)
class Layout:
    """Heatmaps in rows and columns, the labels left of and below them, the colour bar to their right."""

    num_heads: int
    rows: int
    columns: int
    panel: int  # side of a heatmap
    font: float  # height of a token label
    label_width: int  # of the widest token label
    left: int
    right: int
    below: int  # from the lowest heatmap to the caption
    width: int
    column_gap: int = 16
    row_gap: int = 28

    @classmethod
    def of(cls, num_heads: int, num_slots: int, labels: list[str]) -> Layout:
        """Makes the heatmaps as large as a screen allows, and never so small that a label cannot be read."""
        columns = {0: 1, 5: 3, 6: 3, 9: 3}.get(num_heads, min(num_heads, 4))
        rows = max(1, math.ceil(num_heads / columns))
        right = 80
        # Labels and panels need each other's size; a first guess of the font is near enough to fix the margins.
        font = 10.0
        for _ in range(2):
            label_width = math.ceil(max(text_width(label, font, bold=True) for label in labels))
            left = below = label_width + 38
            wide = (SHEET_WIDTH - left - right - (columns - 1) * cls.column_gap) / columns
            high = (SHEET_HEIGHT - 96 - 48 - below - (rows - 1) * cls.row_gap) / rows
            panel = int(min(MAX_PANEL, max(min(wide, high), num_slots * MIN_CELL, MIN_PANEL)))
            panel = panel if num_heads else 0
            font = min(14.0, max(9.5, 0.92 * panel / num_slots))
        width = max(left + columns * panel + (columns - 1) * cls.column_gap + right, 900)
        return cls(num_heads, rows, columns, panel, font, label_width, left, right, below, width)

    def place(self, head: int) -> tuple[int, int]:
        """Upper left corner of a heatmap: x from the left of the sheet, y from the top of the first heatmap."""
        row, column = divmod(head, self.columns)
        return self.left + column * (self.panel + self.column_gap), row * (self.panel + self.row_gap)

    def lowest(self, column: int) -> int:
        """The last head in a column of heatmaps; the last row may be short."""
        return (self.num_heads - 1 - column) // self.columns * self.columns + column
