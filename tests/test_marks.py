"""`make gpu` runs what needs a GPU: tests marked gpu, and those of the fixture `device`."""

from types import SimpleNamespace

import conftest
import pytest


class Item:
    """What pytest collects, as far as the hook looks at it."""

    def __init__(self, **params):
        self.callspec, self.keywords, self.marks = SimpleNamespace(params=params), {}, []

    def add_marker(self, mark):
        self.marks.append(mark.name)
        self.keywords[mark.name] = mark


@pytest.mark.parametrize("there", [True, False])
def test_tests_on_cuda_are_marked(monkeypatch, there):
    monkeypatch.setattr(conftest.torch.cuda, "is_available", lambda: there)
    items = Item(device="cuda"), Item(device="cpu"), Item()
    conftest.pytest_collection_modifyitems(items)
    assert [item.marks for item in items] == [["gpu"] if there else ["gpu", "skip"], [], []]
