"""A block of decode steps over some of the slots; on a GPU as CUDA graphs, one for each number of rows in use."""

from typing import Any

import torch

from core.specs import SamplingSpec
from worker.decode.attention import Places
from worker.decode.network import Network
from worker.decode.sampling import chances, pick

#: Numbers of rows that get a graph: small ones double, then every 32.
_SMALL = (1, 2, 4, 8, 16)


class Steps:
    """State on the device: each row's token, slot and place; each slot's chances.

    One slot more than asked for: rows that fill up a graph's number read and write that one.
    """

    def __init__(self, network: Network, slots: int, places: int, sampling: SamplingSpec) -> None:
        self._network, self._sampling, self._spare = network, sampling, slots
        self._cache = network.make_cache(slots + 1, places)
        self._state = torch.zeros(3, slots + 32, dtype=torch.int64, device=network.device)
        self._chances = torch.zeros(slots + 1, places, device=network.device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool: Any = None

    def read(self, prompts: list[list[int]], numbers: list[int], slots: list[int]) -> list[int]:
        """Put prompts into slots; the first token of each answer. ``numbers`` name the prompts' chances."""
        for prompt, number, slot in zip(prompts, numbers, slots, strict=True):
            if self._sampling.temperature > 0:
                drawn = chances(self._sampling, number).to(self._network.device)
                self._chances[slot, len(prompt) - 1 : len(prompt) - 1 + len(drawn)] = drawn
        logits = self._network.read(prompts, slots, self._cache)
        where = torch.tensor(slots, device=self._network.device)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self._network.device)
        tokens: list[int] = pick(logits, self._chances[where, last], self._sampling).tolist()
        return tokens

    def run(self, tokens: list[int], slots: list[int], places: list[int], count: int) -> list[list[int]]:
        """``count`` more tokens a row. ``tokens`` are the rows' newest, to be put at ``places`` of ``slots``."""
        rows = len(tokens)
        cuda = self._network.device.type == "cuda"
        padded = _padded(rows) if cuda else rows
        more = padded - rows
        state = [tokens + [0] * more, slots + [self._spare] * more, places + [0] * more]
        self._state[:, :padded].copy_(torch.tensor(state))
        made = torch.empty(count, rows, dtype=torch.int64, device=self._network.device)
        for number in range(count):
            if cuda:
                self._graph(padded).replay()
            else:
                self._step(padded, max(places) + number)
            made[number].copy_(self._state[0, :rows])
        found: list[list[int]] = made.t().tolist()
        return found

    def _step(self, rows: int, longest: int) -> None:
        tokens, slots, places = self._state[:, :rows]
        logits = self._network.step(tokens, Places(slots, places, longest), self._cache)
        tokens.copy_(pick(logits, self._chances[slots, places], self._sampling))
        places.add_(1)

    def _graph(self, rows: int) -> torch.cuda.CUDAGraph:
        if rows not in self._graphs:
            self._graphs[rows] = self._capture(rows)
        return self._graphs[rows]

    def _capture(self, rows: int) -> torch.cuda.CUDAGraph:
        """Capture a step. The passes that warm up write to places that the first real step writes again."""
        kept = self._state.clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(rows, 0)
            self._state.copy_(kept)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(rows, 0)
        self._pool = self._pool or graph.pool()
        self._state.copy_(kept)
        return graph


def _padded(rows: int) -> int:
    return next((size for size in _SMALL if rows <= size), -(-rows // 32) * 32)
