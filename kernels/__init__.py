"""The loss as Triton kernels: installed as klppo_compile.kernels, for `backends` and `perf`.

Every kernel here is parallel over rows. What runs backward over time comes before the loss and is
the caller's (torchrl's GAE, say). A reverse scan over time would be a template of its own beside
`samples`, its recurrence a text of the mathematics like `objective`, and its operator its own too:
the loss reads only the advantages and targets that it would write.
"""

if __name__ != "klppo_compile.kernels":
    raise ImportError(
        f"This folder is the package klppo_compile.kernels; it was imported as {__name__}. "
        "Use `import klppo_compile.kernels`, or `python -m klppo_compile.kernels.<module>`."
    )
