"""`python -m analyze.hessian --ckpt ...`."""

from analyze.cli import main

main("hessian")
