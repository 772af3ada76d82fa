"""The Hugging Face Hub, through its own library: a dataset's commit, its files, and their bytes.

The address is HF_ENDPOINT's or the Hub's, never a request's.
"""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import yaml
from huggingface_hub import DatasetCard, HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, and not in __all__

from core.errors import HoneError, InvalidRequestError, NotFoundError, PermissionDeniedError, UnavailableError

#: The branch where the Hub keeps its own conversion of a dataset to Parquet.
CONVERTED = "refs/convert/parquet"

#: What the library's HTTP client raises, whose name differs between versions: connections, timeouts, statuses.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_MOST_FILES = 100_000
_README = "README.md"
_MOST_README = 4 * 2**20


@dataclass(frozen=True)
class Repository:
    """A dataset's repository at a commit: its files by path, and the header of its README."""

    dataset: str
    commit: str
    files: dict[str, RepoFile]
    header: dict[str, Any]


class Hub:
    """The Hub as seen with the operator's token, or with none: a login that lies on this machine is not used."""

    def __init__(self, token: str | None) -> None:
        self._token: str | bool = token or False
        self._api = HfApi(token=self._token)

    def find(self, dataset: str, revision: str | None) -> Repository:
        """A dataset at a revision, by default its newest. Raises HoneError."""
        with _errors_told(dataset, revision):
            info = self._api.dataset_info(dataset, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            if info.id != dataset:
                raise InvalidRequestError(
                    f"The dataset '{dataset}' is called '{info.id:.200}' by now. Ask for it by that name.",
                    param="dataset",
                    code="dataset_moved",
                )
            commit = str(info.sha)
            files = self._files(dataset, commit)
        return Repository(dataset, commit, files, self._header(dataset, commit, files.get(_README)))

    def find_converted(self, dataset: str) -> Repository | None:
        """The Hub's conversion of a dataset; None where there is none."""
        try:
            with _errors_told(dataset, CONVERTED):
                info = self._api.dataset_info(dataset, revision=CONVERTED, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
                return Repository(dataset, str(info.sha), self._files(dataset, str(info.sha)), {})
        except NotFoundError:
            return None

    def fetch(self, repository: Repository, path: str, spool: BinaryIO) -> None:
        """Write a file into ``spool``, and compare it with the checksum that its commit has. Raises HoneError."""
        file = repository.files[path]
        url = hf_hub_url(repository.dataset, path, repo_type="dataset", revision=repository.commit)
        with _errors_told(repository.dataset, repository.commit):
            http_get(
                url,
                spool,
                headers=build_hf_headers(token=self._token),
                expected_size=file.size,
                displayed_filename=path,
            )
        spool.flush()
        if _checksum(spool, file) != (file.lfs.sha256 if file.lfs else file.blob_id):
            raise _damaged(repository.dataset)

    def _files(self, dataset: str, commit: str) -> dict[str, RepoFile]:
        files: dict[str, RepoFile] = {}
        for entry in self._api.list_repo_tree(dataset, recursive=True, revision=commit, repo_type="dataset"):
            if isinstance(entry, RepoFile):
                files[entry.path] = entry
            if len(files) > _MOST_FILES:
                raise InvalidRequestError(
                    f"The dataset '{dataset}' has more than {_MOST_FILES:,} files.",
                    param="dataset",
                    code="too_many_files",
                )
        return files

    def _header(self, dataset: str, commit: str, readme: RepoFile | None) -> dict[str, Any]:
        """The YAML at the top of the README; a header that can't be read says nothing."""
        if readme is None or readme.size > _MOST_README:
            return {}
        with tempfile.TemporaryFile() as spool:
            self.fetch(Repository(dataset, commit, {_README: readme}, {}), _README, spool)
            spool.seek(0)
            text = spool.read().decode("utf-8", "replace")
        try:
            card = DatasetCard(text, ignore_metadata_errors=True)
            found: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, yaml.YAMLError, RecursionError):
            return {}
        return found


def _checksum(spool: IO[bytes], file: RepoFile) -> str:
    """The SHA-256 of a file in large-file storage; Git's own name of any other, a SHA-1 behind a word and the size."""
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    spool.seek(0)
    while chunk := spool.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _errors_told(dataset: str, revision: str | None) -> Iterator[None]:
    """What the Hub's library raises, as ours: what was asked for, what is wrong, what to do."""
    try:
        yield
    except HoneError:
        raise
    except Exception as error:
        for kind, told in _TOLD.items():
            if isinstance(error, kind):
                raise told(dataset, revision, error) from error
        if type(error) is OSError and error.errno is None:  # so the library says that a file has another size
            raise _damaged(dataset) from error
        raise


def _gated(dataset: str, _: str | None, __: Exception) -> HoneError:
    return PermissionDeniedError(
        f"The dataset '{dataset}' is gated: its owners choose whom they let in. Ask them at "
        f"{constants.ENDPOINT}/datasets/{dataset}, and set HF_TOKEN of that account on the server.",
        param="dataset",
        code="dataset_gated",
    )


def _not_found(dataset: str, _: str | None, __: Exception) -> HoneError:
    return NotFoundError(
        f"The Hub has no dataset '{dataset}', or it is private and this server's HF_TOKEN does not open it.",
        param="dataset",
        code="dataset_not_found",
    )


def _no_revision(dataset: str, revision: str | None, _: Exception) -> HoneError:
    return NotFoundError(
        f"The dataset '{dataset}' has no revision '{revision}'. Use a branch, a tag or a commit of it.",
        param="revision",
        code="revision_not_found",
    )


def _disabled(dataset: str, _: str | None, __: Exception) -> HoneError:
    return PermissionDeniedError(f"The Hub has disabled '{dataset}'.", param="dataset", code="dataset_disabled")


def _invalid(dataset: str, _: str | None, __: Exception) -> HoneError:
    return InvalidRequestError(f"'{dataset}' is no name of a dataset.", param="dataset", code="dataset_not_found")


def _refused(dataset: str, _: str | None, error: Exception) -> HoneError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return UnavailableError(
        f"The Hub answered {status or 'with an error'} when asked for '{dataset}'. Try again later.",
        code="hub_error",
    )


def _away(_: str, __: str | None, error: Exception) -> HoneError:
    return UnavailableError(
        f"The Hub at {constants.ENDPOINT} can't be reached from this server ({type(error).__name__}). Without a way to "
        "it, upload the dataset's files.",
        code="hub_unreachable",
    )


def _damaged(dataset: str) -> HoneError:
    return UnavailableError(
        f"A file of '{dataset}' came from the Hub damaged: its size or checksum is another. Try again.",
        code="hub_damaged",
    )


def _nonsense(dataset: str, _: str | None, __: Exception) -> HoneError:
    return UnavailableError(
        f"What answers at {constants.ENDPOINT} when asked for '{dataset}' is not the Hub. Is a proxy between?",
        code="hub_error",
    )


#: In this order: the library's errors are of several kinds at once.
_TOLD: dict[type[Exception], Callable[[str, str | None, Exception], HoneError]] = {
    OfflineModeIsEnabled: _away,
    GatedRepoError: _gated,
    DisabledRepoError: _disabled,
    RepositoryNotFoundError: _not_found,
    RevisionNotFoundError: _no_revision,
    HFValidationError: _invalid,
    HfHubHTTPError: _refused,
    _HTTP_ERROR: _away,
    # What the library makes of an answer that is not the Hub's.
    json.JSONDecodeError: _nonsense,
    KeyError: _nonsense,
    TypeError: _nonsense,
}
