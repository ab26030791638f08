"""Log lines: their shape in every mode, their context, and what is never in them."""

import asyncio
import contextvars
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytope_server.errors import ConfigurationError
from polytope_server.observability.context import bind_context
from polytope_server.observability.logging import (
    OUTPUT_LOGGER,
    capture,
    configure,
    log_context,
    one_line,
    record_from_json,
    relay,
)


@dataclass(frozen=True)
class Options:
    mode: str = "json"
    level: str = "INFO"
    defaults: Mapping[str, Any] = field(default_factory=lambda: {"app": "polytope-server"})
    primary_fields: Sequence[str] = ("asctime", "request_id", "message")
    reserved_attrs: Sequence[str] = ("args", "msg", "msecs", "relativeCreated", "process")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    bind_context()


def log_to(mode: str = "json", **options: Any) -> io.StringIO:
    stream = io.StringIO()
    logging.getLogger().handlers.clear()  # pytest's own, which raise for what they cannot format
    configure(Options(mode=mode, **options), process="frontend", stream=stream)
    return stream


def entry(stream: io.StringIO) -> dict[str, Any]:
    (line,) = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


logger = logging.getLogger("polytope_server.test")


def fail(text: str) -> None:
    raise RuntimeError(text)


def test_a_record_is_one_json_object_with_its_context_and_fields() -> None:
    stream = log_to()
    with log_context(request_id="r1", user="joe"):
        logger.info("Request %s is there", "r1", extra={"collection": "od", "sizes": (1, 2)})
    found = entry(stream)
    assert list(found)[:3] == ["asctime", "request_id", "message"]
    asctime = found.pop("asctime")
    assert len(asctime) == len("2024-01-05T10:00:00.123Z")
    assert asctime.endswith("Z")
    assert found == {
        "request_id": "r1",
        "message": "Request r1 is there",
        "level": "INFO",
        "process": "frontend",
        "logger": "polytope_server.test",
        "user": "joe",
        "collection": "od",
        "sizes": [1, 2],
        "app": "polytope-server",
    }


def test_an_exception_is_one_field_of_the_one_line() -> None:
    stream = log_to()
    try:
        fail("mongodb://joe:xyzzy@db\nis away")
    except RuntimeError:
        logger.exception("It broke")
    found = entry(stream)
    assert found["exception"].startswith("Traceback")
    assert "mongodb://***@db\nis away" in found["exception"]


def test_other_libraries_exceptions_of_arguments_do_not_lose_the_record() -> None:
    stream = log_to()
    logger.info("%d things", "many")
    assert entry(stream)["message"] == "%d things [arguments do not fit: TypeError]"


def test_fields_cannot_take_the_place_of_our_own() -> None:
    stream = log_to()
    logger.info("text", extra={"level": "high", "logger": "mine", "app": "other"})
    found = entry(stream)
    assert (found["level"], found["logger"]) == ("INFO", "polytope_server.test")
    assert (found["extra_level"], found["extra_logger"], found["app"]) == ("high", "mine", "other")


def test_reserved_attributes_are_left_out_but_never_what_happened() -> None:
    stream = log_to(reserved_attrs=["collection", "message", "logger"])
    logger.info("text", extra={"collection": "od"})
    assert entry(stream).keys() == {"asctime", "message", "level", "process", "app"}


def test_prettyprint_is_the_same_with_an_indent_of_two() -> None:
    stream = log_to("prettyprint")
    logger.info("text")
    assert '\n  "message": "text"' in stream.getvalue()
    assert json.loads(stream.getvalue())["message"] == "text"


def test_any_other_mode_is_json() -> None:
    stream = log_to("no such mode")
    logger.info("text")
    assert entry(stream)["message"] == "text"


def test_console_is_a_line_for_people() -> None:
    stream = log_to("console")
    with log_context(request_id="r1", user="joe"):
        logger.warning("Slow", extra={"seconds": 1.5})
    columns = stream.getvalue().rstrip("\n").split(" | ")
    assert columns[1:] == ["WARNING ", "frontend", "r1", "Slow user=joe seconds=1.5"]


def test_console_shows_an_exception_indented_below() -> None:
    stream = log_to("console")
    try:
        fail("first\nsecond")
    except RuntimeError:
        logger.exception("It broke")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("| - | It broke")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == "    second"


@given(st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_can_forge_a_line_or_a_colour_on_the_console(text: str) -> None:
    stream = log_to("console")
    logger.info("%s", text, extra={"what": text})
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line


def test_forged_lines_are_seen_for_what_they_are() -> None:
    forged = "a\n2024 | ERROR | b\r\x1b[31m\u2028\u202e\x85\ud800"
    assert one_line(forged) == r"a\n2024 | ERROR | b\r\x1b[31m\u2028\u202e\x85\ud800"


def test_logserver_has_the_fields_of_syslog_and_folds_the_rest_into_the_message() -> None:
    stream = log_to("logserver")
    with log_context(request_id="r1", user="joe"):
        logger.error("It broke", extra={"collection": "od"})
    found = entry(stream)
    assert found["facility"] == "local7"
    assert (found["severity"], found["priority"]) == ("err", 187)
    assert found["software"] == "polytope-server"
    assert found["host"]
    assert (found["request_id"], found["user"]) == ("r1", "joe")
    assert found["message"] == 'It broke {"collection": "od"}'


def test_the_level_is_the_roots() -> None:
    stream = log_to(level="warning")
    logger.info("not this")
    logging.getLogger("somebody.else").warning("this")
    assert entry(stream)["message"] == "this"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"logging\.level.*INFO"):
        log_to(level="LOUD")


