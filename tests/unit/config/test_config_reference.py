"""The page of the reference is what the models say, and its examples are configurations."""

import re
from pathlib import Path

import pytest

from polytope_server.collection import collections_of
from polytope_server.config.loading import load
from polytope_server.config.reference import EXAMPLES, example, places, reference

PAGE = Path(__file__).parents[3] / "docs" / "configuration-reference.md"
VARIABLES = {
    "SIGNING_KEY": "a-key-for-signing-links",
    "STORE_TOKEN": "a-token-of-the-object-store",
    "ALICE_PASSWORD": "a-password",
    "PARTNER_SECRET": "a-secret-of-a-peer",
    "CLIENT_SECRET": "a-secret-of-a-client",
    "AUTH_SECRET": "a-secret-of-the-server-that-knows",
    "RABBITMQ_PASSWORD": "a-password",
    "REDIS_PASSWORD": "a-password",
    "MONGO_PASSWORD": "a-password",
    "LDAP_PASSWORD": "a-password",
    "S3_ACCESS_KEY": "an-access-key",
    "S3_SECRET_KEY": "a-secret-key",
}


def test_the_page_is_made_of_the_models_as_they_are() -> None:
    assert PAGE.read_text() == reference(), "run 'make docs'"


def test_every_section_has_one_example() -> None:
    assert sorted(EXAMPLES) == sorted(places())


@pytest.mark.parametrize("place", EXAMPLES)
def test_every_example_is_a_configuration_that_shows_its_section(
    place: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(example(place))
    loaded = load([file], strict=True, environ=VARIABLES, system_file=None)
    collections_of(loaded.config)
    section, _, backend = place.partition(".")
    shown = {"datasource": "datasources", "authorization": "authentication"}.get(section, section)
    assert any(origin.startswith(shown) for origin in loaded.origins)
    assert backend in example(place)


def test_every_key_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(.+?)` \|(.*)\|$", reference(), re.MULTILINE)
    assert len(rows) > 90
    assert [key for key, rest in rows if not rest.rpartition("|")[2].strip()] == []
