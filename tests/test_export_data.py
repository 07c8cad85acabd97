"""Rollouts on disk, and statistics of streams: neither needs a graph."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tensordict import TensorDict

from klppo_compile.exit_codes import BadInputError
from klppo_compile.export.data import open_rollout
from klppo_compile.export.gates import GATES, judge
from klppo_compile.export.manifest import InputSpec, Manifest
from klppo_compile.export.statistics import (
    LogHistogram,
    Moments,
    Series,
    Sum,
    WorstRows,
    from_plain,
    to_plain,
)
from klppo_compile.export.structure import ALLOWED

ROWS = 50
SPECS = (
    InputSpec("agents.position", "agents.position", "observation", "float32", (3,)),
    InputSpec("action", "action", "action", "int64", ()),
    InputSpec("old_logits", "logits", "old_head", "float32", (2,)),
    InputSpec("advantage", "advantage", "advantage", "float32", (1,)),
)


def manifest_of(dims=1):
    return Manifest(
        "loss", "categorical", ("logits",), dims, 0, SPECS, (), {}, {}, "float32", 20, 1e-5, "", {}
    )


def arrays(rows=ROWS):
    rng = np.random.default_rng(0)
    return {
        "agents.position": rng.normal(size=(rows, 3)).astype(np.float32),
        "action": rng.integers(0, 2, rows),
        "logits": rng.normal(size=(rows, 2)).astype(np.float32),
        "advantage": rng.normal(size=(rows, 1)).astype(np.float32),
    }


def write(folder, form, values):
    """A rollout in one of the formats, as users write it."""
    if form == "memmap":
        nested = {tuple(key.split(".")): x for key, x in values.items()}
        rollout = TensorDict({}, batch_size=[len(values["action"])])
        for key, x in nested.items():
            rollout[key] = x
        rollout.memmap(folder / "rollout")
        return folder / "rollout"
    path = folder / f"rollout.{form.removesuffix('-packed')}"
    if form == "safetensors":
        save_file(values, path)
    else:
        (np.savez_compressed if form == "npz-packed" else np.savez)(path, **values)
    return path


FORMATS = ("memmap", "npz", "npz-packed", "safetensors")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_rows(form, tmp_path):
    values = arrays()
    with open_rollout(write(tmp_path, form, values)) as rollout:
        matched = rollout.match(manifest_of())
        assert (matched.units, matched.rows, matched.inner) == (ROWS, ROWS, 1)
        ranges = list(matched.batches(0, ROWS, 16))
        assert ranges == [(0, 16), (16, 32), (32, 48), (48, 50)]
        # Forwards, then back: an archive is read as a stream.
        for start, stop in [*ranges, (3, 9)]:
            part = matched.read(start, stop)
            for spec in SPECS:
                np.testing.assert_array_equal(part[spec.name], values[spec.key][start:stop])


def test_batch_and_time_become_rows(tmp_path):
    values = {k: x.reshape(10, 5, *x.shape[1:]) for k, x in arrays().items()}
    with open_rollout(write(tmp_path, "npz", values)) as rollout:
        flat, both = rollout.match(manifest_of()), rollout.match(manifest_of(2))
        assert (flat.rows, flat.units, flat.inner) == (50, 10, 5)
        np.testing.assert_array_equal(flat.read(1, 3)["action"], values["action"][1:3].reshape(-1))
        assert both.read(1, 3)["agents.position"].shape == (2, 5, 3)


def changed(name, value):
    values = arrays()
    values[name] = value(values[name])
    return values


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({k: x for k, x in arrays().items() if k != "logits"}, "it lacks 'logits' and has action"),
        (changed("logits", lambda x: x[:, :1]), r"'logits' must be \[B, 2\]; got \[50, 1\]"),
        (changed("logits", lambda x: x.astype(np.float64)), r"float32; got float64.*astype"),
        (changed("action", lambda x: x.astype(np.float32)), "'action' must be int64; got float32"),
        (changed("advantage", lambda x: x[:7]), r"same rows; .* has \[50\] and advantage \[7\]"),
        (changed("advantage", lambda x: x[:, 0]), r"'advantage' must be \[B, 1\]; got \[50\]"),
        (arrays(0), r"must have rows; its batch is \[0\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(values, reason, tmp_path):
    path = write(tmp_path, "npz", values)
    with open_rollout(path) as rollout, pytest.raises(BadInputError, match=reason):
        rollout.match(manifest_of())


def test_smaller_types_are_widened(tmp_path):
    values = changed("action", lambda x: x.astype(np.uint8))
    with open_rollout(write(tmp_path, "npz", values)) as rollout:
        assert rollout.match(manifest_of()).read(0, 3)["action"].dtype == np.int64


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_refused(form, tmp_path):
    path = write(tmp_path, form, arrays())
    file = path / "action.memmap" if form == "memmap" else path
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(BadInputError, match="rollout"), open_rollout(path) as rollout:
        rollout.match(manifest_of()).read(0, ROWS)


def test_what_is_no_rollout_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip")
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "escape").mkdir()
    leaf = {"shape": [1], "dtype": "torch.float32"}
    (tmp_path / "escape" / "meta.json").write_text(json.dumps({"../../x": leaf}))
    for name in ("a.npz", "a.safetensors", "a.csv", "none.npz", "escape", "."):
        with pytest.raises(BadInputError, match=r"rollout|data"), open_rollout(tmp_path / name):
            pass


def meta(edit):
    """An edit of a folder's meta.json."""

    def apply(folder):
        path = folder / "meta.json"
        values = json.loads(path.read_text())
        edit(values)
        path.write_text(json.dumps(values))

    return apply