def test_configuring_again_does_not_double_the_lines() -> None:
    log_to()
    stream = log_to()
    logger.info("once")
    assert entry(stream)["message"] == "once"


def test_libraries_with_handlers_of_their_own_go_through_the_root() -> None:
    library = logging.getLogger("library.error")
    library.addHandler(logging.StreamHandler(sys.stderr))
    library.propagate = False
    stream = log_to()
    library.warning("from a library")
    assert library.handlers == []
    assert entry(stream)["logger"] == "library.error"


def test_handlers_that_come_later_can_be_captured() -> None:
    stream = log_to()
    library = logging.getLogger("library.late")
    library.addHandler(logging.StreamHandler(sys.stdout))
    library.propagate = False
    capture("library.late")
    library.warning("from a library")
    assert entry(stream)["logger"] == "library.late"


def test_warnings_are_records() -> None:
    stream = log_to()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert entry(stream)["logger"] == "py.warnings"


def test_what_nobody_catches_in_a_thread_is_a_record() -> None:
    stream = log_to()

    def work() -> None:
        raise RuntimeError("password='xyzzy'")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    found = entry(stream)
    assert found["level"] == "CRITICAL"
    assert "RuntimeError: password=***" in found["exception"]


_DYING = """
import sys
from polytope_server.observability.logging import configure
class Options:
    mode, level = "json", "INFO"
    defaults, primary_fields, reserved_attrs = {}, (), ()
configure(Options, process="worker")
raise RuntimeError("first\\nsecond")
"""


def test_what_nobody_catches_at_all_is_one_line_on_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DYING], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert (found["level"], found["process"]) == ("CRITICAL", "worker")
    assert found["exception"].endswith("RuntimeError: first\nsecond")


def test_a_stream_that_is_gone_does_not_stop_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    configure(Options(), process="frontend", stream=stream)
    logger.info("nobody reads %s", "this")
    assert capfd.readouterr().err == ""
    with pytest.raises(BrokenPipeError):
        stream.close()


# --- context


def test_contexts_nest_and_end() -> None:
    stream = log_to()
    with log_context(request_id="r1"):
        with log_context(user="joe", attempt="2"):
            logger.info("inside")
        logger.info("outside")
    logger.info("after")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("request_id") for line in lines] == ["r1", "r1", None]
    assert [line.get("user") for line in lines] == ["joe", None, None]
    assert [line.get("attempt") for line in lines] == ["2", None, None]


def test_a_field_of_the_call_wins_over_the_context() -> None:
    stream = log_to()
    with log_context(request_id="r1"):
        logger.info("about another", extra={"request_id": "r2"})
    assert entry(stream)["request_id"] == "r2"


def test_tasks_and_their_threads_keep_their_contexts_apart() -> None:
    stream = log_to()

    async def handle(name: str, pool: ThreadPoolExecutor) -> None:
        bind_context()
        bind_context(request_id=name)
        await asyncio.sleep(0.001)
        bind_context(user=f"user-{name}")
        logger.info("task", extra={"expected": name})
        await asyncio.to_thread(logger.info, "thread", extra={"expected": name})
        run = contextvars.copy_context().run
        await asyncio.get_running_loop().run_in_executor(
            pool, lambda: run(logger.info, "pool", extra={"expected": name})
        )

    async def main() -> None:
        with ThreadPoolExecutor(2) as pool:
            await asyncio.gather(*(handle(f"r{number}", pool) for number in range(20)))

    asyncio.run(main())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 60
    assert all(line["request_id"] == line["expected"] for line in lines)
    assert all(line["user"] == f"user-{line['expected']}" for line in lines)


# --- secrets

