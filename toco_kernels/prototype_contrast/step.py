"""pixel_prototype_contrast: what PPC adds to a training step, in one call."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, differentiate, no_second_derivative, refuse_forward_ad, register_triton
from ..common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ..common.errors import bad_type, bad_value, integer, number
from . import reference
from .op import candidates
from .resize import resized

TERMS = ("cross_prototype", "cross_cam", "intra")


def _terms(
    features: Tensor,  # (B, D, P)
    other_features: Tensor,  # (B, D, P)
    labels: Tensor,  # (B, P)
    other_labels: Tensor,  # (B, P)
    prototypes: Tensor,  # (C, D)
    other_prototypes: Tensor,  # (C, D)
    draws: Tensor,  # (2, B, P)
    temperature: float,
) -> tuple[Tensor, Tensor]:  # (3), (2, 3, B, C, P)
    """The three terms, and their slopes: derivatives by the cosines that each is made of.

    Those are, for each view, its own prototypes' in the second and third term, and the other view's in the first.
    """
    batch, _, count = features.shape
    cosines = torch.stack(
        [
            *reference.cosines(features, prototypes, other_prototypes),
            *reference.cosines(other_features, other_prototypes, prototypes),
        ]
    )  # (4, n, C)

    def term(x: Tensor) -> Tensor:
        return reference.three_terms(
            (x[0], x[1]), (x[2], x[3]), labels.flatten(), other_labels.flatten(), draws.flatten(1), temperature
        )

    slopes = []
    for t, used in enumerate((slice(1, 4, 2), slice(0, 4, 2), slice(0, 4, 2))):
        _, grad = differentiate(lambda x, t=t: term(x)[t], cosines)
        slopes.append(grad[used].unflatten(1, (batch, count)).mT)  # (2, B, C, P)
    return term(cosines), torch.stack(slopes, dim=1)


def _terms_backward(
    grad: Tensor,  # (3)
    features: Tensor,  # (B, D, P)
    other_features: Tensor,  # (B, D, P)
    prototypes: Tensor,  # (C, D)
    other_prototypes: Tensor,  # (C, D)
    slopes: Tensor,  # (2, 3, B, C, P)
) -> tuple[Tensor, Tensor]:  # (B, D, P), (B, D, P)
    grads = []
    for view, x in enumerate((features, other_features)):
        sets = (prototypes, other_prototypes) if view == 0 else (other_prototypes, prototypes)
        weighted = (slopes[view] * grad[:, None, None, None]).mT.flatten(1, 2)  # (3, B * P, C)
        cotangent = torch.stack([weighted[1] + weighted[2], weighted[0]])
        grads.append(differentiate(lambda x, sets=sets: torch.stack(reference.cosines(x, *sets)), x, cotangent)[1])
    return tuple(grads)


_forward = define(
    "pixel_prototype_contrast(Tensor features, Tensor other_features, Tensor labels, Tensor other_labels,"
    " Tensor prototypes, Tensor other_prototypes, Tensor draws, float temperature) -> (Tensor terms, Tensor slopes)",
    room="prototype_contrast",
    reference=_terms,
    fake=lambda features, other_features, labels, other_labels, prototypes, *_: (
        features.new_empty(3),
        features.new_empty(2, 3, features.shape[0], prototypes.shape[0], features.shape[2]),
    ),
)
_backward = define(
    "pixel_prototype_contrast_backward(Tensor grad, Tensor features, Tensor other_features, Tensor prototypes,"
    " Tensor other_prototypes, Tensor slopes) -> (Tensor grad_features, Tensor grad_other_features)",
    room="prototype_contrast",
    reference=_terms_backward,
    fake=lambda grad, features, other_features, *_: (
        features.new_empty(features.shape),
        other_features.new_empty(other_features.shape),
    ),
)

register_triton("pixel_prototype_contrast")


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, other_features: Tensor, prototypes: Tensor, other_prototypes: Tensor, *others):
        labels, other_labels, draws, temperature = others
        terms, slopes = _forward(
            features, other_features, labels, other_labels, prototypes, other_prototypes, draws, temperature
        )
        ctx.save_for_backward(features, other_features, prototypes, other_prototypes, slopes)
        return terms

    @staticmethod
    def backward(ctx, grad: Tensor):
        inputs = ctx.saved_tensors
        grads = _backward(grad, *inputs)
        if torch.is_grad_enabled():  # create_graph=True
            grads = [no_second_derivative("losses have", g, x) for g, x in zip(grads, inputs, strict=False)]
        return *grads, *[None] * 6


def pixel_prototype_contrast(
    cams: Tensor,  # (B, C, H, W)
    other_cams: Tensor,  # (B, C, h, w)
    features: Tensor,  # (B, D, H, W)
    other_features: Tensor,  # (B, D, h, w)
    image_labels: Tensor,  # (B, C - 1)
    *,
    background_score: float,
    k: int,
    weights: tuple[float, float, float] = (0.1, 0.1, 0.1),
    temperature: float = 0.1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """All contrasts of one PPC step, between and within two views of the same images.

    The first view is resized to the second's size (bilinear, with aligned corners). For each view, scores are its CAMs
    stretched to 0 … 1, with a constant for the background; pseudo labels y are their largest among the classes that the
    image shows; prototypes P come from `estimate_prototypes` of all k-best pixels, from images that do not show a class
    too, as published. With F(v, y, P) the mean of `prototype_contrast` over pixels, views 1 and 2:

        cross_prototype = weights[0] / 2 * (F(v1, y1, P2) + F(v2, y2, P1))    the other view's prototypes
        cross_cam       = weights[1] / 2 * (F(v1, y2, P1) + F(v2, y1, P2))    the other view's labels
        intra           = weights[2] / 2 * (I(v1, y1, P1) + I(v2, y2, P2))    mined, within a view
        loss            = the sum of the three

    In I a pixel is contrasted with semi-hard prototypes: ranked by similarity, those of rank 4 to 13 of 21 (15 % to
    60 % of other numbers), its own among them if it ranks there, as published. I is the mean over the classes that are
    present among the labels, and for each the mean over hard pixels and as many random ones: half of its pixels are
    drawn, and of the others' ranking by similarity to their own prototype the lowest 60 % but for the very lowest tenth
    are taken; a pixel can be both. A class with a single pixel counts as present and adds 0.

    Everything is computed in float32 (float64 for float64 features), from one matrix of scores, without waiting for the
    device. One random number is drawn for each pixel of the second view's grid, for each view.

    Args:
        cams: (B, C, H, W) of the first view; class 0 is the background, whose channel is not read. float32, float64,
            float16 or bfloat16. Like all but the features, a constant: no gradient flows to it.
        other_cams: (B, C, h, w) of the second view.
        features: (B, D, H, W) projections of the first view's pixels, as the network gives them, not normalised.
        other_features: (B, D, h, w) of the second view's.
        image_labels: (B, C - 1) not 0 where an image shows a class; without background.
        background_score: of every pixel. PPC: 0.2 on SEAM, 0.1 on EPS.
        k: pixels that make a prototype. PPC: an eighth of the second view's on SEAM, a sixteenth on EPS.
        weights: of the three terms.
        temperature: divides the cosines, > 0.
        generator: of the random numbers, on the device of the features; None: the device's default one.

    Returns:
        A dict of float32 scalars (float64 for float64 features): `loss`, and its terms `cross_prototype`, `cross_cam`
        and `intra`, weighted. All are differentiable once in both features.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or an option is out of its range.

    Source: PPC (Du et al., CVPR 2022), as its code computes it.
    """
    check_step(cams, other_cams, features, other_features, image_labels)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise bad_type("generator", "be None or a torch.Generator", type(generator).__name__)
    if generator is not None and generator.device.type != features.device.type:
        raise bad_value("generator", f"be on features' device, {features.device}", generator.device)
    batch, _, *size = other_features.shape
    draws = torch.rand(2, batch, *size, generator=generator, device=features.device)
    return contrast_where_drawn(
        cams,
        other_cams,
        features,
        other_features,
        image_labels,
        draws,
        background_score=background_score,
        k=k,
        weights=weights,
        temperature=temperature,
    )


def check_step(
    cams: Tensor,  # (B, C, H, W)
    other_cams: Tensor,  # (B, C, h, w)
    features: Tensor,  # (B, D, H, W)
    other_features: Tensor,  # (B, D, h, w)
    image_labels: Tensor,  # (B, C - 1)
) -> None:
    """The tensors must be as `pixel_prototype_contrast` says."""
    shapes = {
        "cams": (cams, "(B, C, H, W)"),
        "other_cams": (other_cams, "(B, C, h, w)"),
        "features": (features, "(B, D, H, W)"),
        "other_features": (other_features, "(B, D, h, w)"),
    }
    for name, (x, shape) in shapes.items():
        check_tensor(x, name, 4, shape)
        check_floating(x, name)
    batch, width, *size = features.shape
    small = tuple(other_features.shape[2:])
    for name in ("cams", "other_cams", "other_features"):
        check_same_device(shapes[name][0], name, features, "features")
    if other_features.shape[:2] != (batch, width):
        must = f"have features' batch and width, {(batch, width)}"
        raise bad_value("other_features", must, f"shape {tuple(other_features.shape)}")
    if (len(cams), *cams.shape[2:]) != (batch, *size) or cams.shape[1] < 1:
        must = f"have features' batch and size, {(batch, *size)}, and at least one class"
        raise bad_value("cams", must, f"shape {tuple(cams.shape)}")
    if other_cams.shape != (batch, cams.shape[1], *small):
        must = f"have cams' classes and the other features' size, {(batch, cams.shape[1], *small)}"
        raise bad_value("other_cams", must, f"shape {tuple(other_cams.shape)}")
    if not all((*size, *small)):
        raise bad_value("features", "have pixels, in both views", f"sizes {tuple(size)} and {small}")
    if width < 1:
        raise bad_value("features", "have at least one channel", f"shape {tuple(features.shape)}")
    if features.dtype != other_features.dtype:
        raise bad_type("other_features", f"have features' dtype, {features.dtype}", other_features.dtype)
    checked_image_labels(image_labels, batch, cams.shape[1] - 1, features, "features")


def contrast_where_drawn(
    cams: Tensor,  # (B, C, H, W)
    other_cams: Tensor,  # (B, C, h, w)
    features: Tensor,  # (B, D, H, W)
    other_features: Tensor,  # (B, D, h, w)
    image_labels: Tensor,  # (B, C - 1)
    draws: Tensor,  # (2, B, h, w)
    *,
    background_score: float,
    k: int,
    weights: tuple[float, float, float] = (0.1, 0.1, 0.1),
    temperature: float = 0.1,
    published: bool = False,
) -> dict[str, Tensor]:
    """`pixel_prototype_contrast` with given random numbers: the pixels of a class with the lowest ones are drawn.

    With `published`, prototypes are made as in the published code: of equal scores whichever `torch.topk` takes, of the
    background's constant channel for one; and weighed by negative scores too.
    """
    check_step(cams, other_cams, features, other_features, image_labels)
    check_tensor(draws, "draws", 4, "(2, B, h, w)")
    check_floating(draws, "draws")
    check_same_device(draws, "draws", features, "features")
    batch, _, *size = other_features.shape
    if draws.shape != (2, batch, *size):
        raise bad_value("draws", f"have shape (2, B, h, w) = {(2, batch, *size)}", f"shape {tuple(draws.shape)}")
    k = integer(k, "k", least=1)
    background_score, temperature = number(background_score, "background_score"), number(temperature, "temperature")
    if not temperature > 0:
        raise bad_value("temperature", "be positive", temperature)
    if len(weights) != len(TERMS):
        raise bad_value("weights", "be three numbers", weights)
    weights = [number(weight, "weights") for weight in weights]
    refuse_forward_ad("losses have", features, other_features)

    dtype = accumulate_dtype(features.dtype)
    with torch.autocast(features.device.type, enabled=False):
        features, other_features = resized(features, size).flatten(2), other_features.to(dtype).flatten(2)
        with torch.no_grad():
            found = [
                _labels_and_prototypes(maps, x, image_labels, background_score, k, published)
                for maps, x in ((resized(cams, size).to(dtype), features), (other_cams.to(dtype), other_features))
            ]
        (labels, prototypes), (other_labels, other_prototypes) = found
        terms = _Terms.apply(
            features,
            other_features,
            prototypes,
            other_prototypes,
            labels,
            other_labels,
            draws.to(dtype).flatten(2),
            temperature,
        )
        weighted = [term * weight for term, weight in zip(terms.unbind(), weights, strict=True)]
        return {"loss": weighted[0] + weighted[1] + weighted[2]} | dict(zip(TERMS, weighted, strict=True))


def _labels_and_prototypes(
    cams: Tensor,  # (B, C, h, w)
    features: Tensor,  # (B, D, h * w)
    image_labels: Tensor,  # (B, C - 1)
    background_score: float,
    k: int,
    published: bool,
) -> tuple[Tensor, Tensor]:  # (B, h * w), (C, D)
    scores = reference.confidence(cams, background_score)
    labels = reference.pseudo_labels(scores, image_labels).flatten(1)
    scores = scores.flatten(2)
    if published:
        best = scores.transpose(0, 1).flatten(1).topk(k, dim=1)
        return labels, reference.prototypes_of(best.values, reference.pixels(features)[best.indices])
    return labels, reference.prototypes_of(*candidates(features, scores.clamp_min(0), None, k))
