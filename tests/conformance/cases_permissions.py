"""What needs a second project: permissions of checkpoints. And graders, which stand beside them."""

from typing import Any

from tests.conformance.cases_evals import RUN, evaluated
from tests.conformance.cases_jobs import trained
from tests.conformance.speaking import Speaker

METRICS = (
    "bleu", "cosine", "fuzzy_match", "gleu", "meteor",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
)  # fmt: skip
OPERATIONS = ("eq", "ne", "like", "ilike")


async def permissions(mine: Speaker, other: Speaker) -> None:
    """Another project may use a checkpoint's model while it has the permission, and neither before nor after."""
    job = await trained(mine)
    [newest, *_] = await mine.every("fine_tuning.jobs.checkpoints.list", fine_tuning_job_id=job.id)
    theirs = (await trained(other)).organization_id
    models = [job.fine_tuned_model, newest.fine_tuned_model_checkpoint]
    assert (await mine.call("models.retrieve", model=models[1])).id == models[1]
    for model in models:
        of_model = {"fine_tuned_model_checkpoint": model}
        assert not await _usable(other, model)
        await other.fails(
            404, "model_not_found", "fine_tuning.checkpoints.permissions.create", **of_model, project_ids=[theirs]
        )
        made = await mine.call("fine_tuning.checkpoints.permissions.create", **of_model, project_ids=[theirs])
        [permission] = made.data
        assert permission.project_id == theirs
        assert await _usable(other, model)
        assert await evaluated(other, model) == "completed"
        await _listed(mine, of_model, permission)
        named = {**of_model, "permission_id": permission.id}
        await other.fails(403, "not_the_owner", "fine_tuning.checkpoints.permissions.delete", **named)
        gone = await mine.call("fine_tuning.checkpoints.permissions.delete", **named)
        assert (gone.id, gone.deleted) == (permission.id, True)
        assert not await _usable(other, model)
        refusal = await other.fails(400, "model_not_found", "evals.runs.create", **await RUN(other, model))
        assert refusal.param == "data_source.model"
        await mine.fails(404, "not_found", "fine_tuning.checkpoints.permissions.delete", **named)
    refusal = await mine.fails(
        400, "project_not_found", "fine_tuning.checkpoints.permissions.create", **of_model, project_ids=["proj_none"]
    )
    assert refusal.param == "project_ids[0]"


async def _usable(api: Speaker, model: str) -> bool:
    """Whether a model of another project is there, which its list and its own URL have to agree on."""
    listed = await api.call("models.list")
    refusal = await api.error_of("models.retrieve", {"model": model})
    assert (refusal is None) == (model in {entry.id for entry in listed.data})
    assert refusal is None or (refusal.status_code, refusal.code) == (404, "model_not_found")
    return refusal is None


async def _listed(api: Speaker, of_model: dict[str, str], permission: Any) -> None:
    """By the older name of the method, and by the newer one where the client has it."""
    for name in ("retrieve", "list"):
        method = f"fine_tuning.checkpoints.permissions.{name}"
        if not api.has(method):
            continue
        for order in ("ascending", "descending"):
            page = await api.call(method, **of_model, limit=1, order=order, project_id=permission.project_id)
            assert [entry.id for entry in page.data] == [permission.id]
        page = await api.call(method, **of_model, after=permission.id)
        assert page.data == []
        page = await api.call(method, **of_model, project_id="proj_none")
        assert page.data == []


async def graders(api: Speaker) -> None:
    """Every kind and every value that a grader can have, validated and run, or refused by name."""
    check = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.x}}"}
    similar = {"type": "text_similarity", "name": "near", "input": "{{sample.output_text}}", "reference": "{{item.x}}"}
    code = {**similar, "type": "code_bleu", "name": "code", "lang": "python"}
    message = {"type": "message", "role": "user", "content": "{{item.x}}"}
    for operation in OPERATIONS:
        await _both(api, f"grader(string_check).operation={operation}", {**check, "operation": operation})
    for metric in METRICS:
        grader = {**similar, "evaluation_metric": metric}
        await _both(api, f"grader(text_similarity).evaluation_metric={metric}", grader)
    await _both(api, "grader(code_bleu)", code)
    others: list[dict[str, Any]] = [
        {"type": "python", "name": "p", "source": "def grade(sample, item): return 1", "image_tag": "2025-05-08"},
        {"type": "score_model", "name": "s", "model": "tiny", "input": [message]},
        {
            "type": "multi",
            "name": "m",
            "graders": {"same": {**check, "operation": "eq"}},
            "calculate_output": "same",
        },
    ]
    for grader in others:
        for name, more in (("validate", {}), ("run", {"model_sample": "a", "item": {"x": "a"}})):
            await api.refuses(f"grader({grader['type']})", f"fine_tuning.alpha.graders.{name}", grader=grader, **more)


async def _both(api: Speaker, place: str, grader: dict[str, Any]) -> None:
    valid = await api.attempt(place, "fine_tuning.alpha.graders.validate", grader=grader)
    same, unlike = [
        await api.attempt(
            place, "fine_tuning.alpha.graders.run", grader=grader, model_sample=sample, item={"x": "a = 1"}
        )
        for sample in ("a = 1", "print(zip(*rows))")
    ]
    if valid is not None and same is not None:
        assert (same.metadata.name, same.metadata.type) == (grader["name"], grader["type"])
        best, worst = (unlike, same) if grader.get("operation") == "ne" else (same, unlike)
        assert best.reward == 1
        assert worst.reward < 0.5


WITH_OTHER = (permissions,)
