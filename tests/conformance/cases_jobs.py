"""Fine-tuning jobs with their events and checkpoints, permissions, graders, and models."""

import csv
import io
from typing import Any

from tests.conformance.cases_files import CHAT
from tests.conformance.speaking import Speaker

PAIRS = (
    b'{"input": {"messages": [{"role": "user", "content": "hi"}]}, '
    b'"preferred_output": [{"role": "assistant", "content": "hello"}], '
    b'"non_preferred_output": [{"role": "assistant", "content": "go away"}]}\n'
) * 4
AUTO = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"}
FIXED = {"batch_size": 2, "learning_rate_multiplier": 0.5, "n_epochs": 2}
#: OpenAI's columns, the first of our result file.
COLUMNS = ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
ENDED = ("succeeded", "failed", "cancelled")


async def _file(api: Speaker, content: bytes = CHAT) -> str:
    file = await api.call("files.create", file=("train.jsonl", content), purpose="fine-tune")
    return str(file.id)


async def trained(api: Speaker, **given: Any) -> Any:
    """A job that has succeeded."""
    job = await api.call("fine_tuning.jobs.create", model="tiny", training_file=await _file(api), **given)
    done = await api.until(lambda job: job.status in ENDED, "fine_tuning.jobs.retrieve", fine_tuning_job_id=job.id)
    assert done.status == "succeeded", done
    return done


