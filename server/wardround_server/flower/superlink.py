"""Flower's SuperLink as an application, and its database.

Private Flower API (flwr 1.42) is used here, in control.py, door.py, mail.py and app.py, and nowhere else in the
coordinator. Each symbol has a test that fails by its name when Flower changes it (tests/server/flower).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flwr.common.constant import SubStatus
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import sql_mixin
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.object_store import ObjectStore, ObjectStoreFactory
from flwr.superlink import main as superlink_main
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from starlette.types import ASGIApp

from wardround_server.flower.database import check_database, damaged, undelivered
from wardround_server.network.listening import LOOPBACK
from wardround_server.network.tls import TlsFiles

BUSY_TIMEOUT_MS = 60_000
log = logging.getLogger(__name__)


class Superlink(NamedTuple):
    """app: the SuperLink's FastAPI application. store: where it keeps messages. fail: ends a task, with a sentence.
    waiting: messages of before, by the node they are for.
    """

    app: ASGIApp
    store: ObjectStore
    fail: Callable[[int, str], None]
    waiting: Counter[int]


def flower_app(database: Path, tls: TlsFiles, admin_port: int) -> Superlink:
    """The SuperLink, with SQLite for state and RAM for messages.

    Messages in SQLite took twice the time at 50 MB, and locked the database at 400 MB.

    Raises: StorageError, when the database cannot be used.
    """
    check_database(database)
    waiting = undelivered(database)
    objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    pragmas = dict(vars(sql_mixin)["SQLITE_PRAGMAS"]) | {"busy_timeout": str(BUSY_TIMEOUT_MS)}
    vars(sql_mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())

    states = list[LinkStateFactory]()

    def factories(_: str, federation_manager: Any) -> tuple[ObjectStoreFactory, LinkStateFactory]:
        states.append(LinkStateFactory(str(database), federation_manager, objects))
        return objects, states[-1]

    def fail(task: int, why: str) -> None:
        states[-1].state().finish_task(task, SubStatus.FAILED, why)

    vars(superlink_main)["get_objectstore_linkstate_factories"] = factories
    config = SuperLinkLifespanConfig(
        control_address=f"{LOOPBACK}:0",
        health_server_address=None,
        host=LOOPBACK,
        port=admin_port,
        insecure=False,
        certificates=(tls.ca.read_bytes(), tls.certificate.read_bytes(), tls.key.read_bytes()),
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(tls.ca),
        ssl_certfile=str(tls.certificate),
        ssl_keyfile=str(tls.key),
        database=str(database),
        isolation="process",  # we start SuperExec ourselves: then its output has a file, and it is restarted
        runtime_dependency_install=False,
    )
    try:
        return Superlink(superlink_main.create_app(config, SuperLinkLifespan), objects.store(), fail, waiting)
    except Exception as error:  # SQLAlchemy's and alembic's have no root in common
        log.exception("Flower's database cannot be opened")
        raise damaged(database, type(error).__name__) from None
