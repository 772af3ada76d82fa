from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from api.main import create_app
from models.database import Database
from tests.api.conftest import Shared, small_settings
from tests.api.driving import CHAT, error_of, upload
from tests.conftest import _execute, make_key

TWO_EPOCHS = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}


def test_an_unknown_url_and_a_wrong_method_have_the_one_shape(http: TestClient):
    unknown, wrong = http.get("/v1/nothing"), http.put("/v1/files")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "unknown_url")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]


def test_a_database_that_is_away_is_a_503_that_asks_to_come_back(http: TestClient, database: Database):
    with database.write() as session:  # as when the schema is not there
        session.execute(text("DROP TABLE api_keys" if database.is_sqlite else "DROP TABLE api_keys CASCADE"))
    answer = http.get("/v1/files")
    if database.is_sqlite:  # "no such table" is an OperationalError there alone
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert error_of(answer)["code"] == "database_unavailable"
    else:
        assert answer.status_code == 500
        assert error_of(answer)["code"] == "internal_error"
    assert "api_keys" not in answer.text


def test_a_postgresql_server_that_goes_away_is_a_503(postgres_url: str, tmp_path: Path):
    url = make_url(postgres_url)
    name, server = url.database, url.set(database="postgres").render_as_string(False)
    database = Database(postgres_url)
    key = make_key(database)
    database.dispose()
    app = create_app(small_settings(tmp_path, postgres_url))
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as http:
        assert http.get("/v1/files").status_code == 200
        _execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        _execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            answer = http.get("/v1/files")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            assert error_of(answer)["code"] == "database_unavailable"
            assert http.get("/readyz").status_code == 503
            assert http.get("/healthz").status_code == 200
        finally:
            _execute(server, f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        assert http.get("/v1/files").status_code == 200


def test_storage_that_goes_away_is_a_503_and_no_row_stays(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"ENDPOINT": "http://127.0.0.1:1", "ALLOW_HTTP": "true", "REGION": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    database = Database(sqlite_url)
    key = make_key(database)
    settings = small_settings(tmp_path, sqlite_url).model_copy(update={"storage_url": "s3://bucket"})
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as http:
        answer = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("a", CHAT)})
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "storage_unavailable"
        assert answer.headers["retry-after"] == "5"
        assert http.get("/v1/files").json()["data"] == []
        assert http.get("/readyz").json()["checks"]["storage"] == "does not answer"
    database.dispose()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"foo": 1}, "foo", "Known here: model, training_file"),
        ({"hone": {"lora": {"rank": 8}}}, "hone.lora.rank", "Known here: r, alpha, dropout, target_modules"),
        ({"hone": {"lora": {"r": 0}}}, "hone.lora.r", "greater than or equal to 1"),
        ({"hone": {"training": {"learning_rate": 2}}}, "hone.training.learning_rate", "'auto' or"),
        ({"hone": {"training": {"optimizer": "sgd"}}}, "hone.training.optimizer", "adamw_torch"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "less than or equal to 50. You sent 51"),
        ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 0}}}},
         "method.supervised.hyperparameters.batch_size", "greater than or equal to 1"),
        ({"method": {"type": "reinforcement"}}, "method.type", "does not do 'reinforcement'"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "set HONE_WANDB_API_KEY"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations[0].type", "'wandb'"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations[0].wandb.project", "missing"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "/"}}]}, "integrations[0].wandb.project", "pattern"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 2}, "integrations", "at most 1"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**31}, "seed", "less than or equal to 2147483647"),
        ({"suffix": "a:b"}, "suffix", "pattern"),
        ({"suffix": "x" * 65}, "suffix", "at most 64"),
        ({"metadata": {"k": 1}}, "metadata.k", "string"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k", "at most 512"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
        ({"model": "gpt-4"}, "model", "Use one of: org/base, tiny"),
        ({"model": 5}, "model", "string"),
        ({"training_file": "file-none"}, "training_file", "Upload it with POST /v1/files"),
        ({"validation_file": "file-none"}, "validation_file", "no file 'file-none'"),
        ({"hyperparameters": {"seed": 1}}, "hyperparameters.seed", "Known here: batch_size"),
        ({"hyperparameters": {"n_epochs": 1}, "method": TWO_EPOCHS}, None, "differ"),
    ],
)  # fmt: skip
def test_a_bad_field_is_a_400_that_names_it_and_says_what_is_allowed(shared: Shared, fields, param, words):
    file_id = upload(shared.http)
    answer = shared.http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file_id, **fields})

    assert answer.status_code == 400
    told = error_of(answer)
    assert told["type"] == "invalid_request_error"
    assert told["param"] == param
    assert words in told["message"]
    assert shared.made()["jobs"] == 0


@pytest.mark.parametrize(
    ("path", "content_type", "wanted"),
    [
        ("/v1/fine_tuning/jobs", "text/plain", "application/json"),
        ("/v1/evals", "application/x-www-form-urlencoded", "application/json"),
        ("/v1/uploads", "multipart/form-data; boundary=x", "application/json"),
        ("/v1/files", "application/json", "multipart/form-data"),
        ("/v1/uploads/upload_x/parts", "application/json", "multipart/form-data"),
    ],
)
def test_a_body_of_another_type_is_a_415_that_names_both(shared: Shared, path: str, content_type: str, wanted: str):
    answer = shared.http.post(path, content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 415
    told = error_of(answer)
    assert (told["code"], told["param"]) == ("unsupported_media_type", "Content-Type")
    assert f"'{content_type.partition(';')[0]}'" in told["message"]
    assert f"'{wanted}'" in told["message"]


def test_json_may_be_named_in_any_way_that_means_it(shared: Shared):
    for content_type in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        answer = shared.http.post("/v1/evals", content=b"{}", headers={"content-type": content_type})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "missing_field")


def test_a_422_of_a_library_has_the_one_shape_too(shared: Shared):
    def unprocessable() -> None:
        raise HTTPException(422, "not now")

    app: Any = shared.http.app
    app.add_api_route("/v1/unprocessable", unprocessable)
    answer = shared.http.get("/v1/unprocessable")
    assert answer.status_code == 422
    assert error_of(answer) == {"message": "not now", "type": "invalid_request_error", "param": None, "code": None}
