"""What class_token_contrast means, in plain PyTorch: the published sequence of operations, never optimised."""

import torch
from torch import Tensor

EPSILON = 1e-4


def class_token_contrast(
    student: Tensor,  # (crops * B, D), crop by crop
    teacher: Tensor,  # (2 * B, D)
    flags: Tensor,  # (B, crops)
    temperature: float,
) -> Tensor:  # ()
    """The formula of the room's docstring, image by image and crop by crop."""
    batch, crops = flags.shape
    width = student.shape[1]
    students = student.reshape(crops, batch, width).transpose(0, 1)  # (B, crops, D)
    teachers = teacher.reshape(2, batch, width).transpose(0, 1)  # (B, 2, D)
    similarity = torch.exp(teachers @ students.mT / temperature)  # (B, 2, crops)

    loss = student.new_zeros(())
    for image in range(batch):
        positives = flags[image].nonzero().squeeze(1)
        negatives = similarity[image][:, flags[image] == 0].sum(dim=1) + EPSILON  # (2)
        terms = torch.log(1 + negatives)
        for crop in positives:
            positive = similarity[image][:, crop]
            terms = terms - torch.log(positive / (positive + negatives))
        loss = loss + terms.sum() / 2 / (len(positives) + EPSILON)
    return loss / max(batch, 1)
