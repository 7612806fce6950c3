"""What is particular to affinity_refine; the rest is in test_contract.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rooms import label_inputs, refine_inputs
from torch import nn

import toco_kernels
import toco_kernels.numpy
from toco_kernels import PAMR, PAR, affinity_refine, compat, refine_cam_labels
from toco_kernels.affinity_refine import reference
from toco_kernels.affinity_refine.op import DILATIONS
from toco_kernels.testing import assert_matches_reference, assert_within_budget, reference_only

KINDS = ["par", "pamr"]


def moved(inputs, device):
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


# What the authors' code returns.


def golden(name, device="cpu"):
    arrays = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return SimpleNamespace(**{key: torch.from_numpy(array).to(device) for key, array in arrays.items()})


def published(image, masks, kind):
    """The reference with the published options; masks of another size are resized as published."""
    masks = F.interpolate(masks, size=image.shape[2:], mode="bilinear", align_corners=True)
    return reference.affinity_refine(image, masks, DILATIONS, 10, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_reference(kind, device):
    theirs = golden(kind, device)
    torch.testing.assert_close(published(theirs.image, theirs.masks, kind), theirs.refined, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_golden(kind, device):
    """As near to float64 as the authors' own float32."""
    theirs = golden(kind, device)
    exact = published(theirs.image.double(), theirs.masks.double(), kind)
    actual = affinity_refine(theirs.image, theirs.masks, kind=kind)
    assert_within_budget(actual, exact=exact, eager=theirs.refined)


def test_golden_labels(device):
    theirs = golden("cam", device)
    inputs = {"image": theirs.image, "cams": theirs.valid, "image_labels": theirs.image_labels, "boxes": theirs.boxes}
    assert torch.equal(refine_cam_labels(**inputs, high=0.7, low=0.25), theirs.refined.long())
    with reference_only():
        assert torch.equal(refine_cam_labels(**inputs, high=0.7, low=0.25), theirs.refined.long())


# The modules.


def images_and_masks(device, size=(13, 18), mask_size=(7, 5)):
    image, masks = refine_inputs(height=size[0], width=size[1])["image"], torch.rand(2, 4, *mask_size)
    return image.float().to(device), masks.to(device)


def resized(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def test_sizes_that_differ(device):
    image, masks = images_and_masks(device)
    refine = lambda *args, **options: affinity_refine(*args, dilations=[1, 3], iterations=2, **options)  # noqa: E731
    assert torch.equal(refine(image, masks), refine(image, resized(masks, (13, 18))))
    assert torch.equal(refine(image, masks, resize="image"), refine(resized(image, (7, 5)), masks))


def test_no_iterations_return_a_copy(device):
    """An operator whose output were its input would confuse torch.compile."""
    image, masks = images_and_masks(device, mask_size=(13, 18))
    masks.requires_grad_()
    with reference_only():
        refined = affinity_refine(image, masks, iterations=0)
        (grad,) = torch.autograd.grad(refined, masks, ones := torch.ones_like(masks))
    assert torch.equal(refined, masks)
    assert refined.data_ptr() != masks.data_ptr()
    assert torch.equal(grad, ones)


@pytest.mark.parametrize("room", [toco_kernels, compat])
def test_modules(room, device):
    image, masks = images_and_masks(device)
    for module, options in [
        (room.PAR([1, 3], 4), {"kind": "par"}),
        (room.PAR(num_iter=4, dilations=[1, 3]), {"kind": "par"}),
        (room.PAR([1, 3], 4, resize="image"), {"kind": "par", "resize": "image"}),
        (room.PAMR(4, [1, 3]), {"kind": "pamr"}),
    ]:
        expected = affinity_refine(image, masks, dilations=[1, 3], iterations=4, **options)
        assert torch.equal(module.to(device)(image, masks), expected)
    once = affinity_refine(image, masks, dilations=[1], iterations=1, kind="pamr")
    assert torch.equal(room.PAMR()(x=image, mask=masks), once)
    assert torch.equal(room.PAR([1], 0)(imgs=image, masks=masks), resized(masks, (13, 18)))


def test_modules_explain_themselves():
    assert repr(PAR((1, 2), 10)) == "PAR(dilations=[1, 2], num_iter=10, resize='masks')"
    assert repr(PAMR()) == "PAMR(dilations=[1], num_iter=1, resize='masks')"
    for swapped in (lambda: PAR(10, [1, 2]), lambda: PAMR([1, 2], 10)):
        with pytest.raises(ValueError, match=r"^num_iter must be an integer >= 0, got \[1, 2\]"):
            swapped()


class Stencil(nn.Module):
    """What published modules keep in their checkpoints."""

    def __init__(self, taps):
        super().__init__()
        self.register_buffer("kernel", torch.ones(taps, 1, 3, 3))


def published_modules():
    return {
        "par": Stencil(8),
        "pamr": nn.ModuleDict({"aff_x": Stencil(8), "aff_m": Stencil(8), "aff_std": Stencil(9)}),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_published_checkpoints(kind):
    """They load strictly, alone and inside a model; so do checkpoints without the buffers, and nothing else does."""

    def ours():
        return {"par": PAR([1, 2], 3), "pamr": PAMR(3, [1, 2])}[kind]

    checkpoint = published_modules()[kind].state_dict()
    assert checkpoint
    ours().load_state_dict(checkpoint)
    ours().load_state_dict({name: torch.zeros(5) for name in checkpoint})
    ours().load_state_dict({})
    assert not ours().state_dict()
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight"'):
        ours().load_state_dict({**checkpoint, "weight": torch.zeros(5)})

    theirs = nn.ModuleDict({"refine": published_modules()[kind], "head": nn.Linear(2, 3)})
    model = nn.ModuleDict({"refine": ours(), "head": nn.Linear(2, 3)})
    checkpoint = theirs.state_dict()
    before = set(checkpoint)
    model.load_state_dict(checkpoint)
    assert torch.equal(model["head"].weight, theirs["head"].weight)
    assert set(checkpoint) == before, "the caller's checkpoint stays whole"
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"head.kernel"'):
        model.load_state_dict({**checkpoint, "head.kernel": torch.zeros(5)})


# CAMs to labels.


PRESENT = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]])  # no class, one, all


