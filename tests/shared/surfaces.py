"""Landscape results made of formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from analyze.landscape.spec import BINS, Config, DirectionInfo, Result, Trajectory

IMAGES = 512


def info(kind: str = "random", norm: str = "filter", explained: float = np.nan) -> DirectionInfo:
    return DirectionInfo(kind, norm, 3.0, 0.5, np.nan, np.nan, explained, "cd" * 32)


def bowl(frame: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A basin with ripples that move from frame to frame, and walls, lower towards +x than -x."""
    ripples = 0.06 * np.sin(5 * x + frame) * np.cos(4 * y - 1.7 * frame)
    return 0.35 + 2.2 * (x**2 + 0.6 * y**2) * (1 - 0.35 * x) + ripples + 3 * np.maximum(0, np.hypot(x, y) - 0.9) ** 2


def surface(
    formula: Callable[[float, np.ndarray, np.ndarray], np.ndarray] = bowl,
    *,
    points: tuple[int, int] = (21, 21),
    span: float = 1.0,
    frames: int = 1,
    name: str = "resnet_mcdo_18",
    status: np.ndarray | None = None,
    kind: str = "random",
    trajectory: Trajectory | None = None,
    explained: float = np.nan,
    axes: tuple[np.ndarray, np.ndarray] | None = None,
) -> Result:
    """A result whose NLL is this formula; points[1] = 1 makes a curve over y = 0."""
    x, y = axes or (np.linspace(-span, span, points[0]), np.linspace(-span, span, points[1]) * (points[1] > 1))
    y = np.zeros(1) if len(y) == 1 else y
    nll = np.stack([np.broadcast_to(formula(f, *np.meshgrid(x, y)), (len(y), len(x))) for f in range(frames)])
    with np.errstate(invalid="ignore", over="ignore"):
        accuracy = np.nan_to_num(np.clip(0.9 * np.exp(-0.4 * nll), 0.1, 1))
    status = np.where(np.isfinite(nll), 1, 2).astype(np.uint8) if status is None else status
    done = (status == 1) | (status == 2)
    count = np.where(done, IMAGES, 0)
    bins = np.zeros((*nll.shape, BINS))
    bins[..., 12] = 1.0
    norm = "filter" if kind == "random" else ""
    result = Result(
        x=x,
        y=y,
        frame=np.arange(frames),
        status=status,
        count=count,
        nll_sum=np.where(done, IMAGES * nll, 0),
        nll_sq=np.where(done, IMAGES * (nll**2 + 0.8), 0),
        correct=np.round(count * accuracy),
        bin_count=bins * count[..., None],
        bin_confidence=bins * (count * 0.83)[..., None],
        bin_correct=bins * (count * accuracy)[..., None],
        l2=40.0 + 10 * x**2 + 10 * y[:, None] ** 2,
        direction_x={"weight": np.ones((2, 3), np.float32)},
        direction_y={"weight": np.ones((2, 3), np.float32)} if len(y) > 1 else {},
        info_x=info(kind, norm, explained),
        info_y=info(kind.replace("pca:1", "pca:2"), norm, explained / 4) if len(y) > 1 else None,
        stochastic=frames > 1,
        cosine=0.01,
        arithmetic="plain",
        deviation=np.nan,
        prescan=None,
        trajectory=trajectory,
    )
    about = {
        "checkpoint": f"/somewhere/{name}.safetensors", "checkpoint_sha256": "ab" * 32, "model": name,
        "images": IMAGES, "data": "fashion_mnist:test", "weight_decay": 5e-4, "mode": "eval", "dtype": "float32",
        "device": "cpu", "seed": 0,
    }  # fmt: skip
    return result.of(Config(), about)
