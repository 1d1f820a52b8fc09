"""The hospital as a Flower ClientApp, for a stock `flower-supernode` and for simulations. Public Flower API only.

The blob of a message goes to the hospital, the hospital's blob goes back; nothing else does. An exception's text may
hold data, so it stays here: what leaves is a fixed sentence.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from wardround.errors import ConfigError, MessageError, WardroundError
from wardround.text import shown
from wardround_flower import ACTION, MESSAGE_TYPE, pack, unpack

Answers = Callable[[bytes], bytes]
HOSPITAL = "WARDROUND_HOSPITAL"
HOSPITALS_DIR = "WARDROUND_HOSPITALS_DIR"
ERROR_CODE = 2  # Flower's CLIENT_APP_RAISED_EXCEPTION
NOT_A_MESSAGE = "This message is not one of wardround."
CANNOT_ANSWER = "This hospital cannot answer. Its own log says why."
log = logging.getLogger(__name__)


def reply_to(message: Message, answer: Answers, content: RecordDict | None = None) -> Message:
    """The reply to one message: the hospital's blob, or an error of fixed text. Never raises.

    Args:
        message: what it replies to.
        answer: gives the hospital's blob for the coordinator's.
        content: the message's content, where it was fetched apart from the message.
    """
    if message.metadata.message_type != MESSAGE_TYPE:
        log.warning("a message of type %s was refused", shown(message.metadata.message_type, 40))
        return Message(Error(ERROR_CODE, NOT_A_MESSAGE), reply_to=message)
    try:
        blob = unpack(message.content if content is None else content)
    except (MessageError, ValueError) as error:
        log.warning("a message was refused: %s", error)
        return Message(Error(ERROR_CODE, NOT_A_MESSAGE), reply_to=message)
    try:
        return Message(pack(answer(blob)), reply_to=message)
    except Exception:
        log.exception("a message could not be answered")
        return Message(Error(ERROR_CODE, CANNOT_ANSWER), reply_to=message)


def make_app(find: Callable[[Context], Answers]) -> ClientApp:
    """A ClientApp that answers with what `find` gives for the node's context."""
    made = ClientApp()

    @made.query(ACTION)
    def _query(message: Message, context: Context) -> Message:
        try:
            answer = find(context)
        except Exception:
            log.exception("this node's hospital cannot be opened")
            return Message(Error(ERROR_CODE, CANNOT_ANSWER), reply_to=message)
        return reply_to(message, answer)

    return made


def home_of(context: Context) -> Path:
    """Where this node's hospital lives.

    node_config["hospital"], else the environment: WARDROUND_HOSPITAL, or WARDROUND_HOSPITALS_DIR, a folder of homes
    that a simulation's nodes share in the order of their names, by partition-id. The two kinds of configuration that a
    coordinator can reach, run_config and the message, are not asked.

    Raises: ConfigError.
    """
    if home := context.node_config.get("hospital"):
        return Path(str(home))
    if home := os.environ.get(HOSPITAL):
        return Path(home)
    if folder := os.environ.get(HOSPITALS_DIR):
        homes = sorted(file.parent for file in Path(folder).glob("*/hospital.toml"))
        number = int(context.node_config.get("partition-id", -1))
        if 0 <= number < len(homes):
            return homes[number]
        raise ConfigError(f"partition {number} of {folder}", allowed=f"0 to {len(homes) - 1}")
    raise ConfigError(
        "no hospital is configured for this node", do=f"set node-config hospital='HOME', or {HOSPITAL}=HOME"
    )


class Warm:
    """Hospitals that were opened once and stay in memory, by home."""

    def __init__(self) -> None:
        self._answers: dict[Path, Answers] = {}
        self._lock = threading.Lock()

    def __call__(self, context: Context) -> Answers:
        """What answers for this node. Raises: ConfigError, StorageError."""
        home = home_of(context).resolve()
        with self._lock:
            if home not in self._answers:
                self._answers[home] = open_hospital(home)
            return self._answers[home]


def open_hospital(home: Path) -> Answers:
    """Open a hospital's home -> what answers for it. Raises: WardroundError."""
    # torch and the models take seconds to import: not before a hospital is asked for.
    from wardround_client.hospital import Hospital
    from wardround_client.round import answer

    try:
        hospital = Hospital.open(home)
    except WardroundError as error:
        log.error("%s", error)
        raise
    return lambda blob: answer(hospital, blob)


app = make_app(Warm())
