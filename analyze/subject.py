"""The thing under study: a model, its data and its loss, as one deterministic function of the weights."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from analyze.batches import Batch, Batches, as_batches
from data_cache import ImageData, InputError, augment, normalize
from models.checkpoint import Checkpoint, load_checkpoint
from models.devices import pick_device
from models.ensemble import Ensemble, check_members, ensemble_name, first_tensor, mean_log_probability
from models.layers import smoothing_path
from models.randomness import derived_seed, fixed_randomness
from models.recorded import recorded_data

Normalization = tuple[Sequence[float], Sequence[float]]
FEW = 8
"""Images that are enough to see whether two passes differ."""


class Subject:
    r"""A model, the data it is studied on and its loss, made a deterministic function of the weights.

    .. math:: L(w) = \frac{1}{N} \sum_b N_b\, \ell_b(w) + \frac{\lambda}{2} \|w\|^2

    with :math:`\ell_b` the mean loss of batch b (N_b images) and :math:`\lambda` the weight decay over the
    studied parameters. Dropout masks of batch b in pass p are a function of (seed, p, b), so that L has a
    symmetric Hessian also where dropout is on. The model itself is never written to: weights and buffers go
    into it as copies (`torch.func.functional_call`), BatchNorm's running statistics included, and modes, flags
    and generators are restored after each use, also after an exception.

    It will not average over data that changes from pass to pass: iterables are read once and kept, up to 2 GiB.

    Args:
        model: Any `torch.nn.Module`. It is studied on the device and in the dtype it is in, unless `device` or
            `dtype` say otherwise; then a copy is.
        data: `ImageData` from `data_cache.load`, or any iterable of (x, y) batches, such as a DataLoader.
        loss: `loss(model(x), y)`, the mean over the batch, a scalar.
        weight_decay: lambda.
        batch_size: For `ImageData`; iterables bring their own batches.
        mode: `eval`, or `train` with frozen running statistics.
        seed: Seed of the dropout masks.
        device: `auto`, `cpu`, `cuda[:i]`, or None for the model's own.
        dtype: Floating dtype of weights and images, or None for the model's own.
        limit: Use at most this many images.
        normalization: (mean, std), each a number for each channel, that an iterable's images were normalised with;
            `ImageData` knows its own.

    Raises:
        InputError: Data that is empty, too large to keep, or does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData | Iterable[Batch],
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
        *,
        weight_decay: float = 0.0,
        batch_size: int = 128,
        mode: Literal["eval", "train"] = "eval",
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        limit: int | None = None,
        normalization: Normalization | None = None,
    ):
        if mode not in ("eval", "train"):
            raise InputError(f"mode must be eval or train, not {mode!r}.")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise InputError(f"weight decay must be a number from 0 up, not {weight_decay}.")
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}.")
        if not 0 <= seed < 2**63:
            raise InputError(f"the seed must be a whole number from 0 to 2^63 - 1, not {seed}.")
        if limit is not None and limit < 1:
            raise InputError(f"limit must be at least 1 image, not {limit}.")
        own = next((p for p in model.parameters() if p.is_floating_point()), None)
        if own is None:
            raise InputError(f"the model ({type(model).__name__}) has no parameters to study.")
        self.device = own.device if device is None else pick_device(device)
        self.dtype = dtype or own.dtype
        if (own.device, own.dtype) != (self.device, self.dtype):
            model = copy.deepcopy(model).to(self.device, self.dtype)
        self.model = model
        self.loss = loss
        self.weight_decay = float(weight_decay)
        self.mode = mode
        self.seed = int(seed)
        self.data = as_batches(data, batch_size, limit, self.device, self.dtype)
        self._whole = data.to(self.device) if isinstance(data, ImageData) else None
        self._normalization = _checked_normalization(normalization, data)
        self._batch_size = batch_size
        self._recorded: Checkpoint | None = None
        self._loaded: dict[str, Any] = {}
        self._loaded_state = ""

    @classmethod
    def load(
        cls,
        ckpt: str | Path | Sequence[str | Path],
        *,
        model: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        data: str | ImageData | Iterable[Batch] | None = None,
        split: str | None = None,
        limit: int | None = None,
        batch_size: int = 128,
        weight_decay: float | None = None,
        mode: Literal["eval", "train"] = "eval",
        device: str = "auto",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Subject:
        """A subject from a checkpoint file, or the name of a checkpoint that ships, or from several: their ensemble.

        Args:
            ckpt: As `models.load_checkpoint` takes it; several of them are the members of a deep ensemble.
            data: `NAME[:SPLIT]` (default: the data set that the checkpoint records), `ImageData`, or any
                iterable of batches. Images by name are normalised as the checkpoint records.
            split: Which split of the recorded data set, where `data` is None; default: what was trained on.
            weight_decay: Default: what the checkpoint records, 0 where it records none.
            model: As in `models.load_checkpoint`.
            model_args: As in `models.load_checkpoint`.
            limit: As in `Subject`.
            batch_size: As in `Subject`.
            mode: As in `Subject`.
            device: As in `Subject`.
            dtype: Floating dtype of weights and images; float32 files stay so unless told.
            seed: As in `Subject`.

        Raises:
            InputError: As `models.load_checkpoint`; also data that is unknown, or has labels that the model has
                no output for, and members of an ensemble that don't go with each other.
        """
        names = [ckpt] if isinstance(ckpt, (str, Path)) else list(ckpt)
        if not names:
            raise InputError("an ensemble needs at least one checkpoint.")
        checkpoints = [load_checkpoint(name, model=model, model_args=model_args) for name in names]
        first = checkpoints[0]
        images = {"mean": "", "std": ""} if data is None or isinstance(data, str) else {}
        images |= {"dataset": "; give --data"} if data is None else {}
        decay = {"weight_decay": "; give --weight-decay"} if weight_decay is None else {}
        check_members(checkpoints, {"classes": "", **images, **decay})
        if data is None or isinstance(data, str):
            data = recorded_data(first, data, split or first.metadata.get("split", "train"))
        subject = cls(
            first.model if len(checkpoints) == 1 else Ensemble([checkpoint.model for checkpoint in checkpoints]),
            data,
            weight_decay=first.metadata.get("weight_decay", 0.0) if weight_decay is None else weight_decay,
            batch_size=batch_size,
            mode=mode,
            seed=seed,
            device=device,
            dtype=dtype,
            limit=limit,
        )
        subject._recorded = replace(first, model=subject.model)
        subject._loaded = _identity(checkpoints)
        subject._loaded_state = _state_sha256(subject.model)
        return subject

    def on(self, data: str | None = None, *, split: str | None = None, limit: int | None = None) -> Subject:
        """The same model and loss on other images; arguments as in `load`, which must have made this subject."""
        if self._recorded is None:
            raise ValueError("only a subject that was loaded from a checkpoint knows of other images")
        recorded = self._recorded
        images = recorded_data(recorded, data, split or recorded.metadata.get("split", "train"))
        other = copy.copy(self)
        other.data = as_batches(images, self._batch_size, limit, self.device, self.dtype)
        other._whole, other._normalization = images.to(self.device), (images.mean, images.std)
        for known in ("normalization", "stochastic"):  # of the images so far
            other.__dict__.pop(known, None)
        return other

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The floating-point parameters by name, tied ones once, that the loss is studied as a function of.

        Those with `requires_grad` are studied; where none has it (a frozen model), all are.
        """
        named = {name: p for name, p in self.model.named_parameters() if p.is_floating_point()}
        return {name: p for name, p in named.items() if p.requires_grad} or named

    @property
    def members(self) -> list[nn.Module]:
        """The networks whose outputs are realisations of one prediction: the ensemble's, or the model alone."""
        return list(self.model.models) if isinstance(self.model, Ensemble) else [self.model]

    @cached_property
    def stochastic(self) -> bool:
        """Whether the outputs of two Monte Carlo passes of the first few images differ in any bit.

        Outputs that are no number don't tell, and count as if they differed.
        """
        x, _ = next(iter(self.data))
        first, second = (self.outputs(x[:FEW], 0, number) for number in (0, 1))
        return not torch.equal(first, second)

    def passes(self, asked: int) -> int:
        """How many Monte Carlo passes make sense: as many as asked for, but one if all of them are the same."""
        return asked if asked > 1 and self.stochastic else 1

    @cached_property
    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C, 1, 1) of each channel that the images were normalised with.

        Raises:
            InputError: The data are no images (B, C, H, W), or have other channels than `normalization` has numbers.
        """
        x, _ = next(iter(self.data))
        if x.dim() != 4:
            raise InputError(f"the data are no images (B, C, H, W): a batch is {tuple(x.shape)}.")
        channels = x.shape[1]
        mean, std = self._normalization or ([0.0] * channels, [1.0] * channels)
        if not len(mean) == len(std) == channels:
            raise InputError(f"normalization has {len(mean)} means and {len(std)} stds for {channels} channels.")
        placed = [torch.tensor(each, dtype=self.dtype, device=self.device)[:, None, None] for each in (mean, std)]
        return placed[0], placed[1]

    def pixels(self, x: Tensor) -> Tensor:
        """Images in [0, 1] of normalised ones, `x * std + mean`."""
        mean, std = self.normalization
        return x * std + mean

    def normalized(self, pixels: Tensor) -> Tensor:
        """What the model takes of images in [0, 1], `(pixels - mean) / std`."""
        mean, std = self.normalization
        return (pixels - mean) / std

    def describe(self) -> dict[str, Any]:
        """What two results must share to be the same measurement; goes into run files as JSON.

        The weights are hashed at each call: a subject whose weights were changed after loading says so.
        """
        state = _state_sha256(self.model)
        identity = self._loaded
        if state != self._loaded_state:
            identity = {
                "checkpoint": "(from Python)",
                "checkpoint_sha256": state,
                "model": getattr(self.model, "name", type(self.model).__name__),
                "model_args": {},
            }
        declared = (
            {}
            if self._whole is not None or self._normalization is None
            else {"normalization": [list(each) for each in self._normalization]}
        )
        path = smoothing_path(self.model, self.device)
        return {
            **identity,
            **declared,
            **({"smoothing": path} if path else {}),
            "data": self.data.spec,
            "images": self.data.images,
            "data_sha256": self.data.sha256,
            "batch_size": self.data.batch_size,
            "weight_decay": self.weight_decay,
            "mode": self.mode,
            "seed": self.seed,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @contextmanager
    def frozen(self, *counters: int) -> Iterator[None]:
        """Mode, randomness and numerical flags as an analysis needs them; all as before afterwards.

        Gradients are on, autocast and TF32 off, attention uses the MATH kernel (the only one with second
        derivatives) and all its modules run one by one, cuDNN is deterministic, and dropout draws from
        (seed, *counters). In train mode BatchNorm neither reads nor writes running statistics, which forward-mode
        differentiation could not.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        training = self.mode == "train"
        with ExitStack() as stack:
            stack.enter_context(_exact_arithmetic())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(fixed_randomness(self.device, self.seed, *counters))
            stack.callback(_restore_modes, modes)
            if any(mode != training for _, mode in modes):  # to set a module's attribute takes microseconds
                self.model.train(training)
            tracking = [m for m, _ in modes if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
            stack.callback(_track_running_stats, tracking, True)
            _track_running_stats(tracking, False)
            yield

    def batch_loss(self, parameters: Mapping[str, Tensor], batch: Batch, index: int, number: int = 0) -> Tensor:
        """The data loss of one batch, a scalar, as a function of `parameters` (names as in `parameters`).

        Args:
            parameters: Weights to use in place of the model's own.
            batch: (x, y).
            index: Which batch it is.
            number: The Monte Carlo pass; with `index` it decides the dropout masks.
        """
        x, y = batch
        # copies: BatchNorm in train mode writes to its buffers
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self.frozen(number, index):
            with failures("the model or its loss", x):
                value = self.loss(functional_call(self.model, {**buffers, **parameters}, (x,)), y)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise InputError("the loss must give one number, the mean over the batch.")
            return value.reshape(())

    def outputs(
        self, x: Tensor, index: int, number: int = 0, model: nn.Module | None = None, *, gradient: bool = False
    ) -> Tensor:
        """What the model gives for images, without autograd unless for a gradient with respect to them.

        Args:
            x: Normalised images (B, ...) of batch `index`, or as many others as stand for them.
            index: Which batch it is.
            number: The Monte Carlo pass; with `index` it decides the dropout masks.
            model: A member of the ensemble; default: the whole subject. On its own it draws the masks that the
                first member draws in the whole.
            gradient: Record what autograd needs for the gradient with respect to `x`, and to nothing else.

        Returns:
            The output; of several, the one called `logits`, or else the first.

        Raises:
            InputError: The model fails on these images, or gives no tensor.
        """
        model = self.model if model is None else model
        with self.frozen(number, index), torch.set_grad_enabled(gradient), failures("the model", x):
            if self.mode == "train" or gradient:  # modules other than BatchNorm may keep statistics too
                weights = {name: p.detach() for name, p in model.named_parameters()}
                output = functional_call(model, {**weights, **{n: b.clone() for n, b in model.named_buffers()}}, (x,))
            else:
                output = model(x)
        return first_tensor(output)

    def log_probability(self, x: Tensor, index: int, passes: int) -> Tensor:
        r"""Logarithm of the mean probability over Monte Carlo passes 0 to S - 1, (B, classes) in float64.

        .. math:: \log p = \mathrm{logsumexp}_s \log\mathrm{softmax}(z_s) - \log S

        Args:
            x: Normalised images (B, ...), as `outputs` takes them.
            index: Which batch it is.
            passes: S.

        Raises:
            InputError: The outputs are not (B, classes).
        """
        logarithms = []
        for number in range(passes):
            output = self.outputs(x, index, number)
            if output.dim() != 2 or len(output) != len(x):
                raise InputError(
                    f"the model gives {tuple(output.shape)} for a batch of shape {tuple(x.shape)}; "
                    "probabilities need one number for each class, (B, classes)."
                )
            logarithms.append(torch.log_softmax(output.double(), dim=1))
        return mean_log_probability(logarithms)

    def numbered_batches(self) -> Iterator[tuple[int, int, Batch]]:
        """(index, number of its first image, batch), the same at each pass."""
        first = 0
        for index, batch in enumerate(self.data):
            yield index, first, batch
            first += len(batch[1])

    def weighted_batches(self) -> Iterator[tuple[int, float, Batch]]:
        """(index, share of all images, batch): the terms whose weighted sum is the data loss."""
        for index, batch in enumerate(self.data):
            yield index, len(batch[1]) / self.data.images, batch

    @property
    def minibatches(self) -> int | None:
        """How many mini-batches there are: those that an iterable brought, or None for no end of them."""
        return None if self._whole is not None else sum(1 for _ in self.data.source)

    def minibatch_spec(self, augmented: bool) -> str:
        """What `minibatch` draws from, and its hash."""
        if self._whole is None:
            return f"{self.data.spec} (as it was batched, sha256 {self.data.sha256[:16]})"
        how = "cropped and flipped" if augmented else "not augmented"
        return f"{self._whole.spec} (in random order, {how}, sha256 {self._whole.sha256()[:16]})"

    def minibatch(self, number: int, size: int, *, augmented: bool = True) -> Subject:
        """The same model and loss on one mini-batch, as training meets it; a pure function of (seed, number).

        Epochs go through the whole split, whatever `limit` says, in a random order, without the last short batch;
        each is augmented anew. An iterable's own batches are taken as they are.

        Args:
            number: Which one, from 0.
            size: Images in it; all there are if fewer.
            augmented: Crop and flip the images.
        """
        whole = self._whole
        if whole is None:
            batch, spec = list(self.data.source)[number], self.data.spec
        else:
            size = min(size, len(whole))
            epoch, place = divmod(number, len(whole) // size)
            generator = torch.Generator().manual_seed(derived_seed(self.seed, 1, epoch))
            rows = torch.randperm(len(whole), generator=generator)[place * size : (place + 1) * size].numpy()
            images, labels = whole.read(rows)
            if augmented:
                images = augment(images, self.seed, epoch, whole.indices[rows])
            batch, spec = (normalize(images, whole.mean, whole.std, self.dtype), labels), whole.spec
        part = copy.copy(self)
        part.data = Batches([batch], len(batch[1]), len(batch[1]), spec, "", self.device, self.dtype)
        return part


@contextmanager
def failures(what: str, x: Tensor) -> Iterator[None]:
    """Turn whatever a model raises that doesn't fit its input into one sentence."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{what} failed on a batch of shape {tuple(x.shape)}: {reason}") from error


def _checked_normalization(
    normalization: Normalization | None, data: ImageData | Iterable[Batch]
) -> Normalization | None:
    if isinstance(data, ImageData):
        if normalization is not None:
            raise InputError("images by name know their normalisation; change it by their with_normalization.")
        return data.mean, data.std
    if normalization is None:
        return None
    try:
        mean, std = ([float(value) for value in each] for each in normalization)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"normalization takes (mean, std), each with a number for each channel, not {normalization!r:.100}."
        ) from error
    if not all(map(math.isfinite, [*mean, *std])) or min(std, default=1.0) <= 0:
        raise InputError(f"normalization takes finite means and stds above 0, not {mean} and {std}.")
    return mean, std


def _identity(checkpoints: Sequence[Checkpoint]) -> dict[str, Any]:
    """What a subject's description says of the checkpoints it was loaded from."""
    first = checkpoints[0]
    if len(checkpoints) == 1:
        return {
            "checkpoint": str(first.path),
            "checkpoint_sha256": first.sha256,
            "model": first.name,
            "model_args": first.kwargs,
        }
    stems, hashes = [c.path.stem for c in checkpoints], [c.sha256 for c in checkpoints]
    return {
        "checkpoint": ensemble_name(stems),
        "checkpoint_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "model": f"ensemble of {len(checkpoints)}: {', '.join(dict.fromkeys(c.name for c in checkpoints))}",
        "model_args": [c.kwargs for c in checkpoints],
        "members": hashes,
    }


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training


def _track_running_stats(modules: list[_BatchNorm], track: bool) -> None:
    for module in modules:
        module.track_running_stats = track


@contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """Full float32 everywhere (no TF32, no bfloat16 inside) and deterministic cuDNN, restored afterwards."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    if hasattr(torch.backends, "fp32_precision"):  # the old names raise once the new ones were used
        places = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
        flags = [(place, "fp32_precision", "ieee") for place in places]
    else:
        flags = [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]
    flags += [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    before = [getattr(owner, name) for owner, name, _ in flags]
    try:
        for owner, name, value in flags:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(flags, before, strict=True):
            setattr(owner, name, value)


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
