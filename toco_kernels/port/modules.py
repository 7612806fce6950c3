"""What stands in for a class of modules: a class of ours that gives way to the original wherever it cannot stand in."""

import functools
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .slots import Slot


class _Kind(type):
    """The class of stand-ins. They make no classes of their own kind: what is derived from one gets the original."""

    slot: "Slot"

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict, **options):
        stand_ins = [base for base in bases if isinstance(base, _Kind)]
        if not stand_ins:
            return super().__new__(cls, name, bases, namespace, **options)
        for base in stand_ins:
            base.slot.keep_original(f"{name} is derived from it, and may rely on its insides")
        bases = tuple(base.slot.original if isinstance(base, _Kind) else base for base in bases)
        return type(bases[0])(name, bases, namespace, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, cls.slot.original)


def module_class(slot: "Slot", original: type[nn.Module]) -> type[nn.Module]:
    """The stand-in for one class. Its instances become the original's where the original stays."""

    class StandIn(slot.ours, metaclass=_Kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.__dict__.update(_toco_arguments=(args, kwargs), _toco_set=set())
            if not _is_ours(slot):
                self._become_original()

        def _original(self) -> nn.Module:
            """Made with the same arguments, and given what was set since."""
            args, kwargs = self.__dict__["_toco_arguments"]
            with slot.named_original():
                made = original(*args, **kwargs)
            for name in self.__dict__["_toco_set"]:
                setattr(made, name, getattr(self, name))
            return made.train(self.training)

        def _become_original(self) -> None:
            made = self._original()
            made.__dict__ |= {name: hooks for name, hooks in self.__dict__.items() if name.endswith("_hooks")}
            self.__dict__ = made.__dict__
            self.__class__ = original

        def __call__(self, *args, **kwargs):
            def call_original(*args, **kwargs):
                slot.check_importable()
                made = self._original()
                device = next((x.device for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
                return made.to(device)(*args, **kwargs)

            result = slot.call(call_original, super().__call__, args, kwargs, quiet=self.forward)
            if not _is_ours(slot):
                self._become_original()
            return result

        def __getattr__(self, name: str):
            try:
                return super().__getattr__(name)
            except AttributeError:
                if not self._is_the_originals(name):
                    raise
            slot.keep_original(f"its {name} is used, which ours does not have")
            self._become_original()
            return getattr(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            if name not in ("training", "__dict__", "__class__") and "_toco_set" in self.__dict__:
                if not hasattr(slot.ours, name) and name not in self.__dict__ and self._is_the_originals(name):
                    slot.keep_original(f"its {name} is set, which ours does not have")
                    self._become_original()
                    return setattr(self, name, value)
                self.__dict__["_toco_set"].add(name)
            super().__setattr__(name, value)

        def _is_the_originals(self, name: str) -> bool:
            known = not name.startswith("_") and "_toco_arguments" in self.__dict__
            return known and hasattr(self._original(), name)

        def __reduce_ex__(self, protocol):
            """As a call of the class by its name, so that what was saved can be read without this package too."""
            if not _is_ours(slot):
                self._become_original()
                return self.__reduce_ex__(protocol)
            args, kwargs = self.__dict__["_toco_arguments"]
            kept = {"training", "_toco_set"} | self.__dict__["_toco_set"]
            state = {name: x for name, x in self.__dict__.items() if name in kept or name.endswith("_hooks")}
            return functools.partial(type(self), *args, **kwargs), (), state

    StandIn.slot = slot
    for name in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(StandIn, name, getattr(original, name))
    return StandIn


def _is_ours(slot: "Slot") -> bool:
    return slot.verdict is None or slot.verdict.ours
