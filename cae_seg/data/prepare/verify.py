"""Look at every pair of a data set."""

import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from cae_seg.data.images import TooLarge, check_pixels, oriented_size
from cae_seg.data.prepare.index import FileMark, mark_file
from cae_seg.data.prepare.layout import ADE20K, SPLITS, Layout, ranges
from cae_seg.data.prepare.manifest import Manifest
from cae_seg.errors import UserError
from cae_seg.progress import progress

CLASS_FILE = "objectInfo150.txt"
CLASSES = 150
NAMED_PROBLEMS = 3
LONGEST_RATIO = 200  # of the sides of an image: a longer one shrinks to no pixel in a transform
# Below this many pairs, starting processes costs more than they save.
FEW_PAIRS = 500
PNG_KINDS = {2: "in colour", 3: "in palette colours", 4: "with alpha", 6: "in colour"}
PNG_GREY, PNG_PALETTE = 0, 3
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}


@dataclass(frozen=True)
class Pair:
    """What looking at one image and its annotation gave."""

    split: str
    stem: str
    marks: tuple[FileMark, ...] = ()
    values: frozenset[int] = frozenset()
    problem: str | None = None


def verify(
    root: Path,
    source: str,
    *,
    layout: Layout = ADE20K,
    expected: dict[str, int] | None = None,
    workers: int | None = None,
) -> Manifest:
    """Check every pair of the data set in `root`, and take its fingerprint.

    Args:
        root: the folder that the layout's paths are below.
        source: where it came from, for the record and the messages.
        layout: where the files are; unless it says what the values of annotations mean, any are
            accepted.
        expected: how many images each split must hold.
        workers: processes; all CPUs that we may use unless given.

    Raises:
        UserError: something is missing or wrong; the number of problems and the first few.
    """
    stems, problems = _survey(root, layout, expected or {})
    classes = layout.classes
    if layout == ADE20K:
        classes = read_classes(root / CLASS_FILE) if (root / CLASS_FILE).is_file() else ()
        if classes is None:
            problems.append(f"{CLASS_FILE} does not list classes 1 to {CLASSES}")
    jobs = [(split, stem) for split in SPLITS for stem in stems[split]]
    pairs = list(_look(root, layout, jobs, workers))
    problems += [pair.problem for pair in pairs if pair.problem]
    if problems:
        raise UserError(_summary(source, problems))
    marks = _marks(root, layout, pairs)
    return Manifest(
        root=root,
        fingerprint=_fingerprint(marks, layout),
        classes=classes,
        counts={split: len(stems[split]) for split in SPLITS},
        files={
            split: {
                pair.stem: tuple(mark.size for mark in pair.marks)
                for pair in pairs
                if pair.split == split
            }
            for split in SPLITS
        },
        source=source,
        layout=layout,
        values={
            split: tuple(
                sorted(frozenset().union(*(pair.values for pair in pairs if pair.split == split)))
            )
            for split in SPLITS
        },
        marks=marks,
    )


