"""Modules that have a process group, which can be neither copied nor pickled, and can be copied and pickled."""

import copy

from torch import nn


class WithProcessGroup(nn.Module):
    """Copies use the same `process_group`; pickled modules have None, since the group is of running processes."""

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "process_group": None}

    def __deepcopy__(self, memo: dict):
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin.process_group = self.process_group
        return twin