def label_case(device, **options):
    """CAMs rise from left to right: background, doubt, and objects."""
    inputs = label_inputs(present=PRESENT, **options)
    inputs["cams"] *= torch.linspace(0, 1.5, 27, dtype=torch.float64)
    return moved(inputs, device)


def test_images_with_different_numbers_of_classes(device):
    """A batch is what its images are, one at a time; without any class everything is background."""
    inputs = label_case(device, boxes=None)
    labels = refine_cam_labels(**inputs)
    for b in range(3):
        alone = {name: inputs[name][b : b + 1] for name in ("image", "cams", "image_labels")}
        assert torch.equal(labels[b : b + 1], refine_cam_labels(**inputs | alone))
    assert (labels[0] == 0).all()
    assert set(labels[1].unique().tolist()) == {0, 3, 255}
    assert set(labels[2].unique().tolist()) == {0, 1, 2, 3, 4, 5, 255}


def test_absent_classes_are_not_read(device):
    inputs = label_case(device)
    spoilt = inputs["cams"].masked_fill(~PRESENT.bool()[:, :, None, None].to(device), torch.nan)
    assert torch.equal(refine_cam_labels(**inputs | {"cams": spoilt}), refine_cam_labels(**inputs))


def test_thresholds_per_image(device):
    """As in DuPL: a map that is constant on each image."""
    inputs = label_case(device)
    high = torch.tensor([0.7, 0.6, 0.5], dtype=torch.float64, device=device)
    labels = refine_cam_labels(**inputs | {"high": high.view(3, 1, 1, 1).expand(3, 1, 22, 27).contiguous()})
    for b in range(3):
        assert torch.equal(labels[b], refine_cam_labels(**inputs | {"high": high[b].item()})[b])
    assert not torch.equal(labels, refine_cam_labels(**inputs | {"high": 0.7}))


def test_max_classes(device):
    """None is all of them; a number keeps the first ones."""
    inputs = label_case(device)
    assert torch.equal(refine_cam_labels(**inputs | {"max_classes": None}), refine_cam_labels(**inputs))
    first_two = PRESENT * (PRESENT.cumsum(dim=1) <= 2)
    expected = refine_cam_labels(**inputs | {"image_labels": first_two.to(device)})
    assert torch.equal(refine_cam_labels(**inputs | {"max_classes": 2}), expected)
    assert torch.equal(refine_cam_labels(**inputs | {"max_classes": 0}) % 255, torch.zeros_like(expected))