SECRET = "xyzzy-42"
MODES = ["json", "prettyprint", "console", "logserver"]
values = st.recursive(
    st.sampled_from(
        [
            {"password": SECRET},
            {"a": {"apiKey": [SECRET]}},
            f"http://joe:{SECRET}@host/",
            f"Bearer {SECRET}",
            f"token={SECRET}",
            1,
            "text",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("mode", MODES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(value=values)
def test_a_secret_is_in_no_line_wherever_it_was_put(mode: str, value: Any) -> None:
    stream = log_to(mode, defaults={"app": "x", "client_secret": SECRET})
    with log_context(request_id="r1", user=f"http://u:{SECRET}@h/", token=SECRET):
        try:
            fail(f"{value}")
        except RuntimeError:
            logger.exception("About %s", value, extra={"what": value, "ldap_password": SECRET})
    assert "About" in stream.getvalue()
    assert SECRET not in stream.getvalue()


def test_the_environment_is_nowhere_in_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTOPE_TEST_VALUE", SECRET)
    stream = log_to(level="DEBUG")
    logger.debug("Started")
    assert SECRET not in stream.getvalue()


# --- relayed lines of slots


def written_by_slot(**extra: Any) -> str:
    stream = io.StringIO()
    configure(Options(level="DEBUG"), process="slot", stream=stream)
    with log_context(request_id="r1", user="joe"):
        try:
            fail("first\nsecond")
        except RuntimeError:
            logger.exception("It broke", extra=extra, stack_info=True)
    return stream.getvalue()


def test_a_record_of_a_slot_is_relayed_as_it_is() -> None:
    line = written_by_slot(collection="od", nested={"a": [1, None]}, text="ü\n")
    stream = log_to()
    relay(line)
    assert stream.getvalue() == line


@given(st.dictionaries(st.text(max_size=12), values, max_size=4), st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_a_record_and_writing_it_again_gives_the_same_line(
    extra: dict[str, Any], text: str
) -> None:
    stream = log_to()
    record = logging.LogRecord("some.logger", logging.INFO, "", 0, text, None, None)
    record.__dict__.update({k: v for k, v in extra.items() if k not in record.__dict__})
    logging.getLogger().handle(record)
    line = stream.getvalue()
    again = log_to()
    read = record_from_json(line.rstrip("\n"))
    assert read is not None
    logging.getLogger().handle(read)
    assert again.getvalue() == line


def test_a_record_of_a_slot_is_shown_in_the_mode_of_the_worker() -> None:
    line = written_by_slot()
    stream = log_to("console")
    relay(line)
    first, *below = stream.getvalue().splitlines()
    assert first.endswith("| ERROR    | slot | r1 | It broke user=joe")
    assert "    RuntimeError: first" in below


def test_the_worker_says_whom_a_slot_works_for_not_the_slot() -> None:
    line = written_by_slot()
    stream = log_to()
    with log_context(request_id="real", user="ann"):
        relay(line)
    assert (entry(stream)["request_id"], entry(stream)["user"]) == ("real", "ann")


def test_the_level_counts_for_relayed_records_too() -> None:
    line = written_by_slot().replace('"level": "ERROR"', '"level": "DEBUG"')
    stream = log_to()
    relay(line)
    assert stream.getvalue() == ""


def test_relaying_leaves_no_logger_behind() -> None:
    line = written_by_slot().replace("polytope_server.test", "made.up.name")
    log_to()
    relay(line)
    assert "made.up.name" not in logging.root.manager.loggerDict


_VALID = {"asctime": "2024-01-05T10:00:00.123Z", "level": "INFO", "process": "slot"}


@pytest.mark.parametrize(
    "text",
    [
        "terminate called after throwing an instance of 'eckit::Exception'",
        "{",
        "{}",
        "[]",
        "7",
        "{" * 100_000,
        '{"message": "no record"}',
        json.dumps({**_VALID, "logger": "x", "message": "x", "level": "LOUD"}),
        json.dumps({**_VALID, "logger": "x", "message": "x", "level": []}),
        json.dumps({**_VALID, "logger": 7, "message": "x"}),
        json.dumps({**_VALID, "logger": "x", "message": "x", "asctime": "today"}),
        json.dumps({**_VALID, "logger": "x", "message": "x", "asctime": "0001-01-01T00:00:00"}),
    ],
    ids=range(12),
)
def test_other_output_of_a_slot_is_a_record_with_the_context(text: str) -> None:
    stream = log_to()
    with log_context(request_id="r1", user="joe"):
        relay(text + "\n")
    found = entry(stream)
    assert (found["logger"], found["request_id"]) == (OUTPUT_LOGGER, "r1")
    assert found["message"] == text if len(text) < 1000 else found["message"]


def test_output_with_per_cent_signs_is_no_template() -> None:
    stream = log_to()
    relay("100% done %s %(password)s")
    assert entry(stream)["message"] == "100% done %s %(password)s"


def test_a_hostile_record_cannot_break_the_relaying() -> None:
    hostile = {
        **_VALID,
        "logger": "x",
        "message": "text %s",
        "getMessage": 7,
        "__class__": 7,
        "args": [1],
        "levelno": 99,
        "exc_info": [1],
        "exception": {"a": 1},
        "polytope_process": [],
        "password": "xyzzy",
    }
    stream = log_to()
    relay(json.dumps(hostile))
    found = entry(stream)
    assert (found["message"], found["level"], found["process"]) == ("text %s", "INFO", "slot")
    assert "xyzzy" not in stream.getvalue()


def test_empty_lines_are_not_relayed() -> None:
    stream = log_to()
    for line in ("", "\n", "  \r\n"):
        relay(line)
    assert stream.getvalue() == ""


def test_lines_of_many_threads_are_whole() -> None:
    stream = log_to()

    def work(number: int) -> None:
        for turn in range(100):
            logger.info("line", extra={"number": number, "turn": turn, "long": "x" * 5000})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len({(line["number"], line["turn"]) for line in lines}) == 400
