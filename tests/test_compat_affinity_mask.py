"""The mask of compat.label_to_aff_mask: to everybody a tensor, to get_masked_ptc_loss its labels."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from toco_kernels.compat import AffinityMask, get_masked_ptc_loss, label_to_aff_mask
from toco_kernels.patch_contrast import reference

IMAGE = (3, 4)


def labels_of(device="cpu", dtype=torch.int64):
    labels = torch.randint(0, 3, (2, *IMAGE), generator=torch.Generator().manual_seed(0))
    labels[0, 0, 1:3] = 255
    return labels.to(device, dtype)


def pair(device="cpu"):
    """The mask, and the same as a plain tensor."""
    labels = labels_of(device)
    return label_to_aff_mask(labels), reference.affinity_mask(labels.flatten(1), 255)


def tokens(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, *IMAGE, generator=generator).to(device, dtype).requires_grad_()


def loss_and_grad(function, inputs, *args):
    loss = function(inputs, *args)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


class Sizes(TorchDispatchMode):
    """Remembers how large the largest tensor was that an operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        if isinstance(output, Tensor) and not isinstance(output, AffinityMask):
            self.largest = max(self.largest, output.numel())
        return output


def test_what_can_be_asked_without_making_it(device):
    with Sizes() as sizes:
        mask = label_to_aff_mask(labels_of(device))
        assert isinstance(mask, Tensor)
        assert mask.shape == mask.size() == (2, 12, 12)
        assert (mask.dtype, mask.ndim, mask.numel(), len(mask)) == (torch.int64, 3, 288, 2)
        assert (mask.device, mask.is_cuda) == (labels_of(device).device, device == "cuda")
        assert mask.stride() == (144, 12, 1)
        assert mask.is_contiguous()
        assert mask.long() is mask.contiguous() is mask.to(mask.device) is mask
        for same in (mask.clone(), mask.detach(), mask.data, copy.deepcopy(mask), mask.to(device, copy=True)):
            assert same is not mask
            assert torch.equal(same.labels, mask.labels)
    assert sizes.largest <= mask.labels.numel()


def test_the_loss_never_makes_it(device):
    mask, _ = pair(device)
    loss_and_grad(get_masked_ptc_loss, tokens(device), mask)
    assert mask._content.values is None


READERS = {
    "==": lambda mask: mask == 1,
    "+": lambda mask: mask + 1,
    "index": lambda mask: mask[0, 1],
    "mask as index": lambda mask: mask[mask == 1],
    "iterate": lambda mask: torch.stack([*mask]),
    "split": lambda mask: torch.cat(mask.split(5, dim=1), dim=1),
    "sum": lambda mask: mask.sum(),
    "max": lambda mask: mask.max(dim=2).indices,
    "unique": lambda mask: mask.unique(),
    "where": lambda mask: torch.where(mask == 255, -1, mask),
    "cat": lambda mask: torch.cat([mask, mask]),
    "stack": lambda mask: torch.stack([mask]),
    "transpose": lambda mask: mask.mT,
    "view": lambda mask: mask.view(-1),
    "expand": lambda mask: mask.expand(2, -1, -1, -1),
    "float": lambda mask: mask.float(),
    "int32": lambda mask: mask.to(torch.int32),
    "bool": lambda mask: mask.bool(),
    "clone": lambda mask: mask.clone() + 0,
    "detach": lambda mask: mask.detach() + 0,
    "data": lambda mask: mask.data + 0,
    "cpu": lambda mask: mask.cpu() + 0,
    "deepcopy": lambda mask: copy.deepcopy(mask) + 0,
    "copy": copy.copy,
    "one_hot": lambda mask: torch.nn.functional.one_hot(mask),
    "zeros_like": torch.zeros_like,
    "new_ones": lambda mask: mask.new_ones(3),
    "copy_ of another": lambda mask: torch.empty(mask.shape, device=mask.device).copy_(mask),
    "tolist": lambda mask: torch.tensor(mask.tolist()),
    "numpy": lambda mask: torch.from_numpy(mask.cpu().numpy()),
    "asarray": lambda mask: torch.from_numpy(np.asarray(mask.cpu())),
    "dlpack": lambda mask: torch.from_dlpack(mask),
    "pickle": lambda mask: pickle.loads(pickle.dumps(mask)),
    "save": lambda mask: saved_and_loaded(mask),
    "print": lambda mask: torch.tensor([ord(letter) for letter in f"{mask}{mask!r}"]),
}


