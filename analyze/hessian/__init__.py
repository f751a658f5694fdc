"""How sharp the loss is, and along how many directions: eigenvalues, trace and density of its Hessian."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures", "kernel"],
    submod_attrs={
        "compute": ["compute"],
        "density": ["slq", "slq_probe", "trace_estimate", "trace_sample"],
        "kernel": ["kernel_density"],
        "lanczos": ["Eigenpairs", "extreme_eigenpairs"],
        "operator": ["HessianOperator"],
        "spec": ["Config", "Density", "Extremes", "Result", "Trace"],
    },
)
