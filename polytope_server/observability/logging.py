"""Logs: one line per event on stderr, JSON or for people, in every process, and never a secret.

`configure` sets the root logger up, once per process; modules log through the standard library as
usual, with a constant message and fields in ``extra``. `fields` makes a record into the mapping that
all modes show; `record_from_json` is its inverse, for the lines of slot processes.
"""

import json
import logging
import platform
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from types import MappingProxyType, TracebackType
from typing import Any, Final, Protocol, TextIO

from polytope_server.errors import ConfigurationError
from polytope_server.observability.context import bound, log_context
from polytope_server.observability.redaction import text_without_secrets, without_secrets

__all__ = ["LoggingOptions", "capture", "configure", "log_context", "record_from_json", "relay"]

OUTPUT_LOGGER: Final = "polytope_server.slot.output"
"""Under this name goes what a slot process printed that is no log line."""

_PROCESS: Final = "polytope_process"
"""Attribute of a relayed record: the process that wrote it, where it is not this one."""
_LEVELS: Final = MappingProxyType(
    {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
)
_OWN: Final = frozenset({"asctime", "level", "process", "logger", "message", "exception", "stack"})
_ALWAYS: Final = frozenset({"asctime", "level", "process", "message", "exception"})
_STANDARD: Final = frozenset(
    {*logging.LogRecord("", 0, "", 0, "", None, None).__dict__, "message", "asctime", "taskName"}
    | {_PROCESS, "color_message", *dir(logging.LogRecord)}
)
_MAX_RELAYED_CHARACTERS: Final = 256 * 1024

# what would start a new line, move the cursor or turn the direction of reading
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class LoggingOptions(Protocol):
    """The ``logging`` section."""

    @property
    def mode(self) -> str:
        """``json``, ``prettyprint``, ``console`` or ``logserver``; anything else means ``json``."""

    @property
    def level(self) -> str: ...

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Constant fields of every record."""

    @property
    def primary_fields(self) -> Sequence[str]:
        """Fields that come first, in this order."""

    @property
    def reserved_attrs(self) -> Sequence[str]:
        """Fields that are left out; when, where, how bad and what happened always stay."""


def configure(section: LoggingOptions, *, process: str, stream: TextIO | None = None) -> None:
    """Log from here on as the section says, to *stream* or stderr. May be called again.

    *process* says on each line which of our processes wrote it. Warnings, and exceptions that nobody
    caught, become records too.

    Raises:
        ConfigurationError: there is no such level.
    """
    level = _LEVELS.get(str(section.level).strip().upper())
    if level is None:
        raise ConfigurationError(f"logging.level: must be one of {', '.join(_LEVELS)}")
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_Formatter(section, process=process))
    handler.addFilter(_add_context)
    # what no record shows need not be found out for each; see "Optimization" in Python's own manual
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # where a record was made
    root = logging.getLogger()
    for old in [each for each in root.handlers if _writes_to_terminal(each)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    capture(*[name for name, each in root.manager.loggerDict.items() if _has_handlers(each)])
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def capture(*names: str) -> None:
    """Send what these loggers get through the root: a library that brought its own handlers.

    gunicorn gives its loggers new handlers whenever it sets itself up; call this after that.
    """
    for name in names:
        found = logging.getLogger(name)
        for handler in [each for each in found.handlers if _writes_to_terminal(each)]:
            found.removeHandler(handler)
        found.propagate = True


def relay(line: str) -> None:
    """Log a line that a slot process wrote on its stderr.

    A log record of the slot goes out as it is, in this process's mode; anything else, as a crashing
    library may print it, becomes a record of `OUTPUT_LOGGER`. The bound context is put on both, over
    what the line says: what runs in a slot is not trusted to say whom it works for.
    """
    text = line.rstrip("\r\n")
    if not text.strip():
        return
    record = record_from_json(text)
    if record is None:
        record = logging.LogRecord(OUTPUT_LOGGER, logging.INFO, "", 0, text, None, None)
    record.__dict__.update(bound())
    root = logging.getLogger()
    # by hand: a logger of that name would stay in memory for good, and names come from outside
    if record.levelno >= root.getEffectiveLevel() and record.levelno > root.manager.disable:
        root.handle(record)


def record_from_json(line: str) -> logging.LogRecord | None:
    """The record of a line that mode ``json`` has written; None if it is anything else.

    Writing it with the same options gives the same line.
    """
    if len(line) > _MAX_RELAYED_CHARACTERS or not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match value:
        case {
            "asctime": str(asctime),
            "level": str(level),
            "process": str(process),
            "logger": str(name),
            "message": str(message),
        } if level in _LEVELS:
            pass
        case _:
            return None
    try:
        created = datetime.fromisoformat(asctime).timestamp()
    except (ValueError, OverflowError):
        return None
    record = logging.LogRecord(name, _LEVELS[level], "", 0, message, None, None)
    record.created = created
    record.__dict__[_PROCESS] = process
    for key, text in (("exc_text", value.get("exception")), ("stack_info", value.get("stack"))):
        if isinstance(text, str):
            record.__dict__[key] = text
    extras = {key: item for key, item in value.items() if key not in _OWN | _STANDARD}
    record.__dict__.update(extras)
    return record


def fields(record: logging.LogRecord, *, process: str) -> dict[str, Any]:
    """What a record says, as JSON values without secrets, in the order of reading."""
    stated: dict[str, Any] = {
        "asctime": _asctime(record.created),
        "level": record.levelname,
        "process": getattr(record, _PROCESS, process),
        "logger": record.name,
        "message": text_without_secrets(_message(record)),
    }
    extras = {key: item for key, item in record.__dict__.items() if key not in _STANDARD}
    for key in ("request_id", "user"):
        if key in extras:
            stated[key] = without_secrets(extras.pop(key))
    for key, item in without_secrets(extras).items():
        stated[f"extra_{key}" if key in _OWN else key] = item
    if record.exc_info and not record.exc_text:
        record.exc_text = _traceback(record.exc_info)
    if record.exc_text:
        stated["exception"] = text_without_secrets(record.exc_text)
    if record.stack_info:
        stated["stack"] = text_without_secrets(record.stack_info)
    return stated


def one_line(text: str) -> str:
    r"""The text with everything that could forge a line or a colour written as ``\x1b`` and so on."""
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _asctime(created: float) -> str:
    moment = datetime.fromtimestamp(created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as exc:  # noqa: BLE001 - somebody's arguments; the record must come out
        return f"{record.msg} [arguments do not fit: {type(exc).__name__}]"


def _traceback(
    exc_info: tuple[type[BaseException], BaseException, TracebackType | None]
    | tuple[None, None, None],
) -> str:
    try:
        return "".join(traceback.format_exception(*exc_info)).rstrip("\n")
    except Exception as exc:  # noqa: BLE001 - an exception whose own text raises
        return (
            f"[{exc_info[0].__name__ if exc_info[0] else None}: {type(exc).__name__} in its text]"
        )


class _Handler(logging.StreamHandler[TextIO]):
    """Writes each record with a single call."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as inherited
        """Nothing: the inherited one prints a record's raw arguments, and stderr is what failed."""


class _Formatter(logging.Formatter):
    """All modes: from a record to what is written for it."""

    def __init__(self, section: LoggingOptions, *, process: str) -> None:
        super().__init__()
        self._process = process
        self._defaults = without_secrets(dict(section.defaults))
        self._first = tuple(section.primary_fields)
        self._left_out = frozenset(section.reserved_attrs) - _ALWAYS
        self._host = platform.node()  # once: it may ask a name server
        self._version = version("polytope-server")
        modes: Mapping[str, Callable[[dict[str, Any]], str]] = {
            "prettyprint": self._prettyprint,
            "console": self._console,
            "logserver": self._logserver,
        }
        self._shape = modes.get(section.mode, self._json)

    def format(self, record: logging.LogRecord) -> str:
        stated = fields(record, process=self._process)
        return self._shape({k: v for k, v in stated.items() if k not in self._left_out})

    def _json(self, stated: dict[str, Any]) -> str:
        return json.dumps(self._ordered(stated))

    def _prettyprint(self, stated: dict[str, Any]) -> str:
        return json.dumps(self._ordered(stated), indent=2)

    def _ordered(self, stated: dict[str, Any]) -> dict[str, Any]:
        constant = {k: stated.get(k, v) for k, v in self._defaults.items()}
        whole = {**{k: v for k, v in stated.items() if k not in constant}, **constant}
        return {**{k: whole[k] for k in self._first if k in whole}, **whole}

    def _console(self, stated: dict[str, Any]) -> str:
        details = _extras(stated)
        text = stated["message"] + "".join(
            f" {key}={item if isinstance(item, str) else json.dumps(item)}"
            for key, item in details.items()
            if key not in self._defaults
        )
        columns = [
            stated["asctime"],
            f"{stated['level']:<8}",
            stated["process"],
            stated.get("request_id") or "-",
            text,
        ]
        line = " | ".join(one_line(str(column)) for column in columns)
        below = [
            f"    {one_line(each)}"
            for key in ("exception", "stack")
            if key in stated
            for each in stated[key].splitlines()
        ]
        return "\n".join([line, *below])

    def _logserver(self, stated: dict[str, Any]) -> str:
        number, severity = _SEVERITY.get(stated["level"], _NOTICE)
        details = _extras(stated)
        details.update({k: stated[k] for k in ("exception", "stack") if k in stated})
        folded = {k: v for k, v in details.items() if k not in self._defaults and k != "user"}
        shaped: dict[str, Any] = {
            "asctime": stated["asctime"],
            "host": self._host,
            "facility": "local7",
            "severity": severity,
            "priority": _LOCAL7 * 8 + number,
            "software": "polytope-server",
            "software_version": self._version,
            **{k: stated[k] for k in ("process", "logger", "request_id", "user") if k in stated},
            "message": stated["message"] + (f" {json.dumps(folded)}" if folded else ""),
        }
        return json.dumps(self._ordered(shaped))


_LOCAL7: Final = 23
_NOTICE: Final = (5, "notice")
_SEVERITY: Final = MappingProxyType(
    {
        "DEBUG": (7, "debug"),
        "INFO": (6, "info"),
        "WARNING": (4, "warning"),
        "ERROR": (3, "err"),
        "CRITICAL": (2, "crit"),
    }
)


def _extras(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in stated.items() if k not in _OWN | {"request_id"}}


def _add_context(record: logging.LogRecord) -> bool:
    for key, value in bound().items():
        record.__dict__.setdefault(key, value)
    return True


def _writes_to_terminal(handler: logging.Handler) -> bool:
    # files and a test's own collectors are somebody's wish; a second voice on stderr is not
    return (
        isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and (isinstance(handler, _Handler) or handler.stream in (sys.stderr, sys.stdout))
    )


def _has_handlers(found: logging.Logger | logging.PlaceHolder) -> bool:
    return isinstance(found, logging.Logger) and bool(found.handlers)


_logger = logging.getLogger(__name__)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    _logger.critical("Nobody caught this; the process ends", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    _logger.critical(
        "Nobody caught this; a thread ends",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
        extra={"thread_name": args.thread.name if args.thread else None},
    )


def _unraisable(args: "sys.UnraisableHookArgs") -> None:
    if args.exc_value is None:
        return
    _logger.error(
        "Ignored while an object was removed",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )
