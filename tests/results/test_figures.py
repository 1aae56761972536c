import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from fake_runs import (
    evaluate_run,
    finish_run,
    make_row,
    make_run,
    make_sheet,
    make_sweep,
    start_run,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cae_seg.data.visualize import draw_comparison, draw_labels
from cae_seg.results.aggregate import aggregate
from cae_seg.results.class_figures import draw_confusion
from cae_seg.results.collect import collect_runs
from cae_seg.results.curves import draw_iterations, draw_learning_rates
from cae_seg.results.figures import write_figures
from cae_seg.sheet.schema import Data

NAMES = ["miou_by_learning_rate", "miou_by_iteration", "loss_by_iteration", "per_class"]
SCORES = {
    (300, "2e-4"): (47.1, 47.3),
    (300, "4e-4"): (48.0, 48.2),
    (1600, "1e-4"): (50.3,),
    (1600, "2e-4"): (50.0, 50.1),
}


@pytest.fixture
def sheet(tmp_path):
    made = make_sweep(tmp_path / "results", SCORES)
    rows = [row.model_copy(update={"published_miou": 50.3}) for row in made.experiments]
    return make_sheet(made.results, rows)


def svg_texts(path):
    return " ".join("".join(element.itertext()) for element in ElementTree.parse(path).iter())


def drawn(sheet):
    runs = collect_runs(sheet)
    return draw_learning_rates(aggregate(runs), runs).axes[0], draw_iterations(runs).axes[0]


def test_every_figure_is_there_in_three_formats_with_its_words(sheet, tmp_path):
    write_figures(sheet, tmp_path / "figures")
    found = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert found == sorted(f"{name}.{end}" for name in NAMES for end in ("png", "svg", "pdf"))
    texts = svg_texts(tmp_path / "figures" / "miou_by_learning_rate.svg")
    for word in ("learning rate", "mIoU (%)", "ViT-B, 300 epochs", "published", "4e-4",
                 "mean over n = 1 to 2 seeds; bars: ± standard deviation"):  # fmt: skip
        assert word in texts
    texts = svg_texts(tmp_path / "figures" / "miou_by_iteration.svg")
    assert "ViT-B, 300 epochs, 2e-4 (n=2)" in texts
    assert "bands: lowest to highest seed" in texts
    assert "training loss" in svg_texts(tmp_path / "figures" / "loss_by_iteration.svg")
    classes = svg_texts(tmp_path / "figures" / "per_class.svg")
    assert "class 149" in classes
    assert "class 7 " not in classes  # has no IoU


def test_a_single_seed_has_no_error_bar(sheet):
    axes, _ = drawn(sheet)
    bars = [bar for container in axes.containers for bar in container.lines[2][0].get_segments()]
    assert len(bars) == 3  # of four combinations, one has one seed
    assert all(top > bottom for (_, bottom), (_, top) in bars)


def test_seeds_of_a_combination_are_one_line_with_a_band(sheet):
    _, axes = drawn(sheet)
    assert len(axes.lines) == 4
    assert len(axes.collections) == 3
    means = sorted(line.get_ydata()[-1] for line in axes.lines)
    assert means == pytest.approx([47.2, 48.1, 50.05, 50.3])


def test_each_data_set_has_axes_of_its_own(tmp_path):
    """Scores on different data do not compare, so no axis holds both."""
    rows, scores = [], {"ade20k": (48.0, 47.0), "leaves": (58.0, 59.0)}
    for data, pair in scores.items():
        for rate, miou in zip(("1e-4", "2e-4"), pair, strict=True):
            row = make_row(f"{data}_{rate}", rate, **({} if data == "ade20k" else {"data": data}))
            make_run(tmp_path / row.name / "seed_0", row.name, miou=miou, learning_rate=float(rate))
            rows.append(row)
    leaves = Data(type="folder", source="leaves", reduce_zero_label=False)
    runs = collect_runs(replace(make_sheet(tmp_path, rows), datasets={"leaves": leaves}))
    for figure in (draw_learning_rates(aggregate(runs), runs), draw_iterations(runs)):
        drawn = [
            {round(line.get_ydata()[-1]) for line in axes.lines if len(line.get_ydata())}
            for axes in figure.axes
        ]
        assert drawn[0] <= {48, 47}
        assert drawn[1] <= {58, 59}
        assert all(drawn)
        notes = [axes.get_title("left") for axes in figure.axes]
        assert notes[0].startswith("ADE20K: ")
        assert notes[1].startswith("leaves: ")


def test_lines_differ_without_colour(sheet):
    axes, over_iterations = drawn(sheet)
    lines = [
        line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata())
    ]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == len(lines) == 2
    looks = {(line.get_marker(), line.get_color()) for line in over_iterations.lines}
    assert len(looks) == 4