@pytest.mark.parametrize(
    "box",
    [[0, 22, 0, 27], [3, 9, 5, 6], [-7, 999, -5, -2], [8, 8, 0, 27], [9, 3, 0, 27], [40, 50, 0, 27], [-99, 4, 1, 8]],
)
def test_boxes_are_python_slices(box, device):
    inputs = label_case(device)
    everywhere = refine_cam_labels(**inputs | {"boxes": None})
    expected = torch.full_like(everywhere, 255)
    y0, y1, x0, x1 = box
    expected[:, y0:y1, x0:x1] = everywhere[:, y0:y1, x0:x1]
    assert torch.equal(refine_cam_labels(**inputs | {"boxes": torch.tensor([box] * 3, device=device)}), expected)


# The names that repositories call.


def config(high, low, ignore_index=255):
    return SimpleNamespace(
        cam=SimpleNamespace(high_thre=high, low_thre=low), dataset=SimpleNamespace(ignore_index=ignore_index)
    )


FORMS = {  # (par, images, cams, cls_labels, img_box) -> labels
    "ToCo": lambda par, images, cams, labels, box: compat.refine_cams_with_bkg_v2(
        par, images, cams=cams, cls_labels=labels, high_thre=0.7, low_thre=0.25, ignore_index=255, img_box=box
    ),
    "ToCo, by position": lambda *args: compat.refine_cams_with_bkg_v2(
        *args[:4], torch.tensor(0.7), 0.25, 255, args[4], 2
    ),
    "AFA": lambda par, images, cams, labels, box: compat.refine_cams_with_bkg_v2(
        par, images, cams=cams, cls_labels=labels, cfg=config(0.7, 0.25), img_box=box
    ),
    "AFA, by position": lambda *args: compat.refine_cams_with_bkg_v2(*args[:4], config(0.7, 0.25), args[4], 2),
    "AFA, mixed": lambda *args: compat.refine_cams_with_bkg_v2(*args[:4], config(0.7, 0.25), img_box=args[4]),
    "ExCEL": lambda par, images, cams, labels, box: compat.refine_cams_with_bkg_v2(
        ref_mod=par,
        images=images,
        cams=cams,
        cls_labels=labels,
        high_thre=0.7,
        low_thre=0.25,
        ignore_index=255,
        img_box=box,
        down_scale=2,
    ),
    "DuPL": lambda par, images, cams, labels, box: compat.refine_cams_with_dynamic_thres(
        par,
        images,
        cams=cams,
        cls_labels=labels,
        high_thre_map=torch.full((3, 1, 22, 27), 0.7),
        low_thre=0.25,
        ignore_index=255,
        img_box=box,
    ),
}
BOXES = {
    "tensor": lambda boxes: boxes,
    "lists": lambda boxes: boxes.tolist(),
    "list of tensors": list,
    "list of arrays": lambda boxes: list(boxes.numpy()),
    "none": lambda boxes: None,
}


def compat_case(device, **options):
    """Inputs, the labels of the reference with options as in ToCo, and the PAR that is to give the same."""
    inputs = label_case(device, **options)
    with reference_only():
        expected = refine_cam_labels(**inputs)
    module = {"par": compat.PAR([1, 2, 5], 4), "pamr": compat.PAMR(4, [1, 2, 5])}[inputs.get("kind", "par")]
    return inputs, expected.float(), module


