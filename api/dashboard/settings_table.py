"""A job's settings as they run: each with its value, who chose it, and why."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from api.job_schemas import FineTuningJob
from core.specs import FineTuneSpec
from models.tables import Job

Chosen = Literal["you", "auto", "default", "pending"]


@dataclass(frozen=True)
class Setting:
    """One setting; ``why`` is the reason of the choice, or what the setting is for."""

    name: str
    label: str
    value: Any
    chosen: Chosen
    why: str


@dataclass(frozen=True)
class Group:
    """Settings that belong together."""

    title: str
    settings: list[Setting]


_TITLES = {"lora": "Adapter", "dpo": "Preferences (DPO)"}
#: Names that say more in full.
_LABELS = {
    "r": "rank",
    "n_epochs": "epochs",
    "lr_scheduler": "learning rate schedule",
    "eval_steps": "validation steps",
}


def title_of(group: str) -> str:
    """The heading of a group of settings."""
    return _TITLES.get(group, group.replace("_", " ").capitalize())


def label_of(setting: str) -> str:
    """What people call a setting."""
    return _LABELS.get(setting, setting.replace("_", " "))


def settings_of(job: Job, wire: FineTuningJob) -> list[Group]:
    """Every setting of a job, in groups."""
    spec = FineTuneSpec.model_validate(job.spec)
    asked: dict[str, BaseModel] = {"hyperparameters": spec.hyperparameters}
    if spec.dpo is not None:
        asked["dpo"] = spec.dpo
    asked |= {name: getattr(spec.hone, name) for name in type(spec.hone).model_fields}
    groups = []
    for name, given in asked.items():
        runs = _runs(wire, name)
        if isinstance(given, BaseModel) and isinstance(runs, dict):
            settings = _settings(name, given, runs, wire.hone.reasons)
            groups.append(Group(title_of(name), settings))
    return groups


def _runs(wire: FineTuningJob, group: str) -> Any:
    """The values of a group as they run."""
    if group == "hyperparameters":
        return wire.hyperparameters
    if group == "dpo":
        return wire.method["dpo"]["hyperparameters"]
    return getattr(wire.hone, group, None)


def _settings(group: str, given: BaseModel, runs: dict[str, Any], reasons: dict[str, str]) -> list[Setting]:
    made = []
    for name, field in type(given).model_fields.items():
        asked, value = getattr(given, name), runs.get(name)
        if asked == "auto":
            chosen: Chosen = "pending" if value == "auto" else "auto"
        else:
            chosen = "default" if asked == field.default else "you"
        # A reason stands by the name that a user would write: hyperparameters.n_epochs, training.precision.
        made.append(
            Setting(name, label_of(name), value, chosen, reasons.get(f"{group}.{name}") or field.description or "")
        )
    return made