def saved_and_loaded(mask):
    file = io.BytesIO()
    torch.save({"mask": mask}, file)
    file.seek(0)
    return torch.load(file)["mask"]


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_everything_else_sees_a_plain_tensor(read, device):
    mask, plain = pair(device)
    actual, expected = read(mask), read(plain)
    assert type(actual) is Tensor
    assert actual.dtype == expected.dtype
    assert actual.device == expected.device
    assert torch.equal(actual, expected)
    assert torch.equal(mask, plain)


def test_it_is_made_once(device):
    mask, _ = pair(device)
    twin = mask.detach()
    assert mask.values() is mask.values() is twin.values()
    assert mask.labels is not None, "reading changes nothing"


WRITERS = {
    "fill_": lambda mask: mask.fill_(0),
    "index": lambda mask: mask.__setitem__((0, 1), 1),
    "mask as index": lambda mask: mask.__setitem__(mask == 0, 255),
    "row": lambda mask: mask[0].fill_(0),
    "masked_fill_": lambda mask: mask.masked_fill_(mask == 1, 255),
    "+=": lambda mask: mask.__iadd__(1),
    "out=": lambda mask: torch.mul(mask, 0, out=mask),
    "foreach": lambda mask: torch._foreach_mul_([mask], 0),
    "copy_": lambda mask: mask.copy_(torch.ones_like(mask)),
    "scatter_": lambda mask: mask.scatter_(2, torch.zeros_like(mask), 1),
    "through a view": lambda mask: mask.view(2, -1)[:, ::2].fill_(0),
    "through an older view": lambda mask: [row.fill_(1) for row in mask.unbind(1)],
    "through detach": lambda mask: mask.detach().fill_(0),
    "through data": lambda mask: mask.data.fill_(0),
    "through copy.copy": lambda mask: copy.copy(mask).fill_(0),
    "through dlpack": lambda mask: torch.from_dlpack(mask).fill_(0),
    "through memory": lambda mask: mask.untyped_storage().fill_(0),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_writing_counts(write, device):
    """What was written is seen by whoever reads, the loss included."""
    mask, plain = pair(device)
    twin, copied = mask.detach(), mask.clone()
    before = plain.clone()
    write(mask)
    write(plain)
    assert torch.equal(mask, plain)
    assert not torch.equal(mask, before)
    assert torch.equal(twin, plain), "detached tensors share their memory"
    assert torch.equal(copied, before), "copies do not"
    assert mask.labels is None
    assert_same(loss_and_grad(get_masked_ptc_loss, tokens(device), mask), plain, device)


def assert_same(actual, plain_mask, device):
    expected = loss_and_grad(lambda x: reference.masked_contrast(x.flatten(2).mT, plain_mask), tokens(device))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_operation_in_place_returns_the_mask(device):
    mask, _ = pair(device)
    assert mask.fill_(0) is mask
    assert torch.add(mask, 1, out=mask) is mask
    mask += 1
    assert isinstance(mask, AffinityMask)
    assert type(mask[0].fill_(7)) is Tensor


def test_written_through_numpy():
    mask, plain = pair()
    mask.numpy().fill(0)
    assert mask.labels is None
    assert_same(loss_and_grad(get_masked_ptc_loss, tokens(), mask), plain * 0, "cpu")


def test_reading_beside_a_write_is_no_write(device):
    mask, plain = pair(device)
    torch.zeros_like(plain).copy_(mask).add_(mask)
    torch.add(mask, 1, out=torch.zeros_like(plain))
    assert mask.labels is not None


def test_its_shape_is_its_own(device):
    mask, plain = pair(device)
    with pytest.raises(RuntimeError, match="the shape of an affinity mask cannot be changed in place"):
        mask.unsqueeze_(0)
    with pytest.raises(AttributeError):
        mask.data = plain
    assert torch.equal(mask, plain)


def test_labels_are_copied(device):
    labels = labels_of(device)
    mask, plain = label_to_aff_mask(labels), pair(device)[1]
    labels.fill_(7)
    assert torch.equal(mask, plain)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int16, torch.float32, torch.float64], ids=str)
