"""The next token out of the logits, on the device."""

import torch
from torch import Tensor

from core.specs import SamplingSpec


def pick(logits: Tensor, chance: Tensor, sampling: SamplingSpec) -> Tensor:
    """Tokens [rows] out of ``logits`` [rows, words]; ``chance`` [rows], uniform in [0, 1), decides unless greedy."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    odds, words = (logits.float() / sampling.temperature).softmax(-1).sort(-1, descending=True)
    before = odds.cumsum(-1) - odds
    kept = odds.masked_fill(before >= sampling.top_p, 0.0)  # the likeliest word always stays
    sums = kept.cumsum(-1)
    place = (sums <= chance[:, None] * sums[:, -1:]).sum(-1, keepdim=True)
    place = torch.minimum(place, (kept > 0).sum(-1, keepdim=True) - 1)
    return words.gather(-1, place)[:, 0]


def chances(sampling: SamplingSpec, number: int) -> Tensor:
    """The chances of one prompt's answer [max_tokens], by the seed and the prompt's number alone.

    So an answer depends neither on its neighbours nor on when it got a slot.
    """
    generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + number) % 2**63)
    return torch.rand(sampling.max_tokens, generator=generator)
