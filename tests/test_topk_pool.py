"""What is particular to topk_pool; the rest is in test_contract.py."""

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from rooms import LINEAR_TOPK_POOL, TOPK_POOL, linear_inputs, needs_kernel, own_counts, pool_inputs
from torch.autograd import forward_ad

import toco_kernels.numpy
from toco_kernels import LinearTopKPool, TopKPool, linear_topk_pool, topk_pool
from toco_kernels.testing import reference_only

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
operators = torch.ops.toco_kernels


def winners(scores, k):
    """What the definition says, patch by patch: larger first, NaN before all, of equals the lower index."""
    kept = []
    for column in scores.T.tolist():
        order = sorted(range(len(column)), key=lambda n: (column[n] == column[n], -column[n], n))
        kept.append(sorted(order[:k]))
    return torch.tensor(kept, dtype=torch.int32).T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "edge", ["sample", "ties", "many ties", "one value", "specials", "many specials", "almost all of many"]
)
def test_winners(edge, dtype, device):
    inputs = pool_inputs() if edge == "sample" else TOPK_POOL.edges[edge]()
    scores = inputs["scores"].to(device, dtype)
    _, indices = operators.topk_pool(scores, inputs["k"], None)
    assert indices.dtype == torch.int32
    for image, kept in zip(scores, indices, strict=True):
        assert torch.equal(kept.cpu(), winners(image.cpu(), inputs["k"]))


def test_winners_with_counts(device):
    """A list of -1 follows the winners; a count beyond what is there means the nearest that is."""
    scores = pool_inputs(2, 30, 4)["scores"].to(device)
    counts = torch.tensor([[1, 30, 7, 9], [-5, 0, 31, 2**40]], device=device)
    pooled, indices = operators.topk_pool(scores, 0, counts)
    assert indices.shape == (2, 30, 4)
    for b, c, k in ((0, 0, 1), (0, 1, 30), (0, 2, 7), (0, 3, 9), (1, 0, 1), (1, 1, 1), (1, 2, 30), (1, 3, 30)):
        assert torch.equal(indices[b, :k, c].cpu(), winners(scores[b, :, [c]].cpu(), k)[:, 0])
        assert (indices[b, k:, c] == -1).all()
        torch.testing.assert_close(pooled[b, c], scores[b, :, c].topk(k).values.mean())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("edge", ["ties", "many ties", "specials", "few of many"])
