"""What hospital.toml must say before anything is opened."""

from __future__ import annotations

from wardround.errors import ConfigError
from wardround_client.config import Pacs
from wardround_client.hospital import Hospital
from wardround_client.intake.pacs.archive import Archive
from wardround_client.intake.pacs.secrets import check_files
from wardround_client.intake.source import SOURCES


def archive_of(pacs: Pacs) -> type[Archive]:
    """The protocol that [pacs] names."""
    archive: type[Archive] = SOURCES["dicomweb" if pacs.url else "dimse"].archive  # type: ignore[attr-defined]
    return archive


def check_settings(hospital: Hospital) -> None:
    """Raises: ConfigError."""
    path, serve, pacs = hospital.home / "hospital.toml", hospital.config.serve, hospital.config.pacs
    if not serve.on:
        raise ConfigError(
            f"{path}: this hospital has not switched `serve` on",
            do="read docs/how-to/studies.md; then write on = true and models = [...] under [serve]",
        )
    if bool(pacs.url) == bool(pacs.address):
        raise ConfigError(
            f"{path}: [pacs] names {'url and address' if pacs.url else 'no PACS'}",
            allowed="url of its DICOMweb service, or address (host:port) of its DIMSE service",
            do="write one of the two",
        )
    check_files(pacs, hospital.home)
    if serve.arrive == "listen" and not (serve.listen and serve.callers):
        raise ConfigError(
            f'{path}: [serve] arrive = "listen" without listen or callers',
            do='write listen = "127.0.0.1:11113", say, and callers = ["PACS"]',
        )
    if serve.arrive == "listen" and pacs.tls and not (pacs.ca_file and pacs.certificate_file and pacs.key_file):
        raise ConfigError(
            f'{path}: [serve] arrive = "listen" with [pacs] tls, and no certificate',
            do="write ca_file, certificate_file and key_file under [pacs]",
        )
