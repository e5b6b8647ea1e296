"""ClientServer over raw sockets: order, pipelines, limits, slow and vanishing clients, start and stop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
from clients_support import DEADLINE_S, Harness, Wire, eventually, resp

from raft.clients import connection as connection_module
from raft.clients.batch import Batch
from raft.clients.handler import MAX_BATCH_COMMANDS, Handler
from raft.clients.server import ClientServer, ListenError
from raft.config import Settings
from raft.replies import OK


def test_local_and_worker_commands_are_answered_in_order(wire: Wire) -> None:
    wire.send(
        resp(b"PING") + resp(b"SET", b"a", b"1") + resp(b"ECHO", b"x") + resp(b"INCR", b"a") + b"GET a\r\n"
        + resp(b"NOSUCH") + resp(b"GET") + resp(b"PING", b"y") + resp(b"RAFT", b"DREAM")
    )  # fmt: skip
    wire.expect(
        b"+PONG\r\n+OK\r\n$1\r\nx\r\n:2\r\n$1\r\n2\r\n"
        b"-ERR unknown command 'NOSUCH', with args beginning with: \r\n"
        b"-ERR wrong number of arguments for 'get' command\r\n"
        b"$1\r\ny\r\n-ERR unknown subcommand 'DREAM'. Try RAFT HELP.\r\n"
    )


def test_the_worker_gets_one_batch_with_all_that_arrived(harness: Harness, wire: Wire) -> None:
    pipeline = b"".join(resp(b"SET", b"k%d" % n, b"v") + resp(b"PING") for n in range(50))
    for _ in range(3):  # batches of a new connection are small at first
        harness.backend.batches.clear()
        wire.send(pipeline)
        wire.expect(b"+OK\r\n+PONG\r\n" * 50)
    assert sum(harness.backend.batches) == 50
    assert len(harness.backend.batches) <= 2  # one, unless the kernel handed it over in two pieces


def test_only_one_batch_of_a_connection_is_under_way(harness: Harness, wire: Wire) -> None:
    harness.backend.gate.clear()
    wire.send(resp(b"INCR", b"a"))
    eventually(lambda: harness.backend.batches == [1])
    for _ in range(5):
        wire.send(resp(b"INCR", b"a"))
    other = harness.connect()
    other.send(resp(b"PING"))
    other.expect(b"+PONG\r\n")  # others are served meanwhile
    assert harness.backend.batches == [1]
    harness.backend.gate.set()
    wire.expect(b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n:6\r\n")


def test_a_stream_cut_at_every_byte(harness: Harness) -> None:
    stream = resp(b"SET", b"k", b"a\r\nb") + b"PING\r\n" + resp(b"GET", b"k")
    for cut in range(1, len(stream)):
        wire = harness.pair()
        wire.send(stream[:cut])
        wire.send(stream[cut:])
        wire.expect(b"+OK\r\n+PONG\r\n$4\r\na\r\nb\r\n")
        wire.sock.close()


def test_a_pipeline_longer_than_a_batch_and_a_read(harness: Harness, wire: Wire) -> None:
    count = 20_000
    sender = threading.Thread(target=wire.send, args=(resp(b"INCR", b"n") * count,))
    sender.start()
    wire.expect(b"".join(b":%d\r\n" % n for n in range(1, count + 1)))
    sender.join()
    assert max(harness.backend.batches) <= MAX_BATCH_COMMANDS


def test_a_large_value_there_and_back(wire: Wire) -> None:
    value = bytes(range(256)) * 4000
    wire.send(resp(b"SET", b"big", value))
    wire.expect(b"+OK\r\n")
    wire.send(resp(b"GET", b"big") * 20)
    wire.expect((b"$%d\r\n%b\r\n" % (len(value), value)) * 20)


def test_a_full_queue_answers_busy_in_place(harness: Harness, wire: Wire) -> None:
    harness.backend.full = True
    wire.send(resp(b"PING") + resp(b"SET", b"a", b"1") + resp(b"PING"))
    wire.expect(b"+PONG\r\n-BUSY too many requests are pending on this node, try again\r\n+PONG\r\n")
    harness.backend.full = False
    wire.send(resp(b"GET", b"a"))
    wire.expect(b"$-1\r\n")  # it was not taken


def test_a_protocol_error_answers_what_came_before_and_closes(harness: Harness, wire: Wire) -> None:
    wire.send(resp(b"SET", b"a", b"1") + resp(b"PING") + b"*1\r\n:5\r\n" + resp(b"SET", b"a", b"2"))
    assert wire.until_closed() == b"+OK\r\n+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n"
    assert harness.backend.values == {b"a": b"1"}


@pytest.mark.parametrize(
    "header", [b"*1000000000\r\n", b"*1\r\n$1000000000\r\n", b"*2\r\n$3\r\nGET\r\n$2000\r\n"]
)
def test_a_declared_size_beyond_the_limit_is_refused_at_once(
    make_harness: Callable[..., Harness], header: bytes
) -> None:
    wire = make_harness(max_request_bytes=1024).connect()
    wire.send(header)
    answer = wire.until_closed()
    assert answer.startswith(b"-ERR Protocol error: invalid ")
    assert answer.endswith(b"a request may have at most 1024 bytes\r\n")


def test_quit_answers_what_came_before_and_nothing_after(harness: Harness, wire: Wire) -> None:
    wire.send(resp(b"SET", b"a", b"1") + resp(b"QUIT") + resp(b"SET", b"a", b"2"))
    assert wire.until_closed() == b"+OK\r\n+OK\r\n"
    assert harness.backend.values == {b"a": b"1"}


def test_a_client_that_closes_its_side_still_gets_its_answers(wire: Wire) -> None:
    wire.send(resp(b"SET", b"a", b"1") + resp(b"GET", b"a"))
    wire.sock.shutdown(socket.SHUT_WR)
    assert wire.until_closed() == b"+OK\r\n$1\r\n1\r\n"


def test_hello_in_a_pipeline_changes_later_answers_only(wire: Wire) -> None:
    wire.send(resp(b"GET", b"none") + resp(b"HELLO", b"3") + resp(b"GET", b"none"))
    wire.send(resp(b"FOLLOWER", b"INFO", b"x") + resp(b"HELLO", b"2") + resp(b"GET", b"none"))
    wire.expect(b"$-1\r\n%7\r\n")
    while wire.line() != b"*0\r\n":  # the end of HELLO's map: modules
        pass
    wire.expect(b"_\r\n%2\r\n$2\r\nid\r\n$1\r\nx\r\n$7\r\nbalance\r\n:5\r\n*14\r\n")
    while wire.line() != b"*0\r\n":
        pass
    wire.expect(b"$-1\r\n")


def test_a_client_that_vanishes_with_a_batch_under_way(harness: Harness) -> None:
    harness.backend.gate.clear()
    for _ in range(20):
        wire = harness.connect()
        wire.send(resp(b"INCR", b"n") * 3)
        wire.sock.close()
    eventually(lambda: len(harness.backend.batches) == 20)
    harness.backend.gate.set()
    eventually(lambda: harness.server.connected == 0)
    assert harness.backend.values == {b"n": b"60"}


def test_a_client_that_resets_the_connection_with_a_batch_under_way(harness: Harness) -> None:
    harness.backend.gate.clear()
    wire = harness.connect()
    wire.send(resp(b"INCR", b"n"))
    eventually(lambda: harness.backend.batches == [1])
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    wire.sock.close()
    harness.backend.gate.set()
    eventually(lambda: harness.server.connected == 0)


def test_a_client_that_does_not_read_is_not_read_from(harness: Harness) -> None:
    """Its answers fill the socket; then no more of its commands are taken, and nothing grows."""
    harness.backend.values[b"big"] = b"x" * 500_000
    wire = harness.pair()
    wire.send(resp(b"GET", b"big") * 200)  # 100 MB of answers: more than a client may leave unread
    (connection,) = harness.server._state.connections.values()
    eventually(lambda: connection.output_bytes)
    taken = sum(harness.backend.batches)
    assert taken < 200
    wire.send(resp(b"PING"))
    other = harness.pair()
    for _ in range(100):  # time for the handler to do wrong
        other.send(resp(b"INCR", b"n"))
        other.line()
    assert sum(harness.backend.batches) == taken + 100
    assert connection.output_bytes <= connection_module.MAX_ANSWER_BYTES
    for _ in range(200):  # it reads at last: every answer is there
        wire.expect(b"$500000\r\n" + b"x" * 500_000 + b"\r\n")
    wire.expect(b"+PONG\r\n")


def test_batches_shrink_where_answers_are_large(harness: Harness) -> None:
    """So that a client which pipelines large reads is not dropped for the size of one batch's answers."""
    harness.backend.values[b"big"] = b"x" * 1_000_000
    wire = harness.pair()
    wire.send(resp(b"GET", b"big") * 120)
    for _ in range(120):
        wire.expect(b"$1000000\r\n" + b"x" * 1_000_000 + b"\r\n")
    assert sum(harness.backend.batches) == 120
    assert max(harness.backend.batches[1:]) <= 8
    wire.send(resp(b"INCR", b"n") * 1000)
    wire.expect(b"".join(b":%d\r\n" % n for n in range(1, 1001)))
    assert max(harness.backend.batches) > 100  # and grow again


