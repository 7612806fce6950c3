"""Losses over pairs: matrix products, whose matrices the published code stores, and a mask with them."""

import torch
import torch.nn.functional as F
from by_hand import by_hand
from harness import TRAINING, Bench, Case

from toco_kernels import affinity_loss, contrast
from toco_kernels.compat import cams_to_affinity_label, get_aff_loss
from toco_kernels.pair_contrast import reference

IGNORED = 255


def smooth_labels(generator, batch, side, classes, ignored):
    """Labels (B, side, side) as CAMs give them: each class a few blobs, what lies between two blobs ignored."""
    coarse = torch.randn(batch, classes, 5, 5, generator=generator)
    best = F.interpolate(coarse, size=(side, side), mode="bicubic").flatten(2).topk(2, dim=1)
    in_doubt = (best.values[:, 0] - best.values[:, 1]).argsort(dim=1)[:, : round(ignored * side * side)]
    return best.indices[:, 0].scatter(1, in_doubt, IGNORED).unflatten(1, (side, side))


def affinity_inputs(generator, *, batch, side, width=256, ignored=0.2, radius=8, excel=False):
    options = {"scale": 3.0, "normalize": True, "center": True} if excel else {"scale": 1.0}
    return {
        "features": torch.randn(batch, width, side, side, generator=generator) * width**-0.5,
        "labels": smooth_labels(generator, batch, side, 4, ignored),
        "radius": radius,
        **options,
    }


def affinity_flop(direction, *, features, labels, radius, **_):
    """Each product of a pair that counts once, by symmetry; one product with them for the gradient."""
    valid = labels.flatten(1) != IGNORED
    pairs = valid[:, :, None] & valid[:, None]
    if radius is not None:
        pairs &= reference.within_radius(valid.shape[1], labels.shape[2], radius, valid.device)
    once = int(pairs.sum()) * features.shape[1]
    return 3 * once if direction == TRAINING else once


def affinity_published(features, labels, radius, scale=1.0, normalize=False, center=False):
    """As WeCLIP and ExCEL do it. The mask of the radius is made once in AFA and WeCLIP, so it is kept here too."""
    mask = None if radius is None else radius_mask(labels.shape[1], labels.shape[2], radius, str(labels.device))
    tokens = features.flatten(2)
    if normalize:
        tokens = F.normalize(tokens, dim=1)
    scores = tokens.transpose(2, 1).bmm(tokens)
    if center:
        scores = (scores - scores.mean()) * scale
    return get_aff_loss(torch.sigmoid(scores), cams_to_affinity_label(labels, mask, clip_flag=1))[0]


MASKS = {}


def radius_mask(height, width, radius, device):
    key = height, width, radius, device
    if key not in MASKS:
        MASKS[key] = reference.within_radius(height * width, width, radius, device).double()
    return MASKS[key]


def affinity_rewrite(features, labels, radius, scale=1.0, normalize=False, center=False):
    """The gradient by hand, in chunks of rows, which stay in the cache; with a radius, against rows of the grid near
    enough alone.
    """
    return by_hand(affinity_by_rows, features, labels, radius, scale, normalize, center)


