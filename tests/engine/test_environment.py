"""The environment of a run is not recorded: it holds passwords and tokens."""

import pytest

from cae_seg.engine.job import EvaluateJob
from cae_seg.launch.launcher import launch_evaluate, launch_train
from cae_seg.tracking import track

SECRET = "s3cret-of-the-environment"


@pytest.mark.slow
def test_no_variable_of_the_environment_is_stored(make_job, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "MY_TOKEN", "PS1"):
        monkeypatch.setenv(name, SECRET)
    job = make_job(iterations=1)
    assert launch_train(job) == 0
    evaluation = EvaluateJob(
        config=job.config,
        weights=job.work_dir / "weights.pth",
        data=job.data,
        device="cpu",
        out=job.out.with_name("metrics.json"),
        show_dir=tmp_path / "show",
    )
    assert launch_evaluate(evaluation) == 0
    assert track(job.out.parent, uri=f"sqlite:///{tmp_path}/results/mlflow.db")["delivered"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {"run.json", "metrics.json", "train.log", "mlflow.db", "environment.json"} <= names
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
