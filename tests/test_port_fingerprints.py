"""Fingerprints of definitions: what makes a difference, and what does not."""

import textwrap

import pytest
from imitated import fingerprints


def fingerprint(source, name="f"):
    return fingerprints(textwrap.dedent(source))[name]


PLAIN = """
import torch.nn.functional as F

EPS = 1e-8

def helper(x):
    return x + EPS

def f(x, scale=2):
    total = 0
    for row in x:
        total = total + F.relu(helper(row)) * scale
    return total
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total", "result"),
        ("for row in x", "for every_row in x  # a comment"),
        ("    total = 0", '    """What it does."""\n    total: int = 0'),
        ("def f(x, scale=2)", "def f(x: 'Tensor', scale: int = 2) -> 'Tensor'"),
        ("import torch.nn.functional as F", "from torch.nn import functional as F"),
        ("F.relu", "torch.nn.functional.relu"),
        ("helper", "assist"),
        ("EPS = 1e-8", "EPS: float = 1e-8"),
        ("total + F", "(\n        total + F"),
    ],
)
def test_spelling_makes_no_difference(old, new):
    changed = PLAIN.replace(old, new).replace("for every_row in x  # a comment:", "for every_row in x:  # a comment")
    if "every_row" in new:
        changed = changed.replace("helper(row)", "helper(every_row)")
    if "torch.nn.functional.relu" in new:
        changed = changed.replace("import torch.nn.functional as F", "import torch.nn")
    if "(\n" in new:
        changed = changed.replace("* scale", "* scale)")
    assert changed != PLAIN
    assert fingerprint(changed) == fingerprint(PLAIN)


def test_the_name_makes_no_difference():
    assert fingerprint(PLAIN.replace("def f(", "def g("), "g") == fingerprint(PLAIN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale=2", "scale=3"),
        ("scale", "factor"),  # callers may use it as a keyword
        ("F.relu", "F.gelu"),
        ("import torch.nn.functional as F", "import mine as F"),
        ("return x + EPS", "return x - EPS"),
        ("1e-8", "1e-6"),
        ("def f(", "@staticmethod\ndef f("),
        ("return total", "return -total"),
        ("EPS = 1e-8", "EPS, OTHER = 1e-8, 1"),
        ("EPS = 1e-8", "EPS = 1e-8\nEPS *= 2"),
        ("EPS = 1e-8", "EPS = 1e-8\nfor EPS in range(3):\n    pass"),
        ("EPS = 1e-8", "EPS = 1e-8\nif OLD:\n    EPS = 1e-6"),
        ("EPS = 1e-8", "EPS = 1e-8\ndef change():\n    global EPS\n    EPS = 1"),
        ("EPS = 1e-8", "EPS = 1e-8\nF = None"),
    ],
)
def test_meaning_makes_a_difference(old, new):
    """Also that of a helper, and of a constant that a helper uses, wherever it gets its value."""
    assert fingerprint(PLAIN.replace(old, new)) != fingerprint(PLAIN)


@pytest.mark.parametrize(
    "function",
    [
        "def f(x, EPS=EPS):\n    return x + EPS\n",
        "def f(x):\n    g = lambda EPS: EPS\n    return g(x) + EPS\n",
        "def f(x):\n    return [EPS for EPS in x] + [EPS]\n",
    ],
)
def test_a_constant_counts_beside_a_local_of_its_name(function):
    assert fingerprint("EPS = 1\n" + function) != fingerprint("EPS = 2\n" + function)


def test_classes_and_recursion():
    source = """
    class f(Base):
        def __init__(self, n):
            super(f, self).__init__()
            self.n = n
        def forward(self, x):
            return again(x, self.n)
    def again(x, n):
        return again(x, n - 1) if n else x
    """
    assert fingerprint(source) == fingerprint(source.replace("return again(x, self.n)", "return  again( x, self.n )"))
    for old, new in (("(Base)", "(Other)"), ("forward", "call"), ("n - 1", "n - 2"), ("self.n = n", "self.n = 1")):
        assert fingerprint(source) != fingerprint(source.replace(old, new)), old


def test_the_last_of_one_name_counts():
    twice = "def f():\n    return 1\ndef f():\n    return 2\n"
    assert fingerprint(twice) == fingerprint("def f():\n    return 2\n")
    assert fingerprints(twice + "from ours import f\n") == {}


def test_fingerprints_are_the_same_everywhere():
    """Under every Python: a fixed text has a fixed fingerprint."""
    assert fingerprint(PLAIN) == "202ec7dc90f8e2d9"
