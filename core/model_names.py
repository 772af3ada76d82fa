"""Names of what was fine-tuned, in OpenAI's form."""

import re

_CHECKPOINT = re.compile(r"(ft:.+:(?P<job>[^:]+)):ckpt-step-(?P<step>[0-9]{1,9})")


def fine_tuned_model_id(base: str, suffix: str | None, project: str, job_id: str) -> str:
    """``ft:BASE:PROJECT:SUFFIX:ID``, ID being the last 8 characters of the job's."""
    return f"ft:{base}:{_word(project) or 'hone'}:{_word(suffix or '')}:{job_id[-8:]}"


def checkpoint_name(model: str, step: int) -> str:
    """The name under which a checkpoint of the model's job is used."""
    return f"{model}:ckpt-step-{step}"


def read_checkpoint_name(name: str) -> tuple[str, int] | None:
    """The end of the job's id and the step that a checkpoint's name tells; None for other names."""
    found = _CHECKPOINT.fullmatch(name)
    return (found["job"], int(found["step"])) if found else None


def _word(text: str) -> str:
    """At most 64 characters that stand for themselves in a URL's path; colons are left to separate."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")[:64]
