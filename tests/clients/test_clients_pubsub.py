"""Pub/sub in both protocols, from any thread, to any number of clients."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from clients_support import Harness, Wire, eventually, resp

from raft.clients import connection as connection_module
from raft.clients import handler as handler_module
from raft.clients import pubsub as pubsub_module

ALLOWED = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"


def resp3(harness: Harness) -> Wire:
    wire = harness.connect()
    wire.send(resp(b"HELLO", b"3"))
    while wire.line() != b"*0\r\n":
        pass
    return wire


def test_resp2_subscriber(harness: Harness, wire: Wire) -> None:
    wire.send(resp(b"SUBSCRIBE", b"turns", b"cluster") + resp(b"PSUBSCRIBE", b"rewards:*"))
    wire.expect(
        b"*3\r\n$9\r\nsubscribe\r\n$5\r\nturns\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$7\r\ncluster\r\n:2\r\n"
    )
    wire.expect(b"*3\r\n$10\r\npsubscribe\r\n$9\r\nrewards:*\r\n:3\r\n")
    harness.server.publish("turns", "1 1000")
    wire.expect(b"*3\r\n$7\r\nmessage\r\n$5\r\nturns\r\n$6\r\n1 1000\r\n")
    harness.server.publish("rewards:a", "1 hit 10 10")
    wire.expect(b"*4\r\n$8\r\npmessage\r\n$9\r\nrewards:*\r\n$9\r\nrewards:a\r\n$11\r\n1 hit 10 10\r\n")
    wire.send(
        resp(b"PING") + resp(b"PING", b"x") + resp(b"get", b"a") + resp(b"RAFT", b"INFO") + b"nonsense\r\n"
    )
    wire.expect(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n*2\r\n$4\r\npong\r\n$1\r\nx\r\n")
    wire.expect(b"-ERR Can't execute 'get': %b\r\n" % ALLOWED.encode())
    wire.expect(b"-ERR Can't execute 'raft|info': %b\r\n" % ALLOWED.encode())
    wire.expect(b"-ERR unknown command 'nonsense', with args beginning with: \r\n")
    wire.send(resp(b"UNSUBSCRIBE") + resp(b"PUNSUBSCRIBE", b"rewards:*") + resp(b"GET", b"a") + resp(b"PING"))
    wire.expect(
        b"*3\r\n$11\r\nunsubscribe\r\n$7\r\ncluster\r\n:2\r\n*3\r\n$11\r\nunsubscribe\r\n$5\r\nturns\r\n:1\r\n"
    )
    wire.expect(b"*3\r\n$12\r\npunsubscribe\r\n$9\r\nrewards:*\r\n:0\r\n$-1\r\n+PONG\r\n")


def test_resp3_subscriber_goes_on_with_other_commands(harness: Harness) -> None:
    wire = resp3(harness)
    wire.send(resp(b"SET", b"a", b"1") + resp(b"SUBSCRIBE", b"turns") + resp(b"GET", b"a") + resp(b"PING"))
    wire.expect(b"+OK\r\n>3\r\n$9\r\nsubscribe\r\n$5\r\nturns\r\n:1\r\n$1\r\n1\r\n+PONG\r\n")
    harness.server.publish("turns", "x")
    wire.expect(b">3\r\n$7\r\nmessage\r\n$5\r\nturns\r\n$1\r\nx\r\n")
    wire.send(resp(b"UNSUBSCRIBE", b"other", b"turns") + resp(b"PUNSUBSCRIBE"))
    wire.expect(
        b">3\r\n$11\r\nunsubscribe\r\n$5\r\nother\r\n:1\r\n>3\r\n$11\r\nunsubscribe\r\n$5\r\nturns\r\n:0\r\n"
    )
    wire.expect(b">3\r\n$12\r\npunsubscribe\r\n_\r\n:0\r\n")


def test_a_message_never_comes_before_its_confirmation(harness: Harness) -> None:
    """SUBSCRIBE waits for the commands before it, and its confirmation does not wait for those after it."""
    harness.backend.gate.clear()
    wire = resp3(harness)
    wire.send(resp(b"INCR", b"a") + resp(b"SUBSCRIBE", b"c") + resp(b"INCR", b"a"))
    eventually(lambda: harness.backend.batches == [1])
    harness.server.publish("c", "too early")
    harness.backend.gate.set()
    wire.expect(b":1\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n:2\r\n")
    harness.server.publish("c", "x")
    wire.expect(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n")


def test_reset_ends_subscriptions_and_resp3(harness: Harness) -> None:
    wire = resp3(harness)
    wire.send(resp(b"CLIENT", b"SETNAME", b"me") + resp(b"SUBSCRIBE", b"c") + resp(b"PSUBSCRIBE", b"*"))
    wire.expect(
        b"+OK\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n>3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:2\r\n"
    )
    wire.send(resp(b"RESET") + resp(b"CLIENT", b"GETNAME"))
    wire.expect(b"+RESET\r\n$-1\r\n")
    harness.server.publish("c", "x")
    wire.send(resp(b"PING"))
    wire.expect(b"+PONG\r\n")
    assert all(handler.subscriptions.counts() == (0, 0) for handler in harness.server._handlers)


def test_commands_come_between_many_messages(harness: Harness) -> None:
    """A close publishes thousands; a client with thousands of patterns makes each of them long."""
    wire, other = harness.pair(), harness.pair()
    patterns = [b"*a*b*c%d" % n for n in range(5000)]
    wire.send(resp(b"PSUBSCRIBE", *patterns))
    for _ in patterns:
        for _ in range(6):
            wire.line()
    for _ in range(1000):
        harness.server.publish("a" * 50, "x")
    for _ in range(5):
        other.send(resp(b"PING"))
        other.expect(b"+PONG\r\n")
    (handler,) = harness.server._handlers
    assert handler._news, "all messages were matched before the commands"


def test_the_subscribers_of_all_handlers_hear() -> None:
    harness = Harness(handlers=2)
    try:
        wires = [harness.pair(), harness.pair()]
        for wire in wires:
            wire.send(resp(b"SUBSCRIBE", b"c"))
            wire.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
        assert [handler.load for handler in harness.server._handlers] == [1, 1]
        harness.server.publish("c", "x")
        for wire in wires:
            wire.expect(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n")
    finally:
        harness.close()


def test_every_subscriber_hears_everything_in_order_while_commands_run(harness: Harness) -> None:
    wires = [harness.connect() for _ in range(20)]
    for wire in wires:
        wire.send(resp(b"SUBSCRIBE", b"c"))
        wire.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
    busy = harness.connect()

    def work() -> None:
        for _ in range(200):
            busy.send(resp(b"INCR", b"n"))
            busy.line()

    worker = threading.Thread(target=work)
    worker.start()
    for number in range(500):
        harness.server.publish("c", f"{number:03}")
    for wire in wires:
        wire.expect(b"".join(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$3\r\n%03d\r\n" % n for n in range(500)))
    worker.join()


def test_pushes_do_not_break_into_answers(harness: Harness) -> None:
    """Worker and handler send on one socket at once: messages stay whole, also through a full socket."""
    harness.backend.values[b"big"] = b"\r\n" * 50_000  # a batch of them and all messages may wait unread
    wire = resp3(harness)
    wire.send(resp(b"SUBSCRIBE", b"c"))
    wire.expect(b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
    wire.send(resp(b"GET", b"big") * 100)

    def publish() -> None:
        for number in range(2000):
            harness.server.publish("c", f"{number:01000}")

    publisher = threading.Thread(target=publish)
    publisher.start()
    answers = pushes = 0
    while answers < 100 or pushes < 2000:
        head = wire.line()
        if head == b">3\r\n":
            wire.expect(b"$7\r\nmessage\r\n$1\r\nc\r\n$1000\r\n%01000d\r\n" % pushes)
            pushes += 1
        else:
            assert head == b"$100000\r\n"
            wire.expect(b"\r\n" * 50_001)
            answers += 1
    publisher.join()


def test_a_subscriber_that_does_not_read_is_dropped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection_module, "MAX_PUSH_BYTES", 100_000)
    slow, good = harness.pair(), harness.connect()
    for wire in (slow, good):
        wire.send(resp(b"SUBSCRIBE", b"c"))
        wire.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$10000\r\n" + b"x" * 10_000 + b"\r\n"
    for _ in range(200):
        harness.server.publish("c", "x" * 10_000)
        good.expect(message)
    eventually(lambda: harness.server.connected == 1)
    assert "bytes unread (limit 100000)" in caplog.text


def test_when_messages_are_lost_their_subscribers_are_cut_off(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handler_module, "_MAX_NEWS", 10)
    subscriber, other = harness.connect(), harness.connect()
    subscriber.send(resp(b"SUBSCRIBE", b"c"))
    subscriber.expect(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n")
    (handler,) = (one for one in harness.server._handlers if one.subscriptions.wants(b"c"))
    handler._news.extend([(b"c", b"x")] * 11)  # as a burst does that comes faster than the thread runs
    harness.server.publish("c", "one more")
    assert subscriber.until_closed() == b""
    assert "more than 10 messages wait" in caplog.text
    other.send(resp(b"PING"))
    other.expect(b"+PONG\r\n")


def test_what_nobody_hears_wakes_no_handler(harness: Harness, wire: Wire) -> None:
    """A close publishes an outcome for every follower: who hears the turns must not pay for all of them."""
    wire.send(resp(b"SUBSCRIBE", b"turns"))
    wire.expect(b"*3\r\n$9\r\nsubscribe\r\n$5\r\nturns\r\n:1\r\n")
    (handler,) = (one for one in harness.server._handlers if one.subscriptions.wants(b"turns"))
    handler._wake = lambda: woken.append(1)  # type: ignore[method-assign]
    woken: list[int] = []
    harness.server.publish("rewards:f1", "1 hit 10 10")
    assert not woken
    assert not handler._news
    harness.server.publish("turns", "1 2")
    assert woken


@pytest.mark.parametrize("command", [b"SUBSCRIBE", b"PSUBSCRIBE"])
def test_subscriptions_are_bounded(
    make_harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch, command: bytes
) -> None:
    monkeypatch.setattr(pubsub_module, "MAX_SUBSCRIPTIONS", 3)
    wire = make_harness().connect()
    wire.send(resp(command, b"a", b"b") + resp(command, b"c", b"d") + resp(command, b"x" * 5000))
    wire.line(), wire.line(), wire.line(), wire.line(), wire.line(), wire.line()
    for _ in range(6):
        wire.line()
    wire.expect(b"-ERR a client may have at most 3 subscriptions\r\n")
    wire.expect(b"-ERR a channel's name may have at most 4096 bytes\r\n")


def test_a_subscriber_that_leaves_is_forgotten(harness: Harness, wire: Wire) -> None:
    wire.send(resp(b"SUBSCRIBE", b"c") + resp(b"PSUBSCRIBE", b"c*") + resp(b"QUIT"))
    assert wire.until_closed().endswith(b"+OK\r\n")
    eventually(lambda: all(handler.subscriptions.counts() == (0, 0) for handler in harness.server._handlers))
    harness.server.publish("c", "x")
