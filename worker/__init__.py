"""The worker: claims jobs and supervises the processes that train, generate and score.

Light modules (app, slot, supervise and what they import) never import torch: Celery's process stays small and free of
CUDA. Heavy modules (train, evaluate and what they import) run in a child process of their own.
"""

import sys

# TRL loads wandb wherever it is installed, which takes 0.4 s; with None in its place nothing finds it. It has a process
# of its own, which takes this back (worker/wandb_run.py).
sys.modules["wandb"] = None  # type: ignore[assignment]
