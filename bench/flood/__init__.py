"""What a relay's honest users notice of a flood: `python -m bench.flood` (bench/README.md)."""
