"""Both paths of the smoothing operator."""

import pytest

from ext import smoothing


@pytest.fixture
def fused():
    """Needs the compiled operator."""
    assert "cpu" in smoothing.DEVICES, "the fused operator is not built: python -m ext"


@pytest.fixture(params=["eager", "fused"])
def path(request, monkeypatch):
    """`ext.smooth` on one path."""
    if request.param == "fused":
        request.getfixturevalue("fused")
    else:
        monkeypatch.setattr(smoothing, "DEVICES", frozenset())
    return request.param
