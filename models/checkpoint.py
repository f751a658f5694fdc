"""Checkpoints in and out: our self-describing safetensors, and everybody else's files, read without running code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from data_cache import InputError, paths
from data_cache.files import written_whole
from models.randomness import fixed_randomness
from models.registry import get_model, names

FORMAT = "landscope"
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "net")
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# what a file may have built without being asked: nothing that imports, downloads or opens what it names
_LIBRARY_MODEL = re.compile(r"torchvision:\w+|timm:[\w.]+")
_LIBRARY_SOURCE = re.compile("path|pretrained|weights|cache|file|url")


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights, and what the file says of it."""

    model: nn.Module
    name: str
    """Zoo name, `torchvision:NAME`, `timm:NAME` or `package.module:factory`."""
    kwargs: dict[str, Any]
    """What the network was built with, `num_classes` included for the zoo."""
    metadata: dict[str, Any]
    """Recorded classes, dataset, mean, std, weight_decay, augmentation, training; empty for foreign files."""
    path: Path
    sha256: str
    """Of the file."""


def save_checkpoint(path: str | Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a self-describing checkpoint; the file appears whole or not at all.

    Args:
        path: Ends in `.safetensors`; missing folders are made.
        model: Its state dict is stored, contiguous and on the CPU.
        metadata: At least `model` (a name that `build_model` takes) and `kwargs`; values must fit in JSON.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_tensors(path, tensors, metadata)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as safetensors; the file appears whole or not at all."""
    header = {"format": FORMAT, **{key: json.dumps(value) for key, value in metadata.items()}}
    with written_whole(path) as temporary:
        # clones: safetensors refuses tensors that share memory
        temporary.write_bytes(save({key: value.clone() for key, value in tensors.items()}, header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file; metadata is empty unless this project wrote it."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); fetch or save it again.") from None
    if header.pop("format", None) != FORMAT:
        return tensors, {}
    try:
        return tensors, {key: json.loads(value) for key, value in header.items()}
    except (ValueError, RecursionError):
        raise InputError(f"{path}: the metadata is not JSON; fetch or save the checkpoint again.") from None


def _read_pickle(path: Path) -> Any:
    """The content of a `torch.save` file, tensors and plain containers only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the file's pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"(?:GLOBAL|global|class) [`']?([\w.]+)", str(error))
        what = f" ({reason.group(1)})" if reason else ""
        raise InputError(
            f"{path} is not a file of tensors, or holds Python objects beside them{what}; nothing in it was run: "
            "save the model's state_dict() instead."
        ) from None
    except Exception:  # broken bytes can make torch's reader raise anything
        raise InputError(f"{path} is cut short or no PyTorch checkpoint; fetch or save it again.") from None


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The file meant by a path or by the name of a shipped or own checkpoint."""
    path = Path(os.path.expanduser(name_or_path))  # os.path, for it answers no where pathlib raises
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; --ckpt takes a checkpoint file.")
    known = paths.checkpoints()
    if (name := str(name_or_path)) in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"by name there are: {', '.join(known) or 'none'}."
    raise InputError(f"there is no checkpoint {name_or_path}; {hint}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_checkpoint(
    name_or_path: str | Path, *, model: str | None = None, model_args: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Load a checkpoint on the CPU, in eval mode, without running any code from the file.

    Args:
        name_or_path: A file, or the name of a checkpoint that `python -m models list` shows.
        model: What to build for a file that does not say: a zoo name, `torchvision:NAME`, `timm:NAME` or
            `package.module:factory`. A file that says must agree.
        model_args: Keyword arguments of the network; for zoo names `num_classes` is read off the weights.

    Raises:
        InputError: The file is missing, broken, foreign or does not fit the network; or a weight is not finite.
    """
    path = find_checkpoint(name_or_path)
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; fetch or save it again.")
    if path.suffix == ".safetensors":
        state, metadata = read_tensors(path)
        stored_name, stored_args = _canonical_name(metadata.pop("model", None)), metadata.pop("kwargs", {})
        if not isinstance(stored_args, dict):
            raise InputError(f"{path}: the metadata's kwargs are no mapping; save the checkpoint again.")
        _check_metadata(path, metadata)
    else:
        state, stored_name = _unwrap(path, _read_pickle(path))
        metadata, stored_args = {}, {}
    asked = _canonical_name(model)
    name = asked or stored_name
    if name is None:
        raise InputError(f"{path} does not say which network it is of; give --model (and --model-args).")
    if asked is None:
        _refuse_code(path, name, stored_args)
    if stored_name and asked and asked != stored_name:
        raise InputError(f"{path} is of {stored_name}, not of {model}; leave --model out or give another file.")
    state = _strip_wrappers(state)
    if not state:
        raise InputError(f"{path} holds no weights.")
    if stored_args and (foreign := sorted(set(model_args or {}) - set(stored_args))):
        raise InputError(f"{path} says how its network was built; leave {', '.join(foreign)} out of --model-args.")
    kwargs = {**stored_args, **(model_args or {})}
    for key, value in stored_args.items():
        if _listed(kwargs[key]) != _listed(value):
            raise InputError(f"{path} was built with {key}={value!r}, not {kwargs[key]!r}.")
    if name in names():
        state = from_how_do_vits_work(state)
        if "num_classes" not in kwargs and (classes := _classes_of(state)):
            kwargs["num_classes"] = classes
        with torch.device("meta"):  # no file makes us build a larger network than its weights fill
            _check_fit(path, name, _build(path, name, kwargs).state_dict(), state)
    network = _build(path, name, kwargs)
    expected = network.state_dict()
    _check_fit(path, name, expected, state)
    network.load_state_dict({**expected, **state})
    return Checkpoint(network.eval(), name, kwargs, metadata, path, file_sha256(path))


