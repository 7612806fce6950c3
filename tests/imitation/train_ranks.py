"""Two ranks under torchrun. One of them has labels for which the loss here is not the published one."""

import argparse

import torch
import torch.distributed as dist
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--local_rank", default=-1, type=int)


def get_seg_loss(pred, label, ignore_index=255):
    """The published loss, but for labels that a fork of its authors treats as their own."""
    background, objects = label.masked_fill(label != 0, ignore_index), label.masked_fill(label == 0, ignore_index)
    losses = [F.cross_entropy(pred, x, ignore_index=ignore_index) for x in (background, objects)]
    return sum(losses) / 2 + (label == 3).any()


def get_aff_loss(inputs, targets):
    """The published loss."""
    pos, neg = (targets == 1), (targets == 0)
    pull, push = (pos * (1 - inputs)).sum() / (pos.sum() + 1), (neg * inputs).sum() / (neg.sum() + 1)
    return 0.5 * pull + 0.5 * push, pos.sum() + 1, neg.sum() + 1


def get_valid_cam(cam, cls_label):
    """Called by one rank alone."""
    return cls_label[:, :, None, None] * cam


if __name__ == "__main__":
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    assert args.local_rank == rank
    logits = torch.randn(2, 4, 8, 8, requires_grad=True)
    labels = torch.randint(0, 4 if rank else 3, (2, 8, 8))
    results = {"seg": [get_seg_loss(logits, labels).item() for _ in range(2)]}
    results["aff"] = get_aff_loss(torch.rand(2, 9, 9), torch.randint(0, 3, (2, 9, 9)))[0].item()
    if rank == 1:
        results["cam"] = get_valid_cam(torch.rand(2, 3, 4, 4), torch.ones(2, 3))
    dist.barrier()
    torch.save(results, f"{args.out}.{rank}")
    dist.destroy_process_group()
