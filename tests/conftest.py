"""What several test files share: a tokenizer with a vocabulary by hand, SQuAD data in a line, small models."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn

from him.model.embeddings import EmbeddingShape, InputEmbedding, LexicalEmbedding
from him.model.encoder import Encoder, EncoderShape
from him.model.initialization import initialize
from him.tasks.squad.lexical import SCALARS, SIZES
from him.tasks.squad.model import QuestionAnsweringModel
from him.tasks.squad.reader import Answer, Paragraph, Question, SquadData
from him.text.tokenizer import SPECIAL_TOKENS

pytest_plugins = ["tests.offline.plugin", "tests.hub_fixtures", "tests.writer_fixtures", "tests.tiers"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--torture`: the test bench of `tests/reliability` at its full size, as in `make torture`."""
    parser.addoption("--torture", action="store_true", help="tests/reliability at its full size")


PIECES = "who sat the cat ##s on red mat . ? dog ran a in ##ting".split()  # ids from 5 on


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """WordPiece over `SPECIAL_TOKENS` (ids 0 to 4) and `PIECES` (5 to 19), lower-casing."""
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL_TOKENS, *PIECES))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


@pytest.fixture(scope="session")
def squad_data() -> Callable[..., SquadData]:
    """Makes SQuAD data of `(context, [(question, [(answer, start), ...]), ...])` tuples; no answers: impossible."""

    def make(*paragraphs: tuple[str, Sequence[tuple[str, Sequence[tuple[str, int]]]]]) -> SquadData:
        made = []
        for place, (context, asked) in enumerate(paragraphs):
            questions = tuple(
                Question(f"{place}-{number}", text, tuple(Answer(*answer) for answer in answers), not answers)
                for number, (text, answers) in enumerate(asked)
            )
            made.append(Paragraph(f"title {place}", context, questions))
        return SquadData.from_paragraphs(made, "by hand")

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., QuestionAnsweringModel]:
    """Makes a small question answering model whose weights are large enough for every input to be felt."""

    def make(
        *,
        norm_first: bool = True,
        rotary: bool = True,
        lexical: bool = True,
        conv_kernel_size: int = 0,
        vocab_size: int = 20,
        max_seq_len: int = 128,
        word_dropout: float = 0.0,
    ) -> QuestionAnsweringModel:
        torch.manual_seed(3)
        embedding = InputEmbedding(
            EmbeddingShape(
                vocab_size=vocab_size,
                embed_dim=16,
                max_seq_len=max_seq_len,
                mask_id=4,
                learned_positions=not rotary,
                word_dropout=word_dropout,
            ),
            LexicalEmbedding(SIZES, len(SCALARS), 16) if lexical else None,
        )
        shape = EncoderShape(3, 16, 2, 24, norm_first=norm_first, rotary=rotary, conv_kernel_size=conv_kernel_size)
        encoder = Encoder(shape)
        model = QuestionAnsweringModel(embedding, encoder, 16)
        initialize(model)
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.3)
        return model

    return make
