"""Which parameters random directions move, and how long they are made, filter by filter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analyze.landscape.spec import Norm
from analyze.subject import Subject
from data_cache import InputError
from models.layers import Blur

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# torchvision's encoder.pos_embedding, timm's pos_embed and rel_pos_h, CLIP's positional_embedding, Swin's
# relative_position_bias_table; reg_token, dist_token, mask_token
_POSITION_OR_TOKEN = re.compile(r"(^|[._])(pos(ition(al)?)?_?emb|rel(ative)?_pos|attention_bias)|[._]tokens?$")


@dataclass(frozen=True)
class Filters:
    """A parameter's filters: seen in `shape`, entries that agree in their indices along `kept` form one."""

    shape: tuple[int, ...]
    kept: tuple[int, ...]

    def norms(self, tensor: Tensor) -> Tensor:
        """Norm of each filter, float64, with length 1 along the axes of `shape` that are not kept."""
        summed = [axis for axis in range(len(self.shape)) if axis not in self.kept]
        return torch.linalg.vector_norm(tensor.reshape(self.shape), dim=summed, keepdim=True, dtype=torch.float64)


def moved(subject: Subject) -> dict[str, Filters]:
    """The studied parameters that random directions move, with their filters.

    A filter is what makes one output: of convolutions and dense layers an index of axis 0 (an output channel), of
    transposed convolutions (C_in, C_out / groups, ...) an index of axis 1 within one group of inputs, of embeddings and
    attention's projections a row. So it is of any other tensor.

    Not moved: vectors, such as biases (outside convolutions and dense layers, axes of length 1 don't count: class
    tokens (1, 1, C) and scales (C, 1, 1) are vectors); parameters of norms; embeddings of position; tokens; kernels of
    `Blur`. Nor is what `Subject.parameters` leaves out: buffers, and parameters that need no gradient where others do.
    """
    found = {}
    for name, parameter in subject.parameters.items():
        owner, _, leaf = name.rpartition(".")
        if filters := _filters(name, leaf, subject.model.get_submodule(owner), parameter):
            found[name] = filters
    return found


def _filters(name: str, leaf: str, module: nn.Module, parameter: Tensor) -> Filters | None:
    shape = tuple(parameter.shape)
    rows = Filters((*shape[:1], -1), (0,))
    if len(shape) < 2 or parameter.numel() == 0 or isinstance(module, Blur):
        return None
    if isinstance(module, _ConvTransposeNd) and leaf == "weight":
        return Filters((module.groups, shape[0] // module.groups, shape[1], -1), (0, 2))
    if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear)) and leaf == "weight":
        return rows
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return None
    if sum(length > 1 for length in shape) < 2 or _POSITION_OR_TOKEN.search(name.lower()):
        return None
    return rows


def normalized(direction: Mapping[str, Tensor], subject: Subject, norm: Norm) -> dict[str, Tensor]:
    r"""A direction with lengths taken from the subject's weights w.

    For each group g of entries, :math:`d_g \leftarrow d_g \|w_g\| / \|d_g\|`, and 0 where either norm is 0; groups are:

    - `filter`: the filters of `moved` (Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018);
    - `layer`: the whole tensor;
    - `filter_transposed`: what shares all indices but that of axis 0, whatever the layer. Some published figures that
      cite Li et al. are drawn so.

    Each way :math:`\|d\| = \|w\|` for the whole tensor: they differ in how it is spread over the entries. Further,
    `weight`: :math:`d_i \leftarrow d_i w_i`; `none`: as it is.

    Args:
        direction: Tensors on the CPU by name, as `moved` names them; they are not changed.
        subject: Has the weights.
        norm: As above.

    Returns:
        New tensors on the CPU, in the dtype of `direction`.
    """
    if norm not in ("filter", "layer", "weight", "none", "filter_transposed"):
        raise InputError(f"norm is filter, layer, weight, none or filter_transposed, not {norm!r}.")
    weights, groups, result = subject.parameters, moved(subject), {}
    for name, d in direction.items():
        w = weights[name].detach().cpu()
        if norm == "none":
            result[name] = d.clone()
        elif norm == "weight":
            result[name] = d * w.to(d.dtype)
        else:
            transposed = Filters((len(w), -1), (1,))
            group = {"filter": groups[name], "layer": Filters((-1,), ()), "filter_transposed": transposed}[norm]
            wanted, length = group.norms(w), group.norms(d)
            scale = torch.where(length > 0, wanted / length, 0.0).to(d.dtype)
            result[name] = (d.reshape(group.shape) * scale).view_as(d)
    return result