def test_a_client_that_leaves_too_much_unread_is_dropped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "MAX_ANSWER_BYTES", 1_000_000)
    harness.backend.values[b"big"] = b"x" * 500_000
    wire = harness.pair()
    wire.send(resp(b"GET", b"big") * 10)
    eventually(lambda: harness.server.connected == 0)
    assert "bytes unread (limit 1000000)" in caplog.text


def test_a_thousand_connections(harness: Harness) -> None:
    wires = [harness.connect() for _ in range(1000)]
    for number, wire in enumerate(wires):
        wire.send(resp(b"SET", b"k%d" % number, b"v%d" % number) + resp(b"GET", b"k%d" % number))
    for number, wire in enumerate(wires):
        value = b"v%d" % number
        wire.expect(b"+OK\r\n$%d\r\n%b\r\n" % (len(value), value))
    assert harness.server.connected == 1000
    for wire in wires:
        wire.sock.close()
    eventually(lambda: harness.server.connected == 0)


def test_one_client_too_many(make_harness: Callable[..., Harness]) -> None:
    harness = make_harness(max_clients=2)
    first, second = harness.connect(), harness.connect()
    for wire in (first, second):
        wire.send(b"PING\r\n")
        wire.expect(b"+PONG\r\n")
    assert harness.connect().until_closed() == b"-ERR max number of clients reached\r\n"
    second.send(b"QUIT\r\n")
    second.until_closed()
    eventually(lambda: harness.server.connected == 1)
    third = harness.connect()
    third.send(b"PING\r\n")
    third.expect(b"+PONG\r\n")


