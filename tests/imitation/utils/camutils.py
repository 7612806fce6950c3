"""CAMs as in ToCo and DuPL: every threshold is a keyword."""

import torch
import torch.nn.functional as F


def get_valid_cam(cam, cls_label):
    return cam * cls_label[:, :, None, None]


def ignore_img_box(label, img_box, ignore_index):
    inside = torch.full_like(label, ignore_index)
    for i, (y0, y1, x0, x1) in enumerate(img_box):
        inside[i, y0:y1, x0:x1] = label[i, y0:y1, x0:x1]
    return inside


def cam_to_label(
    cam, cls_label, img_box=None, bkg_thre=None, high_thre=None, low_thre=None, ignore_mid=False, ignore_index=None
):
    valid = get_valid_cam(cam, cls_label)
    value, label = valid.max(dim=1)
    label = (label + 1).masked_fill(value <= bkg_thre, 0)
    if img_box is None:
        return label
    if ignore_mid:
        label = label.masked_fill(value <= high_thre, ignore_index).masked_fill(value <= low_thre, 0)
    return valid, ignore_img_box(label, img_box, ignore_index)


def cam_to_roi_mask2(cam, cls_label, hig_thre=None, low_thre=None):
    value = get_valid_cam(cam, cls_label).amax(1)
    return ((value > low_thre).to(torch.int16) + (value >= hig_thre)).to(torch.int16)


def crop_from_roi_neg(images, roi_mask=None, crop_num=8, crop_size=96):
    half = crop_size // 2
    crops = images.new_zeros(len(images), crop_num, images.shape[1], crop_size, crop_size)
    flags = torch.ones(len(images), crop_num + 2)
    for i, roi in enumerate(roi_mask):
        inner = roi[half : roi.shape[0] - half, half : roi.shape[1] - half]
        places = (inner <= 1).nonzero()
        if len(places) < crop_num:
            places = (inner >= 0).nonzero()
        for j, (y, x) in enumerate(places[torch.randperm(len(places))[:crop_num]]):
            crops[i, j] = images[i, :, y : y + crop_size, x : x + crop_size]
            if roi[y : y + crop_size, x : x + crop_size].sum() / crop_size**2 <= 0.2:
                flags[i, j + 2] = 0
    return list(crops.unbind(1)), flags


def outputs_of(model, inputs, scale):
    if scale != 1.0:
        small = [int(scale * n) for n in inputs.shape[2:]]
        inputs = F.interpolate(inputs, size=small, mode="bilinear", align_corners=False)
    return model(torch.cat([inputs, inputs.flip(-1)]), cam_only=True)


def upright(maps, size):
    straight, mirrored = F.interpolate(maps, size=size, mode="bilinear", align_corners=False).chunk(2)
    return torch.maximum(straight, mirrored.flip(-1)).relu()


def maps_of(model, inputs, scale):
    return [upright(maps, inputs.shape[2:]) for maps in outputs_of(model, inputs, scale)]


def merged(maps):
    cam = torch.stack(maps).sum(0)
    cam = cam - cam.amin((2, 3), keepdim=True)
    return cam / (cam.amax((2, 3), keepdim=True) + 1e-5)


def multi_scale_cam2(model, inputs, scales):
    with torch.no_grad():
        found = [tuple(maps_of(model, inputs, scale)) for scale in (1.0, *(s for s in scales if s != 1.0))]
        aux, cam = zip(*found)
        return merged(cam), merged(aux)


def label_to_aff_mask(cam_label, ignore_index=255):
    label = cam_label.flatten(1)
    mask = (label[:, :, None] == label[:, None]).long()
    ignored = label == ignore_index
    mask[ignored[:, :, None] | ignored[:, None]] = ignore_index
    mask.diagonal(dim1=1, dim2=2).fill_(ignore_index)
    return mask


def refine(ref_mod, image, scores, classes, size):
    refined = ref_mod(image, scores.softmax(1))
    return classes[F.interpolate(refined, size=size, mode="bilinear", align_corners=False).argmax(1)[0]]


def labelled(ref_mod, images, cams, cls_labels, high, low, ignore_index, boxes, down_scale):
    size = cams.shape[2:]
    small = [n // down_scale for n in size]
    result = torch.full((len(cams), *size), float(ignore_index))
    images, high, low = (
        F.interpolate(x, size=small, mode="bilinear", align_corners=False)
        for x in (images, torch.cat([high, cams], 1), torch.cat([low, cams], 1))
    )
    for i, box in enumerate(boxes):
        classes = torch.cat([torch.zeros(1, dtype=torch.long), cls_labels[i].nonzero()[:, 0] + 1])
        with_high, with_low = (
            refine(ref_mod, images[i : i + 1], x[i : i + 1, classes], classes, size) for x in (high, low)
        )
        label = with_high.float()
        label[with_high == 0] = ignore_index
        label[(with_high == 0) & (with_low == 0)] = 0
        inside = slice(*box[:2]), slice(*box[2:])
        result[i][inside] = label[inside]
    return result


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
    high, low = (torch.ones_like(cams[:, :1]) * x for x in (high_thre, low_thre))
    return labelled(ref_mod, images, cams, cls_labels, high, low, ignore_index, img_box, down_scale)


def refine_cams_with_dynamic_thres(
    ref_mod=None,
    images=None,
    cams=None,
    cls_labels=None,
    high_thre_map=None,
    low_thre=None,
    ignore_index=False,
    img_box=None,
    down_scale=2,
):
    low = torch.ones_like(cams[:, :1]) * low_thre
    return labelled(ref_mod, images, cams, cls_labels, high_thre_map, low, ignore_index, img_box, down_scale)
