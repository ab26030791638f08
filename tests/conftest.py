"""Servers of tests listen on loopback addresses, and no proxy of the environment comes in between."""

import os

pytest_plugins = ["services.fixtures"]

_LOOPBACK = "127.0.0.1,localhost,::1"

for _name in ("NO_PROXY", "no_proxy"):  # some look at the one, some at the other
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), _LOOPBACK)))
