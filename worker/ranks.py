"""Training by the GPUs of one machine together, one process each (decision 0027).

    python -m worker.ranks RANK INPUT.json OUT/

Every rank runs the whole program on the same data with the same seeds, but computes only its share of a step's samples;
gradients are summed before the optimizer's step, which is then the same everywhere. Rank 0 is the job's process: it
starts the others, which die with it, and it alone tells, saves and writes artifacts.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from core.errors import TrainingError
from worker.environment import device
from worker.parent import with_parent
from worker.passes import Row

#: Longest that one rank waits for another: one may still load the base while another is ready.
_PATIENCE = timedelta(minutes=30)
#: Seconds that rank 0 gets to tell of its own failure once another rank has failed; then it would wait for ever.
_LAST_WORDS = 30.0


class Ranks:
    """The processes of a job, seen from one of them. One alone has nobody to ask and asks nobody."""

    def __init__(self, rank: int = 0, size: int = 1, store: Path | None = None) -> None:
        self.rank, self.size = rank, size
        self._on_host: Any = None
        self._on_device: Any = None
        if size > 1:
            assert store is not None
            meeting = dist.FileStore(str(store), size)  # type: ignore[attr-defined]
            self._on_host = _gloo(dist.PrefixStore("host", meeting), rank, size)  # type: ignore[attr-defined]
            self._on_device = self._on_host
            if device() == "cuda":
                options = dist.ProcessGroupNCCL.Options()
                store_of_device = dist.PrefixStore("device", meeting)  # type: ignore[attr-defined]
                self._on_device = dist.ProcessGroupNCCL(store_of_device, rank, size, options)

    def mine(self, rows: list[Row]) -> list[Row]:
        """This rank's share of a step's samples, in their order; shares have about as many tokens."""
        if self.size == 1:
            return rows
        loads, owners = [0] * self.size, [0] * len(rows)
        for number in sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"])):
            owners[number] = loads.index(min(loads))
            loads[owners[number]] += len(rows[number]["input_ids"])
        return [row for row, owner in zip(rows, owners, strict=True) if owner == self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every rank's values, on the device."""
        if self.size > 1:
            self._on_device.allreduce([values]).wait()
        return values

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Make each gradient the sum of all ranks'. A rank that had no sample takes part with zeros."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in trained if p.grad is not None]
        joined = self.sum(torch.cat([grad.reshape(-1) for grad in grads]))
        parts = torch.split(joined, [grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Each number's largest among the ranks."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64)
        self._on_host.allreduce([values], _options(dist.ReduceOp.MAX)).wait()
        found: list[int] = values.tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Whether a rank says yes."""
        return bool(self.largest([int(flag)])[0])


ALONE = Ranks()


def _gloo(store: Any, rank: int, size: int) -> Any:
    # All ranks are on this machine; the host's name need not lead anywhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    return dist.ProcessGroupGloo(store, rank, size, _PATIENCE)


def _options(operation: Any) -> Any:
    made = dist.AllreduceOptions()
    made.reduceOp = operation
    return made


@contextmanager
def gathered(size: int, source: Path, out: Path) -> Iterator[Ranks]:
    """The ranks of a job, for its first process; the others are started, and gone at the end. Raises TrainingError."""
    if size == 1:
        yield ALONE
        return
    if device() == "cuda" and torch.cuda.device_count() < size:
        raise TrainingError(
            f"The job asks for {size} GPUs, and this process sees {torch.cuda.device_count()}.",
            param="hone.training.gpus",
            code="too_few_gpus",
        )
    store = out / "ranks"
    store.unlink(missing_ok=True)
    devices = _devices(size)
    others = [_start(rank, source, out, devices) for rank in range(1, size)]
    over = threading.Event()
    for process in others:
        threading.Thread(target=_watch, args=(process, over), daemon=True).start()
    try:
        yield Ranks(0, size, store)
    finally:
        over.set()
        for process in others:
            process.kill()
            process.wait()


def _devices(size: int) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; the first is its own."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(size)]


def _start(rank: int, source: Path, out: Path, devices: list[str]) -> "subprocess.Popen[bytes]":
    """One of the other ranks, in this process's group, so that a signal to the job reaches it."""
    environment = dict(os.environ)
    if device() == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = devices[rank]
    argv = with_parent([sys.executable, "-m", "worker.ranks", str(rank), str(source), str(out)])
    return subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - ours


def _watch(process: "subprocess.Popen[bytes]", over: threading.Event) -> None:
    """End this process when another rank has died: the sum that it waits for will never come."""
    if process.wait() != 0 and not over.wait(_LAST_WORDS):
        sys.stderr.write(f"rank process {process.pid} ended with exit code {process.returncode}\n")
        sys.stderr.flush()
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Be one of the other ranks; nothing that it has to say is heard."""
    from worker import train  # noqa: PLC0415 - worker.train imports this module
    from worker.progress import StopRequest  # noqa: PLC0415 - as above
    from worker.protocol import LineWriter, TrainingInput  # noqa: PLC0415 - as above

    rank, source, out = int(arguments[0]), Path(arguments[1]), Path(arguments[2])
    stop = StopRequest()
    stop.listen()
    job = TrainingInput.model_validate_json(source.read_bytes())
    ranks = Ranks(rank, job.spec.hone.training.gpus, out / "ranks")
    with _nowhere() as stream:
        return train.train(job, out / f"rank-{rank}", LineWriter(stream), stop, ranks=ranks)


@contextmanager
def _nowhere() -> Iterator[TextIO]:
    with Path(os.devnull).open("w", encoding="utf-8") as stream:
        yield stream


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
