"""Files, and uploads in parts."""

import hashlib
import io
from tempfile import NamedTemporaryFile

from tests.conformance.speaking import Speaker

CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 10
ITEMS = b'{"item": {"prompt": "add", "completion": "def add(): ..."}}\n{"item": {"prompt": "sub", "completion": "x"}}\n'
PURPOSES = {
    "fine-tune": CHAT,
    "evals": ITEMS,
    "user_data": b"any",
    "assistants": b"any",
    "vision": b"any",
    "batch": b"{}",
}


async def files(api: Speaker) -> None:
    """Every purpose and every way to give a file; lists by purpose, order and page; expiry; content; deletion."""
    made = [
        await api.call("files.create", file=(f"{purpose}.jsonl", content), purpose=purpose)
        for purpose, content in PURPOSES.items()
    ]
    assert [(file.purpose, file.status, file.expires_at) for file in made] == [
        (purpose, "processed", None) for purpose in PURPOSES
    ]
    expiring = await api.call(
        "files.create",
        file=("train.jsonl", io.BytesIO(CHAT), "application/octet-stream"),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert expiring.expires_at == expiring.created_at + 3600
    with NamedTemporaryFile(suffix=".jsonl") as named:
        named.write(CHAT)
        named.flush()
        named.seek(0)
        opened = await api.call("files.create", file=named.file, purpose="fine-tune")
    waited = await api.call("files.wait_for_processing", id=opened.id, poll_interval=0.1, max_wait_seconds=5)
    assert waited.status == "processed"

    ids = [file.id for file in [*made, expiring, opened]]
    assert [file.id for file in await api.every("files.list", limit=3)] == ids[::-1]
    assert [file.id for file in await api.every("files.list", limit=3, order="asc")] == ids
    newest = await api.call("files.list", order="desc", limit=1)
    assert newest.data[0].id == opened.id
    later = await api.call("files.list", after=opened.id, limit=1)
    assert later.data[0].id == expiring.id
    for_training = await api.call("files.list", purpose="fine-tune")
    assert [file.id for file in for_training.data] == [opened.id, expiring.id, made[0].id]

    assert await api.call("files.retrieve", file_id=expiring.id) == expiring
    content = await api.call("files.content", file_id=opened.id)
    assert content.read() == CHAT
    assert await api.call("files.retrieve_content", file_id=opened.id) == CHAT.decode()
    deleted = await api.call("files.delete", file_id=opened.id)
    assert (deleted.id, deleted.deleted) == (opened.id, True)
    await api.fails(404, "not_found", "files.retrieve", file_id=opened.id)
    refusal = await api.fails(
        400,
        "invalid_value",
        "files.create",
        file=("a", CHAT),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3599},
    )
    assert refusal.param == "expires_after.seconds"
    await api.fails(400, "invalid_value", "files.create", file=("a", b"x"), purpose="fine-tune-results")
    await api.fails(400, "invalid_value", "files.list", limit=10_001)
    await api.fails(400, "invalid_cursor", "files.list", after="file-none")
    await api.fails(413, "file_too_large", "files.create", file=("a", b"x" * 250_000), purpose="user_data")
    # Deleting what a page has shown, the cursor with it, does not lose the way through the list.
    page = await api.call("files.list", limit=2)
    seen = []
    while page.data:
        for file in page.data:
            await api.call("files.delete", file_id=file.id)
            seen.append(file.id)
        page = await api.call("files.list", limit=2, after=seen[-1])
    assert seen == ids[-2::-1]


async def uploads(api: Speaker) -> None:
    """Step by step and by the client's own helper, with every purpose; a wrong MD5; an upload that is given up."""
    halves = CHAT[:100], CHAT[100:]
    announced = {"filename": "train.jsonl", "mime_type": "text/jsonl", "bytes": len(CHAT)}
    upload = await api.call(
        "uploads.create", **announced, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (upload.status, upload.bytes, upload.file) == ("pending", len(CHAT), None)
    assert upload.expires_at == upload.created_at + 3600
    # Sent in the wrong order: `part_ids` says how they belong together.
    last = await api.call("uploads.parts.create", upload_id=upload.id, data=("part", halves[1]))
    first = await api.call("uploads.parts.create", upload_id=upload.id, data=io.BytesIO(halves[0]))
    assert last.upload_id == upload.id
    md5 = hashlib.md5(CHAT).hexdigest()
    in_order = {"upload_id": upload.id, "part_ids": [first.id, last.id]}
    refusal = await api.fails(400, "md5_mismatch", "uploads.complete", **in_order, md5="0" * 32)
    assert refusal.param == "md5"
    done = await api.call("uploads.complete", **in_order, md5=md5)
    assert (done.status, done.file.bytes, done.file.purpose) == ("completed", len(CHAT), "fine-tune")
    assert done.file.expires_at == done.file.created_at + 7200
    content = await api.call("files.content", file_id=done.file.id)
    assert content.read() == CHAT
    await api.fails(400, "upload_not_pending", "uploads.cancel", upload_id=upload.id)

    for purpose, data in PURPOSES.items():
        given_up = await api.call("uploads.create", **{**announced, "purpose": purpose})
        assert (await api.call("uploads.cancel", upload_id=given_up.id)).status == "cancelled"
        whole = await api.call(
            "uploads.upload_file_chunked",
            file=data,
            filename=f"{purpose}.jsonl",
            bytes=len(data),
            mime_type="text/jsonl",
            purpose=purpose,
            part_size=300,
            md5=hashlib.md5(data).hexdigest(),
        )
        assert (whole.status, whole.file.bytes) == ("completed", len(data))
