"""A process that dies with the one that started it, so that a killed worker leaves nothing on the GPU.

    python -m worker.parent PARENT_PID COMMAND [ARGUMENT ...]

runs COMMAND in its own place and with its own process id: what is asked of the kernel here outlives the exec, so the
command, Python or not, need not know of it.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

#: <linux/prctl.h>
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies. Linux only; elsewhere nothing is asked.

    The kernel's "parent" is the thread that forked, so that thread has to outlive this process. ``parent`` is the id
    that the parent had at the fork; if it is gone by now the signal would never come, so this process ends at once.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def with_parent(argv: Sequence[str]) -> list[str]:
    """The command ``argv``, to be started by this process and to die with it."""
    return [sys.executable, "-m", "worker.parent", str(os.getpid()), *argv]


def main() -> None:
    """Become the command of the command line."""
    parent, *argv = sys.argv[1:]
    die_with_parent(int(parent))
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
