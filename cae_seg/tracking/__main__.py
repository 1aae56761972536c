"""`python -m cae_seg.tracking WORK_DIR [SHEET]`: the process that `following` starts."""

import sys
from pathlib import Path

from cae_seg.tracking.live import follow_parent

follow_parent(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
