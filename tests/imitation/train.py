"""A training script in the style of the repositories: `python train.py OUT`. Writes what it computed to OUT."""

import argparse
import multiprocessing
import sys
from types import SimpleNamespace

sys.path.append(".")

import numpy as np
import torch
import torch.nn as nn
from model import others
from model.losses import CTCLoss_neg, DenseEnergyLoss, get_energy_loss, get_masked_ptc_loss, get_seg_loss
from model.pooling import adaptive_min_pooling_loss, max_onehot
from model.refiners import PAMR, PAR
from model.resizing import PAR as PARResizing
from utils import camutils_config, camutils_pair, propagation
from utils.camutils import (
    cam_to_label,
    cam_to_roi_mask2,
    crop_from_roi_neg,
    label_to_aff_mask,
    multi_scale_cam2,
    refine_cams_with_bkg_v2,
    refine_cams_with_dynamic_thres,
)

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--local_rank", default=-1, type=int)
parser.add_argument("--children", nargs="*", default=[])

SIZE, CLASSES = 64, 5
BOXES = [[0, 64, 0, 56], [4, 64, 2, 64]]
CONFIG = SimpleNamespace(
    cam=SimpleNamespace(bkg_score=0.5, high_thre=0.7, low_thre=0.25), dataset=SimpleNamespace(ignore_index=255)
)
DILATIONS = [1, 2, 4, 8]


def get_aff_loss(inputs, targets):
    """Defined in the script itself."""
    pos, neg = targets == 1, targets == 0
    pos_count, neg_count = pos.sum() + 1, neg.sum() + 1
    return 0.5 * (pos * (1 - inputs)).sum() / pos_count + 0.5 * (neg * inputs).sum() / neg_count, pos_count, neg_count


class Network(nn.Module):
    """Its batch norm has buffers, which a call too many would change."""

    def __init__(self, refiner):
        super().__init__()
        self.par = refiner
        self.features = nn.Sequential(nn.Conv2d(3, 2 * CLASSES, 8, 8), nn.BatchNorm2d(2 * CLASSES))

    def forward(self, x, cam_only=False):
        maps = self.features(x)
        return maps[:, :CLASSES], maps[:, CLASSES:]


