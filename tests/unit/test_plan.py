"""Plans: strict reading, canonical writing, and a digest that does not depend on how a plan was written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import FreeholdError, NotAsynchronous, PlanError, PlanVersion, SpecMismatch, UnknownKey, Unreadable
from freehold.plan import (
    AlgorithmRef,
    Companion,
    Contribution,
    Plan,
    Privacy,
    RoundPolicy,
    TaskRef,
    TensorSpec,
    Training,
    Work,
    WrapperRef,
    check_contribution,
    digest,
    dumps,
    load_plan,
    parse,
    runs_of,
)
from freehold.study import make_plan, simulate
from freehold.tasks import task_digest

SMALL = """
name = "heart-ditto"
[task]
name = "heart"
[algorithm]
name = "ditto"
hyperparameters = { lr = 0.05, lam = 1.0 }
[training]
rounds = 20
batch_size = 16
epochs = 1
"""


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


def refusal(text: str, kind: type[FreeholdError] = PlanError) -> FreeholdError:
    with pytest.raises(kind) as caught:
        parse(text)
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_a_plan_says_little_and_the_rest_has_safe_defaults() -> None:
    plan = parse(SMALL)
    assert plan.algorithm == AlgorithmRef(name="ditto", hyperparameters={"lr": 0.05, "lam": 1.0})
    assert plan.round == RoundPolicy(cohort=None, quorum=None, deadline_s=600.0)
    assert plan.privacy == Privacy(unit="none")
    assert plan.adaptation is None
    assert plan.training.weighting is None
    assert plan.contribution.tensors == ()


def test_an_unknown_key_names_its_dotted_path_and_the_near_miss() -> None:
    error = refusal(changed("batch_size", "batchsize"), UnknownKey)
    assert "training.batchsize" in error.message
    assert "'batch_size'" in error.hint


def test_an_unknown_key_inside_a_list_is_found_too() -> None:
    error = refusal(SMALL + '[[companions]]\nname = "local"\n[[companions]]\nnmae = "fedavg"\n', UnknownKey)
    assert "companions[1].nmae" in error.message
    assert "'name'" in error.hint


@pytest.mark.parametrize(
    ("line", "table"), [("rounds = 3", "[training]"), ("quorum = 3", "[round]"), ("unit = 'none'", "[privacy]")]
)
def test_a_key_in_the_wrong_table_is_told_where_it_belongs(line: str, table: str) -> None:
    assert table in refusal(line + SMALL, UnknownKey).hint


def test_a_top_level_key_after_a_table_is_told_where_it_belongs() -> None:
    assert "at the top" in refusal(SMALL + "min_examples = 5", UnknownKey).hint


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        ("rounds = 20", 'rounds = "20"', "training.rounds", "a whole number"),
        ("rounds = 20", "rounds = 20.5", "training.rounds", "a whole number"),
        ("rounds = 20", "rounds = true", "training.rounds", "a whole number"),
        ('name = "heart"', "name = 3", "task.name", "text"),
        ("hyperparameters = { lr = 0.05, lam = 1.0 }", "hyperparameters = 3", "algorithm.hyperparameters", "a table"),
        ("lr = 0.05", "lr = [0.05]", "algorithm.hyperparameters", "a number"),
        (
            "epochs = 1",
            'epochs = 1\n[contribution]\ntensors = [{ name = "w", shape = "10" }]',
            "contribution.tensors[0].shape",
            "a list",
        ),
    ],
)
def test_a_wrong_type_names_the_path_and_shows_the_right_way(old: str, new: str, path: str, words: str) -> None:
    error = refusal(changed(old, new))
    assert path in error.message
    assert words in error.message


def test_a_missing_field_is_named() -> None:
    assert "training.rounds is missing" in refusal(changed("rounds = 20", "")).message


def test_a_plan_that_sets_nothing_new_keeps_its_digest() -> None:
    """Studies under way, signatures and approvals name plans by it."""
    assert digest(parse(SMALL)) == "sha256:95e0e746225beba3a4065c12abc857110615a6a5ad9fa78b36e33ccabe3e7908"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    assert "algorithm.hyperparameters.lr" in refusal(changed("lr = 0.05", f"lr = {number}")).message


def test_a_word_that_is_no_choice_gets_the_near_miss() -> None:
    error = refusal(changed("epochs = 1", 'epochs = 1\nweighting = "example"'))
    assert "training.weighting" in error.message
    assert "'examples'" in error.hint


@pytest.mark.parametrize("work", ["", "epochs = 1\nsteps = 10"])
def test_training_has_either_epochs_or_steps(work: str) -> None:
    assert "epochs and steps" in refusal(changed("epochs = 1", work)).hint.replace("training.", "")


@pytest.mark.parametrize(
    ("addition", "path"),
    [
        ("[round]\ncohort = 0", "round.cohort"),
        ("[round]\nquorum = 0", "round.quorum"),
        ("[round]\ncohort = 3\nquorum = 4", "round.quorum"),
        ("[round]\nbuffer = 4", "round.buffer"),
        ("[round]\nmost_staleness = 4", "round.most_staleness"),
        ('[round]\nmode = "asynchronous"', "round.buffer"),
        ('[round]\nmode = "asynchronous"\nbuffer = 0', "round.buffer"),
        ('[round]\nmode = "asynchronous"\nbuffer = 2\nquorum = 2', "round.quorum"),
        ('[round]\nmode = "asynchronous"\nbuffer = 2\nmost_staleness = 1001', "round.most_staleness"),
        ('[round]\nmode = "asynchronous"\nbuffer = 2\nstaleness_exponent = -0.5', "round.staleness_exponent"),
        ("[round]\ndeadline_s = 0", "round.deadline_s"),
        ("[adaptation]\nsteps = 0", "adaptation.steps"),
        ("[adaptation]\nsteps = 1\nepochs = 1", "adaptation"),
        ("[contribution]\nscale = 63", "contribution.scale"),
        ('[contribution]\ntensors = [{ name = "w", shape = [-1] }]', "contribution.tensors"),
        ('[contribution]\ntensors = [{ name = "", shape = [] }]', "contribution.tensors"),
        ('[contribution]\ntensors = [{ name = "w", shape = [] }, { name = "w", shape = [1] }]', "contribution.tensors"),
        ("[privacy]\nmax_norm = 1.0", "privacy.max_norm"),
        ('[privacy]\nunit = "client"', "privacy.max_norm"),
        ('[privacy]\nunit = "client"\nmax_norm = 1\nnoise_multiplier = 0', "privacy.noise_multiplier"),
        ('[privacy]\nunit = "client"\nmax_norm = 1\nnoise_multiplier = 1\nexpected_batch = 4', "privacy.expected_batch"),
        ('[privacy]\nunit = "record"\nmax_norm = 1\nnoise_multiplier = 1', "privacy.expected_batch"),
        ("[privacy]\ndelta = 1.0", "privacy.delta"),
    ],
)
def test_what_is_out_of_range_or_contradicts_itself_is_refused(addition: str, path: str) -> None:
    assert path in refusal(SMALL + addition).message


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"heart-ditto"', '"../../etc/passwd"', "name"),
        ('"heart-ditto"', '""', "name"),
        ('name = "heart"', 'name = "heart"\ndigest = "md5:1"', "task.digest"),
        ("rounds = 20", "rounds = 0", "training.rounds"),
        ("rounds = 20", "rounds = 20\nseed = -1", "training.seed"),
        ("rounds = 20", "rounds = 20\nmost_weight = 0", "training.most_weight"),
        ("rounds = 20", 'rounds = 20\nmost_weight = 5\nweighting = "uniform"', "training.most_weight"),
        ('name = "ditto"', 'name = "dit to"', "algorithm"),
    ],
)
def test_names_digests_and_counts_are_checked(old: str, new: str, path: str) -> None:
    assert path in refusal(changed(old, new)).message


def test_another_format_is_refused_before_its_keys_are_read() -> None:
    assert "format 2" in refusal("format = 2\nsurprise = 1" + SMALL, PlanVersion).message
    refusal("format = true" + SMALL, PlanVersion)


@pytest.mark.parametrize("text", ["name = heart", "a = " + "[" * 100_000, "[[a]]\n[a]"])
def test_what_is_not_toml_is_refused(text: str) -> None:
    refusal(text)


def test_a_whole_number_of_thousands_of_digits_is_refused_like_any_other_mistake() -> None:
    """Python reads at most 4300 digits, and says so in an error of its own, which would end a guard."""
    with pytest.raises(PlanError, match="thousands of digits"):
        parse(SMALL + "seed = " + "1" * 5000)


@pytest.mark.parametrize("line", ["format = {}", "repeats = {}", "name = {}", "algorithm.hyperparameters.lr = {}"])
@pytest.mark.parametrize("digits", [17, 5000])
def test_a_whole_number_of_more_than_64_bits_is_refused_wherever_it_stands(line: str, digits: int) -> None:
    with pytest.raises(PlanError, match="more than 64 bits"):
        parse(line.format("0x" + "F" * digits))


def test_a_long_text_is_not_repeated_in_the_message() -> None:
    assert len(refusal(changed('"heart-ditto"', '"' + "x" * 10_000 + '"')).message) < 300
    assert len(refusal(f"{'x' * 10_000} = 1" + SMALL, UnknownKey).message) < 300
    refusal("#" * (4 * 2**20 + 1))


def test_a_file_that_is_missing_or_no_text_is_told_apart(tmp_path: Any) -> None:
    with pytest.raises(Unreadable, match=r"nowhere\.toml"):
        load_plan(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="UTF-8"):
        load_plan(tmp_path / "binary.toml")
    (tmp_path / "plan.toml").write_text(SMALL)
    assert load_plan(tmp_path / "plan.toml") == parse(SMALL)


def test_reading_a_plan_needs_no_torch_and_no_numpy() -> None:
    code = "import sys, freehold.plan, freehold.events; print(sorted({'torch', 'numpy', 'polars'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-6, max_value=1e6)
scalars = st.one_of(words, st.integers(-(2**63), 2**63 - 1), numbers, st.booleans())
tables = st.dictionaries(words, scalars, max_size=3)
counts = st.integers(1, 10**6)
works = st.integers(1, 10_000).flatmap(lambda n: st.sampled_from([{"epochs": n}, {"steps": n}]))
wrappers = st.builds(WrapperRef, name=names, hyperparameters=tables)
algorithms = st.builds(AlgorithmRef, name=names, hyperparameters=tables, wrappers=st.lists(wrappers, max_size=2).map(tuple))
tensors = st.builds(TensorSpec, name=words.filter(bool), shape=st.lists(st.integers(0, 99), max_size=3).map(tuple))
privacies = st.one_of(
    st.just(Privacy()),
    st.builds(Privacy, unit=st.just("client"), max_norm=positive, noise_multiplier=positive),
    st.builds(Privacy, unit=st.just("record"), max_norm=positive, noise_multiplier=positive, expected_batch=positive),
)
trainings = st.builds(
    lambda work, most, **rest: Training(**rest, **work, most_weight=None if rest["weighting"] == "uniform" else most),
    work=works,
    rounds=counts,
    batch_size=counts,
    seed=st.integers(0, 2**63 - 1),
    weighting=st.sampled_from([None, "examples", "uniform"]),
    continuing=st.booleans(),
    last_batch=st.sampled_from(["even", "short"]),
    most=st.none() | counts,
)
companions = st.builds(Companion, name=names, hyperparameters=tables, tensors=st.lists(tensors, max_size=2).map(tuple))
options = st.sampled_from([{}, {"clients": 3, "partition": "iid"}, {"schema": "format = 1"}])


def a_plan(**said: Any) -> Plan:
    """These tables; without noise where that contradicts the others, which the plan's own checks would refuse."""
    try:
        return Plan(**said)
    except PlanError:
        return Plan(**{**said, "privacy": Privacy()})


