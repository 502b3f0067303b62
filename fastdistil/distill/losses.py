"""What a student is asked for, as formulas. Each gives the sum over rows, in float32 at least.

Sums, not means: a step may be computed in several pieces, and its mean is that of all its rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's softened distribution is from the teacher's.

    T^2 * sum over rows of KL(p || q), p = softmax(teacher / T), q = softmax(student / T). Its
    gradient is that of the cross-entropy with soft targets, T^2 * -sum p log q; but it is 0 where
    the student is right. T^2 keeps gradients of one size at every temperature (Hinton, Vinyals and
    Dean, arXiv 1503.02531, section 2; L_ce of Sanh et al., arXiv 1910.01108).

    Args:
        student, teacher: logits [R, C].
        temperature: T, above 0.
    """
    log_q = F.log_softmax(_wide(student) / temperature, dim=-1)
    log_p = F.log_softmax(_wide(teacher) / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2


def hard_label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels, natural logarithm: sum over rows of -log softmax(student).

    Of the masked words it is L_mlm of Sanh et al.

    Args:
        student: logits [R, C].
        labels: int64 [R].
    """
    return F.cross_entropy(_wide(student), labels, reduction="sum")


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum over rows of 1 - cos(student, teacher): L_cos of Sanh et al.

    Args:
        student, teacher: [R, D].
    """
    return (1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1)).sum()


def squared_error_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum over rows of |student - teacher|^2: the squared distance of two vectors.

    As Reimers and Gurevych distil sentence encoders (arXiv 2004.09813, equation 1), who take the
    mean over the D numbers of a row where this takes their sum.

    Args:
        student, teacher: [R, D].
    """
    return (_wide(student) - _wide(teacher)).square().sum()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
