"""What stands in for a replaced definition: which of the two answers, for whom, and in all ranks alike."""

import copy
import itertools
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from toco_kernels import compat
from toco_kernels.port import agree, registry, report, slots
from toco_kernels.port.registry import Approximate, Exact
from toco_kernels.port.verify import NotImportable, Verdict

EXACT, CLOSE = Exact(), Approximate(1e-5)


def double(x):
    return x * 2


def slot(name="get_seg_loss", **options):
    replacement = registry.Replacement(name, name, CLOSE)
    return slots.Slot(name, "file.py", next(LINES), replacement, **options)


LINES = itertools.count(1)  # keys of decisions are made of them


@pytest.fixture
def losses():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    return logits, torch.randint(0, 3, (2, 4, 4))


def published(pred, label, ignore_index=255):
    return compat.get_seg_loss(pred, label, ignore_index) * 1.0


def test_one_warning_and_the_original_stays(losses):
    calls = []

    def original(pred, label, ignore_index=255):
        calls.append(1)
        return pred.sum() * 0 + 7

    taken = slot()
    stand_in = taken.take(original)
    with pytest.warns(RuntimeWarning, match="get_seg_loss .* is not replaced, the original stays") as caught:
        values = [stand_in(*losses).item() for _ in range(3)]
    assert values == [7.0] * 3
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (taken.verdict.state, taken.calls) == ("differs", 3)
    assert stand_in.__name__ == "original"


def test_gradients_are_compared_once_they_are_needed(losses, monkeypatch):
    """A first call in validation does not show them."""
    taken = slot()
    stand_in = taken.take(published)
    with torch.no_grad():
        stand_in(*losses)
    assert (taken.verdict.state, taken.verdict.again) == ("verified", True)
    stand_in(*losses)
    assert (taken.verdict.state, taken.verdict.again) == ("verified", False)
    other = slot()
    stand_in = other.take(lambda pred, label: published(pred.detach(), label) + (pred - pred.detach()).sum())
    with torch.no_grad():
        stand_in(*losses)
    with pytest.warns(RuntimeWarning, match="gradient 0: "):
        stand_in(*losses)
    assert not other.verdict.ours


def test_trusted_is_not_compared(losses):
    def original(*args):
        raise AssertionError("called")

    taken = slot(trusted=True)
    assert torch.equal(taken.take(original)(*losses), compat.get_seg_loss(*losses))
    assert taken.verdict.state == "trusted"


def test_bad_inputs_raise_what_the_original_raises(losses):
    """And decide nothing."""

    def original(pred, label, ignore_index=255):
        if label.max() > 2:
            raise KeyError("label")
        return published(pred, label, ignore_index)

    taken = slot()
    stand_in = taken.take(original)
    with pytest.raises(KeyError, match="label"):
        stand_in(losses[0], losses[1] + 9)
    assert taken.verdict is None
    stand_in(*losses)
    assert taken.verdict.state == "verified"


def test_originals_call_originals(losses):
    """What a call cost before is the cost without any replacement."""
    inner, outer = slot(), slot()
    used = []

    def inner_original(*args):
        used.append("original")
        return published(*args)

    inner_stand_in = inner.take(inner_original)
    stand_in = outer.take(lambda *args: inner_stand_in(*args))
    stand_in(*losses)
    assert used
    assert (inner.calls, inner.verdict, outer.verdict.state) == (0, None, "verified")


def test_a_missing_module_is_a_state_of_its_own(losses):
    taken = slot(needs="bilateralfilter")
    taken.take(published)(*losses)
    assert taken.verdict == Verdict(True, "original not importable", "No module named 'bilateralfilter'")
    with pytest.raises(NotImportable):
        taken.check_importable()


def test_compiling_goes_straight_through(losses):
    taken = slot()
    stand_in = taken.take(published)
    compiled = torch.compile(stand_in, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*losses), compat.get_seg_loss(*losses))
    assert taken.verdict is None
    (row,) = [
        row for row in report.of_this_process()["replaced"] if (row["file"], row["line"]) == (taken.file, taken.line)
    ]
    assert row["state"] == "compiled, not compared"


class Published(nn.Module):
    def __init__(self, dilations, num_iter, wrong=False):
        super(Published, self).__init__()  # noqa: UP008  # the stand-in is meant, once there is one
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3))
        self.inner, self.wrong = compat.PAR(dilations, num_iter), wrong

    def forward(self, imgs, masks):
        return self.inner(imgs, masks) + self.wrong


@pytest.fixture
def stand_in(monkeypatch):
    taken = slots.Slot("Published", "file.py", next(LINES), registry.Replacement("PAR", "PAR", CLOSE))
    original = Published
    monkeypatch.setitem(globals(), "Published", taken.take(original))
    return SimpleNamespace(slot=taken, cls=globals()["Published"], original=original)


def test_modules(stand_in):
    """Ours, of the published class's name; an old checkpoint loads; the refinement knows it."""
    module = stand_in.cls(num_iter=2, dilations=[1, 2])
    assert isinstance(module, compat.PAR)
    assert (type(module).__name__, type(module).__module__) == ("Published", __name__)
    checkpoint = module._original().state_dict()
    assert list(checkpoint) == ["kernel"]
    module.load_state_dict(checkpoint)
    image, masks = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    hooked = []
    module.register_forward_hook(lambda *_: hooked.append(1))
    assert torch.equal(module(image, masks), compat.PAR([1, 2], 2)(image, masks))
    assert stand_in.slot.verdict.state == "verified"
    assert hooked == [1], "comparing calls no hooks"
    labels = torch.ones(1, 2)
    refined = compat.refine_cams_with_bkg_v2(module, image, masks, labels, 0.7, 0.25, 255)
    plain = compat.refine_cams_with_bkg_v2(compat.PAR([1, 2], 2), image, masks, labels, 0.7, 0.25, 255)
    assert torch.equal(refined, plain)
    assert stand_in.slot.calls == 1, "the refinement needs no call"


