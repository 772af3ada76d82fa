"""Drives a Hone with the client of this environment: ``python -m tests.conformance.driver < ORDER.json > REPORT``."""

import asyncio
import json
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import openai

from tests.conformance import cases_evals, cases_files, cases_jobs, cases_permissions, cases_webhooks
from tests.conformance.speaking import Speaker

Case = Callable[..., Awaitable[None]]
CASES: tuple[Case, ...] = (
    cases_files.files,
    cases_files.uploads,
    cases_jobs.jobs,
    cases_jobs.old_hyperparameters,
    cases_jobs.pause_and_resume,
    cases_jobs.other_methods,
    cases_jobs.models,
    cases_permissions.permissions,
    cases_permissions.graders,
    cases_evals.definitions,
    cases_evals.runs,
    cases_webhooks.signatures,
    cases_webhooks.endpoints,
)


async def drive(base_url: str, keys: list[str], *, is_async: bool) -> dict[str, Any]:
    """Every case with one kind of client, and what it heard."""
    mine, other = (Speaker(base_url, key, is_async=is_async) for key in keys)
    for case in CASES:
        try:
            await case(mine, other) if case in cases_permissions.WITH_OTHER else await case(mine)
        except Exception:
            mine.heard.problems.append(f"{case.__name__}: {traceback.format_exc(limit=-4)}")
    mine.heard.problems += other.heard.problems
    mine.heard.exchanges += other.heard.exchanges
    return mine.report()


def main() -> None:
    """Read the order, drive, write the report."""
    warnings.simplefilter("ignore")  # the client warns of its deprecated methods, which are called on purpose
    order = json.load(sys.stdin)
    report: dict[str, Any] = {"version": openai.__version__}
    for name in ("sync", "async"):
        report[name] = asyncio.run(drive(order["base_url"], order["keys"][name], is_async=name == "async"))
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
