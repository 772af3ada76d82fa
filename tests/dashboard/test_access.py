"""Who may look at a page, and whose forms are taken."""

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

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
from api.dashboard.page import COOKIE, local_path
from api.main import create_app
from core.settings import Settings
from models import accounts
from models.database import Database
from models.tables import ApiKey, DashboardSession, File
from tests.dashboard.signing_in import SAME_ORIGIN, sign_in


def routes() -> list[tuple[str, str]]:
    """Method and path of every page."""
    parts = (compare, eval_form, eval_pages, file_pages, job_form, job_pages, preflight_pages, sessions, webhook_pages)
    found = [(method, route.path) for part in parts for route in part.router.routes for method in sorted(route.methods)]  # type: ignore[attr-defined]
    assert len(found) > 25
    return found


def test_without_a_session_every_page_leads_to_the_sign_in(http: TestClient, there: dict[str, str]):
    http.headers.pop("Authorization")
    http.headers.update(SAME_ORIGIN)
    for method, path in routes():
        if path not in ("/sign-in", "/sign-out"):
            answer = http.request(method, path.format(**there), follow_redirects=False)
            assert answer.status_code == 303, (method, path)
            assert answer.headers["location"].startswith("/sign-in"), path


def test_a_part_of_a_page_makes_the_whole_page_go_to_the_sign_in(browser: TestClient):
    browser.cookies.clear()
    answer = browser.get("/jobs/table", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Refresh"]) == (204, "true")


def test_another_projects_things_are_not_found(settings: Settings, other_key: str, there: dict[str, str]):
    with TestClient(create_app(settings), follow_redirects=False, headers=SAME_ORIGIN) as client:
        sign_in(client, other_key)
        asked = 0
        for method, path in routes():
            if "{" in path:
                answer = client.request(method, path.format(**there))
                assert answer.status_code == 404, (method, path)
                assert answer.headers["content-type"].startswith("text/html")
                asked += 1
        assert asked > 12
        assert client.get(f"/compare?job={there['job_id']}").status_code == 404
        for asked_for in (f"/jobs/new?from={there['job_id']}", f"/evals/new?job={there['job_id']}"):
            assert client.get(asked_for).status_code == 404
        assert client.get(f"/evals/new?from={there['run_id']}").status_code == 404
        for path in ("/", "/files", "/evals", "/jobs/new", "/evals/new", "/webhooks"):
            assert not any(mine in client.get(path).text for mine in there.values()), path


def test_the_owner_sees_every_page(browser: TestClient, there: dict[str, str]):
    for method, path in routes():
        if method == "GET" and path != "/files/{file_id}/sample":  # no model is at hand here
            answer = browser.get(path.format(**there))
            assert answer.status_code in (200, 204), (path, answer.text)


def test_the_cookie_is_no_key_and_no_script_can_read_it(settings: Settings, key: str, database: Database):
    with TestClient(create_app(settings), follow_redirects=False, headers=SAME_ORIGIN) as client:
        answer = client.post("/sign-in", data={"key": f" {key}\n"})
        assert answer.headers["location"] == "/"
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=604800"} <= set(cookie.split("; "))
        token = cookie.split("=", 1)[1].split(";")[0]
        assert len(token) >= 43
        with database.read() as session:
            [row] = session.scalars(select(DashboardSession))
            assert row.sha256 == accounts.hash_key(token)
            assert key not in token


def test_over_https_the_cookie_is_secure(settings: Settings, key: str):
    with TestClient(create_app(settings), base_url="https://hone.example", headers=SAME_ORIGIN) as client:
        answer = client.post("/sign-in", data={"key": key}, follow_redirects=False)
        assert "Secure" in answer.headers["set-cookie"].split("; ")


@pytest.mark.parametrize("wrong", ["", "hone-wrong", "\0", "é" * 200])
def test_a_wrong_key_opens_nothing(browser: TestClient, wrong: str):
    browser.cookies.clear()
    answer = browser.post("/sign-in", data={"key": wrong})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "opens nothing here" in answer.text


def test_a_session_ends_with_its_key_its_time_or_by_signing_out(browser: TestClient, database: Database, key: str):
    token = browser.cookies[COOKIE]
    assert browser.get("/").status_code == 200
    browser.post("/sign-out")
    browser.cookies.set(COOKIE, token)
    assert browser.get("/").status_code == 303
    for ended in (update(ApiKey).values(revoked_at=1.0), update(DashboardSession).values(expires_at=1.0)):
        with database.write() as session:
            session.execute(update(ApiKey).values(revoked_at=None))
        browser.cookies.clear()
        sign_in(browser, key)
        assert browser.get("/").status_code == 200
        with database.write() as session:
            session.execute(ended)
        assert browser.get("/").status_code == 303


FOREIGN = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none", "Origin": "https://elsewhere.example"},
    {"Sec-Fetch-Site": "", "Origin": "http://testserver"},
    {"Origin": "https://elsewhere.example"},
    {"Origin": "null"},
    {},
)


def test_no_form_of_another_site_is_taken(browser: TestClient, database: Database, there: dict[str, str]):
    del browser.headers["Sec-Fetch-Site"]
    for method, path in routes():
        for headers in FOREIGN if method == "POST" else ():
            answer = browser.post(path.format(**there), headers=headers)
            assert answer.status_code == 400, (path, headers)
            assert "another site" in answer.text
    with database.read() as session:
        assert session.get(File, there["file_id"]) is not None


def test_browsers_without_fetch_metadata_send_their_origin(browser: TestClient):
    del browser.headers["Sec-Fetch-Site"]
    assert browser.post("/sign-out", headers={"Origin": "http://testserver"}).status_code == 303


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("/jobs/x?y=1", "/jobs/x?y=1"),
        (None, "/"),
        ("https://elsewhere.example/", "/"),
        ("//elsewhere.example", "/"),
        ("/\\elsewhere.example", "/"),
        ("javascript:alert(1)", "/"),
        ("jobs", "/"),
        ("/a//b", "/"),
    ],
)
def test_the_sign_in_leads_to_our_own_pages_alone(asked: str | None, path: str):
    assert local_path(asked) == path
