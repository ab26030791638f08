"""Packages of others, installed as far as the registry can tell: what is said of those that are broken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from polytope_server.config.builtin import section_of
from polytope_server.errors import ConfigurationError
from polytope_server.registry import load_backend, open_backend


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of packages, for a process that has loaded nothing yet."""
    monkeypatch.syspath_prepend(str(tmp_path))
    load_backend.cache_clear()
    yield tmp_path
    load_backend.cache_clear()


def install(site: Path, package: str, *, name: str, value: str, code: str = "") -> None:
    """A package with one staging back-end."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[polytope_server.staging]\n{name} = {value}\n")
    (site / f"{value.partition(':')[0]}.py").write_text(code)


def test_a_back_end_of_somebody_elses_is_opened_by_its_name(site: Path) -> None:
    code = (
        "from polytope_server.config.section import Section\n"
        "class Good:\n"
        "    class Config(Section):\n"
        "        room: int\n"
        "    def __init__(self, config):\n"
        "        self.room = config.room\n"
    )
    install(site, "polytope-good", name="good", value="polytope_good:Good", code=code)
    assert open_backend("staging", "good", {"room": 7}).room == 7
    with pytest.raises(ConfigurationError, match=r"staging\.good\.room: this key is missing"):
        open_backend("staging", "good", {})


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("nolibrary", "import no_such_library", "No module named 'no_such_library'"),
        ("otherversion", "from polytope_server.staging import Tape", "cannot import name 'Tape'"),
        ("missingpart", "import polytope_server.tape", "No module named 'polytope_server.tape'"),
        ("misspelt", "", "has no attribute 'Staging'"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_the_package_to_blame(
    site: Path, name: str, code: str, said: str
) -> None:
    install(site, "polytope-bad", name=name, value=f"polytope_{name}:Staging", code=code)
    with pytest.raises(ConfigurationError) as caught:
        load_backend("staging", name)
    assert f"staging: {name!r} of the package polytope-bad cannot be loaded" in str(caught.value)
    assert said in str(caught.value)


def test_a_name_that_two_packages_have_is_nobodys(site: Path) -> None:
    install(site, "polytope-impostor", name="local", value="polytope_impostor:Staging")
    with pytest.raises(ConfigurationError, match="polytope-impostor and polytope-server"):
        load_backend("staging", "local")


@pytest.mark.parametrize(
    ("name", "code"),
    [("noconfig", "class Staging: pass"), ("oddconfig", "class Staging:\n    Config = dict")],
)
def test_a_class_without_a_section_for_its_options_is_refused(
    site: Path, name: str, code: str
) -> None:
    install(site, "polytope-bad", name=name, value=f"polytope_{name}:Staging", code=code)
    with pytest.raises(ConfigurationError, match=rf"staging: '{name}' has no Config that is"):
        section_of("staging", name)