def test_an_exception_in_one_connection_ends_only_that_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = harness.connect(), harness.connect()
    status = harness.backend.status

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(harness.backend, "status", fail)
    bad.send(resp(b"RAFT", b"INFO"))
    assert bad.until_closed() == b""
    monkeypatch.setattr(harness.backend, "status", status)
    good.send(b"PING\r\n")
    good.expect(b"+PONG\r\n")
    assert "closed after an error" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_exception_in_the_loop_itself_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    fatal: list[tuple[str, BaseException]] = []
    harness = Harness()
    server = ClientServer(
        harness.backend, Settings(), "127.0.0.1", 0, handlers=1, on_fatal=lambda *what: fatal.append(what)
    )
    server.start()
    try:

        def fail(self: Handler) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Handler, "_deliver_news", fail)
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as sock:
            wire = Wire(sock)
            wire.send(b"SUBSCRIBE c\r\n")
            wire.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
            server.publish("c", "x")
            assert wire.until_closed() == b""
        eventually(lambda: fatal)
        assert fatal[0][0] == "clients-1"
        assert isinstance(fatal[0][1], ZeroDivisionError)
    finally:
        server.stop()
        harness.close()


def test_a_taken_port_is_a_clear_error(harness: Harness) -> None:
    server = ClientServer(harness.backend, Settings(), "127.0.0.1", harness.server.port)
    with pytest.raises(
        ListenError, match=rf"cannot listen for clients on 127.0.0.1:{server._wanted_port}: .*in use"
    ):
        server.start()
    server.stop()


