"""The loss as Triton kernels: installed as klppo_compile.kernels, for `backends` and `perf`."""

if __name__ != "klppo_compile.kernels":
    raise ImportError(
        f"This folder is the package klppo_compile.kernels; it was imported as {__name__}. "
        "Use `import klppo_compile.kernels`, or `python -m klppo_compile.kernels.<module>`."
    )
