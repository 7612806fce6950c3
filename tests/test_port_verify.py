"""First calls of replaced functions: what is compared, what is restored, what becomes of failures; patch, unpatch."""

import copy
import importlib
import itertools
import multiprocessing
import os
import pickle
import random
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imitated import IMITATION, known
from torch import nn

from toco_kernels import compat
from toco_kernels.port import agree, registry, report, slots
from toco_kernels.port.registry import Approximate, Exact, Stochastic
from toco_kernels.port.verify import NotImportable, OriginalRaises, Verdict, verify

EXACT, CLOSE = Exact(), Approximate(1e-5)


def double(x):
    return x * 2


def tensor(*shape):
    return torch.randn(*shape, requires_grad=True)


def judged(original, ours, *args, guarantee=EXACT, **kwargs):
    return verify(original, ours, args, kwargs, guarantee)


def test_equal_is_verified_and_measured():
    verdict = judged(double, lambda x: x + x, tensor(4, 3))
    assert (verdict.ours, verdict.state, verdict.detail) == (True, "verified", "")
    for cost in (verdict.before, verdict.after):
        assert cost.ms > 0
        assert cost.mb is None or cost.mb >= 0


@pytest.mark.parametrize(
    ("ours", "guarantee", "problem"),
    [
        (lambda x: x * 2 + 1e-3, EXACT, "12 of 12 values differ"),
        (lambda x: x * (2 + 1e-3), CLOSE, "the bound is 1e-05 of it"),
        (lambda x: x.detach() * 2, EXACT, "gradients: only one of the two has them"),
        (lambda x: x * 2 + (x - x.detach()), CLOSE, "gradient 0: "),
        (lambda x: x.flatten() * 2, EXACT, "the original has shape torch.Size([4, 3])"),
        (lambda x: x.double() * 2, EXACT, "the original has dtype torch.float32"),
        (lambda x: (x * 2, x), EXACT, "ours a tuple of 2"),
        (lambda x: (x * 2).masked_fill(x == x.max(), torch.nan), CLOSE, "not finite where"),
        (lambda x: x.mul_(2), EXACT, "the original writes to 0 of its inputs, ours to 1"),
        (lambda x: torch.rand(1) * 0 + x * 2, EXACT, "generators of random numbers"),
        (lambda x: x * 2 + np.random.rand() * 0, CLOSE, "generators of random numbers"),
        (lambda x: x * 2 + random.random() * 0, CLOSE, "generators of random numbers"),
        (lambda x: x.reshape(7), EXACT, "ours raises RuntimeError"),
    ],
)
def test_what_differs(ours, guarantee, problem):
    verdict = judged(double, ours, tensor(4, 3), guarantee=guarantee)
    assert (verdict.ours, verdict.state) == (False, "differs")
    assert problem in verdict.detail


def test_what_a_guarantee_allows():
    x = tensor(4, 3)
    assert judged(double, lambda x: x * (2 + 1e-6), x, guarantee=CLOSE).ours
    assert judged(double, lambda x: torch.rand_like(x) * x, x, guarantee=Stochastic()).ours
    assert not judged(double, lambda x: torch.full_like(x, torch.nan) * x, x, guarantee=Stochastic()).ours
    half = x.detach().to(torch.bfloat16)
    assert judged(double, lambda x: x * 2.02, half, guarantee=CLOSE).ours, "half precision has its own rounding"
    labels = torch.zeros(100)
    few = Approximate(labels=0.05)
    assert judged(torch.clone, lambda x: x.index_fill(0, torch.arange(5), 7), labels, guarantee=few).ours
    assert not judged(torch.clone, lambda x: x.index_fill(0, torch.arange(6), 7), labels, guarantee=few).ours


def test_nan_equals_nan():
    x = torch.tensor([1.0, torch.nan, torch.inf])
    assert judged(double, lambda x: x + x, x).ours
    assert judged(double, lambda x: x + x, x, guarantee=CLOSE).ours


