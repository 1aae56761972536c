"""Stock mmsegmentation against cae-seg: the same work, the same weights, one process.

A case is a function `(Options) -> dict` registered under a name by `@case`; see `suite`.
"""
