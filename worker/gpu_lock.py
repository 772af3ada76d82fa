"""A GPU belongs to one child at a time: whoever comes while the one before is still dying waits for its end.

A killed process may hold its GPU's memory for seconds, or for as long as a driver's call hangs; a job started beside
it runs out of memory. The lock is the kernel's (flock), so it ends with its process, however that ends.
"""

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from worker import pulse
from worker.environment import device

#: Seconds between two looks whether the lock is free.
_LOOK = 0.5

#: Held until the process ends, through all of its jobs; closing one would let go of its GPU.
_held: dict[Path, int] = {}


def hold_gpu(tell: Callable[[str], None], stopped: Callable[[], bool]) -> bool:
    """Take this process's GPU, if it has one, until the process ends; False when told to stop while waiting.

    ``tell`` gets a sentence when there is someone to wait for.
    """
    if device() != "cuda":
        return True
    return hold(str(torch.cuda.get_device_properties(0).uuid), tell, stopped)


def hold(name: str, tell: Callable[[str], None], stopped: Callable[[], bool], folder: Path | None = None) -> bool:
    """Take the lock ``name`` as ``hold_gpu`` does. All of the machine's users meet in ``folder``."""
    path = (folder or Path(tempfile.gettempdir())) / f"hone-gpu-{name}.lock"
    if path in _held:
        return True
    descriptor = _open(path)
    told = False
    while not _try(descriptor):
        if stopped():
            os.close(descriptor)
            return False
        if not told:
            tell("Waiting for the GPU: another process of Hone holds it. One worker a GPU is meant to run.")
            told = True
        pulse.beat()  # whoever holds it is watched as well
        time.sleep(_LOOK)
    _held[path] = descriptor
    return True


def _open(path: Path) -> int:
    """A descriptor to lock by. Another user's file is opened for reading, which is enough; a link is refused."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(f"{path} is no regular file; remove it")
    return descriptor


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
