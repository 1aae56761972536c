"""Make a data set ready: download, extract, verify, write its manifest."""
