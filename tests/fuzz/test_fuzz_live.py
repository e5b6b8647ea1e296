"""Strangers at all ports of a real cluster under load: nobody notices. Longer: `make fuzz-live MINUTES=5`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.live import Siege

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)  # phases go on until the load has had its rounds, however busy the machine is
def test_strangers_do_not_disturb_a_cluster_that_works(tmp_path: Path) -> None:
    siege = Siege(tmp_path, max_clients=400)
    siege.run(control_s=2, attack_s=6, crowd_s=4)
    print(siege.figures, siege.counts)
    kinds = ("noise", "oversize", "half_open", "never_finishing", "never_reading")
    for each in kinds:
        for port in ("raft", "client", "http"):
            assert siege.counts.get(f"{each} {port}", 0) > 0, f"nobody did {each} to {port}"
