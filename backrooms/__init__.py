"""Backrooms: a self-hosted onion router that runs as a Twisted service."""

__version__ = "0.1.0"
