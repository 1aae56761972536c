# The entry at the root of a clone, where Snakemake looks first; the workflow is workflow/Snakefile.
include: "workflow/Snakefile"


workflow.default_target = "all"  # which an included file does not decide
