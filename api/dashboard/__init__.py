"""The dashboard: pages at ``/`` on the functions that the API's routes call, in the project of the key that signed in.

Nothing is built and nothing comes from elsewhere: Jinja2 templates, one style sheet, htmx for what changes on a page,
uPlot for curves (static/vendor/README.md: versions and licences).
"""

from fastapi import FastAPI

from api.dashboard import (
    compare,
    eval_form,
    eval_pages,
    file_pages,
    job_form,
    job_pages,
    preflight_pages,
    sessions,
    webhook_pages,
)
from api.dashboard.assets import PREFIX, Assets

_PARTS = (
    sessions,
    job_form,
    job_pages,
    file_pages,
    preflight_pages,
    eval_form,
    eval_pages,
    compare,
    webhook_pages,
)


def install(app: FastAPI) -> None:
    """Add the pages and their static files."""
    app.mount(PREFIX, Assets())
    for part in _PARTS:
        app.include_router(part.router)
