"""What `python -m toco_kernels evaluate` does: each protocol on a run or on a checkpoint of ToCo's authors."""

import argparse
from pathlib import Path

from ..common.errors import bad_value
from ..methods import load_authors_checkpoint
from . import checkpoints, pseudo_labels
from .data import open_data
from .files import DataError
from .folder import open_voc
from .predictor import Predictor
from .processes import Processes
from .protocols import PROTOCOLS, Protocol, compare
from .pseudo_labels import Data
from .recipes.toco import Recipe
from .refine import Settings
from .runs import Run

TEST_FOLDER = Path("results") / "VOC2012" / "Segmentation" / "comp6_test_cls"  # what VOC's server wants


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """The reports, by what was measured: "cam", "aux_cam", "pseudo_label", "seg", or "labels"."""
    if args.protocol == "labels":
        data = open_data(args.data, args.split, args.root)
        return {"labels": compare(data, args.labels, range(len(data))).report(data.classes)}
    if args.protocol == "run":
        opened = Run.open(args.run)
        data = opened.data()
        settings = Settings(opened.config["refinement"], opened.background(), opened.background())
        predictor = opened.predictor(Processes.join(args.device))
        results = predictor.evaluate(data, settings, range(len(data)))
        return {name: result.report(data.classes) for name, result in results.items()}
    protocol = PROTOCOLS[args.protocol]
    data = protocol.open(args.root, args.list)
    predictor = _predictor(args, data, protocol.size)
    check_quantities(args.protocol, protocol, predictor)
    return by_protocol(protocol, predictor, data, args.out, args.workers)


def check_quantities(name: str, protocol: Protocol, predictor: Predictor) -> None:
    """Before hours of it: whether the network has what a protocol measures.

    Raises:
        ValueError: it has not.
    """
    there = predictor.quantities()
    if missing := [quantity for quantity in protocol.quantities if quantity not in there]:
        must = f"measure what the network has, which is {', '.join(there)}"
        raise bad_value("--protocol", must, f"{name}, which measures {', '.join(missing)}")


def by_protocol(
    protocol: Protocol, predictor: Predictor, data: Data, out: Path | None, workers: int
) -> dict[str, dict]:
    """The reports of one protocol, in its order."""
    if protocol.refinement == "none":
        background = predictor.recipe.settings["background"]
        results = predictor.evaluate(data, Settings("none", background, background), range(len(data)))
        return {name: results[name].report(data.classes) for name in protocol.quantities}
    if out is None:
        raise DataError("--out", "is needed: a CRF takes hours, and segmentations are kept there")
    segment(protocol, predictor, data, out, workers)
    return {"seg": compare(data, out, range(len(data))).report(data.classes)}


def segment(protocol: Protocol, predictor: Predictor, data: Data, out: Path, workers: int) -> int:
    """Write the segmentation of every photograph; returns how many there are. None may be missing."""
    made_with = {
        "scales": list(protocol.scales),
        "flip": protocol.flip,
        "merge": protocol.merge,
        "size": protocol.size,
        "weights_sha256": checkpoints.hash_of(predictor.module),
    }
    report = pseudo_labels.make(
        data,
        lambda image, _: predictor.segmentation(image, protocol.scales, protocol.flip, protocol.merge),
        out,
        protocol.settings(),
        made_with=made_with,
        workers=workers,
    )
    if report.skipped:
        raise DataError(out, f"lacks {len(report.skipped)} segmentations; {report.skipped[0]}")
    return report.written + report.kept


def export_voc_test(args: argparse.Namespace) -> int:
    """Segmentations of VOC's test photographs, by the protocol toco-voc-ms-crf, in the folders its server wants."""
    protocol = PROTOCOLS["toco-voc-ms-crf"]
    data = open_voc(args.root, "test")
    predictor = _predictor(args, data, protocol.size)
    check_quantities(args.protocol, protocol, predictor)
    kept = args.out / "segmentations"
    count = segment(protocol, predictor, data, kept, args.workers)
    target = args.out / TEST_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for name in data.names:  # nothing but the segmentations may be in there
        link = target / f"{name}.png"
        link.unlink(missing_ok=True)
        link.hardlink_to(kept / f"{name}.png")
    return count


def _predictor(args: argparse.Namespace, data: Data, size: int | None) -> Predictor:
    """The network of a run, or that of an authors' checkpoint."""
    processes = Processes.join(args.device)
    if args.run is not None:
        opened = Run.open(args.run)
        if tuple(opened.config["classes"]) != data.classes:
            raise DataError(args.run, "was trained on other classes")
        return opened.predictor(processes, size=size)
    preset = "coco" if len(data.classes) == 81 else "voc"
    recipe = Recipe(Recipe.preset(preset), data.classes)
    return Predictor(recipe, load_authors_checkpoint(args.checkpoint), processes.device, size=size)