plans = st.builds(
    a_plan,
    name=names,
    task=st.builds(TaskRef, name=names, version=words, options=options),
    algorithm=algorithms,
    training=trainings,
    adaptation=st.none() | works.map(lambda work: Work(**work)),
    round=st.builds(
        RoundPolicy,
        cohort=st.none() | st.integers(5, 99),
        quorum=st.none() | st.integers(1, 5),
        deadline_s=positive,
        least_nodes=counts,
    )
    | st.builds(
        RoundPolicy,
        mode=st.just("asynchronous"),
        buffer=counts,
        staleness_exponent=st.none() | st.floats(0, 10),
        most_staleness=st.none() | st.integers(0, 1000),
    ),
    privacy=privacies,
    contribution=st.builds(
        Contribution,
        scale=st.integers(1, 52),
        dtype=st.sampled_from([None, "float32", "bfloat16"]),
        compression=st.sampled_from(["none", "zstd"]),
        tensors=st.lists(tensors, max_size=3, unique_by=lambda t: t.name).map(tuple),
    ),
    companions=st.lists(companions, max_size=2).map(tuple),
    repeats=st.integers(1, 1000),
    min_examples=counts,
    clients=st.sampled_from(["silos", "devices"]),
)


@given(st.integers(1, 50), st.integers(0, 500))
def test_rounds_of_a_schedule_train_and_then_measure_cycle_by_cycle(rounds: int, index: int) -> None:
    training = Training(rounds=rounds, batch_size=1, epochs=1)
    told = [training.trains(i) for i in range(index)]
    assert training.trained(index) == sum(told)
    assert training.cycle(index) == index - sum(told), "one round of each cycle measures"
    assert all(training.trains(i) for i in range(rounds)) and not training.trains(rounds)


