"""`python -m analyze.robustness --ckpt ...`."""

from analyze.cli import main

main("robustness")
