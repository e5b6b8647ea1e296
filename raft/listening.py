"""One way to listen on a TCP port, for the three that a node has."""

from __future__ import annotations

import socket


class ListenError(OSError):
    """The port cannot be listened on; the text names the address and the reason."""


def listen(host: str, port: int, whom: str, backlog: int) -> socket.socket:
    """A listening, blocking TCP socket on host:port (port 0: any). whom: for the error's text. Raises
    ListenError, e.g. if the address is taken or is not ours. Any thread."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=backlog)  # sets SO_REUSEADDR
    except OSError as error:
        raise ListenError(f"cannot listen for {whom} on {host}:{port}: {error.strerror or error}") from error
