"""Measurements of the loss: installed as klppo_compile.perf."""

if __name__ != "klppo_compile.perf":
    raise ImportError(
        f"This folder is the package klppo_compile.perf; it was imported as {__name__}. "
        "Use `import klppo_compile.perf`, or `python -m klppo_compile.perf.<module>`."
    )
