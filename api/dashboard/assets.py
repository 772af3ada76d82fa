"""Style, scripts and fonts: files of this package, below a hash of them all, so that a browser may keep them."""

import hashlib
import os
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_name("static")


def _version() -> str:
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


PREFIX = f"/static/{_version()}"


def asset(name: str) -> str:
    """The address of a static file, such as ``app.css``."""
    return f"{PREFIX}/{name}"


class Assets(StaticFiles):
    """The files, which a browser keeps for a year and never takes for anything else than they say they are."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(
        self, full_path: os.PathLike[str] | str, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """A file's answer."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers["X-Content-Type-Options"] = "nosniff"
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return answer
