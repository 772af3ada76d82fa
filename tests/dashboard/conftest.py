"""The dashboard without a browser: the API's fixtures, a client that has signed in, and something to look at."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.main import create_app
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.tables import WebhookDelivery
from tests.api import conftest as api
from tests.api.driving import EVAL, ITEMS, evaluate, failed_import, run_body, submit, train, upload
from tests.dashboard.signing_in import SAME_ORIGIN, sign_in

# Fixtures are found by the name that they have in this module.
http, settings = api.http, api.settings


@pytest.fixture
def browser(settings: Settings, key: str) -> Iterator[TestClient]:
    """A browser that has signed in."""
    with TestClient(create_app(settings), follow_redirects=False, headers=SAME_ORIGIN) as client:
        sign_in(client, key)
        yield client


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
    endpoint = {"name": "ours", "url": "https://example.com/hook", "event_types": ["eval.run.succeeded"]}
    endpoint_id = http.post("/v1/webhook_endpoints", json=endpoint).json()["id"]
    with database.write() as session:
        sent = {"event_id": "evt_1", "event_type": "eval.run.succeeded", "body": "{}", "status": "delivered"}
        tries = {"tries": [{"at": 1.0, "seconds": 0.1, "status_code": 204, "error": None}]}
        delivery = WebhookDelivery(endpoint_id=endpoint_id, tries_left=7, next_try_at=None, log=tries, **sent)
        session.add(delivery)
        session.flush()
        delivery_id = delivery.id
    return {
        "endpoint_id": endpoint_id,
        "delivery_id": delivery_id,
        "job_id": job["id"],
        "import_id": failed_import(database),
        "file_id": job["training_file"],
        "eval_id": eval_id,
        "run_id": run_id,
        "checkpoint_id": checkpoint_id,
    }
