"""A sheet with several data sets: each is prepared once, and each run uses its own."""

SHEET = """
datasets:
  leaves:
    {type: folder, source: leaves, classes: names.txt, reduce_zero_label: true}
defaults: {gpus: 0, cpus: 1}
experiments:
  - &row
    {name: on_ade, backbone: ViT-tiny, pretraining_epochs: 1, checkpoint: a.pth,
    learning_rate: 1e-3}
  - {<<: *row, name: from_nothing, checkpoint: none}
  - {<<: *row, name: on_leaves, data: leaves, class_weights: [1, 2], aug_test: true}
"""


def test_each_run_gets_the_data_of_its_row(checkout, tmp_path):
    (tmp_path / "sheet.yaml").write_text(SHEET)
    (tmp_path / "a.pth").touch()
    (tmp_path / "names.txt").write_text("a\nb\n")
    (tmp_path / "leaves").mkdir()
    calls = tmp_path / "calls"
    arguments = ("--profile", "local", "--config", "sheet=sheet.yaml")
    checkout.run("results/table.md", *arguments, STUB_CALLS=str(calls))
    made = [call.split("\0")[:-1] for call in calls.read_text().split("\x1e\0")[:-1]]
    prepared = {call[2]: call for call in made if call[:2] == ["prepare", "data"]}
    assert len(prepared) == sum(call[:2] == ["prepare", "data"] for call in made) == 2
    leaves = prepared["--source=leaves"]
    assert "--root=data/leaves" in leaves
    for option in ("--type=folder", "--classes=names.txt", "--reduce-zero-label=true"):
        assert option in leaves
    for command in ("train", "evaluate"):
        data = {
            option for call in made if call[0] == command for option in call if "--data=" in option
        }
        assert data == {"--data=data/ade20k/manifest.json", "--data=data/leaves/manifest.json"}
    trained = {call[1]: call for call in made if call[0] == "train"}
    assert not [option for option in trained["--name=from_nothing"] if "--pretrained" in option]
    assert "--cfg-options=model.pretrained=None" in trained["--name=from_nothing"]
    assert [option for option in trained["--name=on_ade"] if "--pretrained=" in option]
    assert sum(call[:2] == ["prepare", "checkpoint"] for call in made) == 2
    augmented = [call for call in made if "--aug-test" in call]
    assert [option for call in augmented for option in call if "--out=" in option] == [
        "--out=results/on_leaves/seed_0/metrics_aug_test.json"
    ]
    assert sum("--cfg-options=model.class_weights=[1.0,2.0]" in call for call in made) == 2
