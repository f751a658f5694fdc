"""Devices by name."""

from __future__ import annotations

import torch

from data_cache import InputError


def pick_device(name: str | torch.device) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {name!r}; give auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"--device {name}: this machine has {count} usable CUDA devices; give auto or cpu.")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise InputError(f"device {name!r} is not supported; give auto, cpu, cuda or cuda:N.")
    return device