def affinity_by_rows(features, labels, radius, scale, normalize, center, *, with_grad):
    batch, _, height, columns = features.shape
    tokens = features.flatten(2).mT.contiguous()
    x = tokens.float() if tokens.dtype != torch.float64 else tokens
    if normalize:
        norm = torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp_min_(reference.EPSILON)
        x = x / norm
    flat = labels.flatten(1)
    valid = flat != IGNORED
    count = x.shape[1]
    mean, sums = 0.0, None
    if center:
        sums = x.sum(dim=1)
        mean = sums.square().sum() / (batch * count * count)
    reach = height if radius is None else radius
    rows = max(1, min(height, 512 // columns))  # of the grid, at a time
    chunks = []
    for top in range(0, height, rows):
        i = slice(top * columns, min(top + rows, height) * columns)
        j = slice(max(top - reach, 0) * columns, min(top + rows + reach, height) * columns)
        near = valid[:, i, None] & valid[:, None, j]
        if radius is not None:
            near &= within(i, j, columns, radius, flat.device)
        same = (flat[:, i, None] == flat[:, None, j]) & near
        chunks.append((i, j, near, same))
    alike = sum(same.sum() for _, _, _, same in chunks)
    pairs = sum(near.sum() for _, _, near, _ in chunks)
    positive, negative = -0.5 / (alike + 1), 0.5 / (pairs - alike + 1)
    loss = -positive * alike  # 1 - A of pairs alike
    grad = torch.empty_like(x) if with_grad else None
    slopes = 0.0
    for i, j, near, same in chunks:
        a = torch.baddbmm(x.new_zeros(()), x[:, i], x[:, j].mT, beta=0).sub_(mean).mul_(scale).sigmoid_()
        weights = torch.where(same, positive, negative * near)
        loss = loss + (weights * a).sum()
        if with_grad:
            slope = weights.mul_(a).mul_(a.neg_().add_(1)).mul_(scale)
            slopes = slopes + slope.sum()
            torch.bmm(slope, x[:, j], out=grad[:, i])
    if with_grad:
        grad.mul_(2)
        if center:
            grad.sub_(sums[:, None] * (2 * slopes / (batch * count**2)))
        if normalize:
            grad.addcmul_(x, torch.linalg.vecdot(x, grad)[:, :, None], value=-1).div_(norm)
        grad = grad.mT.reshape(features.shape)
    return loss, grad


def within(i, j, columns, radius, device):
    a, b = torch.arange(i.start, i.stop, device=device), torch.arange(j.start, j.stop, device=device)
    down = (a[:, None] // columns - b // columns).abs_()
    return (down <= radius) & ((a[:, None] % columns - b % columns).abs_() <= radius)


AFFINITY_BENCH = Bench(
    room="pair_contrast",
    op="affinity_loss",
    providers={"toco_kernels": affinity_loss, "published": affinity_published, "rewrite": affinity_rewrite},
    inputs=affinity_inputs,
    differentiable=("features",),
    flop=affinity_flop,
    tiny={"batch": 1, "side": 4, "width": 8},
    cases=[
        Case("AFA, radius 8", {"batch": 4, "side": 28}, decisive=True),
        Case("any distance, N = 784", {"batch": 4, "side": 28, "radius": None}),
        Case("ExCEL, N = 1024", {"batch": 4, "side": 32, "excel": True}),
        Case("N = 3136, radius 8", {"batch": 1, "side": 56}),
        Case("any distance, N = 3136", {"batch": 1, "side": 56, "radius": None}),
        Case("AFA, radius 8, bfloat16", {"batch": 4, "side": 28}, torch.bfloat16),
    ],
)


@AFFINITY_BENCH.every_case
def test_affinity_loss(case, direction, compare):
    compare(AFFINITY_BENCH, case, direction)


def pair_inputs(generator, *, count, others, width=256, form="info_nce", classes=20, batch=1):
    def side(n):
        tokens = F.normalize(torch.randn(batch, n, width, generator=generator), dim=2)
        return tokens, torch.randint(classes, (batch, n), generator=generator)

    (x, labels_x), (y, labels_y) = side(count), side(others)
    temperature = 0.08 if form == "info_nce" else 1.0
    return {"x": x, "y": y, "labels_x": labels_x, "labels_y": labels_y, "form": form, "temperature": temperature}


def pair_flop(direction, *, x, y, **_):
    """One product for the scores, one for the gradient of x."""
    once = 2 * x.numel() * y.shape[1]
    return 2 * once if direction == TRAINING else once


def pair_published(x, y, labels_x, labels_y, form, temperature):
    return reference.contrast(x, y, labels_x, labels_y, form, 1 / temperature, True, IGNORED)


def pair_rewrite(x, y, labels_x, labels_y, form, temperature):
    """Scores once, in place. InfoNCE's positives are sums by class, and the rest is `logsumexp`, whose gradient is the
    softmax; the others weigh by labels at broadcast.
    """
    x, y = F.normalize(x, dim=2), F.normalize(y, dim=2)
    same = labels_x[:, :, None] == labels_y[:, None]
    scores = torch.matmul(x, y.mT)
    if form == "info_nce":
        counts = same.sum(dim=2)
        weights = same / counts.clamp_min(1)[:, :, None]
        scores = scores / temperature
        losses = scores.logsumexp(dim=2) - (torch.matmul(weights.to(y.dtype), y) * x).sum(dim=2) / temperature
        return (losses * (counts > 0)).sum() / (counts > 0).sum()
    alike = same.sum()
    weights = torch.where(same, -0.5 / (alike + 1), 0.5 / (same.numel() - alike + 1)).to(scores.dtype)
    return 0.5 + (scores.abs() * weights).sum()


PAIR_BENCH = Bench(
    room="pair_contrast",
    op="contrast",
    providers={"toco_kernels": contrast, "published": pair_published, "rewrite": pair_rewrite},
    inputs=pair_inputs,
    differentiable=("x",),
    flop=pair_flop,
    tiny={"count": 4, "others": 5, "width": 8},
    cases=[
        Case("SeCo's queue", {"count": 512, "others": 4608}, decisive=True),
        Case("cosines with class tokens", {"count": 784, "others": 20, "width": 768, "form": "abs_cos", "batch": 4}),
        Case("cosines, N = 3136", {"count": 3136, "others": 3136, "form": "abs_cos"}),
    ],
)


@PAIR_BENCH.every_case
def test_contrast(case, direction, compare):
    compare(PAIR_BENCH, case, direction)
