"""Notice ranks whose parameters are no longer the same."""

import torch
from mmengine.dist import all_gather, get_world_size
from torch import nn

from cae_seg.errors import UserError


def check_ranks_agree(model: nn.Module, iteration: int) -> None:
    """Compare one sum per parameter over the ranks.

    Buffers may differ: batch norm that is not synchronised keeps statistics of its own rank.

    Raises:
        UserError: they differ, on every rank.
    """
    if get_world_size() == 1:
        return
    named = list(model.named_parameters())
    sums = torch.stack([p.detach().double().sum() for _, p in named])
    # Bits, not values: NaN is then equal to NaN.
    first, *others = (part.view(torch.int64) for part in all_gather(sums))
    for rank, part in enumerate(others, 1):
        if (differing := (part != first).nonzero().flatten()).numel():
            name = named[int(differing[0])][0]
            raise UserError(
                f"iteration {iteration}: {name} differs between rank 0 and rank {rank}; a hook or "
                "module changes weights on one rank alone (custom_hooks, a random draw outside of "
                "the seeded generators): remove it, or use one GPU"
            )