def test_a_module_that_differs_becomes_the_original(stand_in, monkeypatch):
    module = stand_in.cls([1, 2], 2)
    monkeypatch.setattr(stand_in.original, "forward", lambda self, imgs, masks: masks + 1)
    image, masks = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    module.eval()
    module.register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match="the original stays"):
        assert torch.equal(module(image, masks), masks + 1)
    assert type(module) is stand_in.original
    assert list(module.state_dict()) == ["kernel"]
    assert not module.training
    assert len(module._forward_hooks) == 1
    assert type(stand_in.cls([1], 1)) is stand_in.original, "and all that are made later"


def test_what_is_derived_gets_the_original(stand_in):
    """Whose insides it may rely on; so do all that are made later, and those that were made before."""
    module = stand_in.cls([1], 1)
    with pytest.warns(RuntimeWarning, match="the original stays: Mine is derived from it, and may rely on its insides"):

        class Mine(stand_in.cls):
            def forward(self, imgs, masks):
                return stand_in.original.forward(self, imgs, masks) * self.kernel.sum()

    assert Mine.__mro__[1] is stand_in.original is Published
    image, masks = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(Mine([1], 1)(image, masks), 72 * module(image, masks))
    assert type(module) is stand_in.original


def test_what_ours_does_not_have_is_the_originals(stand_in):
    """Read or set: numbers that a fork changes by hand, methods that it calls."""
    for use in (lambda module: module.kernel.sum(), lambda module: setattr(module, "wrong", True)):
        stand_in.slot.verdict = None
        module = stand_in.cls([1], 1)
        with pytest.warns(
            RuntimeWarning, match="the original stays: its (kernel|wrong) is (used|set), which ours does"
        ):
            use(module)
        assert type(module) is stand_in.original
    image, masks = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(module(image, masks), 1 + compat.PAR([1], 1)(image, masks))
    with pytest.raises(AttributeError, match="nothing"):
        _ = stand_in.cls([1], 1).nothing


def test_what_is_set_counts_for_both(stand_in):
    """Attributes that both have, set between construction and the first call."""
    module = stand_in.cls([1], 1)
    module.remark = "mine"
    original = module._original()
    assert (original.remark, type(original)) == ("mine", stand_in.original)
    assert isinstance(original, stand_in.cls), "also for those who ask"
    assert not isinstance(nn.Linear(1, 1), stand_in.cls)


def test_copies_and_pickles(stand_in, monkeypatch):
    """A network saved whole is read without this package too: as the original."""
    module = stand_in.cls(num_iter=3, dilations=[2]).eval()
    module.remark = "mine"
    module.register_forward_hook(double)
    data = pickle.dumps(module)
    for copied in (copy.deepcopy(module), pickle.loads(data)):
        assert type(copied) is stand_in.cls
        assert (copied.num_iter, copied.dilations, copied.training, copied.remark) == (3, [2], False, "mine")
        assert list(copied._forward_hooks.values()) == [double]
        assert copied._original().remark == "mine"
    monkeypatch.setitem(globals(), "Published", stand_in.original)
    loaded = pickle.loads(data)
    assert (type(loaded), loaded.inner.num_iter, loaded.training) == (stand_in.original, 3, False)
    stand_in.slot.verdict = Verdict(False, "differs")
    assert type(pickle.loads(pickle.dumps(module))) is stand_in.original


# One decision for all ranks.


class Ranks:
    """A store, and which rank asks."""

    def __init__(self, monkeypatch, world=2):
        self.store, self.rank = torch.distributed.HashStore(), 0
        monkeypatch.setattr(agree, "_store", lambda: self.store)
        monkeypatch.setattr(agree, "PATIENCE", 0.01)
        monkeypatch.setattr(agree.dist, "get_rank", lambda: self.rank)
        monkeypatch.setattr(agree.dist, "get_world_size", lambda: world)

    def agree(self, rank, verdict):
        self.rank = rank
        return agree.agree("key", verdict, 0.0)


def test_ranks_agree(monkeypatch):
    """Whoever comes first says no for all; whoever comes late takes what was decided."""
    ranks = Ranks(monkeypatch)
    bad, good = Verdict(False, "differs", "too far"), Verdict(True, "verified")
    assert agree.known("key") is None
    assert ranks.agree(1, bad) == bad
    assert ranks.agree(0, good) == Verdict(False, "differs elsewhere", "rank 1: too far")
    assert agree.known("key") == (False, "rank 1: too far")
    assert agree.is_first_to("warn")
    assert not agree.is_first_to("warn")


def test_a_rank_alone_does_not_wait_for_ever(monkeypatch):
    ranks = Ranks(monkeypatch)
    good, bad = Verdict(True, "verified"), Verdict(False, "differs", "too far")
    assert ranks.agree(0, good) == good
    assert ranks.agree(1, bad) == Verdict(True, "verified elsewhere", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_child_by_fork_leaves_its_parents_store_alone(monkeypatch):
    """Two processes on one connection would take each other's answers."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(agree.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(agree.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(agree.dist.distributed_c10d, "_get_default_store", lambda: store)
    assert agree._store() is store
    with slots._LOCK, ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(in_child).result(timeout=60) == (True, True)


def in_child():
    """Whether a child is alone, and can decide."""
    with ThreadPoolExecutor(1) as threads:
        free = threads.submit(slots._LOCK.acquire, timeout=1).result()
    return agree.known("key") is None and agree._store() is None, free
