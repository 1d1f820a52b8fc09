"""Listening sockets, and the health check that any monitor understands."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from wardround.errors import PortInUse

LOOPBACK = "127.0.0.1"


def listening(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket. Raises: PortInUse, also for a host that is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise PortInUse(
            f"{host!r} is not an address of this machine ({error.strerror})",
            do="set another listen.host in coordinator.toml",
        ) from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # "::" is every address of the machine, of both kinds
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise PortInUse(
            f"port {port} of {host} {purpose} cannot be taken ({error.strerror})",
            do="stop the program that listens there, or set another port in coordinator.toml",
        ) from None
    return listener


def port_of(listener: socket.socket) -> int:
    """The port that it has."""
    return int(listener.getsockname()[1])


@contextmanager
def health_service(port: int) -> Iterator[None]:
    """The standard gRPC health service (grpc.health.v1) on loopback, SERVING for as long as this lasts."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    try:
        server.add_insecure_port(f"{LOOPBACK}:{port}")
    except RuntimeError:
        raise PortInUse(f"port {port} for health checks is in use", do="set another health_port") from None
    server.start()
    service.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        service.enter_graceful_shutdown()
        server.stop(grace=1).wait()
