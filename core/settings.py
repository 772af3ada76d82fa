"""Settings: read from the environment, prefix ``HONE_``; every one has a default that works on a laptop."""

import hashlib
import tempfile
from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """All of Hone's settings. With nothing set, everything lives under ``home`` and nothing else is needed."""

    model_config = SettingsConfigDict(env_prefix="HONE_", frozen=True, extra="ignore")

    home: Path = Field(Path("~/.hone"), validate_default=True, description="Folder of all local state.")
    api_key: SecretStr | None = Field(None, description="First key, stored (hashed) when no key exists yet.")
    database_url: str | None = Field(None, description="SQLAlchemy URL; unset: a SQLite file under `home`.")
    redis_url: str | None = Field(None, description="Redis or Valkey URL; unset: a Valkey that Hone starts itself.")
    storage_url: str | None = Field(
        None, description="s3://, gs://, az:// or file:// URL; unset: a folder under `home`."
    )
    catalogue: Path | None = Field(None, description="TOML file of the base models that requests may name.")
    hub_datasets: str | None = Field(
        None,
        description="Hugging Face datasets that requests may import, separated by commas: `owner/name`, `owner/*` or "
        "`*`; unset: none.",
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free port.")

    heartbeat_seconds: float = Field(10, gt=0, description="How often a worker renews its lease.")
    lease_seconds: float = Field(60, gt=0, description="A job whose lease is older than this is taken from its worker.")
    reap_seconds: float = Field(15, gt=0, description="How often expired leases are looked for.")
    poll_seconds: float = Field(5, gt=0, description="How often an idle worker asks the database for work.")
    warm_seconds: float = Field(
        600,
        ge=0,
        description="How long an idle worker keeps a base model loaded for the next job; 0 never does, and on a GPU "
        "begins no process before there is a job.",
    )
    max_attempts: int = Field(3, ge=1, description="Attempts of a job before it fails with `worker_lost`.")
    cancel_grace_seconds: float = Field(20, gt=0, description="Time a child gets to stop before it is killed.")
    stall_seconds: float = Field(
        1800, gt=0, description="A child that makes no progress for so long is killed; that counts as an attempt."
    )

    max_file_bytes: int = Field(2**30, gt=0, description="Largest upload.")
    max_line_bytes: int = Field(2**20, gt=0, description="Longest line of a dataset.")
    max_body_bytes: int = Field(4 * 2**20, gt=0, description="Largest JSON body of a request.")
    webhook_private_targets: bool = Field(
        False, description="Let webhooks go to private, loopback and link-local addresses, and over plain http."
    )
    wandb_api_key: SecretStr | None = Field(
        None,
        description="Weights & Biases' key, for the integration `wandb`; unset: requests for it are refused.",
    )
    wandb_base_url: str | None = Field(None, description="A W&B server of your own; unset: W&B's.")

    def model_post_init(self, context: object, /) -> None:
        """Make ``home`` absolute, so that a process started in another folder finds the same one."""
        object.__setattr__(self, "home", self.home.expanduser().resolve())

    @property
    def wandb_key(self) -> str | None:
        """The key of W&B, or None; an empty variable is none."""
        return (self.wandb_api_key.get_secret_value() or None) if self.wandb_api_key else None

    @property
    def allowed_hub_datasets(self) -> list[str]:
        """The entries of ``hub_datasets``."""
        return [entry for part in (self.hub_datasets or "").split(",") if (entry := part.strip())]

    @property
    def resolved_database_url(self) -> str:
        """The database's URL; a bare ``postgresql://`` means psycopg 3."""
        url = self.database_url or f"sqlite:///{self.home / 'hone.db'}"
        return url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def resolved_storage_url(self) -> str:
        """The storage's URL; a folder under ``home`` when none is set."""
        return self.storage_url or (self.home / "storage").as_uri()

    @property
    def valkey_socket(self) -> Path:
        """Unix socket of the embedded Valkey.

        It lies in the temporary folder because a socket's path may have at most 107 characters; the name carries a
        hash of ``home``, so that two Hones on one machine do not meet.
        """
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"hone-{digest}" / "valkey.sock"

    @property
    def resolved_redis_url(self) -> str:
        """The broker's URL; the embedded Valkey's socket when none is set."""
        return self.redis_url or f"redis+socket://{self.valkey_socket}"


@lru_cache
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
