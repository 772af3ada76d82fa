"""Attention by cuDNN, within each sample of a row that holds many: on Hopper about twice as fast as torch's own.

cuDNN reads q, k and v where the matmul left them, side by side, and writes its outputs and gradients where the next
matmul reads them. A plan serves every row up to its number of samples, longest sample and tokens, which are rounded up:
building one takes tenths of a second. Needs the package ``nvidia-cudnn-frontend``; see docs/decisions/0024.
"""

# cuDNN's package has no types.
# mypy: disable-error-code="no-untyped-call"

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: What a plan's samples, longest sample and tokens are rounded up to.
SAMPLES, LONGEST, _TOKENS = 32, 512, 8192
#: Names of a plan's tensors.
_Q, _K, _V, _O, _STATS, _LENGTHS, _AT_QKV, _AT_O, _AT_STATS, _GRAD, _DQ, _DK, _DV = range(1, 14)


@cache
def available(device: torch.device) -> bool:
    """Whether cuDNN's attention can run here: a Hopper GPU or newer, the package, and a cuDNN that both know."""
    if not torch.cuda.is_available() or importlib.util.find_spec("cudnn") is None:
        return False
    if torch.cuda.get_device_capability(device) < (9, 0):
        return False
    import cudnn  # noqa: PLC0415 - there on GPU machines only

    return int(cudnn.backend_version()) >= 90600  # ragged gradients whose room is that of the tokens


@dataclass(frozen=True)
class Shape:
    """What a plan is made for. ``qkv`` and ``out`` are the steps from token to token, in elements."""

    samples: int
    longest: int
    tokens: int
    heads: int
    head: int
    window: int | None
    qkv: int
    out: int
    dtype: torch.dtype


def shape_of(q: Tensor, out: Tensor, samples: int, longest: int, window: int | None) -> Shape:
    """The plan that serves ``q`` [T, heads, head] with as many heads of keys, lying in rows of one width."""
    return Shape(
        samples=up(samples, SAMPLES),
        longest=up(longest, LONGEST),
        tokens=up(len(q), _TOKENS),
        heads=q.shape[1],
        head=q.shape[2],
        window=window,
        qkv=q.stride(0),
        out=out.stride(0),
        dtype=q.dtype,
    )


@dataclass(frozen=True)
class Ragged:
    """Where samples start, for one plan: lengths and, in elements, first places in qkv, output and statistics."""

    lengths: Tensor
    at_qkv: Tensor
    at_out: Tensor
    at_stats: Tensor


def ragged(bounds: Tensor, shape: Shape) -> Ragged:
    """From ``bounds`` [samples + 1] int32; samples up to the plan's number are empty."""
    more = shape.samples + 1 - len(bounds)
    if more:
        bounds = torch.cat([bounds, bounds[-1:].expand(more)])
    starts = bounds.long()
    return Ragged(bounds.diff(), starts * shape.qkv, starts * shape.out, starts * shape.heads)


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, places: Ragged, shape: Shape) -> Tensor:
    """Write causal attention to ``out`` [T, heads, head]; returns its statistics [T, heads] in float32."""
    stats = torch.empty(len(q), shape.heads, dtype=torch.float32, device=q.device)
    _plan(shape, q.device, backward=False).run(places, {_Q: q, _K: k, _V: v, _O: out, _STATS: stats})
    return stats


def backward(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    stats: Tensor,
    room: tuple[Tensor, Tensor, Tensor],
    places: Ragged,
    shape: Shape,
) -> None:
    """Write the gradients at q, k and v to ``room``; ``grad`` lies as ``out`` does, and ``room`` as ``inputs``."""
    tensors = dict(zip((_Q, _K, _V, _DQ, _DK, _DV), (*inputs, *room), strict=True))
    tensors |= {_GRAD: grad, _O: out, _STATS: stats}
    _plan(shape, grad.device, backward=True).run(places, tensors)


