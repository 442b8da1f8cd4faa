"""The transducer loss, which PyTorch lacks, diagonal by diagonal."""

from __future__ import annotations

import torch

IMPOSSIBLE = -1e30  # a log probability; minus infinity would make gradients of NaN


def transducer_loss(
    scores: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    r"""Compute the negative log probability of each label sequence.

    With the probability of blank :math:`\varnothing(t, u)` and of the next label :math:`y(t, u)`
    after t frames and u labels,

    .. math:: \alpha(t, u) = \alpha(t-1, u) \varnothing(t-1, u) + \alpha(t, u-1) y(t, u-1)

    and the sequence has probability :math:`\alpha(T-1, U) \varnothing(T-1, U)`. All nodes with the
    same t + u depend only on those with t + u - 1: one step of the loop computes such a diagonal
    for the whole batch.

    Parameters
    ----------
    scores : torch.Tensor (B, T, U+1, V) float
        The joint network's output before softmax; class 0 is blank.
    labels : torch.Tensor (B, U) int64
        Classes 1 to V-1; what lies beyond a row's count is ignored.
    frames, counts : torch.Tensor (B,) int64
        How many of the T frames (at least 1) and of the U labels each row has.

    Returns
    -------
    torch.Tensor (B,)

    References
    ----------
    A. Graves, "Sequence transduction with recurrent neural networks", 2012, section 2.4.
    """
    log_probabilities = scores.log_softmax(-1)
    rows, longest, states, _ = scores.shape
    following = labels[:, None, :, None].expand(-1, longest, -1, 1)
    emit = log_probabilities[:, :, :-1].gather(3, following)[..., 0]
    emit = torch.nn.functional.pad(emit, (0, 1), value=IMPOSSIBLE)
    blank, emit = _diagonals(log_probabilities[..., 0]), _diagonals(emit)
    alpha = scores.new_full((rows, states), IMPOSSIBLE)
    alpha[:, 0] = 0
    alphas = [alpha]
    for stays, emits in zip(blank.unbind(1)[:-1], emit.unbind(1)[:-1], strict=True):
        emitted = torch.nn.functional.pad((alpha + emits)[:, :-1], (1, 0), value=IMPOSSIBLE)
        alpha = torch.logaddexp(alpha + stays, emitted)
        alphas.append(alpha)
    row, last = torch.arange(rows), frames - 1 + counts
    return -(torch.stack(alphas, 1) + blank)[row, last, counts]


def _diagonals(grid: torch.Tensor) -> torch.Tensor:
    """Turn (B, T, U) into (B, T+U-1, U): `[b, d, u] = grid[b, d-u, u]`, impossible elsewhere."""
    _, frames, states = grid.shape
    frame = torch.arange(frames + states - 1)[:, None] - torch.arange(states)
    sheared = grid.gather(1, frame.clamp(0, frames - 1).expand(len(grid), -1, -1))
    return sheared.masked_fill((frame < 0) | (frame >= frames), IMPOSSIBLE)
