"""Running mean and variance, and the observation normaliser that lives inside the networks."""

import torch
from torch import Tensor, nn


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch.

    Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance": two-pass within
    a batch, pairwise between batches, so that a large offset costs no digits.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=dtype))
        self.register_buffer("var", torch.ones(shape, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def merge(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Take in a batch of `count` values with this mean and (biased) variance, in place."""
        share = count / (self.count + count)
        delta = mean.double() - self.mean
        spread = (var.double() - self.var) * share + delta.square() * share * (1 - share)
        self.var.add_(spread)
        self.mean.add_(delta * share)
        self.count.add_(count)


class ObservationNormaliser(RunningMoments):
    """Flattens raw observations `[*batch, *shape]` to standardised `[*batch, size]`, within ±10.

    A module with buffers, so that what is saved or exported takes raw observations. It learns
    nothing in `forward`: its owner merges statistics between iterations, and the policies that an
    iteration compares see the same ones.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__((max(1, torch.Size(shape).numel()),))
        self.dims = len(shape)

    def forward(self, observation: Tensor) -> Tensor:
        """Standardise raw observations."""
        observation = observation.to(self.mean.dtype)
        if self.dims == 0:
            observation = observation.unsqueeze(-1)
        elif self.dims > 1:
            observation = observation.flatten(-self.dims)
        standard = (observation - self.mean) * torch.rsqrt(self.var + 1e-8)
        return standard.clamp(-10.0, 10.0)
