"""All targets by name: hypothesis, the coverage-guided fuzzer and the regression tests use the same."""

from __future__ import annotations

from tests.fuzz import (
    client_targets,
    config_targets,
    machine_targets,
    storage_targets,
    tool_targets,
    web_targets,
    wire_targets,
)
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        wire_targets,
        client_targets,
        storage_targets,
        machine_targets,
        config_targets,
        tool_targets,
        web_targets,
    )
    for target in module.TARGETS
}
