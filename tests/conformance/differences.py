"""Where Hone's answers are meant to differ from the client's types: named here, and taken out before the check."""

from collections.abc import Callable
from typing import Any

Body = dict[str, Any]


def _evals_purpose(entry: Body) -> bool:
    if entry.get("object") != "file" or entry.get("purpose") != "evals":
        return False
    entry["purpose"] = "user_data"
    return True


def _code_bleu(entry: Body) -> bool:
    if isinstance(grader := entry.get("grader"), dict) and grader.get("type") == "code_bleu":
        entry["grader"] = None
        return True
    criteria = entry.get("testing_criteria")
    if entry.get("object") != "eval" or not isinstance(criteria, list):
        return False
    kept = [criterion for criterion in criteria if criterion.get("type") != "code_bleu"]
    entry["testing_criteria"] = kept
    return len(kept) < len(criteria)


def _paused(entry: Body) -> bool:
    if entry.get("object") != "fine_tuning.job" or entry.get("status") != "paused":
        return False
    entry["status"] = "queued"
    return True


def _suffix(entry: Body) -> bool:
    return entry.get("object") == "fine_tuning.job" and entry.pop("user_provided_suffix", "") != ""


def _no_error(entry: Body) -> bool:
    holder = entry.get("sample") if entry.get("object") == "eval.run.output_item" else entry
    if entry.get("object") not in ("eval.run", "eval.run.output_item") or not isinstance(holder, dict):
        return False
    if holder.get("error", "") is not None:
        return False
    holder["error"] = {"code": "", "message": ""}
    return True


#: The difference as docs/conformance.md tells it, and what makes an answer as if it were not there.
DIFFERENCES: dict[str, Callable[[Body], bool]] = {
    "`purpose` of a file is `evals` when it was uploaded so: the client uploads with it, its answers' type lacks it.": (
        _evals_purpose
    ),
    "`testing_criteria` may hold `code_bleu`, which OpenAI does not have; so may `grader`.": _code_bleu,
    "`status` of a job may be `paused`, as in OpenAI's own example of a pause; the client's enumeration lacks it.": (
        _paused
    ),
    "`user_provided_suffix` of a job, as in OpenAI's own examples; the client's type lacks it.": _suffix,
    "`error` of a run and of an item's sample is null when there is none, as in OpenAI's own examples; the client's "
    "type asks for an object.": _no_error,
}


def without_differences(body: Any) -> tuple[Any, set[str]]:
    """The answer as if there were none of them, and which were met."""
    met = set()
    stack = [body]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            met |= {words for words, mend in DIFFERENCES.items() if mend(value)}
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return body, met
