"""The training scripts' transducer loss against the sum over every alignment."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "weights" / "training"))
from transducer_loss import transducer_loss


def enumerated(scores, labels):
    """Sum over all ways to place U labels among T - 1 blanks; the last blank follows."""
    log_probabilities = scores.log_softmax(-1)
    frames, states, _ = scores.shape
    steps = frames - 1 + states - 1
    alignments = []
    for emitting in itertools.combinations(range(steps), states - 1):
        t = u = 0
        total = scores.new_zeros(())
        for step in range(steps):
            if step in emitting:
                total = total + log_probabilities[t, u, labels[u]]
                u += 1
            else:
                total = total + log_probabilities[t, u, 0]
                t += 1
        alignments.append(total + log_probabilities[t, u, 0])
    return -torch.stack(alignments).logsumexp(0)


def example(rows, frames, count, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, frames, count + 1, classes)
    scores = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, classes, (rows, count), generator=generator)
    return scores.requires_grad_(), labels


def agrees(scores, labels, frames, counts):
    """Compare loss and gradient, row by row, with the enumeration of each row alone."""
    loss = transducer_loss(scores, labels, torch.tensor(frames), torch.tensor(counts))
    expected = torch.stack(
        [
            enumerated(row[:T, : U + 1], spoken)
            for row, spoken, T, U in zip(scores, labels, frames, counts, strict=True)
        ]
    )
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    (right,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (1, 4), (4, 1), (5, 3), (3, 5)])
def test_equals_the_sum_over_alignments(frames, count):
    agrees(*example(2, frames, count), [frames] * 2, [count] * 2)


def test_rows_shorter_than_the_batch_are_as_alone():
    agrees(*example(5, 5, 4), [5, 3, 1, 4, 2], [4, 4, 3, 1, 2])


def test_no_labels_is_all_blanks():
    agrees(*example(1, 4, 0), [4], [0])
    agrees(*example(2, 4, 3), [4, 2], [0, 0])


def test_padding_changes_nothing_and_has_no_gradient():
    scores, labels = example(2, 5, 3)
    frames, counts = torch.tensor([5, 3]), torch.tensor([3, 1])
    loss = transducer_loss(scores, labels, frames, counts)
    loss.sum().backward()
    assert not scores.grad[1, 3:].any()
    assert not scores.grad[1, :, 2:].any()
    changed = scores.detach().clone()
    changed[1, 3:] = 100.0
    changed[1, :, 2:] = -100.0
    labels[1, 1:] = 5
    assert torch.equal(transducer_loss(changed, labels, frames, counts), loss)


def test_long_sequences_stay_finite_in_float32():
    generator = torch.Generator().manual_seed(1)
    scores = (10 * torch.randn(1, 400, 31, 100, generator=generator)).requires_grad_()
    labels = torch.randint(1, 100, (1, 30), generator=generator)
    loss = transducer_loss(scores, labels, torch.tensor([400]), torch.tensor([30]))
    double = scores.detach().double()
    exact = transducer_loss(double, labels, torch.tensor([400]), torch.tensor([30]))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    loss.sum().backward()
    assert scores.grad.isfinite().all()
