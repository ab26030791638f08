"""One request under a lease: what is going on with it, and why it may have to end early."""

import threading
import time
from enum import StrEnum

from polytope_server.observability.tracing import Parts
from polytope_server.request import Lease, Request
from polytope_server.worker.slot_process import SlotProcess


class Reason(StrEnum):
    """Why a run was cut off from outside."""

    LOST = "lost"
    """Revoked, or somebody else's by now: nothing may be written any more."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    DRAIN = "drain"
    """The worker is being stopped: somebody else should do it."""


class Run:
    """A request that this worker holds. Shared by its slot's thread and the watching thread."""

    def __init__(self, request: Request, lease: Lease) -> None:
        self.request, self.lease = request, lease
        self.started = time.monotonic()
        self.attempted = self.started
        """When it was last begun: waiting for staging is no fault of the datasource."""
        self.bytes_staged = 0
        self.bytes_reported = 0
        self.reason: Reason | None = None
        self.parts = Parts()
        """What has been done for it, for its trace."""
        self.known_good = self.started
        """When it was last known not to be revoked."""
        self.told_revoked: float | None = None
        """When we were told that it is; never, if the hint got lost."""
        self._process: SlotProcess | None = None
        self._lock = threading.Lock()

    @property
    def process(self) -> SlotProcess | None:
        """The process that works on it at the moment."""
        return self._process

    def on(self, process: SlotProcess | None) -> None:
        """Say which process works on it; one that was cut off already gets no work."""
        with self._lock:
            self._process = process
            if process is not None and self.reason is not None:
                process.kill()

    def cut(self, reason: Reason) -> None:
        """End it now; the first reason counts."""
        with self._lock:
            if self.reason is None:
                self.reason = reason
                if self._process is not None:
                    self._process.kill()
