"""Webhooks: their endpoints, where the client manages them, and the check of what they bring, in every version."""

import json
import time
from typing import Any
from urllib.request import Request, urlopen

import openai

from tests.api.receiver import Receiver, receiving
from tests.conformance.parameters import places_of
from tests.conformance.speaking import Speaker, methods_of

OURS = (
    "eval.run.canceled", "eval.run.failed", "eval.run.succeeded",
    "fine_tuning.job.cancelled", "fine_tuning.job.failed", "fine_tuning.job.succeeded",
)  # fmt: skip


def _post(api: Speaker, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """By hand: older clients receive webhooks and can't manage their endpoints."""
    headers = {"Authorization": f"Bearer {api.client.api_key}", "Content-Type": "application/json"}
    with urlopen(Request(f"{api.base_url}/v1{path}", json.dumps(body).encode(), headers)) as answer:
        return dict(json.load(answer))


async def signatures(api: Speaker) -> None:
    """An event of every type, sent by Hone over HTTP, is taken as genuine; the same with a letter changed is not."""
    with receiving() as receiver:
        endpoint = _post(api, "/webhook_endpoints", {"name": "e", "url": receiver.url, "event_types": list(OURS)})
        secret = endpoint["signing_secret"]
        for event_type in OURS:
            _post(api, f"/webhook_endpoints/{endpoint['id']}/test", {"event_type": event_type})
            headers, payload = receiver.requests[-1]
            event = await api.call("webhooks.unwrap", payload=payload, headers=headers, secret=secret)
            assert (event.type, event.object) == (event_type, "event")
            signed = {"payload": payload, "headers": headers, "secret": secret}
            assert await api.call("webhooks.verify_signature", **signed, tolerance=300) is None
        forged = {**signed, "payload": payload.replace("evt_", "evt-")}
        taken = True
        try:
            await api.call("webhooks.verify_signature", **forged)
        except openai.InvalidWebhookSignatureError:
            taken = False
        assert not taken


async def endpoints(api: Speaker) -> None:
    """Every method of the endpoints, and every event type there is: asked for, or refused by name."""
    if not api.has("webhooks.create"):
        return
    with receiving() as receiver:
        await _manage(api, receiver)


async def _manage(api: Speaker, receiver: Receiver) -> None:
    made = await api.call("webhooks.create", name="ours", url=receiver.url, event_types=list(OURS))
    mine = {"webhook_endpoint_id": made.id}
    assert made.signing_secret.startswith("whsec_")
    other = await api.call("webhooks.create", name="other", url=receiver.url, event_types=[OURS[0]])
    known = await api.call("webhooks.event_types.list")
    assert sorted(known.data) == sorted(OURS)
    seen = await api.call("webhooks.retrieve", **mine)
    assert seen.signing_secret_hint.endswith(made.signing_secret[-4:])
    changed = await api.call("webhooks.update", **mine, name="new", url=receiver.url + "2", event_types=list(OURS))
    assert (changed.name, changed.url) == ("new", receiver.url + "2")
    newest = await api.call("webhooks.list", limit=1)
    assert [entry.id for entry in newest.data] == [other.id]
    after = await api.call("webhooks.list", limit=1, after=other.id)
    assert [entry.id for entry in after.data] == [made.id]
    for event_type in OURS:
        tested = await api.call("webhooks.test", **mine, event_type=event_type)
        assert tested.success is True
    rotated = await api.call("webhooks.rotate_secret", **mine, keep_old_secret_active_for_24_hours=True)
    await api.call("webhooks.test", **mine, event_type=OURS[0])
    headers, payload = receiver.requests[-1]
    for secret in (made.signing_secret, rotated.signing_secret):
        await api.call("webhooks.unwrap", payload=payload, headers=headers, secret=secret)
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 300
    for event_type in _event_types(api):
        if event_type not in OURS:
            asked = {"name": "n", "url": receiver.url, "event_types": [event_type]}
            await api.refuses(f"event_types[]={event_type}", "webhooks.create", **asked)
            await api.refuses(f"event_types[]={event_type}", "webhooks.update", **mine, event_types=[event_type])
            await api.refuses(f"event_type={event_type}", "webhooks.test", **mine, event_type=event_type)
    for endpoint in (made, other):
        assert (await api.call("webhooks.delete", webhook_endpoint_id=endpoint.id)).deleted is True
    await api.fails(404, "not_found", "webhooks.retrieve", **mine)


def _event_types(api: Speaker) -> list[str]:
    places = places_of(methods_of(api.client)["webhooks.create"])
    return sorted(place.partition("=")[2] for place in places if place.startswith("event_types[]="))
