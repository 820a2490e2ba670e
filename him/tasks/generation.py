"""Text generation: what the tasks that write text have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import Tokenizer
from torch import Tensor, nn

from him.config import Config
from him.core.errors import CheckpointError, ConfigError
from him.model.generation import Decoder
from him.model.repeated_words import RepeatedWords
from him.tasks.base import DistillableTask, ExportableTask, LossSums
from him.tasks.exporting import ExportedTokens, Outputs
from him.text.tokenizer import CLS, MASK, PAD, SEP, UNK, parse_tokenizer, piece_texts, special_id


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    Attributes:
        text: new text, without the prompt.
        num_tokens: tokens written.
        num_cut: tokens of the input that were not read, because there was no room for them.
    """

    text: str
    num_tokens: int
    num_cut: int = 0


class GenerationTask(DistillableTask, ExportableTask):
    """A task whose model makes its own loss of a batch (see `LanguageModel.loss`)."""

    export_settings: ClassVar[dict[str, Any]] = {"eval_samples": 0}  # writing needs more of a model than its outputs

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")

    @classmethod
    def restore(cls, config: Config, folder: Path) -> Self:
        """The task as `save` left it."""
        try:
            return cls(config, parse_tokenizer(folder / "tokenizer.json"))
        except ConfigError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> LossSums:
        """Cross-entropy of the tokens to be written."""
        return self._loss(model, batch)

    def distillation_loss(
        self, model: nn.Module, teacher: nn.Module, batch: dict[str, Tensor], share: float
    ) -> LossSums:
        """The same with the teacher's predictions as targets too."""
        return self._loss(model, batch, teacher, share)

    def _loss(self, model: nn.Module, batch: dict[str, Tensor], *distillation: nn.Module | float) -> LossSums:
        loss, num_correct = model.loss(batch, self.config.label_smoothing if model.training else 0.0, *distillation)
        return LossSums(loss, self.num_targets(batch), num_correct)

    def exported_model(self, outputs: Outputs) -> ExportedTokens:
        return ExportedTokens(outputs, self.tokenizer.get_vocab_size())


def decoder_of(config: Config, tokenizer: Tokenizer, max_new_tokens: int) -> Decoder:
    """How tokens are chosen, as the settings say; [SEP] ends a text."""
    return Decoder(
        end_id=special_id(tokenizer, SEP),
        max_new_tokens=max_new_tokens,
        forbidden_ids=tuple(special_id(tokenizer, token) for token in (PAD, UNK, CLS, MASK)),
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
        repeated_words=RepeatedWords(piece_texts(tokenizer)) if config.no_repeat_words else None,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
    )


def evenly_spread(total: int, wanted: int | None) -> list[int]:
    """At most `wanted` of the numbers 0 to total - 1, the same ones each time; all of them for None."""
    if wanted is None or wanted >= total:
        return list(range(total))
    return [number * total // wanted for number in range(wanted)]
