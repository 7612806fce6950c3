"""What no longer runs under today's packages, and what `port` writes instead."""

import ast

import numpy as np
import pytest
import torch

from toco_kernels.__main__ import main
from toco_kernels.port import shims
from toco_kernels.port.analysis import analyse
from toco_kernels.port.fingerprints import imported_names

SHIMS = [
    ("import numpy as np\nx = np.float(3)", "x = float(3)"),
    ("import numpy\nx = a.astype(numpy.int)", "x = a.astype(int)"),
    ("from numpy import array\nimport numpy as n\nx = n.NaN", "x = n.nan"),
    ("import numpy as np\nx = np.bool", "x = np.bool_"),
    ("import numpy as np\nx = np.bool8(3)", "x = np.bool_(3)"),
    ("import numpy as np\nx = np.float32(3)", None),
    ("np = 3\nx = np.float", None),
    ("import PIL.Image\nx = PIL.Image.CUBIC", "x = PIL.Image.BICUBIC"),
    ("from PIL import Image\nx = Image.ANTIALIAS", "x = Image.LANCZOS"),
    ("from PIL import Image\nx = Image.BILINEAR", None),
    ("import torch\np.add_argument('--local_rank', default=-1, type=int)", "get_node_local_rank(-1), type=int)"),
    (
        "import torch\np.add_argument('--local-rank', type=int)",
        "type=int, default=torch.distributed.get_node_local_rank(-1))",
    ),
    ("import torch\np.add_argument('--local_rank', required=True)", None),
    ("import torch\np.add_argument('--other', default=-1, type=int)", None),
    ("import torch\nd = torch.device(args.local_rank)", "d = torch.device(max(args.local_rank, 0))"),
    ("import torch\nd = torch.device('cuda')", None),
    (
        "import numpy as np\nfrom sklearn import metrics\ns = metrics.f1_score(a, b)",
        "s = np.float64(metrics.f1_score(a, b))",
    ),
    ("from bilateralfilter import bilateralfilter", "from toco_kernels.compat import bilateralfilter"),
    ("import pydensecrf.densecrf as dcrf", "import toco_kernels.numpy as dcrf"),
    ("from pydensecrf.utils import unary_from_softmax as u", "from toco_kernels.numpy import unary_from_softmax as u"),
    ("from pydensecrf.utils import compute_unary", None),
    ("import pydensecrf.densecrf as dcrf\nfrom pydensecrf.utils import create_pairwise_gaussian", None),
    ("from timm.models.layers import DropPath, to_2tuple", "from timm.layers import DropPath, to_2tuple"),
    ("from timm.models.registry import register_model", "from timm.models import register_model"),
    ("from numpy.lib.utils import deprecate\nx = 1", "pass"),
    ("from numpy.lib.utils import deprecate\nx = deprecate(f)", None),
    ("from pkg_resources import packaging", "import packaging.version"),
]


@pytest.mark.parametrize(("source", "expected"), SHIMS, ids=[source.splitlines()[-1] for source, _ in SHIMS])
def test_shims(source, expected, tmp_path):
    """Each says why, and a second run finds nothing to do."""
    pytest.importorskip("libcst")
    file = tmp_path / "file.py"
    file.write_text(source + "\n")
    assert main(["port", "--write", str(file)]) == 0
    if expected is None:
        assert file.read_text() == source + "\n"
        return
    assert expected in file.read_text()
    assert "# toco_kernels: " in file.read_text()
    assert main(["port", "--check", str(file)]) == 0


def test_the_rest_of_pydensecrf_is_left_alone():
    """With half of its imports replaced, what needs more of it would fail later, and less clearly."""
    analysis = analyse(
        "import pydensecrf.densecrf as dcrf\nfrom pydensecrf.utils import unary_from_labels, x\n", "a.py"
    )
    assert analysis.shims == []
    assert analysis.left == [("pydensecrf", 2, "no counterpart here for all of unary_from_labels, x")]


def test_shims_mean_the_same():
    """What is written instead is there, and is what the old name was."""
    assert isinstance(torch.distributed.get_node_local_rank(-1), int)
    for name in shims._RENAMED.values():
        assert hasattr(np, name)
    tree = ast.parse("import sys, numpy as np\nsys.path.append('/somewhere')\n")
    assert shims.added_folders(tree) == ["/somewhere"]
    assert imported_names(tree) == {"sys": "sys", "np": "numpy"}
    image = pytest.importorskip("PIL.Image")
    for name in shims._PILLOW.values():
        assert hasattr(image, name)
