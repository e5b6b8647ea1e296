"""The parts of a running node, each owned by the raft worker thread unless its docstring says otherwise."""