def test_labels_at_lines_do_not_overlap(sheet):
    figure = draw_iterations(collect_runs(sheet))
    FigureCanvasAgg(figure).draw()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda b: b.y0)
    assert len(boxes) == 4
    for lower, upper in itertools.pairwise(boxes):
        assert lower.y1 <= upper.y0 + 1
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)


def test_figures_for_a_paper_are_one_column_wide(sheet, tmp_path):
    for path in write_figures(sheet, tmp_path / "paper", paper=True):
        if path.suffix == ".pdf":
            (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ", path.read_bytes())
            assert float(box) == pytest.approx(3.25 * 72), path.name


def test_the_most_confused_classes_are_drawn_as_shares(sheet, tmp_path):
    counts = np.zeros((150, 150), int)
    counts[np.arange(149), np.arange(149)] = 1000
    counts[3, 5] = 3000
    folder = sheet.run_dir("vit_b_1600_lr1e-4", 0)
    evaluate_run(folder, miou=50.3, confusion=[" ".join(map(str, row)) for row in counts.tolist()])
    assert tmp_path / "out/confusion.svg" in write_figures(sheet, tmp_path / "out")
    texts = svg_texts(tmp_path / "out/confusion.svg")
    for word in ("class 3", "class 5", "true class", "the 25 classes with most wrong pixels"):
        assert word in texts
    axes = draw_confusion(counts, [f"class {n}" for n in range(150)], "run").axes[0]
    (picture,) = axes.images
    labels = [label.get_text() for label in axes.get_xticklabels()]
    shares = picture.get_array()
    assert shares[labels.index("class 3"), labels.index("class 5")] == pytest.approx(75)
    assert "class 149" not in labels  # does not occur


def test_the_same_results_give_the_same_bytes(sheet, tmp_path):
    first = write_figures(sheet, tmp_path / "one")
    second = write_figures(sheet, tmp_path / "two")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_figures_of_nothing_say_so(tmp_path):
    sheet = make_sheet(tmp_path / "results", [make_row("row")])
    write_figures(sheet, tmp_path / "figures")
    for name in NAMES:
        assert "no finished run yet" in svg_texts(tmp_path / "figures" / f"{name}.svg")


def test_one_run_is_enough(tmp_path):
    folder = start_run(tmp_path / "results" / "row" / "seed_0")
    finish_run(folder)
    evaluate_run(folder)
    sheet = make_sheet(tmp_path / "results", [make_row("row")])
    write_figures(sheet, tmp_path / "figures")
    assert "row, seed 0" in svg_texts(tmp_path / "figures" / "per_class.svg")


def test_the_last_panels_of_the_best_run_are_shown(sheet, tmp_path):
    for iteration, colour in ((100, "red"), (200, "blue")):
        path = (
            sheet.run_dir("vit_b_1600_lr1e-4", 0)
            / f"work/visualizations/iter_{iteration}/image.png"
        )
        path.parent.mkdir(parents=True)
        Image.new("RGB", (90, 30), colour).save(path)
    write_figures(sheet, tmp_path / "figures")
    pixels = np.asarray(Image.open(tmp_path / "figures" / "predictions.png").convert("RGB"))
    assert (pixels.reshape(-1, 3) == (0, 0, 255)).all(axis=1).mean() > 0.5


def test_ignored_pixels_are_black():
    palette = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    painted = draw_labels(np.array([[0, 1, 255]]), palette)
    assert painted.tolist() == [[[10, 20, 30], [40, 50, 60], [0, 0, 0]]]


def test_a_panel_shows_image_truth_and_prediction_side_by_side():
    image = np.full((50, 80, 3), 200, dtype=np.uint8)
    truth, prediction = np.zeros((50, 80), np.uint8), np.ones((50, 80), np.int64)
    palette = np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    picture = draw_comparison(image, truth, prediction, ["wall", "sky"], palette).reshape(-1, 3)
    for colour in ((200, 200, 200), (255, 0, 0), (0, 0, 255)):
        assert (picture == colour).all(axis=1).sum() >= 50 * 80
    alone = draw_comparison(image, None, prediction, ["wall", "sky"], palette).reshape(-1, 3)
    assert not (alone == (255, 0, 0)).all(axis=1).any()
