"""A run's metrics → MLflow; the only place that knows MLflow.

Training writes its numbers to files and never waits for a tracker. What is here reads those files
and brings to MLflow whatever is missing there: `following` while a run trains (servers only),
`track` once it is over, and again whenever a delivery failed.
"""

from cae_seg.tracking.live import follow, following
from cae_seg.tracking.store import ensure_store, tracking_uri, ui_address, ui_command
from cae_seg.tracking.sync import track

__all__ = [
    "ensure_store",
    "follow",
    "following",
    "track",
    "tracking_uri",
    "ui_address",
    "ui_command",
]
