"""Numbers with errors as tables on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st


def show_table(columns: Mapping[str, Sequence[Any]], key: str) -> None:
    """Columns by heading, sortable; numbers with five digits, and nothing where there is none.

    Args:
        columns: Of one length each; any text.
        key: Of the table among all of the app.
    """
    import pandas as pd

    table = pd.DataFrame(dict(columns))
    numbers = [name for name in table.columns if pd.api.types.is_float_dtype(table[name])]
    config: dict[str, Any] = {name: st.column_config.NumberColumn(format="%.5g") for name in numbers}
    if table.shape[1] > 5 and table.columns[0] not in numbers:  # else Streamlit cuts names to make room
        config[table.columns[0]] = st.column_config.TextColumn(width="medium")
    st.dataframe(table, hide_index=True, column_config=config, key=key, placeholder="")
