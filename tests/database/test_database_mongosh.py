"""What people see in mongosh."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from database_support import Model, NodeSource, Projectors, wait_until

pytestmark = pytest.mark.needs_tool("mongosh")


def mongosh(port: int, name: str, script: str) -> str:
    ran = subprocess.run(
        ["mongosh", "--quiet", "--norc", f"mongodb://127.0.0.1:{port}/{name}", "--eval", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ran.stdout


def test_mongosh_reads_what_the_projector_wrote(server: Any, name: str, projectors: Projectors) -> None:
    model = Model(followers=3)
    for _ in range(2):
        model.close_interval()
    model.claim("w0", 3)
    source = NodeSource(model)
    projectors(source, server.uri, name).start()
    wait_until(lambda: source.acknowledged and model.projected == model.index, "everything is projected")
    shown = mongosh(server.port, name, "db.rewards.find()")
    for follower, row in model.rewards.items():
        assert f"_id: '{follower}'" in shown
        assert f"amount: Long('{row.amount}')" in shown
    answers = json.loads(
        mongosh(
            server.port,
            name,
            """EJSON.stringify([
                db.intervals.findOne({_id: {interval: 2, node: 'w0'}}),
                db.intervals.find({node: 'w1'}).sort({interval: -1}).toArray().map(d => d.interval),
                db.claims.countDocuments({accepted: true}),
                db.projection.findOne(),
            ])""",
        )
    )
    assert (answers[0]["outcome"], answers[0]["data"], answers[0]["delta"]) == ("hit", "work", 10)
    assert "$date" in answers[0]["closed_at"]
    assert answers[1:3] == [[2, 1], 1]
    assert (answers[3]["_id"], answers[3]["applied_index"]) == ("test", 3)
