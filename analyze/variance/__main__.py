"""`python -m analyze.variance --ckpt ...`."""

from analyze.cli import main

main("variance")
