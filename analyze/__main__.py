"""`python -m analyze --ckpt ...`."""

from analyze.suite import main

main()
