"""Train, label, evaluate, certify: what `python -m toco_kernels train | pseudo-label | evaluate | certify` run.

    files, folder, coco, shapes, image_labels   photographs, masks and image labels; what is wrong with them
    views                                       from a photograph to what a training step wants, by keyed randomness
    recipes                                     what is particular to a method: one file each
    trainer, loop, checkpoints, records         the training loop, what it keeps, what it shows
    refine, pseudo_labels                       from CAMs to pseudo labels
    miou, protocols                             how good they are
    certify                                     whether the fast path trains as the published one does

All methods share them. Needs `pip install "toco-kernels[train]"`; importing this package alone needs nothing.
"""
