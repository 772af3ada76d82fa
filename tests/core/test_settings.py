"""Settings, errors, ids, logging and the catalogue."""

import io
import json
import logging
import pickle
from pathlib import Path

import pytest

from core.catalogue import HubModel, WheelModel, find_base_model, load_catalogue
from core.errors import DatasetError, HoneError, InvalidRequestError
from core.ids import new_id, new_key
from core.logging import configure_logging, get_logger
from core.settings import Settings


def test_nothing_set_means_everything_under_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "h"))
    settings = Settings()
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/h/hone.db"
    assert settings.resolved_storage_url == f"file://{tmp_path}/h/storage"
    assert settings.resolved_redis_url == f"redis+socket://{settings.valkey_socket}"
    assert len(str(settings.valkey_socket)) < 107


def test_a_relative_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings(home=Path("here")).home == tmp_path / "here"


def test_a_plain_postgresql_url_takes_psycopg_3():
    url = Settings(database_url="postgresql://u:p@h/d").resolved_database_url
    assert url == "postgresql+psycopg://u:p@h/d"


def test_the_key_is_not_shown():
    assert "hone-secret" not in repr(Settings(api_key="hone-secret"))


def test_ids_sort_by_the_time_they_were_made():
    ids = [new_id("file-") for _ in range(1000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert new_key() != new_key()


def test_an_error_keeps_its_fields_across_processes():
    error = pickle.loads(pickle.dumps(DatasetError("line 3", param="file", code="bad")))
    assert (type(error), error.message, error.param, error.code) == (DatasetError, "line 3", "file", "bad")
    assert issubclass(DatasetError, HoneError)


def test_keys_and_passwords_are_cut_out_of_the_log(monkeypatch):
    stream = io.StringIO()
    key = new_key()
    configure_logging()
    monkeypatch.setattr(logging.getLogger().handlers[0], "stream", stream)
    get_logger("t").info("made", key=key, url="postgresql://me:secret@host/db", token="hf_abcdefghijkl")
    logging.getLogger("other").warning("plain %s", "sk-abcdefghijkl")
    text = stream.getvalue()
    assert key not in text
    assert "abcdefghijkl" not in text
    assert "secret" not in text
    assert text.count("[redacted]") == 4
    assert json.loads(text.splitlines()[0])["event"] == "made"


def test_the_catalogue_that_ships_names_the_wheel_and_llama_2():
    catalogue = load_catalogue(Settings())
    assert isinstance(catalogue["smollm2-135m-instruct"], WheelModel)
    assert isinstance(catalogue["meta-llama/Llama-2-7b-hf"], HubModel)
    with pytest.raises(InvalidRequestError, match="Use one of: meta-llama/Llama-2-7b-hf, smollm2") as caught:
        find_base_model(catalogue, "gpt-9")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    "text",
    [
        "not toml =",
        '[a]\nsource = "hub"\nrepo = "../../etc"\nrevision = "0123456789012345678901234567890123456789"',
        '[a]\nsource = "hub"\nrepo = "org/name"\nrevision = "main"',
        '[a]\nsource = "url"\npath = "http://x"',
    ],
)
def test_a_catalogue_that_cannot_be_used_is_named(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=r"c\.toml"):
        load_catalogue(Settings(catalogue=path))
