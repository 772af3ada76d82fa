"""The Celery application, shared by who sends hints (the API) and who receives them (the worker).

A message is only a hint that there is work (docs/decisions/0002): it carries a job's id and nothing else, may be lost
or doubled, and its result is not kept.
"""

from typing import Any

from celery import Celery

from core.settings import Settings

HINT = "hone.hint"
QUEUE = "hone"


def make_celery(settings: Settings) -> Celery:
    """A Celery application on the settings' broker, without a result backend."""
    app = Celery("hone", broker=settings.resolved_redis_url)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(settings),
        # One worker a GPU and no talk among them: events and gossip would only load the broker.
        worker_send_task_events=False,
        worker_enable_remote_control=False,
    )
    return app


#: kombu tries for 6 s within one call to send, whatever the call asks for. One try is enough: who sends tries again by
#: itself, and workers poll the database. A worker's own connection is not held by this; it tries without end.
_ONE_TRY = {"max_retries": 1, "interval_start": 0, "interval_max": 0}


def _transport_options(settings: Settings) -> dict[str, Any]:
    if settings.resolved_redis_url.startswith("filesystem:"):
        folders = {name: settings.home / "broker" / name for name in ("queue", "control")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        queue = str(folders["queue"])
        return {
            "data_folder_in": queue,
            "data_folder_out": queue,
            "control_folder": str(folders["control"]),
            **_ONE_TRY,
        }
    # kombu before 5.7 ignored the health check; without one a dead connection is noticed after hours.
    return {
        "global_keyprefix": "hone:",
        "health_check_interval": 25,
        "socket_connect_timeout": 2,
        "socket_timeout": 10,
        "socket_keepalive": True,
        **_ONE_TRY,
    }


def send_hint(app: Celery, job_id: str) -> None:
    """Tell any worker that ``job_id`` waits.

    Raises kombu's OperationalError when the broker is away: at once when it refuses the connection, after 4 s when
    nobody answers.
    """
    options: dict[str, Any] = {"args": [job_id], "queue": QUEUE, "retry": False}
    app.send_task(HINT, **options)