def test_the_simulator_refuses_asynchronous_rounds() -> None:
    plan = parse(
        'format = 1\nname = "x"\ntask = { name = "heart" }\nalgorithm = { name = "fedavg" }\n'
        'training = { rounds = 1, batch_size = 8, epochs = 1 }\nround = { mode = "asynchronous", buffer = 2 }'
    )
    with pytest.raises(NotAsynchronous, match="no clock"):
        simulate(plan, seeds=1)


@settings(deadline=None)
@given(plans)
def test_what_is_written_reads_back_the_same(plan: Plan) -> None:
    text = dumps(plan)
    assert parse(text) == plan
    assert dumps(parse(text)) == text
    assert digest(parse(text)) == digest(plan)


@settings(deadline=None)
@given(plans, st.randoms(use_true_random=False))
def test_the_digest_ignores_key_order_and_whitespace(plan: Plan, random: Any) -> None:
    import tomllib

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    text = tomli_w.dumps(shuffled(tomllib.loads(dumps(plan))), multiline_strings=False, indent=7)
    rewritten = "\n\n# another hand\n" + text.replace("\n[", "\n\n\n  [")
    assert digest(parse(rewritten)) == digest(plan)


@settings(deadline=None)
@given(st.integers(1, 10**9))
def test_the_digest_ignores_whether_a_whole_number_was_written_with_a_point(value: int) -> None:
    whole, pointed = (SMALL + f"[round]\ndeadline_s = {value}{end}\n" for end in ("", ".0"))
    assert digest(parse(whole)) == digest(parse(pointed))
    assert digest(parse(changed("lam = 1.0", "lam = 1"))) == digest(parse(SMALL))


