"""The broker: hints arrive, and one that is away costs the sender no time."""

import json
import time
from pathlib import Path

import pytest
import redis
from kombu.exceptions import OperationalError

from core.broker import make_celery, send_hint
from core.settings import Settings


def test_a_hint_carries_a_jobs_id_and_nothing_else(valkey_url: str, tmp_path: Path):
    with redis.Redis.from_url(valkey_url, decode_responses=True) as broker:
        broker.flushall()
        with make_celery(Settings(home=tmp_path, redis_url=valkey_url)) as app:
            send_hint(app, "ftjob-1")
        (message,) = broker.lrange("hone:hone", 0, -1)
    assert json.loads(message)["headers"]["argsrepr"] == "['ftjob-1']"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", None], ids=["tcp", "embedded"])
def test_a_broker_that_is_away_is_told_at_once(tmp_path: Path, url: str | None):
    with make_celery(Settings(home=tmp_path, redis_url=url)) as app:
        began = time.monotonic()
        with pytest.raises(OperationalError):
            send_hint(app, "ftjob-1")
        assert time.monotonic() - began < 1, "kombu's own default is 6 s"
