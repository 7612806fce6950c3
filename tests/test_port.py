"""What is recognised, and `python -m toco_kernels port`: the diff, and what it leaves alone."""

import functools
import inspect
import json
import shutil
import subprocess
import sys

import pytest
import torch
from imitated import IMITATION, VARIANTS, fingerprints, known

from toco_kernels import compat
from toco_kernels.__main__ import main
from toco_kernels.compat import variants
from toco_kernels.port import registry
from toco_kernels.port.analysis import analyse


def test_every_replacement_exists_and_has_the_published_name():
    fingerprints = [fingerprint for r in registry.REPLACEMENTS for fingerprint in r.fingerprints]
    assert len(fingerprints) == len(set(fingerprints)) == 41
    for replacement in registry.REPLACEMENTS:
        assert callable(replacement.load()), replacement
        assert replacement.published in compat.__all__
        assert str(replacement.guarantee).startswith(("exact", "approximate", "stochastic"))


def test_all_variants_are_imitated():
    imitated = {ours for names in VARIANTS.values() for ours in names.values()}
    assert imitated == {replacement.name for replacement in registry.REPLACEMENTS}
    assert len(known()) == sum(map(len, VARIANTS.values())), "no two imitations are the same"


PUBLISHED = {  # name -> what callers of published code may rely on
    "get_masked_ptc_loss": "inputs, mask",
    "label_to_aff_mask": "cam_label, ignore_index=255",
    "cams_to_affinity_label": "cam_label, mask=None, ignore_index=255, clip_flag=16",
    "get_aff_loss": "inputs, targets",
    "get_seg_loss": "pred, label, ignore_index=255",
    "get_energy_loss": "img, logit, label, img_box, loss_layer, mean=(123.675, 116.28, 103.53), "
    "std=(58.395, 57.12, 57.375)",
    "DenseEnergyLoss": "weight, sigma_rgb, sigma_xy, scale_factor",
    "CTCLoss_neg": "ncrops=10, temp=1.0",
    "CTCLoss_neg.forward": "self, student_output, teacher_output, flags",
    "PAR": "dilations, num_iter",
    "PAR.forward": "self, imgs, masks",
    "PAMR": "num_iter=1, dilations=(1,)",
    "PAMR.forward": "self, x, mask",
    "cam_to_label": "cam, cls_label, img_box=None, bkg_thre=None, high_thre=None, low_thre=None, ignore_mid=False, "
    "ignore_index=None",
    "variants.cam_to_label_of_config": "cam, cls_label, img_box=None, ignore_mid=False, cfg=None",
    "cam_to_roi_mask2": "cam, cls_label, hig_thre=None, low_thre=None",
    "crop_from_roi_neg": "images, roi_mask=None, crop_num=8, crop_size=96",
    "multi_scale_cam2": "model, inputs, scales",
    "multi_scale_cam": "model, inputs, scales",
    "refine_cams_with_bkg_v2": "ref_mod=None, images=None, cams=None, cls_labels=None, high_thre=None, low_thre=None, "
    "ignore_index=False, img_box=None, down_scale=2",
    "variants.refine_cams_with_config": "ref_mod=None, images=None, cams=None, cls_labels=None, cfg=None, "
    "img_box=None, down_scale=2",
    "refine_cams_with_dynamic_thres": "ref_mod=None, images=None, cams=None, cls_labels=None, high_thre_map=None, "
    "low_thre=None, ignore_index=False, img_box=None, down_scale=2",
    "multi_scale_cam_with_aff_mat": "model, inputs, scales",
    "propagte_aff_cam_with_bkg": "cams, aff=None, mask=None, cls_labels=None, bkg_score=None",
    "compute_trans_mat": "attn_weight, rw=1",
    "refine_cams_with_aff": "attr_map, attn_weights, cls_label, size, caa_thre=0.79, attn_layers=6, seg_attn=None",
    "scoremap2bbox": "scoremap, threshold, multi_contour_eval=False",
    "propagate_to_edge": "x, edge, radius=5, beta=10, exp_times=8",
    "adaptive_min_pooling_loss": "x",
    "max_onehot": "x",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_signatures(name):
    """By position, by keyword and by default; what ours has beyond that is optional."""
    expected = inspect.signature(eval(f"lambda {PUBLISHED[name]}: None"))
    thing = functools.reduce(getattr, name.split("."), compat)
    actual = [p.replace(annotation=p.empty) for p in inspect.signature(thing).parameters.values()]
    count = len(expected.parameters)
    assert actual[:count] == list(expected.parameters.values())
    assert all(p.default is not p.empty for p in actual[count:])


def test_signatures_are_frozen():
    """Every name of the two modules, with its parameters, as it was when it was first released."""
    lines = []
    for module in (compat, variants):
        for name in module.__all__:
            thing = getattr(module, name)
            if thing is compat.AffinityMask:
                continue
            if thing is compat.DenseEnergyLossFunction:
                thing = thing.apply
            parameters = inspect.signature(thing).parameters.values()
            bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
            lines.append(f"{module.__name__}.{name}{inspect.Signature(bare)}")
    text = "\n".join(lines) + "\n"
    expected = (IMITATION.parent / "compat.txt").read_text()
    assert text == expected, f"a new name adds a line to tests/compat.txt, which is to hold:\n\n{text}"


def test_add_refuses_what_is_not_ours():
    with pytest.raises(ValueError, match=r"the name for fingerprint 00 must be one of .*, got 'f'"):
        registry.add({"00": "f"})
    with registry.adding({"00": "PAR"}):
        assert registry.find("00").name == "PAR"
    assert registry.find("00") is None


# A repository.


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(IMITATION, folder, ignore=shutil.ignore_patterns("__pycache__"))
    also = tmp_path / "known.json"
    also.write_text(json.dumps(known()))
    pytest.importorskip("libcst")
    return folder, ["--also", str(also), str(folder)]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def test_diff(repository, capsys, tmp_path):
    """It can be applied, changes nothing by itself, and is what --write does; afterwards there is nothing to do."""
    folder, arguments = repository
    before = contents(folder)
    assert main(["port", *arguments]) == 0
    diff, said = capsys.readouterr()
    assert contents(folder) == before
    assert f"{sum(map(len, VARIANTS.values()))} definitions replaced" in said
    assert main(["port", "--check", *arguments]) == 1

    applied = tmp_path / "applied"
    shutil.copytree(folder, applied)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, check=True, cwd=applied)
    assert main(["port", "--write", *arguments]) == 0
    assert contents(folder) == contents(applied) != before
    capsys.readouterr()
    assert main(["port", "--check", *arguments]) == 0
    diff, said = capsys.readouterr()
    assert diff == ""
    assert said.endswith("Nothing to do.\n")


