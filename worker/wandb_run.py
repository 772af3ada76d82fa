"""A job's run in Weights & Biases, told from a process of its own (see worker/wandb_log.py).

    python -m worker.wandb_run INPUT.json FOLDER

INPUT.json is a ``worker.protocol.TrainingInput``. Each line of standard input is ``{"step", "figures"}``, the last one
``{"exit_code"}``; each line of standard output is a ``worker.protocol.Event``. The key comes in WANDB_API_KEY and stays
there; WANDB_BASE_URL names another server than W&B's. All that wandb writes lies under FOLDER.

A run has the id of its job, so that every attempt goes on in one run. W&B takes no step again once it has a later one:
of the steps that a lost attempt did after its last checkpoint it keeps what it got. The next attempt repeats them with
the same losses, and fills in those that never got there.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from worker.protocol import Event, LineWriter, TrainingInput

#: Seconds that W&B gets to answer at the start; the figures of the first steps wait here meanwhile.
_INIT_SECONDS = 30.0
#: Seconds that W&B gets to take the rest at the end: less than the patience of worker.wandb_log.
_FINISH_SECONDS = 8.0

Orders = SimpleQueue[dict[str, Any]]


def start(job: TrainingInput, folder: Path) -> Any:
    """The job's run in W&B, new or gone on with. Raises whatever wandb raises."""
    sys.modules.pop("wandb")  # see worker/__init__.py
    import wandb  # noqa: PLC0415 - nobody else loads it

    asked = job.spec.wandb
    assert asked is not None
    return wandb.init(
        project=asked.project,
        entity=asked.entity,
        name=asked.name or job.job_id,
        tags=list(asked.tags),
        id=job.job_id,
        resume="allow",
        config=job.spec.model_dump(mode="json", exclude={"wandb": True, "hone": {"data": {"system_prompt"}}}),
        settings=wandb.Settings(
            root_dir=str(folder),
            host="hone",
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )


def follow(job: TrainingInput, folder: Path, orders: Orders, lines: LineWriter) -> None:
    """Tell W&B what the orders say, until one says that the run is over. Raises whatever wandb raises."""
    run = start(job, folder)
    where = "kept on the worker: wandb is offline" if run.offline else run.url
    lines.send(Event(message=f"Weights & Biases run {run.name}: {where}"))
    while "exit_code" not in (order := orders.get()):
        run.log(order["figures"], step=order["step"])
    run.finish(exit_code=order["exit_code"])


def take_orders(orders: Orders) -> None:
    """Read standard input to its end, so that the training process never finds the pipe full."""
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    orders.put({"exit_code": 1})


def take_output() -> LineWriter:
    """Keep standard output for the events alone, and from wandb's own process, which would hold it open."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return LineWriter(stream)


def main(arguments: list[str]) -> None:
    """Be the process. Whatever goes wrong with W&B is a warning to the user, and the end of it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the training, which says when its run is over
    lines, folder = take_output(), Path(arguments[1])
    for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        os.environ[f"WANDB_{kind}_DIR"] = str(folder)
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # to W&B's makers
    orders: Orders = SimpleQueue()
    threading.Thread(target=take_orders, args=(orders,), daemon=True).start()
    job = TrainingInput.model_validate_json(Path(arguments[0]).read_bytes())
    try:
        follow(job, folder, orders, lines)
    except Exception as error:
        lines.send(Event(message=f"Weights & Biases gets no more of this job's figures: {told(error)}", level="warn"))
        os._exit(1)  # wandb would wait for its server once more


def told(error: Exception) -> str:
    """An error's first line, without the key."""
    if isinstance(error, ImportError):
        return "the package wandb is not installed on this worker (pip install 'hone[wandb]')"
    text = str(error).replace(os.environ.get("WANDB_API_KEY") or "\0", "***")
    return " ".join(text.split())[:300] or type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1:])
