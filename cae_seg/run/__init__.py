"""The folder of a run and what survives in it; decides no numbers."""
