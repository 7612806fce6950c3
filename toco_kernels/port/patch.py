"""`compat.patch` and `compat.unpatch`: replacement in modules that are imported already, for notebooks."""

import functools
import gc
import sys
import types
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import bad_type, bad_value
from .analysis import analyse
from .importer import is_theirs, shown
from .slots import SLOTS, Slot, rebind


@dataclass(frozen=True)
class Patched:
    """One replaced function or class.

    Args:
        name: what the module calls it.
        module: where it is defined.
        replacement: ours, in `toco_kernels.compat`.
        guarantee: how close it is to the original, in words.
        bindings: all names that lead to ours now, `module.name`.
    """

    name: str
    module: str
    replacement: str
    guarantee: str
    bindings: tuple[str, ...]
    slot: Slot = field(repr=False, compare=False)


_PATCHED: list[Patched] = []


def patch(*modules: types.ModuleType, trust: bool = False) -> list[Patched]:
    """Replace the published functions that these modules define, everywhere they have been imported to.

    Names in other modules, `__main__` too, that lead to the same function lead to ours afterwards. The first call of
    each compares the two, and the original stays where they differ.

    Args:
        modules: imported from files.
        trust: compare nothing.

    Returns:
        What was replaced. Functions of an unknown variant are left alone, and so are classes that others are derived
        from; objects made before stay what they are.

    Raises:
        TypeError: something is no module.
        ValueError: a module has no source file.
    """
    done = []
    for module in modules:
        if not isinstance(module, types.ModuleType):
            raise bad_type("modules", "be imported modules", type(module).__name__)
        file = getattr(module, "__file__", None)
        if not file or not file.endswith(".py"):
            raise bad_value("modules", "come from files of Python source", module.__name__)
        for match in analyse(Path(file).read_bytes(), file).matches:
            name, original = match.found.name, getattr(module, match.found.name, None)
            if getattr(original, "__module__", None) != module.__name__ or _is_stand_in(original):
                continue
            if isinstance(original, type) and original.__subclasses__():  # which may rely on its insides
                continue
            slot = Slot(name, shown(file), match.found.node.lineno, match.replacement, trusted=trust)
            stand_in = slot.take(original)
            bindings = tuple(rebind(original, stand_in))
            replacement, guarantee = match.replacement.name, str(match.replacement.guarantee)
            done.append(Patched(name, module.__name__, replacement, guarantee, bindings, slot))
    _PATCHED.extend(done)
    return done


def unpatch() -> list[str]:
    """Undo every `patch`: all names lead to the originals again.

    Returns:
        What still leads to ours and cannot be reached: objects made of a replaced class, and functions that were put
        into containers, defaults or closures.
    """
    slots = [patched.slot for patched in reversed(_PATCHED)]
    _PATCHED.clear()
    for slot in slots:
        list(rebind(slot.stand_in, slot.original))
    if not slots:
        return []
    holders = [(x, {id(held) for held in gc.get_referents(x)}) for x in gc.get_referrers(*(x.stand_in for x in slots))]
    made = Counter(id(type(thing)) for thing in gc.get_objects())
    return [
        name
        for slot in slots
        for name in _others(slot, [x for x, held in holders if id(slot.stand_in) in held], made[id(slot.stand_in)])
    ]


def patch_loaded(trust: bool) -> None:
    """`patch` for everything of the user's that is imported already."""
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "")
        is_main = name in ("__main__", "__mp_main__")
        if not is_main and file.suffix == ".py" and file.is_file() and is_theirs(str(file)):
            patch(module, trust=trust)


def _is_stand_in(thing: object) -> bool:
    return any(thing is slot.stand_in for slot in SLOTS)


def _others(slot: Slot, holders: list[object], made: int) -> list[str]:
    """What leads to a stand-in, other than the slot itself: holders of it, and so many objects made of it."""
    stand_in, found = slot.stand_in, []
    own = [slot.__dict__]
    if isinstance(stand_in, type):
        if made:
            found.append(f"{made} {'object' if made == 1 else 'objects'} of class {slot.name}")
        methods = [x for x in vars(stand_in).values() if isinstance(x, types.FunctionType)]
        own += [stand_in.__mro__, *(cell for method in methods for cell in method.__closure__ or ())]
    for holder in holders:
        if any(holder is x for x in own):
            continue
        if isinstance(holder, types.CellType):
            found.append(f"a closure over {slot.name}")
        elif isinstance(holder, tuple) and (function := _with_defaults(holder)):
            found.append(f"{slot.name} as a default of {function.__qualname__}")
        elif isinstance(holder, (list, dict, set, tuple, functools.partial)):
            found.append(f"{slot.name} in a {type(holder).__name__}")
    return found


def _with_defaults(defaults: tuple) -> types.FunctionType | None:
    """The function that has these defaults."""
    functions = (x for x in gc.get_referrers(defaults) if isinstance(x, types.FunctionType))
    return next((function for function in functions if function.__defaults__ is defaults), None)
