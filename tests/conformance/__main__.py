"""Writes docs/conformance.md: ``python -m tests.conformance``."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import migrations
from tests.conformance.environments import NotInstalledError, make_all
from tests.conformance.service import hone
from tests.conformance.table import KINDS, PAGE, page


def main() -> int:
    """Drive, complain of what went wrong, and write the page if nothing did."""
    pythons = make_all()
    missing = [str(python) for python in pythons.values() if isinstance(python, NotInstalledError)]
    if missing:
        sys.stderr.write("\n".join([*missing, ""]))
        return 1
    with TemporaryDirectory(prefix="hone-conformance-") as folder:
        url = f"sqlite:///{folder}/hone.db"
        migrations.upgrade(url)
        with hone(Path(folder), url) as service:
            reports = service.drive_all(
                {version: python for version, python in pythons.items() if isinstance(python, Path)}
            )
    wrong = [
        f"{version} {kind}: {line}"
        for version, report in reports.items()
        for kind in KINDS
        for line in [*report[kind]["problems"], *report[kind]["unused"]]
    ]
    sys.stderr.write("\n".join([*wrong, ""]))
    PAGE.write_text(page(reports), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
