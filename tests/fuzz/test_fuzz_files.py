"""Archives, images, checkpoints and the JSON files of a run, mutated: one line and no harm."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from data.ade_tree import make_tree, zip_tree
from fake_runs import make_run
from fuzz.harness import (
    explore,
    json_values,
    mutated_bytes,
    mutated_json,
    refusals_of_one_line,
    run,
    sandbox,
)
from hypothesis import strategies as st

from cae_seg.errors import UserError
from cae_seg.models.backbones.cae import CAE
from cae_seg.models.pretrained.load import load_pretrained
from cae_seg.models.pretrained.reading import load_checkpoint_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PREPARE = ("prepare", "data", "--root", "data", "--manifest", "data/manifest.json", "--source")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def archive(tree, tmp_path_factory) -> bytes:
    return zip_tree(tree, tmp_path_factory.mktemp("zip") / "a.zip").read_bytes()


def test_mutated_archives(archive):
    def check(content):
        with sandbox():
            Path("a.zip").write_bytes(content)
            run(*PREPARE, "a.zip")

    explore(check, mutated_bytes(archive))


names = st.text(max_size=20) | st.sampled_from(
    [
        "../x",
        "/x",
        "a\\..\\..\\x",
        "C:x",
        ".",
        "..",
        "a/",
        "a//b",
        "\x00",
        "con",
        "a" * 300,
        "\ud800",
    ]
)


def test_archives_with_entries_of_any_name(archive):
    def check(entries):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as content:
            for name, attributes in entries:
                try:
                    entry = zipfile.ZipInfo(name)
                    entry.external_attr = attributes
                    content.writestr(entry, b"x")
                except (ValueError, UnicodeEncodeError):
                    continue  # a name that the writer itself refuses
        with sandbox():
            Path("a.zip").write_bytes(stream.getvalue())
            run(*PREPARE, "a.zip")

    explore(check, st.lists(st.tuples(names, st.integers(0, 2**32 - 1)), min_size=1, max_size=3))


@pytest.mark.parametrize("kind", ["images/training/ADE_train_00000001.jpg",
                                  "annotations/validation/ADE_val_00000002.png",
                                  "objectInfo150.txt"])  # fmt: skip
def test_mutated_images_and_annotations(tree, tmp_path_factory, kind):
    copy = make_tree(tmp_path_factory.mktemp("copy"))

    def check(content):
        (copy / kind).write_bytes(content)
        with sandbox():
            run(*PREPARE, str(copy))

    explore(check, mutated_bytes((tree / kind).read_bytes()))


@pytest.fixture(scope="module")
def model() -> CAE:
    return CAE(
        img_size=32,
        embed_dim=8,
        depth=1,
        num_heads=2,
        use_rel_pos_bias=True,
        use_sincos_pos_embed=False,
        use_abs_pos_emb=True,
        out_indices=[0, 0, 0, 0],
    )


def load(model: CAE, content: bytes) -> None:
    with sandbox():
        Path("c.pth").write_bytes(content)
        with refusals_of_one_line():
            load_pretrained(model, Path("c.pth"))


def test_mutated_checkpoints(model):
    stream = io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": 3}, stream)

    def check(content):
        load(model, content)

    explore(check, mutated_bytes(stream.getvalue()))


tensors = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill, dtype=torch.float32).to(dtype),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(
        [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    ),
    st.sampled_from([0.0, 1.0, float("nan"), float("inf")]),
)


def test_checkpoints_of_any_content(model):
    state = model.state_dict()
    keys = st.sampled_from(sorted(state)) | st.text(max_size=6) | st.integers()
    states = st.dictionaries(keys, tensors | json_values, max_size=4)
    wrappers = st.sampled_from(["model", "state_dict", "module", "teacher", "meta", "x"])

    def check(changes, containers, whole):
        value = {**(state if whole else {}), **changes}
        for name in containers:
            value = {name: value}
        stream = io.BytesIO()
        torch.save(value, stream)
        load(model, stream.getvalue())

    explore(check, states, st.lists(wrappers, max_size=3), st.booleans())


literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["CAE", "os.system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "model", "_scope_", "a", "dataset"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def test_configs_in_weights(model):
    from cae_seg.engine.weights_config import config_of_weights

    text = "model = dict(type='CAE')\nval_dataloader = dict(dataset=dict(type='X', pipeline=[]))\n"
    texts = mutated_bytes(text.encode()).map(lambda data: data.decode(errors="replace"))
    made = st.builds(lambda m, v: f"model = {m!r}\nval_dataloader = {v!r}\n", literals, literals)

    def check(source):
        with sandbox(), refusals_of_one_line():
            config_of_weights(Path("w.pth"), {"meta": {"cfg": source}})

    explore(check, texts | made | st.text())


@pytest.mark.parametrize(
    "name", ["metrics.json", "run.json", "work/metrics.jsonl", "work/run_metadata.json"]
)
def test_mutated_files_of_a_run(name):
    row = "name: a, backbone: ViT-B, pretraining_epochs: 1, checkpoint: c.pth, learning_rate: 1e-4"
    with sandbox() as folder:
        source = make_run(folder / "a" / "seed_0", "a") / name
        lines = [json.loads(line) for line in source.read_text().splitlines()][:3]
    whole = lines if name.endswith("l") else lines[0]

    def check(value):
        with sandbox() as folder:
            made = make_run(folder / "results" / "a" / "seed_0", "a")
            (folder / "recipe.py").write_text("")
            (folder / "sheet.yaml").write_text(f"experiments: [{{{row}, config: recipe.py}}]\n")
            if name.endswith("l") or "work" in name:
                (made / "run.json").unlink()
                (made / "metrics.json").unlink()
            texts = value if isinstance(value, list) and name.endswith("l") else [value]
            (made / name).write_text("\n".join(json.dumps(text) for text in texts))
            run("table", "--sheet", "sheet.yaml", "--partial")
            run("aggregate-seeds", str(made / "metrics.json"), "--out", "out.json")

    explore(check, mutated_json(whole))


def test_mutated_manifests(tree):
    with sandbox():
        run(*PREPARE, str(tree))
        whole = json.loads(Path("data/manifest.json").read_text())

    def check(value):
        with sandbox():
            Path("manifest.json").write_text(json.dumps(value))
            run("prepare", "data", "--verify", "--manifest", "manifest.json")

    explore(check, mutated_json(whole))


def test_bytes_that_are_no_checkpoint():
    def check(content):
        with sandbox():
            for name in ("c.pth", "c.safetensors"):
                Path(name).write_bytes(content)
                with pytest.raises(UserError):
                    load_checkpoint_file(Path(name))

    explore(
        check,
        st.binary(max_size=200) | st.binary(max_size=50).map(lambda data: b"PK\x03\x04" + data),
    )
