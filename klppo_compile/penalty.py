"""How the multiplier of the KL penalty follows the KL it gets.

Pure functions of one minibatch: no host branch, no state.
"""

from torch import Tensor

from klppo_compile.vocabulary import clip, finite, where

BAND = 1.5  # beta rests while dtarg / BAND <= KL <= BAND dtarg


def adaptive(
    beta: Tensor,
    kl: Tensor,
    n: "Tensor | int",
    dtarg: Tensor,
    increment: Tensor,
    decrement: Tensor,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """The next beta: raised where the mean KL leaves the band above, lowered where below.

    It is held to [low, high], but exactly 0 stays 0: the penalty is switched off. It rests where
    the KL is not finite, or where no row counted (n = 0). Schulman et al. 2017, section 4,
    https://arxiv.org/abs/1707.06347; the band is torchrl's.
    """
    factor = where(kl > BAND * dtarg, increment, where(kl < dtarg / BAND, decrement, 1.0))
    moved = clip(beta * factor, low, high)
    told = finite(kl) & (n > 0.0) & (beta > 0.0)
    return where(told, moved, beta)