def test_the_digest_ignores_whether_a_default_was_written_out() -> None:
    assert digest(parse(dumps(parse(SMALL)))) == digest(parse(SMALL))


def test_the_digest_is_frozen() -> None:
    assert digest(parse(SMALL)) == GOLDEN


GOLDEN = "sha256:95e0e746225beba3a4065c12abc857110615a6a5ad9fa78b36e33ccabe3e7908"


@pytest.mark.parametrize("how", ['dtype = "float32"', 'dtype = "bfloat16"', 'compression = "zstd"'])
def test_the_digest_sees_how_contributions_travel(how: str) -> None:
    """And only if it differs from what was always done: plans of before keep their digest."""
    assert digest(parse(f"{SMALL}[contribution]\n{how}\n")) != GOLDEN
    assert digest(parse(f'{SMALL}[contribution]\ncompression = "none"\n')) == GOLDEN
    companions = parse(f'companions = [{{ name = "fedavg" }}]\n{SMALL}[contribution]\n{how}\n')
    assert {(run.contribution.dtype, run.contribution.compression) for run in runs_of(companions)} == {
        (companions.contribution.dtype, companions.contribution.compression)
    }


@pytest.mark.parametrize(("key", "value"), [("dtype", "float16"), ("dtype", "none"), ("dtype", "int8"), ("compression", "gzip")])
def test_other_ways_to_travel_are_refused(key: str, value: str) -> None:
    assert f"contribution.{key}" in refusal(f'{SMALL}[contribution]\n{key} = "{value}"\n').message


