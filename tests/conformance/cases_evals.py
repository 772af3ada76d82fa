"""Evals: what is judged by what; runs from every source; their items."""

from typing import Any

from tests.conformance.cases_files import ITEMS
from tests.conformance.speaking import Speaker

SCHEMA = {"type": "object", "properties": {"prompt": {"type": "string"}, "completion": {"type": "string"}}}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
CODE = {
    "type": "code_bleu",
    "name": "code",
    "input": "{{sample.output_text}}",
    "reference": "{{item.completion}}",
    "lang": "python",
    "pass_threshold": 0.4,
}
TURN = {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.prompt}}"}}
SAMPLING = {"max_completion_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 42}
INLINE = {"type": "file_content", "content": [{"item": {"prompt": "add", "completion": "x"}}]}
ENDED = ("completed", "failed", "canceled")
METRICS = (
    "bleu", "cosine", "fuzzy_match", "gleu", "meteor",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
)  # fmt: skip


def source(model: str = "tiny", items: dict[str, Any] = INLINE, **more: Any) -> dict[str, Any]:
    """A data source that prompts a model once an item."""
    messages = {"type": "template", "template": [TURN]}
    return {"type": "completions", "model": model, "input_messages": messages, "source": items, **more}


async def _eval(api: Speaker) -> str:
    made = await api.call("evals.create", name="e", data_source_config=CONFIG, testing_criteria=[CODE])
    return str(made.id)


async def RUN(api: Speaker, model: str) -> dict[str, Any]:  # noqa: N802 - the arguments of a run, as a constant would be
    """The arguments of a run of ``model`` in a new eval."""
    return {"eval_id": await _eval(api), "data_source": source(model)}


async def evaluated(api: Speaker, model: str) -> str:
    """The last status of a run of ``model``."""
    run = await api.call("evals.runs.create", **await RUN(api, model))
    ended = await api.until(lambda run: run.status in ENDED, "evals.runs.retrieve", eval_id=run.eval_id, run_id=run.id)
    return str(ended.status)


async def definitions(api: Speaker) -> None:
    """Every kind of criterion and of data source; lists, changes and deletions."""
    made = [
        await api.call(
            "evals.create", name=f"e{n}", data_source_config=CONFIG, testing_criteria=[CODE], metadata={"n": str(n)}
        )
        for n in range(3)
    ]
    assert made[0].data_source_config.type == "custom"
    await _criteria(api)
    for config in ({"type": "logs", "metadata": {"a": "b"}}, {"type": "stored_completions", "metadata": {"a": "b"}}):
        place = f"data_source_config({config['type']})"
        await api.refuses(place, "evals.create", data_source_config=config, testing_criteria=[CODE])

    ids = [entry.id for entry in made]
    newest = await api.call("evals.list", order="desc", order_by="created_at", limit=100)
    listed = await api.every("evals.list", order="asc", limit=2)
    assert [entry.id for entry in listed] == [entry.id for entry in newest.data][::-1]
    assert [entry.id for entry in listed][:3] == ids
    after = await api.call("evals.list", after=ids[0], limit=1)
    assert after.data[0].id == ids[1]
    changed = await api.call("evals.update", eval_id=ids[0], name="new", metadata={"n": "9"})
    assert (changed.name, changed.metadata) == ("new", {"n": "9"})
    assert (await api.call("evals.retrieve", eval_id=ids[0])).to_dict() == changed.to_dict()
    last = await api.call("evals.list", order="desc", order_by="updated_at", limit=1)
    assert last.data[0].id == ids[0]
    for eval_id in ids:
        deleted = await api.call("evals.delete", eval_id=eval_id)
        assert (deleted.eval_id, deleted.deleted) == (eval_id, True)
    await api.fails(404, "not_found", "evals.retrieve", eval_id=ids[0])


async def _criteria(api: Speaker) -> None:
    pair = {"input": "{{sample.output_text}}", "reference": "{{item.completion}}"}

    async def ask(place: str, criterion: dict[str, Any]) -> None:
        made = await api.attempt(place, "evals.create", data_source_config=CONFIG, testing_criteria=[criterion])
        if made is not None:
            assert made.testing_criteria[0].type == criterion["type"]
            await api.call("evals.delete", eval_id=made.id)

    for operation in ("eq", "ne", "like", "ilike"):
        check = {"type": "string_check", "name": "same", **pair, "operation": operation}
        await ask(f"testing_criteria[](string_check).operation={operation}", check)
    for metric in METRICS:
        similar = {"type": "text_similarity", "name": "near", **pair, "evaluation_metric": metric}
        await ask(f"testing_criteria[](text_similarity).evaluation_metric={metric}", {**similar, "pass_threshold": 0.5})
    message = {"role": "user", "content": "{{item.prompt}}"}
    for criterion in (
        {
            "type": "python",
            "name": "p",
            "source": "def grade(sample, item): return 1",
            "image_tag": "a",
            "pass_threshold": 1,
        },
        {"type": "score_model", "name": "s", "model": "tiny", "input": [message]},
        {
            "type": "label_model",
            "name": "l",
            "model": "tiny",
            "input": [message],
            "labels": ["a", "b"],
            "passing_labels": ["a"],
        },
    ):
        place = f"testing_criteria[]({criterion['type']})"
        await api.refuses(place, "evals.create", data_source_config=CONFIG, testing_criteria=[criterion])


async def runs(api: Speaker) -> None:
    """Every source of items and form of a prompt; statuses; items; both ways to cancel, by version; deletion."""
    eval_id = await _eval(api)
    file = await api.call("files.create", file=("items.jsonl", ITEMS), purpose="evals")
    made = await api.call(
        "evals.runs.create",
        eval_id=eval_id,
        name="first",
        metadata={"a": "b"},
        data_source=source(items={"type": "file_id", "id": file.id}, sampling_params=SAMPLING),
    )
    assert (made.name, made.metadata, made.model, made.error) == ("first", {"a": "b"}, "tiny", None)
    mine = {"eval_id": eval_id, "run_id": made.id}
    run = await api.until(lambda run: run.status in ENDED, "evals.runs.retrieve", **mine)
    assert (run.status, run.result_counts.total, run.result_counts.errored) == ("completed", 2, 0)
    assert run.per_model_usage[0].run_model_name == "tiny"
    assert run.report_url.endswith(run.id)
    await _items(api, mine)
    await _sources(api, eval_id, file.id)
    await _prompts(api, eval_id)

    waiting = await api.call("evals.runs.create", eval_id=eval_id, data_source=source())
    await api.call("evals.runs.cancel", eval_id=eval_id, run_id=waiting.id)
    of_waiting = {"eval_id": eval_id, "run_id": waiting.id}
    await api.until(lambda run: run.status in ENDED, "evals.runs.retrieve", **of_waiting)
    for status in ("queued", "in_progress"):  # what ends later would send its webhooks into another case
        await api.until(lambda page: page.data == [], "evals.runs.list", eval_id=eval_id, status=status)
    everything = await api.every("evals.runs.list", eval_id=eval_id, limit=2, order="asc")
    assert everything[0].id == made.id
    backwards = await api.call("evals.runs.list", eval_id=eval_id, limit=100, order="desc")
    assert [run.id for run in backwards.data] == [run.id for run in everything][::-1]
    after = await api.call("evals.runs.list", eval_id=eval_id, after=made.id, limit=1)
    assert after.data[0].id == everything[1].id
    for status in ("queued", "in_progress", "completed", "canceled", "failed"):
        found = await api.call("evals.runs.list", eval_id=eval_id, status=status)
        assert {run.status for run in found.data} <= {status}
    deleted = await api.call("evals.runs.delete", **mine)
    assert (deleted.run_id, deleted.deleted) == (made.id, True)
    await api.fails(404, "not_found", "evals.runs.retrieve", **mine)


async def _items(api: Speaker, mine: dict[str, str]) -> None:
    items = await api.every("evals.runs.output_items.list", **mine, limit=1, order="asc")
    assert [item.datasource_item_id for item in items] == [0, 1]
    assert items[0].datasource_item["prompt"] == "add"
    assert items[0].sample.input[0].content == "add"
    assert items[0].sample.max_completion_tokens == 64
    assert items[0].results[0].name == "code"
    backwards = await api.call("evals.runs.output_items.list", **mine, order="desc")
    assert [item.id for item in backwards.data] == [item.id for item in items][::-1]
    after = await api.call("evals.runs.output_items.list", **mine, after=items[0].id)
    assert [item.id for item in after.data] == [items[1].id]
    statuses = [
        {item.status for item in (await api.call("evals.runs.output_items.list", **mine, status=status)).data}
        for status in ("pass", "fail")
    ]
    assert statuses[0] <= {"pass"}
    assert statuses[1] <= {"fail"}
    one = await api.call("evals.runs.output_items.retrieve", **mine, output_item_id=items[0].id)
    assert one.to_dict() == items[0].to_dict()


async def _sources(api: Speaker, eval_id: str, file_id: str) -> None:
    async def ask(place: str, data_source: dict[str, Any]) -> None:
        await _settle(api, await api.attempt(place, "evals.runs.create", eval_id=eval_id, data_source=data_source))

    answered = [{"item": {"prompt": "p", "completion": "c"}, "sample": {"output_text": "x"}}]
    with_samples = {"type": "file_content", "content": answered}
    await ask("data_source(completions).source(file_content).content[].sample", source(items=with_samples))
    await ask("data_source(jsonl)", {"type": "jsonl", "source": with_samples})
    with_sample = await api.call(
        "files.create",
        file=("a.jsonl", b'{"item": {"prompt": "p", "completion": "c"}, "sample": {"output_text": "x"}}\n'),
        purpose="evals",
    )
    await ask(
        "data_source(jsonl).source(file_id)", {"type": "jsonl", "source": {"type": "file_id", "id": with_sample.id}}
    )
    stored = {"type": "stored_completions", "model": "tiny", "created_after": 1, "created_before": 2, "limit": 3}
    await api.refuses(
        "data_source(completions).source(stored_completions)",
        "evals.runs.create",
        eval_id=eval_id,
        data_source=source(items={**stored, "metadata": {"a": "b"}}),
    )
    responses = {"type": "responses", "source": {"type": "file_id", "id": file_id}, "model": "tiny"}
    await api.refuses("data_source(responses)", "evals.runs.create", eval_id=eval_id, data_source=responses)


async def _prompts(api: Speaker, eval_id: str) -> None:
    at = "data_source(completions).input_messages"

    async def ask(place: str, messages: dict[str, Any], **sampling: Any) -> None:
        given = {**source(), "input_messages": messages, "sampling_params": sampling or SAMPLING}
        await _settle(api, await api.attempt(place, "evals.runs.create", eval_id=eval_id, data_source=given))

    roles = [{**TURN, "role": role} for role in ("developer", "system", "user", "assistant")]
    plain = [{"role": "user", "content": "Write {{item.prompt}}"}]
    await ask(f"{at}(template)", {"type": "template", "template": roles})
    await ask(f"{at}(template)", {"type": "template", "template": plain})
    await ask(f"{at}(item_reference)", {"type": "item_reference", "item_reference": "item.messages"})
    turn = f"{at}(template).template[](message)"
    audio = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"}
    for place, content in (
        (f"{turn}.content(output_text)", {"type": "output_text", "text": "t"}),
        (f"{turn}.content(input_audio)", audio),
        (f"{turn}.content(input_image)", image),
        (f"{turn}.content[](output_text)", [{"type": "output_text", "text": "t"}]),
        (f"{turn}.content[](input_text)", [{"type": "input_text", "text": "t"}]),
        (f"{turn}.content[](input_audio)", [audio]),
        (f"{turn}.content[](input_image)", [image]),
        (f"{turn}.content[](input_file)", [{"type": "input_file", "file_id": "file-1"}]),
        (f"{turn}.content[]", ["t"]),
        (
            f"{turn}.content[](input_text).prompt_cache_breakpoint",
            [{**TURN["content"], "prompt_cache_breakpoint": {"mode": "explicit"}}],
        ),
        (
            f"{turn}.content(input_text).prompt_cache_breakpoint",
            {**TURN["content"], "prompt_cache_breakpoint": {"mode": "explicit"}},
        ),
    ):
        await ask(place, {"type": "template", "template": [{**TURN, "content": content}]})
    for phase in ("commentary", "final_answer"):
        await ask(f"{turn}.phase", {"type": "template", "template": [{**TURN, "role": "assistant", "phase": phase}]})
    sampling = "data_source(completions).sampling_params"
    template = {"type": "template", "template": [TURN]}
    for effort in ("none", "low", "high"):
        await ask(f"{sampling}.reasoning_effort", template, reasoning_effort=effort)
    for kind in ("text", "json_object", "json_schema"):
        schema = {"json_schema": {"name": "s", "schema": {}}} if kind == "json_schema" else {}
        await ask(f"{sampling}.response_format({kind})", template, response_format={"type": kind, **schema})
    tool = {"type": "function", "function": {"name": "f"}}
    await ask(f"{sampling}.tools", template, tools=[tool])


async def _settle(api: Speaker, run: Any) -> None:
    """Give up a run that was taken, or let it be if a worker was faster: what matters here is that it was taken."""
    if run is not None:
        of_run = {"eval_id": run.eval_id, "run_id": run.id}
        if await api.error_of("evals.runs.cancel", of_run) is not None:
            ended = await api.call("evals.runs.retrieve", **of_run)
            assert ended.status in ENDED