def test_an_address_that_is_not_ours_is_a_clear_error(harness: Harness) -> None:
    with pytest.raises(ListenError, match=r"cannot listen for clients on 192\.0\.2\.1:7201: "):
        ClientServer(harness.backend, Settings(), "192.0.2.1", 7201).start()


def test_stop_finishes_what_is_under_way(harness: Harness) -> None:
    wires = [harness.connect() for _ in range(10)]
    harness.backend.gate.clear()
    for wire in wires:
        wire.send(resp(b"INCR", b"n"))
    idle = harness.connect()
    eventually(lambda: len(harness.backend.batches) == 10)
    eventually(lambda: harness.server.connected == 11)  # what the kernel alone has accepted is reset
    stopper = threading.Thread(target=harness.server.stop)
    stopper.start()
    assert idle.until_closed() == b""
    harness.backend.gate.set()
    answers = {wire.until_closed() for wire in wires}
    assert answers == {b":%d\r\n" % n for n in range(1, 11)}
    stopper.join(DEADLINE_S)
    assert not stopper.is_alive()
    with pytest.raises(ConnectionRefusedError):
        harness.connect()


def test_stop_does_not_wait_for_ever(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.backend.gate.clear()
    wire = harness.connect()
    wire.send(resp(b"INCR", b"n"))
    eventually(lambda: harness.backend.batches == [1])
    started = time.monotonic()
    harness.server.stop(timeout_s=0.2)
    assert time.monotonic() - started < DEADLINE_S
    assert wire.until_closed() == b""
    assert "1 clients cut off" in caplog.text
    harness.server.stop()  # twice is harmless


def test_stop_before_start_and_serve_after_stop(harness: Harness) -> None:
    ClientServer(harness.backend, Settings(), "127.0.0.1", 0).stop()
    harness.server.stop()
    assert harness.pair().until_closed() == b""


def test_an_adopted_socket_is_a_client_like_any_other(harness: Harness) -> None:
    wire = harness.pair()
    wire.send(resp(b"SET", b"a", b"1") + resp(b"CLIENT", b"INFO"))
    wire.expect(b"+OK\r\n")
    wire.line()
    assert b"addr=pair:1" in wire.sock.recv(65536)


def test_no_wakeup_is_lost_between_worker_and_handler(harness: Harness) -> None:
    """Commands that arrive at any moment around the end of the batch before them are answered."""
    wires = [harness.connect() for _ in range(4)]

    def talk(wire: Wire) -> None:
        for _ in range(300):
            wire.send(resp(b"INCR", b"n"))
            wire.send(resp(b"PING"))
            wire.send(resp(b"INCR", b"n")[:7])
            wire.send(resp(b"INCR", b"n")[7:])
            for _ in range(3):
                wire.line()

    threads = [threading.Thread(target=talk, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert harness.backend.values == {b"n": b"2400"}


def test_a_batch_that_is_answered_before_submit_returns() -> None:
    """The answer may overtake the handler: it must neither be lost nor hold up the next command."""

    class Immediate:
        def submit(self, batch: Batch) -> bool:
            for slot, _ in batch.operations:
                batch.answer(slot, OK)
            return True

        def status(self) -> object:
            raise NotImplementedError

    server = ClientServer(Immediate(), Settings(), "127.0.0.1", 0)  # type: ignore[arg-type]
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as sock:
            wire = Wire(sock)
            wire.send(resp(b"SET", b"a", b"b") * 5000)
            wire.expect(b"+OK\r\n" * 5000)
    finally:
        server.stop()
