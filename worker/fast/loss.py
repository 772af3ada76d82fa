"""Cross-entropy of a linear layer's outputs, a few thousand tokens at a time."""

from typing import Any

import torch
from torch import Tensor

from worker.fast import ops

#: Tokens whose logits are there at once: 4,096 of 32,000 words are 0.26 GB in bfloat16.
_CHUNK = 4096


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the losses and number of hits of ``hidden`` [N, H] by a frozen head [V, H] and labels [N].

    The gradient at ``hidden`` is made in the forward pass, while the logits are there.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and hits, both scalars."""
        at_hidden = torch.empty_like(hidden)
        losses, hits = [], []
        for first in range(0, len(hidden), _CHUNK):
            part = slice(first, first + _CHUNK)
            logits = hidden[part] @ head.t()
            loss, hit = ops.cross_entropy_(logits, labels[part])
            torch.mm(logits, head, out=at_hidden[part])
            losses.append(loss.sum())
            hits.append(hit.sum())
        ctx.save_for_backward(at_hidden)
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient at ``hidden`` alone: the head is frozen."""
        (at_hidden,) = ctx.saved_tensors
        return at_hidden * grads[0].to(at_hidden.dtype), None, None


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """See LinearCrossEntropy."""
    with torch.autocast(hidden.device.type, enabled=False):
        loss, hits = LinearCrossEntropy.apply(hidden, head, labels)  # type: ignore[no-untyped-call]
    return loss, hits
