"""Makes `isinstance(loss, torchrl LossModule)` true, in either import order.

torchrl's trainers and target updaters ask for it. Its class is an ABC: a virtual subclass is
registered when, and only if, torchrl is imported.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

HOME = "torchrl.objectives.common"


class _Registering(Loader):
    """Runs torchrl's own loader, then registers."""

    def __init__(self, inner: Any, cls: type) -> None:
        self.inner, self.cls = inner, cls

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.inner.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        module.LossModule.register(self.cls)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _Watch(MetaPathFinder):
    """Waits for torchrl's module to be imported, once."""

    def __init__(self, cls: type) -> None:
        self.cls = cls

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's
    ) -> ModuleSpec | None:
        if fullname != HOME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self.cls)
        return spec


def register_as_loss_module(cls: type) -> type:
    """Make a class a virtual subclass of torchrl's LossModule, now or when torchrl is imported."""
    loaded = sys.modules.get(HOME)
    if loaded is not None and hasattr(loaded, "LossModule"):
        loaded.LossModule.register(cls)
    else:
        sys.meta_path.insert(0, _Watch(cls))
    return cls
