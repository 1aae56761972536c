"""The key `compile`: what it compiles, what stands in the record, and where it is refused."""

import json

import pytest
import torch
from interruptions import StopAfter, losses, same, weights

from cae_seg.engine.job import DONE, STOPPED
from cae_seg.errors import UserError
from cae_seg.launch import rank
from cae_seg.launch.launcher import launch_train
from cae_seg.run.deadline import StopSignal

# Traces and differentiates as the default backend does, but needs no compiler.
TRACED = {"compile": {"backend": "aot_eager"}}


def graphs() -> int:
    """Graphs that torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def afresh():
    """Forget what other tests have compiled."""
    torch._dynamo.reset()


def breaks() -> dict[str, int]:
    """Why torch has left a graph for eager code, in this process, and how often."""
    return dict(torch._dynamo.utils.counters["graph_break"])


def test_compiled_parts_train_as_eager_ones_and_the_metadata_says_so(make_job, undisturbed):
    job, before, broken = make_job("compiled", cfg_options=TRACED), graphs(), breaks()
    assert launch_train(job) == DONE
    # One for the first block, whose drop path is off, and one for all others; one for each size
    # of the heads' tails, in place or not: three laterals, four pooled maps, the bottleneck, the
    # finest map, and the auxiliary head's. None by evaluations.
    assert graphs() == before + 2 + 10
    assert breaks() == broken
    assert losses(job) == pytest.approx(losses(undisturbed), rel=1e-4)
    compiled, eager = (json.loads(one.out.read_text()) for one in (job, undisturbed))
    assert compiled["accelerations"] == [*eager["accelerations"], "compile"]
    assert compiled["identity"] != eager["identity"]
    assert weights(job).keys() == weights(undisturbed).keys()


def test_a_compiled_run_resumes(make_job):
    jobs = [make_job(name, cfg_options=TRACED) for name in ("whole", "stopped")]
    assert launch_train(jobs[0]) == DONE
    assert rank.run(jobs[1], "cpu", StopAfter(3)) == STOPPED
    assert rank.run(jobs[1], "cpu", StopSignal()) == DONE
    assert same(weights(jobs[0]), weights(jobs[1]))


def test_false_compiles_nothing(make_job, undisturbed):
    job, before = make_job("off", cfg_options={"compile": False}, iterations=1), graphs()
    assert launch_train(job) == DONE
    assert graphs() == before
    assert "compile" not in json.loads(job.out.read_text())["accelerations"]


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"compile": True}, {"deterministic": True}, "compile: .* --deterministic promises; leave"),
        ({"compile": 3}, {}, "compile=3: must be True, False, or arguments of torch.compile"),
        ({"compile.bakend": "x"}, {}, "compile has no bakend; nearest: backend"),
        ({"compile.backend": "bronze"}, {}, "compile: torch.compile refuses .*bronze"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(make_job, options, changes, message):
    with pytest.raises(UserError, match=message) as raised:
        launch_train(make_job(cfg_options=options, **changes))
    assert "\n" not in str(raised.value)


def test_a_missing_compiler_and_a_backbone_without_blocks_are_refused(make_job, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="compile: no-such-compiler is not on the PATH"):
        launch_train(make_job(cfg_options={"compile": True}))
    single = {"model.backbone.depth": 1, "model.backbone.out_indices": [0, 0, 0, 0]}
    with pytest.raises(UserError, match="compile: CAE has no row of equal blocks"):
        launch_train(make_job("single", cfg_options=TRACED | single))
