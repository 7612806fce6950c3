"""What the fuzz draws for each room: sizes, options, and changes of the values that are made for them.

`SPACES` has a space for each function of tests/rooms; one that is missing is fuzzed over its edges, in every layout.
"""

from functools import partial

import fuzz_pairs
import torch
from fuzz_space import BATCH, CLASSES, IMAGE, LABEL_DTYPES, PATCHES, SHARE, WIDTH, Space, label_type, sized
from hypothesis import strategies as st
from rooms import (
    affinity_refine,
    cam,
    cam_regularization,
    cam_training,
    class_contrast,
    dense_energy,
    patch_contrast,
    pixel_correlation,
    topk_pool,
)
from rooms import prototype_contrast as prototypes


def boxes(inputs, batch, height, width):
    """A box for each image, some empty, some reaching out of it."""
    corners = torch.randint(-3, max(height, width) + 4, (batch, 4))
    return inputs | {"boxes": corners.sort(dim=1).values[:, [0, 2, 1, 3]]}


def with_boxes(name):
    """A change: boxes that cut through the tensor of this name."""

    def change(inputs):
        return boxes(inputs, len(inputs[name]), *inputs[name].shape[-2:])

    return change


def tokens(**draws):
    labels = draws.pop("labels")
    return label_type("labels", labels)(patch_contrast.token_inputs(**draws))


def errors(width, form, **draws):
    """The logarithm of 1 minus a cosine knows no bounds where vectors are parallel, as those of few channels are."""
    return patch_contrast.error_inputs(width=width + 16 if form == "log" else width, form=form, **draws)


def pools(patches, share, counted, batch, classes):
    k = torch.randint(-1, patches + 3, (batch, classes)) if counted else 1 + int(share * (patches - 1))
    return topk_pool.pool_inputs(batch, patches, classes, k=k)


def linear_pools(patches, share, counted, batch, classes, width, bias, softmax, seed):
    k = torch.randint(-1, patches + 3, (batch, classes)) if counted else 1 + int(share * (patches - 1))
    return topk_pool.linear_inputs(batch, patches, width, classes, k=k, bias=bias, softmax=softmax, seed=seed)


def merges(height, width, grids, out, **others):
    out_size = {} if out is None else {"out_size": out}
    return cam.map_inputs(size=(height, width), scales=grids, **others, **out_size)


def merges_to_labels(high, low, **others):
    return merges(**others) | {"high": high, "low": low}


def refines(down_scale, **others):
    inputs = affinity_refine.label_inputs(**others)
    return inputs | {"down_scale": down_scale, "boxes": None}


