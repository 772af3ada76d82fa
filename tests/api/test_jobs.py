import pytest
from openai import BadRequestError, OpenAI
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import SecretStr
from starlette.testclient import TestClient

from api.main import create_app
from core.errors import TrainingError
from core.resolve import resolve
from core.settings import Settings
from core.specs import DpoSpec, FineTuneSpec
from core.storage import Storage
from models import lifecycle
from models.database import Database
from models.tables import Job
from tests.api.conftest import served
from tests.api.driving import CHAT, claim, error_of, fail_job, submit, train, upload
from tests.worker.stand_in import FACTS


def test_openais_client_drives_a_job_from_upload_to_adapter(client: OpenAI, database: Database, storage: Storage):
    file = client.files.create(file=("train.jsonl", CHAT), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        extra_body={"hone": {"lora": {"r": 8}}},
    )
    raw = client.fine_tuning.jobs.with_raw_response.retrieve(job.id).http_response.json()
    assert FineTuningJob.model_validate(raw, strict=True) == job
    assert (job.status, job.seed, job.metadata, job.error) == ("queued", 7, {"team": "a"}, None)
    assert job.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == "auto"
    assert raw["hone"]["lora"]["r"] == 8
    assert [event.message for event in client.fine_tuning.jobs.list_events(job.id)] == [
        "Files validated, job queued",
        f"Created fine-tuning job: {job.id}",
    ]

    train(database, storage)

    done = client.fine_tuning.jobs.retrieve(job.id)
    assert (done.status, done.trained_tokens) == ("succeeded", 7)
    assert done.finished_at >= done.created_at
    csv = client.files.content(done.result_files[0]).text
    assert csv.startswith("step,train_loss\n")
    assert client.models.retrieve(done.fine_tuned_model).id == done.fine_tuned_model
    for event in client.fine_tuning.jobs.with_raw_response.list_events(job.id).http_response.json()["data"]:
        FineTuningJobEvent.model_validate(event, strict=True)
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    raw = client.fine_tuning.jobs.checkpoints.with_raw_response.list(job.id).http_response.json()["data"][0]
    assert FineTuningJobCheckpoint.model_validate(raw, strict=True) == checkpoint
    assert checkpoint.fine_tuned_model_checkpoint == f"{done.fine_tuned_model}:ckpt-step-2"
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (2, 1.0)
    assert checkpoint.metrics.train_mean_token_accuracy == 0.5

    with pytest.raises(BadRequestError) as refusal:
        client.fine_tuning.jobs.cancel(job.id)
    assert refusal.value.code == "job_ended"


def test_openais_client_cancels_and_walks_the_pages(client: OpenAI):
    file = client.files.create(file=("train.jsonl", CHAT), purpose="fine-tune")
    jobs = [
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, metadata={"n": str(n % 2)})
        for n in range(3)
    ]
    assert client.fine_tuning.jobs.cancel(jobs[0].id).status == "cancelled"
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1)] == [job.id for job in reversed(jobs)]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [jobs[1].id]
    assert client.fine_tuning.jobs.list_events(jobs[0].id, limit=1).data[0].message == "Job cancelled"


def test_a_seed_is_chosen_and_told_when_none_is_given(http: TestClient, database: Database):
    job = submit(http)
    assert 0 <= job["seed"] < 2**31
    with database.read() as session:
        assert session.get_one(Job, job["id"]).spec["seed"] == job["seed"]


def test_the_old_place_of_hyperparameters_still_works(http: TestClient):
    job = submit(http, hyperparameters={"n_epochs": 3}, integrations=[], hone=None)
    assert job["hyperparameters"]["n_epochs"] == 3
    assert job["method"]["supervised"]["hyperparameters"]["n_epochs"] == 3
    both = submit(
        http,
        hyperparameters={"n_epochs": 3},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    )
    assert both["hyperparameters"]["n_epochs"] == 3


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_wandb_is_taken_with_a_key_and_comes_back_as_openai_has_it(
    settings: Settings, key: str, database: Database, method: str
):
    app = create_app(settings.model_copy(update={"wandb_api_key": SecretStr("the-operators")}))
    wandb = {"project": "code", "name": "mine", "entity": "team", "tags": ["a", "b"]}
    with served(app) as url, OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        file = client.files.create(file=("train.jsonl", CHAT if method == "supervised" else PAIRS), purpose="fine-tune")
        asked = {"model": "tiny", "training_file": file.id, "method": {"type": method}}
        job = client.fine_tuning.jobs.create(**asked, integrations=[{"type": "wandb", "wandb": wandb}])
        raw = client.fine_tuning.jobs.with_raw_response.retrieve(job.id).http_response.json()
        few = client.fine_tuning.jobs.create(**asked, integrations=[{"type": "wandb", "wandb": {"project": "code"}}])
        assert client.fine_tuning.jobs.create(**asked).integrations == []
    assert FineTuningJob.model_validate(raw, strict=True) == job
    assert raw["integrations"] == [{"type": "wandb", "wandb": wandb}]
    assert few.integrations[0].wandb.model_dump() == {"project": "code", "name": None, "entity": None, "tags": []}
    with database.read() as session:
        spec = session.get_one(Job, job.id).spec
    assert spec["wandb"] == wandb
    assert "the-operators" not in str(spec) + str(raw)


