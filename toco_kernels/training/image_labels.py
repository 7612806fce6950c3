"""Which classes an image shows: from VOC's XML, from masks, or from labels.json.

The field's `cls_labels_onehot.npy` is a pickle, and a pickle can run programs. It is converted once, by a reader that
knows arrays and dictionaries and nothing else:

    python -m toco_kernels.training.image_labels cls_labels_onehot.npy labels.json [--classes classes.txt]
"""

import argparse
import pickle
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .files import IGNORED, DataError, read_json, read_lines, read_mask, write_json


def from_xml(file: Path, classes: Sequence[str]) -> np.ndarray:  # (C,) bool, without background
    """The classes of the objects in one of VOC's annotations, difficult ones included, as the field does."""
    try:
        names = [element.text for element in ElementTree.parse(file).getroot().iterfind("object/name")]
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(file, f"cannot be read: {error}") from None
    return from_names(file, names, classes)


def from_mask(file: Path, classes: Sequence[str]) -> np.ndarray:  # (C,) bool
    """The classes that a mask holds, background and ignored pixels left out."""
    present = np.unique(read_mask(file, len(classes)))
    labels = np.zeros(len(classes) - 1, bool)
    labels[present[(present > 0) & (present != IGNORED)] - 1] = True
    return labels


def from_names(file: Path, names: object, classes: Sequence[str]) -> np.ndarray:  # (C,) bool
    """The labels that these class names mean; `file` is where they come from."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(file, f"must list class names for every image, got {names!r}")
    labels = np.zeros(len(classes) - 1, bool)
    for name in names:
        if name not in classes[1:]:
            raise DataError(file, f"names the unknown class {name!r}; known are {', '.join(classes[1:])}")
        labels[classes.index(name) - 1] = True
    return labels


def read_labels(file: Path, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """labels.json, `{"2007_000033": ["aeroplane"], …}`: the labels of every image in it."""
    if file.suffix == ".npy":
        raise DataError(
            file, f"is a pickle; convert it once: python -m toco_kernels.training.image_labels {file} labels.json"
        )
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(file, "must be an object of image names and lists of class names")
    return {name: from_names(file, names, classes) for name, names in content.items()}


class _ArraysOnly(pickle.Unpickler):
    """Knows the names that NumPy's arrays and numbers are pickled under, and refuses every other one."""

    def find_class(self, module: str, name: str) -> object:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 reads bytes that Python 2 pickled
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither array nor dictionary")


def read_pickled_labels(file: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """`cls_labels_onehot.npy`: for every image the names of its classes."""
    try:
        with open(file, "rb") as opened:
            version = np.lib.format.read_magic(opened)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, _, dtype = read_header(opened)
            if dtype.kind != "O" or shape != ():
                raise ValueError(f"it holds an array of {dtype}, not one dictionary")
            content = _ArraysOnly(opened, encoding="latin1").load()
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except Exception as error:  # a broken pickle raises whatever it likes
        raise DataError(file, f"cannot be read: {error}") from None
    content = content.item() if isinstance(content, np.ndarray) and content.shape == () else content
    if not isinstance(content, dict):
        raise DataError(file, f"must hold a dictionary, got {type(content).__name__}")
    labels = {}
    for name, row in content.items():
        row = np.asarray(row)
        if row.shape != (len(classes) - 1,) or not np.isin(row, (0, 1)).all():
            raise DataError(file, f"must hold {len(classes) - 1} zeros and ones for {name}, got {row!r:.80}")
        labels[str(name)] = [classes[1 + index] for index in np.flatnonzero(row)]
    return labels


def main(argv: list[str] | None = None) -> int:
    """Convert `cls_labels_onehot.npy` to labels.json."""
    from .folder import VOC_CLASSES

    parser = argparse.ArgumentParser(prog="python -m toco_kernels.training.image_labels", description=__doc__)
    parser.add_argument("source", type=Path, help="cls_labels_onehot.npy")
    parser.add_argument("target", type=Path, help="labels.json")
    parser.add_argument("--classes", type=Path, help="a class per line, background first (default: VOC's)")
    args = parser.parse_args(argv)
    classes = read_lines(args.classes) if args.classes else list(VOC_CLASSES)
    labels = read_pickled_labels(args.source, classes)
    write_json(args.target, labels)
    print(f"{len(labels)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
