"""Clients of the service: they upload, ask for jobs, change their minds, and try again."""

import random
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.3


class Traffic:
    """A thread that keeps some jobs in flight, through the API alone.

    `accepted` are the jobs whose 202 came back. Whatever else a request ended in, the client knows
    nothing: such a job may be there or not.
    """

    def __init__(
        self, url: str, log: Path, configs: list[dict[str, Any]], seed: int, *, in_flight: int = 6
    ) -> None:
        self.accepted: list[str] = []
        self.failures = 0
        self._http = httpx.Client(base_url=url, timeout=_ANSWER_SECONDS, trust_env=False)
        self._log = log
        self._configs = configs
        self._rng = random.Random(seed)
        self._in_flight = in_flight
        self._cancels: dict[str, float] = {}  # when to cancel which job
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._http.close()

    def stop(self) -> None:
        """No new jobs; returns when the request under way has ended."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            try:
                self._turn()
            except httpx.TransportError:
                self.failures += 1

    def _turn(self) -> None:
        for job_id in [j for j, due in self._cancels.items() if due < time.monotonic()]:
            answer = self._http.post(f"/jobs/{job_id}/cancel")
            if answer.status_code in (202, 409):
                del self._cancels[job_id]
        for _ in range(self._in_flight - self._count_unfinished()):
            self._submit()

    def _count_unfinished(self) -> int:
        answer = self._http.get("/jobs", params={"limit": 30})
        if answer.status_code != httpx.codes.OK:
            self.failures += 1
            return self._in_flight
        return sum(job["finished_at"] is None for job in answer.json()["data"])

    def _submit(self) -> None:
        config = self._rng.choice(self._configs)
        datasets = self._http.get("/datasets", params={"limit": 5})
        known = datasets.json()["data"] if datasets.status_code == httpx.codes.OK else []
        if len(known) < 2 or self._rng.random() < 0.02:
            lines = self._log.read_text() + f"u-new,i-{len(known)},{self._rng.randrange(10**6)}\n"
            answer = self._http.post(
                "/jobs",
                files={"file": ("log.csv", lines)},
                data={"request": httpx.Request("POST", "/", json={"config": config}).content},
            )
        else:
            dataset = self._rng.choice(known)
            answer = self._http.post("/jobs", json={"dataset_id": dataset["id"], "config": config})
        if answer.status_code != httpx.codes.ACCEPTED:
            self.failures += 1
            return
        job_id = answer.json()["id"]
        self.accepted.append(job_id)
        if self._rng.random() < 0.15:
            self._cancels[job_id] = time.monotonic() + self._rng.uniform(0, 3)
