"""Benchmarks: Backrooms beside C tor on the same machine, in one run; see bench/README.md."""
