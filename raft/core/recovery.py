"""A server whose disk has lost part of its log, and knows it, until it has that part again.

Raft rests on stable storage (paper 5.4.1): an entry is committed because a majority has it, and every later
leader has it because somebody of that majority voted for it. A server that has acknowledged entries and lost
them must therefore give no vote, and not stand for election, until it has again all that it may have
acknowledged. Its term and vote are whole (else the node does not start at all): no vote is forgotten.
This is the follower's half of "Protocol-Aware Recovery for Consensus-Based Storage" (Alagappan et al., FAST
2018), with less to agree on: what is lost is taken from a leader, never from other followers.

T is the term on its disk when the loss was found. It acknowledged entries only in terms up to T, to leaders
of such terms, or counted them itself as such a leader.

Meanwhile it
 - gives no vote and no pre-vote, and does not campaign, not even when its leader asks it to (election.py,
   transfer.py). So a quorum that elects anybody does without it, and meets every quorum that committed an
   entry in a server that still has that entry: leader completeness (5.4.3) holds. This does not depend on how
   many servers are recovering: if there are too many, nobody is elected;
 - takes entries, snapshots and the commit index from leaders, and acknowledges what is on its disk now: this
   is as true as of any other follower. What it had acknowledged may still be counted by a leader of a term up
   to T, until that leader finds out (replication._on_lost_entries) or from an answer that was long under way:
   the entries that are committed so are among those that it waits for;
 - confirms its leader for reads (thesis 6.4) and leases: these promise only that it has elected nobody else;
 - serves reads through the leader, once it has applied what the leader names: as any follower.

It is healed, and votes again, when one of these holds:
 A. its log has, on disk, an entry of a term above T. The leader of that term was elected without this server
    (its vote would be on its disk), so that its log had, when its term began, whatever any quorum may have
    committed in terms up to T, this server's lost word counted; and this log is a beginning of that leader's
    log which reaches into its term (log matching, 5.3).
 B. it is in term T, and its log agrees, on disk, with that of T's leader up to where that ended at some
    moment after this process began. That leader's log holds all that may be committed of earlier terms, and
    all that this server has acknowledged in T was sent by it, so stood in its log before. To learn of such a
    moment it asks: a ReadIndexRequest with a number that no other run has used, so that the answer cannot be
    an old one; what comes by itself might be. (An older leader answers without log_end: A remains.)

Both are read off what is durable, and stay true: what a later leader truncates, it has replaced by its own.
The marker on disk may outlive the healing, after a crash: then the server only waits a little longer.

Configurations in the lost part are forgotten, too, and an older one may be in force: it only matters to who
votes or campaigns, or talks to peers, who make themselves known.
"""

from __future__ import annotations

from dataclasses import dataclass

from raft.core.effects import LostEntries
from raft.core.messages import ReadIndexRequest, ReadIndexResponse
from raft.core.state import CoreState

COMPLAIN_EVERY_MS = 30_000.0


@dataclass(slots=True)
class Recovering:
    """What a server that has lost entries waits for. lost: what it lost, and the T of the module's docstring.

    ask_id: the number of this run's question to the leader of term T; asked_ms: when it was asked last.
    target: where that leader's log ended. matched: how far the log agrees with that leader's.
    """

    lost: LostEntries
    ask_id: int
    asked_ms: float = float("-inf")
    target: int | None = None
    matched: int = 0
    complained_ms: float = float("-inf")


def begin(core: CoreState, lost: LostEntries) -> None:
    """The disk says at the start that entries were lost."""
    core.recovering = Recovering(lost, core.rng.getrandbits(62))
    core.effects.news.append(
        f"has lost entries that it may have acknowledged, from {lost.from_index} on, in term {lost.term}: "
        f"gives no vote and does not campaign until a leader has sent them again"
    )


def on_match(core: CoreState, sender: int, match: int) -> None:
    """The log agrees with the sender's, who leads the current term, up to match: but is that all of it?"""
    recovering = core.recovering
    if recovering is None or core.term != recovering.lost.term:
        return
    recovering.matched = max(recovering.matched, match)
    _ask(core, recovering, sender)


def _ask(core: CoreState, recovering: Recovering, leader: int) -> None:
    """Ask where the leader's log ends; again after a heartbeat's time, since messages may be lost."""
    due = recovering.asked_ms + core.options.heartbeat_interval_ms
    if recovering.target is None and core.now >= due:
        recovering.asked_ms = core.now
        core.effects.messages.append((leader, ReadIndexRequest(core.term, recovering.ask_id, log_end=True)))


def handle_log_end(core: CoreState, response: ReadIndexResponse) -> bool:
    """Whether this is the answer to the question of this run, of which note is taken."""
    recovering = core.recovering
    if recovering is None or response.request_id != recovering.ask_id:
        return False
    if response.ok and response.last_index and response.term == recovering.lost.term:
        recovering.target = response.last_index
    return True


def advance(core: CoreState) -> None:
    """After each event: end the recovery once nothing is missing any more."""
    recovering = core.recovering
    if recovering is not None and is_healed(core, recovering):
        core.recovering = None
        core.effects.healed = True
        core.effects.news.append(
            f"healed: the log has again all that was lost from entry {recovering.lost.from_index} on (it is "
            f"on disk up to {core.durable_index}): votes again"
        )


def is_healed(core: CoreState, recovering: Recovering) -> bool:
    """Rules A and B of the module's docstring."""
    if core.log.term(core.durable_index) > recovering.lost.term:
        return True
    agrees = max(recovering.matched, core.commit_index)
    return (
        core.term == recovering.lost.term
        and recovering.target is not None
        and min(agrees, core.durable_index) >= recovering.target
    )


def complain(core: CoreState) -> None:
    """No leader is heard: say so now and then, since perhaps nobody can be elected without this server."""
    recovering = core.recovering
    if recovering is None or core.now < recovering.complained_ms + COMPLAIN_EVERY_MS:
        return
    recovering.complained_ms = core.now
    others, quorum = [v for v in core.configuration.voters if v != core.node_id], core.configuration.quorum()
    enough = f"so {quorum} of the voters {others} must be up and healthy to elect one"
    too_few = f"and the voters {others} are too few without it, unless a later configuration has more"
    core.effects.news.append(
        f"recovering from entry {recovering.lost.from_index} on, and no leader is heard: this node gives no "
        f"vote, {enough if len(others) >= quorum else too_few}"
    )