@pytest.mark.parametrize("boxes", BOXES)
@pytest.mark.parametrize("form", FORMS)
def test_published_forms(form, boxes, device):
    """Boxes stay where the data loader left them, on the CPU."""
    boxes = BOXES[boxes](label_inputs()["boxes"])
    inputs, expected, par = compat_case(device, **({"boxes": None} if boxes is None else {}))
    labels = FORMS[form](par, inputs["image"], inputs["cams"], inputs["image_labels"], boxes)
    assert labels.dtype == torch.float32
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("module", ["ours", "theirs"])
@pytest.mark.parametrize(
    "options",
    [{"kind": "pamr"}, {"down_scale": 3}, {"down_scale": 1, "boxes": None}, {"maps": True}, {"ignore_index": 0}],
    ids=lambda options: ", ".join(options),
)
def test_published_options(module, options, device):
    """Through our module, and through one of the user's, which is called as published."""
    inputs, expected, refine = compat_case(device, **options)
    calls = []

    def theirs(images, masks):
        calls.append((tuple(images.shape), masks.shape[1]))
        return reference.affinity_refine(images, masks, [1, 2, 5], 4, inputs.get("kind", "par"))

    labels = compat.refine_cams_with_bkg_v2(
        refine if module == "ours" else theirs,
        inputs["image"],
        inputs["cams"],
        inputs["image_labels"],
        inputs["high"],
        inputs["low"],
        inputs.get("ignore_index", 255),
        inputs["boxes"],
        inputs.get("down_scale", 2),
    )
    assert labels.dtype == torch.float32
    assert torch.equal(labels, expected)
    scale = inputs.get("down_scale", 2)
    small = (1, 3, 22 // scale, 27 // scale)
    assert calls == ([] if module == "ours" else [(small, n) for n in (1, 1, 2, 2, 6, 6)])


def test_published_default_of_ignore_index(device):
    inputs, expected, par = compat_case(device, ignore_index=0)
    arguments = (par, inputs["image"], inputs["cams"], inputs["image_labels"], 0.7, 0.25)
    assert torch.equal(compat.refine_cams_with_bkg_v2(*arguments, img_box=inputs["boxes"]), expected)


def test_configuration_by_position(device):
    inputs, expected, par = compat_case(device, down_scale=3, ignore_index=254)
    arguments = (par, inputs["image"], inputs["cams"], inputs["image_labels"], config(0.7, 0.25, 254), inputs["boxes"])
    assert torch.equal(compat.refine_cams_with_bkg_v2(*arguments, 3), expected)
    assert torch.equal(compat.refine_cams_with_bkg_v2(*arguments, down_scale=3), expected)


def test_a_subclass_computes_what_it_computes(device):
    class Untouched(compat.PAR):
        def forward(self, imgs, masks):
            return masks

    inputs, refined, _ = compat_case(device)
    arguments = (inputs["image"], inputs["cams"], inputs["image_labels"], 0.7, 0.25, 255, inputs["boxes"])
    labels = compat.refine_cams_with_bkg_v2(Untouched([1, 2, 5], 4), *arguments)
    assert torch.equal(labels, compat.refine_cams_with_bkg_v2(compat.PAR([1], 0), *arguments))
    assert not torch.equal(labels, refined)


@pytest.mark.parametrize("missing", ["ref_mod", "images", "cams", "cls_labels", "high_thre", "low_thre"])
def test_missing_arguments_are_named(missing):
    inputs, _, par = compat_case("cpu")
    arguments = {
        "ref_mod": par,
        "images": inputs["image"],
        "cams": inputs["cams"],
        "cls_labels": inputs["image_labels"],
        "high_thre": 0.7,
        "low_thre": 0.25,
    }
    compat.refine_cams_with_bkg_v2(**arguments)
    with pytest.raises(TypeError, match=f"^{missing} must be given, got None"):
        compat.refine_cams_with_bkg_v2(**arguments | {missing: None})


@pytest.mark.parametrize("kind", ["par", "pamr"])
def test_nearly_flat_colour(kind, device):
    """Flat colour that was resized is a rounding up here and there, and its deviation must not drown in roundings."""
    flat = torch.full((1, 3, 24, 40), 0.9)
    rounded_up = torch.rand(flat.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    inputs = {
        "image": torch.where(rounded_up, flat.nextafter(torch.ones(())), flat).to(device),
        "masks": torch.rand(1, 4, 24, 40, generator=torch.Generator().manual_seed(1)).to(device),
        "dilations": [1, 2, 4, 8],
        "iterations": 10,
        "kind": kind,
    }
    assert_matches_reference(toco_kernels.affinity_refine, reference.affinity_refine, inputs, differentiable=("masks",))


def test_fast(device):
    """Affinities may have half the digits: eleven bits, where the image decides."""
    inputs = {name: value.float().to(device) for name, value in refine_inputs().items() if name in ("image", "masks")}
    exact, fast = (affinity_refine(**inputs, precision=precision) for precision in ("exact", "fast"))
    torch.testing.assert_close(fast, exact, rtol=1e-2, atol=1e-2)
