"""`Idempotency-Key`: sent twice is done once, for everything that a POST makes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx2 as httpx
import pytest
from openai import BadRequestError, OpenAI
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from models import idempotency
from models.base import Base
from models.database import Database
from models.tables import Eval, EvalRun, File, IdempotencyKey, Job, OutboxMessage, WebhookEndpoint
from tests.api.conftest import Shared
from tests.api.driving import CHAT, EVAL, error_of, run_body, submit, upload

THREADS = 100


def count(database: Database, table: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_hundred_threads_with_one_key_make_one_job(base_url: str, key: str, database: Database):
    limits = httpx.Limits(max_connections=THREADS)
    with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60, limits=limits) as http:
        training_file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("t.jsonl", CHAT)})
        body = {"model": "tiny", "training_file": training_file.json()["id"]}
        together = Barrier(THREADS)

        def send(_: int) -> httpx.Response:
            together.wait(30)
            return http.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "one"})

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(send, range(THREADS)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert count(database, Job) == count(database, OutboxMessage) == 1


Make = Callable[[TestClient, dict[str, str]], Any]


def _file(http: TestClient, headers: dict[str, str]) -> Any:
    form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("t.jsonl", CHAT)}}
    return http.post("/v1/files", headers=headers, **form)


def _eval(http: TestClient, headers: dict[str, str]) -> Any:
    return http.post("/v1/evals", json=EVAL, headers=headers)


def _endpoint(http: TestClient, headers: dict[str, str]) -> Any:
    body = {"name": "hook", "url": "https://receiver.invalid/", "event_types": ["fine_tuning.job.failed"]}
    return http.post("/v1/webhook_endpoints", json=body, headers=headers)


def _run(http: TestClient, headers: dict[str, str]) -> Any:
    eval_id = _eval(http, {"Idempotency-Key": "the eval"}).json()["id"]
    source = {"type": "file_content", "content": [{"item": {"prompt": "p", "completion": "c"}}]}
    return http.post(f"/v1/evals/{eval_id}/runs", json=run_body(source), headers=headers)


@pytest.mark.parametrize(
    ("make", "table"), [(_file, File), (_eval, Eval), (_endpoint, WebhookEndpoint), (_run, EvalRun)]
)
def test_whatever_is_made_is_made_once(shared: Shared, make: Make, table: type[Base]):
    headers = {"Idempotency-Key": f"make {table.__tablename__}"}
    first = make(shared.http, headers)
    made = count(shared.database, table), shared.made()
    second = make(shared.http, headers)
    assert first.status_code == second.status_code < 300, first.text
    assert second.text == first.text
    assert second.headers["idempotent-replayed"] == "true"
    assert (count(shared.database, table), shared.made()) == made
    assert make(shared.http, {}).json()["id"] != first.json()["id"]


def test_another_body_or_route_under_the_same_key_is_refused_and_not_tried_again(client: OpenAI, database: Database):
    patient = client.with_options(max_retries=2)
    file = patient.files.create(file=("t.jsonl", CHAT), purpose="fine-tune", extra_headers={"Idempotency-Key": "f"})
    headers = {"Idempotency-Key": "j"}
    patient.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=1, extra_headers=headers)
    with pytest.raises(BadRequestError) as refused:
        patient.fine_tuning.jobs.create(model="tiny", training_file=file.id, seed=2, extra_headers=headers)
    assert (refused.value.code, refused.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    with pytest.raises(BadRequestError, match="was used for another request"):
        patient.files.create(file=("t.jsonl", CHAT * 2), purpose="fine-tune", extra_headers={"Idempotency-Key": "f"})
    with pytest.raises(BadRequestError, match="was used for another request"):
        patient.files.create(file=("t.jsonl", CHAT), purpose="fine-tune", extra_headers=headers)
    assert (count(database, Job), count(database, File)) == (1, 1)


def test_what_a_refusal_made_is_nothing_so_its_key_is_free(shared: Shared):
    before = count(shared.database, IdempotencyKey)
    headers = {"Idempotency-Key": "refused"}
    for body in ({"model": "tiny", "training_file": "file-none"}, {"model": "tiny"}):
        assert shared.http.post("/v1/fine_tuning/jobs", json=body, headers=headers).status_code == 400
    assert count(shared.database, IdempotencyKey) == before
    body = {"model": "tiny", "training_file": upload(shared.http)}
    assert shared.http.post("/v1/fine_tuning/jobs", json=body, headers=headers).status_code == 200


def test_a_cancel_that_is_sent_again_is_answered_again(http: TestClient):
    url = f"/v1/fine_tuning/jobs/{submit(http)['id']}/cancel"
    answers = [http.post(url, headers={"Idempotency-Key": "c"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert http.post(url).status_code == 400


def test_keys_are_each_projects_own(http: TestClient, other_key: str):
    mine = _eval(http, {"Idempotency-Key": "same"})
    theirs = _eval(http, {"Idempotency-Key": "same", "Authorization": f"Bearer {other_key}"})
    assert theirs.status_code == 201
    assert theirs.json()["id"] != mine.json()["id"]


@pytest.mark.parametrize("name", ["", "x" * 256, "sch\xf6n"])
def test_a_key_that_is_none_is_refused(shared: Shared, name: str):
    answer = shared.http.post("/v1/evals", json=EVAL, headers={"Idempotency-Key": name.encode("latin-1")})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_idempotency_key"


def test_the_order_of_fields_does_not_matter(shared: Shared):
    first = shared.http.post("/v1/evals", json=EVAL, headers={"Idempotency-Key": "order"})
    second = shared.http.post("/v1/evals", json=dict(reversed(EVAL.items())), headers={"Idempotency-Key": "order"})
    assert first.text == second.text


def test_keys_are_kept_for_a_day(http: TestClient, database: Database):
    def age(seconds: float) -> None:
        with database.write() as session:
            session.execute(update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - seconds))
            idempotency.sweep(session)

    _eval(http, {"Idempotency-Key": "old"})
    age(idempotency.KEEP_SECONDS - 600)
    assert count(database, IdempotencyKey) == 1
    age(601)
    assert count(database, IdempotencyKey) == 0


def test_a_commit_that_fails_leaves_neither_job_nor_key(http: TestClient, database: Database, monkeypatch: Any):
    body = {"model": "tiny", "training_file": upload(http)}

    def die(*_: object) -> None:
        raise RuntimeError("killed between the job and the commit")

    with monkeypatch.context() as patch:
        patch.setattr(idempotency, "keep", die)
        answer = http.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 500
    assert count(database, Job) == count(database, IdempotencyKey) == 0
    assert http.post("/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": "k"}).status_code == 200
