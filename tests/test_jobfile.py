"""The job file: YAML 1.2, overrides, and errors that name the key."""

import json
import math
from pathlib import Path

import pydantic
import pytest

import tiny
from bucket import assert_fails, gristmill
from gristmill import jobfile
from gristmill.config import Job
from gristmill.errors import JobError
from gristmill.model import arithmetic

JOBS = sorted((Path(__file__).parent.parent / "jobs").glob("*.yaml"))

FLOATS: dict[str, object] = {"6e-4": 6e-4, "6E-4": 6e-4, "1e3": 1e3, "1.5e+3": 1.5e3, ".5": 0.5, "-.5": -0.5, "5.": 5.0, "1_0.5": 10.5}
INFINITE: dict[str, object] = {".inf": math.inf, "-.Inf": -math.inf, "+.INF": math.inf, "!!float 1": 1.0}
INTEGERS: dict[str, object] = {"0": 0, "-0": 0, "+12": 12, "-7": -7, "600_000": 600_000, "0x10": 16, "0xfF": 255, "0o17": 15, "!!int 7": 7}
BOOLEANS: dict[str, object] = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NULLS: dict[str, object] = {"~": None, "null": None, "Null": None, "NULL": None, "": None}
QUOTED: dict[str, object] = {"'12'": "12", '"true"': "true", "!!str 12": "12"}
WORDS = (
    *("no", "No", "NO", "yes", "Yes", "on", "On", "off", "OFF", "y", "Y", "n", "N", "tRue", "nULL", "none", "None"),
    *("007", "00", "08", "-01", "0o8", "0o", "0x", "0x_", "0b11", "-0x1", "1:30", "12:30:45", "2001-01-01"),
    *("1e", "e3", "_1", "1.2.3", "inf", "nan", "=", "<<"),
)
SCALARS = FLOATS | INFINITE | INTEGERS | BOOLEANS | NULLS | QUOTED | {word: word for word in WORDS}


def problem(text: str) -> JobError:
    """The error of a YAML text."""
    with pytest.raises(JobError) as caught:
        jobfile.parse(text)
    return caught.value


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: object) -> None:
    parsed = jobfile.parse(f"key: {text}")
    assert isinstance(parsed, dict)
    found: object = parsed["key"]
    assert (type(found), found) == (type(value), value)


def test_not_a_number_is_a_number() -> None:
    (value,) = jobfile.parse("[.NaN]")  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
    assert math.isnan(value)


def test_anchors_are_the_values_they_name() -> None:
    assert jobfile.parse("a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]") == {"a": (x := {"b": [1, 2]}), "c": x, "d": [x, x]}


@pytest.mark.parametrize(
    ("text", "found"),
    {
        "a: 1\nb: 2\na: 3": "key 'a' stands twice, at line 3 column 1",
        "a: {b: 1, c: 2, b: 1}": "key 'b' stands twice, at line 1 column 17",
        "a: 1\n'a': 2": "key 'a' stands twice, at line 2",
        "a:\n  1: 2": "key 1 is not a string, at line 2 column 3",
        "a: {true: 1}": "key True is not a string, at line 1",
        "~: 1": "key None is not a string",
        "1e3: 1": "key 1000.0 is not a string",
        "? [1]\n: 2": "key [1] is not a string",
        "a: [1": "at line 1",
        "a: b: c": "at line 1",
        "\ta: 1": "at line 1 column 1",
        "a: *nope": "undefined alias 'nope', at line 1 column 4",
        "a: 1\n---\nb: 2": "another document, at line 2",
        "a: !!int x": "'x' is no integer, at line 1 column 4",
        "a: !!float x": "'x' is no number",
        "a: !!bool yes": "'yes' is no boolean",
        "a: !!timestamp 2001-01-01": "timestamp",
        "a: !!set {b, c}": "set",
        "a: !!python/object/apply:os.system [echo]": "python/object",
        "a: \x00": "#x0000",
    }.items(),
)
def test_what_is_no_yaml_1_2_is_named_with_its_line(text: str, found: str) -> None:
    error = problem(text)
    assert error.what == "the job file cannot be read"
    assert found in error.found
    assert error.exit_code == 2


