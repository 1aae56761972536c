"""Bring to MLflow what it does not have yet of a run. Safe to repeat, from several processes.

The only memory is MLflow's own: before anything is sent, the run is looked up by its identity and
asked which points it has. So it makes no difference where an earlier delivery was cut off.
"""

import contextlib
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from cae_seg.errors import UserError
from cae_seg.files import atomic_write_json, read_note
from cae_seg.locks import FileLock
from cae_seg.redaction import redact_uri
from cae_seg.run.paths import METADATA, RUN, MetricsHistory, RunDir, find_runs, open_run
from cae_seg.scratch import scratch_folder
from cae_seg.tracking import artifacts
from cae_seg.tracking.describe import (
    BEGUN,
    DELIVERED,
    FOLDER,
    IDENTITY,
    Point,
    curve_points,
    dataset_input,
    final_points,
    labels_of,
    parameters,
    run_name,
    tags,
)
from cae_seg.tracking.models import NAME, write_model
from cae_seg.tracking.store import (
    StoreUnavailable,
    ensure_store,
    find_experiment,
    is_server,
    make_client,
    open_artifacts,
    reaching_mlflow,
    tracking_uri,
)

T = TypeVar("T")
BATCH = 1000  # metrics in one call, MLflow's limit
LOCK_SECONDS = 60.0
SERVER_PATIENCE = 30.0
DATABASE_PATIENCE = 600.0
LONGEST_PAUSE = 15.0

logger = logging.getLogger(__name__)


def track(
    run_dir: Path,
    *,
    sheet: Path | None = None,
    out: Path | None = None,
    uri: str | None = None,
    patience: float | None = None,
) -> dict[str, Any]:
    """Deliver a finished run, or every run below a folder, and write down what was delivered.

    A tracker that stays away is no failure: then `tracked.json` says `"delivered": false`, a
    warning is logged, and the same command delivers everything later.

    Args:
        run_dir: a seed's folder, or a folder of many runs.
        sheet: the experiment sheet, for backbone and pretraining; remembered in `tracked.json`.
        out: file of the answer; `tracked.json` in the run's folder unless told.
        uri: MLflow's address; `tracking_uri()` unless told.
        patience: seconds to wait for a server that is down (30) or a locked database (600).

    Returns:
        What `tracked.json` says; for a folder of runs `{"runs": [one such for each]}`.

    Raises:
        UserError: there is no run.
    """
    uri = uri or tracking_uri()
    patience = (
        (SERVER_PATIENCE if is_server(uri) else DATABASE_PATIENCE) if patience is None else patience
    )
    run = open_run(run_dir)
    if run.exists:
        return _track_one(run, sheet, out, uri, patience)
    runs = find_runs(run_dir)
    if not runs:
        raise UserError(f"{run_dir}: no run here; name a folder with a {RUN} or {METADATA}")
    answers = []
    for one in runs:
        answers.append(_track_one(one, sheet, None, uri, patience))
        if not answers[-1]["delivered"]:
            patience = 0.0  # who waited once for this tracker does not wait again for each run
    answer = {"runs": answers}
    if out is not None:
        atomic_write_json(out, answer)
    return answer


def _track_one(
    run: RunDir, sheet: Path | None, out: Path | None, uri: str, patience: float
) -> dict[str, Any]:
    out = out or run.path / "tracked.json"
    metadata = run.metadata()
    labels = labels_of(metadata, sheet) or _earlier_labels(run)
    answer = {
        "schema": 1,
        "experiment": metadata.get("experiment"),
        "seed": metadata["seed"],
        "identity": metadata["identity"],
        "labels": labels,
        "uri": redact_uri(uri),
    }
    try:
        sync = RunSync(run, uri, labels, sheet)
        answer |= {"delivered": True} | retry(sync.sync_all, patience)
    except StoreUnavailable as error:
        answer |= {"delivered": False, "error": str(error)}
        logger.warning(
            "%s: NOT DELIVERED to %s (%s); nothing is lost: run `cae-seg track %s` later",
            run.path,
            redact_uri(uri),
            error,
            run.path,
        )
    atomic_write_json(out, answer)
    return answer


def _earlier_labels(run: RunDir) -> dict[str, Any]:
    labels = read_note(run.path / "tracked.json").get("labels")
    return labels if isinstance(labels, dict) else {}


