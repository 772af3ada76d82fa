"""POST /v1/fine_tuning/jobs/estimate, and jobs that no worker could run."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from core.base_card import card_key
from core.catalogue import load_catalogue
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.tables import Job, StepMetric, Worker
from tests.api.driving import error_of, submit, train, upload
from tests.core.test_estimate import LLAMA, card
from tests.e2e.service import train_lines
from tests.waiting import wait_for

GPU = {"device": "cuda", "name": "A card", "memory": 24 * 10**9, "gpus": 1, "fast_bfloat16": True}


def tokenizer() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"</s>": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str()


@pytest.fixture
def known(settings: Settings, storage: Storage, http: TestClient) -> None:
    """The card of `tiny`, which has Llama-2-7B's shape here, as a worker has told it."""
    entry = load_catalogue(settings)["tiny"]
    made = card().model_copy(update={"tokenizer": tokenizer(), "eos_token_id": 0, "bos_token": None, "begin_id": None})
    storage.put(card_key("tiny", entry), [made.model_dump_json().encode()])


def announce(database: Database, owner: str = "w", **fields: Any) -> None:
    with database.write() as session:
        session.add(Worker(owner=owner, **(GPU | fields)))


def body(http: TestClient, **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "training_file": upload(http, train_lines(60)), **fields}


def test_an_estimate_takes_creates_body_and_writes_nothing(http: TestClient, database: Database, known):
    announce(database)
    announce(database, "second")
    asked = body(http, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    answer = http.post("/v1/fine_tuning/jobs/estimate", json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["parameters"]["total"] == 6_738_415_616 + 39_976_960
    assert found["fits"] is True
    assert [(device["name"], device["workers"]) for device in found["devices"]] == [("A card", 2)]
    assert found["hyperparameters"]["n_epochs"] == 2
    assert found["data"]["samples"] == 60
    assert found["data"]["basis"] == "preflight", "a file of so few samples is read whole"
    assert found["time"]["basis"] == "prior"
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert http.post("/v1/fine_tuning/jobs", json=asked).status_code == 200


def test_create_refuses_what_no_worker_could_run_and_says_what_would_fit(
    http: TestClient, database: Database, storage: Storage, known
):
    announce(database, memory=12 * 10**9)
    asked = body(http, hone={"quantization": {"type": "none"}})
    refused = http.post("/v1/fine_tuning/jobs", json=asked)
    assert refused.status_code == 400
    told = error_of(refused)
    assert (told["code"], told["param"]) == ("does_not_fit", "hone.quantization.type")
    assert "A card" in told["message"]
    assert "set hone.quantization.type to nf4" in told["message"]
    assert told["hone"]["estimate"]["fits"] is False
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert http.post("/v1/fine_tuning/jobs", json={**asked, "hone": None}).status_code == 200
    announce(database, "larger", name="A larger card", memory=40 * 10**9)
    assert http.post("/v1/fine_tuning/jobs", json=asked).status_code == 200


def test_without_workers_or_the_models_card_nothing_is_refused(http: TestClient, database: Database):
    asked = body(http)
    found = http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()
    assert (found["fits"], found["memory"], found["data"]["basis"]) == (None, None, "characters")
    announce(database, memory=10**9)
    assert http.post("/v1/fine_tuning/jobs", json=asked).status_code == 200


def test_a_preflight_makes_the_lengths_exact(http: TestClient, database: Database, known):
    asked = body(http) | {"training_file": upload(http, train_lines(900))}
    assert http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()["data"]["basis"] == "sample"
    url = f"/v1/files/{asked['training_file']}/preflight?model=tiny"
    wait_for(lambda: http.get(url).status_code == 200, 180)
    report = http.get(url).json()["report"]
    found = http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()
    assert found["data"]["basis"] == "preflight"
    assert found["data"]["longest_tokens"] == report["lengths"]["longest"]
    assert found["data"]["max_seq_length"] == report["cut"]["max_seq_length"]


def test_finished_jobs_make_time_a_measurement(http: TestClient, database: Database, storage: Storage, known):
    announce(database)
    asked = body(http)
    resolved = http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()
    submit(http, **asked)
    taken = train(database, storage)
    with database.write() as session:
        job = session.get_one(Job, taken.job_id)
        job.resolved = _resolved(resolved)
        job.trained_tokens = 9000
        job.report = {
            "hardware": {"device": "cuda", "gpu": "A card", "processor": "x"},
            "dataset": {"tokens_per_epoch": 3000, "train_samples": 59, "validation_samples": 0},
            "run": {"seconds": 20.0},
        }
        for row in session.query(StepMetric).filter_by(job_id=job.id):
            row.tokens_per_second = 900.0
    found = http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()["time"]
    assert (found["basis"], found["jobs"]) == ("measured", 1)
    assert found["tokens_per_second"]["low"] < 900 < found["tokens_per_second"]["high"]
    work = resolved["trained_tokens"] / 900 + 10
    assert found["low_seconds"] < work * 1.2
    assert found["high_seconds"] > work * 0.8

    with database.write() as session:  # as a version without plans had stored it
        session.get_one(Job, taken.job_id).resolved = {"batch_size": 4}
    assert http.post("/v1/fine_tuning/jobs/estimate", json=asked).json()["time"]["basis"] != "measured"


def test_a_base_is_loaded_where_the_only_worker_has_just_trained_on_it(
    http: TestClient, database: Database, storage: Storage, known
):
    announce(database)
    asked = body(http)

    def loaded(**fields: Any) -> bool | None:
        return http.post("/v1/fine_tuning/jobs/estimate", json=asked | fields).json()["time"]["base_loaded"]

    assert loaded() is False, "nothing was trained yet"
    submit(http, **asked)
    taken = train(database, storage)
    assert loaded() is True
    assert loaded(hone={"quantization": {"type": "fp4"}}) is False, "another base in memory"
    announce(database, "second")
    assert loaded() is None, "the other worker may take it"
    with database.write() as session:
        session.get_one(Job, taken.job_id).finished_at -= 3600
    assert loaded() is False, "it was idle for too long"


def _resolved(estimate: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, as the worker would have stored them."""
    from core.estimate import Data, settle
    from core.estimate import Worker as Machine
    from core.preflight import Profile
    from core.prompts import Encoded
    from core.shape import read_shape
    from core.specs import FineTuneSpec

    profile = Profile()
    profile.add(Encoded([1] * 50, [False] * 10 + [True] * 40))
    spec = FineTuneSpec(model="tiny", training_file="file-1")
    machine = Machine("A card", "cuda", GPU["memory"], True)
    made = settle(spec, Data(60, profile, "preflight"), card(), read_shape(LLAMA), machine)
    return made.model_dump(mode="json")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "unknown"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"hone": {"lora": {"r": 0}}}, "hone.lora.r"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_create_refuses_an_estimate_refuses(http: TestClient, fields: dict[str, Any], param: str):
    answer = http.post("/v1/fine_tuning/jobs/estimate", json=body(http) | fields)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
