import base64
import contextlib
import os
import shutil
import stat
import zipfile

import cv2
import numpy as np
import pytest
from ade_tree import FOLDER, STEMS, make_tree, save_label, zip_tree
from PIL import Image

import cae_seg.data.prepare.extract
import cae_seg.data.prepare.prepare
import cae_seg.data.prepare.verify
from cae_seg.cli import main
from cae_seg.data.images import read_image
from cae_seg.data.prepare.index import check_unchanged, index_path
from cae_seg.data.prepare.manifest import Manifest, load_manifest, save_manifest
from cae_seg.data.prepare.prepare import prepare
from cae_seg.engine.job import TrainJob
from cae_seg.engine.validate import validate_job
from cae_seg.errors import UserError

EXPECTED = {"training": 3, "validation": 2}
FIRST = "ADE_train_00000001"


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "made")


@pytest.fixture
def archive(tree, tmp_path):
    return zip_tree(tree, tmp_path / "ade.zip")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "data", tmp_path / "data" / "manifest.json"


def refuse(source, place, match, **kwargs):
    """Assert a refusal of one line, after which nothing looks like a data set."""
    root, manifest = place
    with pytest.raises(UserError, match=match) as refusal:
        prepare(str(source), root, manifest, **kwargs)
    message = str(refusal.value)
    assert "\n" not in message
    assert not manifest.exists()
    if root.is_dir():
        assert [path.name for path in root.iterdir() if ".prepare.lock" not in path.name] == []
    return message


def state(root):
    """Return inode, size and time of every file but those of the lock, to tell what was touched."""
    files = [path for path in root.rglob("*") if path.is_file()]
    stats = {path: path.stat() for path in files if ".prepare.lock" not in path.name}
    return {path: (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats.items()}


def test_archive_becomes_a_verified_set(archive, place):
    root, manifest = place
    prepared = prepare(str(archive), root, manifest, expected=EXPECTED)
    assert prepared == load_manifest(manifest)
    assert prepared.counts == EXPECTED
    assert prepared.root == root / FOLDER
    assert prepared.classes[:2] == ("class 1", "class 2")
    assert len(prepared.classes) == 150
    for split, stems in STEMS.items():
        assert list(prepared.files[split]) == stems
    image = prepared.root / "images" / "training" / f"{FIRST}.jpg"
    assert prepared.files["training"][FIRST][0] == image.stat().st_size


@pytest.mark.parametrize("inside", [True, False])
def test_extracted_folder_is_used_in_place(tree, place, inside):
    source = tree if inside else tree.parent
    prepared = prepare(str(source), *place, expected=EXPECTED)
    assert prepared.root == tree
    assert not (place[0] / FOLDER).exists()


JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP//////////////////////////////////////////////////////////"
    "////////////////////////////wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAf/EABQQAQAAAAAAAAAA"
    "AAAAAAAAAAD/2gAIAQEAAD8AH//Z"
)
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR4nGNkZ4AAJgaKGAAEeQAXX3/srQAAAABJRU5E"
    "rkJggg=="
)


def test_fingerprint_of_the_same_files_is_the_same_in_every_version(tree, place):
    """Runs know their data by it: another one would train all of them again."""
    for path in tree.rglob("*.*g"):
        path.write_bytes(base64.b64decode(JPEG if path.suffix == ".jpg" else PNG))
    assert prepare(str(tree), *place).fingerprint[:16] == "e8345f6afb2af181"


def test_fingerprint_tells_the_content_and_not_the_place(tree, archive, tmp_path):
    one = prepare(str(tree), tmp_path / "a", tmp_path / "a" / "m.json")
    two = prepare(str(archive), tmp_path / "b", tmp_path / "b" / "m.json")
    assert one.fingerprint == two.fingerprint
    label = np.asarray(Image.open(tree / "annotations/training" / f"{FIRST}.png")).copy()
    label[0, 0] = (label[0, 0] + 1) % 151
    save_label(tree, "training", FIRST, label)
    changed = prepare(str(tree), tmp_path / "a", tmp_path / "a" / "m.json")
    assert changed.fingerprint != one.fingerprint


def test_moving_the_project_keeps_the_manifest_valid(archive, place, tmp_path):
    prepare(str(archive), *place)
    place[0].rename(tmp_path / "moved")
    assert load_manifest(tmp_path / "moved" / "manifest.json").root == tmp_path / "moved" / FOLDER


