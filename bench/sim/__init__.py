"""Simulations of whole networks: what gossip, failure detection, guards and path choice come to.

Each module of this package with a function `run` gives a `Section`; `python -m bench.sim` runs them all.
"""
