"""compat.patch and compat.unpatch, on the imitated modules."""

import importlib
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from imitated import IMITATION, known

from toco_kernels import compat
from toco_kernels.port import registry
from toco_kernels.port.registry import Approximate, Exact

EXACT, CLOSE = Exact(), Approximate(1e-5)


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
