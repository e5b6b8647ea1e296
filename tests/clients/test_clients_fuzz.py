"""Whatever bytes come, however cut: the server lives, holds no more than it may, serves the next client."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from clients_support import Harness, Wire, resp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raft.clients.handler import READ_BYTES
from raft.machine.commands import COMMANDS

LIMIT = 2048

words = st.binary(max_size=12) | st.sampled_from(sorted({word for name in COMMANDS for word in name.split()}))
requests = st.lists(words, min_size=1, max_size=5).map(lambda args: resp(*args))
pieces = st.one_of(
    st.binary(max_size=64),
    requests,
    st.text(alphabet="*$+-:_#,(=!~%>0123456789\r\n\"'\\ PING", max_size=40).map(str.encode),
    st.integers(-(10**12), 10**12).map(lambda n: b"*%d\r\n" % n),
    st.integers(-(10**12), 10**12).map(lambda n: b"*1\r\n$%d\r\n" % n),
)


@pytest.fixture(scope="module")
def small() -> Iterator[Harness]:
    harness = Harness(max_request_bytes=LIMIT)
    yield harness
    harness.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, max_size=8))
def test_any_bytes(small: Harness, caplog: pytest.LogCaptureFixture, stream: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    small.server.serve(theirs)
    connection = small.server._state.connections.get(max(small.server._state.connections, default=0))
    with ours:
        wire = Wire(ours)
        try:
            for piece in stream:
                wire.send(piece)
                if connection is not None:
                    assert connection.parser.buffered <= LIMIT + READ_BYTES
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused and closed meanwhile
        with contextlib.suppress(ConnectionResetError):
            wire.until_closed()
    assert "Traceback" not in caplog.text
    assert "closed after an error" not in caplog.text
    follow_up = small.pair()
    follow_up.send(resp(b"PING"))
    follow_up.expect(b"+PONG\r\n")
    follow_up.sock.close()
    assert small.fatal == []