@pytest.mark.parametrize("snakemake_deletes", [False, True])
def test_what_is_ready_is_only_looked_at(archive, place, monkeypatch, snakemake_deletes):
    first = prepare(str(archive), *place)
    if snakemake_deletes:
        place[1].unlink()
    before = state(place[0])
    monkeypatch.setattr(cae_seg.data.prepare.prepare, "verify", None)
    monkeypatch.setattr(cae_seg.data.prepare.prepare, "extract", None)
    assert prepare(str(archive), *place) == first
    after = state(place[0])
    assert place[1].exists()
    after.pop(place[1]) if snakemake_deletes else None
    assert after == before


def test_changed_archive_replaces_the_set(archive, place, tmp_path):
    first = prepare(str(archive), *place)
    other = zip_tree(make_tree(tmp_path / "other", seed=1), archive)
    second = prepare(str(other), *place)
    assert second.fingerprint != first.fingerprint
    assert load_manifest(place[1]) == second
    assert sorted(path.name for path in place[0].iterdir() if path.is_dir()) == [FOLDER]


def test_damaged_files_are_unpacked_again(archive, place):
    first = prepare(str(archive), *place)
    (first.root / "images" / "training" / f"{FIRST}.jpg").write_bytes(b"")
    assert prepare(str(archive), *place) == first
    assert (first.root / "images" / "training" / f"{FIRST}.jpg").stat().st_size > 0


class Interrupt(BaseException):
    """Leaves as a killed process leaves: nothing tidies up after it."""


def interrupt(monkeypatch, module, name, call):
    """Have the `call`-th call of a function end the process instead."""
    original, calls = getattr(module, name), []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Interrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


MOMENTS = [
    *[(cae_seg.data.prepare.extract, "_write", call) for call in (1, 5, 12)],
    *[(cae_seg.data.prepare.verify, "check_pair", call) for call in (1, 4)],
    *[(os, "replace", call) for call in range(2, 8)],  # the first is that of the lock's note
    (cae_seg.data.prepare.prepare, "_remember", 1),
    (cae_seg.data.prepare.prepare, "save_manifest", 2),
]


@pytest.mark.parametrize("again", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[1]}-{moment[2]}")
def test_interrupted_anywhere_the_next_start_ends_well(
    archive, place, tmp_path, monkeypatch, moment, again
):
    if again:
        prepare(str(archive), *place)
        archive = zip_tree(make_tree(tmp_path / "other", seed=1), archive)
    wanted = prepare(str(archive), tmp_path / "whole", tmp_path / "whole" / "m.json").fingerprint
    with monkeypatch.context() as patch:
        interrupt(patch, *moment)
        with contextlib.suppress(Interrupt):
            prepare(str(archive), *place)
        if place[1].exists():
            # Half a set never looks whole; the old set's manifest never vouches for the new one.
            assert load_manifest(place[1]).fingerprint == wanted
    assert prepare(str(archive), *place, expected=EXPECTED).fingerprint == wanted
    assert load_manifest(place[1]).fingerprint == wanted
    left = {path.name for path in place[0].iterdir() if path.is_dir()}
    assert left == {FOLDER}


def test_missing_archive(place, tmp_path):
    refuse(tmp_path / "no.zip", place, r"no\.zip: no such archive")


def test_truncated_archive(archive, place):
    archive.write_bytes(archive.read_bytes()[:-200])
    refuse(archive, place, r"ade\.zip: is truncated; delete it and get it again")


def test_archive_that_is_no_zip(place, tmp_path):
    (tmp_path / "page.zip").write_text("<html>404</html>")
    refuse(tmp_path / "page.zip", place, r"page\.zip: is not a zip archive")


def test_archive_damaged_inside(archive, place):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as listing:
        entry = listing.getinfo(f"{FOLDER}/images/training/{FIRST}.jpg")
    content[entry.header_offset + 200] ^= 0xFF
    archive.write_bytes(content)
    refuse(archive, place, rf"{FIRST}\.jpg' is damaged")


def test_archive_of_something_else(place, tmp_path):
    with zipfile.ZipFile(tmp_path / "else.zip", "w") as content:
        content.writestr("readme.txt", "hello")
    refuse(tmp_path / "else.zip", place, r"else\.zip: holds no ADEChallengeData2016/images")


