"""Load tests. `python -m bench` measures every case and writes docs/benchmarks.md."""
