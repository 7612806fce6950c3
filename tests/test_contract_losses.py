"""What every loss owes those who differentiate it in other ways than once (CONTRIBUTING.md)."""

import pytest
import torch
from test_contract import every_loss, prepared
from torch import Tensor


@every_loss
def test_no_second_derivative(room, device):
    inputs = prepared(room.sample(), device)
    x = inputs[room.differentiable[0]].requires_grad_()
    (grad,) = torch.autograd.grad(room.function(**inputs), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@every_loss
def test_second_backward_through_a_retained_graph(room, device):
    """The first one may use up what the forward left; the second gets the same, and leaves the first as it was."""
    inputs = prepared(room.sample(), device)
    x = inputs[room.differentiable[0]].requires_grad_()
    loss = room.function(**inputs)
    (first,) = torch.autograd.grad(loss, x, torch.tensor(3.0, device=device), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x, torch.tensor(3.0, device=device))
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)


def constants(room, inputs):
    """The names of the tensors that the loss is not differentiated in."""
    return [name for name, value in inputs.items() if isinstance(value, Tensor) and name not in room.differentiable]


@every_loss
def test_second_backward_never_uses_arguments_that_changed(room, device):
    """It raises, unless it does not depend on them: copies of them were made."""
    refused = {}
    for name in constants(room, room.sample()):
        inputs = prepared(room.sample(), device)
        x = inputs[room.differentiable[0]].requires_grad_()
        loss = room.function(**inputs)
        (first,) = torch.autograd.grad(loss, x, retain_graph=True)
        inputs[name].zero_()
        try:
            (second,) = torch.autograd.grad(loss, x)
        except RuntimeError as error:
            refused[f"modified by an inplace operation: {name} is at version"] = str(error)
        else:
            assert torch.equal(second, first), f"the second gradient is of other {name}"
    assert bool(refused) != room.copies_constants
    assert all(expected in message for expected, message in refused.items())


@every_loss
def test_second_backward_with_arguments_of_inference_mode(room, device):
    """Nobody counts how often those were written to."""
    inputs = prepared(room.sample(), device)
    with torch.inference_mode():
        inputs |= {name: inputs[name].clone() for name in constants(room, inputs)}
    x = inputs[room.differentiable[0]].requires_grad_()
    loss = room.function(**inputs)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, x)[0], first)


@every_loss
def test_batched_gradients(room, device):
    """One backward for several cotangents, before and after one of the ordinary kind has used up the gradient."""
    inputs = prepared(room.sample(), device)
    x = inputs[room.differentiable[0]].requires_grad_()
    loss = room.function(**inputs)
    cotangents = torch.tensor([1.0, -3.0, 0.0], device=device)
    options = {"is_grads_batched": True, "retain_graph": True}
    (before,) = torch.autograd.grad(loss, x, cotangents, **options)
    singles = [torch.autograd.grad(loss, x, cotangent, retain_graph=True)[0] for cotangent in cotangents]
    (after,) = torch.autograd.grad(loss, x, cotangents, **options)
    assert torch.equal(before, torch.stack(singles))
    assert torch.equal(after, before)
    vmapped = torch.func.vmap(lambda cotangent: torch.autograd.grad(loss, x, cotangent, retain_graph=True)[0])
    assert torch.equal(vmapped(cotangents), before)


@every_loss
def test_no_forward_derivative(room, device):
    inputs = prepared(room.sample(), device)
    for name in room.differentiable:
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            torch.func.jvp(lambda x, name=name: room.function(**inputs | {name: x}), (inputs[name],), (inputs[name],))
