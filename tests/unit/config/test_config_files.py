"""When files count as changed: by what an editor, a cluster and a slow writer do to them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polytope_server.config.files import ConfigFiles
from polytope_server.errors import ConfigurationError

FIRST, SECOND = "frontend: {port: 1}\n", "frontend: {port: 2}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(FIRST)
    return path


@pytest.fixture
def files(file: Path) -> ConfigFiles:
    made = ConfigFiles([file], environ={}, system_file=file.with_name("system.yaml"))
    assert made.load().config.frontend.port == 1
    return made


def in_place(file: Path) -> None:
    file.write_text(SECOND)


def renamed_into_place(file: Path) -> None:
    """Of the same size, and as old as the one before."""
    partial = file.with_name("new")
    partial.write_text(SECOND)
    os.utime(partial, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    partial.replace(file)


def with_its_time_kept(file: Path) -> None:
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text(SECOND)
    os.utime(file, ns=times)


def moved_away(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))


def another_one_before_it(file: Path) -> None:
    file.with_name("system.yaml").write_text(SECOND)


@pytest.mark.parametrize(
    "change",
    [in_place, renamed_into_place, with_its_time_kept, moved_away, another_one_before_it],
)
def test_a_change_is_found_at_the_second_look_and_once(
    files: ConfigFiles, file: Path, change: Callable[[Path], None]
) -> None:
    assert [files.have_changed() for _ in range(3)] == [False] * 3
    change(file)
    assert [files.have_changed() for _ in range(2)] == [False, True]
    if file.exists():
        files.load()
    else:
        with pytest.raises(ConfigurationError, match="no such file"):
            files.load()
    assert [files.have_changed() for _ in range(3)] == [False] * 3


def test_what_is_still_being_written_is_left_alone(files: ConfigFiles, file: Path) -> None:
    for number in range(5):
        with file.open("a") as stream:
            stream.write(f"# {number}\n")
        assert not files.have_changed()
    assert files.have_changed()


def test_a_link_to_a_directory_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    for version, text in (("1", FIRST), ("2", SECOND)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "config.yaml").write_text(text)
    data = tmp_path / "..data"
    data.symlink_to("1")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    files = ConfigFiles([tmp_path / "config.yaml"], environ={}, system_file=None)
    assert files.load().config.frontend.port == 1
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(data)
    assert [files.have_changed() for _ in range(2)] == [False, True]
    assert files.load().config.frontend.port == 2


def test_files_that_hold_secrets_are_looked_at_too(tmp_path: Path) -> None:
    file, key = tmp_path / "config.yaml", tmp_path / "key"
    file.write_text("frontend: {signing_key: !file key}")
    key.write_text("the-first-signing-key")
    files = ConfigFiles([file], environ={}, system_file=None)
    files.load()
    key.write_text("the-other-signing-key")
    assert [files.have_changed() for _ in range(2)] == [False, True]
    found = files.load().config.frontend.signing_key
    assert found is not None
    assert found.get_secret_value() == "the-other-signing-key"


def test_a_bad_file_is_tried_again_when_it_or_what_it_names_changes(tmp_path: Path) -> None:
    file, key = tmp_path / "config.yaml", tmp_path / "key"
    file.write_text("frontend: {signing_key: !file key}")
    files = ConfigFiles([file], environ={}, system_file=None)
    with pytest.raises(ConfigurationError, match="key cannot be read"):
        files.load()
    assert not any(files.have_changed() for _ in range(3))
    key.write_text("a-signing-key-of-some-length")
    assert [files.have_changed() for _ in range(2)] == [False, True]
    files.load()
    file.write_text("frontend: {signing_key: !file key")
    assert [files.have_changed() for _ in range(2)] == [False, True]
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        files.load()
    key.unlink()  # it was not come upon this time, and may be what has to be put right
    assert [files.have_changed() for _ in range(2)] == [False, True]
