"""Variables of the environment, home directories, and values that are kept in other files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from polytope_server.config.embedded import SqliteQueueSection, SqliteStoreSection
from polytope_server.config.loading import Loaded
from polytope_server.config.staging import ObjectStoreSection
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]


def expanded(read: Read, text: str, **environ: str) -> str:
    loaded = read(f"logging: {{defaults: {{x: '{text}'}}}}\n", environ=environ)
    return str(loaded.config.logging.defaults["x"])


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "one"),
        ("$A", "one"),
        ("x${A}y$A z", "xoney" + "one z"),
        ("$A.b", "one.b"),
        ("$MISSING", "$MISSING"),
        ("$$", "$"),
        ("$$A", "$A"),
        ("$${A}", "${A}"),
        ("$$$A", "$one"),
        ("100$", "100$"),
        ("$1", "$1"),
        ("^a$|b", "^a$|b"),
        ("$argon2id$v=19$m=1,t=1,p=1$$A$A", "$argon2id$v=19$m=1,t=1,p=1$$A$A"),
        ("~", "/home/me"),
        ("~/data", "/home/me/data"),
        ("~no-such-user/x", "~no-such-user/x"),
        ("a~", "a~"),
        ("${B}", "$A and ~"),
        ("${TILDE}", "~/x"),
        ("${EMPTY}", ""),
    ],
)
def test_texts_are_expanded_once(read: Read, text: str, result: str) -> None:
    environ = {"A": "one", "B": "$A and ~", "TILDE": "~/x", "EMPTY": "", "HOME": "/home/me"}
    assert expanded(read, text, **environ) == result


def test_a_tilde_out_of_a_variable_is_a_home_in_paths_and_nowhere_else(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "token").write_text("a-token-of-a-store-1c9")
    loaded = read(
        """
        request_store: {sqlite: {path: "${WHERE}/r.sqlite"}}
        staging: {polytope: {root_dir: "${WHERE}", token: !file "${WHERE}/token"}}
        worker: {tmp_dir: "${WHERE}/tmp", environment: {X: "${WHERE}"}}
        frontend: {signing_key: "${WHERE}/and-some-more-text"}
        queue: {sqlite: {path: "${NOBODY}"}}
        """,
        environ={"WHERE": "~", "NOBODY": "~nobody-like-that/x"},
    )
    config = loaded.config
    assert config.request_store is not None
    assert config.staging is not None
    assert config.queue is not None
    assert config.frontend.signing_key is not None
    store = SqliteStoreSection.read(config.request_store.options, where="x")
    assert store.path == tmp_path / "r.sqlite"
    staging = ObjectStoreSection.read(config.staging.options, where="x")
    assert staging.root_dir == tmp_path
    assert staging.token.get_secret_value() == "a-token-of-a-store-1c9"
    assert config.worker.tmp_dir == tmp_path / "tmp"
    assert config.worker.environment == {"X": "~"}
    assert config.frontend.signing_key.get_secret_value() == "~/and-some-more-text"
    queue = SqliteQueueSection.read(config.queue.options, where="x")
    assert queue.path == Path("~nobody-like-that/x")


def test_a_braced_name_that_is_not_set_is_an_error_with_its_place(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("frontend:\n  port: ${PORT}\nbroker: {interval: '${A}${B}'}\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(
        "1.yaml:2: frontend.port: the environment has no PORT; $$ is a plain dollar"
    )


@pytest.mark.parametrize("text", ["${", "${}", "${a b}", "pass${word", "${1}"])
def test_a_brace_without_a_name_is_an_error_without_the_text(read: Read, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        expanded(read, text)
    assert "logging.defaults.x: after ${ there must be" in str(caught.value)
    assert "word" not in str(caught.value)


def test_a_name_that_stays_is_warned_of_without_the_text(read: Read) -> None:
    loaded = read("worker: {environment: {PASSWORD: 'hunter$two'}}")
    assert loaded.config.worker.environment["PASSWORD"] == "hunter$two"
    (warning,) = [line for line in loaded.warnings if "PASSWORD" in line]
    assert "stays as it is" in warning
    assert "two" not in warning


def test_only_what_holds_in_the_end_is_expanded(read: Read) -> None:
    loaded = read(
        "frontend: {bind_to: '${MISSING}', port: '${GONE}'}", "frontend: {bind_to: a, port: null}"
    )
    assert loaded.config.frontend.bind_to == "a"


def test_keys_are_never_expanded(read: Read) -> None:
    loaded = read("logging: {defaults: {$A: x}}", environ={"A": "b"})
    assert loaded.config.logging.defaults == {"$A": "x"}


def test_numbers_and_truth_values_may_come_from_the_environment(read: Read) -> None:
    environ = {"PORT": "8080", "PROXY": "yes", "AGE": "2d", "SIZE": "1G", "LIMIT": "4"}
    config = read(
        """
        frontend: {port: "${PORT}", proxy_support: "${PROXY}", max_upload: "${SIZE}"}
        garbage-collector: {age: $AGE}
        datasources: {e: {type: echo}}
        collections: {c: {roles: r, limits: {per-user: "${LIMIT}"}, datasources: [e]}}
        """,
        environ=environ,
    ).config
    assert config.frontend.port == 8080
    assert config.frontend.proxy_support is True
    assert config.frontend.max_upload == 1 << 30
    assert config.garbage_collector.age == 2 * 86400
    assert config.collections["c"].limits.per_user == 4


def test_an_error_about_a_value_from_the_environment_says_so(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("frontend: {port: '${PORT}'}", environ={"PORT": "hunter2"})
    assert "frontend.port: must be a whole number" in str(caught.value)
    assert "(comes from the environment: PORT)" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "result"),
    [(b"a$A b\n", "a$A b"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"~", "~"), (b"", "")],
)
def test_a_file_gives_its_text_as_it_is_without_one_newline(
    read: Read, tmp_path: Path, content: bytes, result: str
) -> None:
    (tmp_path / "password").write_bytes(content)
    for path in ("password", "./password", str(tmp_path / "password"), "${DIR}/password"):
        loaded = read(
            f"worker: {{environment: {{X: !file '{path}'}}}}",
            environ={"DIR": str(tmp_path), "A": "wrong"},
        )
        assert loaded.config.worker.environment["X"] == result
        origin = loaded.origins["worker.environment.X"]
        assert "file " in origin
        assert origin.endswith("1.yaml:1")


@pytest.mark.parametrize("content", [b"\xff\xff", b"a\0b", b"x" * 70_000])
def test_a_file_that_holds_no_short_text_is_refused(
    read: Read, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(
        ConfigurationError, match=r"frontend\.signing_key: the file .*does not hold"
    ):
        read("frontend: {signing_key: !file secret}")


def test_a_file_that_is_not_there_is_an_error_with_path_and_place(read: Read) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("frontend:\n  port: 1\n  signing_key: !file nowhere\n")
    (line,) = str(caught.value).splitlines()
    assert "1.yaml:3: frontend.signing_key: the file " in line
    assert line.endswith("nowhere cannot be read: No such file or directory")


def test_values_that_are_no_text_from_the_environment_are_refused(read: Read) -> None:
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        read("frontend: {bind_to: '${X}'}", environ={"X": "a\udcff"})