@pytest.mark.parametrize(("old", "new"), [("0.05", "0.050001"), ("rounds = 20", "rounds = 21"), ("epochs = 1", "steps = 1")])
def test_the_digest_sees_every_change(old: str, new: str) -> None:
    assert digest(parse(changed(old, new))) != digest(parse(SMALL))


SPEC = Contribution(tensors=(TensorSpec(name="body.weight", shape=(10, 64)), TensorSpec(name="count", shape=(), dtype="int64")))
GOOD: dict[str, tuple[tuple[int, ...], str]] = {"body.weight": ((10, 64), "float32"), "count": ((), "int64")}


def test_a_contribution_that_fits_its_spec_passes_in_any_order() -> None:
    check_contribution(SPEC, GOOD)
    check_contribution(SPEC, dict(reversed(GOOD.items())))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head.weight": ((10, 64), "float32")}, "'head.weight' [10, 64] is not in the plan's contribution spec"),
        ({"body.weight": ((64, 10), "float32")}, "[64, 10], but the plan's contribution spec says float32 [10, 64]"),
        ({"body.weight": ((10, 64), "float64")}, "'float64' [10, 64]"),
        ({"body.weight": ((10, 64, 1), "float32")}, "[10, 64, 1]"),
    ],
)
def test_a_contribution_that_does_not_fit_is_refused(change: dict[str, tuple[tuple[int, ...], str]], words: str) -> None:
    with pytest.raises(SpecMismatch) as caught:
        check_contribution(SPEC, GOOD | change)
    assert words in caught.value.message
    assert caught.value.hint


def test_a_contribution_that_leaves_a_tensor_out_is_refused() -> None:
    with pytest.raises(SpecMismatch, match="'count' is in the plan's contribution spec, but was not contributed"):
        check_contribution(SPEC, {"body.weight": GOOD["body.weight"]})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ('{ protocol = "flamby" }', "Nobody reads"),
        ('{ partition = "iid" }', "no clients"),
        ("{ clients = 4 }", "no partition"),
        ('{ clients = "x", partition = "iid" }', "must be a whole number"),
        ("{ clients = true, partition = 'iid' }", "must be a whole number"),
        ("{ clients = 0, partition = 'iid' }", "must be a whole number"),
        ("{ clients = 3, partition = 1 }", "must be text"),
    ],
)
def test_options_that_nobody_reads_or_that_contradict_themselves_are_refused(options: str, told: str) -> None:
    text = changed('name = "heart"\n', f'name = "heart"\noptions = {options}\n')
    assert told in refusal(text, UnknownKey if told == "Nobody reads" else PlanError).message


@pytest.mark.parametrize("work", ["epochs = 1000000000000", "steps = 1000000000000"])
def test_work_that_would_ask_for_all_memory_is_refused(work: str) -> None:
    assert "must lie between 1 and" in refusal(changed("epochs = 1", work)).message


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"version": "77"}, "version 77 of the task heart"), ({"digest": "sha256:" + "0" * 64}, "but the installed")],
)
def test_a_plan_for_another_version_of_the_task_is_refused(changes: dict[str, str], told: str) -> None:
    plan = make_plan("heart", "fedavg", rounds=1)
    with pytest.raises(PlanError, match=told):
        simulate(msgspec.structs.replace(plan, task=msgspec.structs.replace(plan.task, **changes)), seeds=1)


def test_a_plan_that_pins_its_task_runs() -> None:
    plan = make_plan("heart", "fedavg", rounds=1)
    pinned = msgspec.structs.replace(plan, task=msgspec.structs.replace(plan.task, digest=task_digest("heart")))
    assert [row.name for row in simulate(pinned, seeds=1).rows] == ["local", "fedavg"]