def build_model(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """A network by zoo name, `torchvision:NAME`, `timm:NAME` or `package.module:factory`, with fresh weights."""
    source, colon, target = name.partition(":")
    try:
        if not colon:
            return get_model(name, **kwargs)
        if source == "torchvision":
            import torchvision

            network = torchvision.models.get_model(target, weights=None, **kwargs)
        elif source == "timm":
            network = _import("timm", "pip install 'landscope[timm]'").create_model(target, pretrained=False, **kwargs)
        else:
            factory = getattr(_import(source, "give --model as package.module:factory"), target, None)
            if not callable(factory):
                raise InputError(f"module {source} has no function {target!r}; give --model as module:factory.")
            network = factory(**kwargs)
    except InputError:
        raise
    except Exception as error:  # whatever a factory of the user's raises is the user's to read
        told = " ".join(str(error).split())
        raise InputError(f"building {name} failed with {type(error).__name__}: {told}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module.")
    return network


def _build(path: Path, name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """`build_model` for a file: errors name the file, and the global random state stays as it was."""
    try:
        with fixed_randomness("cpu", 0):
            return build_model(name, kwargs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__


def _refuse_code(path: Path, name: str, kwargs: Mapping[str, Any]) -> None:
    """A file alone names only the zoo's networks and those of torchvision and timm, with harmless arguments."""
    if ":" not in name:
        return
    if not _LIBRARY_MODEL.fullmatch(name):
        raise InputError(f"{path} wants {name!r} run to build its network; if you trust that, give --model {name!r}.")
    for key in kwargs:
        if _LIBRARY_SOURCE.search(key):
            raise InputError(f"{path} wants {name} built with {key}; if you trust that, give --model {name}.")


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what can't be what it is called; a file's metadata may come from a stranger."""

    def numbers(value: Any, least: float) -> bool:
        return isinstance(value, list) and value and all(number(item, least) for item in value)

    def number(value: Any, least: float) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and value >= least

    wanted = {
        "dataset": lambda value: isinstance(value, str),
        "split": lambda value: isinstance(value, str),
        "classes": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "mean": lambda value: numbers(value, -math.inf) and "std" in metadata,
        "std": lambda value: numbers(value, 1e-12) and "mean" in metadata,
        "weight_decay": lambda value: number(value, 0),
    }
    for key, fits in wanted.items():
        if key in metadata and not fits(metadata[key]):
            raise InputError(f"{path}: the metadata's {key} is {str(metadata[key])[:50]!r}; save the checkpoint again.")


def _listed(value: Any) -> Any:
    """JSON has lists only."""
    return list(value) if isinstance(value, tuple) else value


def _import(module: str, advice: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot import {module} ({error}); {advice}.") from None


def _canonical_name(name: Any) -> str | None:
    """Published files also call `resnet_dnn_50` plainly `resnet_50`."""
    if not isinstance(name, str):
        return None
    if name not in names() and (alias := re.sub(r"_(\d+)$", r"_dnn_\1", name)) in names():
        return alias
    return name


def _unwrap(path: Path, content: Any) -> tuple[Any, str | None]:
    """The state dict inside a `torch.save` file, and the zoo's name stored beside it, if any."""
    name = _canonical_name(content.get("name")) if isinstance(content, Mapping) else None
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(map(_is_entry, content, content.values())):
        raise InputError(f"{path} holds no state dict (a mapping of names to dense tensors).")
    return content, name if name in names() else None


def _is_entry(key: Any, value: Any) -> bool:
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
    return isinstance(key, str) and dense and value.device.type == "cpu"


def _strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove what DataParallel and torch.compile put before every key."""
    state = dict(state)
    while state and (prefix := next((p for p in _WRAPPER_PREFIXES if all(key.startswith(p) for key in state)), None)):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _classes_of(state: Mapping[str, Tensor]) -> int | None:
    biases = [value for key, value in state.items() if re.fullmatch(r"classifier\.\d\.dense3?\.bias", key)]
    return biases[0].numel() if biases else None


def _check_fit(path: Path, name: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a file whose keys, shapes or values are not those of a trained network."""
    # files older than PyTorch 0.4.1 have no batch counters; they play no part outside training
    absent = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in expected]
    if absent or extra:
        told = [f"{len(absent)} missing (first {absent[0]})"] if absent else []
        told += [f"{len(extra)} unknown (first {extra[0]})"] if extra else []
        raise InputError(f"{path} does not fit {name}: keys {' and '.join(told)}; check --model and --model-args.")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"{path} does not fit {name}: {key} is {tuple(value.shape)} in the file and "
                f"{tuple(expected[key].shape)} in the network; check --model and --model-args."
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{path}: {key} holds NaN or infinity; the training probably diverged.")


_VITS_CONV = re.compile(r"(layer\d\.\d+\.)conv(\d)\.(\d)\.(\w+)")
_VITS_PREACTIVATION_BN = re.compile(r"(layer\d\.\d+\.)bn\.(\w+)")


def from_how_do_vits_work(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys that how-do-vits-work gives its ResNets to those of the zoo; others stay as they are.

    There `conv2.0.weight, conv2.1.*` are a convolution and its norm in a ResNet, and in a pre-activation
    ResNet `bn.*` is the first norm, `conv2.0.*, conv2.2.weight` a norm and the convolution after it.
    """
    # VGG has bn.* too, but no conv1
    preactivation = "layer1.0.bn.weight" in state and "layer1.0.conv1.weight" in state

    def rename(key: str) -> str:
        if preactivation and (match := _VITS_PREACTIVATION_BN.fullmatch(key)):
            return f"{match[1]}bn1.{match[2]}"
        if match := _VITS_CONV.fullmatch(key):
            block, number, position, leaf = match.groups()
            norm = position == ("0" if preactivation else "1")
            return f"{block}{'bn' if norm else 'conv'}{number}.{leaf}"
        return key

    return {rename(key): value for key, value in state.items()}


def to_how_do_vits_work(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_how_do_vits_work`, for a ResNet's state dict with the zoo's keys."""
    preactivation = "layer0.1.weight" not in state and "layer1.0.bn1.weight" in state

    def rename(key: str) -> str:
        match = re.fullmatch(r"(layer[1-4]\.\d+\.)(conv|bn)(\d)\.(\w+)", key)
        if match is None:
            return key
        block, kind, number, leaf = match.groups()
        if preactivation and number == "1":
            return f"{block}bn.{leaf}" if kind == "bn" else key
        position = {"conv": 2, "bn": 0} if preactivation else {"conv": 0, "bn": 1}
        return f"{block}conv{number}.{position[kind]}.{leaf}"

    return {rename(key): value for key, value in state.items()}
