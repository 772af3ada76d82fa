"""What pages are sent with, that text stays text, and lists and figures."""

import re
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from api.dashboard import assets, page
from api.dashboard.preflight_pages import histogram_of
from api.dashboard.scores import Change, criteria_of
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.tables import ApiKey, EvalOutputItem, File, Job
from tests.api.driving import EVAL, ITEMS, evaluate, run_body, submit, train, upload

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
TEMPLATES = Path(page.__file__).with_name("templates")


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: what these tests look at is the same on PostgreSQL."""
    return sqlite_url


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
    assert (criterion.headline.tuned.low, criterion.headline.tuned.high) == (0.4, 0.6)
    assert criterion.headline.change == Change(-0.25, None, None)
    assert criterion.headline.change.direction == "soft"
    assert criterion.method is None
    assert [line.label for line in criterion.lines] == ["CodeBLEU", "n-gram match"]
    assert criterion.verdict == "Worse."
    assert criteria_of(None) == []
    plain = {"name": "n", "type": "string_check", "model": {"score": 1.0}, "base": None}
    [criterion] = criteria_of({"criteria": [plain]})
    assert [line.label for line in criterion.lines] == ["string check"]


@pytest.mark.parametrize(
    ("interval", "direction"),
    [([0.01, 0.2], "good"), ([-0.2, -0.01], "bad"), ([-0.01, 0.2], "soft"), ([0.0, 0.2], "soft"), (None, "soft")],
)
def test_a_change_is_good_or_bad_only_if_its_whole_interval_is(interval: list[float] | None, direction: str):
    difference = {"codebleu": {"mean": 0.09, "interval": interval, "samples": 12}}
    sides = {"model": {"codebleu": 0.5, "intervals": {"codebleu": [0.4, 0.6]}}, "base": {"codebleu": 0.4}}
    bootstrap = {"confidence": 0.95, "resamples": 2000, "seed": 42, "fewest_samples": 10}
    entry = {"name": "n", "type": "code_bleu", **sides, "difference": difference}
    [criterion] = criteria_of({"criteria": [entry], "bootstrap": bootstrap})
    assert criterion.headline is not None
    assert criterion.headline.change is not None
    assert (criterion.headline.change.value, criterion.headline.change.direction) == (0.09, direction)
    assert criterion.method is not None
    assert "95\u00a0% intervals: 2,000 draws of the items, seed 42" in criterion.method


def test_compared_scores_are_of_the_same_questions_where_there_are_some(
    browser: TestClient, http: TestClient, database: Database, storage: Storage
):
    jobs = [submit(http, suffix=name)["id"] for name in ("a", "b")]
    for _ in jobs:
        train(database, storage)
    models = [http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["fine_tuned_model"] for job_id in jobs]
    page_of = "/compare?" + "&".join(f"job={job_id}" for job_id in jobs)
    assert "none yet" not in browser.get(page_of).text
    eval_id = http.post("/v1/evals", json=EVAL).json()["id"]

    def run(model: str, content: bytes, name: str) -> str:
        body = run_body({"type": "file_id", "id": upload(http, content, "evals")}, name=name)
        body["data_source"]["model"] = model
        run_id = str(http.post(f"/v1/evals/{eval_id}/runs", json=body).json()["id"])
        evaluate(database, storage)
        return run_id

    def shown() -> list[str]:
        return re.findall(r"/evals/[^/\"]+/runs/([^/\"]+)\"", browser.get(page_of).text)

    first = run(models[0], ITEMS, "first")
    assert shown() == [first]
    assert "none yet" in browser.get(page_of).text
    other = run(models[1], ITEMS.splitlines(keepends=True)[0], "other")
    assert shown() == [first, other]
    assert browser.get(page_of).text.count("other questions or judge") == 1
    # The same questions in a file of their own; what is newer but alone does not count.
    same = run(models[1], ITEMS, "same")
    run(models[0], ITEMS.splitlines(keepends=True)[1], "alone")
    assert shown() == [first, same]
    assert "other questions" not in browser.get(page_of).text
