"""`wardround coordinator doctor`: what is wrong with a coordinator's home, and what to do about it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, Unreachable
from wardround_server.answers import AnswerBook
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home
from wardround_server.hospitals import Registry

if TYPE_CHECKING:
    from wardround.doctor import Looks


def doctor(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Look at everything that a coordinator needs, and say what is wrong and what to do about it. Nothing is changed.

    Settings, who can read the home, disk, certificates and their keys, registered hospitals, the lists of their
    answers, Flower's database, the runs' checkpoints, hook, and whether it runs or its ports are free.

    Ends with the exit code of the first thing that is wrong, and with 0 if there is nothing.
    """
    from wardround.doctor import tell

    tell(_looks(Home(home.absolute())), as_json)


def _looks(home: Home) -> Looks:
    from wardround.doctor import ends, hook, only_its_owner_s, room

    yield "settings", lambda: f"hospitals dial {home.config().address}"
    if not home.folder.is_dir():
        return
    yield "who can read it", partial(only_its_owner_s, home.folder)
    yield "disk", partial(room, home.folder)
    yield "keys", partial(_keys, home)
    yield from ends(home.tls.ends)
    yield "hospitals", partial(_hospitals, home)
    yield "answers", partial(_answers, home)
    yield "superlink.db", partial(_database, home)
    yield "runs", partial(_runs, home)
    yield "hook", lambda: hook(home.config().operations)
    yield "daemon", partial(_daemon, home)


def _keys(home: Home) -> str:
    """Each private key is that of its certificate. Raises: ConfigError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    again = f"restore {home.tls.folder} from your backup; a new CA asks every hospital to join again"
    for certificate, key in ((home.tls.ca, home.tls.ca_key), (home.tls.certificate, home.tls.key)):
        try:
            public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
            fits = load_pem_private_key(key.read_bytes(), None).public_key() == public
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{certificate.name} and {key.name} cannot be read ({type(error).__name__})", do=again
            ) from None
        if not fits:
            raise ConfigError(f"{key} is not the key of {certificate.name}", do=again)
    return "each fits its certificate"


def _hospitals(home: Home) -> str:
    from wardround.doctor import Soon
    from wardround.text import counted

    members = list(Registry(home.folder))
    if not members:
        raise Soon("no hospital is registered", do=f"`wardround coordinator register {home.folder} join.json`")
    return f"{counted(len(members), 'hospital')} registered"


def _answers(home: Home) -> str:
    return f"the last of {len(AnswerBook.of_home(home.folder, Registry(home.folder)).last())} hospitals are known"


def _database(home: Home) -> str:
    from wardround_server.flower.database import check_database

    check_database(home.folder / "superlink.db")
    return "whole" if (home.folder / "superlink.db").exists() else "not there yet"


def _runs(home: Home) -> str:
    """Each checkpoint can be read. Raises: StorageError."""
    from safetensors import SafetensorError

    from wardround.errors import StorageError
    from wardround.release import read
    from wardround.text import counted
    from wardround_server.checkpoint import FILE

    files = sorted((home.folder / "runs").glob(f"*/{FILE}"))
    for file in files:
        try:
            read(file)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise StorageError(
                f"{file} cannot be read ({type(error).__name__})",
                do="restore it from a copy, or start a new run: this one cannot go on",
            ) from None
    return f"{counted(len(files), 'checkpoint')} can be read"


def _daemon(home: Home) -> str:
    """Raises: PortInUse; Soon, where it does not run and could."""
    from wardround.doctor import Soon
    from wardround_server.network.listening import LOOPBACK, listening

    try:
        where = home.running()
    except Unreachable as error:
        listen = home.config().listen
        wanted = ((listen.host, listen.port), (LOOPBACK, listen.admin_port), (LOOPBACK, listen.health_port))
        for host, port in wanted:
            listening(host, port, "of the coordinator").close()
        raise Soon(f"{error.what}; its ports are free", do=error.do) from None
    return f"runs, as process {where['pid']}"


command = Command(
    doctor,
    panel="Maintain",
    place=3,
    examples=("wardround coordinator doctor ~/coordinator", "wardround coordinator doctor ~/coordinator --json"),
)
