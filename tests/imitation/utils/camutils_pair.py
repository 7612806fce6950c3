"""CAMs as in MoRe and FSR: no box is needed, and what is returned is always a pair."""

import torch

from .camutils import get_valid_cam, ignore_img_box, labelled, maps_of, merged


def cam_to_label(
    cam, cls_label, img_box=None, bkg_thre=None, high_thre=None, low_thre=None, ignore_mid=False, ignore_index=None
):
    valid = get_valid_cam(cam, cls_label)
    value, label = valid.max(dim=1)
    label = label + 1
    if ignore_mid:
        label = label.masked_fill(value <= high_thre, ignore_index).masked_fill(value <= low_thre, 0)
    else:
        label = label.masked_fill(value <= bkg_thre, 0)
    return valid, label if img_box is None else ignore_img_box(label, img_box, ignore_index)


@torch.no_grad()
def multi_scale_cam(model, inputs, scales):
    found = [tuple(maps_of(model, inputs, scale)) for scale in (1.0, *(s for s in scales if s != 1.0))]
    cam, aux = zip(*found)
    return merged(cam), merged(aux)


def cams_to_affinity_label(cam_label, mask=None, ignore_index=255, clip_flag=16):
    """As in WeCLIP+."""
    label = cam_label[:, None].float()
    size = [n // clip_flag for n in cam_label.shape[1:]]
    label = torch.nn.functional.interpolate(label, size=size, mode="nearest").flatten(1)
    alike = (label[:, :, None] == label[:, None]).long()
    if mask is not None:
        alike[:, mask == 0] = ignore_index
    ignored = label == ignore_index
    return alike.masked_fill(ignored[:, :, None] | ignored[:, None], ignore_index)


def refine_cams_with_bkg_v2(
    ref_mod=None,
    images=None,
    cams=None,
    cls_labels=None,
    high_thre=None,
    low_thre=None,
    ignore_index=False,
    img_box=None,
    down_scale=2,
):
    boxes = [[0, cams.shape[2], 0, cams.shape[3]]] * len(cams) if img_box is None else img_box
    high, low = (torch.ones_like(cams[:, :1]) * x for x in (high_thre, low_thre))
    return labelled(ref_mod, images, cams, cls_labels, high, low, ignore_index, boxes, down_scale)
