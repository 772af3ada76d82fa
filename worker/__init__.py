"""The worker: claims jobs and supervises the processes that train, generate and score.

Light modules (app, slot, supervise and what they import) never import torch: Celery's process stays small and free of
CUDA. Heavy modules (train, evaluate and what they import) run in a child process of their own.
"""
