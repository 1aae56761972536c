"""The garbage collector rests while the libraries are loaded, and looks for nothing among them."""

import subprocess
import sys

LOAD = """
import gc
import sys
from cae_seg.loading import loading_libraries

searches = []
gc.callbacks.append(lambda phase, info: searches.append(phase))
with loading_libraries():
    import mmengine
    import mmseg
    kept = [[] for _ in range(10_000)]
assert not searches, searches
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > 50_000, frozen

with loading_libraries():
    assert gc.isenabled()
    kept = [[] for _ in range(10_000)]
assert searches
assert gc.get_freeze_count() <= frozen
"""


def test_libraries_are_loaded_without_a_search_for_garbage_the_first_time():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOAD], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
