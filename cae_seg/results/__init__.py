"""From metrics files to the table, the figures and the claim."""
