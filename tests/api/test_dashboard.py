"""The dashboard's pages without a browser: who may see them, what they are sent with, and that text stays text."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.exceptions import RequestValidationError
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from api.dashboard import assets, compare, eval_pages, file_pages, job_form, job_pages, page, preflight_pages, sessions
from api.dashboard.job_form import body_of, read_body, sections, values_of
from api.dashboard.page import COOKIE, local_path
from api.dashboard.preflight_pages import histogram_of
from api.dashboard.scores import criteria_of
from api.main import create_app
from core.errors import InvalidRequestError
from core.settings import Settings
from core.specs import FineTuneSpec, HoneSpec, Hyperparameters
from core.storage import Storage
from models import accounts, lifecycle, waiting_line
from models.database import Database
from models.tables import ApiKey, DashboardSession, EvalOutputItem, File, Job
from tests.api.driving import EVAL, ITEMS, claim, evaluate, run_body, submit, train, upload

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
TEMPLATES = Path(page.__file__).with_name("templates")


@pytest.fixture
def browser(settings: Settings, key: str) -> Iterator[TestClient]:
    """A browser that has signed in."""
    with TestClient(create_app(settings), follow_redirects=False, headers=SAME_ORIGIN) as client:
        sign_in(client, key)
        yield client


def sign_in(client: TestClient, key: str) -> None:
    answer = client.post("/sign-in", data={"key": key, "next": "/files"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/files")


@pytest.fixture
def there(http: TestClient, database: Database, storage: Storage) -> dict[str, str]:
    """One of everything, by the names that routes give to ids."""
    job = submit(http, suffix="mine")
    train(database, storage)
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]
    source = {"type": "file_id", "id": upload(http, ITEMS, "evals")}
    run_id = http.post(f"/v1/evals/{eval_id}/runs", json=run_body(source)).json()["id"]
    evaluate(database, storage)
    checkpoint_id = http.get(f"/v1/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"][0]["id"]
    return {
        "job_id": job["id"],
        "file_id": job["training_file"],
        "eval_id": eval_id,
        "run_id": run_id,
        "checkpoint_id": checkpoint_id,
    }


# --- Who may look ----------------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """Method and path of every page."""
    parts = (compare, eval_pages, file_pages, job_form, job_pages, preflight_pages, sessions)
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
        assert client.get(f"/jobs/new?from={there['job_id']}").status_code == 404
        for path in ("/", "/files", "/evals", "/jobs/new"):
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


# --- What pages are sent with ----------------------------------------------------------------------------------------


def test_every_page_is_sent_with_a_policy_that_allows_nothing_from_elsewhere(
    browser: TestClient, there: dict[str, str]
):
    for path in ("/", "/files", f"/jobs/{there['job_id']}", "/jobs/ftjob-none", "/sign-in", "/compare"):
        answer = browser.get(path)
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)


def test_templates_have_no_inline_script_style_or_handler():
    for template in TEMPLATES.glob("*.html"):
        text = template.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text), template.name
        assert "|safe" not in text, template.name


def test_static_files_are_kept_and_change_their_address(browser: TestClient):
    text = browser.get("/sign-in").text
    found = re.findall(r'(?:href|src)="(/static/[^"]+)"', text)
    assert len(found) >= 5
    for address in found:
        answer = browser.get(address)
        assert answer.status_code == 200, address
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert browser.get(f"{assets.PREFIX}/../page.py").status_code == 404
    assert all(
        (assets.FOLDER / url).is_file()
        for url in re.findall(r'url\("([^"]+)"\)', (assets.FOLDER / "app.css").read_text())
    )


def test_a_database_that_is_away_is_a_page_too(browser: TestClient, monkeypatch: pytest.MonkeyPatch):
    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    monkeypatch.setattr("api.dashboard.page.browsing.find", away)
    answer = browser.get("/")
    assert answer.status_code == 503
    assert "database can" in answer.text


# --- Text stays text -------------------------------------------------------------------------------------------------


def test_hostile_text_is_shown_as_text(
    browser: TestClient, http: TestClient, database: Database, there: dict[str, str]
):
    with database.write() as session:
        session.execute(update(File).where(File.id == there["file_id"]).values(filename=HOSTILE))
        session.execute(
            update(Job)
            .where(Job.id == there["job_id"])
            .values(error_code=HOSTILE, error_message=HOSTILE, labels={HOSTILE: HOSTILE})
        )
        lifecycle.add_event(session, there["job_id"], HOSTILE)
        sample = {"output_text": HOSTILE, "code": HOSTILE, "finish_reason": "stop"}
        for row in session.scalars(select(EvalOutputItem).where(EvalOutputItem.run_id == there["run_id"])):
            row.item = {"prompt": HOSTILE, "completion": HOSTILE}
            row.sample = row.base = sample
    project = select(ApiKey).limit(1)
    with database.write() as session:
        key_row = session.scalars(project).one()
        key_row.hint = HOSTILE[:16]
    for path in (
        "/",
        f"/jobs/{there['job_id']}",
        f"/jobs/{there['job_id']}/events",
        f"/jobs/new?file={there['file_id']}",
        "/files",
        f"/files/{there['file_id']}",
        f"/evals/{there['eval_id']}/runs/{there['run_id']}",
    ):
        text = browser.get(path).text
        assert "&lt;script&gt;" in text, path
        assert "<script>" not in text, path
        assert "<img" not in text, path


def test_an_attribute_can_not_be_left(browser: TestClient):
    text = browser.get('/sign-in?next=/"><script>x</script>').text
    assert "<script>x" not in text
    text = browser.post("/jobs", data={"suffix": '"><script>x</script>', "model": "tiny"}).text
    assert "<script>x" not in text


# --- Forms -----------------------------------------------------------------------------------------------------------


def test_the_form_offers_every_option_of_a_job():
    offered = {entry.name for section in sections({}) for entry in section.inputs}
    expected = {f"hyperparameters.{name}" for name in Hyperparameters.model_fields}
    for group, field in HoneSpec.model_fields.items():
        expected |= {f"hone.{group}.{name}" for name in field.annotation.model_fields}  # type: ignore[union-attr]
    assert offered == expected


def test_run_again_asks_for_the_same():
    spec = FineTuneSpec.model_validate(
        {
            "model": "tiny",
            "training_file": "file-1",
            "seed": 7,
            "suffix": "x",
            "hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5},
            "hone": {
                "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"], "dropout": 0.1},
                "quantization": {"type": "none", "double_quantization": False},
                "training": {"learning_rate": 1e-5, "max_steps": 10, "gradient_checkpointing": True},
                "data": {"system_prompt": "true", "max_seq_length": 64},
            },
        }
    )
    asked = read_body(body_of(values_of(spec)))
    assert asked.hone == spec.hone
    assert asked.chosen_hyperparameters() == spec.hyperparameters
    assert (asked.model, asked.training_file, asked.seed, asked.suffix) == ("tiny", "file-1", 7, "x")


def test_an_empty_form_asks_for_defaults():
    body = body_of({"model": "tiny", "training_file": "file-1", "hone.lora.r": " ", "suffix": "", "seed": ""})
    assert body == {"model": "tiny", "training_file": "file-1"}


@pytest.mark.parametrize("text", ["[" * 5000, "NaN", "1e999", '{"a": 1}', "half \ud800", "nul \0", "9" * 40])
def test_nonsense_in_a_form_is_refused(text: str):
    values = {"model": "tiny", "training_file": "file-1", "hone.lora.r": text, "hone.data.system_prompt": text}
    with pytest.raises((RequestValidationError, InvalidRequestError)):
        read_body(body_of(values))


def test_a_form_makes_a_job_and_a_refusal_keeps_what_was_typed(browser: TestClient, http: TestClient):
    file_id = upload(http)
    form = {"model": "tiny", "training_file": file_id, "suffix": "typed", "hone.lora.r": "4000"}
    answer = browser.post("/jobs", data=form)
    assert answer.status_code == 400
    assert 'value="typed"' in answer.text
    assert re.search(r'name="hone\.lora\.r" value="4000"[^>]*aria-invalid="true"', answer.text)
    answer = browser.post("/jobs", data={**form, "hone.lora.r": "4"})
    assert answer.status_code == 303
    job = http.get(f"/v1/fine_tuning/jobs/{answer.headers['location'].removeprefix('/jobs/')}").json()
    assert job["hone"]["lora"]["r"] == 4
    assert job["training_file"] == file_id


def test_what_can_be_asked_of_a_job(browser: TestClient, http: TestClient):
    job_id = submit(http)["id"]
    for action, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        answer = browser.post(f"/jobs/{job_id}/{action}")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
        assert http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == status
    answer = browser.post(f"/jobs/{job_id}/cancel")
    assert answer.status_code == 400
    assert "already been cancelled" in answer.text


def test_files_come_and_go(browser: TestClient, http: TestClient):
    line = json.dumps({"prompt": "p", "completion": "c"}).encode() + b"\n"
    answer = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", line)})
    assert answer.status_code == 303
    assert browser.get(f"{answer.headers['location']}/content").content == line
    broken = b"\n".join([line.strip(), b"{", b"[]", b'{"prompt": "p", "completion": 1}'])
    refused = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("b.jsonl", broken)})
    assert refused.status_code == 400
    rows = re.findall(r'<tr><td class="num">(\d+)</td>', refused.text)
    assert rows == ["2", "3", "4"]
    assert browser.post(f"{answer.headers['location']}/delete").headers["location"] == "/files"
    assert http.get("/v1/files").json()["data"] == []


def test_a_file_over_the_limit_is_refused_before_it_is_read(browser: TestClient):
    answer = browser.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", b"x" * 300_000)})
    assert answer.status_code == 413


# --- Lists, the queue, figures ---------------------------------------------------------------------------------------


def test_a_list_goes_on_where_it_stopped(browser: TestClient, http: TestClient):
    file_id = upload(http)
    ids = [submit(http, training_file=file_id)["id"] for _ in range(23)]
    first = browser.get("/").text
    assert [job_id for job_id in reversed(ids) if f"/jobs/{job_id}" in first] == ids[:2:-1]
    older = re.search(r'href="(/jobs\?show=all&amp;after=[^"]+)"', first)
    assert older is not None
    second = browser.get(older[1].replace("&amp;", "&")).text
    assert [job_id for job_id in ids if f"/jobs/{job_id}" in second] == ids[:3]
    assert "No job is running" in browser.get("/jobs?show=running").text


def test_places_in_the_queue(http: TestClient, database: Database):
    file_id = upload(http)
    ids = [submit(http, training_file=file_id)["id"] for _ in range(4)]
    claim(database)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == ids[3]).values(priority=-1))
        assert waiting_line.places(session, [*ids, "ftjob-none"]) == {ids[3]: 1, ids[1]: 2, ids[2]: 3}
        assert waiting_line.places(session, []) == {}


def test_the_histogram_marks_what_is_cut():
    lengths = {"unit": "tokens", "histogram": {"edges": [0, 10, 20, 31], "counts": [4, 2, 1]}}
    drawn = histogram_of({"lengths": lengths, "cut": {"max_seq_length": 15, "samples": 2}})
    assert [one.cut for one in drawn.bins] == [False, False, True]
    assert [round(one.height) for one in drawn.bins] == [100, 50, 25]
    assert drawn.cut_at == pytest.approx(960 / 3 * 1.5)
    assert drawn.last == 30
    assert histogram_of({"lengths": lengths, "cut": None}).cut_at is None


def test_scores_are_read_with_their_intervals_and_without():
    side = {
        "codebleu": 0.5,
        "ngram": 0.25,
        "dataflow": None,
        "passed": 3,
        "intervals": {"codebleu": [0.4, 0.6], "ngram": None},
    }
    entry = {
        "name": "n",
        "type": "code_bleu",
        "model": side,
        "base": {"codebleu": 0.75},
        "verdict": {"sentence": "Worse."},
    }
    [criterion] = criteria_of({"criteria": [entry]})
    assert criterion.headline is not None
    assert criterion.headline.tuned is not None
    assert (criterion.headline.tuned.low, criterion.headline.tuned.high, criterion.headline.change) == (0.4, 0.6, -0.25)
    assert [line.label for line in criterion.lines] == ["CodeBLEU", "n-gram match"]
    assert criterion.verdict == "Worse."
    assert criteria_of(None) == []
    plain = {"name": "n", "type": "string_check", "model": {"score": 1.0}, "base": None}
    [criterion] = criteria_of({"criteria": [plain]})
    assert [line.label for line in criterion.lines] == ["string check"]
