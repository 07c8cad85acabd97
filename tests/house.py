"""The house's plan as data: the modules there are, who may import whom, who may know what."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "klppo_compile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
# Folders outside klppo_compile/, by the package they install as.
ROOM_FOLDERS = SETUPTOOLS.get("package-dir", {})

# A unit is a file or folder of the package; it may import any unit of an earlier row.
LAYERS = (
    ("any_size", "passes"),
    ("vocabulary",),
    ("series",),
    ("records",),
    ("distributions", "objective", "penalty", "returns"),
    ("blocks", "inductor", "packing"),
    ("softmax",),
    ("elements",),
    ("sums",),
    ("eager", "advantage", "masks", "recognise"),
    ("backends", "checks", "nodes", "probing", "registry"),
    ("reading", "well_formed"),
    ("functional",),
    ("arguments", "networks", "peer", "policy", "recomputation"),
    ("keys",),
    ("coefficients", "shapes"),
    ("inputs",),
    ("loss",),
    ("compiling",),
    ("__init__", "exit_codes"),
    ("compiler",),
    ("training",),
    ("train",),
    ("commands",),
    ("cli",),
)
CORE = tuple(unit for layer in LAYERS for unit in layer)
# Rooms: what they may import, and who may import them (inside the function that needs it).
ROOMS = {
    "kernels": {
        *("series", "records", "packing", "distributions", "objective", "penalty", "returns"),
    },
    "export": set(CORE) - {"vocabulary", "series", "commands", "cli"},
    "perf": {*CORE, "kernels", "export"},
}
ROOM_IMPORTERS = {
    "kernels": {"backends", "perf"},
    "export": {"commands", "cli", "perf"},
    "perf": {"commands", "cli"},
}
# Parts of one file, split off for their size.
PART_OF = dict.fromkeys(
    (
        "arguments",
        "coefficients",
        "inputs",
        "keys",
        "networks",
        "peer",
        "policy",
        "recomputation",
        "shapes",
    ),
    "loss",
)

MATHEMATICS = {"series", "distributions", "objective", "penalty", "returns"}
TRAINER = {"training", "train"}
COMMANDS = {"commands", "cli"}
# Other people's packages: who may know them. Everyone may name torch.Tensor, as a type.
OUTSIDE = {
    "click": {*COMMANDS, "perf"},
    "gymnasium": {*TRAINER, "perf"},
    "liger_kernel": {"perf"},
    "jinja2": {"perf"},
    "matplotlib": {*TRAINER, "export", "perf"},
    "numpy": {"arguments", "coefficients", *TRAINER, *COMMANDS, "export", "perf"},
    "onnx": {"export", "perf"},
    "onnxruntime": {"export", "perf"},
    "onnxscript": {"export", "perf"},
    "rich": {*TRAINER, *COMMANDS, "export", "perf"},
    "safetensors": {*TRAINER, "export", "perf"},
    "scipy": {"perf"},
    "tensordict": {*PART_OF, "loss", "compiling", *TRAINER, "export", "perf"},
    "torch": {*CORE, *ROOMS} - MATHEMATICS - {"cli"},
    "torchrl": {"perf"},
    "triton": {"kernels", "perf"},
}


def installed_modules() -> dict[str, Path]:
    """Every module of the package, rooms included, by the name it installs under."""
    folders = {PACKAGE: PACKAGE, **ROOM_FOLDERS}
    modules = {}
    for package, folder in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules


MODULES = installed_modules()
UNITS = {*CORE, *ROOMS, *(name.split(".")[1] for name in MODULES if "." in name)}
