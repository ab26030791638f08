"""The object store as a process of its own."""

import functools
import logging
import socket
from collections.abc import Sequence

from polytope_server.asgi_server import listen_patiently, serve
from polytope_server.config.files import ConfigFiles
from polytope_server.config.model import Config
from polytope_server.config.staging import LocalStagingSection, ObjectStoreSection
from polytope_server.errors import ConfigurationError
from polytope_server.lifecycle import Hangup
from polytope_server.object_store.app import Application, create_app
from polytope_server.observability.families import STORE
from polytope_server.observability.metrics import Metrics
from polytope_server.observability.siblings import SharedListener
from polytope_server.reloading import Reload
from polytope_server.staging.local import LocalStaging

BACKEND = "polytope"


def run(config: Config, files: ConfigFiles, hangup: Hangup) -> None:
    """Serve until SIGTERM, then finish the transfers that are under way.

    Raises:
        ConfigurationError: it cannot start; or the staging is another one.
    """
    choice = config.staging
    if choice is None or choice.name != BACKEND:
        raise ConfigurationError(
            "staging: the object store serves the staging back-end 'polytope', which is not the one "
            "chosen here; for example staging: {polytope: {root_dir: /data, token: ${STORE_TOKEN}}}"
        )
    section = ObjectStoreSection.read(choice.options, where=f"staging.{BACKEND}")
    directory = LocalStagingSection(root_dir=section.root_dir)
    LocalStaging(directory)  # so that a mistake is told at once
    # Nothing of what it serves by may change meanwhile: this is for the log level, and to say so.
    ours = Reload(files, hangup, config, lambda *_: None, process=STORE, success=logging.DEBUG)

    def make_app(listener: SharedListener) -> Application:
        Reload(
            files,
            hangup,
            ours.config,
            lambda *_: None,
            process=STORE,
            looks=False,
            caution=logging.DEBUG,
        ).start()
        staging, metrics = LocalStaging(directory), Metrics(STORE)
        listener.answer({"staging": staging.ping}, metrics)
        return create_app(section, staging, metrics)

    sockets: Sequence[socket.socket] = ()
    if section.metrics_port is not None:
        sockets = listen_patiently(section.metrics_bind_to, section.metrics_port)
    with SharedListener(sockets, processes=1) as listener:
        serve(
            functools.partial(make_app, listener),
            bind_to=section.bind_to,
            port=section.port,
            max_connections=section.max_connections,
            idle_timeout_s=section.idle_timeout,
            graceful_timeout_s=section.graceful_timeout,
            on_ready=None,
            each_turn=ours.turn,
        )
