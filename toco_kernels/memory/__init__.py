"""Where memory goes: `profile()` watches a training step of yours, `python -m toco_kernels memory` measures ours.

    with toco_kernels.memory.profile(model) as report:
        model(images).loss.backward()
    print(report)
"""

from .profile import Place, Report, Row, profile

__all__ = ["Place", "Report", "Row", "profile"]