def test_wrong_checksum(archive, place):
    refuse(archive, place, r"ade\.zip: its sha256 is \w{64}, not 0000", sha256="0" * 64)


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_archive_with_a_path_that_escapes(archive, place, tmp_path, name):
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(zipfile.ZipInfo(name), "gotcha")
    refuse(archive, place, "outside the data folder")
    assert not list(tmp_path.rglob("out.txt"))


@pytest.mark.parametrize(("kind", "what"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_archive_with_a_link_or_device(archive, place, kind, what):
    entry = zipfile.ZipInfo(f"{FOLDER}/images/training/odd.jpg")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(entry, "/etc/passwd")
    refuse(archive, place, f"odd.jpg' is {what}")


def test_image_without_annotation_and_the_reverse(tree, place, tmp_path):
    (tree / "annotations/training" / f"{FIRST}.png").unlink()
    (tree / "images/validation/ADE_val_00000002.jpg").unlink()
    message = refuse(zip_tree(tree, tmp_path / "lonely.zip"), place, "2 problems")
    assert f"images/training/{FIRST}.jpg has no annotation" in message
    assert "annotations/validation/ADE_val_00000002.png has no image" in message


GREY = np.zeros((16, 24), np.uint8)
TRANSPARENT = np.zeros((16, 24, 2), np.uint8)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.zeros((24, 16), np.uint8), "is 16×24 and its image 24×16"),
        (np.zeros((16, 24), np.uint16), "has 16 bits instead of 8"),
        (np.zeros((16, 24, 3), np.uint8), "is in colour instead of one 8-bit channel"),
        (TRANSPARENT, "is with alpha instead of one 8-bit channel"),
        (np.full((16, 24), 151, np.uint8), "has value 151, over 150"),
        (np.zeros((16, 24), bool), "has 1 bits instead of 8"),
    ],
    ids=["size", "16-bit", "colour", "alpha", "151", "1-bit"],
)
def test_annotation_of_the_wrong_kind(tree, place, tmp_path, values, what):
    save_label(tree, "training", FIRST, values)
    archive = zip_tree(tree, tmp_path / "odd.zip")
    refuse(archive, place, rf"1 problem: annotations/training/{FIRST}\.png {what}")


@pytest.mark.parametrize("content", [b"", b"not a JPEG", "truncated", "png"])
def test_unreadable_jpeg(tree, place, tmp_path, content):
    image = tree / "images/training" / f"{FIRST}.jpg"
    if content == "truncated":
        content = image.read_bytes()[:-150]
    elif content == "png":
        content = (tree / "annotations/training" / f"{FIRST}.png").read_bytes()
    image.write_bytes(content)
    archive = zip_tree(tree, tmp_path / "unreadable.zip")
    refuse(archive, place, rf"images/training/{FIRST}\.jpg is not a readable JPEG")


def test_unreadable_annotation(tree, place, tmp_path):
    label = tree / "annotations/training" / f"{FIRST}.png"
    label.write_bytes(label.read_bytes()[:60])
    refuse(zip_tree(tree, tmp_path / "a.zip"), place, rf"{FIRST}\.png is not a readable PNG")


def test_many_problems_are_counted_and_the_first_named(tree, place, tmp_path):
    for split, stems in STEMS.items():
        for stem in stems:
            save_label(tree, split, stem, np.full((16, 24), 200, np.uint8))
    archive = zip_tree(tree, tmp_path / "bad.zip")
    message = refuse(archive, place, r"bad\.zip: 5 problems: .*; and 2 more; correct")
    assert message.count("has value 200") == 3


@pytest.mark.parametrize("name", ["objectInfo150.txt", "sceneCategories.txt"])
def test_missing_list(tree, place, tmp_path, name):
    (tree / name).unlink()
    refuse(zip_tree(tree, tmp_path / "a.zip"), place, f"{name} is missing")


def test_class_list_of_other_length(tree, place, tmp_path):
    lines = (tree / "objectInfo150.txt").read_text().splitlines()
    (tree / "objectInfo150.txt").write_text("\n".join(lines[:-1]))
    refuse(zip_tree(tree, tmp_path / "a.zip"), place, "does not list classes 1 to 150")


def test_missing_split(tree, place, tmp_path):
    shutil.rmtree(tree / "annotations" / "validation")
    archive = zip_tree(tree, tmp_path / "a.zip")
    refuse(archive, place, "folder annotations/validation is missing")


def test_counts_are_compared_with_what_is_declared(archive, place):
    refuse(archive, place, "3 image pairs instead of 20210", expected={"training": 20210})


