"""`python -m analyze.landscape --ckpt ...`."""

from analyze.cli import main

main("landscape")
