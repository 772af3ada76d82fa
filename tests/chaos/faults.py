"""What is done to the processes, in the order that a seed gives."""

import contextlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import psutil
import redis

from tests.chaos.processes import LEASE_SECONDS, WORKERS, Cluster

#: A pause of a process in which its lease runs out and its job is taken by another.
STOP_SECONDS = 2 * LEASE_SECONDS


class Faults:
    """Deals out faults; the same seed deals the same ones, with the same pauses between them."""

    #: How often each is dealt, in parts.
    WEIGHTS: ClassVar = {
        "kill api": 3,
        "kill worker": 4,
        "kill child": 5,
        "kill valkey": 3,
        "kill postgres": 3,
        "stop worker past its lease": 3,
        "stop worker and child past the lease": 2,
        "terminate worker": 2,
        "wipe broker": 2,
    }

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._random = random.Random(seed)
        self._stopped: set[str] = set()
        self._timers: list[threading.Timer] = []

    def deal(self, count: int, until: Callable[[], bool] = lambda: False) -> None:
        """Do ``count`` faults, some 1.5 s apart, and keep everything running; sooner over when ``until`` says so."""
        deck: list[str] = []
        while self.done.total() < count and not until():
            if not deck:  # every kind comes up in its share, whatever the seed
                deck = [name for name, parts in self.WEIGHTS.items() for _ in range(parts)]
                self._random.shuffle(deck)
            self._wait(self._random.uniform(0.5, 2.5))
            name, worker = deck.pop(), self._random.choice(WORKERS)
            if self._do(name, worker):
                self.done[name] += 1

    def settle(self) -> None:
        """Let stopped processes go on and start what has died."""
        for timer in self._timers:
            timer.join()
        self.revive()

    def revive(self) -> None:
        """Start again whatever is not running; PostgreSQL refuses while a process of its last life is still there."""
        for name, member in self._cluster.members.items():
            if not member.is_running:
                self._cluster.start(name)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.revive()
            time.sleep(min(left, 0.2))

    def _do(self, name: str, worker: str) -> bool:
        verb, _, rest = name.partition(" ")
        if rest.startswith("worker") or rest == "child":
            if worker in self._stopped:
                worker = next((other for other in WORKERS if other not in self._stopped), "")
            return bool(worker) and self._do_to_worker(verb, rest, worker)
        if verb == "wipe":
            with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self._cluster.redis_url) as broker:
                return bool(broker.flushall())
            return False
        self._cluster.members[rest].kill()
        return True

    def _do_to_worker(self, verb: str, rest: str, worker: str) -> bool:
        member = self._cluster.members[worker]
        if verb == "terminate":
            member.signal(signal.SIGTERM)
            return True
        if verb == "kill" and rest == "worker":
            member.kill()
            return True
        child = self._child_of(worker)
        if verb == "kill":
            if child is not None:
                child.kill()
            return child is not None
        victims = [psutil.Process(member.process.pid)] if member.process and member.is_running else []
        if "child" in rest and child is not None:
            victims.append(child)
        self._stop(worker, victims)
        return bool(victims)

    def _child_of(self, worker: str) -> psutil.Process | None:
        """The worker's stand-in, if it gets one within a second."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for process in self._cluster.members[worker].children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any(word.endswith("stand_in.py") for word in process.cmdline()[:2]):
                        return process
            time.sleep(0.02)
        return None

    def _stop(self, worker: str, victims: list[psutil.Process]) -> None:
        def go_on() -> None:
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.resume()
            self._stopped.discard(worker)

        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.suspend()
        self._stopped.add(worker)
        timer = threading.Timer(STOP_SECONDS, go_on)
        timer.start()
        self._timers.append(timer)
