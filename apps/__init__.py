"""Streamlit apps over run files; they load no torch."""