def test_labels_of_any_dtype(dtype, device):
    assert torch.equal(label_to_aff_mask(labels_of(device, dtype)), pair(device)[1])


@pytest.mark.parametrize(
    ("ignore_index", "rows"),  # of the labels [0, 1, 1, 2]
    [
        (255, [[255, 0, 0, 0], [0, 255, 1, 0], [0, 1, 255, 0], [0, 0, 0, 255]]),
        (-1, [[-1, 0, 0, 0], [0, -1, 1, 0], [0, 1, -1, 0], [0, 0, 0, -1]]),
        (2, [[2, 0, 0, 2], [0, 2, 1, 2], [0, 1, 2, 2], [2, 2, 2, 2]]),
        (1, [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]),
        (0, [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_ignore_index(ignore_index, rows, device):
    """It is what the mask holds beside ignored patches, so with 0 and 1 those differ from all others, or agree."""
    labels = torch.tensor([[[0, 1], [1, 2]]], device=device)
    expected = torch.tensor([rows], device=device)
    compiled = torch.compile(label_to_aff_mask, fullgraph=True, backend="eager")
    assert torch.equal(compiled(labels, ignore_index), expected)

    inputs = tokens(device).detach()[:1, :, :2, :2].requires_grad_()
    plain = loss_and_grad(get_masked_ptc_loss, inputs, expected)
    for loss in (get_masked_ptc_loss, torch.compile(get_masked_ptc_loss, fullgraph=True, backend="eager")):
        mask = label_to_aff_mask(cam_label=labels, ignore_index=ignore_index)
        for a, b in zip(loss_and_grad(loss, inputs, mask), plain, strict=True):
            torch.testing.assert_close(a, b)
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("ignore_index", [0, 1, 255])
def test_ignored_pairs(ignore_index, device):
    """The keyword of a fork: pairs of that value do not count, whatever the mask is made of."""
    mask, plain = pair(device)
    expected = loss_and_grad(get_masked_ptc_loss, tokens(device), plain.masked_fill(plain == ignore_index, 7))
    for given in (mask, plain):
        actual = loss_and_grad(lambda x, m: get_masked_ptc_loss(x, m, ignore_index), tokens(device), given)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_fractions_of_labels_do_not_count(device):
    labels = torch.tensor([[[0.2, 0.7, 1.4]]], device=device)
    assert label_to_aff_mask(labels).tolist() == [[[255, 1, 0], [1, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("make", [lambda mask: mask, lambda mask: mask + 0], ids=["labels", "plain"])
def test_loss(make, device):
    """With the labels' mask and with a plain one: the same loss and gradient."""
    mask, plain = pair(device)
    assert_same(loss_and_grad(get_masked_ptc_loss, tokens(device), make(mask)), plain, device)
    loss = get_masked_ptc_loss(inputs=tokens(device), mask=make(mask))
    assert (loss.shape, loss.dtype) == ((), torch.float32)


def test_a_mask_that_no_labels_give(device):
    """Not transitive, not symmetric, and with values that mean nothing."""
    mask = torch.randint(-1, 3, (2, 12, 12), generator=torch.Generator().manual_seed(0)).to(device)
    assert_same(loss_and_grad(get_masked_ptc_loss, tokens(device), mask), mask, device)
    assert_same(loss_and_grad(get_masked_ptc_loss, tokens(device), mask.float()), mask, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_both_ways_compute_in_float32(dtype, device):
    """Sums of thousands of cosines would overflow float16, and lose all digits in bfloat16."""
    inputs, (mask, plain) = tokens(device, dtype), pair(device)
    fast, slow = (loss_and_grad(get_masked_ptc_loss, inputs, m) for m in (mask, plain))
    assert fast[0].dtype == slow[0].dtype == torch.float32
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_both_ways_under_autocast(device):
    """The tokens are cast, and nothing else is; in half precision the gradients differ by its roundings."""
    results = []
    for mask in pair(device):
        inputs = tokens(device)
        with torch.autocast(device, torch.bfloat16):
            loss = get_masked_ptc_loss(inputs, mask)
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs)))
    (fast, fast_grad), (slow, slow_grad) = results
    assert fast.dtype == fast_grad.dtype == slow_grad.dtype == torch.float32
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(fast_grad, slow_grad, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(fast, get_masked_ptc_loss(tokens(device).bfloat16(), mask))


def test_compiled(device):
    """The mask is plain where it is made inside; made outside, its labels, or what was written, are used."""

    def train(inputs, labels):
        return get_masked_ptc_loss(inputs, label_to_aff_mask(labels))

    mask, plain = pair(device)
    inside = torch.compile(lambda labels: label_to_aff_mask(labels), fullgraph=True, backend="aot_eager")
    assert type(inside(labels_of(device))) is Tensor
    assert torch.equal(inside(labels_of(device)), plain)
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    assert_same(loss_and_grad(compiled, tokens(device), labels_of(device)), plain, device)

    compiled = torch.compile(get_masked_ptc_loss, fullgraph=True, backend="aot_eager")
    assert_same(loss_and_grad(compiled, tokens(device), mask), plain, device)
    other = torch.arange(24, device=device).view(2, *IMAGE) // 5
    expected = reference.affinity_mask(other.flatten(1), 255)
    assert_same(loss_and_grad(compiled, tokens(device), label_to_aff_mask(other)), expected, device)
    for changed in (mask, plain):
        changed[:, :, 0] = 255
    assert_same(loss_and_grad(compiled, tokens(device), mask), plain, device)


BAD = {
    "cam_label: not a tensor": lambda x, labels: label_to_aff_mask(labels.tolist()),
    "cam_label: wrong rank": lambda x, labels: label_to_aff_mask(labels[0]),
    "cam_label: complex": lambda x, labels: label_to_aff_mask(labels.cfloat()),
    "inputs: wrong rank": lambda x, labels: get_masked_ptc_loss(x[0], label_to_aff_mask(labels)),
    "inputs: integers": lambda x, labels: get_masked_ptc_loss(x.long(), label_to_aff_mask(labels)),
    "mask: not a tensor": lambda x, labels: get_masked_ptc_loss(x, None),
    "mask: labels": lambda x, labels: get_masked_ptc_loss(x, labels),
    "mask: other size": lambda x, labels: get_masked_ptc_loss(x, label_to_aff_mask(labels[:, 1:])),
    "mask: other batch": lambda x, labels: get_masked_ptc_loss(x, label_to_aff_mask(labels[1:])),
    "mask: not square": lambda x, labels: get_masked_ptc_loss(x, label_to_aff_mask(labels)[:, 1:]),
    "mask: other device": lambda x, labels: get_masked_ptc_loss(x, label_to_aff_mask(labels.to("meta"))),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_named(bad, device):
    with pytest.raises((TypeError, ValueError), match=rf"^{bad.split(':')[0]} must .+, got .+"):
        BAD[bad](tokens(device), labels_of(device))
