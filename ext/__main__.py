"""`python -m ext` builds the fused smoothing operator for this machine."""

from __future__ import annotations

import sys
from typing import Literal

import torch
import tyro

from ext import build


def main(*, cuda: Literal["auto", "yes", "no"] = "auto", force: bool = False) -> int:
    """Build the fused smoothing operator and say where it is.

    Args:
        cuda: With the CUDA kernels; auto: where torch sees a GPU and there is an nvcc.
        force: Build again what is up to date.
    """
    try:
        with_cuda = cuda == "yes" or (cuda == "auto" and torch.cuda.is_available() and build.find_nvcc() is not None)
        build.build(devices=["cpu", "cuda"] if with_cuda else ["cpu"], force=force)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from ext import status  # loads what is built, so after building

    print(status())
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m ext"))
