"""OpenLDAP with a tree as Active Directory has one."""

import os
import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.base import Server, StartFailed
from services.certificates import Certificates

SUFFIX: Final = "dc=example,dc=org"
PEOPLE: Final = f"OU=People,{SUFFIX}"
GROUPS: Final = f"OU=Groups,{SUFFIX}"
READER: Final = f"CN=dataserver,OU=Service Accounts,{SUFFIX}"
READER_PASSWORD: Final = "reader-passw0rd"
ADMIN: Final = f"cn=admin,{SUFFIX}"
ADMIN_PASSWORD: Final = "admin-passw0rd"

_SCHEMA: Final = Path("/etc/ldap/schema")
_AD_SCHEMA: Final = """
attributetype ( 1.2.840.113556.1.2.102 NAME 'memberOf' EQUALITY caseIgnoreMatch
  SUBSTR caseIgnoreSubstringsMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.3.6.1.4.1.99999.1 NAME 'adPerson' SUP top AUXILIARY MAY memberOf )
"""
_OVERLAY: Final = """
overlay memberof
memberof-group-oc groupOfNames
memberof-member-ad member
memberof-memberof-ad memberOf
"""


class Slapd(Server):
    """A slapd with `SUFFIX`, its administrator, and an account that may read.

    Args:
        as_written: memberOf is a text that comes back exactly as it was given, as Active Directory
            spells it, and not what the server makes of the members of groups.
        certificates: with them it offers StartTLS on its port, and TLS on ``port("tls")``.
    """

    name = "slapd"
    installation = "apt-get install slapd ldap-utils"
    programs = ("slapd", "ldapadd", "ldapwhoami")

    def __init__(
        self,
        directory: Path | None = None,
        *,
        as_written: bool = False,
        certificates: Certificates | None = None,
    ) -> None:
        super().__init__(directory)
        self._as_written = as_written
        self._certificates = certificates
        self._has_tree = False

    @property
    def url(self) -> str:
        return f"ldap://127.0.0.1:{self.port()}"

    @property
    def tls_url(self) -> str:
        return f"ldaps://localhost:{self.port('tls')}"

    def add_person(
        self, name: str, *, member_of: Sequence[str] = (), rdn: str | None = None, **more: str
    ) -> str:
        """Somebody below `PEOPLE`.

        Args:
            member_of: texts, where they are kept as written.
            rdn: how it is written in the DN, if the name needs it.

        Returns:
            The DN.
        """
        dn = f"CN={rdn or name},{PEOPLE}"
        classes = ["inetOrgPerson", *(["adPerson"] if self._as_written else [])]
        self.add(
            dn,
            {
                "objectClass": classes,
                "cn": [name],
                "sn": [name],
                **({"memberOf": list(member_of)} if member_of else {}),
                **{key: [value] for key, value in more.items()},
            },
        )
        return dn

    def add_group(self, name: str, members: Sequence[str], *, rdn: str | None = None) -> str:
        """A group below `GROUPS`; returns its DN."""
        dn = f"CN={rdn or name},{GROUPS}"
        self.add(dn, {"objectClass": ["groupOfNames"], "cn": [name], "member": list(members)})
        return dn

    def add(self, dn: str, attributes: Mapping[str, Sequence[str]]) -> None:
        """Any entry."""
        lines = [_line("dn", dn)]
        lines += [_line(name, value) for name, values in attributes.items() for value in values]
        self._tool("ldapadd", "\n".join(lines) + "\n")

    def modify(self, changes: str) -> None:
        """Any change, as LDIF."""
        self._tool("ldapmodify", changes)

    def delete(self, dn: str) -> None:
        self._tool("ldapdelete", "", dn)

    def _launch(self) -> None:
        configuration = self.directory / "slapd.conf"
        (self.directory / "data").mkdir(exist_ok=True)
        configuration.touch(mode=0o600)
        configuration.write_text(self._configuration())
        listeners = [f"ldap://127.0.0.1:{self.port()}/"]
        if self._certificates is not None:
            listeners.append(f"ldaps://127.0.0.1:{self.port('tls')}/")
        self._spawn(
            "slapd",
            [
                self.program("slapd"),
                *("-f", str(configuration)),
                *("-h", " ".join(listeners)),
                *("-d", "0"),  # which keeps it in the foreground
            ],
        )

    def _configuration(self) -> str:
        schemas = [
            f"include {_SCHEMA}/{name}.schema" for name in ("core", "cosine", "inetorgperson")
        ]
        tls = []
        if self._certificates is not None:
            pair = self._certificates.issued("localhost")
            tls = [f"TLSCertificateFile {pair.certificate}", f"TLSCertificateKeyFile {pair.key}"]
        return "\n".join(
            [
                *schemas,
                _AD_SCHEMA if self._as_written else "",
                f"pidfile {self.directory}/slapd.pid",
                f"argsfile {self.directory}/slapd.args",
                "modulepath /usr/lib/ldap",
                "moduleload back_mdb",
                "" if self._as_written else "moduleload memberof",
                *tls,
                "database mdb",
                f'suffix "{SUFFIX}"',
                f'rootdn "{ADMIN}"',
                f"rootpw {ADMIN_PASSWORD}",
                f"directory {self.directory}/data",
                "maxsize 104857600",
                "dbnosync",
                "index objectClass,cn,member eq",
                "" if self._as_written else _OVERLAY,
                "access to attrs=userPassword by anonymous auth by * none",
                "access to * by users read by anonymous none",
                "",
            ]
        )

    def _answers(self) -> bool:
        try:
            self._tool("ldapwhoami", "")
        except StartFailed:
            return False
        if not self._has_tree:
            self._plant()
            self._has_tree = True
        return True

    def _plant(self) -> None:
        self.add(
            SUFFIX,
            {"objectClass": ["dcObject", "organization"], "o": ["Example"], "dc": ["example"]},
        )
        for unit in ("Service Accounts", "People", "Groups"):
            self.add(f"OU={unit},{SUFFIX}", {"objectClass": ["organizationalUnit"], "ou": [unit]})
        self.add(
            READER,
            {
                "objectClass": ["person"],
                "cn": ["dataserver"],
                "sn": ["dataserver"],
                "userPassword": [READER_PASSWORD],
            },
        )

    def _tool(self, program: str, text: str, *arguments: str) -> None:
        done = subprocess.run(
            [
                self.program(program),
                *("-x", "-o", "nettimeout=10"),
                *("-H", self.url, "-D", ADMIN, "-w", ADMIN_PASSWORD),
                *arguments,
            ],
            input=text.encode(),
            capture_output=True,
            timeout=20,
            check=False,
            env={"LDAPNOINIT": "1", "PATH": os.environ.get("PATH", "/usr/bin")},
        )
        if done.returncode:
            raise StartFailed(f"{program}: {done.stderr.decode(errors='replace')[-1000:]}")


def _line(name: str, value: str) -> str:
    """One of LDIF, whatever is in the value."""
    return f"{name}:: {b64encode(value.encode()).decode()}"
