"""What a node with a full disk tells its clients."""

from __future__ import annotations

from runtime_support import TIMEOUT_MAX, Bench, Waiter

from raft.core.messages import AppendEntriesResponse
from raft.runtime.errors import NO_SPACE
from raft.runtime.proposals import GATHER_MS
from raft.transport.node_messages import Forward, ForwardReply

SET, GET = [b"SET", b"a", b"1"], [b"GET", b"a"]


class Room:
    """As the log store's."""

    low = False

    def fits(self, entries: object) -> bool:
        return True


def full(bench: Bench, *peers: int) -> None:
    """These peers answer that their disks are full."""
    state = bench.state
    bench.turn(
        *((peer, AppendEntriesResponse(state.term, True, 0, state.round, full=True)) for peer in peers)
    )


def refused(waiter: Waiter) -> bool:
    return waiter.answer == b"-" + str(NO_SPACE).encode() + b"\r\n"


def test_a_leader_refuses_writes_while_a_majority_has_no_space() -> None:
    bench = Bench()
    bench.lead()
    full(bench, 2)
    assert not bench.worker.space.blocked, "2 of 3 have space"
    taken = bench.ask(SET)
    bench.turn(after_ms=GATHER_MS)
    full(bench, 2, 3)
    last = bench.state.log.last_index
    assert refused(bench.ask(SET))
    bench.turn((2, Forward(7, 2, [SET], b"~2.x.1", 1)))
    (reply,) = bench.network.take(ForwardReply, 2)
    assert reply.error == NO_SPACE
    for _ in range(30):  # intervals and the like are not due either
        bench.turn(after_ms=TIMEOUT_MAX / 10)
        full(bench, 2, 3)
    assert bench.state.log.last_index == last
    assert b"INDETERMINATE" in (taken.answer or b""), "it is in the log, but cannot be committed"
    bench.ack(2)
    bench.settle()
    assert bench.ask(SET).answer is None and not bench.worker.space.blocked
    assert bench.desk.load.taken == 1


def test_a_leader_without_space_hands_over_and_refuses_meanwhile() -> None:
    bench = Bench()
    bench.lead()
    bench.state.room = Room()
    bench.state.room.low = True
    bench.turn()
    assert bench.state.transfer_target == 2
    held = bench.ask(SET)
    assert held.answer is None, "for the next leader"
    bench.turn(after_ms=TIMEOUT_MAX)
    bench.ack(2)
    bench.turn(after_ms=30)
    assert held.answer is not None


def test_a_follower_without_space_passes_reads_on() -> None:
    bench = Bench()
    bench.turn()
    bench.state.room = Room()
    bench.state.room.low = True
    bench.turn()
    assert bench.desk.pass_reads_on
    bench.follow(2)
    bench.ask(GET)
    assert [forward.commands for forward in bench.network.take(Forward)] == [[GET]]
    bench.state.room.low = False
    bench.turn()
    assert not bench.desk.pass_reads_on


def test_what_watch_asks_is_never_passed_on() -> None:
    """No entry may hold it: if this node came to lead before the answer, all machines would end for good."""
    bench = Bench()
    bench.follow(2)
    bench.state.room = Room()
    bench.state.room.low = True
    bench.turn()
    bench.ask([b"~VERSION"])
    assert not bench.network.take(Forward)
    bench.win()
    bench.settle()
