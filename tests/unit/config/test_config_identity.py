"""Sections about who users are: old spellings, what is alone, what is missing, and whom a file lets in."""

from collections.abc import Callable
from typing import Any

import pytest

from polytope_server.config.changes import changes, taken_up
from polytope_server.config.loading import Loaded
from polytope_server.config.realms import realms
from polytope_server.config.show import show
from polytope_server.errors import ConfigurationError

Read = Callable[..., Loaded]

OLD_FILE = """
authentication:
  ecmwf:
    authenticators:
      keys: {type: ecmwfapi, url: "https://api.example.org/v1", status_url: "https://api.example.org/status"}
      passwords:
        type: keycloak
        url: https://login.example.org
        client_id: polytope
        client_secret: ${SECRET}
        keycloak_realm: data
        skip_tls: true
        timeout: 3
        attributes: {ecmwf-email: email}
  sso:
    authenticators:
      tokens: {type: jwt, cert_url: "https://login.example.org/certs", client_id: polytope}
      offline:
        type: openid_offline_access
        cert_url: https://login.example.org/certs
        public_client_id: public
        private_client_id: private
        private_client_secret: ${SECRET}
        iam_url: https://login.example.org
        iam_realm: data
        jwt_aud: polytope
        jwt_iss: https://login.example.org/realms/data
        disable_check: false
api-keys:
  authenticator: {type: ecmwfapi, url: "https://api.example.org/v1"}
federation:
  one: {secret: "${SECRET}", allowed-realms: [one]}
  two: {secret: "${SECRET}", allowed_realms: [two, zwei]}
"""
SECRET = {"SECRET": "hunter2"}


def test_what_older_servers_read_is_read(read: Read) -> None:
    loaded = read(OLD_FILE, environ=SECRET, strict=True)
    assert not [line for line in loaded.warnings if "collections" not in line]
    assert "hunter2" not in "\n".join(show(loaded))
    found = realms(loaded.config)
    assert {name: list(realm.authenticators) for name, realm in found.items()} == {
        "ecmwf": ["keys", "passwords"],
        "sso": ["tokens", "offline"],
        "polytope": ["api-keys"],
        "federation": ["federation.one", "federation.two"],
    }
    assert found["federation"].authenticators["federation.two"] == {
        "type": "federation",
        "secret": "hunter2",
        "allowed-realms": ["two", "zwei"],
    }


def test_what_comes_besides_stands_behind_what_a_realm_of_that_name_has(read: Read) -> None:
    loaded = read(
        """
        authentication:
          polytope:
            authenticators: {local: {type: plain}}
            authorizers: {local: {type: plain, roles: {staff: [joe]}}}
        api-keys: {authenticator: {type: plain, users: [{uid: joe, password: x}]}}
        """
    )
    realm = realms(loaded.config)["polytope"]
    assert list(realm.authenticators) == ["local", "api-keys"]
    assert list(realm.authorizers) == ["local"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ecmwfapi}", "x.url: this key is missing"),
        ('ecmwfapi, url: "api.example.org"}', "x.url: must be an address such as"),
        (
            'ecmwfapi, url: "https://u:hunter2@api.example.org"}',
            "x.url: must be an address such as",
        ),
        ('ecmwfapi, url: "https://a", timeout: 0}', "x.timeout: must be at least 0.1"),
        ('ecmwfapi, url: "https://a", proxy: "socks5://p:1"}', "x.proxy: must be the address of"),
        ('keycloak, url: "https://a", client_id: c}', "x.keycloak_realm: this key is missing"),
        ('jwt, cert_url: "https://a"}', "x.client_id: this key is missing"),
        (
            'jwt, cert_url: "https://a", client_id: c, algorithms: [HS256]}',
            "x.algorithms[0]: must be one",
        ),
        (
            'jwt, cert_url: "https://a", client_id: c, algorithms: [none]}',
            "x.algorithms[0]: must be one",
        ),
        (
            'jwt, cert_url: "https://a", client_id: c, algorithms: []}',
            "x.algorithms: must be at least 1",
        ),
        ('jwt, cert_url: "https://a", client_id: c, leeway: 1h}', "x.leeway: must be at most 300"),
        (
            'openid_offline_access, cert_url: "https://a", iam_url: "https://a", iam_realm: r,'
            " public_client_id: c}",
            "x: must be with private_client_id and private_client_secret",
        ),
        ("federation, secret: hunter2}", "x.allowed-realms: this key is missing"),
        ('auth-o-tron, url: "https://a"}', "x.secret: this key is missing"),
    ],
)
def test_faults_are_named_by_key_and_shape(read: Read, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(f"authentication: {{r: {{authenticators: {{x: {{type: {text}}}}}}}")
    assert f"authentication.r.authenticators.{told}" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "federation: {peer: {secret: hunter2}}",
            "federation.peer.allowed-realms: this key is missing",
        ),
        ("federation: {peer: {secret: x, allowed_realms: any}}", "must be the names of the realms"),
        ("federation: {peer: {secret: x, allowed_realm: a}}", "did you mean 'allowed-realms'"),
        ("api-keys: {authenticator: {url: x}}", "api-keys.authenticator.type: this key is missing"),
        (
            "api-keys: {authenticator: {type: ecmwfapi}}",
            "api-keys.authenticator.url: this key is missing",
        ),
        (
            "api-keys: {authenticator: {type: nothing}}",
            "api-keys.authenticator: there is no such back-end",
        ),
        (
            "authentication: {auth-o-tron: {secret: hunter2}}",
            "authentication.auth-o-tron.authenticators.auth-o-tron.url: this key is missing",
        ),
        ("authentication: {auth-o-tron: [a]}", "authentication.auth-o-tron: must be a mapping"),
    ],
)
def test_faults_of_the_sections_beside_the_realms_are_told_too(
    read: Read, text: str, told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)


