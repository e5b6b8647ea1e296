"""The scopes: how much of everything a search may use. The smaller the scope, the sooner it is exhausted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """terms: none is later. proposals: client entries, in all; no-ops come on top. rounds: broadcasts of a
    leader in its term, the no-op's included; heartbeats are sent as long as some are left. crashes, reads,
    changes, transfers: in all. pre_votes: asked for by messages (else they are given). batch: events in one
    turn. lost: connections break, so that a leader looks for its peer's log anew. symmetric: states that
    differ only by the nodes' names are one. exhaustible: has been, within about 20 minutes of one core."""

    name: str
    nodes: int = 3
    terms: int = 2
    proposals: int = 0
    rounds: int = 2
    crashes: int = 0
    reads: int = 0
    changes: int = 0
    transfers: int = 0
    pre_votes: bool = False
    batch: int = 1
    lost: bool = False
    symmetric: bool = True
    exhaustible: bool = True

    def describe(self) -> str:
        """The bounds in words."""
        parts = [f"{self.nodes} nodes", f"{self.terms} terms", f"{self.proposals} proposals"]
        parts += [f"{self.rounds} rounds per leader", f"{self.crashes} crashes"]
        parts += [f"{n} {name}" for name in ("reads", "changes", "transfers") if (n := getattr(self, name))]
        parts += ["pre-votes by message"] if self.pre_votes else []
        parts += [f"{self.batch} events per turn"] if self.batch > 1 else []
        parts += ["broken connections"] if self.lost else []
        return ", ".join(parts)


SCOPES = {
    scope.name: scope
    for scope in (
        Scope("alone", nodes=1, proposals=2, crashes=2, rounds=4),
        Scope("two-nodes", nodes=2, rounds=1, crashes=1),
        Scope("elections", rounds=1),
        Scope("crashes", rounds=1, crashes=1),
        Scope("crashes-2", rounds=1, crashes=2, exhaustible=False),
        Scope("batches", rounds=1, batch=2),
        Scope("lost", rounds=1, lost=True),
        Scope("pre-votes", rounds=1, pre_votes=True, exhaustible=False),
        Scope("transfer", rounds=1, transfers=1),
        Scope("entry", rounds=1, proposals=1),
        Scope("entries", rounds=1, proposals=2, exhaustible=False),
        Scope("entry-crash", rounds=1, proposals=1, crashes=1, exhaustible=False),
        Scope("replication", rounds=2, exhaustible=False),
        Scope("conflicts", proposals=1, rounds=2, exhaustible=False),
        Scope("reads", rounds=1, reads=1, exhaustible=False),
        Scope("members", rounds=1, changes=2, symmetric=False, exhaustible=False),
        Scope("members-4", nodes=4, terms=3, rounds=1, changes=2, symmetric=False, exhaustible=False),
        Scope("elections-3", terms=3, rounds=1, exhaustible=False),
    )
}
