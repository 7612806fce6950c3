"""`python -m toco_kernels evaluate`: the mean IoU of a network, of its CAMs, or of a folder of labels."""

import argparse
import json
from pathlib import Path

from . import failing, format_table, import_extra, natural_int

PROTOCOLS = ("run", "labels", "toco-voc-val", "toco-voc-ms-crf", "toco-coco-part", "toco-coco-ms-crf", "voc-test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--protocol",
        required=True,
        choices=PROTOCOLS,
        help="run: as at the end of train; labels: a folder of labels; voc-test: files for VOC's test server; others: "
        "as published, with the numbers to expect",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="the network: what train wrote")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="or a checkpoint of ToCo's authors")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where VOC2012, COCO or the folder is")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="the folder of NAME.png for --protocol labels")
    parser.add_argument("--data", default="voc", choices=["shapes", "voc", "coco", "folder"], help="their data set")
    parser.add_argument("--split", default="train", help="of the data set, for --protocol labels (default: train)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="names of the 4,999 photographs of toco-coco-part")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where segmentations go that are refined by a CRF")
    parser.add_argument("--workers", type=natural_int, default=0, metavar="N", help="processes that refine by a CRF")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every class too")
    parser.add_argument("--device", metavar="D", help="cpu or cuda (default: a GPU where there is one)")
    parser.set_defaults(error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Measure, and print a table."""
    needed = {"run": ["run"], "labels": ["labels"], "voc-test": ["root", "out"]}.get(args.protocol, ["root"])
    missing = [name for name in needed if getattr(args, name) is None]
    if args.protocol != "labels" and args.run is None and args.checkpoint is None:
        missing.append("run or --checkpoint")
    if missing:
        args.error(f"--protocol {args.protocol} needs --{', --'.join(missing)}")
    evaluation = import_extra("toco_kernels.training.evaluation", "train")
    protocols = import_extra("toco_kernels.training.protocols", "train")
    with failing():
        if args.protocol == "voc-test":
            written = evaluation.export_voc_test(args)
            print(f"{written} segmentations in {args.out}: pack its folder results and upload it")
            return 0
        reports = evaluation.measure(args)
    protocol = protocols.PROTOCOLS.get(args.protocol)
    if protocol:
        print(protocol.summary)
    print(format_table(protocols.table([*reports.items()], protocol)))
    if args.json:
        args.json.write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    return 0