class _Plan:
    def __init__(self, shape: Shape, device: torch.device, *, backward: bool) -> None:
        import cudnn  # noqa: PLC0415 - as above

        self._handle = _handle(device)
        kind = cudnn.data_type.BFLOAT16 if shape.dtype == torch.bfloat16 else cudnn.data_type.HALF
        self._graph = graph = cudnn.pygraph(
            io_data_type=kind,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=self._handle,
        )
        starts = {
            uid: graph.tensor(
                name=f"starts_{uid}",
                dim=[shape.samples + 1, 1, 1, 1],
                stride=[1, 1, 1, 1],
                data_type=cudnn.data_type.INT64,
                uid=uid,
            )
            for uid in (_AT_QKV, _AT_O, _AT_STATS)
        }
        lengths = graph.tensor(
            name="lengths",
            dim=[shape.samples, 1, 1, 1],
            stride=[1, 1, 1, 1],
            data_type=cudnn.data_type.INT32,
            uid=_LENGTHS,
        )
        queries = _layout(shape, shape.heads, shape.qkv), starts[_AT_QKV]
        outs = _layout(shape, shape.heads, shape.out), starts[_AT_O]
        stats = _layout(shape, shape.heads, shape.heads, head=1), starts[_AT_STATS]

        def given(uid: int, place: tuple[dict[str, list[int]], Any], data_type: Any = kind) -> Any:
            tensor = graph.tensor(name=f"in_{uid}", data_type=data_type, uid=uid, **place[0])
            tensor.set_ragged_offset(place[1])
            return tensor

        def made(tensor: Any, uid: int, place: tuple[dict[str, list[int]], Any], data_type: Any = kind) -> None:
            tensor.set_output(True).set_uid(uid).set_data_type(data_type)
            tensor.set_dim(place[0]["dim"]).set_stride(place[0]["stride"]).set_ragged_offset(place[1])

        options: dict[str, Any] = {
            "attn_scale": shape.head**-0.5,
            "use_padding_mask": True,
            "seq_len_q": lengths,
            "seq_len_kv": lengths,
            "diagonal_alignment": cudnn.diagonal_alignment.TOP_LEFT,
            "diagonal_band_right_bound": 0,
        }
        if shape.window is not None:
            options["diagonal_band_left_bound"] = shape.window
        q, k, v = (given(uid, queries) for uid in (_Q, _K, _V))
        if backward:
            dq, dk, dv = graph.sdpa_backward(
                q=q,
                k=k,
                v=v,
                o=given(_O, outs),
                dO=given(_GRAD, outs),
                stats=given(_STATS, stats, cudnn.data_type.FLOAT),
                max_total_seq_len_q=shape.tokens,
                max_total_seq_len_kv=shape.tokens,
                **options,
            )
            for tensor, uid in ((dq, _DQ), (dk, _DK), (dv, _DV)):
                made(tensor, uid, queries)
        else:
            o, statistics = graph.sdpa(q=q, k=k, v=v, generate_stats=True, **options)
            made(o, _O, outs)
            made(statistics, _STATS, stats, cudnn.data_type.FLOAT)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        self._bytes = int(graph.get_workspace_size())

    def run(self, places: Ragged, tensors: dict[int, Tensor]) -> None:
        import cudnn  # noqa: PLC0415 - as above

        device = places.lengths.device
        pointers = {uid: tensor.data_ptr() for uid, tensor in tensors.items()}
        pointers[_LENGTHS] = places.lengths.data_ptr()
        pointers[_AT_QKV], pointers[_AT_O] = places.at_qkv.data_ptr(), places.at_out.data_ptr()
        pointers[_AT_STATS] = places.at_stats.data_ptr()
        room = torch.empty(max(1, self._bytes), dtype=torch.uint8, device=device)
        cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(device).cuda_stream)
        self._graph.execute(pointers, room.data_ptr(), handle=self._handle)


def _layout(shape: Shape, heads: int, step: int, *, head: int | None = None) -> dict[str, list[int]]:
    """Dimensions and steps of a tensor [T, heads, head] as cuDNN sees it: samples, heads, tokens, head."""
    head = shape.head if head is None else head
    return {
        "dim": [shape.samples, heads, shape.longest, head],
        "stride": [shape.longest * step, head, step, 1],
    }


@cache
def _plan(shape: Shape, device: torch.device, *, backward: bool) -> _Plan:
    return _Plan(shape, device, backward=backward)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn  # noqa: PLC0415 - as above

    with torch.cuda.device(device):
        return cudnn.create_handle()


def up(number: int, step: int) -> int:
    """The multiple of ``step`` from ``number`` on."""
    return -(-number // step) * step
