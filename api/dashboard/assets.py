"""Style, scripts and fonts: files of this package, each address with a hash of all, so that a browser may keep them."""

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


VERSION = _version()


def asset(name: str) -> str:
    """The address of a static file, such as ``app.css``."""
    return f"/static/{name}?v={VERSION}"


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
        asked_by_version = b"v=" in scope.get("query_string", b"")
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable" if asked_by_version else "no-cache"
        return answer
