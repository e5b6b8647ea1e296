"""The exhaustive search: small scopes to their end, and bugs that it must find (docs/proof-model.md)."""

from __future__ import annotations

import pytest

from tests.model.hunt import ROOT, search_with
from tests.model.scopes import SCOPES
from tests.model.search import Search
from tests.model.transcript import transcript
from tests.mutants.model_mutants import HUNTS


def exhaust(name: str) -> set[str]:
    """Search the scope to its end; returns what was reached on the way."""
    search = Search(SCOPES[name])
    result = search.run()
    assert not result.violation, transcript(search, result)
    assert result.exhausted
    assert result.states == len(search.parents) > 1
    return set(result.reached)


def test_elections_are_safe() -> None:
    reached = exhaust("elections")
    assert reached >= {
        *("a leader", "leaders in two terms", "another leader"),
        *("a committed entry", "commits in two terms", "a conflict truncated"),
    }


def test_a_cluster_of_one_and_of_two_are_safe_through_crashes() -> None:
    assert exhaust("alone") >= {"a committed entry", "commits in two terms", "a crash"}
    assert exhaust("two-nodes") >= {"another leader", "a committed entry", "a crash"}


QUICK = {
    "more than one vote per term",
    "a single node acknowledges before its disk",
    "two voters at once",
    "even-cluster quorum off by one",
}


@pytest.mark.parametrize(
    "hunt",
    [hunt for hunt in HUNTS if hunt.mutants[0].why in QUICK],
    ids=lambda hunt: hunt.mutants[0].why.replace(" ", "-"),
)
def test_a_bug_put_back_is_found(hunt) -> None:
    found = search_with(hunt, states=100_000)
    assert found.violation, found.output
    assert f"# {found.violation}" in found.output  # the way there is printed


def test_every_bug_in_the_list_applies() -> None:
    for hunt in HUNTS:
        assert hunt.scope in SCOPES
        for mutant in hunt.mutants:
            text = (ROOT / mutant.file).read_text(encoding="utf-8")
            assert text.count(mutant.old) == 1, f"{mutant.why}: found {text.count(mutant.old)} times"
