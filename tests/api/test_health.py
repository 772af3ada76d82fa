from sqlalchemy import text
from starlette.testclient import TestClient

from api.main import create_app
from core.settings import Settings
from models.database import Database


def test_a_broker_that_is_away_is_degraded_but_ready(http: TestClient):
    answer = http.get("/readyz", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.json()["status"] == "degraded"
    assert answer.json()["checks"]["broker"].startswith("does not answer")
    assert http.get("/healthz").json() == {"status": "ok"}


def test_all_parts_answer(settings: Settings, valkey_url: str):
    with TestClient(create_app(settings.model_copy(update={"redis_url": valkey_url}))) as http:
        checks = dict.fromkeys(("database", "schema", "storage", "broker"), "ok")
        assert http.get("/readyz").json() == {"status": "ready", "checks": checks}


def test_a_schema_that_is_behind_is_told_with_what_to_do(http: TestClient, database: Database):
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    answer = http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unavailable"
    assert "run the migrations" in answer.json()["checks"]["schema"]
