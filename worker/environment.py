"""The machine and the libraries: what there is to compute with, and what a result must record."""

import contextlib
import ctypes
import os
import platform
import random
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.memory import CUDA_CONTEXT, Device

#: Packages whose version can change a result.
_RECORDED = (
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "codebleu",
    "tree-sitter", "tree-sitter-python",
)  # fmt: skip


_CLEAR_REFS = Path("/proc/self/clear_refs")


def device() -> Device:
    """A CUDA GPU where there is one, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_bfloat16() -> bool:
    """Whether bfloat16 is computed natively.

    On a processor that takes AVX512-BF16 or AMX; without, one training step of SmolLM2-135M did not end in ten minutes.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags())


def fast_fp8() -> bool:
    """Whether 8-bit floats are multiplied natively with a scale a row: Hopper and newer."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def hardware() -> dict[str, Any]:
    """What the job runs on: processor, cores, memory, and the GPU if there is one. Sizes in bytes."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    found: dict[str, Any] = {
        "device": device(),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if found["device"] == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


def device_memory() -> int:
    """Bytes of memory of the device that trains."""
    found = hardware()
    return int(found.get("gpu_memory", found["memory"]))


def available_memory() -> int:
    """Bytes that a job may take of the device's memory, the CUDA context's included.

    On a GPU: what is free, and no more than this process is allowed (``torch.cuda.set_per_process_memory_fraction``).
    On a processor: the machine's memory, or less where the container has a limit.
    """
    if not torch.cuda.is_available():
        return min([device_memory(), *_container_limits()])
    free, total = torch.cuda.mem_get_info()
    mine = torch.cuda.memory_reserved()
    return min(free + mine, int(torch.cuda.get_per_process_memory_fraction() * total)) + CUDA_CONTEXT


def _container_limits() -> list[int]:
    """Limits of the control group, version 2 and 1; "max" is none."""
    paths = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [path.read_text(encoding="ascii").strip() for path in paths if path.exists()]
    return [int(text) for text in texts if text.isdigit()]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a result."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def return_free_memory() -> None:
    """Give back to the system what the C library keeps of freed memory; libraries other than glibc do so themselves."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak_memory() -> None:
    """Measure ``peak_memory`` anew from here on, without what is free: loading a model leaves more than it keeps."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists():
        return_free_memory()
        with contextlib.suppress(OSError):  # some sandboxes refuse it; the peak is then that of the process's life
            _CLEAR_REFS.write_text("5", encoding="ascii")  # man 5 proc: resets the resident set's peak


def peak_memory() -> int:
    """Largest memory of this process since the peak was forgotten, in bytes.

    On a GPU what torch's allocator had handed out, else resident memory.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # noqa: PLC0415 - not on every platform that can import this module

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seed_everything(seed: int) -> None:
    """Seed every generator that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The state of torch's generators, of the processor and of each GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    """Go back to what ``random_state`` told."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