def test_as_torch_topk(edge, dtype, device):
    """Whichever of two equals is taken, the values are those of torch.topk, NaN and infinities included."""
    inputs = TOPK_POOL.edges[edge]()
    scores = inputs["scores"].to(device, dtype)
    expected = scores.double().topk(inputs["k"], dim=1).values.mean(1).to(dtype)
    torch.testing.assert_close(topk_pool(**inputs | {"scores": scores}), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_is_max_pooling(dtype, device):
    """Bit for bit, the gradient too."""
    scores = pool_inputs(3, 196, 21)["scores"].to(device, dtype).requires_grad_()
    cotangent = torch.randn(3, 21, device=device, dtype=dtype)
    ours, theirs = topk_pool(scores, 1), F.adaptive_max_pool1d(scores.mT, 1)[..., 0]
    assert torch.equal(ours, theirs)
    grads = (torch.autograd.grad(output, scores, cotangent)[0] for output in (ours, theirs))
    assert torch.equal(*grads)


def test_all_is_the_mean(device):
    scores = pool_inputs()["scores"].to(device)
    torch.testing.assert_close(topk_pool(scores, 63), scores.mean(1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("k", [6, 40])
def test_gradient_without_the_scores(k, device):
    """The backward reads indices alone: whoever overwrites the scores meanwhile changes nothing."""
    needs_kernel(TOPK_POOL, device)
    scores = pool_inputs()["scores"].to(device).requires_grad_()
    expected = torch.autograd.grad(topk_pool(scores, k).sum(), scores)[0]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        pooled = topk_pool(scores, k)
    assert [(x.dtype, tuple(x.shape)) for x in saved] == [(torch.int32, (3, k, 5))]
    with torch.no_grad():
        scores.fill_(float("nan"))
    assert torch.equal(torch.autograd.grad(pooled.sum(), scores)[0], expected)


@pytest.mark.parametrize("softmax", [False, True])
def test_losing_patches_are_not_touched(softmax, device):
    """Their tokens may hold infinities by the time of the backward; their gradient is exactly zero."""
    needs_kernel(LINEAR_TOPK_POOL, device)
    inputs = linear_inputs(softmax=softmax)
    tokens, weight = inputs["tokens"].to(device), inputs["weight"].to(device)
    bias, grad = inputs["bias"].to(device), torch.randn(3, 5, device=device, dtype=torch.float64)
    _, indices = operators.linear_topk_pool(tokens, weight, bias, 6, None, softmax)
    expected = operators.linear_topk_pool_backward(grad, tokens, weight, bias, indices, softmax, True)
    losing = torch.ones(3, 63, dtype=torch.bool, device=device)
    losing.scatter_(1, indices.flatten(1).long(), False)
    actual = operators.linear_topk_pool_backward(
        grad, tokens.masked_fill(losing[:, :, None], float("inf")), weight, bias, indices, softmax, True
    )
    assert losing.any()
    assert (expected[0][losing] == 0).all()
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("k", [6, own_counts(3, 63, 5)], ids=["one k", "a k for each class"])
@pytest.mark.parametrize("fallback", [False, True])
def test_second_derivatives(fallback, k, device):
    """Given the winners, pooling is linear, and the classifier twice differentiable."""
    k = k.to(device) if isinstance(k, torch.Tensor) else k
    scores = pool_inputs()["scores"].to(device).requires_grad_()
    inputs = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in linear_inputs(softmax=True).items()}
    leaves = [inputs[name].requires_grad_() for name in ("tokens", "weight", "bias")]

    def classified(tokens, weight, bias):
        return linear_topk_pool(tokens, weight, k, bias=bias, softmax=True)

    def check():
        assert torch.autograd.gradgradcheck(lambda scores: topk_pool(scores, k), scores, fast_mode=True)
        assert torch.autograd.gradcheck(classified, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(classified, leaves, fast_mode=True)

    if fallback:
        with reference_only():
            check()
    else:
        check()


@pytest.mark.parametrize("wanted", [("tokens",), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("softmax", [False, True])
def test_some_gradients(wanted, softmax, device):
    """Each alone is what it is together with the others, and the published operations give the same."""
    inputs = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in linear_inputs(softmax=softmax).items()}
    every = {name: inputs[name].requires_grad_() for name in ("tokens", "weight", "bias")}
    cotangent = torch.randn(3, 5, device=device, dtype=torch.float64)
    expected = torch.autograd.grad(LINEAR_TOPK_POOL.reference(**inputs), [every[n] for n in wanted], cotangent)
    for alone in (False, True):
        leaves = {name: x.detach().requires_grad_(name in wanted or not alone) for name, x in every.items()}
        for create_graph in (False, True):
            output = linear_topk_pool(**inputs | leaves)
            actual = torch.autograd.grad(output, [leaves[n] for n in wanted], cotangent, create_graph=create_graph)
            torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
        output.sum().backward()
        assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [
            name for name in leaves if name in wanted or not alone
        ]


def test_scores_keep_their_precision(device):
    """Half-precision tokens are scored in float32: winners are those of the exact scores of the rounded inputs."""
    inputs = linear_inputs(2, 500, 64, 7, bias=False)
    tokens, weight = (inputs[name].to(device, torch.bfloat16) for name in ("tokens", "weight"))
    exact = tokens.double() @ weight.double()
    _, indices = operators.linear_topk_pool(tokens, weight, None, 6, None, False)
    for image, kept in zip(exact, indices, strict=True):
        assert torch.equal(kept.cpu(), winners(image.cpu(), 6))


@pytest.mark.parametrize("name", ["scores", "tokens", "weight", "bias"])
def test_no_forward_derivative(name, device):
    """Refused, not lost, for a tensor without requires_grad too."""
    function, inputs = (topk_pool, pool_inputs()) if name == "scores" else (linear_topk_pool, linear_inputs())
    inputs = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in inputs.items()}
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[name], torch.ones_like(inputs[name]))
        with pytest.raises(RuntimeError, match="topk_pool has no forward-mode derivative"):
            function(**inputs | {name: dual})


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("listed", [(-100_000_000, 5, 6), (100_000_000, 5, 6), (5, 10, 6), (6, 10, -100_000_000, 5)])
def test_invalid_winners(listed, softmax):
    """Of indices that no forward has written, those outside of the image win nothing, and nothing is overwritten.

    On the CPU: a GPU would report an error, or not, at some other time.
    """
    needs_kernel(LINEAR_TOPK_POOL, "cpu")
    tokens, weight, grad = torch.randn(1, 10, 4), torch.randn(4, 2), torch.tensor([[1.0, -1.0]])
    indices = torch.tensor(listed, dtype=torch.int32)[None, :, None].expand(1, -1, 2).contiguous()
    grad_tokens, *_ = operators.linear_topk_pool_backward(grad, tokens, weight, None, indices, softmax, True)
    winning = grad_tokens[0].any(1).nonzero()[:, 0].tolist()
    assert winning
    assert {*winning} <= {5, 6}


def test_one_graph_for_every_k(device):
    """A k that depends on the number of patches does not have functions compiled again."""
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x: topk_pool(x, x.shape[1] // 10), dynamic=True, fullgraph=True, backend=counter)
    linear = torch.compile(
        lambda x, w: linear_topk_pool(x, w, x.shape[1] // 10), dynamic=True, fullgraph=True, backend=counter
    )
    weight = torch.randn(8, 5, device=device)
    for patches in (50, 60, 70, 80):
        x = torch.randn(2, patches, 8, device=device)
        assert torch.equal(compiled(x), topk_pool(x, patches // 10))
        assert torch.equal(linear(x, weight), linear_topk_pool(x, weight, patches // 10))
    assert counter.frame_count == 2


def test_modules(device):
    scores = pool_inputs()["scores"].to(device)
    assert torch.equal(TopKPool(6)(scores), topk_pool(scores, 6))
    assert repr(TopKPool(6)) == "TopKPool(k=6)"

    torch.manual_seed(0)
    module = LinearTopKPool(24, 5, 6, bias=True, softmax=True).to(device)
    tokens = linear_inputs()["tokens"].float().to(device)
    expected = linear_topk_pool(tokens, module.weight, 6, bias=module.bias, softmax=True)
    assert torch.equal(module(tokens), expected)
    assert torch.equal(module(tokens.mT.unflatten(2, (9, 7))), expected)
    assert repr(module) == "LinearTopKPool(in_features=24, num_classes=5, k=6, bias=True, softmax=True)"
    assert {name: tuple(x.shape) for name, x in module.named_parameters()} == {"weight": (24, 5), "bias": (5,)}
    assert (module.bias == 0).all()
    assert module.weight.std().item() == pytest.approx(0.05, rel=0.3)
    assert [*LinearTopKPool(24, 5, 6).state_dict()] == ["weight"]


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("k", (24, 5, 0)),
        ("in_features", (0, 5, 6)),
        ("num_classes", (24, 1.5, 6)),
        ("bias", (24, 5, 6, 1)),
        ("softmax", (24, 5, 6, True, "yes")),
    ],
)
def test_modules_bad_arguments(argument, arguments):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        LinearTopKPool(*arguments)
    with pytest.raises(ValueError, match=r"^k must be an integer >= 1, got 0"):
        TopKPool(0)


@pytest.mark.parametrize("k", [1, 6, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy(dtype, k):
    scores = pool_inputs()["scores"].numpy().astype(dtype)
    expected = topk_pool(torch.from_numpy(scores), k).numpy()
    for threads in (1, 2):
        pooled = toco_kernels.numpy.topk_pool(scores, k, threads=threads)
        assert pooled.dtype == dtype
        np.testing.assert_array_equal(pooled, expected)
    turned = np.ascontiguousarray(scores.transpose(2, 1, 0)).transpose(2, 1, 0)
    np.testing.assert_array_equal(toco_kernels.numpy.topk_pool(turned, k), expected)
    np.testing.assert_array_equal(toco_kernels.numpy.topk_pool(scores[0], k), expected[0])
    counts = np.full((3, 5), k, np.int32)
    np.testing.assert_allclose(toco_kernels.numpy.topk_pool(scores, counts), expected, rtol=1e-6)
    np.testing.assert_allclose(toco_kernels.numpy.topk_pool(scores[0], counts[0]), expected[0], rtol=1e-6)


def test_numpy_without_its_extension(monkeypatch):
    monkeypatch.setattr(toco_kernels.numpy, "_numpy", None)
    test_numpy(np.float32, 6)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scores", [[[1.0]]]),
        ("scores", np.ones(20, np.float32)),
        ("scores", np.ones((2, 20, 5), np.float16)),
        ("scores", np.ones((2, 0, 5), np.float32)),
        ("k", 0),
        ("k", 21),
        ("k", 1.5),
        ("k", np.ones((2, 5))),
        ("k", np.ones((2, 4), np.int64)),
        ("k", np.zeros((2, 5), np.int64)),
        ("k", np.full((2, 5), 21)),
        ("threads", 0),
    ],
)
def test_numpy_bad_arguments_are_named(argument, value):
    arguments = {"scores": np.ones((2, 20, 5), np.float32), "k": np.full((2, 5), 6), "threads": 1}
    toco_kernels.numpy.topk_pool(**arguments)
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        toco_kernels.numpy.topk_pool(**arguments | {argument: value})
