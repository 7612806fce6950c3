"""One decision for all ranks.

Every rank compares on its own inputs and says what it found. They agree through the key-value store of their meeting,
not by a collective: a function that only one rank calls, in validation say, must not wait for the others for ever.
"""

import json
import os
import time
from dataclasses import replace

import torch.distributed as dist

from .verify import Verdict

PATIENCE = 3.0  # seconds; the same again for every second that comparing took, since the others may be slower


def known(key: str) -> tuple[bool, str] | None:
    """What the ranks have agreed on: whether ours runs, and why not; None before they have."""
    store = _store()
    if store is None or not store.check([f"{key}/all"]):
        return None
    return tuple(json.loads(store.get(f"{key}/all")))


def agree(key: str, verdict: Verdict, seconds: float) -> Verdict:
    """The verdict of all ranks: ours runs if it may on every rank that has called the function.

    Args:
        key: names the function, the same on every rank.
        verdict: this rank's.
        seconds: how long comparing took. Ranks that have not answered after a multiple of that are not waited for, and
            take what the others have decided when they come.
    """
    store = _store()
    if store is None:
        return verdict
    store.set(f"{key}/{dist.get_rank()}", json.dumps([verdict.ours, verdict.detail]))
    ranks = [f"{key}/{rank}" for rank in range(dist.get_world_size())]
    end = time.monotonic() + PATIENCE * (1 + seconds)
    while time.monotonic() < end and not store.check([f"{key}/all"]) and not store.check(ranks):
        time.sleep(0.01)
    answers = {i: json.loads(store.get(rank)) for i, rank in enumerate(ranks) if store.check([rank])}
    against = [f"rank {i}: {detail}" for i, (ours, detail) in answers.items() if not ours]
    if store.add(f"{key}/first", 1) == 1:  # whoever is first decides, for those too who come later
        store.set(f"{key}/all", json.dumps([not against, "; ".join(against)]))
    ours, detail = json.loads(store.get(f"{key}/all"))
    if ours == verdict.ours:
        return verdict
    return replace(verdict, ours=ours, state="verified elsewhere" if ours else "differs elsewhere", detail=detail)


def is_first_to(what: str) -> bool:
    """Whether no other rank has asked this; true where this process is alone."""
    store = _store()
    return store is None or store.add(what, 1) == 1


def _store():
    """The store of the default process group; None where this process is alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        store = dist.distributed_c10d._get_default_store()
        return None if store is _inherited else store
    return None


_inherited = None  # what a worker by fork has of its parent: one connection, over which two must not speak


def _after_fork() -> None:
    global _inherited
    _inherited = _store()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