def leaf(name, value):
    return meta(lambda values: values["logits"].__setitem__(name, value))


def grow(folder):
    with (folder / "logits.memmap").open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "has no meta.json"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json is not JSON"),
        (lambda folder: (folder / "meta.json").write_bytes(b"\xff"), "meta.json is not JSON"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "meta.json holds no object"),
        (meta(lambda values: values.update(stack_dim=0)), "it is a lazy stack"),
        (meta(lambda values: values.update(sub={"type": "TensorDict"})), "sub has no meta.json"),
        (leaf("shape", 5), "has the shape 5 in meta.json"),
        (leaf("shape", [50.5, 2]), "which is no list of sizes"),
        (leaf("shape", [-50, 2]), "which is no list of sizes"),
        (leaf("dtype", 3), "is of the dtype 3, none of float16"),
        (leaf("dtype", "torch.bfloat16"), r"'logits' is of the dtype torch.bfloat16, .* as one"),
        (lambda folder: (folder / "logits.memmap").unlink(), "its file logits.memmap is not there"),
        (grow, r"must have 400 bytes for float32 \[50, 2\]; logits.memmap has 404"),
    ],
)
def test_a_folder_with_odd_metadata_is_refused_in_its_own_words(edit, reason, tmp_path):
    path = write(tmp_path, "memmap", arrays())
    edit(path)
    with pytest.raises(BadInputError, match=reason), open_rollout(path) as rollout:
        rollout.match(manifest_of())


def test_an_entry_that_no_graph_reads_may_be_anything(tmp_path):
    things = np.array([{}] * ROWS, dtype=object)
    path = write(tmp_path, "npz", {**arrays(), "info": things, "words": np.array(["a"] * ROWS)})
    with open_rollout(path) as rollout:
        assert rollout.match(manifest_of()).rows == ROWS
    for values, reason in (
        ({**arrays(), "logits": things}, "'logits' holds Python objects. Save an array"),
        (changed("logits", np.asfortranarray), r"'logits' is in Fortran order. Save np.ascont"),
    ):
        with (
            open_rollout(write(tmp_path, "npz", values)) as rollout,
            pytest.raises(BadInputError, match=reason),
        ):
            rollout.match(manifest_of())


def test_bytes_that_do_not_unpack_are_an_error_of_the_file(tmp_path):
    path = write(tmp_path, "npz-packed", {"action": arrays()["action"]})
    content = bytearray(path.read_bytes())
    content[150:200] = bytes(50)
    path.write_bytes(content)
    with (
        pytest.raises(BadInputError, match=r"rollout.npz.* Save it again"),
        open_rollout(path) as rollout,
    ):
        rollout.columns["action"].read(0, ROWS)


