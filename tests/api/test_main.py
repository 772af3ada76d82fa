import subprocess
import sys

from starlette.testclient import TestClient


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
