"""Users who go on asking whatever happens to the servers, and what they were promised."""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import requests
from deployment import Deployment

SIZES: Final = (0, 1, 65_537, 3_000_001)
SLOW_SIZE: Final = 1_000_000
PATIENCE_S: Final = 90.0


class Load:
    """Threads that submit, upload, poll and download until the context is left. What is away is asked again.

    Every answer that is neither success nor "later" (503, or no answer) ends the thread, and breaks `check`.
    """

    def __init__(self, server: Deployment) -> None:
        self._server = server
        self._over = threading.Event()
        self._broken: list[BaseException] = []
        self._lock = threading.Lock()
        self._accepted: dict[str, tuple[str, int]] = {}
        """From an id to the collection, or ``archive``, and the size of the result."""
        self._keys: set[str] = set()
        self.finished = 0
        works = (self._ask, self._ask, self._wait, self._wait)
        self._threads = [
            threading.Thread(target=self._run, args=(work, number))
            for number, work in enumerate(works)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2 * PATIENCE_S)

    def check(self) -> int:
        """Every accepted request has ended, or ends now, in its whole result; returns how many there were."""
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        self._raise()
        for request_id, (kind, size) in self._accepted.items():
            self._end(request_id, kind, size)
        records = self._server.call("GET", "/requests").json()["message"]
        known = {record["id"] for record in records}
        assert set(self._accepted) <= known, "an accepted request is lost"
        assert len(self._keys) == len(self._accepted), "one submission has made two requests"
        return len(self._accepted)

    def _raise(self) -> None:
        if self._broken:
            raise AssertionError(f"a client met something else: {self._broken[0]}") from (
                self._broken[0]
            )

    # --- what clients do

    def _run(self, work: Callable[[str, int], None], thread: int) -> None:
        number = 0
        try:
            while not self._over.wait(0.1):
                work(f"{thread}-{number}", number)
                number += 1
        except BaseException as exc:  # noqa: BLE001 - told by `check`, in the thread of the test
            self._broken.append(exc)

    def _ask(self, key: str, number: int) -> None:
        """Submit, or archive, and leave it at that."""
        if number % 5 == 4:
            self._archive(key)
        elif number % 11 == 0:
            self._submit(key, "slow", SLOW_SIZE)
        else:
            self._submit(key, "bytes", SIZES[number % len(SIZES)])

    def _wait(self, key: str, number: int) -> None:
        """Submit, and poll until the result is there."""
        size = SIZES[number % len(SIZES)]
        self._end(self._submit(key, "bytes", size), "bytes", size)
        self.finished += 1

    def _submit(self, key: str, collection: str, size: int) -> str:
        return self._accept(
            key,
            self._post(key, collection, {"verb": "retrieve", "request": str(size)}),
            (collection, size),
        )

    def _archive(self, key: str) -> None:
        answer = self._post(key, "c1", {"verb": "archive", "request": {"class": "rd"}})
        data = b"d" * 70_000
        headers = {"X-Checksum": hashlib.md5(data).hexdigest()}
        location = answer.headers["Location"]
        sent = self._patiently("POST", location, data=data, headers=headers)
        assert sent.status_code == 202, f"upload: {sent.status_code} {sent.text}"
        self._accept(key, answer, ("archive", len(data)))

    def _post(self, key: str, collection: str, body: dict[str, Any]) -> requests.Response:
        answer = self._patiently(
            "POST", f"/requests/{collection}", json=body, headers={"Idempotency-Key": key}
        )
        assert answer.status_code == 202, f"submission: {answer.status_code} {answer.text}"
        return answer

    def _accept(self, key: str, answer: requests.Response, promised: tuple[str, int]) -> str:
        request_id = answer.headers["Location"].rpartition("/")[2]
        with self._lock:
            self._accepted[request_id] = promised
            self._keys.add(key)
        return request_id

    def _end(self, request_id: str, kind: str, size: int) -> None:
        path = f"/uploads/{request_id}" if kind == "archive" else f"/requests/{request_id}"
        end = time.monotonic() + PATIENCE_S
        while (answer := self._patiently("GET", path)).status_code == 202:
            assert time.monotonic() < end, f"{request_id} ({kind}) does not end: {answer.text}"
        said = f"{request_id} ({kind}): {answer.status_code} {answer.text[:300]}"
        if kind == "archive":
            assert answer.status_code == 200, said
            return
        assert answer.status_code == 303, said
        data = self._patiently("GET", answer.headers["Location"], user=None)
        assert data.status_code == 200, f"{request_id}: its result: {data.status_code}"
        assert data.content == b"x" * size, f"{request_id}: {len(data.content)} bytes of {size}"

    def _patiently(self, method: str, path: str, **options: Any) -> requests.Response:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = self._server.call(method, path, **options)
                if answer.status_code != 503:
                    return answer
            except requests.RequestException:
                pass  # nobody listens, or it was cut off: a client tries again
            assert time.monotonic() < end, f"{method} {path}: no answer for {PATIENCE_S} s"
            time.sleep(0.1)
