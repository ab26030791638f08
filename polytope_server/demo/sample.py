"""A small, real, reproducible FDB: smooth fields of a formula, made from the samples of ecCodes.

Class od, expver 0001, on the octahedral grid O32 (5248 points), for each date:

- oper/fc at 0000 and 1200, steps 0/6/12/18/24: 2t, and t/u/v on 1000, 850 and 500 hPa;
- enfo/pf 1/2/3 at 0000, steps 0/12/24: 2t, and t on 850 and 500 hPa.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import eccodes
import numpy as np
import pyfdb
from numpy.typing import NDArray

SCHEMA: Final = """\
# [ key of a directory [ key of a file [ key of an index ]]]

date:      Date;
time:      Time;
step:      Step;
param:     Param;
levelist:  Double;
number:    Integer;
expver:    Expver;

[ class, expver, stream=oper/scda/wave, date, time, domain?
    [ type, levtype
        [ step, levelist?, param ]]
]

[ class, expver, stream=enfo, date, time, domain?
    [ type, levtype
        [ step, number?, levelist?, param ]]
]
"""

DATES: Final = ("20250101", "20250102")
LEVELS: Final = (1000, 850, 500)
MEMBERS: Final = (1, 2, 3)
PARAMS: Final[Mapping[str, int]] = MappingProxyType({"2t": 167, "t": 130, "u": 131, "v": 132})
"""Short names and their paramId."""
PACKING_ERROR: Final = 0.01
"""How far a decoded value may be from the formula, in the parameter's own unit."""

