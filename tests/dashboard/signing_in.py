"""What a browser does first, without one."""

from starlette.testclient import TestClient

#: What a browser says of a form of our own.
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}


def sign_in(client: TestClient, key: str) -> None:
    """Begin a session."""
    answer = client.post("/sign-in", data={"key": key, "next": "/files"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/files")
