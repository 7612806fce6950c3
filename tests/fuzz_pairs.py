"""What the fuzz draws for propagation along affinities, for losses over pairs, and for PPC's whole contrast."""

from functools import partial

import torch
from fuzz_space import BATCH, CLASSES, IMAGE, LABEL_DTYPES, SHARE, SIDE, WIDTH, Space, label_type
from hypothesis import strategies as st
from rooms import affinity_propagate, pair_contrast
from rooms import prototype_contrast as prototypes


def attentions(height, width, channels, scale, **others):
    """Scores between 0, where all patches attend to all, and a scale where they attend to few."""
    inputs = affinity_propagate.attention_inputs(size=(height, width), width=channels, **others)
    return inputs | {"queries": inputs["queries"] * scale}


def one_head(inputs):
    """The first head alone, without a dimension for it, and maps without a grid."""
    return inputs | {n: inputs[n][:, 0] for n in ("queries", "keys")} | {"cams": inputs["cams"].flatten(2)}


def boxed(inputs):
    """A mask of its own for each map."""
    return inputs | {"box_mask": torch.rand(inputs["cams"].shape) < 0.5}


def hard_edges(inputs):
    """Edges, or affinities, of 0 and 1 alone."""
    return inputs | {"edges": (inputs["edges"] > 0.8).double()}


def blobs(inputs, levels=4):
    """Maps of few values, whose regions touch at sides and corners, and whose holes are regions of others."""
    return inputs | {"cams": (inputs["cams"] * levels).round() / levels}


def one_nan(inputs):
    """NaN somewhere in the first map of each image."""
    cams = inputs["cams"].clone()
    cams[:, 0, -1, 0] = torch.nan
    return inputs | {"cams": cams}


def affinities(height, width, channels, labels, **others):
    return label_type("labels", labels)(pair_contrast.affinity_inputs(size=(height, width), width=channels, **others))


def nan_in_ignored(inputs):
    """In the features of ignored patches, of either layout."""
    ignored = inputs["labels"] == 255
    ignored = ignored[:, None] if inputs["features"].ndim == 4 else ignored.flatten(1)[..., None]
    return inputs | {"features": inputs["features"].masked_fill(ignored, torch.nan)}


def thresholded(threshold, **others):
    return affinity_propagate.box_inputs(**others) | {"threshold": threshold}


def pairs(batch, form, temperature, sets, labels, **others):
    """Cosines have no temperature; x and y are batches, y is shared by a batch of x, or both are one set."""
    options = {} if form == "abs_cos" else {"temperature": temperature}
    inputs = pair_contrast.pair_inputs(batch, form=form, **options, **others)
    for name in ("labels_x", "labels_y"):
        inputs = label_type(name, labels)(inputs)
    if sets == "one":
        return pair_contrast.one_set(inputs)
    return pair_contrast.shared_set(inputs) if sets == "shared" and batch else inputs


def zero_pairs(inputs):
    return pair_contrast.zeros_among(pair_contrast.zeros_among(inputs, "x"), "y")


def near_pairs(inputs):
    """All tokens share a direction."""
    direction = torch.randn(inputs["x"].shape[-1], dtype=torch.float64)
    return inputs | {name: direction + inputs[name] / 10 for name in ("x", "y")}


def nan_pairs(inputs):
    """NaN in ignored tokens of both sides."""
    for name, labels in (("x", "labels_x"), ("y", "labels_y")):
        inputs = pair_contrast.nan_where_ignored(inputs, name, labels)
    return inputs


def steps(height, width, other_height, other_width, channels, **others):
    return prototypes.step_inputs(
        width=channels, size=(height, width), other_size=(other_height, other_width), **others
    )


SPACES = {
    "propagate_attention": Space(
        attentions,
        {
            "batch": BATCH,
            "heads": st.integers(1, 4),
            **IMAGE,
            "channels": st.integers(1, 40),
            "classes": CLASSES,
            "extra": st.integers(0, 3),
            "scale": st.sampled_from([0.0, 1.0, 4.0]),
            "steps": st.integers(0, 3),
            "sinkhorn": st.integers(0, 3),
        },
        (one_head, boxed),
    ),
    "random_walk": Space(
        affinity_propagate.walk_inputs,
        {
            "batch": BATCH,
            "classes": CLASSES,
            **IMAGE,
            "pairs": st.booleans(),
            "radius": st.integers(1, 6),
            "beta": st.floats(0.3, 12),
            "steps": st.integers(0, 20),
        },
        (hard_edges,),
    ),
    "component_boxes": Space(
        thresholded,
        {"batch": BATCH, "classes": CLASSES, **IMAGE, "threshold": st.integers(-8, 44).map(lambda n: n / 40)},
        (blobs, one_nan),
    ),
    "affinity_loss": Space(
        affinities,
        {
            "batch": BATCH,
            **IMAGE,
            "channels": WIDTH,
            "classes": CLASSES,
            "ignored": SHARE,
            "labels": LABEL_DTYPES,
            "image": st.booleans(),
            "radius": st.none() | st.integers(0, 12),
            "scale": st.sampled_from([1.0, 3.0, -0.5, 20.0]),
            "normalize": st.booleans(),
            "center": st.booleans(),
        },
        (nan_in_ignored, partial(pair_contrast.zeros_among, name="features")),
    ),
    "contrast": Space(
        pairs,
        {
            "batch": BATCH,
            "count": st.integers(0, 70),
            "others": st.integers(0, 70),
            "width": WIDTH,
            "classes": CLASSES,
            "ignored": SHARE,
            "labels": LABEL_DTYPES,
            "form": st.sampled_from(["info_nce", "abs_cos", "sigmoid"]),
            "temperature": st.floats(0.05, 2),
            "normalize": st.booleans(),
            "sets": st.sampled_from(["batches", "shared", "one"]),
        },
        (zero_pairs, nan_pairs, near_pairs),
    ),
    "pixel_prototype_contrast": Space(
        steps,
        {
            "batch": BATCH,
            "channels": st.integers(1, 40),
            **IMAGE,
            "other_height": SIDE,
            "other_width": SIDE,
            "classes": CLASSES,
            "k": st.integers(1, 40),
            "present": SHARE,
            "background_score": st.floats(0.05, 0.6),
            "temperature": st.sampled_from([0.1, 0.5]),
            "weights": st.sampled_from([(0.1, 0.1, 0.1), (1.0, 0.0, 0.5)]),
        },
    ),
}
