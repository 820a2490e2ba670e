"""Cross-entropy over a large vocabulary without ever holding all logits.

Forward and backward pass of output layer and loss are made together, a few rows at a time, so that logits and their
gradients stay in the cache of the processor (the idea is that of Wijmans et al. 2024, arXiv:2411.09009).

# N targets   C rows of a chunk   D embed_dim   V vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 512


@dataclass
class SoftTargets:
    """Predictions of a teacher as targets (Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1).

    Attributes:
        hidden_ND, weight_VD, bias_V: what the teacher makes its logits of; no gradient reaches them.
        share: what the divergence from the teacher counts, in [0, 1]; the labels count the rest.
    """

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor
    share: float


def cross_entropy_sum(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    label_smoothing: float = 0.0,
    soft: SoftTargets | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy of softmax(hidden @ weight.T + bias), in nats.

    Args:
        hidden_ND: in the type that products are made in.
        weight_VD, bias_V: float32.
        targets_N: int64 classes.
        label_smoothing: share of each target spread evenly over all V classes, as in `F.cross_entropy`.
        soft: a teacher's predictions; the sum is then (1 - share) * cross-entropy + share * divergence from them.

    Returns:
        The sum, a float32 scalar with a gradient, and how many targets have the highest logit, a float32 scalar: where
        k logits are equally high, as bf16 makes some, a target among them counts 1 / k.
    """
    with_gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, targets_N, label_smoothing, soft, with_gradient)


def cross_entropy_of(
    project: Callable[[Tensor], Tensor], hidden_ND: Tensor, targets_N: Tensor
) -> tuple[Tensor, Tensor]:
    """The same two sums for any output layer, without a gradient.

    Args:
        project: makes logits (C, V) of (C, D).
    """
    loss, num_correct = (torch.zeros((), device=hidden_ND.device) for _ in range(2))
    for hidden_CD, targets_C in zip(hidden_ND.split(CHUNK_ROWS), targets_N.split(CHUNK_ROWS), strict=True):
        logits_CV = project(hidden_CD).float()
        loss += F.cross_entropy(logits_CV, targets_C, reduction="sum")
        highest_C1 = logits_CV.amax(dim=1, keepdim=True)
        num_correct += _num_correct(logits_CV, logits_CV.gather(1, targets_C[:, None]), highest_C1)
    return loss, num_correct


def _num_correct(logits_CV: Tensor, at_target_C1: Tensor, highest_C1: Tensor) -> Tensor:
    is_highest_C = (at_target_C1 >= highest_C1)[:, 0]
    num_highest = (logits_CV[is_highest_C] >= highest_C1[is_highest_C]).sum(dim=1)
    return num_highest.reciprocal().sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor,
        targets_N: Tensor,
        label_smoothing: float,
        soft: SoftTargets | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        of_labels = 1.0 if soft is None else 1.0 - soft.share
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_cast_VD, bias_cast_V = weight_VD.to(hidden_ND.dtype), bias_V.to(hidden_ND.dtype)
            loss = hidden_ND.new_zeros((), dtype=torch.float32)
            num_correct = torch.zeros((), device=hidden_ND.device)
            if with_gradient:
                of_hidden_ND = torch.empty_like(hidden_ND)
                of_weight_VD, of_bias_V = torch.zeros_like(weight_VD), torch.zeros_like(bias_V)
            for start in range(0, len(targets_N), CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                hidden_CD, targets_C1 = hidden_ND[rows], targets_N[rows, None]
                logits_CV = F.linear(hidden_CD, weight_cast_VD, bias_cast_V).float()
                at_target_C1 = logits_CV.gather(1, targets_C1)
                highest_C1 = logits_CV.amax(dim=1, keepdim=True)
                num_correct += _num_correct(logits_CV, at_target_C1, highest_C1)
                mean_C1 = logits_CV.mean(dim=1, keepdim=True) if label_smoothing else 0.0
                if soft is not None:
                    teacher_CV, divergence = _teacher_targets(soft, rows, logits_CV)
                exponentials_CV = logits_CV.sub_(highest_C1).exp_()
                sums_C1 = exponentials_CV.sum(dim=1, keepdim=True)
                wanted_C1 = (1.0 - label_smoothing) * at_target_C1 + label_smoothing * mean_C1
                loss_of_labels = (sums_C1.log() + highest_C1 - wanted_C1).sum()
                loss += loss_of_labels if soft is None else of_labels * loss_of_labels + soft.share * divergence
                if with_gradient:
                    gradient_CV = exponentials_CV.div_(sums_C1)
                    if label_smoothing:
                        gradient_CV.sub_(of_labels * label_smoothing / len(bias_V))
                    if soft is not None:
                        gradient_CV.sub_(teacher_CV, alpha=soft.share)
                    at_labels_C1 = torch.full_like(at_target_C1, of_labels * (label_smoothing - 1.0))
                    gradient_CV.scatter_add_(1, targets_C1, at_labels_C1)
                    of_bias_V += gradient_CV.sum(dim=0)
                    gradient_CV = gradient_CV.to(hidden_ND.dtype)
                    of_hidden_ND[rows] = gradient_CV @ weight_cast_VD
                    of_weight_VD += gradient_CV.T @ hidden_CD
        if with_gradient:
            ctx.save_for_backward(of_hidden_ND, of_weight_VD, of_bias_V)
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor, of_correct: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden_ND, of_weight_VD, of_bias_V = ctx.saved_tensors
        # The gradients stay in their type; the scalar, rounded to bf16, would be off by up to 0.4 %.
        return of_hidden_ND * of_loss, of_weight_VD * of_loss, of_bias_V * of_loss, None, None, None, None


def _teacher_targets(soft: SoftTargets, rows: slice, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's probabilities for these rows, and the divergence of the student's from them, summed."""
    hidden_CD = soft.hidden_ND[rows]
    teacher_CV = F.linear(hidden_CD, soft.weight_VD.to(hidden_CD.dtype), soft.bias_V.to(hidden_CD.dtype)).float()
    log_teacher_CV = teacher_CV.log_softmax(dim=1)
    teacher_CV = log_teacher_CV.exp()
    return teacher_CV, (teacher_CV * (log_teacher_CV - logits_CV.log_softmax(dim=1))).sum()
