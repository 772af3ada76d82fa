"""Pictures of the pages for docs/screenshots, at 1280 and 390 px, light and dark.

    python -m tests.dashboard.screenshots docs/screenshots

Needs Chromium; the state is made by ``tests.dashboard.state``. The pictures are reduced to 250 colours.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page
from starlette.testclient import TestClient

import migrations
from api.main import create_app
from core.settings import Settings
from core.storage import Storage
from models import accounts
from models.database import Database
from tests.api.conftest import NO_BROKER, served
from tests.dashboard.browser import chromium, fresh_page, sign_in
from tests.dashboard.state import Maker, State

WIDTHS = (1280, 390)
THEMES = ("light", "dark")


def pages(state: State) -> dict[str, str]:
    """What is pictured, by the picture's name."""
    first, second = state.compared
    return {
        "jobs": "/",
        "job": f"/jobs/{state.running}",
        "job-succeeded": f"/jobs/{state.succeeded}",
        "new-job": f"/jobs/new?from={state.succeeded}",
        "compare": f"/compare?job={first}&job={second}",
        "files": "/files",
        "dataset": f"/files/{state.dataset}?model=smollm2-135m-instruct",
        "evaluations": "/evals",
        "new-evaluation": f"/evals/new?job={state.succeeded}",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{state.endpoint}",
        "evaluation": f"/evals/{state.eval_id}/runs/{state.run_id}",
    }


def settle(page: Page, name: str) -> None:
    """Wait for what comes after the page: curves, the preflight, the estimate."""
    if name.startswith("job") and name != "jobs":
        page.wait_for_selector("[data-drawn]", timeout=15_000)
    if name == "compare":
        page.wait_for_selector("[data-compare-charts][data-drawn]")
    if name == "dataset":
        page.wait_for_selector("#sample .tokens", timeout=240_000)
    if name == "new-job":
        page.wait_for_selector("[data-estimate]", timeout=240_000)
    page.evaluate("document.fonts.ready")
    page.wait_for_function("() => document.querySelectorAll('.htmx-request').length === 0")


def compress(path: Path) -> None:
    """The 250 colours that count most: grounds and lines as they are, only the edges of letters a little coarser.

    A strong colour counts for more: a red word has few pixels, and without it would turn grey.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    found: list[tuple[int, tuple[int, int, int]]] = image.getcolors(1 << 24)  # type: ignore[assignment]
    colours = sorted(found, key=lambda one: -one[0] * (1 + (max(one[1]) - min(one[1])) / 4))[:250]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in colours for part in colour])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main(out: Path) -> None:
    """Make the state, serve it, and take the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="hone-pictures-"))
    settings = Settings(home=home, redis_url=NO_BROKER)
    migrations.upgrade(settings.resolved_database_url)
    database, storage = Database(settings.resolved_database_url), Storage(settings.resolved_storage_url)
    with database.write() as session:
        key = accounts.create_key(session, accounts.create_project(session, "compilers"), "laptop")
    app = create_app(settings)
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as http:
        state = Maker(http, database, storage).make()
    with served(create_app(settings)) as url, chromium() as browser:
        for theme in THEMES:
            for width in WIDTHS:
                with fresh_page(browser, width=width, height=900 if width > 600 else 844, theme=theme) as page:
                    page.goto(url + "/sign-in")
                    page.screenshot(path=out / f"sign-in-{width}-{theme}.png")
                    compress(out / f"sign-in-{width}-{theme}.png")
                    sign_in(page, url, key)
                    for name, path in pages(state).items():
                        page.goto(url + path)
                        settle(page, name)
                        picture = out / f"{name}-{width}-{theme}.png"
                        page.screenshot(path=picture, full_page=True, clip=None)
                        compress(picture)
    database.dispose()
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
