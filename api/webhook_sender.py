"""The sender of webhooks: a thread of its own, so that a slow receiver never delays a hint to the workers."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import httpx2
from standardwebhooks import Webhook

from api.background import Repeating
from api.webhook_targets import TargetRefusedError, resolve
from core.logging import get_logger
from core.settings import Settings
from models import webhooks
from models.database import Database
from models.webhooks import Outcome, Outgoing

log = get_logger(__name__)

#: Deliveries under way at once; each ends within the deadline, name lookup and a receiver that dribbles included.
_BATCH = 20
_DEADLINE_SECONDS = 10
_SWEEP_SECONDS = 3_600


class WebhookSender:
    """Sends what is due; ``wake()`` after a commit that wrote an event, or it looks every ``poll_seconds``."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._swept_at = float("-inf")
        self._thread = Repeating("hone-webhooks", self.deliver, after_error=settings.poll_seconds)
        self.start, self.wake, self.stop = self._thread.start, self._thread.wake, self._thread.stop

    def deliver(self) -> float:
        """Send a batch; the seconds to wait until the next one."""
        with self._database.write() as session:
            batch = webhooks.take_due(session, _BATCH)
        outcomes = send(batch, private_allowed=self._settings.webhook_private_targets)
        for tried, outcome in zip(batch, outcomes, strict=True):
            with self._database.write() as session:
                webhooks.settle(session, tried, outcome)
            log.info("webhook_sent", delivery_id=tried.delivery_id, status=outcome.status_code, error=outcome.error)
        self._sweep()
        return 0 if len(batch) == _BATCH else self._settings.poll_seconds

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at < _SWEEP_SECONDS:
            return
        with self._database.write() as session:
            webhooks.sweep(session)
        self._swept_at = time.monotonic()


def send(batch: Sequence[Outgoing], *, private_allowed: bool) -> list[Outcome]:
    """Send all at once, each within 10 s; what came of each, in order. Raises nothing that a receiver could cause."""
    return asyncio.run(_send_all(batch, private_allowed)) if batch else []


async def _send_all(batch: Sequence[Outgoing], private_allowed: bool) -> list[Outcome]:
    # No connection is kept: the pool tells them apart by address, and two hosts may share one. No proxy from the
    # environment either: it would look the name up again.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(follow_redirects=False, trust_env=False, limits=limits) as client:
        return await asyncio.gather(*(_send_one(client, outgoing, private_allowed) for outgoing in batch))


async def _send_one(client: httpx2.AsyncClient, outgoing: Outgoing, private_allowed: bool) -> Outcome:
    at, began = time.time(), time.monotonic()
    status_code, error = None, None
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            status_code = await _post(client, outgoing, private_allowed)
    except TimeoutError:
        error = f"no answer within {_DEADLINE_SECONDS} s"
    except (TargetRefusedError, httpx2.HTTPError, OSError, UnicodeError) as reason:
        error = f"{type(reason).__name__}: {reason}"[:200]
    return Outcome(at, time.monotonic() - began, status_code, error)


async def _post(client: httpx2.AsyncClient, outgoing: Outgoing, private_allowed: bool) -> int:
    """The receiver's status; its body is not read."""
    url = httpx2.URL(outgoing.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    addresses = await resolve(url.host, port, private_allowed=private_allowed)
    for last, address in enumerate(addresses, start=1 - len(addresses)):
        request = client.build_request(
            "POST",
            url.copy_with(host=address),
            headers={**signed(outgoing), "host": url.netloc.decode("ascii")},
            content=outgoing.body.encode(),
            # TLS greets and checks the host by its name, although we connect to its address.
            extensions={
                "sni_hostname": url.raw_host.decode("ascii"),
                "timeout": dict.fromkeys(_PHASES, _DEADLINE_SECONDS),
            },
        )
        try:
            response = await client.send(request, stream=True)
        except httpx2.ConnectError:
            if last == 0:
                raise
            continue
        await response.aclose()
        return response.status_code
    raise OSError("the name has no address")


_PHASES = ("connect", "read", "write", "pool")


def signed(outgoing: Outgoing) -> dict[str, str]:
    """The headers of Standard Webhooks, signed at this moment with every secret that is valid."""
    now = datetime.now(UTC)
    signatures = [Webhook(secret).sign(outgoing.event_id, now, outgoing.body) for secret in outgoing.secrets]
    return {
        "content-type": "application/json",
        "user-agent": "Hone-Webhooks/1",
        "webhook-id": outgoing.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
