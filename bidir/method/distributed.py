"""What a training step shares between processes, so that their number changes no loss and no statistic."""

from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

PATIENCE = timedelta(days=1)  # the main process looks at every file while the others wait for it


def count() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def total(values: Shaped[Tensor, "*N"]) -> Shaped[Tensor, "*N"]:
    """Sum over the processes, without gradient; ``values`` themselves in a single one."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(value: object) -> list:
    """``value`` of every process, by rank."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


class SynchronisedNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes; PyTorch's own is for GPUs alone."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The maps, normalised per channel."""
        if not self.training or count() == 1:
            return super().forward(x)
        pixels = total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        x32 = x.float()
        mean = all_reduce(x32.sum((0, 2, 3))) / pixels
        centred = x32 - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / pixels
        with torch.no_grad():
            unbiased = variance * pixels / (pixels - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
