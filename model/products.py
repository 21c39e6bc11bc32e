"""Matrix products of a head's operands into float32 buffers, whatever the operands' precision."""

import torch
from torch import Tensor


def project(hidden_NH: Tensor, weight_VH: Tensor, *, out_NV: Tensor) -> Tensor:
    """`hidden @ weight.T` in the float32 buffer `out_NV`.

    On CUDA half-precision operands give float32 logits, which bfloat16 would round by up to 2^-8 of their size; a CPU
    has no such product and rounds.
    """
    if hidden_NH.dtype == torch.float32:
        return torch.mm(hidden_NH, weight_VH.t(), out=out_NV)
    if hidden_NH.device.type == "cuda":
        return torch.mm(hidden_NH, weight_VH.t(), out_dtype=torch.float32, out=out_NV)
    return out_NV.copy_(torch.mm(hidden_NH, weight_VH.t()))


def accumulate(total_VH: Tensor, left_VN: Tensor, right_NH: Tensor) -> None:
    """`total += left @ right` for a float32 total; on CUDA without rounding half-precision operands' product first."""
    if left_VN.dtype == torch.float32:
        total_VH.addmm_(left_VN, right_NH)
    elif left_VN.device.type == "cuda":
        torch.addmm(total_VH, left_VN, right_NH, out_dtype=torch.float32, out=total_VH)
    else:
        total_VH.add_(left_VN @ right_NH)