def test_what_is_written(repository):
    folder, arguments = repository
    main(["port", "--write", *arguments])
    losses, script = (folder / "model/losses.py").read_text(), (folder / "train.py").read_text()
    assert "from toco_kernels.compat import get_masked_ptc_loss\n" in losses
    assert "class DenseEnergyLoss" not in losses
    assert "from toco_kernels.compat import bilateralfilter_batch" in losses
    assert "PARResizingImages as PAR\n" in (folder / "model/resizing.py").read_text()
    assert "from toco_kernels.compat import PAMR, PAR\n" in script
    assert "from toco_kernels.compat.variants import PARResizingImages as PARResizing\n" in script
    assert "from utils import camutils_config, camutils_pair, propagation\n" in script
    assert "def get_aff_loss" not in script
    assert "def labelled(" in (folder / "utils/camutils.py").read_text(), "helpers stay"
    for name in contents(folder):
        compile((folder / name).read_bytes(), name, "exec")


def test_the_rewritten_script_runs(repository, tmp_path):
    """What it computes is what the rewritten functions compute; an old checkpoint loads into the new network."""
    folder, arguments = repository
    main(["port", "--write", *arguments])
    out = tmp_path / "out.pt"
    done = subprocess.run([sys.executable, "train.py", str(out)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained -1\n"
    results = torch.load(out, weights_only=False)
    assert "par.kernel" not in results["network"]
    assert results["energy"].item() < 0


def test_unknown_is_left_alone(tmp_path, capsys):
    pytest.importorskip("libcst")
    source = "def get_masked_ptc_loss(inputs, mask):\n    return inputs.mean()\n"
    (tmp_path / "losses.py").write_text(source)
    (tmp_path / "old.py").write_text("print 'Python 2'\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/file.py").write_text("import numpy as np\nx = np.float\n")
    assert main(["port", "--check", str(tmp_path)]) == 0
    diff, said = capsys.readouterr()
    assert diff == ""
    unknown = fingerprints(source)["get_masked_ptc_loss"]
    assert f"losses.py:1: get_masked_ptc_loss: not a known variant (fingerprint {unknown})" in said
    assert "old.py: cannot be parsed" in said
    assert f'To have ours tried in place of get_masked_ptc_loss all the same, write {{"{unknown}": ' in said


def test_also_tells_what_it_does_not_meet(tmp_path, capsys):
    """A fingerprint of a function that has been changed since."""
    pytest.importorskip("libcst")
    (tmp_path / "losses.py").write_text("def get_seg_loss(pred, label):\n    return pred.mean()\n")
    (tmp_path / "also.json").write_text('{"00": "get_seg_loss"}')
    assert main(["port", "--also", str(tmp_path / "also.json"), str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "--also: no definition here has the fingerprint 00" in said
    assert '"get_seg_loss" or "get_seg_loss_finite"}' in said


def test_a_base_class_is_left_alone(repository, capsys):
    """Whoever derives from a class may rely on its insides, in the same file or in another."""
    folder, arguments = repository
    (folder / "mine.py").write_text("from model import refiners\n\nclass Mine(refiners.PAR):\n    pass\n")
    main(["port", "--write", *arguments])
    assert "class PAR(" in (folder / "model/refiners.py").read_text()
    assert "known as PAR, but a class is derived from it" in capsys.readouterr().err
    source = "class PAR:\n    pass\n\nclass Mine(PAR):\n    pass\n"
    with registry.adding({fingerprints(source)["PAR"]: "PAR"}):
        analysis = analyse(source, "file.py")
    assert not analysis.matches
    assert "known as PAR, but a class here is derived from it" in analysis.left[0][2]


def test_bytes_outside_of_changes_stay(tmp_path):
    """Line ends, encodings and columns after characters of several bytes."""
    pytest.importorskip("libcst")
    file = tmp_path / "file.py"
    file.write_bytes("import numpy as np\r\nx = ['é', np.float, \"ü\"]  # ö\r\n\r\nif x: y = np.int".encode())
    assert main(["port", "--write", str(file)]) == 0
    text = file.read_bytes().decode()
    assert "x = ['é', float, \"ü\"]  # ö\r\n\r\n" in text
    assert text.endswith("if x: y = int")
    assert text.replace("\r\n", "").count("\n") == 0


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (None, "argument PATH: must be a folder or a file"),
        ("[]", "argument --also: must be a file of JSON {fingerprint: name}, got"),
        ("{", "argument --also: must be a file of JSON {fingerprint: name}, got"),
        ('{"00": "f"}', "argument --also: the name for fingerprint 00 must be one of"),
    ],
)
def test_port_refuses_bad_arguments(also, message, capsys, tmp_path):
    pytest.importorskip("libcst")
    options = ["/no/such/folder"]
    if also is not None:
        (tmp_path / "also.json").write_text(also)
        options = ["--also", str(tmp_path / "also.json"), str(tmp_path)]
    with pytest.raises(SystemExit):
        main(["port", *options])
    assert message in capsys.readouterr().err