def test_the_callers_things_stay():
    """Inputs, generators, buffers and gradients are afterwards what they were."""
    network = nn.BatchNorm1d(3)
    network.extra = nn.Buffer(torch.ones(2))
    x, array = tensor(4, 3), torch.zeros(2)
    generator = torch.Generator().manual_seed(5)

    def careless(network, x, array, generator):
        array += 1
        network.extra = torch.zeros(2)
        return network(x) + torch.rand(1) + torch.rand(1, generator=generator) + np.random.rand() + random.random()

    before = {name: value.clone() for name, value in network.state_dict().items()}
    extra, kept = network.extra, x.detach().clone()
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate(), generator.get_state()
    assert judged(careless, careless, network, x, array, generator).ours
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert torch.equal(states[3], generator.get_state())
    assert network.extra is extra
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert network.weight.grad is None
    assert not array.any()


def test_inputs_may_be_written_to():
    """In place, also where they require a gradient and are no leaves; one tensor given twice stays one."""

    def in_place(x, same):
        same.mul_(2)
        return x + 1

    x = tensor(3) * 1
    assert judged(in_place, lambda x, same: x.mul_(2) + 1, x, x).ours
    assert not judged(in_place, lambda x, same: x * 2 + 1, x, x).ours


class Memory:
    """An original that has room for some images only."""

    def __init__(self, images, error):
        self.images, self.error, self.seen = images, error, []

    def __call__(self, x, boxes, scale):
        self.seen.append((len(x), len(boxes)))
        if len(x) > self.images:
            raise self.error
        return x * scale


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried"), MemoryError()]
)
def test_out_of_memory(error):
    boxes = [[0, 1, 0, 1]] * 8
    original = Memory(3, error)
    verdict = judged(original, lambda x, boxes, scale: scale * x, torch.ones(8, 2), boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "verified")
    assert verdict.detail == "on 2 of 8 images, for the memory that comparing takes"
    assert list(dict.fromkeys(original.seen)) == [(8, 8), (4, 4), (2, 2)]
    verdict = judged(Memory(0, error), lambda x, boxes, scale: scale * x, torch.ones(8, 2), boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "original out of memory")


def test_out_of_memory_of_ours():
    """Beside what the original has left; where ours alone is short of it, the original stays."""
    x, boxes = torch.ones(8, 2), [[0, 1, 0, 1]] * 8
    ours = Memory(4, MemoryError())
    verdict = judged(Memory(8, None), ours, x, boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "verified")
    assert verdict.detail.startswith("on 4 of 8 images")
    verdict = judged(Memory(8, None), Memory(0, MemoryError("none")), x, boxes, 3.0)
    assert (verdict.ours, verdict.detail) == (False, "ours raises MemoryError: none")


def test_an_original_that_cannot_run():
    def raising(error):
        def original(x):
            raise error

        return original

    x = torch.ones(2)
    for error in (ModuleNotFoundError("No module named 'bilateralfilter'"), NameError("bilateralfilter_batch")):
        verdict = judged(raising(error), double, x)
        assert (verdict.ours, verdict.state) == (True, "original not importable")
        assert verdict.detail == str(error)
    if not torch.cuda.is_available():
        verdict = judged(raising(AssertionError("Torch not compiled with CUDA enabled")), double, x)
        assert (verdict.ours, verdict.state) == (True, "original needs CUDA")
    with pytest.raises(OriginalRaises):
        judged(raising(ValueError("bad label")), double, x)


def test_arrays_are_copied_and_inference_is_no_obstacle():
    array = np.zeros(2)

    def original(x, array):
        array += 1
        return x * float(array[0])

    with torch.inference_mode():
        assert judged(original, lambda x, array: x * (array[0] + 1), tensor(3), array).ours
    assert not array.any()