def test_wandb_without_a_key_is_refused_and_makes_nothing(http: TestClient):
    file_id = upload(http)
    integrations = [{"type": "wandb", "wandb": {"project": "code"}}]
    body = {"model": "tiny", "training_file": file_id, "integrations": integrations}
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400
    told = error_of(answer)
    assert (told["param"], told["code"]) == ("integrations", "wandb_not_configured")
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_each_auto_is_replaced_by_what_was_chosen_with_its_reason(http: TestClient, database: Database):
    asked = submit(http, hyperparameters={"batch_size": 8}, hone={"training": {"warmup_steps": 5}})
    assert asked["hone"]["training"]["learning_rate"] == "auto"
    assert asked["hone"]["reasons"] == {}
    taken = claim(database)
    with database.write() as session:
        job = session.get_one(Job, taken.job_id)
        resolved = resolve(FineTuneSpec.model_validate(job.spec), FACTS)
        lifecycle.write_as(session, taken, resolved=resolved.model_dump(mode="json"), total_steps=39)
    job = http.get(f"/v1/fine_tuning/jobs/{asked['id']}").json()
    assert job["status"] == "running"
    assert job["hyperparameters"] == {"batch_size": 8, "learning_rate_multiplier": 1.0, "n_epochs": 3}
    assert job["hone"]["training"]["learning_rate"] == resolved.learning_rate
    assert job["hone"]["training"]["warmup_steps"] == 5
    assert job["hone"]["data"]["max_seq_length"] == 128
    assert "auto" not in [*job["hone"]["training"].values(), *job["hone"]["data"].values()]
    assert job["hone"]["reasons"] == resolved.reasons
    assert job["hone"]["progress"] == {"step": 0, "total_steps": 39, "attempt": 1}


def test_a_failed_job_says_why(http: TestClient, database: Database):
    job = submit(http)
    fail_job(database, TrainingError("Out of memory. Use a smaller microbatch.", code="out_of_memory"))
    failed = http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "code": "out_of_memory",
        "message": "Out of memory. Use a smaller microbatch.",
        "param": None,
    }
    refused = http.get(f"/v1/fine_tuning/jobs/{job['id']}/adapter")
    assert refused.status_code == 400
    assert "its status is 'failed'" in error_of(refused)["message"]


def test_a_running_job_is_asked_to_stop(http: TestClient, database: Database):
    job = submit(http)
    taken = claim(database)
    answer = http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    with database.write() as session:
        assert lifecycle.heartbeat(session, taken, 60).cancel
        lifecycle.confirm_cancelled(session, taken)
    assert http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["status"] == "cancelled"


def test_openais_client_pauses_and_resumes(client: OpenAI, http: TestClient, database: Database):
    waiting = submit(http)["id"]
    assert client.fine_tuning.jobs.pause(waiting).status == "paused"
    assert client.fine_tuning.jobs.retrieve(waiting).status == "paused"
    assert client.fine_tuning.jobs.resume(waiting).status == "queued"
    taken = claim(database)
    assert client.fine_tuning.jobs.pause(waiting).status == "running"
    with database.write() as session:
        assert lifecycle.heartbeat(session, taken, 60).pause
        lifecycle.hand_back(session, taken, "x", count_attempt=False, max_attempts=3)
    assert client.fine_tuning.jobs.retrieve(waiting).status == "paused"
    assert client.fine_tuning.jobs.cancel(waiting).status == "cancelled"
    for verb in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(BadRequestError) as refusal:
            verb(waiting)
        assert refusal.value.code == "job_ended"
    for verb in ("pause", "resume"):
        assert http.post(f"/v1/fine_tuning/jobs/ftjob-none/{verb}").status_code == 404


def test_metrics_come_in_the_order_of_steps_and_go_on_after_one(http: TestClient, database: Database, storage: Storage):
    job = submit(http)
    train(database, storage)
    url = f"/v1/fine_tuning/jobs/{job['id']}/metrics"
    steps = http.get(url).json()
    assert [(row["step"], row["train_loss"], row["valid_loss"]) for row in steps["data"]] == [
        (1, 2.0, None),
        (2, 1.0, None),
    ]
    assert http.get(f"{url}?limit=1").json()["has_more"] is True
    assert [row["step"] for row in http.get(f"{url}?after_step=1").json()["data"]] == [2]
    assert http.get(f"{url}?after_step=2147483648").status_code == 400


