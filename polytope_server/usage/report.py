"""What the records of use say: read from the files and the request store, chosen, added up."""

import contextlib
import gzip
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, cast

from rich.table import Column, Table
from rich.text import Text

from polytope_server.config.section import duration_s
from polytope_server.errors import ConfigurationError
from polytope_server.request_store import RequestStore
from polytope_server.usage.lines import as_json, key_of, parsed, time_text
from polytope_server.usage.lines import line as line_of

Record = Mapping[str, Any]
"""What one line says; see `polytope_server.usage.lines.as_json`."""

_LINE_BYTES: Final = 1 << 20
_SPOOL_BYTES: Final = 1 << 24
_REMEMBERED: Final = 100_000
"""Lines within which a record that stands there twice is recognised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records: those that finished from *since* until before *until*; None wants all."""

    since: str | None = None
    until: str | None = None
    user: str | None = None
    collection: str | None = None

    def __contains__(self, record: Record) -> bool:
        return (
            (self.since is None or record["finished"] >= self.since)
            and (self.until is None or record["finished"] < self.until)
            and (self.user is None or record["user"] == self.user)
            and (self.collection is None or record["collection"] == self.collection)
        )


@dataclass(slots=True, kw_only=True)
class Total:
    """What several requests have used together."""

    requests: int = 0
    failed: int = 0
    size_bytes: int = 0
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        self.requests += 1
        self.failed += record["status"] == "failed"
        self.size_bytes += record["bytes"]
        self.seconds += record["seconds_processing"]


def moment(text: str, *, option: str, now: float) -> str:
    """A time as records have it, from ISO 8601 (UTC unless it says otherwise), or so long ago (``7d``).

    Raises:
        ConfigurationError: it is neither.
    """
    with contextlib.suppress(ValueError, OverflowError):
        when = datetime.fromisoformat(text)
        return time_text((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    with contextlib.suppress(ValueError, OverflowError):
        return time_text(now - duration_s(text))
    raise ConfigurationError(
        f"{option}: must be a time such as 2026-01-31 or 2026-01-31T12:00, in UTC, or how long ago it "
        "was, such as 12h or 7d"
    )


def files_of(path: Path) -> Sequence[Path]:
    """The file, after what logrotate has made of earlier ones (``.1``, ``-20260131``, ``.2.gz``)."""
    rotated = re.compile(re.escape(path.name) + r"[.-]\d[\d-]*(\.gz)?", re.ASCII)
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for each in path.parent.iterdir():
            if rotated.fullmatch(each.name):
                with contextlib.suppress(FileNotFoundError):  # rotated again meanwhile
                    found.append((each.stat().st_mtime, each))
    return [*(each for _, each in sorted(found)), *([path] if path.exists() else [])]


class Reading:
    """All records, each once: those of the files, then those that only the store has yet.

    Memory is bounded, but for some tens of bytes for each record that waits in the store to be written.
    `strange` counts the lines that were no records.

    Args:
        files: oldest first; those that end in ``.gz`` are compressed.
        store: None to read files only.
    """

    def __init__(self, files: Sequence[Path], store: RequestStore | None) -> None:
        self._files, self._store = files, store
        self.strange = 0

    def __iter__(self) -> Iterator[Record]:
        """Raises: ConfigurationError, a file cannot be read; BackendUnavailable."""
        if not self._files:
            yield from self._stored()
            return
        with contextlib.ExitStack() as stack:
            # opened at once, so that none is rotated away before its turn
            streams = [stack.enter_context(_opened(path)) for path in self._files]
            # the store first: what is taken out of it meanwhile, we meet in a file
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))
            waiting: set[int] = set()
            for usage in self._usage():
                spool.write(line_of(usage))
                waiting.add(hash(key_of(as_json(usage))))
            seen: OrderedDict[int, None] = OrderedDict()
            for path, stream in zip(self._files, streams, strict=True):
                for record in self._lines(path, stream):
                    key = hash(key_of(record))
                    if key in seen:
                        continue
                    seen[key] = None
                    if len(seen) > _REMEMBERED:
                        seen.popitem(last=False)
                    waiting.discard(key)
                    yield record
            spool.seek(0)
            for text in spool:
                record = parsed(text) or {}
                if hash(key_of(record)) in waiting:
                    yield record

    def _stored(self) -> Iterator[Record]:
        return (as_json(usage) for usage in self._usage())

    def _usage(self) -> Iterator[Any]:
        if self._store is None:
            return
        after = (0.0, "")
        while page := self._store.usage(after=after):
            after = page[-1].key
            yield from page

    def _lines(self, path: Path, stream: IO[bytes]) -> Iterator[Record]:
        try:
            while text := stream.readline(_LINE_BYTES):
                record = parsed(text)
                if record is not None:
                    yield record
                elif text.endswith(b"\n"):  # else it is just being written
                    self.strange += 1
        except (OSError, EOFError) as exc:
            raise ConfigurationError(f"{path}: cannot be read: {exc}") from exc


def totals(records: Iterable[Record]) -> Mapping[tuple[str, str, str], Total]:
    """By user, realm and collection; the largest first."""
    found: dict[tuple[str, str, str], Total] = {}
    for record in records:
        key = (record["user"], record["realm"], record["collection"])
        found.setdefault(key, Total()).add(record)
    return dict(sorted(found.items(), key=lambda item: -item[1].size_bytes))


def table(found: Mapping[tuple[str, str, str], Total]) -> Table:
    """The totals, and their sum, for a terminal."""
    shown = Table(Column("user", footer="all"), "realm", "collection", show_footer=True)
    columns = ("requests", "failed", "bytes", "seconds")
    everything = Total()
    for total in found.values():
        everything.requests += total.requests
        everything.failed += total.failed
        everything.size_bytes += total.size_bytes
        everything.seconds += total.seconds
    for name, footer in zip(columns, _cells(everything), strict=True):
        shown.add_column(name, footer=footer, justify="right")
    for names, total in found.items():
        shown.add_row(*map(Text, names), *_cells(total))
    return shown


def _cells(total: Total) -> tuple[str, str, str, str]:
    return (
        f"{total.requests:,}",
        f"{total.failed:,}",
        f"{total.size_bytes:,}",
        f"{total.seconds:,.1f}",
    )


def _opened(path: Path) -> IO[bytes]:
    try:
        if path.suffix == ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        return path.open("rb")
    except OSError as exc:
        raise ConfigurationError(f"{path}: cannot be read: {exc.strerror}") from exc
