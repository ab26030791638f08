"""Kills processes at random moments under load, and checks after each kill that every promise is kept.

One in ten is not killed but stopped for longer than its lease, and wakes up to find that it has lost it.

``python tests/chaos/chaos.py [--seed N] [--kills 200] [--stack]``. The seed is printed; the same seed picks
the same processes and the same moments again. With ``--stack`` the back-ends are servers, and victims as
well: killed and started again, stopped, not heard, not reached, cut off in the middle of an answer. Promises,
as `docs/benchmarks.md` tells them:

- a request that was accepted ends, in its result or in the failure that it was made for;
- a result that was announced is there, whole, and is what the datasource was asked for;
- no attempt at a request is begun twice, and none is begun while an earlier one goes on;
- what a client repeats with its idempotency key is one request;
- in the end staging holds the results, and nothing else.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from deployment import Deployment, until
from fullstack import Back, all_is_well, harmable
from services.proxy import Mode

from polytope_server.config.loading import load
from polytope_server.lifecycle import Stop, open_chosen

VICTIMS = ("frontend", "broker", "broker-2", "worker", "worker-2", "garbage-collector", "slot")
CLIENTS = 4
LEASE_S = 2
LOST_RUN_S = 1.5
"""How long a run may go on that has lost its lease: it asks once a second whether it has."""
LOST_RUN_AWAY_S = 15.0
"""The same where a store may be away, or silent, when it asks."""
AWAY_S = 6.0
"""How long a server is kept away at most."""
STALLS = 0.1
"""The part of the kills that are stalls."""
STALL_S = LEASE_S + 1.5
SIZES = (0, 1, 65_537, 700_000, 3_000_001)
END_S = 120.0
CHANGES: Mapping[str, Any] = {
    "broker": {"lease": LEASE_S, "max_attempts": 20},
    "worker": {"lease": LEASE_S, "slots": 2},
    "datasources": {"slow": {"type": "dummy", "bytes_per_second": 1_500_000}},
    "collections": {"slow": {"roles": {"test": ["default"]}, "datasources": ["slow"]}},
    "frontend": {"max_unfinished": 100_000},
    "garbage-collector": {"interval": 1, "dangling_age": 5},
}


@dataclass(slots=True)
class Promised:
    """A request that was accepted, and how it must end. `kind` is a collection, or what is done to it."""

    kind: str
    size: int = 0
    texts: frozenset[str] = frozenset()
    key: str = ""


@dataclass(slots=True)
class Ledger:
    """What the clients were promised. Shared by their threads."""

    open: dict[str, Promised] = field(default_factory=dict)
    kept: int = 0
    by_key: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    results: dict[str, Promised] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self, request_id: str, promised: Promised) -> None:
        with self.lock:
            self.by_key[promised.key].add(request_id)
            self.open[request_id] = promised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--stack", action="store_true", help="on servers, which are victims as well"
    )
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"SEED={seed}: {options.kills} kills", flush=True)
    started = _on_servers if options.stack else _embedded
    with tempfile.TemporaryDirectory(prefix="polytope-chaos-") as temporary:
        try:
            with started(Path(temporary) / "d") as (server, backs):
                _run(server, backs, random.Random(seed), kills=options.kills)
        except AssertionError as exc:
            sys.exit(f"BROKEN with SEED={seed}: {exc}")
    print(f"all promises were kept (SEED={seed})")


@contextmanager
def _embedded(directory: Path) -> Iterator[tuple[Deployment, Mapping[str, Back]]]:
    with Deployment(directory, changes=CHANGES) as server:
        server.start("broker", label="broker-2")
        server.start("worker", label="worker-2")
        yield server, {}


@contextmanager
def _on_servers(directory: Path) -> Iterator[tuple[Deployment, Mapping[str, Back]]]:
    with harmable(directory, CHANGES) as (server, backs):
        server.start("broker", label="broker-2")
        yield server, backs


def _run(
    server: Deployment, backs: Mapping[str, Back], chance: random.Random, *, kills: int
) -> None:
    ledger, over = Ledger(), threading.Event()
    broken: list[BaseException] = []
    clients = [
        threading.Thread(
            target=_client, args=(server, ledger, random.Random(chance.random()), over, broken)
        )
        for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    victims = [*VICTIMS, *backs]
    begin = time.monotonic()
    try:
        for number in range(1, kills + 1):
            victim = chance.choice(victims)
            time.sleep(chance.uniform(0.0, 1.0))
            with ledger.lock:
                before = dict(ledger.open)
            _harm(server, backs, victim, chance)
            assert not broken, f"a client met something else: {broken[0]!r}"
            _settle(server, ledger, before)
            if number % 10 == 0:
                seconds = time.monotonic() - begin
                print(f"{number} kills, {ledger.kept} requests, {seconds:.0f} s", flush=True)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert not broken, f"a client met something else: {broken[0]!r}"
    if backs:
        until(lambda: all_is_well(server), deadline_s=END_S, what="all servers are there again")
    _settle(server, ledger, dict(ledger.open))
    _check_keys(ledger)
    _check_attempts(server, lost_run_s=LOST_RUN_AWAY_S if backs else LOST_RUN_S)
    _check_staging(server, ledger)


# --- what clients do


def _client(
    server: Deployment,
    ledger: Ledger,
    chance: random.Random,
    over: threading.Event,
    broken: list[BaseException],
) -> None:
    """Submits, uploads and revokes until it is over; a server that is away is asked again."""
    number = 0
    try:
        while not over.wait(chance.uniform(0.02, 0.25)):
            number += 1
            key = f"{threading.get_ident()}-{number}"
            kind = chance.choice(("c1", "bytes", "bytes", "slow", "failing", "archive", "revoked"))
            size = chance.choice(SIZES)
            _ask(server, ledger, kind=kind, size=size, key=key)
    except BaseException as exc:
        broken.append(exc)
        raise


def _ask(server: Deployment, ledger: Ledger, *, kind: str, size: int, key: str) -> None:
    collection = {"archive": "c1", "revoked": "bytes"}.get(kind, kind)
    verb = "archive" if kind == "archive" else "retrieve"
    text = str(size) if collection in ("bytes", "slow") else f"text {key}"
    answer = _patiently(
        lambda: server.call(
            "POST",
            f"/requests/{collection}",
            json={"verb": verb, "request": {"class": "rd"} if kind == "archive" else text},
            headers={"Idempotency-Key": key},
        )
    )
    assert answer.status_code == 202, f"submission: {answer.status_code} {answer.text}"
    location = answer.headers["Location"]
    request_id = location.rpartition("/")[2]
    promised = Promised(kind=kind, size=size, key=key, texts=frozenset({text}))
    if kind == "revoked":
        ledger.by_key[key].add(request_id)
        gone = _patiently(lambda: server.call("DELETE", f"/requests/{request_id}"))
        assert gone.status_code in (200, 404), f"revocation: {gone.status_code} {gone.text}"
        return
    if kind == "archive":
        data = b"d" * size
        headers = {"X-Checksum": hashlib.md5(data).hexdigest()}
        sent = _patiently(lambda: server.call("POST", location, data=data, headers=headers))
        assert sent.status_code == 202, f"upload: {sent.status_code} {sent.text}"
    ledger.accept(request_id, promised)


def _patiently(call: Callable[[], requests.Response]) -> requests.Response:
    """The answer of a server that may be dead or starting at the moment."""
    end = time.monotonic() + END_S
    while True:
        try:
            answer = call()
            if answer.status_code != 503:
                return answer
        except requests.RequestException:
            pass
        assert time.monotonic() < end, f"no answer for {END_S} seconds"
        time.sleep(0.05)


# --- what happens to processes and servers


def _harm(
    server: Deployment, backs: Mapping[str, Back], victim: str, chance: random.Random
) -> None:
    if victim in backs:
        harm = chance.choice((_killed, _stopped, _unheard, _unreached, _refused, _cut, _reset))
        harm(backs[victim], chance.uniform(0.0, AWAY_S))
    elif victim != "slot" and chance.random() < STALLS:
        _stall(server, victim)
    else:
        _kill(server, victim, chance)
        time.sleep(chance.uniform(0.0, 0.3))
        _start_again(server, victim)


def _killed(back: Back, away_s: float) -> None:
    back.server.kill()
    time.sleep(away_s)
    back.server.start()


def _stopped(back: Back, away_s: float) -> None:
    back.server.pause()
    time.sleep(away_s)
    back.server.resume()


def _in_mode(back: Back, mode: Mode, away_s: float) -> None:
    back.proxy.mode = mode
    time.sleep(away_s)
    back.proxy.mode = Mode.PASS


def _unheard(back: Back, away_s: float) -> None:
    _in_mode(back, Mode.LOSE_REPLIES, away_s)


def _unreached(back: Back, away_s: float) -> None:
    _in_mode(back, Mode.BLACKHOLE, away_s)


def _refused(back: Back, away_s: float) -> None:
    back.proxy.reset_all()
    _in_mode(back, Mode.REFUSE, away_s)


def _cut(back: Back, away_s: float) -> None:
    """Every connection breaks in the middle of some answer, and so do those that are made instead."""
    back.proxy.hamper(cut_after=1500)
    time.sleep(away_s)
    back.proxy.hamper()


def _reset(back: Back, _away_s: float) -> None:
    back.proxy.reset_all()


def _kill(server: Deployment, victim: str, chance: random.Random) -> None:
    if victim == "slot":
        slots = [
            child
            for label in ("worker", "worker-2")
            for child in _children(server.processes[label].pid)
        ]
        if slots:
            try:
                _signal(chance.choice(sorted(slots)))
            except ProcessLookupError:
                return  # it was being replaced
        return
    server.kill(victim)


def _stall(server: Deployment, victim: str) -> None:
    server.kill(victim, signal.SIGSTOP)
    time.sleep(STALL_S)
    server.kill(victim, signal.SIGCONT)


def _signal(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _start_again(server: Deployment, victim: str) -> None:
    if victim != "slot":
        server.start(victim.removesuffix("-2"), label=victim)


# --- what must be true


def _settle(server: Deployment, ledger: Ledger, promised: Mapping[str, Promised]) -> None:
    """Every one of these ends as it must."""
    for request_id, each in promised.items():
        path = f"/uploads/{request_id}" if each.kind == "archive" else f"/requests/{request_id}"
        end = time.monotonic() + END_S
        while (answer := _patiently(lambda path=path: server.call("GET", path))).status_code == 202:
            assert time.monotonic() < end, f"{request_id} ({each.kind}) does not end: {answer.text}"
        _check_end(server, request_id, each, answer)
        with ledger.lock:
            ledger.open.pop(request_id, None)
            ledger.kept += 1
            if answer.status_code == 303:
                ledger.results[request_id] = each


def _check_end(
    server: Deployment, request_id: str, each: Promised, answer: requests.Response
) -> None:
    said = f"{request_id} ({each.kind}): {answer.status_code} {answer.text[:300]}"
    if answer.status_code == 400:
        # a slot that was killed fails its request, and says so
        assert each.kind == "failing" or "crashed (SIGKILL)" in answer.text, said
        return
    if each.kind == "archive":
        assert answer.status_code == 200, said
        return
    assert answer.status_code == 303, said
    link = answer.headers["Location"]
    data = _patiently(lambda: _whole(server, link))
    assert data.status_code == 200, f"{request_id}: its result: {data.status_code}"
    if each.kind == "c1":
        assert data.text in each.texts, f"{request_id}: {data.text[:100]!r}"
    else:
        assert data.content == b"x" * each.size, f"{request_id}: {len(data.content)} bytes"


def _whole(server: Deployment, link: str) -> requests.Response:
    """A download; one that is cut off by the kill of a frontend raises, and is begun again."""
    return server.call("GET", link, user=None)


def _check_keys(ledger: Ledger) -> None:
    doubles = {key: ids for key, ids in ledger.by_key.items() if len(ids) > 1}
    assert not doubles, f"one key, several requests: {doubles}"


def _check_attempts(server: Deployment, *, lost_run_s: float) -> None:
    """From the workers' logs: when each attempt began, and when it ended, if it was not killed."""
    begun: dict[str, dict[int, float]] = defaultdict(dict)
    ended: dict[tuple[str, int], float] = {}
    last: dict[tuple[str, str], int] = {}
    for label in ("worker", "worker-2"):
        for line in server.log(label).splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # cut off by a kill
            request_id, at = event.get("request_id"), event.get("asctime")
            if event["message"] == "started":
                attempt = event["attempt"]
                earlier = begun[request_id].get(attempt)
                assert earlier is None or _was_handed_back(server, request_id), (
                    f"attempt {attempt} at {request_id} was begun twice"
                )
                begun[request_id][attempt] = _seconds(at)
                last[label, request_id] = attempt
            elif event["message"].startswith(("finished", "stopped: ", "the request was revoked")):
                ended[request_id, last.get((label, request_id), 0)] = _seconds(at)
    for request_id, attempts in begun.items():
        for attempt, end in (
            (attempt, ended.get((request_id, attempt))) for attempt in sorted(attempts)
        ):
            following = attempts.get(attempt + 1)
            assert following is None or end is None or end - following < lost_run_s, (
                f"attempts {attempt} and {attempt + 1} at {request_id} ran at once"
            )


def _was_handed_back(server: Deployment, request_id: str) -> bool:
    return any(
        request_id in line and "Handed on" in line for line in server.all_logs().splitlines()
    )


def _seconds(asctime: str) -> float:
    return datetime.fromisoformat(asctime).timestamp()


def _check_staging(server: Deployment, ledger: Ledger) -> None:
    """When the collector has had its time, staging holds what was announced, and nothing else."""

    def strangers() -> set[str]:
        return {
            name for name in _names(server) if name[:36] not in ledger.results or "-in-" in name
        }

    until(lambda: not strangers(), deadline_s=60, what=f"left in staging: {strangers()}")


def _names(server: Deployment) -> Sequence[str]:
    """Of all that lies in staging; where that is a directory, also what nobody is to see."""
    root = server.directory / "staging"
    if root.exists():
        return [path.name for path in root.rglob("*") if path.is_file()]
    config = load([server.file], environ=os.environ, system_file=None).config
    staging = open_chosen("staging", config.staging, stop=Stop())
    names: list[str] = []
    while page := staging.list("", after=names[-1] if names else ""):
        names += [each.name for each in page]
    return names


if __name__ == "__main__":
    main()
