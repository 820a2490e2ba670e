"""Pictures of attention: one labelled sheet per layer with all its heads, and a page to browse them.

After an evaluation the trainer hands over a few fixed validation examples with their attention weights. `write_sheets`
draws each layer once, writes `epoch<e>_<example>_layer<i>.png` and an `index.html` that needs no server and no network,
and returns the same pictures for TensorBoard.

`example` is what to draw and which of its tokens are shown, `sheet` draws one layer, `page` writes the files.
"""

from him.attention_maps.example import AttentionExample, choose_slots
from him.attention_maps.page import Sheet, write_index, write_sheets
from him.attention_maps.sheet import draw_sheet

__all__ = ["AttentionExample", "Sheet", "choose_slots", "draw_sheet", "write_index", "write_sheets"]
