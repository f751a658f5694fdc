"""A surface in a light box, drawn so that a next one, or another camera, costs little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d import Axes3D

    from analyze.landscape.shown import Limits, Shown

RED = "#c1121f"
ELEVATION, AZIMUTH = 25.0, -60.0
"""The camera, in degrees."""
HEIGHT = 0.7
"""Of the box, whose floor is a square with sides 1."""


class Scene:
    """A surface over a grid, in the manner of Park & Kim (2022): plasma, no panes, no axes, a fixed camera.

    Args:
        axes: 3-D axes, which it takes over.
        x: (X,) coordinates.
        y: (Y,) coordinates.
        limits: Range of the height and of the colours; values above are drawn at its upper end.
        colors: Name of the colour map.
        zoom: How much of the axes the box takes.
    """

    def __init__(
        self, axes: Axes3D, x: np.ndarray, y: np.ndarray, limits: Limits, colors: str = "plasma", zoom: float = 1.0
    ):
        import matplotlib
        from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

        self.axes, self.limits = axes, limits
        self.colors = matplotlib.colormaps[colors]
        self.x, self.y = np.meshgrid(x, y)
        axes.set_axis_off()
        axes.patch.set_visible(False)
        axes.computed_zorder = False
        axes.set_box_aspect((1, 1, HEIGHT), zoom=zoom)
        self.ends = np.array([[x[0], x[-1]], [y[0], y[-1]], limits[:2]], dtype=float)
        for set_limits, (low, high) in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), self.ends, strict=True):
            set_limits(low, high, auto=False)
        self.frame = Line3DCollection([], colors="0.75", linewidths=0.7, zorder=0)
        self.surface: Any = Poly3DCollection([], linewidths=0.25, zorder=1)
        self.frame.set_clip_on(False)
        self.surface.set_clip_on(False)
        self.crosses: Any = axes.plot(
            [], [], [], "x", color=RED, markersize=4, markeredgewidth=1.5, clip_on=False, zorder=2
        )[0]
        for artist in (self.frame, self.surface, self.crosses):
            artist.set_in_layout(False)
        axes.add_collection3d(self.frame, autolim=False)
        axes.add_collection3d(self.surface, autolim=False)
        self.turn(AZIMUTH)

    def turn(self, azimuth: float, elevation: float = ELEVATION) -> None:
        """Look from there, in degrees; the frame stays behind the surface."""
        self.axes.view_init(elevation, azimuth)
        angle = np.deg2rad(azimuth)
        far = (int(np.cos(angle) < 0), int(np.sin(angle) < 0))
        self.frame.set_segments(self._walls(*far))

    def _walls(self, far_x: int, far_y: int) -> list[np.ndarray]:
        """Outlines of the floor and of the two walls at the back."""
        (x, y, z), walls = self.ends, []
        floor = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
        wall_x = [(far_x, 0, 0), (far_x, 1, 0), (far_x, 1, 1), (far_x, 0, 1)]
        wall_y = [(0, far_y, 0), (1, far_y, 0), (1, far_y, 1), (0, far_y, 1)]
        for corners in (floor, wall_x, wall_y):
            walls.append(np.array([(x[i], y[j], z[k]) for i, j, k in [*corners, corners[0]]]))
        return walls

    def draw(self, shown: Shown) -> None:
        """Show these heights; what is not there leaves a hole, what is not finite also crosses at the top."""
        low, high = self.limits[:2]
        rows, columns = np.nonzero(shown.nonfinite)
        self.crosses.set_data_3d(self.x[rows, columns], self.y[rows, columns], np.full(len(rows), high))
        with np.errstate(invalid="ignore"):
            height = np.clip(np.where(np.isfinite(shown.value), shown.value, np.nan), low, high)
        corners = np.stack([self.x, self.y, height], axis=-1)
        quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=2)
        quads = quads.reshape(-1, 4, 3)
        quads = quads[np.isfinite(quads[:, :, 2]).all(axis=1)]
        share = (quads[:, :, 2].mean(axis=1) - low) / (high - low)
        color = self.colors(share)
        color[:, :3] *= self._light(quads)[:, None]
        self.surface.set_verts(quads, closed=True)
        self.surface.set_facecolor(color)
        edge = color.copy()
        edge[:, :3] *= 0.75
        self.surface.set_edgecolor(edge)

    def _light(self, quads: np.ndarray) -> np.ndarray:
        """Brightness of each facet under a lamp that stands beside the first camera, from 0.75 to 1."""
        size = np.maximum(self.ends[:, 1] - self.ends[:, 0], 1e-300) / (1, 1, HEIGHT)
        scaled = quads / size
        normal = np.cross(scaled[:, 2] - scaled[:, 0], scaled[:, 3] - scaled[:, 1])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
        lamp = np.array([0.25, -0.55, 0.8])
        return 0.75 + 0.25 * np.clip(normal @ (lamp / np.linalg.norm(lamp)), 0, 1)