_HALF = 32
_BITS = 16
_ORIGIN = dt.datetime(2025, 1, 1)

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field. `level` is in hPa, None at the surface; `number` is a member of the ensemble, or None."""

    param: str
    date: str
    time: str = "0000"
    step: int = 0
    level: int | None = None
    number: int | None = None
    expver: str = "0001"

    def keys(self) -> dict[str, str]:
        """All that an FDB files it under."""
        keys = {
            "class": "od",
            "expver": self.expver,
            "stream": "oper" if self.number is None else "enfo",
            "date": self.date,
            "time": self.time,
            "domain": "g",
            "type": "fc" if self.number is None else "pf",
            "levtype": "sfc" if self.level is None else "pl",
            "step": str(self.step),
            "param": self.param,
        }
        if self.number is not None:
            keys["number"] = str(self.number)
        if self.level is not None:
            keys["levelist"] = str(self.level)
        return keys


def value(field: Field, latitude: Values, longitude: Values) -> Values:
    """What a field holds at some points: K for temperatures, m/s for winds; degrees in.

    Nothing is symmetric in it, so that a flipped grid or a field under a wrong name shows.
    """
    start = dt.datetime.strptime(field.date + field.time, "%Y%m%d%H%M")
    hours = (start - _ORIGIN).total_seconds() / 3600 + field.step
    phi, lam = np.radians(latitude), np.radians(longitude)
    phase = 4 * lam - 2 * np.pi * hours / 120 + 0.4 * (field.number or 0)
    wave = np.cos(phi) ** 2 * np.cos(phase)
    polar = 45 * np.sin(phi) ** 2 + 7 * np.sin(phi)
    if field.level is None:
        local_hour = hours + longitude / 15
        day = 5 * np.cos(phi) * np.cos(2 * np.pi * (local_hour - 15) / 24)
        result = 300 - polar + day + 4 * wave
    else:
        height = (1000 - field.level) / 1000
        match field.param:
            case "t":
                base = max(216.65, 288.15 * (field.level / 1013.25) ** 0.1903)
                result = base - 0.6 * (1 - height) * polar + 4 * wave
            case "u":
                jet = np.exp(-(((np.abs(latitude) - 42) / 14) ** 2)) * (1 + 0.2 * np.sin(phi))
                result = -6 * np.cos(phi) ** 6 + (8 + 35 * height) * jet + 6 * wave
            case _:
                eddy = np.cos(phi) ** 2 * np.sin(phase)
                result = (6 + 12 * height) * (1 + 0.3 * np.sin(phi)) * eddy
    return np.asarray(result, dtype=np.float64)


def fields(dates: Sequence[str] = DATES) -> Iterator[Field]:
    """All fields of the archive."""
    upper = [(param, level) for param in ("t", "u", "v") for level in LEVELS]
    surface: list[tuple[str, int | None]] = [("2t", None)]
    for date in dates:
        for time in ("0000", "1200"):
            for step in (0, 6, 12, 18, 24):
                for param, level in surface + upper:
                    yield Field(param=param, date=date, time=time, step=step, level=level)
        for step in (0, 12, 24):
            for param, level in [*surface, ("t", 850), ("t", 500)]:
                for number in MEMBERS:
                    yield Field(param=param, date=date, step=step, level=level, number=number)


def make_fdb(root: Path, *, dates: Sequence[str] = DATES) -> dict[str, Any]:
    """Write the archive below *root*, and return what FDB is configured with to read it.

    Writing it again changes nothing that a reader sees.
    """
    data = root / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    schema = root / "schema"
    schema.write_text(SCHEMA)
    config = {
        "type": "local",
        "engine": "toc",
        "schema": str(schema.absolute()),
        "spaces": [{"handler": "Default", "roots": [{"path": str(data.absolute())}]}],
    }
    fdb = pyfdb.FDB(config)
    with Encoder() as encoder:
        for field in fields(dates):
            fdb.archive(encoder.message(field))
    fdb.flush()
    return config


def message(field: Field) -> bytes:
    """One field as a GRIB message; many are made faster by one `Encoder`."""
    with Encoder() as encoder:
        return encoder.message(field)


class Encoder:
    """Makes GRIB messages of edition 2 on O32. A context manager: it holds memory of ecCodes."""

    def __init__(self) -> None:
        points = _points_per_row()
        total = int(points.sum())
        north = float(np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * _HALF)[0][-1])))
        handle = eccodes.codes_grib_new_from_samples("reduced_gg_pl_32_grib2")
        eccodes.codes_set(handle, "N", _HALF)
        eccodes.codes_set(handle, "Nj", 2 * _HALF)
        eccodes.codes_set_array(handle, "pl", points)
        eccodes.codes_set(handle, "numberOfDataPoints", total)
        eccodes.codes_set(handle, "numberOfValues", total)
        eccodes.codes_set(handle, "latitudeOfFirstGridPointInDegrees", north)
        eccodes.codes_set(handle, "latitudeOfLastGridPointInDegrees", -north)
        eccodes.codes_set(handle, "longitudeOfFirstGridPointInDegrees", 0.0)
        eccodes.codes_set(
            handle, "longitudeOfLastGridPointInDegrees", 360 - 360 / int(points.max())
        )
        eccodes.codes_set_values(handle, np.zeros(total))
        eccodes.codes_set(handle, "bitsPerValue", _BITS)
        self._template = handle
        self._latitude: Values = eccodes.codes_get_array(handle, "latitudes")
        self._longitude: Values = eccodes.codes_get_array(handle, "longitudes")

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *_: object) -> None:
        eccodes.codes_release(self._template)

    def message(self, field: Field) -> bytes:
        keys = field.keys()
        handle = eccodes.codes_clone(self._template)
        try:
            # the order matters: the template of the product brings `number` into being, and what
            # follows changes what a paramId stands for
            if field.number is not None:
                eccodes.codes_set(handle, "productDefinitionTemplateNumber", 1)
            for key in ("class", "stream", "type", "expver"):
                eccodes.codes_set(handle, key, keys[key])
            if field.number is not None:
                eccodes.codes_set(handle, "number", field.number)
                eccodes.codes_set(handle, "numberOfForecastsInEnsemble", len(MEMBERS))
            eccodes.codes_set(handle, "dataDate", int(field.date))
            eccodes.codes_set(handle, "dataTime", int(field.time))
            eccodes.codes_set(handle, "step", field.step)
            if field.level is not None:
                eccodes.codes_set(handle, "typeOfLevel", "isobaricInhPa")
                eccodes.codes_set(handle, "level", field.level)
            eccodes.codes_set(handle, "paramId", PARAMS[field.param])
            eccodes.codes_set_values(handle, value(field, self._latitude, self._longitude))
            return bytes(eccodes.codes_get_message(handle))
        finally:
            eccodes.codes_release(handle)


def _points_per_row() -> NDArray[np.int64]:
    north = [20 + 4 * row for row in range(_HALF)]
    return np.array(north + north[::-1])
