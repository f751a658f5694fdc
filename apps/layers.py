"""Which layers a page shows, and what it says of networks without noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from analyze.by_depth import places
from analyze.chart_parts import highest
from apps.context import Chosen, escape

KINDS = {
    "block": "all blocks", "smoothing": "all smoothing layers", "stage": "all stages",
    "attention": "all attention layers", "mlp": "all MLPs", "module": "all modules",
}  # fmt: skip
"""What the layers of a kind are called together."""


def pick_layers(chosen: Sequence[Chosen], key: str) -> list[str] | None:
    """Names of the layers that the reader picks, one by one or by kind; None for all.

    Args:
        chosen: Results with numbers of each layer.
        key: Of the widget.
    """
    results = [each.result for each in chosen]
    _, names = places(results)
    names = names or list(dict.fromkeys(str(name) for result in results for name in result.layer))
    kinds = list(dict.fromkeys(str(kind) for result in results for kind in result.kind))
    options = [("kind", kind) for kind in kinds if len(kinds) > 1] + [("layer", name) for name in names]
    picked = st.multiselect(
        "Layers", options, format_func=_label, key=key, placeholder="All, or pick some", bind="query-params"
    )
    wanted = {name for sort, name in picked if sort == "layer"}
    of_kind = {name for sort, name in picked if sort == "kind"}
    wanted |= {
        str(n) for each in results for n, kind in zip(each.layer, each.kind, strict=True) if str(kind) in of_kind
    }
    return [name for name in names if name in wanted] if picked else None


def say_what_has_no_noise(chosen: Sequence[Chosen], noise: str, what: str) -> None:
    """Name the networks without Monte Carlo noise, and those of which one pass can't tell.

    Args:
        chosen: Results with numbers of each layer.
        noise: Name of their array that is 0 of deterministic networks, and NaN of one pass.
        what: What they don't have, in words.
    """
    arrays = {each.name: getattr(each.result, noise) for each in chosen}
    same = [name for name, values in arrays.items() if not np.isnan(values).all() and not highest(values)]
    once = [name for name, values in arrays.items() if np.isnan(values).all()]
    if same:
        st.info(f"{escape(', '.join(same))} {'give' if same[1:] else 'gives'} the same at every pass: no {what}.")
    if once:
        st.info(f"{escape(', '.join(once))}: one pass does not tell the {what}.")


def _label(option: tuple[str, str]) -> str:
    """As Streamlit's lists show it: as it is, never as markup."""
    sort, name = option
    return KINDS.get(name, f"all of kind {name}") if sort == "kind" else name
