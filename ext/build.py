"""Compile the fused operator and find what was compiled. Nothing is compiled unless `build` is called."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
ARCHITECTURES = ("80", "90")
# One dependency on OpenMP, the one that torch has loaded. Without -ffast-math: NaN and infinities keep their meaning.
CPU_FLAGS = (
    *("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-march=native", "-mprefer-vector-width=512"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-unknown-pragmas"),
)
CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler=-fPIC")


def folder() -> Path:
    """Where the libraries of these sources, this torch and this kind of processor belong."""
    cache = os.environ.get("LANDSCOPE_CACHE")
    if cache is None:
        cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "landscope")
    return Path(cache) / "ext" / _key()


def library(device: str) -> Path:
    """The library with the kernels of a device type, "cpu" or "cuda"."""
    return folder() / f"{device}.so"


def build(log: Callable[[str], None] = print, *, cuda: bool | None = None, force: bool = False) -> list[Path]:
    """Compile for the CPU, and for CUDA where `cuda` says so (None: where torch sees a GPU and there is an nvcc).

    Returns:
        The libraries, first the CPU's.

    Raises:
        RuntimeError: A compiler is missing or fails; with its message.
    """
    if cuda is None:
        cuda = torch.cuda.is_available() and find_nvcc() is not None
    built = []
    for device, compile_to in (("cpu", _compile_cpu), ("cuda", _compile_cuda))[: 1 + cuda]:
        path = library(device)
        if path.is_file() and not force:
            log(f"{device}: {path} is up to date")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                whole = Path(temporary) / path.name
                compile_to(whole)
                os.replace(whole, path)
            log(f"{device}: built {path}")
        built.append(path)
    return built


def find_nvcc() -> str | None:
    """The CUDA compiler, in $CUDA_HOME or on the path."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def compile_kernels(out: Path, architectures: Iterable[str]) -> None:
    """Compile the CUDA kernels to an object file, which needs neither a GPU nor torch's headers.

    Raises:
        RuntimeError: There is no nvcc, or it fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("there is no nvcc in $CUDA_HOME/bin or on the path")
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    _run([nvcc, *CUDA_FLAGS, *code, "-c", str(SOURCES / "kernels.cu"), "-o", str(out)])


def _compile_cpu(out: Path) -> None:
    _link(out, [SOURCES / "library.cpp", SOURCES / "cpu.cpp"], ["torch", "torch_cpu", "c10"])


def _compile_cuda(out: Path) -> None:
    kernels = out.with_suffix(".o")
    architectures = list(ARCHITECTURES)
    if torch.cuda.is_available():
        architectures.append("{}{}".format(*torch.cuda.get_device_capability()))
    compile_kernels(kernels, dict.fromkeys(architectures))
    _link(
        out, [SOURCES / "cuda.cpp", kernels], ["torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda"], _cuda_headers()
    )


def _cuda_headers() -> list[Path]:
    """Folders with the CUDA runtime's headers: those of the toolkit, else those of the pip packages beside torch."""
    nvcc = find_nvcc()
    toolkit = [Path(nvcc).resolve().parent.parent] if nvcc else []
    packages = sorted((Path(torch.__file__).parent.parent / "nvidia").glob("*"))
    found = [home / "include" for home in (*toolkit, *packages)]
    return [path for path in found if (path / "cuda_runtime_api.h").is_file()][:1]


def _link(out: Path, sources: Sequence[Path], libraries: Sequence[str], headers: Sequence[Path] = ()) -> None:
    from torch.utils import cpp_extension  # slow, and only builders need it

    torch_folder = Path(torch.__file__).parent
    includes = [f"-isystem{path}" for path in (*cpp_extension.include_paths(), *headers)]
    links = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}", *(f"-l{name}" for name in libraries)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    compiler = os.environ.get("CXX", "g++")
    _run([compiler, *CPU_FLAGS, abi, *includes, "-shared", *map(str, sources), "-o", str(out), *links])


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"there is no compiler {command[0]}") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()}")


def _key() -> str:
    """Hash of all that the machine code depends on."""
    parts = [torch.__version__, *CPU_FLAGS, *CUDA_FLAGS, platform.machine(), _processor()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The instructions that -march=native may use, so that a shared cache serves hosts of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