BAD_VALUES: dict[str, dict[str, str]] = {
    # unknown keys, with the nearest one
    "tran.seed=1": {"what": "unknown key tran", "found": "'tran'", "expected": "'train'", "next": "correct the key's name"},
    "train.learning_rat=1": {"what": "unknown key train.learning_rat", "expected": "'learning_rate'"},
    "corpus.sources.a.text_colum=x": {"what": "unknown key corpus.sources.a.text_colum", "expected": "'text_column'"},
    "corpus.sources.b.kind=sample": {"what": "unknown key corpus.sources.b.paths", "found": "'paths'", "expected": "kind"},
    "cluster.train.mesh.tenso=2": {"what": "unknown key cluster.train.mesh.tenso", "expected": "'tensor'"},
    "cluster.trian.hosts=2": {"what": "unknown key cluster.trian", "expected": "'train'"},
    "zzz=1": {"what": "unknown key zzz", "expected": "one of bucket, cluster, corpus"},
    # wrong types
    "train.seed='1'": {"what": "wrong value for train.seed", "found": '"1"', "expected": "integer", "next": "correct"},
    "train.seed=true": {"what": "wrong value for train.seed", "found": "true", "expected": "integer"},
    "model.layers=2.0": {"what": "wrong value for model.layers", "found": "2.0", "expected": "integer"},
    "train.learning_rate=no": {"what": "wrong value for train.learning_rate", "found": '"no"', "expected": "number"},
    "model.tied_head=yes": {"what": "wrong value for model.tied_head", "found": '"yes"', "expected": "boolean"},
    "run=1": {"what": "wrong value for run", "found": "1", "expected": "string"},
    "run=Upper_case": {"what": "wrong value for run", "found": '"Upper_case"', "expected": "pattern"},
    "sample.prompts=the": {"what": "wrong value for sample.prompts", "found": '"the"', "expected": "array"},
    "train=null": {"what": "wrong value for train", "found": "null", "expected": "object"},
    "corpus.sources.a=3": {"what": "wrong value for corpus.sources.a", "found": "3", "expected": "object"},
    "corpus.sources.a.kind=fles": {"what": "wrong value for corpus.sources.a", "found": "fles", "expected": "'files', 'sample'"},
    "corpus.sources={}": {"what": "wrong value for corpus.sources", "found": "{}", "expected": "at least 1"},
    "train.learning_rate=.inf": {"what": "wrong value for train.learning_rate", "found": "Infinity", "expected": "finite"},
    "train.learning_rate=.nan": {"what": "wrong value for train.learning_rate", "found": "NaN", "expected": "finite"},
    "train.mixture.a=-1": {"what": "wrong value for train.mixture.a", "found": "-1", "expected": "greater than or equal to 0"},
    "tokenizer.vocab_size=266": {"what": "wrong value for tokenizer.vocab_size", "found": "266", "expected": "267"},
    # missing keys
    "tokenizer={}": {"what": "missing key tokenizer.vocab_size", "found": "nothing", "next": "add tokenizer.vocab_size"},
    "corpus.sources.c={kind: files}": {"what": "missing key corpus.sources.c.paths", "next": "add corpus.sources.c.paths"},
    # several at once
    "model={layers: x, widht: 1}": {"what": "wrong value for model.layers; missing key model.width; ", "expected": "'width'"},
    # keys that do not go together
    "tokenizer.pattern=custom": {"what": "tokenizer", "found": "no regex", "expected": "regex is given with pattern: custom"},
    "tokenizer.regex=x": {"what": "tokenizer", "found": "pattern nanochat, a regex", "expected": "only then"},
    "model.kv_heads=3": {"what": "model", "found": "kv_heads 3, heads 4", "expected": "kv_heads divides heads"},
    "model.width=30": {"what": "model", "found": "heads 4, width 30", "expected": "unless head_dim is given"},
    "model.head_dim=3": {"what": "model", "found": "width 3", "expected": "even"},
    "shards.sequence_length=33": {"what": "job", "found": "global_batch_tokens 256, shards.sequence_length 33", "expected": "multiple"},
    "train.accumulation_steps=3": {"what": "job", "found": "accumulation_steps 3, 8 sequences", "expected": "divides"},
    "train.mixture={a: 1, c: 1}": {"what": "job", "found": "train.mixture names a, c", "expected": "corpus.sources: a, b"},
    "train.mixture={a: 0, b: 0}": {"what": "job", "found": "every source the weight 0", "expected": "above 0"},
    "train.warmup_steps=12": {"what": "job", "found": "warmup_steps 12, 12 steps", "expected": "below"},
    # overrides
    "train.seed": {"what": "--set cannot be read", "found": "'train.seed'", "expected": "KEY.KEY=VALUE", "next": "--set train.seed=1"},
    "=1": {"what": "--set cannot be read", "found": "'=1'"},
    "train..seed=1": {"what": "--set cannot be read", "found": "train..seed"},
    "run.x=1": {"what": "--set run.x=1 has no place", "found": "run is 'tiny'", "expected": "run to hold keys", "next": "show"},
    "train.seed=[1": {"what": "--set train.seed=[1 cannot be read", "found": "line 1"},
    "train={seed: 1, seed: 2}": {"what": "--set train={seed: 1, seed: 2} cannot be read", "found": "'seed' stands twice"},
    "train=&t {x: *t}": {"what": "the job cannot be read", "found": "holds itself", "next": "alias"},
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid job file."""
    return tiny.write_job(tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize(("override", "parts"), BAD_VALUES.items())
def test_a_wrong_job_ends_with_2_and_names_the_key(job: Path, override: str, parts: dict[str, str]) -> None:
    assert_fails(gristmill("show", job, "--set", override), "JobError", **parts)


def test_overrides_are_yaml_and_make_sections_and_the_last_wins(job: Path) -> None:
    sets = ["train.seed=1", "train.learning_rate=6E-4", "evaluate.max_tokens=600_000", "sample.prompts=[no, '1=2']", "train.seed=0x10"]
    loaded = jobfile.load(job, sets)
    assert (loaded.train.seed, loaded.train.learning_rate, loaded.evaluate.max_tokens) == (16, 6e-4, 600_000)
    assert loaded.sample.prompts == ("no", "1=2")


def test_an_override_can_repair_what_the_file_has_wrong(job: Path, tmp_path: Path) -> None:
    broken = tmp_path / "job.yaml"
    broken.write_text(json.dumps({**json.loads(job.read_text()), "shards": {}}))
    assert_fails(gristmill("show", broken), "JobError", what="missing key shards.sequence_length")
    assert jobfile.load(broken, ["shards.sequence_length=32"]) == jobfile.load(job)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (None, {"what": "cannot be read", "found": "No such file", "next": "jobs/"}),
        (b"", {"what": "is no job", "found": "NoneType", "expected": "a mapping", "next": "jobs/demo.yaml"}),
        (b"- run", {"what": "is no job", "found": "list"}),
        (b"run: \xff", {"what": "cannot be read", "found": "utf-8"}),
        (b"run: a\nrun: b", {"what": "cannot be read", "found": "'run' stands twice, at line 2 column 1", "expected": "every key once"}),
        (b"run: a", {"what": "missing key bucket; missing key corpus", "next": "add bucket to the job file"}),
    ],
)
def test_a_file_that_is_no_job_ends_with_2(tmp_path: Path, data: bytes | None, parts: dict[str, str]) -> None:
    path = tmp_path / "job.yaml"
    if data is not None:
        path.write_bytes(data)
    assert_fails(gristmill("show", path), "JobError", **parts)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_of_the_repository_loads(path: Path) -> None:
    loaded = jobfile.load(path)
    assert jobfile.validate(loaded.model_dump(mode="json")) == loaded


def test_a_job_is_frozen(job: Path) -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        jobfile.load(job).train.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_nano_job_has_the_parameters_of_the_model_it_is_named_after() -> None:
    (nano,) = (jobfile.load(path) for path in JOBS if path.stem == "nano")
    assert arithmetic.parameter_count(nano.model, nano.tokenizer.vocab_size) == 176_179_968
    assert nano.steps == 14_500


def test_the_schema_command_prints_the_schema_of_the_job() -> None:
    printed = gristmill("schema")
    assert printed.code == 0
    schema = json.loads(printed.out)
    assert schema == Job.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Train"]["properties"]["learning_rate"]["description"] == "The peak, after warmup."


def test_the_show_command_prints_a_job_that_loads_and_its_arithmetic(job: Path) -> None:
    printed = gristmill("show", job, "--set", "train.seed=5")
    assert printed.code == 0
    resolved, _, sums = printed.out.partition("\n\n")
    assert jobfile.validate(jobfile.parse(resolved)) == jobfile.load(job, ["train.seed=5"])  # pyright: ignore[reportArgumentType]
    lines = dict(line.strip().split(": ", 1) for line in sums.splitlines())
    assert lines["token budget"] == "3,072 tokens"
    assert lines["a step"] == "256 tokens = 8 sequences"
    assert lines["steps"].startswith("12 = 3,072 tokens; warmup 2")
    assert lines["parameters"].startswith("43,168;")
