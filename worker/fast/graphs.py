"""Passes as one launch each, by CUDA graphs: a small pass's 2,000 kernels keep the host busier than the GPU.

A graph needs its shapes, so a pass is filled up to a size that others share: with tokens of a sample of its own, in
which nothing is trained. The first pass of a size runs as it is, the second one is recorded, later ones are replayed.
See docs/decisions/0035-small-passes-are-replayed.md.
"""

import gc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from worker.fast.attention import Row
from worker.fast.cudnn import LONGEST, SAMPLES, up
from worker.sequences import IGNORED

#: What tokens are filled up to a multiple of, and twice that above ``_MANY``.
_TOKENS, _MANY = 128, 4096
#: Trained tokens are filled up to a multiple of that part of all; samples and the longest one as cuDNN's plans have it.
_TRAINED = 8
#: Graphs that are kept, those of the sizes that came last; each takes some 10 MB.
_MOST = 32


@dataclass(frozen=True)
class Pass:
    """What a pass reads: ids and positions [1, T]; places that predict a trained token, and these tokens [N]."""

    input_ids: Tensor
    position_ids: Tensor
    trained: Tensor
    targets: Tensor
    row: Row

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "Pass":
        """From what ``worker.sequences.collate`` makes, on the model's device."""
        row = Row(batch["bounds"], batch["lengths"], max(batch["lengths"]))
        return cls(batch["input_ids"], batch["position_ids"], batch["trained"], batch["targets"], row)


@dataclass
class Gradients:
    """What a pass gives: the sum of its losses, its hits, and the sum's gradient at each parameter."""

    loss: Tensor
    hits: Tensor
    of_parameters: list[Tensor]


#: Runs a pass, forward and backward.
Runner = Callable[[Pass], Gradients]


@dataclass(frozen=True)
class Size:
    """Of a pass that is filled up."""

    tokens: int
    trained: int
    samples: int
    longest: int

    @classmethod
    def of(cls, one: Pass) -> "Size":
        """The smallest size with room for ``one``, one more sample, and at least one more token."""
        tokens = one.input_ids.numel() + 1
        tokens = up(tokens, _TOKENS if tokens <= _MANY else 2 * _TOKENS)
        return cls(
            tokens=tokens,
            trained=up(len(one.targets), max(1, tokens // _TRAINED)),
            samples=up(len(one.row.lengths) + 1, SAMPLES),
            longest=up(one.row.longest, LONGEST),
        )


class Filled:
    """A pass of a size, in tensors that stay where they are."""

    def __init__(self, size: Size, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.size = size
        bounds = zeros(size.samples + 1, dtype=torch.int32)
        self._tensors = (zeros(1, size.tokens), zeros(1, size.tokens), zeros(size.trained), zeros(size.trained), bounds)

    def take(self, one: Pass) -> Pass:
        """Copy a pass's values; what is left over is a sample that nothing is learnt from, and empty samples."""
        ids, positions, trained, targets, bounds = self._tensors
        _fill(ids[0], one.input_ids[0], 0)
        _fill(positions[0], one.position_ids[0], 0)
        _fill(trained, one.trained, self.size.tokens - 1)
        _fill(targets, one.targets, IGNORED)
        _fill(bounds, one.row.bounds, self.size.tokens)
        rest = self.size.tokens - one.input_ids.numel()
        empty = [0] * (self.size.samples - len(one.row.lengths) - 1)
        row = Row(bounds, [*one.row.lengths, rest, *empty], self.size.longest)
        return Pass(ids, positions, trained, targets, row)


def _fill(target: Tensor, values: Tensor, rest: int) -> None:
    target[: len(values)].copy_(values)
    target[len(values) :].fill_(rest)


class Graphs:
    """Runs passes, small ones by graphs. All of them share one pool of memory and one stream."""

    def __init__(self, run: Runner, parameters: Sequence[Tensor], device: torch.device) -> None:
        self._run, self._device = run, device
        self._sizes: OrderedDict[Size, _Recorded] = OrderedDict()
        self._stream = _stream(device)
        self._pool = torch.cuda.MemPool()
        self._gradients = [torch.empty_like(one) for one in parameters]
        self._loss, self._hits = torch.zeros(2, device=device).unbind()

    def __call__(self, one: Pass) -> Gradients:
        """As the runner. The gradients are overwritten by the next pass."""
        size = Size.of(one)
        recorded = self._sizes.get(size) or _Recorded(Filled(size, self._device))
        self._keep(size, recorded)
        filled = recorded.inputs.take(one)
        if not recorded.seen:
            with self.inside():
                self._into_place(filled)
        else:
            with self._beside():
                recorded.graph = recorded.graph or self._record(filled)
                recorded.graph.replay()
        recorded.seen = True
        return Gradients(self._loss.clone(), self._hits.clone(), self._gradients)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """On the graphs' stream, with memory from their pool, so that what one pass took the next one can take."""
        with self._beside(), torch.cuda.use_mem_pool(self._pool, self._device):
            yield

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On a stream of its own, as recording demands."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _keep(self, size: Size, recorded: "_Recorded") -> None:
        self._sizes[size] = recorded
        self._sizes.move_to_end(size)
        if len(self._sizes) > _MOST:
            self._sizes.popitem(last=False)

    def _record(self, filled: Pass) -> Any:
        graph = torch.cuda.CUDAGraph()
        with _uncollected():
            # Other threads go on meanwhile: only this one may do nothing but launch.
            graph.capture_begin(self._pool.id, capture_error_mode="thread_local")  # type: ignore[arg-type]  # its own alias
            try:
                self._into_place(filled)
            except BaseException:
                with suppress(RuntimeError):  # that the recording is incomplete
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def _into_place(self, filled: Pass) -> None:
        found = self._run(filled)
        torch._foreach_copy_(self._gradients, found.of_parameters)
        self._loss.copy_(found.loss)
        self._hits.copy_(found.hits)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collection: torch ends the process when a pool is freed while it records."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@cache
def _stream(device: torch.device) -> Any:
    """One for the whole process: cuBLAS keeps a workspace for every stream that it saw, here outside of any pool."""
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        some = torch.zeros(16, 16, dtype=torch.bfloat16, device=device)
        torch.addmm(some, some, some)
    return stream


@dataclass
class _Recorded:
    inputs: Filled
    graph: Any = None
    seen: bool = False
