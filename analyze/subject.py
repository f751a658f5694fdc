"""The thing under study: a model, its data and its loss, as one deterministic function of the weights."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from data_cache import ImageData, InputError, augment, normalize
from models.checkpoint import load_checkpoint
from models.devices import pick_device
from models.randomness import derived_seed, fixed_randomness
from models.recorded import recorded_data

Batch = tuple[Tensor, Tensor]
KEEP_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Batches:
    """The `(x, y)` batches that every analysis sees: the same ones, in the same order, at every pass."""

    source: Iterable[Batch]
    """Gives fresh iterators over the same batches."""
    images: int
    batch_size: int
    """Images in the first batch, the largest of `ImageData`."""
    spec: str
    """What they are, for reports: `fashion_mnist:test` or `user data`."""
    sha256: str
    """Of what identifies them."""
    device: torch.device
    dtype: torch.dtype

    def __iter__(self) -> Iterator[Batch]:
        for x, y in self.source:
            yield self._place(x), self._place(y)

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype)


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
        self.data = _as_batches(data, batch_size, limit, self.device, self.dtype)
        self._whole = data.to(self.device) if isinstance(data, ImageData) else None
        self._loaded: dict[str, Any] = {}
        self._loaded_state = ""

    @classmethod
    def load(
        cls,
        ckpt: str | Path,
        *,
        model: str | None = None,
        model_args: Mapping[str, Any] | None = None,
        data: str | ImageData | Iterable[Batch] | None = None,
        limit: int | None = None,
        batch_size: int = 128,
        weight_decay: float | None = None,
        mode: Literal["eval", "train"] = "eval",
        device: str = "auto",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Subject:
        """A subject from a checkpoint file, or the name of a checkpoint that ships.

        Args:
            ckpt: As `models.load_checkpoint` takes it.
            data: `NAME[:SPLIT]` (default: the training split that the checkpoint records), `ImageData`, or any
                iterable of batches. Images by name are normalised as the checkpoint records.
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
                no output for.
        """
        checkpoint = load_checkpoint(ckpt, model=model, model_args=model_args)
        recorded = checkpoint.metadata
        if data is None or isinstance(data, str):
            data = recorded_data(checkpoint, data, recorded.get("split", "train"))
        subject = cls(
            checkpoint.model,
            data,
            weight_decay=recorded.get("weight_decay", 0.0) if weight_decay is None else weight_decay,
            batch_size=batch_size,
            mode=mode,
            seed=seed,
            device=device,
            dtype=dtype,
            limit=limit,
        )
        subject._loaded = {
            "checkpoint": str(checkpoint.path),
            "checkpoint_sha256": checkpoint.sha256,
            "model": checkpoint.name,
            "model_args": checkpoint.kwargs,
        }
        subject._loaded_state = _state_sha256(subject.model)
        return subject

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The floating-point parameters by name, tied ones once, that the loss is studied as a function of.

        Those with `requires_grad` are studied; where none has it (a frozen model), all are.
        """
        named = {name: p for name, p in self.model.named_parameters() if p.is_floating_point()}
        return {name: p for name, p in named.items() if p.requires_grad} or named

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
        return {
            **identity,
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
        derivatives), cuDNN is deterministic, and dropout draws from (seed, *counters). In train mode BatchNorm
        neither reads nor writes running statistics, which forward-mode differentiation could not.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        with ExitStack() as stack:
            stack.callback(_restore_modes, modes)
            tracking = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
            stack.callback(_track_running_stats, tracking, True)
            stack.enter_context(_exact_arithmetic())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(fixed_randomness(self.device, self.seed, *counters))
            self.model.train(self.mode == "train")
            _track_running_stats([m for m in tracking if m.training], False)
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
            try:
                value = self.loss(functional_call(self.model, {**buffers, **parameters}, (x,)), y)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise InputError(
                    f"the model or its loss failed on a batch of shape {tuple(x.shape)}: {str(error).splitlines()[0]}"
                ) from error
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise InputError("the loss must give one number, the mean over the batch.")
            return value.reshape(())

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


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
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


def _as_batches(
    data: ImageData | Iterable[Batch],
    batch_size: int,
    limit: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Batches:
    if isinstance(data, ImageData):
        data = data.limit(limit) if limit else data
        data = data.to(device)
        return Batches(
            data.batches(batch_size), len(data), min(batch_size, len(data)), data.spec, data.sha256(), device, dtype
        )
    kept = _read_once(data, limit)
    digest = hashlib.sha256()
    for batch in kept:
        for tensor in batch:
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    images = sum(len(y) for _, y in kept)
    return Batches(kept, images, len(kept[0][1]), "user data", digest.hexdigest(), device, dtype)


def _read_once(data: Iterable[Batch], limit: int | None) -> list[Batch]:
    """All batches of an iterable, kept, so that a loader that shuffles or augments is drawn from once only."""
    kept: list[Batch] = []
    images = held = 0
    for batch in data:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise InputError("the data must give (x, y) pairs of tensors.")
        x, y = batch
        if x.dim() == 0 or y.dim() == 0 or len(x) != len(y):
            raise InputError(f"a batch pairs x {tuple(x.shape)} with y {tuple(y.shape)}; their first sizes must agree.")
        room = len(y) if limit is None else min(len(y), limit - images)
        kept.append((x[:room].detach().clone(), y[:room].detach().clone()))  # the loader may reuse its buffers
        images += room
        held += sum(tensor.numel() * tensor.element_size() for tensor in kept[-1])
        if held > KEEP_BYTES:
            raise InputError(
                f"the data is over {KEEP_BYTES >> 30} GiB, too much to keep in memory so that each pass sees the "
                "same; give limit=, or images by name or folder."
            )
        if images == limit:
            break
    if not images:
        raise InputError("the data holds no images.")
    return kept


def _state_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
