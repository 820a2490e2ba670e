"""Repeated words: what `--no_repeat_words` keeps from being written again, as a text has it already."""

from collections.abc import Sequence

MARKS = ".,:;!?()[]\"'“”‘’"


class RepeatedWords:
    """Knows which tokens would complete a word that a text has already.

    A word is what stands between spaces, without the marks around it. A token that is a whole word in itself is taken
    for one: after "summary", a "summary" that would become "summarys" is not written either.

    Args:
        pieces: the text of each token, with a space before it where it begins a word; "" for special tokens.
    """

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = [piece.lower() for piece in pieces]
        self._begins: dict[str, list[int]] = {}  # whole words -> tokens that are one, and begin it
        self._follow_marks: dict[str, list[int]] = {}  # whole words -> tokens that are one where only marks are yet
        self._continues: dict[str, list[int]] = {}  # text -> tokens that add it to a word, whatever marks are behind it
        for id, piece in enumerate(self.pieces):
            if piece.startswith(" "):
                self._begins.setdefault(piece.strip(f" {MARKS}"), []).append(id)
            elif piece:
                self._follow_marks.setdefault(piece.strip(MARKS), []).append(id)
                self._continues.setdefault(piece.rstrip(MARKS), []).append(id)

    def tokens_that_repeat(self, ids: Sequence[int]) -> list[int]:
        """Tokens that must not follow `ids`, the tokens of a text so far."""
        *before, current = "".join(self.pieces[id] for id in ids).split(" ")
        words = {word.strip(MARKS) for word in before} - {""}
        current = current.lstrip(MARKS)
        within = self._continues if current else self._follow_marks
        blocked = [id for word in words if word.startswith(current) for id in within.get(word[len(current) :], ())]
        ended = (words | {current.rstrip(MARKS)}) - {""}  # marks alone are no word
        return blocked + [id for word in ended for id in self._begins.get(word, ())]