async def jobs(api: Speaker) -> None:
    """From its submission with every field to its results, events and checkpoints."""
    validation = await _file(api)
    job = await trained(
        api,
        validation_file=validation,
        method={"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        extra_body={"hone": {"lora": {"r": 8}}},
    )
    assert job.fine_tuned_model.startswith("ft:tiny:")
    assert ":mine:" in job.fine_tuned_model
    assert (job.seed, job.metadata, job.error, job.estimated_finish) == (7, {"team": "a"}, None, None)
    assert (job.validation_file, job.integrations or []) == (validation, [])
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at
    assert job.organization_id
    assert isinstance(job.hyperparameters.n_epochs, int)
    assert job.method.supervised.hyperparameters.to_dict() == job.hyperparameters.to_dict()

    content = await api.call("files.content", file_id=job.result_files[0])
    header, *rows = csv.reader(io.StringIO(content.text))
    assert header[: len(COLUMNS)] == COLUMNS
    assert [row[0] for row in rows] == [str(step + 1) for step in range(len(rows))]
    await _events(api, job)
    await _checkpoints(api, job)
    await api.fails(400, "job_ended", "fine_tuning.jobs.cancel", fine_tuning_job_id=job.id)
    await api.fails(404, "not_found", "fine_tuning.jobs.retrieve", fine_tuning_job_id="ftjob-none")


async def _events(api: Speaker, job: Any) -> None:
    events = await api.every("fine_tuning.jobs.list_events", fine_tuning_job_id=job.id, limit=2)
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    times = [event.created_at for event in events]
    assert times == sorted(times, reverse=True)
    after = await api.call("fine_tuning.jobs.list_events", fine_tuning_job_id=job.id, after=events[0].id)
    assert after.data[0].id == events[1].id
    metrics = [event for event in events if event.type == "metrics"]
    last = metrics[0].data
    total = last["total_steps"]
    assert (last["step"], {event.data["step"] for event in metrics}) == (total, set(range(1, total + 1)))
    assert {"train_loss", "train_mean_token_accuracy", "valid_loss", "full_valid_loss"} <= set(last)
    loss, valid = last["train_loss"], last["valid_loss"]
    assert metrics[0].message == f"Step {total}/{total}: training loss={loss:.2f}, validation loss={valid:.2f}"


async def _checkpoints(api: Speaker, job: Any) -> None:
    found = await api.every("fine_tuning.jobs.checkpoints.list", fine_tuning_job_id=job.id, limit=1)
    steps = [checkpoint.step_number for checkpoint in found]
    assert len(steps) > 1
    assert steps == sorted(steps, reverse=True)
    for checkpoint in found:
        assert checkpoint.fine_tuning_job_id == job.id
        assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-{checkpoint.step_number}"
        assert checkpoint.metrics.step == checkpoint.step_number
        assert checkpoint.metrics.train_loss > 0
    after = await api.call("fine_tuning.jobs.checkpoints.list", fine_tuning_job_id=job.id, after=found[0].id)
    assert [checkpoint.id for checkpoint in after.data] == [checkpoint.id for checkpoint in found[1:]]


async def old_hyperparameters(api: Speaker) -> None:
    """The deprecated place, with "auto" and with numbers; lists by metadata; cancel."""
    file_id = await _file(api)
    made = []
    for values, team in ((AUTO, "x"), (FIXED, "y"), (FIXED, "x")):
        job = await api.call(
            "fine_tuning.jobs.create",
            model="tiny",
            training_file=file_id,
            hyperparameters=values,
            validation_file=None,
            suffix=None,
            seed=None,
            integrations=None,
            metadata={"team": team, "long key": "v"},
            extra_body={"hone": {"training": {"max_steps": 100_000}}},
        )
        assert job.method.type == "supervised"
        made.append(job.id)
    assert (job.hyperparameters.batch_size, job.hyperparameters.n_epochs) == (2, 2)
    x = await api.call("fine_tuning.jobs.list", metadata={"team": "x"}, limit=10)
    assert [job.id for job in x.data] == [made[2], made[0]]
    both = await api.call("fine_tuning.jobs.list", metadata={"team": "y", "long key": "v"})
    assert [job.id for job in both.data] == [made[1]]
    after = await api.every("fine_tuning.jobs.list", after=made[2], limit=1)
    assert [job.id for job in after][:2] == [made[1], made[0]]
    for job_id in made:
        await api.call("fine_tuning.jobs.cancel", fine_tuning_job_id=job_id)
    for job_id in made:
        ended = await api.until(lambda job: job.status in ENDED, "fine_tuning.jobs.retrieve", fine_tuning_job_id=job_id)
        assert (ended.status, ended.fine_tuned_model, ended.trained_tokens) == ("cancelled", None, None)


async def pause_and_resume(api: Speaker) -> None:
    """A job that runs is put aside, and goes on."""
    if not any(path.endswith("/pause") for path in api.document["paths"]):
        return
    job = await api.call(
        "fine_tuning.jobs.create",
        model="tiny",
        training_file=await _file(api),
        method={"type": "supervised", "supervised": {"hyperparameters": FIXED}},
        extra_body={"hone": {"training": {"max_steps": 100_000}}},
    )
    mine = {"fine_tuning_job_id": job.id}
    await api.until(lambda job: job.status == "running", "fine_tuning.jobs.retrieve", **mine)
    await api.call("fine_tuning.jobs.pause", **mine)
    await api.until(lambda job: job.status == "paused", "fine_tuning.jobs.retrieve", **mine)
    await api.call("fine_tuning.jobs.resume", **mine)
    running = await api.until(lambda job: job.status == "running", "fine_tuning.jobs.retrieve", **mine)
    assert running.estimated_finish is None or running.estimated_finish >= running.created_at
    await api.call("fine_tuning.jobs.cancel", **mine)
    await api.until(lambda job: job.status == "cancelled", "fine_tuning.jobs.retrieve", **mine)


async def other_methods(api: Speaker) -> None:
    """Preference pairs; what Hone does not do is told by name."""
    asked = {"model": "tiny", "training_file": await _file(api)}
    dpo_file = {**asked}
    for values in ({**AUTO, "beta": "auto"}, {**FIXED, "beta": 0.2}):
        method = {"type": "dpo", "dpo": {"hyperparameters": values}}
        if not _has_dpo(api):
            await api.refuses("method.dpo", "fine_tuning.jobs.create", **asked, method=method)
            await api.refuses("method.type=dpo", "fine_tuning.jobs.create", **asked, method=method)
            continue
        dpo_file["training_file"] = await _file(api, PAIRS)
        endless = {"hone": {"training": {"max_steps": 100_000}}}
        job = await api.call("fine_tuning.jobs.create", **dpo_file, method=method, extra_body=endless)
        assert (job.method.type, job.method.supervised) == ("dpo", None)
        assert job.method.dpo.hyperparameters.beta == values["beta"]
        mine = {"fine_tuning_job_id": job.id}
        await api.call("fine_tuning.jobs.cancel", **mine)
        await api.until(lambda job: job.status in ENDED, "fine_tuning.jobs.retrieve", **mine)
    grader = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}
    reinforcement = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": AUTO}}
    for place in ("method.reinforcement", "method.type=reinforcement"):
        await api.refuses(place, "fine_tuning.jobs.create", **asked, method=reinforcement)
    wandb = {"project": "p", "name": "n", "entity": "e", "tags": ["t"]}
    integrations = [{"type": "wandb", "wandb": wandb}]
    job = await api.call("fine_tuning.jobs.create", **asked, integrations=integrations)
    assert job.integrations[0].wandb.model_dump() == wandb
    refusal = await api.fails(400, "file_not_found", "fine_tuning.jobs.create", model="tiny", training_file="file-none")
    assert refusal.param == "training_file"
    refusal = await api.fails(400, "model_not_found", "fine_tuning.jobs.create", **{**asked, "model": "gpt-4o-mini"})
    assert refusal.param == "model"


def _has_dpo(api: Speaker) -> bool:
    return any(name.lower().startswith("dpo") for name in api.document["components"]["schemas"])


async def models(api: Speaker) -> None:
    """Bases and fine-tunes, with slashes and colons in their ids."""
    job = await trained(api)
    listed = await api.call("models.list")
    assert {"tiny", "org/base", job.fine_tuned_model} <= {model.id for model in listed.data}
    for model_id in ("org/base", job.fine_tuned_model):
        assert (await api.call("models.retrieve", model=model_id)).id == model_id
    assert (await api.call("models.delete", model=job.fine_tuned_model)).deleted is True
    await api.fails(404, "model_not_found", "models.retrieve", model=job.fine_tuned_model)
    refusal = await api.fails(400, "base_model", "models.delete", model="org/base")
    assert refusal.param == "model"
