"""Eight workers at one queue: every job starts once, on both databases."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from app.store import jobs
from app.store.engine import Store, database_now, open_store
from tests.app.store.kit import MINUTE, history, job, make_job

WORKERS = 8
JOBS = 40


def test_no_job_starts_twice(store: Store, dataset_id: str, database_url: str) -> None:
    ids = [make_job(store, dataset_id) for _ in range(JOBS)]
    together = Barrier(WORKERS)

    def work(number: int) -> list[str]:
        """Try to claim every job, as if every id had been delivered to every worker."""
        mine = open_store(database_url)  # as a process of its own would
        order = random.Random(number).sample(ids, JOBS)
        claimed = []
        together.wait()
        for job_id in order:
            with mine.write() as session:
                lease = jobs.claim(
                    session,
                    job_id,
                    owner=f"worker {number}",
                    lease=MINUTE,
                    now=database_now(session),
                )
            if lease is not None:
                assert lease.attempt == 1
                claimed.append(job_id)
        mine.close()
        return claimed

    with ThreadPoolExecutor(WORKERS) as pool:
        claimed = [job_id for each in pool.map(work, range(WORKERS)) for job_id in each]
    assert sorted(claimed) == sorted(ids)
    assert {job(store, job_id).attempt for job_id in ids} == {1}
    assert all(history(store, job_id) == ["queued", "running"] for job_id in ids)
