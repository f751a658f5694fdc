"""Both paths of the smoothing operator."""

import os

import pytest

from ext import smoothing


@pytest.fixture
def fused():
    """Needs the compiled operator."""
    if "cpu" not in smoothing.DEVICES and os.environ.get("LANDSCOPE_EXT") != "require":
        pytest.skip("not built: python -m ext")


@pytest.fixture(params=["eager", "fused"])
def path(request, monkeypatch):
    """`ext.smooth` on one path."""
    if request.param == "fused":
        request.getfixturevalue("fused")
    else:
        monkeypatch.setattr(smoothing, "DEVICES", frozenset())
    return request.param
