"""What a user of the service does, done with polytope-client, and every number compared with the formula."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import eccodes
import numpy as np
import yaml
from polytope.api import Client
from polytope.api.helpers import HTTPResponseError
from polytope.api.helpers import PolytopeError as ClientError
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from polytope_server.demo.configuration import DEBUG, FORECASTS
from polytope_server.demo.sample import (
    DATES,
    MEMBERS,
    PACKING_ERROR,
    Encoder,
    Field,
    Values,
    value,
)
from polytope_server.errors import PolytopeError

_NOT_THE_USERS: Final = ("POLYTOPE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One field as it came back; arrays of shape ``(n_points,)``, in degrees and the parameter's unit."""

    field: Field
    unit: str
    latitude: Values
    longitude: Values
    values: Values

    def is_right(self) -> bool:
        """Whether every value is what the formula gives."""
        wanted = value(self.field, self.latitude, self.longitude)
        return bool(np.abs(self.values - wanted).max() < PACKING_ERROR)


def walk(*, url: str, username: str, password: str, console: Console, directory: Path) -> None:
    """Use the server at *url* as a user would, and show what comes of it.

    Files are written to *directory*, which must exist. The settings of whoever runs this (of the
    client, its keys, proxies) are neither read nor changed.

    Raises:
        PolytopeError: something was not as it should be.
    """
    with _as_a_new_user(directory):
        client = _client(url, username=username, password=password, directory=directory)
        user = _User(client=client, console=console, directory=directory)
        try:
            user.look_around()
            user.retrieve_fields()
            user.archive_a_field()
            user.be_refused()
            user.clean_up()
        except ClientError as exc:
            raise PolytopeError(f"the client failed: {_told(exc)}") from exc


class _User:
    """The steps of the walk; each raises `PolytopeError` if the server does not do what it should."""

    def __init__(self, *, client: Client, console: Console, directory: Path) -> None:
        self._client, self._console, self._directory = client, console, directory

    def look_around(self) -> None:
        self._heading("Which collections are there?")
        collections = self._client.list_collections()
        self._say(", ".join(collections))
        _expect({FORECASTS, DEBUG} <= set(collections), "the collections of the demo are there")
        self._heading(f"Is anybody there? (collection {DEBUG})")
        file = self._directory / "echo.bin"
        self._client.retrieve(DEBUG, "hello: world", output_file=str(file))
        self._say(file.read_text())
        _expect(file.read_text() == "hello: world", "an echo returns what was sent")

    def retrieve_fields(self) -> None:
        surface = Field(param="2t", date=DATES[0])
        self._retrieve(
            "Temperature at 2 m, every 6 hours",
            surface.keys() | {"step": "0/to/24/by/6"},
            [replace(surface, step=step) for step in (0, 6, 12, 18, 24)],
        )
        upper = Field(param="t", date=DATES[0], time="1200", level=850)
        self._retrieve(
            "Temperature and wind on two levels, two steps",
            upper.keys() | {"param": "t/u/v", "levelist": "850/500", "step": "0/12"},
            [
                replace(upper, param=param, level=level, step=step)
                for step in (0, 12)
                for level in (850, 500)
                for param in ("t", "u", "v")
            ],
        )
        member = Field(param="2t", date=DATES[0], step=24, number=1)
        self._retrieve(
            "Members of an ensemble",
            member.keys() | {"number": f"1/to/{MEMBERS[-1]}"},
            [replace(member, number=number) for number in MEMBERS],
        )

    def archive_a_field(self) -> None:
        field = Field(param="t", date=DATES[0], step=30, level=700)
        self._heading("Archive a new field, and retrieve it again")
        data = self._upload(field)
        metadata = self._metadata(field.keys())
        # metadata given as values, not as a file, fail inside the client on Python 3.10 and later
        self._client.archive(FORECASTS, str(metadata), str(data), inline_metadata=False)
        self._say(f"archived {data.stat().st_size} bytes: {_in_words(field.keys())}")
        file = self._retrieve("The field that was archived", field.keys(), [field])
        _expect(
            file.read_bytes() == data.read_bytes(), "what was archived comes back byte for byte"
        )

    def be_refused(self) -> None:
        field = Field(param="2t", date=DATES[0], step=7)
        self._refused(
            "A step that the archive does not hold",
            lambda: self._client.retrieve(FORECASTS, field.keys(), output_file=self._nowhere()),
            says="step 7",
        )
        self._refused(
            "A class that the collection does not offer",
            lambda: self._client.retrieve(
                FORECASTS, field.keys() | {"class": "rd"}, output_file=self._nowhere()
            ),
            says="class",
        )

    def clean_up(self) -> None:
        self._heading("Remove all that was asked for")
        requests = self._client.list_requests()
        _expect(len(requests) > 0, "the user's requests are listed")
        for request in requests:
            self._client.revoke(request)
        _expect(self._client.list_requests() == [], "requests that are revoked are gone")
        self._say(f"{len(requests)} requests and their data are gone")

    def _retrieve(self, title: str, request: Mapping[str, str], wanted: Sequence[Field]) -> Path:
        self._heading(title)
        self._say(_in_words(request), style="dim")
        file = self._directory / "retrieved.grib"
        begun = time.monotonic()
        self._client.retrieve(FORECASTS, dict(request), output_file=str(file))
        elapsed_ms = 1000 * (time.monotonic() - begun)
        found = list(decoded(file))
        _expect({one.field for one in found} == set(wanted), f"{title}: these fields are delivered")
        _expect(len(found) == len(wanted), f"{title}: each field is delivered once")
        _expect(all(one.is_right() for one in found), f"{title}: all values are right")
        self._console.print(table_of(found))
        self._say(
            f"{len(found)} field{'s' * (len(found) > 1)}, {file.stat().st_size} bytes, "
            f"{elapsed_ms:.0f} ms, every value as it should be"
        )
        return file

    def _refused(self, title: str, call: Callable[[], object], *, says: str) -> None:
        self._heading(title)
        try:
            call()
        except ClientError as exc:
            told = _told(exc)
        else:
            raise PolytopeError(f"{title}: the server should have refused this")
        self._say(f"refused: {told}", style="yellow")
        _expect(says in told, f"{title}: the message says {says!r}")

    def _upload(self, field: Field) -> Path:
        file = self._directory / "upload.grib"
        with Encoder() as encoder:
            file.write_bytes(encoder.message(field))
        return file

    def _metadata(self, keys: Mapping[str, str]) -> Path:
        file = self._directory / "metadata.yaml"
        file.write_text(yaml.safe_dump(dict(keys)))
        return file

    def _nowhere(self) -> str:
        return str(self._directory / "nothing.grib")

    def _heading(self, text: str) -> None:
        self._console.print()
        self._console.print(Text(text, style="bold"))

    def _say(self, text: str, *, style: str = "") -> None:
        self._console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))


