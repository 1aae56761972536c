"""Look at every pair of a data set in the ADE20K layout."""

import functools
import hashlib
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
from cae_seg.data.prepare.manifest import CLASSES, SPLITS, Manifest, annotation_path, image_path
from cae_seg.errors import UserError
from cae_seg.progress import progress

CLASS_FILE = "objectInfo150.txt"
SCENE_FILE = "sceneCategories.txt"
LISTS = (CLASS_FILE, SCENE_FILE)
NAMED_PROBLEMS = 3
LONGEST_RATIO = 200  # of the sides of an image: a longer one shrinks to no pixel in a transform
# Below this many pairs, starting processes costs more than they save.
FEW_PAIRS = 500
PNG_GREY, PNG_KINDS = 0, {2: "in colour", 3: "in palette colours", 4: "with alpha", 6: "in colour"}


@dataclass(frozen=True)
class Pair:
    """What looking at one image and its annotation gave."""

    split: str
    stem: str
    marks: tuple[FileMark, ...] = ()
    problem: str | None = None


def verify(
    root: Path, source: str, *, expected: dict[str, int] | None = None, workers: int | None = None
) -> Manifest:
    """Check every pair of the data set in `root`, and take its fingerprint.

    Args:
        root: the folder with `images/`, `annotations/`, `objectInfo150.txt`,
            `sceneCategories.txt`.
        source: where it came from, for the record and the messages.
        expected: how many images each split must hold.
        workers: processes; all CPUs that we may use unless given.

    Raises:
        UserError: something is missing or wrong; the number of problems and the first few.
    """
    stems, problems = _survey(root, expected or {})
    classes = read_classes(root / CLASS_FILE) if (root / CLASS_FILE).is_file() else ()
    if classes is None:
        problems.append(f"{CLASS_FILE} does not list classes 1 to {CLASSES}")
    jobs = [(split, stem) for split in SPLITS for stem in stems[split]]
    pairs = list(_look(root, jobs, workers))
    problems += [pair.problem for pair in pairs if pair.problem]
    if problems:
        raise UserError(_summary(source, problems))
    marks = _marks(root, pairs)
    return Manifest(
        root=root,
        fingerprint=_fingerprint(marks),
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
        marks=marks,
    )


def _survey(root: Path, expected: dict[str, int]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the stems of all pairs per split, and what is missing."""
    problems = [f"{name} is missing" for name in LISTS if not (root / name).is_file()]
    stems = {}
    for split in SPLITS:
        stems[split], found = _stems(root, split)
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


def _stems(root: Path, split: str) -> tuple[list[str], list[str]]:
    """Return the stems that have both files, sorted, and a problem for each that has one."""
    images = _names(root / "images" / split, ".jpg")
    annotations = _names(root / "annotations" / split, ".png")
    if images is None or annotations is None:
        kind = "images" if images is None else "annotations"
        return [], [f"folder {kind}/{split} is missing"]
    lonely = [f"images/{split}/{stem}.jpg has no annotation" for stem in images - annotations]
    lonely += [f"annotations/{split}/{stem}.png has no image" for stem in annotations - images]
    return sorted(images & annotations), sorted(lonely)


def _names(folder: Path, suffix: str) -> set[str] | None:
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        # Archives made on a Mac hold a "._name" beside each name.
        return {
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix) and not entry.name.startswith(".")
        }


def _look(root: Path, jobs: list[tuple[str, str]], workers: int | None) -> Iterator[Pair]:
    workers = workers or len(os.sched_getaffinity(0))
    check = functools.partial(check_pair, root)
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


def check_pair(root: Path, job: tuple[str, str]) -> Pair:
    """Look at one pair (split, stem); what is wrong with it becomes its `problem`."""
    split, stem = job
    paths = image_path(root, split, stem), annotation_path(root, split, stem)
    try:
        marks, contents = zip(*map(mark_file, paths), strict=True)
        shape = _image_size(contents[0], paths[0].relative_to(root))
        _check_annotation(contents[1], paths[1].relative_to(root), shape)
    except (_Problem, OSError) as error:
        return Pair(split, stem, problem=str(error))
    return Pair(split, stem, marks)


class _Problem(Exception):
    """Something is wrong with a file; the message names it."""


def _image_size(content: bytes, name: Path) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as image:
            size = oriented_size(image)
            _check_size(size, name)
            image.load()
            return size
    except _Problem:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise _Problem(f"{name} is not a readable JPEG") from error


def _check_size(size: tuple[int, int], name: Path) -> None:
    try:
        check_pixels(size)
    except TooLarge as error:
        raise _Problem(f"{name}: {error}") from error
    if max(size) > LONGEST_RATIO * min(size):
        raise _Problem(f"{name} is {size[0]}×{size[1]}, more than {LONGEST_RATIO} to 1")


def _check_annotation(content: bytes, name: Path, shape: tuple[int, int]) -> None:
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 26:
        raise _Problem(f"{name} is not a readable PNG")
    depth, kind = content[24], content[25]  # of the header, which Pillow translates to modes
    if kind != PNG_GREY:
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
    if values.max(initial=0) > CLASSES:
        raise _Problem(f"{name} has value {values.max()}, over {CLASSES}")


def _summary(source: str, problems: list[str]) -> str:
    named = "; ".join(problems[:NAMED_PROBLEMS])
    more = len(problems) - NAMED_PROBLEMS
    rest = f"; and {more} more" if more > 0 else ""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return f"{source}: {count}: {named}{rest}; mend the files or get the archive again"


def _marks(root: Path, pairs: list[Pair]) -> dict[str, FileMark]:
    """Return the marks of all files by their path below `root`."""
    marks = {}
    for pair in pairs:
        paths = (
            image_path(root, pair.split, pair.stem),
            annotation_path(root, pair.split, pair.stem),
        )
        for path, mark in zip(paths, pair.marks, strict=True):
            marks[path.relative_to(root).as_posix()] = mark
    return marks | {name: mark_file(root / name)[0] for name in LISTS}


def _fingerprint(marks: dict[str, FileMark]) -> str:
    whole = hashlib.sha256()
    for name, mark in sorted(marks.items()):
        whole.update(f"{name}\0{mark.size}\0{mark.sha256}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()
