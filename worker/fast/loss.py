"""Cross-entropy of a linear layer's outputs, a few thousand tokens at a time."""

import torch
from torch import Tensor

from worker.fast import ops

#: Tokens whose logits are there at once: 4,096 of 32,000 words are 0.26 GB in bfloat16.
_CHUNK = 4096


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, *, backward: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of the losses and number of hits of ``hidden`` [N, H] by a frozen head [V, H] and labels [N].

    With ``backward``, also the sum's gradient at ``hidden`` [N, H]: it is made here, while the logits are there.
    """
    at_hidden = torch.empty_like(hidden) if backward else None
    losses, hits = [], []
    for first in range(0, len(hidden), _CHUNK):
        part = slice(first, first + _CHUNK)
        logits = hidden[part] @ head.t()
        loss, hit = ops.cross_entropy_(logits, labels[part])
        if at_hidden is not None:
            torch.mm(logits, head, out=at_hidden[part])
        losses.append(loss.sum())
        hits.append(hit.sum())
    return torch.stack(losses).sum(), torch.stack(hits).sum(), at_hidden
