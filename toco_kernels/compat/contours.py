"""The boxes of CLIP-ES, without OpenCV."""

from itertools import pairwise

import numpy as np

Run = tuple[int, int, int]  # a piece of a row: where it starts, where it ends, whether it is above the threshold


def scoremap2bbox(
    scoremap: np.ndarray,  # (H, W) in [0, 1]
    threshold: float,
    multi_contour_eval: bool = False,
) -> tuple[np.ndarray, int]:  # (boxes, 4) int64
    """Boxes around the contours of what is above a threshold, those of `cv2.findContours` in its order.

        above = floor(255 * scoremap) > floor(threshold * the largest of these)

    Contours are the outer ones of connected regions, corners connecting, and the inner ones around their holes. As
    published, a box ends before the last row and the last column, even where its region does not.

    `refine_cams_with_aff` needs no boxes on the host, and `toco_kernels.component_boxes` paints those of all classes of
    a batch at once.

    Args:
        scoremap: (H, W) scores in [0, 1].
        threshold: of the largest score.
        multi_contour_eval: whether all boxes are wanted, or that of the contour around the largest area alone.

    Returns:
        Boxes x0, y0, x1, y1, half-open, and the number of contours that they are of; the box 0, 0, 0, 0 and 1 where
        nothing is above.

    Source: `scoremap2bbox` of CLIP-ES, WeCLIP and ExCEL.
    """
    height, width = scoremap.shape
    image = (scoremap * 255).astype(np.uint8)
    above = image > int(threshold * np.max(image))
    labels, extents, parents, is_above = _regions(above)
    order = _in_order(parents)
    if not order:
        return np.asarray([[0, 0, 0, 0]]), 1
    if not multi_contour_eval:
        order = [max((r for r in order if is_above[r]), key=lambda r: _area(labels, parents, r))]
    boxes = []
    for region in order:
        x0, y0, x1, y1 = extents[region]
        around = 0 if is_above[region] else 1  # the contour of a hole are the pixels around it
        x0, y0, x1, y1 = x0 - around, y0 - around, x1 + around, y1 + around
        boxes.append([x0, y0, min(x1, width - 1), min(y1, height - 1)])
    return np.asarray(boxes), len(order)


def _runs(row: np.ndarray) -> list[Run]:
    """A row, cut where it changes."""
    cuts = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    return [(start, end, int(row[start])) for start, end in pairwise(cuts)]


def _regions(above: np.ndarray):
    """Connected regions, of what is above the threshold with corners and of what is not without.

    Returns:
        labels: (H + 2, W + 2), with a border that is not above; a region's is the number of its first run.
        extents: label -> x0, y0, x1, y1, half-open, without the border.
        parents: label -> the label of the region around, in the order in which a scan by rows meets them.
        is_above: label -> whether it is above.
    """
    padded = np.pad(above, 1)
    rows = [_runs(row) for row in padded]
    firsts = np.cumsum([0, *map(len, rows)]).tolist()
    roots = list(range(firsts[-1]))

    def root(i: int) -> int:
        while roots[i] != i:
            roots[i] = i = roots[roots[i]]
        return i

    for y in range(1, len(rows)):
        for i, (start, end, value) in enumerate(rows[y], firsts[y]):
            for j, (start_before, end_before, value_before) in enumerate(rows[y - 1], firsts[y - 1]):
                if value == value_before and start < end_before + value and start_before < end + value:
                    a, b = root(i), root(j)
                    roots[max(a, b)] = min(a, b)
    labels = np.zeros(padded.shape, dtype=np.int64)
    extents, parents, is_above = {}, {}, {}
    for y, row in enumerate(rows):
        for i, (start, end, value) in enumerate(row, firsts[y]):
            region = root(i)
            labels[y, start:end] = region
            if region == i:
                extents[region], is_above[region] = (start - 1, y - 1, end - 1, y), bool(value)
                if y > 0:
                    parents[region] = int(labels[y - 1, start])  # what is above the first pixel is around the region
            x0, y0, x1, _ = extents[region]
            extents[region] = min(x0, start - 1), y0, max(x1, end - 1), y
    return labels, extents, parents, is_above


def _in_order(parents: dict[int, int]) -> list[int]:
    """The regions, each before those inside of it, and the last of those in the same region first."""
    children: dict[int, list[int]] = {}
    for region, parent in parents.items():
        children.setdefault(parent, []).append(region)
    order, todo = [], list(children.get(0, []))  # 0 is the border's
    while todo:
        region = todo.pop()
        order.append(region)
        todo.extend(children.get(region, []))
    return order


def _area(labels: np.ndarray, parents: dict[int, int], region: int) -> float:
    """The area of the polygon through the centres of a region's outer pixels: squares, and halves of squares."""
    inside = {region}
    inside.update(r for r, parent in parents.items() if parent in inside)  # parents come first
    filled = np.isin(labels, list(inside))
    wide = filled.astype(np.int64)
    corners = wide[1:, 1:] + wide[1:, :-1] + wide[:-1, 1:] + wide[:-1, :-1]
    return float((corners == 4).sum() + 0.5 * (corners == 3).sum())
