"""Losses of batches that several processes share."""

from __future__ import annotations

from torch import Tensor, distributed


def share_of_ratio(total: Tensor, count: Tensor | int, eps: float = 0.0) -> Tensor:
    """This process's share of total / (count + eps), with both summed over all processes of torch.distributed.

    The mean of the shares over the processes is the ratio of the whole batch, however unevenly its rays are spread, and
    the mean is what DistributedDataParallel makes of their gradients. A single process has the ratio itself.

    Args:
        total: of this process's rays, a scalar.
        count: of this process's rays; no gradient flows through it.
        eps: added once to the count of the whole batch.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return total / (count + eps)
    whole = (total.new_zeros(()) + count).detach()
    distributed.all_reduce(whole)
    return distributed.get_world_size() * total / (whole + eps)
