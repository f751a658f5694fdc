"""The camera of 3-D charts stays where the visitor turned it: while frames play, and with other settings."""

from __future__ import annotations

import streamlit as st

# Plotly writes a turned camera into the layout that a scene began with. Streamlit replaces that layout by a copy once
# the chart is drawn, and the chart by another one when its numbers change. So the next frame, which reads the layout,
# and the next chart would turn the camera back. Here it goes into the layout that is there, and into later ones.
_KEEP = """<script>
if (!window.landscopeCameras) {
  const cameras = window.landscopeCameras = {}, layouts = new WeakMap();
  const scenes = chart => (chart?._fullLayout?._subplots?.gl3d ?? []).filter(
    name => chart._fullLayout[name]._scene?.glplot && chart.layout[name]);
  const place = (chart, name) =>
    `${chart.closest('[class*="st-key-"]')?.className.match(/st-key-\\S+/)} ${name}`;
  let turned, until = 0;  // a camera glides on after the hand has left it
  const touch = event => {
    turned = event.target.closest?.('.js-plotly-plot') ?? turned;
    until = Date.now() + 2000;
    keep();
  };
  const keep = () => {
    if (!turned || layouts.get(turned) !== turned.layout) return;
    for (const name of scenes(turned)) {
      const camera = turned._fullLayout[name]._scene.getCamera(), key = place(turned, name);
      if (JSON.stringify(camera) !== JSON.stringify(cameras[key])) until = Date.now() + 2000;
      cameras[key] = turned.layout[name].camera = camera;
    }
  };
  const restore = () => {
    for (const chart of document.querySelectorAll('.js-plotly-plot')) {
      if (layouts.get(chart) === chart.layout || !scenes(chart).length) continue;
      layouts.set(chart, chart.layout);
      for (const name of scenes(chart)) {
        const camera = cameras[place(chart, name)], drawn = chart._fullLayout[name];
        if (!camera) continue;
        chart.layout[name].camera = drawn.camera = camera;
        drawn._scene.setViewport(drawn);
      }
    }
  };
  for (const kind of ['mousemove', 'mouseup', 'wheel', 'touchmove', 'touchend'])
    document.addEventListener(kind, touch, {passive: true});
  setInterval(() => { if (Date.now() < until) keep(); restore(); }, 100);
}
</script>"""


def keep_cameras() -> None:
    """For all charts of the page, from now on."""
    st.html(_KEEP, unsafe_allow_javascript=True)
