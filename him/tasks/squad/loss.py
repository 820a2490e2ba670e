"""The loss of question answering: cross-entropy of start and end, and distillation from a teacher's.

# B batch   L length
"""

import torch.nn.functional as F
from torch import Tensor

from him.tasks.base import LossSums
from him.tasks.squad.model import SpanOutput


def span_loss(output: SpanOutput, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> LossSums:
    """Cross-entropy of the start and the end distribution against the annotators' ones, summed over the rows.

    Args:
        output: the model's logits.
        batch: `start_targets`, `end_targets`, `may_start`, `may_end`.
        label_smoothing: share of the target spread evenly over the allowed positions (Szegedy et al. 2015,
            arXiv:1512.00567, section 7).
    """
    loss, correct = 0.0, 0.0
    for logits_BL, targets_BL, allowed_BL in (
        (output.start_logits_BL, batch["start_targets"], batch["may_start"]),
        (output.end_logits_BL, batch["end_targets"], batch["may_end"]),
    ):
        correct = correct + targets_BL.gather(1, logits_BL.argmax(dim=1, keepdim=True)).gt(0).sum()
        if label_smoothing:
            even_BL = allowed_BL / allowed_BL.sum(dim=1, keepdim=True)
            targets_BL = (1.0 - label_smoothing) * targets_BL + label_smoothing * even_BL
        loss = loss - (targets_BL * F.log_softmax(logits_BL, dim=1)).sum()
    return LossSums(loss, 2 * len(batch["input_ids"]), correct)


def distilled_span_loss(
    output: SpanOutput, teacher: SpanOutput, batch: dict[str, Tensor], share: float, label_smoothing: float = 0.0
) -> LossSums:
    """(1 - share) * `span_loss` + share * divergence of start and end from a teacher's, summed over the rows.

    At a temperature of 1, as in Sanh et al. 2019 (arXiv:1910.01108) for its second step on SQuAD.

    The share, of the divergence in the loss, is in [0, 1]; `output` and `teacher` are logits of student and teacher.
    """
    sums = span_loss(output, batch, label_smoothing)
    divergence = 0.0
    for logits_BL, teacher_BL in (
        (output.start_logits_BL, teacher.start_logits_BL),
        (output.end_logits_BL, teacher.end_logits_BL),
    ):
        log_teacher_BL = teacher_BL.log_softmax(dim=1)
        divergence = divergence + (log_teacher_BL.exp() * (log_teacher_BL - logits_BL.log_softmax(dim=1))).sum()
    return LossSums((1.0 - share) * sums.loss + share * divergence, sums.num_targets, sums.num_correct)
