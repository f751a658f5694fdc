"""An animation of the landscapes on the page, made when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from analyze.landscape.spec import Metric
from apps.chart import file_stem
from apps.context import Chosen, escape
from data_cache import InputError

SIZES = (300, 400, 500, 600, 800)


@st.fragment
def offer_animation(chosen: Sequence[Chosen], metric: Metric) -> None:
    """Options, a button that makes the GIF and shows how far it is, and the download."""
    with st.expander("Animation (GIF)", icon=":material/movie:"):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            style = st.segmented_control(
                "Style", ("surface", "contour"), default="surface", required=True, key="landscape_gif_style"
            )
            tween = st.slider(
                "Pictures for each pass", 1, 20, 10, key="landscape_gif_tween", width=220,
                help="Itself, and those interpolated on the way to the next.",
            )  # fmt: skip
            size = st.select_slider("Height in pixels", SIZES, value=400, key="landscape_gif_size", width=220)
            orbit = st.toggle("Turn the camera", key="landscape_gif_orbit", disabled=style == "contour")
            wanted = st.button("Make the GIF", icon=":material/movie:", key="landscape_gif_make")
        options = {"metric": metric, "style": style, "tween": tween, "size": size}
        options["orbit"] = orbit and style == "surface"
        made_of = ([(each.run.key, each.run.modified, each.run.size) for each in chosen], options)
        if wanted:
            _make(chosen, options, made_of)
        if (made := st.session_state.get("landscape_gif")) and made[0] == made_of:
            st.image(made[1], width="content")
            name = f"{file_stem([each.name for each in chosen], 'landscape')}.gif"
            st.download_button(
                f"Download, {len(made[1]) / 1e6:.2g} MB", made[1], name, "image/gif", on_click="ignore",
                icon=":material/download:", key="landscape_gif_download",
            )  # fmt: skip


def _make(chosen: Sequence[Chosen], options: dict[str, Any], made_of: Any) -> None:
    from analyze.landscape.animation import write_gif

    bar = st.progress(0.0, "Drawing")

    def told(part: str, done: int, total: int | None, note: str) -> None:
        bar.progress(done / (total or done), f"{done} of {total or '?'} pictures")

    try:
        with TemporaryDirectory() as folder:
            path = write_gif([each.result for each in chosen], Path(folder) / "landscape.gif", progress=told, **options)
            st.session_state["landscape_gif"] = made_of, path.read_bytes()
    except (InputError, ValueError) as error:  # values of any size
        st.error(escape(f"{error}"))
    bar.empty()