def test_files_must_be_there_and_be_for_training(http: TestClient):
    wrong = upload(http, purpose="user_data")
    for param in ("training_file", "validation_file"):
        body = {"model": "tiny", "training_file": upload(http), param: wrong}
        answer = http.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 400
        told = error_of(answer)
        assert (told["param"], told["code"]) == (param, "wrong_purpose")
    assert http.get("/v1/fine_tuning/jobs").json()["data"] == []


def test_metadata_filters(http: TestClient):
    plain, labelled = submit(http), submit(http, metadata={"a.b c": "1", "k": ""})

    def ids(query: str) -> list[str]:
        return [job["id"] for job in http.get(f"/v1/fine_tuning/jobs?{query}").json()["data"]]

    assert ids("metadata[a.b c]=1&metadata[k]=") == [labelled["id"]]
    assert ids("metadata[k]=x") == []
    assert ids("metadata=null") == [plain["id"]]
    assert http.get('/v1/fine_tuning/jobs?metadata[a"b]=1').status_code == 400


PAIRS = (
    b'{"input": {"messages": [{"role": "user", "content": "q"}]}, '
    b'"preferred_output": [{"role": "assistant", "content": "good"}], '
    b'"non_preferred_output": [{"role": "assistant", "content": "bad"}]}\n'
)


def test_openais_client_asks_for_dpo(client: OpenAI, database: Database):
    file = client.files.create(file=("pairs.jsonl", PAIRS), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=file.id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.5, "n_epochs": 2, "batch_size": "auto"}}},
    )
    raw = client.fine_tuning.jobs.with_raw_response.retrieve(job.id).http_response.json()
    assert FineTuningJob.model_validate(raw, strict=True) == job
    asked = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 2, "beta": 0.5}
    assert raw["method"] == {"type": "dpo", "dpo": {"hyperparameters": asked}}
    taken = claim(database)
    with database.write() as session:
        spec = FineTuneSpec.model_validate(session.get_one(Job, taken.job_id).spec)
        resolved = resolve(spec, FACTS)
        lifecycle.write_as(session, taken, resolved=resolved.model_dump(mode="json"))
        metrics = {"train_loss": 0.6, "reward_margin": 0.25}
        lifecycle.record_step(session, taken, 1, metrics, total_steps=2)
        lifecycle.record_step(session, taken, 1, {"valid_reward_accuracy": 1.0}, total_steps=2)
    assert (spec.dpo.beta, resolved.beta) == (0.5, 0.5)
    assert client.fine_tuning.jobs.retrieve(job.id).method.dpo.hyperparameters.batch_size == resolved.batch_size
    url = f"/fine_tuning/jobs/{job.id}/metrics"
    (row,) = client.get(url, cast_to=object)["data"]
    assert (row["train_loss"], row["rewards"]) == (0.6, {"reward_margin": 0.25, "valid_reward_accuracy": 1.0})


def test_auto_beta_and_a_smaller_rate_are_chosen_for_dpo():
    spec = FineTuneSpec(model="tiny", training_file="f", dpo=DpoSpec())
    chosen, supervised = resolve(spec, FACTS), resolve(spec.model_copy(update={"dpo": None}), FACTS)
    assert (chosen.beta, supervised.beta) == (0.1, None)
    assert chosen.learning_rate == pytest.approx(supervised.learning_rate / 10)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"method": {"type": "reinforcement"}}, "method.type", "does not do 'reinforcement'"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "leave one of them out"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "leave one of them out"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta", "2"),
        ({"method": {"type": "dpo"}}, "training_file", "is for the method 'supervised'"),
        ({"method": {"type": "dpo"}, "hone": {"evaluation": {"keep": "best_valid_loss"}}}, None, "hone.evaluation"),
        ({"method": {"type": "dpo"}, "hone": {"training": {"gpus": 2}}}, None, "trains on one GPU"),
    ],
)
def test_a_method_that_can_not_be_is_refused_by_name(http: TestClient, fields, param, words):
    answer = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": upload(http), **fields})
    told = error_of(answer)
    assert (answer.status_code, words in told["message"]) == (400, True), told
    assert told["param"] == param


def test_pairs_are_refused_where_single_answers_are_wanted(http: TestClient):
    answer = http.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": upload(http, PAIRS)})
    told = error_of(answer)
    assert (answer.status_code, told["code"], told["param"]) == (400, "wrong_format", "training_file")
    assert "is for the method 'dpo'" in told["message"]