def crops(height, width, share, crops, **others):
    """Squares that leave a pixel between margins of half their side, and no more of them than there are such pixels."""
    size = 1 + int(share * (min(height, width) - 2))
    places = (height - 2 * (size // 2)) * (width - 2 * (size // 2))
    return cam_training.crop_inputs(height=height, width=width, size=size, crops=min(crops, places), **others)


def estimates(height, width, channels, share, **others):
    k = 1 + int(share * (height * width - 1))
    return prototypes.prototype_inputs(width=channels, size=(height, width), k=k, **others)


def views(height, width, other_height, other_width, first, second, **others):
    """Maps of two views, on their grids or stretched."""
    sizes = None if first is None else (first, second)
    return cam_regularization.seam_inputs(
        size=(height, width), other_size=(other_height, other_width), sizes=sizes, **others
    )


def one_view(height, width, first, **others):
    return cam_regularization.pooling_inputs(size=(height, width), **others) | {"size": first}


def filters(kernel, batch, classes, height, width, **sigmas):
    return dense_energy.filter_inputs(kernel, batch, classes, height, width, **sigmas)


def energies_from_logits(kernel, batch, height, width, **others):
    inputs = dense_energy.logit_inputs(kernel, batch, height=height, width=width, **others)
    return boxes(inputs, batch, height, width)


LIMITS = {"high": st.floats(0.3, 0.9), "low": st.floats(0.05, 0.3)}
DILATIONS = st.lists(st.integers(1, 7), min_size=1, max_size=3, unique=True).map(sorted)
# No side of 1: a map that is constant but for rounding is divided by the 1e-5 that its range is increased by.
GRIDS = st.lists(st.tuples(st.integers(2, 7), st.integers(2, 7)), min_size=1, max_size=3)
MAPS = {
    "batch": BATCH,
    "classes": CLASSES,
    "height": st.integers(2, 40),
    "width": st.integers(2, 40),
    "grids": GRIDS,
    "out": st.none() | st.tuples(st.integers(2, 30), st.integers(2, 30)),
}
SIGMAS = {"sigma_rgb": st.floats(1, 60), "sigma_xy": st.floats(1, 60)}

VIEW = st.tuples(st.integers(2, 40), st.integers(2, 40))
TWO = st.integers(2, 12)

SPACES = fuzz_pairs.SPACES | {
    "seam_losses": Space(
        views,
        {
            "batch": BATCH,
            "classes": CLASSES,
            "height": TWO,
            "width": TWO,
            "other_height": TWO,
            "other_width": TWO,
            "first": st.none() | VIEW,
            "second": VIEW,
            "present": SHARE,
            "share": st.sampled_from([0.2, 0.01, 1.0]),
        },
        (cam_regularization.raised,),
    ),
    "adaptive_min_pooling_loss": Space(
        one_view,
        {"batch": BATCH, "classes": CLASSES, "height": TWO, "width": TWO, "first": st.none() | VIEW, "present": SHARE},
        (cam_regularization.raised,),
    ),
    "affinity_refine": Space(
        affinity_refine.refine_inputs,
        {
            "batch": BATCH,
            "channels": CLASSES,
            **IMAGE,
            "colours": st.integers(1, 4),
            "dilations": DILATIONS,
            "iterations": st.integers(0, 4),
            "kind": st.sampled_from(["par", "pamr"]),
        },
        (affinity_refine.flat,),
    ),
    "refine_cam_labels": Space(
        refines,
        {
            "batch": BATCH,
            "classes": CLASSES,
            "height": st.integers(4, 24),
            "width": st.integers(4, 24),
            "dilations": DILATIONS,
            "iterations": st.integers(0, 3),
            "down_scale": st.integers(1, 3),
            **LIMITS,
        },
        (with_boxes("cams"),),
    ),
    "cam_to_label": Space(
        partial(sized, cam.cam_inputs),
        {"batch": BATCH, "classes": CLASSES, **IMAGE, "maps": st.just(False), **LIMITS},
        (cam.with_ties, with_boxes("cams")),
    ),
    "cam_to_roi": Space(
        partial(sized, cam.cam_inputs), {"batch": BATCH, "classes": CLASSES, **IMAGE, **LIMITS}, (cam.with_ties,)
    ),
    "merge_cams": Space(merges, MAPS, (cam.spoilt, partial(cam.constant, value=0.0))),
    "merge_cams_to_labels": Space(merges_to_labels, MAPS | LIMITS, (cam.spoilt,)),
    "merge_cams_to_roi": Space(merges_to_labels, MAPS | LIMITS, (cam.spoilt,)),
    "crop_uncertain": Space(
        crops,
        {
            "batch": BATCH,
            "channels": st.integers(1, 4),
            "height": st.integers(2, 30),
            "width": st.integers(2, 30),
            "crops": st.integers(1, 6),
            "uncertain": st.sampled_from([0.3, 0.6, 0.7, 0.99]),
            "share": SHARE,
        },
    ),
    "segmentation_loss": Space(
        partial(sized, cam_training.loss_inputs),
        {
            "batch": BATCH,
            "classes": CLASSES,
            **IMAGE,
            "scale": st.sampled_from([0.0, 1.0, 8.0]),
            "dtype": LABEL_DTYPES,
        },
        (cam_training.spoilt_logits,),
    ),
    "class_token_contrast": Space(
        class_contrast.class_contrast_inputs,
        {
            "batch": BATCH,
            "crops": st.integers(2, 11),
            "width": WIDTH,
            "scale": st.sampled_from([0.0, 1.0, 4.0]),
            "temperature": st.floats(0.3, 2),
        },
    ),
    "patch_token_contrast": Space(
        tokens,
        {
            "batch": BATCH,
            "patches": PATCHES,
            "width": WIDTH,
            "classes": CLASSES,
            "ignored": SHARE,
            "labels": LABEL_DTYPES,
        },
        (patch_contrast.alike, patch_contrast.with_zeros, patch_contrast.with_nan),
    ),
    "patch_contrastive_error": Space(
        errors,
        {
            "batch": st.integers(1, 3),
            "patches": PATCHES,
            "width": WIDTH,
            "classes": st.integers(2, 9),
            "confidence": st.sampled_from([3.0, 6.0, 20.0]),
            "threshold": st.sampled_from([0.5, 0.9, 0.95]),
            "form": st.sampled_from(["linear", "log"]),
        },
    ),
    "topk_pool": Space(
        pools,
        {"batch": BATCH, "patches": PATCHES, "classes": CLASSES, "share": SHARE, "counted": st.booleans()},
        (topk_pool.with_ties,),
    ),
    "linear_topk_pool": Space(
        linear_pools,
        {
            "batch": BATCH,
            "patches": PATCHES,
            "width": WIDTH,
            "classes": CLASSES,
            "share": SHARE,
            "counted": st.booleans(),
            "bias": st.booleans(),
            "softmax": st.booleans(),
            "seed": st.integers(0, 1 << 30),
        },
    ),
    "pixel_correlation": Space(
        partial(sized, pixel_correlation.correlation_inputs),
        {"batch": BATCH, "channels": WIDTH, "classes": CLASSES, **IMAGE},
        (pixel_correlation.alike, pixel_correlation.with_zeros),
    ),
    "prototype_contrast": Space(
        partial(sized, prototypes.contrast_inputs),
        {
            "batch": BATCH,
            "channels": WIDTH,
            "classes": CLASSES,
            **IMAGE,
            "ignored": SHARE,
            "dtype": LABEL_DTYPES,
            "temperature": st.sampled_from([0.1, 0.5]),
        },
        (prototypes.after_relu, prototypes.with_nan),
    ),
    "estimate_prototypes": Space(
        estimates, {"batch": BATCH, "channels": WIDTH, "classes": CLASSES, **IMAGE, "share": SHARE}
    ),
}
for kernel in ("lattice", "exact"):
    maps = {"batch": BATCH, "classes": CLASSES, **IMAGE}
    SPACES[f"{kernel}_energy"] = Space(
        partial(dense_energy.energy_inputs, kernel), maps | SIGMAS, (dense_energy.one_colour,)
    )
    SPACES[f"{kernel}_filter"] = Space(partial(filters, kernel), maps | SIGMAS, (dense_energy.one_colour,))
    SPACES[f"{kernel}_energy_from_logits"] = Space(
        partial(energies_from_logits, kernel),
        maps | SIGMAS | {"height": st.integers(2, 20), "width": st.integers(2, 20)},
        (dense_energy.one_colour,),
    )
    SPACES[f"{kernel}_crf"] = Space(
        partial(dense_energy.crf_inputs, kernel), maps | {"iterations": st.integers(0, 3)}, (dense_energy.one_colour,)
    )
