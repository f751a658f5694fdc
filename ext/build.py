"""Compile the fused operator and find what was compiled. Nothing is compiled unless `build` is called."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
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
CUDA_FLAGS = ("-O3", "-std=c++17", "-Xcompiler=-fPIC", "--threads=0")


def folder() -> Path:
    """Where the libraries of these sources, this torch and this kind of processor belong."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "landscope"
    return Path(os.environ.get("LANDSCOPE_CACHE") or user).expanduser().absolute() / "ext" / _key()


def library(device: str) -> Path:
    """The library with the kernels of a device type, "cpu" or "cuda"."""
    return folder() / f"{device}.so"


def build(log: Callable[[str], None] = print, *, devices: Sequence[str] = ("cpu",), force: bool = False) -> list[Path]:
    """Compile for these device types, "cpu" and "cuda"; what is there already stays unless `force`.

    Raises:
        RuntimeError: A compiler is missing or fails; with its message.
    """
    built = []
    for device in devices:
        path = library(device)
        if path.is_file() and not force:
            log(f"{device}: {path} is up to date")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
                whole = Path(temporary) / path.name
                {"cpu": _compile_cpu, "cuda": _compile_cuda}[device](whole)
                os.replace(whole, path)
            log(f"{device}: built {path}")
        built.append(path)
    return built


def find_nvcc() -> str | None:
    """The CUDA compiler: in $CUDA_HOME, on the path, or from the pip package nvidia-cuda-nvcc beside torch."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", os.defpath)]
    return shutil.which("nvcc", path=os.pathsep.join([*places, *(f"{home}/bin" for home in _packages())]))


def _packages() -> list[Path]:
    """Folders of NVIDIA's pip packages beside torch."""
    return sorted((Path(torch.__file__).parent.parent / "nvidia").glob("*"))


def compile_kernels(out: Path, architectures: Iterable[str]) -> None:
    """Compile the CUDA kernels to an object file, which needs neither a GPU nor torch's headers.

    Raises:
        RuntimeError: There is no nvcc, or it fails.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("there is no nvcc in $CUDA_HOME/bin, on the path or beside torch")
    architectures = list(architectures)
    code = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    newest = max(architectures, key=int)  # and for GPUs to come, which compile it when they load it
    code.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    _run([nvcc, *CUDA_FLAGS, *code, "-c", str(SOURCES / "kernels.cu"), "-o", str(out)])


def _compile_cpu(out: Path) -> None:
    _link(out, [SOURCES / "library.cpp", SOURCES / "cpu.cpp"], ["torch", "torch_cpu", "c10"])


def _compile_cuda(out: Path) -> None:
    kernels = out.with_suffix(".o")
    compile_kernels(kernels, dict.fromkeys([*ARCHITECTURES, *_gpu()]))
    _link(
        out, [SOURCES / "cuda.cpp", kernels], ["torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda"], _cuda_headers()
    )


def _cuda_headers() -> list[Path]:
    """Folders with CUDA's headers: the toolkit's, as nvcc names them, then those of pip packages beside torch."""
    asked = subprocess.run([find_nvcc(), "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    line = next((line for line in asked.stderr.splitlines() if " INCLUDES=" in line), "")
    toolkit = [Path(flag.removeprefix("-I")) for flag in shlex.split(line.partition("INCLUDES=")[2].strip('" '))]
    return [path for path in (*toolkit, *(home / "include" for home in _packages())) if path.is_dir()]


def _link(out: Path, sources: Sequence[Path], libraries: Sequence[str], headers: Sequence[Path] = ()) -> None:
    torch_folder = Path(torch.__file__).parent
    own = torch_folder / "include"
    includes = [f"-isystem{path}" for path in (own, own / "torch/csrc/api/include", *headers)]
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
    parts = [torch.__version__, *CPU_FLAGS, *CUDA_FLAGS, platform.machine(), _processor(), *_gpu()]
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _gpu() -> list[str]:
    """The architecture of this machine's GPU, if there is one."""
    return ["{}{}".format(*torch.cuda.get_device_capability())] if torch.cuda.is_available() else []


def _processor() -> str:
    """The instructions that -march=native may use, so that a shared cache serves hosts of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
