"""A real worker whose child is the stand-in: ``python run_worker.py [MODE ...]``, settings from the environment."""

import sys

from core.settings import Settings
from tests.worker.world import stand_in
from worker.app import run

if __name__ == "__main__":
    sys.exit(run(Settings(), stand_in(*sys.argv[1:])))
