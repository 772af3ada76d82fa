"""Clients that want jobs, through whatever happens: each job has a key, and is asked for until it is acknowledged."""

import random
import threading
import time
from collections import Counter

import httpx2

TRAINING = b'{"prompt": "a", "completion": "b"}\n' * 3


class Submitter:
    """A thread that submits jobs, some 1 s apart, now and then one that it has submitted already, and pauses others."""

    def __init__(self, base_url: str, api_key: str, jobs: int, seed: int) -> None:
        #: The job's id by the key it was asked for with.
        self.acknowledged: dict[str, str] = {}
        self.complaints: list[str] = []
        #: How requests were answered: a status, or "no answer".
        self.answers: Counter[str] = Counter()
        self.repeated = 0
        #: Pauses that were asked for, by how they were answered: the job's status, or why not.
        self.pauses: Counter[str] = Counter()
        self._paused: list[str] = []
        self._jobs = jobs
        self._random = random.Random(seed)
        self._http = httpx2.Client(base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=20)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="submitter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        self._http.close()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("t.jsonl", TRAINING)}}
        file_id = self._post("/v1/files", "the file", **form)
        for number in range(self._jobs):
            if self._over.wait(self._random.uniform(0, 2)) or file_id is None:
                return
            self._submit(f"job {number}", file_id)
            if self._random.random() < 0.1:  # as a client whose answer got lost
                self.repeated += 1
                self._submit(f"job {self._random.randrange(number + 1)}", file_id)
            if self._random.random() < 0.3:
                self._pause(number)
            if self._random.random() < 0.2:
                self._resume()
        while self._paused and not self._over.is_set():
            self._resume()

    def _submit(self, key: str, file_id: str) -> None:
        job_id = self._post("/v1/fine_tuning/jobs", key, json={"model": "base", "training_file": file_id})
        if job_id is not None and self.acknowledged.setdefault(key, job_id) != job_id:
            self.complaints.append(f"{key} was answered with {self.acknowledged[key]}, then with {job_id}")

    def _pause(self, number: int) -> None:
        """Pause one of the last few jobs: it waits, runs, or has ended."""
        job_id = self.acknowledged.get(f"job {self._random.randrange(max(0, number - 3), number + 1)}")
        if job_id is not None and self._post(f"/v1/fine_tuning/jobs/{job_id}/pause", f"pause {number}"):
            self._paused.append(job_id)

    def _resume(self) -> None:
        if self._paused:
            job_id = self._paused.pop(self._random.randrange(len(self._paused)))
            self._post(f"/v1/fine_tuning/jobs/{job_id}/resume", f"resume {len(self._paused)} {job_id}")

    def _post(self, path: str, key: str, **request: object) -> str | None:
        """The id of what was made or moved, None if it can't be; asks again while there is no answer, or a 503."""
        while not self._over.is_set():
            try:
                answer = self._http.post(path, headers={"Idempotency-Key": key}, **request)  # type: ignore[arg-type]
            except httpx2.HTTPError:
                self.answers["no answer"] += 1
                time.sleep(0.2)
                continue
            self.answers[str(answer.status_code)] += 1
            if answer.status_code == 200:
                if path.endswith("/pause"):
                    self.pauses[answer.json()["status"]] += 1
                return str(answer.json()["id"])
            if answer.status_code == 400 and answer.json()["error"]["code"] == "job_ended":
                self.pauses["ended"] += path.endswith("/pause")
                return None
            if answer.status_code != 503:
                self.complaints.append(f"{path} answered {answer.status_code}: {answer.text}")
                return None
            if "retry-after" not in answer.headers or "error" not in answer.json():
                self.complaints.append(f"a 503 without Retry-After or OpenAI's shape: {answer.text}")
            time.sleep(0.2)
        return None