def test_a_parallel_model_is_compared_alone():
    """Its inner module: the parallel one might wait for ranks that do not compare just now."""
    seen = []

    def original(model, x):
        seen.append(type(model))
        return model(x)

    assert judged(original, original, nn.DataParallel(nn.Linear(2, 2)), torch.ones(3, 2)).ours
    assert set(seen) == {nn.Linear}


# Slots.


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
    (row,) = [row for row in report.of_this_process()["replaced"] if row["line"] == taken.line]
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


# compat.patch.


@pytest.fixture
def repository(monkeypatch):
    """The imitated modules, as a notebook imports them."""
    monkeypatch.syspath_prepend(str(IMITATION))
    before = set(sys.modules)
    monkeypatch.setitem(
        sys.modules, "bilateralfilter", SimpleNamespace(bilateralfilter_batch=compat.bilateralfilter_batch)
    )
    with registry.adding(known()):
        yield importlib.import_module
        compat.unpatch()
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("model", "utils", "train"):
            del sys.modules[name]


def test_patch_and_unpatch(repository):
    camutils, train = repository("utils.camutils"), repository("train")
    originals = dict(vars(camutils))
    done = compat.patch(camutils)
    by_name = {patched.name: patched for patched in done}
    assert set(by_name) == {name for name in originals if name in registry.NAMES}
    assert by_name["cam_to_label"].bindings == ("utils.camutils.cam_to_label", "train.cam_to_label")
    assert by_name["cam_to_label"].guarantee == "exact"
    assert train.cam_to_label is camutils.cam_to_label is not originals["cam_to_label"]
    assert compat.patch(camutils) == [], "once is enough"
    kept = [camutils.cam_to_label]
    unreached = compat.unpatch()
    assert unreached == ["cam_to_label in a list"]
    assert kept[0] is not camutils.cam_to_label
    assert {name: vars(camutils)[name] for name in by_name} == {name: originals[name] for name in by_name}
    assert train.cam_to_label is originals["cam_to_label"]


def test_unpatch_names_what_it_cannot_reach(repository):
    refiners = repository("model.refiners")
    compat.patch(refiners)
    module = refiners.PAR(dilations=[1], num_iter=1)

    def user(cls=refiners.PAR):
        return cls

    assert sorted(compat.unpatch()) == [
        "1 object of class PAR",
        "PAR as a default of test_unpatch_names_what_it_cannot_reach.<locals>.user",
    ]
    assert isinstance(module, compat.PAR)
    assert user() is not refiners.PAR


def test_patch_leaves_base_classes_alone(repository):
    refiners = repository("model.refiners")

    class Mine(refiners.PAR):
        pass

    assert [patched.name for patched in compat.patch(refiners)] == ["PAMR"]
    assert Mine([1], 1).kernel.shape == (8, 1, 3, 3)


def test_patched_functions_are_compared(repository):
    """With the extension at hand all that was published is verified, with its gradients."""
    train, others, losses = repository("train"), repository("model.others"), repository("model.losses")
    modules = [repository(f"model.{name}") for name in ("refiners", "resizing")]
    modules += [repository(f"utils.{name}") for name in ("camutils", "camutils_config", "camutils_pair")]
    expected = train.step()
    done = compat.patch(train, others, losses, *modules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = train.step()
    states = {(p.module, p.name): p.slot.verdict.state for p in done if p.slot.verdict}
    assert len(states) == len(done) - 4, "two helpers and two layers are never called: ours need them not"
    assert set(states.values()) == {"verified"}
    assert_same(actual, expected)


def assert_same(actual, expected):
    """Results of train.step: the same, up to rounding, and without the buffer `kernel`, which ours do not have."""
    expected["network"].pop("par.kernel")
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_patch_refuses_what_is_no_module(repository):
    with pytest.raises(TypeError, match="modules must be imported modules, got str"):
        compat.patch("utils.camutils")
    with pytest.raises(ValueError, match="modules must come from files of Python source, got sys"):
        compat.patch(sys)