def retry(action: Callable[[], T], patience: float) -> T:
    """Repeat `action` with growing pauses while MLflow is out of reach, for `patience` seconds."""
    deadline, pause, reported = time.monotonic() + patience, 0.25, False
    while True:
        try:
            return action()
        except StoreUnavailable as error:
            left = deadline - time.monotonic()
            if not error.transient or left <= 0:
                raise
            if not reported:
                logger.warning("MLflow: %s; trying again for %.0f s at most", error, left)
                reported = True
            # Spread out, so that jobs that end together do not come back together.
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
            pause = min(LONGEST_PAUSE, pause * 2)


class RunSync:
    """One run on its way to one MLflow. Every method may raise `StoreUnavailable`."""

    def __init__(self, run: RunDir, uri: str, labels: dict[str, Any], sheet: Path | None) -> None:
        self.run, self.uri, self.labels, self.sheet = run, uri, labels, sheet
        self.run_id: str | None = None
        self._client: Any = None
        self._logged_steps: dict[str, set[int]] = {}
        self._visualizations: set[str] = set()

    def sync_all(self) -> dict[str, Any]:
        """Deliver everything and close the run; return its id and what had to be sent."""
        with self._reaching():
            metadata, history, metrics = self.run.metadata(), self.run.history(), self.run.metrics()
            digest = _digest(self.run, history, self.labels)
            found = self._find(metadata, history)
            if found is not None and found.data.tags.get(DELIVERED) == digest:
                return {"run_id": self.run_id, "points_sent": 0}
            sent = self._deliver(metadata, history)
            sent += self._send_summary(metadata, metrics)
            self._send_files(metadata, metrics)
            if self.run.finished:
                self._client.set_terminated(
                    self.run_id, "FINISHED", _milliseconds(metadata.get("ended"))
                )
            self._client.set_tag(self.run_id, DELIVERED, digest)
            return {"run_id": self.run_id, "points_sent": sent}

    def sync_live(self) -> int:
        """Deliver what a run in progress has logged so far; return the number of points sent."""
        with self._reaching():
            metadata, history = self.run.metadata(), self.run.history()
            if self.run_id is None:
                found = self._find(metadata, history)
                if found is not None and found.info.status != "RUNNING":
                    self._client.update_run(self.run_id, status="RUNNING")
                return self._deliver(metadata, history)
            self._send_visualizations()
            return self._send_points(curve_points(history))

    def _forget(self) -> None:
        # MLflow may have got more or less than we know: ask again at the next delivery.
        self.run_id, self._logged_steps, self._visualizations = None, {}, set()

    def mark_paused(self) -> None:
        """Mark a cleanly stopped run in MLflow as one that will resume."""
        with self._reaching():
            self._client.update_run(self.run_id, status="SCHEDULED")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Be alone among the processes that deliver this run; forget what failed."""
        try:
            ensure_store(self.uri)
            with (
                FileLock(self.run.work.path / "tracking.lock").held(LOCK_SECONDS),
                reaching_mlflow(),
            ):
                self._client = self._client or make_client(self.uri)
                yield
        except TimeoutError as error:
            self._forget()
            raise StoreUnavailable(
                "the run is being delivered elsewhere", transient=True
            ) from error
        except StoreUnavailable:
            self._forget()
            raise

    def _deliver(self, metadata: dict[str, Any], history: MetricsHistory) -> int:
        if self.run_id is None:
            self._create(metadata, history)
        self._describe(metadata, history)
        self._send_visualizations()
        return self._send_points(curve_points(history))

    def _find(self, metadata: dict[str, Any], history: MetricsHistory) -> Any | None:
        """Look the run up by its identity, and put away the one it replaces.

        Two runs of one identity are told apart by when their metrics begin: a run that was
        resumed or is tracked again continues the same history, one that was trained again in
        the same folder has a new one and takes the old one's place.
        """
        self._experiment = find_experiment(self._client, self.uri)
        where = f"tags.`{IDENTITY}` = '{metadata['identity']}'"
        begun = self._begun(history).get(BEGUN)
        found = None
        for run in self._client.search_runs([self._experiment], where):
            theirs = run.data.tags.get(BEGUN)
            if run.info.run_name != run_name(metadata):
                continue
            if theirs == begun or begun is None or theirs is None:
                found = found or run
            elif run.data.tags.get(FOLDER) == self._folder():
                self._client.delete_run(run.info.run_id)
        if found is not None:
            self.run_id = found.info.run_id
            self._logged_steps = {
                key: {m.step for m in self._client.get_metric_history(self.run_id, key)}
                for key in found.data.metrics
            }
        return found

    def _folder(self) -> str:
        # Hashed, because a filter of MLflow's cannot quote every path.
        return hashlib.sha256(str(self.run.work.path.resolve()).encode()).hexdigest()[:16]

    @staticmethod
    def _begun(history: MetricsHistory) -> dict[str, str]:
        return {} if history.begun is None else {BEGUN: repr(history.begun)}

    def _create(self, metadata: dict[str, Any], history: MetricsHistory) -> None:
        where = f"tags.`{FOLDER}` = '{self._folder()}' and attributes.status = 'RUNNING'"
        for given_up in self._client.search_runs([self._experiment], where):
            self._client.set_terminated(given_up.info.run_id, "KILLED")
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(metadata.get("started")),
            tags={IDENTITY: metadata["identity"], FOLDER: self._folder()} | self._begun(history),
            run_name=run_name(metadata),
        )
        self.run_id = run.info.run_id
        if metadata.get("data"):
            self._client.log_inputs(self.run_id, datasets=[dataset_input(metadata["data"])])

    def _describe(self, metadata: dict[str, Any], history: MetricsHistory) -> None:
        from mlflow.entities import Param, RunTag

        known = self._client.get_run(self.run_id).data.params
        # A parameter can be written once; what differs from an earlier attempt becomes a tag.
        wanted = parameters(metadata, self.labels)
        changed = {f"now.{k}": v for k, v in wanted.items() if known.get(k, v) != v}
        values = tags(metadata, self.labels, self.sheet) | changed
        values["folder"] = str(self.run.work.path.resolve())
        values |= self._begun(history)
        self._client.log_batch(
            self.run_id,
            params=[Param(key, value) for key, value in wanted.items() if key not in known],
            tags=[RunTag(key, value) for key, value in values.items()],
        )

    def _send_points(self, points: list[Point]) -> int:
        """Send the points whose step is not there yet, in order."""
        from mlflow.entities import Metric

        new = [point for point in points if point.step not in self._logged_steps.get(point.key, ())]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            for point in batch:
                self._logged_steps.setdefault(point.key, set()).add(point.step)
        return len(new)

    def _send_summary(self, metadata: dict[str, Any], metrics: dict[str, Any] | None) -> int:
        """Send the final scores, unless the ones that are there are the same."""
        if metrics is None:
            return 0
        from mlflow.entities import Metric

        time_ = int(self.run.metrics_file.stat().st_mtime * 1000)
        known = self._client.get_run(self.run_id).data.metrics
        points = final_points(metadata, metrics, time_)
        new = [point for point in points if known.get(point.key) != point.value]
        if new:
            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in new])
        return len(new)

    def _send_files(self, metadata: dict[str, Any], metrics: dict[str, Any] | None) -> None:
        with scratch_folder() as scratch:
            folder = scratch / "artifacts"
            folder.mkdir()
            artifacts.gather(self.run, metadata, metrics, folder)
            weights = self.run.work.weights
            if self.run.finished and weights.is_file():
                write_model(weights, folder / NAME)
            self._artifacts().log_artifacts(str(folder))

    def _artifacts(self) -> Any:
        """Return where MLflow keeps this run's files."""
        return open_artifacts(self._client, self.uri, self.run_id)

    def _send_visualizations(self) -> None:
        for name, path in artifacts.visualizations(self.run).items():
            if name not in self._visualizations:
                folder = str(Path("visualizations", name).parent)
                self._artifacts().log_artifact(str(path), folder)
                self._visualizations.add(name)


def _milliseconds(moment: str | None) -> int | None:
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None


def _digest(run: RunDir, history: MetricsHistory, labels: dict[str, Any]) -> str:
    """Name the state of a run's files, so that a run that is all there costs one question."""
    state = [
        run.metadata(),
        run.metrics(),
        labels,
        list(artifacts.visualizations(run)),
        history.last_time,
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
