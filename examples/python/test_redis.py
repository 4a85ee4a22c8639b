"""Tests against a real Redis, each with a server of its own that starts in milliseconds: pytest test_redis.py"""

import os
import socket
from typing import Iterator

import pytest
import supermachine


@pytest.fixture(scope="session")
def image() -> Iterator[supermachine.Image]:
    """Boots Redis once, until it listens."""
    with supermachine.Image.from_oci(os.environ.get("IMAGE", "redis:7-alpine"), entrypoint=["redis-server"], guest_port=6379) as image:
        yield image


@pytest.fixture
def redis(image: supermachine.Image) -> Iterator[socket.socket]:
    """A connection to a fresh server."""
    with image.start() as vm, vm.connect() as connection:
        yield connection


def ask(connection: socket.socket, command: str) -> bytes:
    connection.sendall(command.encode() + b"\r\n")
    return connection.recv(4096)


def test_values_are_kept(redis: socket.socket) -> None:
    assert ask(redis, "SET greeting hello") == b"+OK\r\n"
    assert ask(redis, "GET greeting") == b"$5\r\nhello\r\n"


def test_each_test_has_an_empty_server(redis: socket.socket) -> None:
    assert ask(redis, "GET greeting") == b"$-1\r\n"