class Spreading(nn.Module):
    """Affinities in place of the second maps."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, cam_only=False):
        maps, _ = self.network(x, cam_only)
        tokens = maps.flatten(2)
        return maps, (tokens.mT @ tokens).sigmoid()


def step(seed=0):
    """Every function once; returns what they gave, by name."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    images, cams = torch.rand(2, 3, SIZE, SIZE) * 255, torch.rand(2, CLASSES, SIZE, SIZE)
    labels = torch.tensor([[0.0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    thresholds = {"bkg_thre": 0.5, "high_thre": 0.7, "low_thre": 0.25, "ignore_mid": True, "ignore_index": 255}
    between = {"high_thre": 0.7, "low_thre": 0.25, "ignore_index": 255}
    tokens = torch.randn(2, 16, 8, 8, requires_grad=True)
    logits = torch.randn(2, CLASSES + 1, SIZE, SIZE, requires_grad=True)
    network = Network(PAR(num_iter=3, dilations=DILATIONS))
    par, resizing = network.par, PARResizing(num_iter=3, dilations=DILATIONS)
    results = {}

    valid, pseudo = cam_to_label(cams, labels, img_box=BOXES, **thresholds)
    results["valid"], results["pseudo"] = valid, pseudo
    results["config"] = camutils_config.cam_to_label(cams, labels, BOXES, True, CONFIG)
    results["pair"] = camutils_pair.cam_to_label(cams, labels, **thresholds)
    results["roi"] = roi = cam_to_roi_mask2(cams, labels, hig_thre=0.7, low_thre=0.25)
    results["crops"] = crop_from_roi_neg(images, roi, crop_num=4, crop_size=16)
    results["cam2"] = multi_scale_cam2(network, images, (1.0, 0.5, 1.5))
    results["cam"] = camutils_config.multi_scale_cam(network, images, (1.0, 0.5))
    results["cam and aux"] = camutils_pair.multi_scale_cam(network, images, (1.0, 0.5))
    results["refined"] = refine_cams_with_bkg_v2(par, images, valid, labels, img_box=BOXES, **between)
    results["refined config"] = camutils_config.refine_cams_with_bkg_v2(par, images, valid, labels, CONFIG, BOXES)
    results["refined pair"] = camutils_pair.refine_cams_with_bkg_v2(par, images, valid, labels, **between)
    high = torch.full((2, 1, SIZE, SIZE), 0.6)
    results["dynamic"] = refine_cams_with_dynamic_thres(par, images, valid, labels, high, 0.25, 255, BOXES)
    results["par"] = par(images, cams[:, :, ::2, ::2])
    results["resizing"] = resizing(images, cams[:, :, ::2, ::2])
    results["pamr"] = PAMR(2, DILATIONS)(images, cams)
    results["onehot"] = max_onehot(cams)
    results["affinity"] = camutils_config.cams_to_affinity_label(pseudo)
    attention = torch.randn(3, 17, 17).softmax(dim=2)
    found, affinities = camutils_config.multi_scale_cam_with_aff_mat(Spreading(network), images, [1.0, 0.5])
    results["cam and affinities"] = found, affinities
    small = found[:, :, ::8, ::8]
    results["spread"] = camutils_config.propagte_aff_cam_with_bkg(
        small, affinities.clone(), (torch.rand(64, 64) > 0.3).double().numpy(), labels, 0.4
    )
    results["moves"] = propagation.compute_trans_mat(attention[0])
    scores = cams[0, :, ::16, ::16].flatten(1).mT
    results["attention"] = propagation.refine_cams_with_aff(scores, attention, labels[0], (SIZE, SIZE), 0.5)
    results["walk"] = propagation.propagate_to_edge(cams[0, :2, ::8, ::8].contiguous(), cams[:1, 0, ::8, ::8], 3)
    results["affinity of 8"] = camutils_pair.cams_to_affinity_label(pseudo, clip_flag=8)

    losses = {
        "ptc": get_masked_ptc_loss(tokens, label_to_aff_mask(pseudo[:, ::8, ::8])),
        "seg": get_seg_loss(logits, pseudo),
        "finite seg": others.get_seg_loss(logits, torch.zeros_like(pseudo)),
        "aff": others.get_aff_loss(tokens.flatten(2).sigmoid(), torch.randint(0, 3, (2, 16, 64)))[0],
        "aff here": get_aff_loss(tokens.flatten(2).sigmoid(), torch.randint(0, 3, (2, 16, 64)))[0],
        "ctc": CTCLoss_neg(ncrops=4, temp=0.5)(
            tokens.reshape(8, -1)[:, :32], torch.randn(4, 32), torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]])
        ),
        "pooling": adaptive_min_pooling_loss(logits),
        "energy": get_energy_loss(images, logits, pseudo, BOXES, DenseEnergyLoss(1e-3, 15, 100, 0.5)),
        "energy of all": others.get_energy_loss(
            images, logits, pseudo, None, others.DenseEnergyLoss(1e-3, 15, 100, 0.5)
        ),
    }
    sum(loss.sum() for loss in losses.values()).backward()
    results |= {name: loss.detach() for name, loss in losses.items()}
    results["gradients"] = tokens.grad, logits.grad
    results["network"] = network.state_dict()
    results["draws"] = torch.rand(3), np.random.rand(3)
    return results


def child(out, seed):
    """What a child process does."""
    torch.save(step(seed), out)


if __name__ == "__main__":
    args = parser.parse_args()
    torch.set_num_threads(int(np.float(1)))  # which NumPy no longer has
    torch.save(step(), args.out)
    multiprocessing.set_forkserver_preload(["utils.camutils"])
    for method in args.children:
        process = multiprocessing.get_context(method).Process(target=child, args=(f"{args.out}.{method}", 1))
        process.start()
        process.join()
        assert process.exitcode == 0, f"the child by {method} failed"
    print("trained", args.local_rank)
