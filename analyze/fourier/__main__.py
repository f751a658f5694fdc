"""`python -m analyze.fourier --ckpt ...`."""

from analyze.cli import main

main("fourier")
