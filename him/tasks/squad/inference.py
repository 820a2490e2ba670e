"""Inference of question answering: what a finished model needs to answer, to be measured and to be exported."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from torch import nn

from him.config import Config
from him.core.compute import Compute
from him.core.errors import CheckpointError
from him.tasks.base import Evaluation, ExportableTask
from him.tasks.evaluation import BertScores, diversity
from him.tasks.exporting import Graph, Outputs
from him.tasks.squad.answers import Answer, Answers, answer_all, score_answers
from him.tasks.squad.attention import first_to_last
from him.tasks.squad.batches import SquadBatches
from him.tasks.squad.export import ExportedSpans, SquadStock, example_batches, span_graph
from him.tasks.squad.features import FeatureOptions, SquadFeatures, build_features
from him.tasks.squad.lexical import DocumentFrequencies
from him.tasks.squad.reader import SquadData, read_squad, squad_from_document
from him.tasks.squad.sources import load_squad
from him.text.tokenizer import CLS, PAD, SEP, parse_tokenizer, special_id


class SquadInference(ExportableTask):
    """Answers questions, and measures answers; `SquadTask` adds the training.

    Args:
        config: all settings.
        tokenizer: of the model.
        frequencies: of words in the training contexts.
        has_impossible: whether questions may have no answer.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, frequencies: DocumentFrequencies, has_impossible: bool
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.frequencies = frequencies
        self.has_impossible = has_impossible
        self.no_answer_threshold = 1.0
        self._bertscores = BertScores(config.bertscore_model)

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, and `task.json` with document frequencies and the no-answer threshold."""
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str(), encoding="utf-8")
        state = {
            "has_impossible": self.has_impossible,
            "no_answer_threshold": self.no_answer_threshold,
            "rarity": self.frequencies.to_json(),
        }
        (folder / "task.json").write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def restore(cls, config: Config, folder: Path) -> SquadInference:
        """The task as `save` left it."""
        path = folder / "task.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            frequencies = DocumentFrequencies.from_json(state["rarity"])
            task = cls(config, parse_tokenizer(folder / "tokenizer.json"), frequencies, bool(state["has_impossible"]))
            task.no_answer_threshold = float(state["no_answer_threshold"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); train the run again") from None
        return task

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluate_file(self, model: nn.Module, compute: Compute, path: str) -> Evaluation:
        """All metrics on another SQuAD file, with the no-answer threshold that was tuned on the validation file."""
        data = read_squad(path)
        num_scored = None if self.config.bertscore_samples else 0
        return self.measure(model, compute, data, self._features(data), num_scored, tune=False)

    def measure(
        self,
        model: nn.Module,
        compute: Compute,
        data: SquadData,
        features: SquadFeatures,
        num_scored: int | None,
        tune: bool,
    ) -> Evaluation:
        """All metrics of a model on some data.

        Args:
            model, compute: see `evaluate`.
            data, features: the questions.
            num_scored: answers that BERTScore looks at, spread evenly; None is all.
            tune: whether to tune the no-answer threshold on them.
        """
        found = self._answer_all(model, compute, data, features)
        scored = score_answers(found.answers, data, self.no_answer_threshold, tune)
        self.no_answer_threshold = scored.threshold
        ids = list(scored.texts)
        chosen = ids if num_scored is None else [ids[index] for index in first_to_last(len(ids), num_scored)]
        texts, references = ([each[id] for id in chosen] for each in (scored.texts, scored.references))
        metrics = {
            **found.means.metrics(),
            **scored.metrics,
            **diversity(list(scored.texts.values())),
            **self._bertscores.metrics(texts, [accepted or [""] for accepted in references], compute),
        }
        return Evaluation(metrics, scored.predictions)

    def _answer_all(self, model: nn.Module, compute: Compute, data: SquadData, features: SquadFeatures) -> Answers:
        threshold = self.no_answer_threshold if self.has_impossible else None
        return answer_all(model, compute, self._batches(features), data, self.config.max_answer_words, threshold)

    def _batches(self, features: SquadFeatures) -> SquadBatches:
        special_ids = tuple(special_id(self.tokenizer, token) for token in (PAD, CLS, SEP))
        return SquadBatches(features, special_ids, self.config.max_seq_len, self.config.lexical_features)

    def _features(self, data: SquadData) -> SquadFeatures:
        return build_features(data, self.tokenizer, FeatureOptions.of(self.config), self.frequencies)[0]

    # -- use -----------------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, compute: Compute, *, question: str, context: str) -> Answer:
        """Answers a question about a context."""
        document = {"data": [{"paragraphs": [{"context": context, "qas": [{"id": "0", "question": question}]}]}]}
        data = squad_from_document(document, "question and context", answers_required=False)
        return self.predict_all(model, compute, data)["0"]

    def line(self, answer: Answer) -> str:
        """The answer with its score and its place."""
        said = answer.text if answer.answerable else f"no answer, or at best: {answer.text}"
        return (
            f"{said}  (score {answer.score:.3f}, characters {answer.start} to {answer.end}, "
            f"no answer {answer.no_answer_probability:.3f})"
        )

    def predict_file(self, model: nn.Module, compute: Compute, path: str) -> dict[str, Answer]:
        """Answers the questions of a SQuAD file, by id; the file needs no answers."""
        return self.predict_all(model, compute, read_squad(path, answers_required=False))

    def predict_all(self, model: nn.Module, compute: Compute, data: SquadData) -> dict[str, Answer]:
        """Answers by question id."""
        answers = self._answer_all(model, compute, data, self._features(data)).answers
        return {question.id: answer for question, answer in zip(data.questions, answers, strict=True)}

    def example_inputs(self) -> dict[str, str]:
        """A question of the built-in validation data with its context."""
        paragraph = load_squad(Config(task_type="squad", dataset="sample")).validation.paragraphs[0]
        return {"question": paragraph.questions[0].text, "context": paragraph.context}

    # -- export --------------------------------------------------------------------------------------------------------

    def export_graph(self, model: nn.Module) -> Graph:
        """See `span_graph`."""
        batches = example_batches(self.config, self.tokenizer, self.frequencies)
        return span_graph(model, self.config.lexical_features, batches)

    def exported_model(self, outputs: Outputs) -> ExportedSpans:
        """See `ExportedSpans`."""
        return ExportedSpans(outputs)

    def stock_export(self) -> SquadStock:
        """See `SquadStock`."""
        batches = example_batches(self.config, self.tokenizer, self.frequencies)
        return SquadStock(self.config, self.tokenizer, batches)
