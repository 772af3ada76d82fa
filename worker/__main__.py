"""Start a worker: ``python -m worker``."""

import sys

from core.settings import get_settings
from worker.app import run


def main() -> None:
    """Work with the settings of the environment."""
    sys.exit(run(get_settings()))


if __name__ == "__main__":
    main()
