"""One page of the explorer without the rest, as a test sees it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest


def page(view: str, folder: Path, names: Sequence[str], **settings: Any) -> AppTest:
    """A page with these run files of a folder chosen, in this order, and widgets set by key, run once."""
    test = AppTest.from_function(_script, default_timeout=60, args=(view, str(folder), list(names)))
    for key, value in settings.items():
        test.session_state[key] = value
    return test.run()


def _script(view, folder, names):
    import importlib
    from pathlib import Path

    from apps.context import Context
    from apps.library import list_runs

    runs = list_runs(Path(folder))
    by_name = {run.name: run for run in runs}
    importlib.import_module(f"apps.views.{view}").show(Context(Path(folder), runs, [by_name[name] for name in names]))


def charts(test: AppTest) -> list[dict]:
    """Plotly figures on the page."""
    return [json.loads(chart.proto.spec) for chart in test.get("plotly_chart")]


def names(figure: dict) -> list[str]:
    """Of its traces."""
    return [trace.get("name") for trace in figure["data"]]


def sentences(test: AppTest) -> list[str]:
    """What the page says in boxes."""
    return [box.value for box in [*test.info, *test.warning, *test.error]]