def _survey(
    root: Path, layout: Layout, expected: dict[str, int]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the stems of all pairs per split, and what is missing."""
    problems = [f"{name} is missing" for name in layout.own_files if not (root / name).is_file()]
    stems = {}
    for split in SPLITS:
        stems[split], found = _stems(root, layout, split)
        problems += found
        number = len(stems[split])
        wanted = expected.get(split, number)
        if number != wanted:
            problems.append(f"{split} has {number} image pairs instead of {wanted}")
        elif not number and not found:
            problems.append(f"{split} holds no images")
    return stems, problems


def read_classes(path: Path) -> tuple[str, ...] | None:
    """Read the 150 class names from `objectInfo150.txt`; the first where several are given.

    Returns None where the rows are not numbered 1 … 150.
    """
    lines = path.read_text(errors="replace").splitlines()[1:]
    rows = [line.split(maxsplit=5) for line in lines if line.strip()]  # Idx Ratio Train … Name
    if [row[0] for row in rows] != [str(number + 1) for number in range(CLASSES)]:
        return None
    return tuple(row[-1].split(",")[0].strip() for row in rows)


def _stems(root: Path, layout: Layout, split: str) -> tuple[list[str], list[str]]:
    """Return the stems that have both files, sorted, and a problem for each that has one."""
    part = layout.splits[split]
    images = _names(root / part.images, layout.image_suffix)
    annotations = _names(root / part.annotations, layout.annotation_suffix)
    if images is None or annotations is None:
        return [], [f"folder {part.images if images is None else part.annotations} is missing"]
    wanted = _listed(root / part.names) if part.names else None
    if wanted is not None:
        images, annotations = images & wanted, annotations & wanted
        missing = [f"{part.names} names {stem}, which has no files" for stem in wanted - images]
    else:
        missing = []
    lonely = [
        f"{part.images}/{stem}{layout.image_suffix} has no annotation"
        for stem in images - annotations
    ]
    lonely += [
        f"{part.annotations}/{stem}{layout.annotation_suffix} has no image"
        for stem in annotations - images
    ]
    return sorted(images & annotations), sorted(missing + lonely)


def _listed(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()}


def _names(folder: Path, suffix: str) -> set[str] | None:
    """Return the names in a folder and those below it, without suffix; None without a folder."""
    if not folder.is_dir():
        return None
    # Archives made on a Mac hold a "._name" next to each name.
    return {
        os.path.relpath(os.path.join(parent, name), folder).removesuffix(suffix)
        for parent, _, files in os.walk(folder)
        for name in files
        if name.endswith(suffix) and not name.startswith(".")
    }


def _look(
    root: Path, layout: Layout, jobs: list[tuple[str, str]], workers: int | None
) -> Iterator[Pair]:
    workers = workers or len(os.sched_getaffinity(0))
    check = functools.partial(check_pair, root, layout)
    if workers == 1 or len(jobs) < FEW_PAIRS:
        yield from progress(map(check, jobs), "verify", "image", total=len(jobs))
        return
    # Spawned, not forked: the caller may run threads (a progress bar does).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            done: Iterable[Pair] = pool.map(check, jobs, chunksize=32)
            yield from progress(done, "verify", "image", total=len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def check_pair(root: Path, layout: Layout, job: tuple[str, str]) -> Pair:
    """Look at one pair (split, stem); what is wrong with it becomes its `problem`."""
    split, stem = job
    paths = layout.pair(root, split, stem)
    try:
        marks, contents = zip(*map(mark_file, paths), strict=True)
        kind = FORMATS.get(layout.image_suffix[layout.image_suffix.rfind(".") :].lower(), "PNG")
        shape = _image_size(contents[0], paths[0].relative_to(root), kind)
        values = _check_annotation(contents[1], paths[1].relative_to(root), shape, layout)
    except (_Problem, OSError) as error:
        return Pair(split, stem, problem=str(error))
    return Pair(split, stem, marks, values)


class _Problem(Exception):
    """Something is wrong with a file; the message names it."""


def _image_size(content: bytes, name: Path, kind: str) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(content), formats=[kind]) as image:
            size = oriented_size(image)
            _check_size(size, name)
            image.load()
            return size
    except _Problem:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise _Problem(f"{name} is not a readable {kind}") from error


def _check_size(size: tuple[int, int], name: Path) -> None:
    try:
        check_pixels(size)
    except TooLarge as error:
        raise _Problem(f"{name}: {error}") from error
    if max(size) > LONGEST_RATIO * min(size):
        raise _Problem(f"{name} is {size[0]}×{size[1]}, more than {LONGEST_RATIO} to 1")


def _check_annotation(
    content: bytes, name: Path, shape: tuple[int, int], layout: Layout
) -> frozenset[int]:
    """Return the values that an annotation has."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 26:
        raise _Problem(f"{name} is not a readable PNG")
    depth, kind = content[24], content[25]  # of the header, which Pillow translates to modes
    # The colours of a palette are for the eye: values are its indices, as in PASCAL VOC.
    if kind not in ((PNG_GREY,) if layout == ADE20K else (PNG_GREY, PNG_PALETTE)):
        raise _Problem(f"{name} is {PNG_KINDS.get(kind, 'odd')} instead of one 8-bit channel")
    if depth != 8:
        raise _Problem(f"{name} has {depth} bits instead of 8")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            _check_size(image.size, name)
            values = np.asarray(image)
    except _Problem:
        raise
    except Exception as error:
        raise _Problem(f"{name} is not a readable PNG") from error
    if values.shape[::-1] != shape:
        wide, high = values.shape[::-1]
        raise _Problem(f"{name} is {wide}×{high} and its image {shape[0]}×{shape[1]}")
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if layout == ADE20K:
        if found.size and found[-1] > CLASSES:
            raise _Problem(f"{name} has value {found[-1]}, over {CLASSES}")
    elif (unknown := found[~layout.allowed()[found]]).size:
        allowed = ranges(np.flatnonzero(layout.allowed()).tolist())
        raise _Problem(f"{name} has value {ranges(unknown.tolist())}; only {allowed} mean anything")
    return frozenset(found.tolist())


def _summary(source: str, problems: list[str]) -> str:
    named = "; ".join(problems[:NAMED_PROBLEMS])
    more = len(problems) - NAMED_PROBLEMS
    rest = f"; and {more} more" if more > 0 else ""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return f"{source}: {count}: {named}{rest}; correct the files or get the data again"


def _marks(root: Path, layout: Layout, pairs: list[Pair]) -> dict[str, FileMark]:
    """Return the marks of all files by their path below `root`."""
    marks = {}
    for pair in pairs:
        paths = layout.pair(root, pair.split, pair.stem)
        for path, mark in zip(paths, pair.marks, strict=True):
            marks[path.relative_to(root).as_posix()] = mark
    return marks | {name: mark_file(root / name)[0] for name in layout.own_files}


def _fingerprint(marks: dict[str, FileMark], layout: Layout) -> str:
    whole = hashlib.sha256()
    if layout != ADE20K:  # the same files with another meaning are other data
        whole.update(json.dumps(layout.as_dict(), sort_keys=True).encode())
    for name, mark in sorted(marks.items()):
        whole.update(f"{name}\0{mark.size}\0{mark.sha256}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
