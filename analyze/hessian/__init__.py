"""How sharp the loss is, and along how many directions: eigenvalues, trace and density of its Hessian."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["spec", "figures", "kernel"],
    submod_attrs={
        "compute": ["compute"],
        "density": ["slq_probe"],
        "kernel": ["kernel_density"],
        "lanczos": ["Eigenpairs", "extreme_eigenpairs"],
        "operator": ["HessianOperator"],
        "spec": ["Blocks", "Config", "Density", "Extremes", "MaxSpectrum", "Quantization", "Result", "Trace"],
        "spectrum": ["max_eigenvalue_spectrum"],
        "trace": ["trace_estimate", "trace_sample"],
    },
)
