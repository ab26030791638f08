"""How every server is started, waited for, harmed and stopped."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Self

INSTALLED: Final = Path(
    os.environ.get("POLYTOPE_SERVICES", Path(__file__).parents[2] / ".services")
)
"""Where ``make services-install`` puts what is not in the distribution."""
_STOP_S: Final = 10.0


class Missing(Exception):
    """A server is not installed; the text says what to do."""


class StartFailed(Exception):
    """A server has not come up; the text ends with what it said."""


class Server(ABC):
    """One private instance of a server. A context manager: nothing is left running.

    `kill` and `start` on the same instance are a crash and a restart: directory, ports and so the data
    stay, as far as the server keeps any.

    Args:
        directory: where everything of it lies; a temporary one, removed at the end, if not given.
    """

    name: ClassVar[str]
    installation: ClassVar[str]
    """The command that installs it."""
    programs: ClassVar[Sequence[str]] = ()
    """What must be there: names to look up, or paths below `INSTALLED`."""
    start_s: ClassVar[float] = 30.0
    """How long a start may take on a busy machine."""

    def __init__(self, directory: Path | None = None) -> None:
        self._owned = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"polytope-{self.name}-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ports: dict[str, int] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def program(cls, name: str) -> str:
        """The path of one of its programs.

        Raises: Missing.
        """
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        beside = INSTALLED / name
        if found is None and beside.exists():
            found = str(beside)
        if found is None:
            raise Missing(f"{cls.name}: there is no {name}; install it with: {cls.installation}")
        return found

    @classmethod
    def check(cls) -> None:
        """Raises: Missing."""
        for name in cls.programs:
            cls.program(name)

    def port(self, use: str = "main") -> int:
        """A free port on loopback, the same one each time for the same use."""
        if use not in self._ports:
            self._ports[use] = free_port()
        return self._ports[use]

    # --- life

    @abstractmethod
    def _launch(self) -> None:
        """Start the processes with `_spawn`; called again after a crash, with the data still there."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it does what its clients need, by their own protocol. Errors count as no."""

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises: Missing, StartFailed.
        """
        self.launch()
        self.until_ready()
        return self

    def launch(self) -> None:
        """Only start it, so that others can be started meanwhile; to be followed by `until_ready`.

        In a thread that lives as long as the server shall: the kernel ends it with the thread.

        Raises: Missing, StartFailed.
        """
        self.check()
        self._launch()

    def is_running(self) -> bool:
        """Whether all its processes are there."""
        return all(child.poll() is None for child in self._children.values())

    def until_ready(self) -> None:
        """Raises: StartFailed."""
        end = time.monotonic() + self.start_s
        while True:
            if self._tried():
                return
            for label, child in self._children.items():
                if child.poll() is not None:
                    self.kill()
                    raise StartFailed(f"{self.name}: {label} ended: {self.log()[-3000:]}")
            if time.monotonic() > end:
                self.kill()
                raise StartFailed(
                    f"{self.name}: no answer for {self.start_s} s: {self.log()[-3000:]}"
                )
            time.sleep(0.05)

    def _tried(self) -> bool:
        try:
            return self._answers()
        except Exception:  # noqa: BLE001 - each client has errors of its own, and all of them mean: not yet
            return False

    def stop(self) -> None:
        """End it as an operator would, or by force if that takes too long."""
        for child in reversed(self._children.values()):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in reversed(self._children.values()):
            try:
                child.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                break
        self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of it, all at once."""
        self._signal(signal.SIGKILL)
        for child in self._children.values():
            child.wait(timeout=30)
        self._children.clear()

    def pause(self) -> None:
        """SIGSTOP: connections are still accepted by the kernel, and nothing answers."""
        self._signal(signal.SIGSTOP)
        end = time.monotonic() + _STOP_S
        # the signal is only on its way when the call returns, and an answer might still come out
        while not all(_is_stopped(child.pid) for child in self._children.values()):
            if time.monotonic() > end:
                raise StartFailed(f"{self.name}: cannot be paused")
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.stop()
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What its processes have printed."""
        files = sorted(self.directory.glob("*.out"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children.values():
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                continue

    def _spawn(
        self,
        label: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        with_us: signal.Signals = signal.SIGKILL,
    ) -> subprocess.Popen[bytes]:
        """A child in a group of its own that ends, by this signal, when this process does."""
        prefix = ["setpriv", "--pdeathsig", with_us.name.removeprefix("SIG")]
        with (self.directory / f"{label}.out").open("ab") as out:
            self._children[label] = subprocess.Popen(
                [*prefix, *arguments],
                cwd=self.directory,
                env={
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": str(self.directory),
                    **(environment or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return self._children[label]


def _is_stopped(pid: int) -> bool:
    """Whether all of its threads are; one that has ended is."""
    try:
        stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:  # a thread has ended just now
        return False
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