def test_counts_are_compared_for_a_set_that_is_ready_too(archive, place):
    prepare(str(archive), *place)
    with pytest.raises(UserError, match="3 image pairs instead of 4"):
        prepare(str(archive), *place, expected={"training": 4})


def test_folder_that_cannot_be_written(archive, tmp_path):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "data"
    with pytest.raises(UserError, match="cannot be read or written"):
        prepare(str(archive), root, root / "manifest.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(archive, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o555)
    with pytest.raises(UserError, match=r"shut.*cannot be read or written"):
        prepare(str(archive), tmp_path / "shut" / "d", tmp_path / "shut" / "d" / "m.json")


def test_full_disk(archive, place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    refuse(archive, place, r"needs 0\.0 GB and 0\.0 GB are free")


def test_folder_of_the_same_name_is_never_replaced(archive, place):
    precious = place[0] / FOLDER / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(UserError, match="in the way and not of our making"):
        prepare(str(archive), *place)
    assert precious.read_text() == "mine"


def test_many_pairs_are_verified_in_processes(archive, place, monkeypatch):
    monkeypatch.setattr(cae_seg.data.prepare.verify, "FEW_PAIRS", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert prepare(str(archive), *place).counts == EXPECTED


class TestLoadManifest:
    def test_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"m\.json: no such manifest; run `cae-seg prepare"):
            load_manifest(tmp_path / "m.json")

    @pytest.mark.parametrize("text", ["{}", "[1]", '{"schema": 1, "splits": 3}', "half a js"])
    def test_foreign(self, tmp_path, text):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(UserError, match=r"m\.json: not a"):
            load_manifest(tmp_path / "m.json")

    def test_of_another_version(self, tmp_path):
        (tmp_path / "m.json").write_text('{"schema": 99}')
        with pytest.raises(UserError, match="another version"):
            load_manifest(tmp_path / "m.json")

    def test_files_moved(self, archive, place):
        shutil.rmtree(prepare(str(archive), *place).root / "images")
        with pytest.raises(UserError, match="moved or changed since"):
            load_manifest(place[1])

    def test_of_the_real_set_stays_below_a_megabyte(self, tmp_path):
        # Snakemake compares contents, and not only times, of files up to this size.
        names = {"training": ("ADE_train", 20_210), "validation": ("ADE_val", 2_000)}
        files = {
            split: {f"{stem}_{n:08d}": (123_456, 12_345) for n in range(count)}
            for split, (stem, count) in names.items()
        }
        counts = {split: len(pairs) for split, pairs in files.items()}
        made = Manifest(tmp_path, "0" * 64, ("building, edifice",) * 150, counts, files, "url")
        save_manifest(made, tmp_path / "m.json")
        assert (tmp_path / "m.json").stat().st_size < 1_000_000


class TestChangesAfterPreparation:
    """Nothing is trained or evaluated on files that are not those of the manifest."""

    def edit(self, root, *, keep_time=False, kind="annotations", suffix="png"):
        file = root / kind / "validation" / f"ADE_val_00000002.{suffix}"
        times = file.stat()
        content = bytearray(file.read_bytes())
        content[-20] ^= 1  # the same size
        file.write_bytes(content)
        if keep_time:
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return file

    def check(self, place, **options):
        return check_unchanged(load_manifest(place[1]), place[1], **options)

    def test_an_unchanged_set_passes(self, archive, place):
        prepare(str(archive), *place)
        assert self.check(place) == self.check(place, thorough=True) == 12

    @pytest.mark.parametrize(("kind", "suffix"), [("annotations", "png"), ("images", "jpg")])
    def test_a_file_edited_in_place_is_named(self, archive, place, kind, suffix):
        file = self.edit(prepare(str(archive), *place).root, kind=kind, suffix=suffix)
        with pytest.raises(UserError, match=f"{file.name}: changed since .*manifest.json"):
            self.check(place)

    def test_a_job_does_not_start_on_changed_data(self, archive, place, tmp_path):
        self.edit(prepare(str(archive), *place).root)
        config = tmp_path / "c.py"
        config.touch()
        job = TrainJob(config=config, work_dir=tmp_path / "w", out=None, data=place[1])
        with pytest.raises(UserError, match="changed since"):
            validate_job(job)
        assert not (tmp_path / "w").exists()

    def test_an_edit_that_hides_its_time_is_found_on_request(self, archive, place, capsys):
        self.edit(prepare(str(archive), *place).root, keep_time=True)
        self.check(place)
        assert main(["prepare", "data", "--verify", "--manifest", str(place[1])]) == 2
        assert "ADE_val_00000002.png: changed since" in capsys.readouterr().err

    def test_a_copy_without_times_stays_valid(self, archive, place, tmp_path):
        prepare(str(archive), *place)
        copy = tmp_path / "copy"
        shutil.copytree(place[0], copy, copy_function=shutil.copyfile)
        manifest = copy / "manifest.json"
        assert check_unchanged(load_manifest(manifest), manifest) == 12

    def test_a_missing_file_is_named(self, archive, place):
        root = prepare(str(archive), *place).root
        (root / "images/training/ADE_train_00000002.jpg").unlink()
        with pytest.raises(UserError, match=r"ADE_train_00000002\.jpg: cannot be read"):
            self.check(place)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 1}', None])
    def test_without_an_index_sizes_are_compared(self, archive, place, text):
        root = prepare(str(archive), *place).root
        index = index_path(place[1])
        index.unlink() if text is None else index.write_text(text)
        assert self.check(place) == 10
        (root / "annotations/training/ADE_train_00000002.png").write_bytes(b"x")
        with pytest.raises(UserError, match=r"ADE_train_00000002\.png: missing or changed"):
            self.check(place)

    def test_prepare_restores_a_lost_index(self, archive, place):
        prepare(str(archive), *place)
        index_path(place[1]).unlink()
        prepare(str(archive), *place)
        assert self.check(place, thorough=True) == 12


def with_orientation(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)


def test_an_image_is_as_large_as_its_exif_orientation_shows_it(tree, place):
    """OpenCV, which training reads with, turns it; the annotation is read as stored."""
    image = tree / "images/training" / f"{FIRST}.jpg"
    with_orientation(image, 6)
    refuse(tree, place, r"\.png is 24×16 and its image 16×24")
    label = tree / "annotations/training" / f"{FIRST}.png"
    save_label(tree, "training", FIRST, np.asarray(Image.open(label)).T.copy())
    prepare(str(tree), *place)
    assert read_image(image).shape == (24, 16, 3)
    assert np.array_equal(read_image(image), cv2.imread(str(image))[..., ::-1])


@pytest.mark.parametrize(
    ("size", "what"), [((10_000, 9_000), "megapixels"), ((3000, 1), "200 to 1")]
)
def test_images_of_extreme_size_are_refused(tree, place, size, what):
    Image.new("L", size).save(tree / "images/training" / f"{FIRST}.jpg")
    refuse(tree, place, what)


@pytest.mark.parametrize("name", ["", "/", ".", "a\nb", "\x1b[31m"])
def test_archive_with_an_entry_without_a_name(tree, place, tmp_path, name):
    archive = zip_tree(tree, tmp_path / "ade.zip")
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(zipfile.ZipInfo(name), b"x")
    refuse(archive, place, r"is no file name|outside the data folder")


@pytest.mark.parametrize(
    ("written", "patched", "said"),
    [("ä.txt", b"\xff\xfe.txt", "is damaged"), ("aXb.txt", b"a\0b.txt", "is no file name")],
    ids=["not UTF-8", "NUL"],
)
def test_archive_with_a_name_that_zip_writers_refuse(tree, place, tmp_path, written, patched, said):
    archive = zip_tree(tree, tmp_path / "ade.zip")
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(written, b"x")
    data = archive.read_bytes()
    assert data.count(written.encode()) == 2  # of the entry and of the directory
    archive.write_bytes(data.replace(written.encode(), patched))
    refuse(archive, place, said)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_compression_of_any_kind(place, tmp_path, method):
    archive = tmp_path / "ade.zip"
    with zipfile.ZipFile(archive, "w", method) as content:
        content.writestr("x.txt", os.urandom(2000))
    data = bytearray(archive.read_bytes())
    data[60:200] = bytes(140)
    archive.write_bytes(data)
    refuse(archive, place, "is damaged")


def test_a_pipe_is_no_archive(place, tmp_path):
    os.mkfifo(tmp_path / "ade.zip")
    refuse(tmp_path / "ade.zip", place, "is no regular file")


def test_a_version_of_zip_that_does_not_exist(archive, place):
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 6] = 255  # version needed to extract
    archive.write_bytes(data)
    refuse(archive, place, "is damaged")
