"""Running a config: training, evaluation, prediction, and surviving interruptions."""