# ---- statistics


def in_parts(kind, x, cuts, *more):
    """A statistic of parts, merged through JSON, and one of the whole."""
    whole, merged = kind(), kind()
    whole.update(x, *more)
    for part in np.split(np.arange(len(x)), cuts):
        other = kind()
        other.update(x[part], *[m[part] for m in more])
        merged.merge(from_plain(kind, json.loads(json.dumps(to_plain(other)))))
    return whole, merged


@pytest.fixture
def values():
    return np.exp(np.random.default_rng(0).normal(-4, 3, 20_000))


def test_counts_merge_exactly_and_quantiles_to_the_bin(values):
    whole, merged = in_parts(LogHistogram, values, [1, 700, 9000])
    assert (whole.counts == merged.counts).all()
    assert whole.counts.sum() == len(values)
    for q in (0.01, 0.5, 0.999):
        exact = np.sort(values)[int(np.ceil(q * len(values))) - 1]
        assert abs(whole.quantile(q) / exact - 1) <= LogHistogram.BIN_ERROR * 1.000001
    edge = LogHistogram()
    edge.update(np.array([0.0, -1.0, np.inf, 1.0]))
    assert (edge.counts[0], edge.counts[-1], edge.counts.sum()) == (2, 1, 4)
    assert (edge.quantile(0.5), edge.quantile(1.0)) == (0.0, np.inf)


def test_sums_and_moments_merge_to_1e_12(values):
    x = values + 1e6
    _, merged = in_parts(Moments, x, [1, 700, 9000])
    assert merged.count == len(x)
    assert merged.variance == pytest.approx(np.var(x), rel=1e-12)
    assert merged.mean == pytest.approx(np.mean(x), rel=1e-14)
    assert (merged.low, merged.high) == (x.min(), x.max())
    total = Sum()
    for part in (1e16, 1.0, 1.0, -1e16):
        total.add(part)
    assert total.value == 2.0


def test_worst_rows_are_the_same_whoever_finds_them(values):
    rows = np.arange(len(values)) + 1000
    whole, merged = in_parts(WorstRows, values, [1, 700, 9000], rows)
    assert whole.rows == merged.rows
    assert [row for row, _ in whole.rows] == (np.argsort(-values)[:10] + 1000).tolist()


def test_a_series_stays_short_and_merges():
    x = np.random.default_rng(0).random(3_000_000).astype(np.float32)
    rows = np.arange(len(x))
    whole, merged = in_parts(Series, x, [1_000_000], rows)
    assert whole.stretch == merged.stretch
    assert len(whole.counts) <= Series.LIMIT
    assert whole.counts == merged.counts
    first, mean = whole.means()[3]
    assert mean == pytest.approx(x[first : first + whole.stretch].mean(dtype=np.float64), rel=1e-9)


def test_gates_judge_by_the_report():
    report = {"kl_mean": 0.02, "kl_max": 0.5, "ratio_max": 3.0, "ess_fraction": 0.9}
    report |= {"entropy": 1.0, "explained_variance": 0.4, "rows_nonfinite": 0}
    limits = {"max-kl": 0.02, "max-row-kl": 0.4, "min-ess": 0.95, "min-entropy": 0.5}
    found = {v.gate.option: v.passed for v in judge(report, limits)}
    assert found == {"max-kl": True, "max-row-kl": False, "min-ess": False, "min-entropy": True}
    # A number that isn't there, and rows that are no numbers, pass no gate.
    assert not judge({**report, "rows_nonfinite": 1}, {"max-kl": 1.0})[0].passed
    assert not judge({"rows_nonfinite": 0}, {"min-entropy": 0.0})[0].passed
    assert not judge({**report, "kl_mean": np.nan}, {"max-kl": 1.0})[0].passed
    assert len({gate.option for gate in GATES}) == len(GATES)


def test_operators_are_those_that_all_providers_run():
    refused = {"NonZero", "ScatterND", "ScatterElements", "Loop", "If", "Scan", "Multinomial"}
    refused |= {"RandomNormal", "RandomNormalLike", "RandomUniform", "Bernoulli", "Dropout"}
    assert not refused & ALLOWED
