"""CAMs as in AFA and WeCLIP: thresholds are in a configuration. And affinities: their labels, and what spreads."""

import torch
import torch.nn.functional as F

from .camutils import get_valid_cam, ignore_img_box, labelled, maps_of, merged, outputs_of, upright


def cam_to_label(cam, cls_label, img_box=None, ignore_mid=False, cfg=None):
    valid = get_valid_cam(cam, cls_label)
    value, label = valid.max(dim=1)
    label = (label + 1).masked_fill(value <= cfg.cam.bkg_score, 0)
    if img_box is None:
        return label
    if ignore_mid:
        label[value <= cfg.cam.high_thre] = cfg.dataset.ignore_index
        label[value <= cfg.cam.low_thre] = 0
    return valid, ignore_img_box(label, img_box, cfg.dataset.ignore_index)


def multi_scale_cam(model, inputs, scales):
    with torch.no_grad():
        scales = [1.0, *[s for s in scales if s != 1.0]]
        return merged([tuple(maps_of(model, inputs, scale))[0] for scale in scales])


def multi_scale_cam_with_aff_mat(model, inputs, scales):
    with torch.no_grad():
        maps, affinities = [], []
        for scale in [1.0, *[s for s in scales if s != 1.0]]:
            cam, aff = outputs_of(model, inputs, scale)
            maps.append(upright(cam, inputs.shape[2:]))
            affinities.append(aff)
        return merged(maps), affinities[scales.index(max(scales))]


def propagte_aff_cam_with_bkg(cams, aff=None, mask=None, cls_labels=None, bkg_score=None):
    size, spread = cams.shape[2:], []
    for i in range(len(cams)):
        if mask is not None:
            aff[i, mask == 0] = 0
        moves = aff[i].detach() ** 2
        moves = moves / (moves.sum(dim=0, keepdim=True) + 0.1)
        scores = torch.cat([torch.full((1, *size), bkg_score), cams[i]]).flatten(1)
        present = torch.cat([torch.ones(1), cls_labels[i]]).nonzero()[:, 0]
        spread.append(torch.zeros_like(scores))
        spread[i][present] = scores[present].softmax(dim=0) @ moves
    return torch.stack(spread).unflatten(2, size)


def cams_to_affinity_label(cam_label, mask=None, ignore_index=255):
    size = [n // 16 for n in cam_label.shape[1:]]
    label = F.interpolate(cam_label[:, None].float(), size=size, mode="nearest").flatten(1)
    alike = (label[:, :, None] == label[:, None]).long()
    if mask is not None:
        alike[:, mask == 0] = ignore_index
    ignored = label == ignore_index
    alike[ignored[:, :, None] | ignored[:, None]] = ignore_index
    return alike


def refine_cams_with_bkg_v2(
    ref_mod=None, images=None, cams=None, cls_labels=None, cfg=None, img_box=None, down_scale=2
):
    high, low = (torch.ones_like(cams[:, :1]) * x for x in (cfg.cam.high_thre, cfg.cam.low_thre))
    ignore_index = cfg.dataset.ignore_index
    return labelled(ref_mod, images, cams, cls_labels, high, low, ignore_index, img_box, down_scale)