def decoded(file: Path) -> Iterator[Decoded]:
    """The fields of a GRIB file, in its order."""
    with file.open("rb") as stream:
        while (handle := eccodes.codes_grib_new_from_file(stream)) is not None:
            try:
                yield _decoded(handle)
            finally:
                eccodes.codes_release(handle)


def _decoded(handle: Any) -> Decoded:
    def text(key: str) -> str:
        return str(eccodes.codes_get_string(handle, key))

    def integer(key: str) -> int | None:
        return int(text(key)) if eccodes.codes_is_defined(handle, key) else None

    field = Field(
        param=text("shortName"),
        date=text("mars.date"),
        time=text("mars.time"),
        step=int(text("mars.step")),
        level=integer("mars.levelist"),
        number=integer("mars.number"),
        expver=text("mars.expver"),
    )
    return Decoded(
        field=field,
        unit=text("units"),
        latitude=eccodes.codes_get_array(handle, "latitudes"),
        longitude=eccodes.codes_get_array(handle, "longitudes"),
        values=eccodes.codes_get_values(handle),
    )


def table_of(fields: Iterable[Decoded]) -> Table:
    """One line for each field: what it is, and its least, mean and greatest value."""
    table = Table()
    for name in ("param", "level", "member", "date", "time"):
        table.add_column(name)
    for name in ("step", "min", "mean", "max"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for one in fields:
        field = one.field
        table.add_row(
            field.param,
            "surface" if field.level is None else f"{field.level} hPa",
            "" if field.number is None else str(field.number),
            field.date,
            field.time,
            str(field.step),
            f"{one.values.min():.2f}",
            f"{one.values.mean():.2f}",
            f"{one.values.max():.2f}",
            one.unit,
        )
    return table


def _client(url: str, *, username: str, password: str, directory: Path) -> Client:
    keys = directory / "no-keys.json"
    keys.write_text("{}")
    hook = sys.excepthook  # which the client replaces for the whole process
    try:
        return Client(
            config_path=str(directory),
            key_path=str(keys),
            address=url,
            username=username,
            password=password,
            insecure=urlsplit(url).scheme == "http",
            quiet=True,
        )
    finally:
        sys.excepthook = hook


@contextmanager
def _as_a_new_user(home: Path) -> Iterator[None]:
    """Nobody's settings, keys and proxies: the client reads them from the environment and the home."""
    before = dict(os.environ)
    for name in before:
        if name.upper().startswith(_NOT_THE_USERS):
            del os.environ[name]
    os.environ["HOME"] = str(home)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _told(error: ClientError) -> str:
    """What the server said, without what the client adds."""
    if isinstance(error, HTTPResponseError) and error.messages:
        return " ".join(str(message) for message in error.messages)
    return str(error)


def _in_words(request: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={text}" for key, text in request.items())


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise PolytopeError(f"the walk found that this does not hold: {what}")
