import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
from starlette.testclient import TestClient

from api.main import create_app
from models.database import Database
from tests.api.conftest import served, small_settings
from tests.api.driving import CHAT
from tests.conftest import make_key


def test_importing_the_api_imports_neither_torch_nor_transformers():
    code = (
        "import sys, api.main\n"
        "heavy = {'torch', 'transformers', 'peft', 'trl', 'bitsandbytes', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_documentation_names_every_route_of_openais_client(http: TestClient):
    paths = http.get("/openapi.json").json()["paths"]
    assert {
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/fine_tuning/jobs",
        "/v1/fine_tuning/jobs/{job_id}",
        "/v1/fine_tuning/jobs/{job_id}/cancel",
        "/v1/fine_tuning/jobs/{job_id}/events",
        "/v1/fine_tuning/jobs/{job_id}/checkpoints",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/evals",
        "/v1/evals/{eval_id}",
        "/v1/evals/{eval_id}/runs",
        "/v1/evals/{eval_id}/runs/{run_id}",
        "/v1/evals/{eval_id}/runs/{run_id}/cancel",
        "/v1/evals/{eval_id}/runs/{run_id}/output_items",
        "/v1/evals/{eval_id}/runs/{run_id}/output_items/{item_id}",
    } <= set(paths)
    assert http.get("/docs").status_code == 200


def test_every_route_but_health_asks_for_a_key(http: TestClient):
    # Walks the documentation, so that a route added later can't be forgotten.
    asked = 0
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        if path in ("/healthz", "/readyz"):
            continue
        for method in methods:
            answer = http.request(method.upper(), path, headers={"Authorization": "Bearer hone-wrong"}, json={})
            assert answer.status_code == 401, (method, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert http.request(method.upper(), path, headers={"Authorization": ""}, json={}).status_code == 401
            asked += 1
    assert asked >= 27


def test_sixty_clients_at_once_do_not_starve_each_other_of_threads(sqlite_url: str, tmp_path: Path):
    # More than the 40 threads and the 15 connections. A request that needed a second thread while it holds SQLite's
    # write lock would wait for those that wait for it, until the lock's timeout of 30 s.
    database = Database(sqlite_url)
    key = make_key(database)
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx2.Limits(max_connections=60)
    with (
        served(create_app(small_settings(tmp_path, sqlite_url))) as url,
        httpx2.Client(base_url=f"{url}/v1", headers=headers, limits=limits, timeout=25) as http,
        ThreadPoolExecutor(60) as pool,
    ):
        made = http.post("/files", data={"purpose": "fine-tune"}, files={"file": ("a", CHAT)}).json()
        body = {"model": "tiny", "training_file": made["id"]}

        def ask(number: int) -> int:
            write = number % 2
            answer = http.post("/fine_tuning/jobs", json=body) if write else http.get("/fine_tuning/jobs")
            return answer.status_code

        assert set(pool.map(ask, range(180))) == {200}
    database.dispose()
