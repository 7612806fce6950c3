"""Other people's repositories on this package: `port` rewrites their files, `run` does it while Python imports them.

fingerprints   what a function is, apart from how it is written
registry       the known fingerprints, what stands in for each, and how closely
shims          what no longer runs under today's Python, NumPy, torch and timm
analysis       all of that about one file
rewrite        a file with imports of ours, and the diff of a repository (LibCST)
importer       the same at import, for one process and its children
slots          the functions that were replaced in this process: first calls, costs, decisions
verify         original and ours on the same inputs;   agree: one decision for all ranks
patch          `compat.patch` and `compat.unpatch`, for notebooks
report         what `run` prints at the end
"""
