"""The loss as a file for inference hardware: installed as klppo_compile.export.

`export_loss` writes and checks one; `klppo_compile.export.evaluation` runs one without torch.
"""

from typing import TYPE_CHECKING, Any

if __name__ != "klppo_compile.export":
    raise ImportError(
        f"This folder is the package klppo_compile.export; it was imported as {__name__}. "
        "Use `import klppo_compile.export`, or `python -m klppo_compile.export.<module>`."
    )

if TYPE_CHECKING:
    from klppo_compile.export.exporting import export_loss

__all__ = ["export_loss"]


def __getattr__(name: str) -> Any:
    """Load torch when something is exported, not when something is evaluated."""
    if name != "export_loss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from klppo_compile.export.exporting import export_loss

    return export_loss
