"""`python -m ext` builds the fused smoothing operator for this machine."""

from __future__ import annotations

import sys

import tyro

from ext import build, status


def main(*, cuda: bool | None = None, force: bool = False) -> int:
    """Build the fused smoothing operator and say where it is.

    Args:
        cuda: With the CUDA kernels; by default where torch sees a GPU and there is an nvcc.
        force: Build again what is up to date.
    """
    try:
        build.build(cuda=cuda, force=force)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(status())
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m ext"))
