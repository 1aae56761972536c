"""What the engine does at the points of a run that mmengine's hooks name."""