ALONE = 'authentication: {auth-o-tron: {url: "https://auth.example.org", secret: hunter2}}'


def test_auth_o_tron_is_used_alone_and_all_that_is_not_read_is_told(read: Read) -> None:
    loaded = read(OLD_FILE, ALONE, environ=SECRET)
    assert list(realms(loaded.config)) == ["auth-o-tron"]
    assert loaded.config.federation == {}
    told = "\n".join(loaded.warnings)
    for place in ("authentication.ecmwf", "authentication.sso", "federation", "api-keys"):
        assert f"{place}: not read: authentication.auth-o-tron is used alone" in told


def test_what_is_shown_of_auth_o_tron_is_a_configuration_again(read: Read) -> None:
    shown = "\n".join(show(read(ALONE)))
    assert "hunter2" not in shown
    again = read(shown, strict=True)
    assert realms(again.config).keys() == {"auth-o-tron"}


def proxy_of(loaded: Loaded, name: str = "x") -> Any:
    return loaded.config.authentication["r"].authenticators[name].get("proxy")


@pytest.mark.parametrize("kind", ["ecmwfapi", "keycloak"])
def test_the_proxy_of_the_environment_is_taken_where_none_is_named(read: Read, kind: str) -> None:
    options = f'type: {kind}, url: "https://a", client_id: c, keycloak_realm: r'
    text = "authentication: {{r: {{authenticators: {{x: {{{}}}}}}}}}"
    environ = {"POLYTOPE_PROXY": "http://u:hunter2@proxy.example.org:3128"}
    loaded = read(text.format(options), environ=environ)
    assert proxy_of(loaded) == environ["POLYTOPE_PROXY"]
    assert loaded.origins["authentication.r.authenticators.x.proxy"].startswith(
        "environment POLYTOPE_PROXY in "
    )
    assert "hunter2" not in "\n".join(show(loaded))
    own = read(text.format(f'{options}, proxy: "http://own:1"'), environ=environ)
    assert proxy_of(own) == "http://own:1"
    none = read(text.format(f"{options}, proxy: null"), environ=environ)
    assert proxy_of(none) is None
    with pytest.raises(ConfigurationError, match="POLYTOPE_PROXY") as caught:
        read(text.format(options), environ={"POLYTOPE_PROXY": "ftp://hunter2"})
    assert "hunter2" not in str(caught.value)


def test_the_proxy_is_for_nobody_else(read: Read) -> None:
    loaded = read(
        'authentication: {r: {authenticators: {x: {type: jwt, cert_url: "https://a", client_id: c}}}}',
        environ={"POLYTOPE_PROXY": "http://proxy:1"},
    )
    assert proxy_of(loaded) is None


@pytest.mark.parametrize(
    ("after", "realm"),
    [
        ("federation: {p: {secret: new, allowed-realms: [p]}}", "federation"),
        ("federation: {p: {secret: old, allowed-realms: [p, q]}}", "federation"),
        ("federation: {}", "federation"),
        ("api-keys: {authenticator: {type: plain}}", "polytope"),
        ("authentication: {auth-o-tron: {url: 'https://a', secret: x}}", "auth-o-tron"),
    ],
)
def test_changes_are_taken_up_while_the_server_runs(read: Read, after: str, realm: str) -> None:
    running = read("federation: {p: {secret: old, allowed-realms: [p]}}").config
    new = read(after if after.startswith("fed") else f"{after}").config
    found = changes(running, new, process="frontend")
    assert realm in found.realms_changed
    assert found.need_restart == ()
    assert realms(taken_up(running, new)) == realms(new)
