from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import runfile
from agentrl.config import RunConfig
from agentrl.config_errors import FOREIGN, known_keys
from agentrl.errors import ConfigError
from agentrl.objectives import registered

FLAGS = {"model": "m", "env": "e"}


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def refused(tmp_path, text, *overrides):
    """What is said about a run file that is right except for `text`, without the name of the folder."""
    with pytest.raises(ConfigError) as caught:
        runfile.load(write(tmp_path, text + "\nmodel: m\nenv: e\n"), overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def overridden(*overrides):
    with pytest.raises(ConfigError) as caught:
        runfile.load(None, overrides, FLAGS)
    return str(caught.value)


def test_a_run_file_fills_the_schema(tmp_path):
    config = runfile.load(
        write(
            tmp_path,
            """
            model: quickstart
            env: countdown?numbers=4
            objective: rloo
            steps: 7
            learner: {lr: 1e-6, betas: [0.9, 0.95], lora: {rank: 8}}
            """,
        )
    )
    assert (config.model, config.env, config.steps) == ("quickstart", "countdown?numbers=4", 7)
    assert (config.learner.lr, config.learner.betas) == (1e-6, (0.9, 0.95))
    assert config.learner.lora is not None
    assert (config.learner.lora.rank, config.learner.lora.alpha) == (8, 32.0)


def test_objective_options_are_written_out():
    config = runfile.load(None, ["objective.clip_low=0.1"], FLAGS)
    assert config.objective["name"] == "grpo"
    assert config.objective["clip_low"] == 0.1
    assert config.objective["scale_rewards"] == "group"


@pytest.mark.parametrize("written", ["1e-6", "1E-6", "0.000001", "1.0e-06"])
def test_numbers_in_every_notation_are_numbers(tmp_path, written):
    config = runfile.load(write(tmp_path, f"model: m\nenv: e\nlearner: {{lr: {written}}}"))
    assert config.learner.lr == 1e-6


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "1:30"])
def test_words_stay_words(tmp_path, word):
    assert runfile.load(write(tmp_path, f"model: {word}\nenv: e")).model == word


def test_the_command_line_wins_over_the_file_and_the_last_override_over_all(tmp_path):
    path = write(tmp_path, "model: m\nenv: e\nseed: 1\nlearner: {lr: 0.1, eps: 0.5}")
    config = runfile.load(path, ["learner.lr=0.2", "seed=2", "seed=3", "env=last"], {"model": "flag", "env": "flag", "output": None})
    assert (config.model, config.env, config.seed, config.output) == ("flag", "last", 3, None)
    assert (config.learner.lr, config.learner.eps) == (0.2, 0.5)


def test_overrides_do_not_leak_into_what_shares_an_anchor(tmp_path):
    path = write(tmp_path, "model: m\nenv: e\nengine: &shared {device: cpu, threads: 1}\nlearner: *shared")
    config = runfile.load(path, ["engine.threads=2"])
    assert (config.engine.threads, config.learner.threads) == (2, 1)


def test_an_override_makes_the_sections_on_its_way(tmp_path):
    path = write(tmp_path, "model: m\nenv: e\nlearner: {lora: null}")
    assert runfile.load(path, ["learner.lora.rank=4"]).learner.lora.rank == 4
    assert runfile.load(path, ["learner.lora={}"]).learner.lora.rank == 16
    assert runfile.load(path, ["learner.lora=null"]).learner.lora is None


def test_naming_another_objective_drops_the_options_of_the_first(tmp_path):
    path = write(tmp_path, "model: m\nenv: e\nobjective: {name: grpo, scale_rewards: batch}")
    assert runfile.load(path, flags={"objective": "grpo"}).objective["scale_rewards"] == "batch"
    assert runfile.load(path, flags={"objective": "rloo"}).objective["scale_rewards"] == "none"
    assert runfile.load(path, ["objective.clip_low=0.3"]).objective["scale_rewards"] == "batch"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepps: 3", "run.yaml, line 1: unknown key `stepps`; did you mean `steps`?"),
        ("learner:\n  lrr: 1", "run.yaml, line 2: unknown key `learner.lrr`; did you mean `learner.lr`?"),
        ("lr: 1", "run.yaml, line 1: unknown key `lr`; did you mean `learner.lr` or `warm_start.lr`?"),
        (
            "learner: {temperature: 1}",
            "run.yaml, line 1: unknown key `learner.temperature`; did you mean `sampling.temperature` or `objective.temperature`?",
        ),
        ("device: cpu", "run.yaml, line 1: unknown key `device`; did you mean `engine.device` or `learner.device`?"),
        ("beta: 0", "run.yaml, line 1: unknown key `beta`; did you mean `objective.beta`?"),
        ("learning_rate: 1", "run.yaml, line 1: unknown key `learning_rate`; here it is called learner.lr"),
        ("objective: {name: grpo, clip: 1}", "run.yaml, line 1: unknown key `objective.clip`; did you mean `objective.clip_low`?"),
        ("objective: {name: grpo, lr: 1}", "run.yaml, line 1: unknown key `objective.lr`; did you mean `learner.lr` or `warm_start.lr`?"),
        ("checkpoint: {zzz: 1}", "run.yaml, line 1: unknown key `checkpoint.zzz`; the keys of `checkpoint` are every, keep"),
        ("7: 1", "unknown key `7`; the keys at the top are model, env,"),
    ],
)
def test_an_unknown_key_names_the_one_that_was_meant(tmp_path, text, said):
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: '8'", "`steps` got '8' (text); it must be a whole number or null (without quotes)"),
        ("steps: eight", "`steps` got 'eight' (text); it must be a whole number"),
        ("steps: 1e2", "`steps` got 100.0; it must be a whole number or null (write 100)"),
        ("steps: 1.5", "`steps` got 1.5; it must be a whole number"),
        ("steps: 0", "`steps` got 0; it must be at least 1"),
        ("seed: true", "`seed` got true (a boolean); it must be a whole number"),
        ("learner: {lr: true}", "`learner.lr` got true (a boolean); it must be a number"),
        ("learner: {lr: -1}", "`learner.lr` got -1; it must be at least 0"),
        ("learner: {lr: .nan}", "`learner.lr` got nan; it must be finite"),
        ("learner: {lr: .inf}", "`learner.lr` got inf; it must be finite"),
        ("learner: {eps: 0}", "`learner.eps` got 0; it must be more than 0"),
        ("learner: {betas: [0.9, 1]}", "`learner.betas.1` got 1; it must be less than 1"),
        ("learner: {betas: [0.9]}", "`learner.betas` must be a list of 2, such as [0.9, 0.99]"),
        ("learner: {betas: [0.9, 0.9, 0.9]}", "`learner.betas` got a list of 3; it must be a list of 2, such as [0.9, 0.99]"),
        ("learner: {betas: 0.9}", "`learner.betas` got 0.9; it must be a list such as [0.9, 0.99]"),
        ("learner: {max_grad_norm: no}", "`learner.max_grad_norm` got 'no' (text); it must be a number or null"),
        ("learner: {lora: {dropout: 0.1}}", "`learner.lora.dropout` got 0.1; it must be 0"),
        ("learner: {lora: {target_modules: 3}}", "it must be text or a list such as [a, b]"),
        ("learner: {gradient_checkpointing: 1}", "`learner.gradient_checkpointing` got 1; it must be true or false"),
        ("on_bound: never", "`on_bound` got 'never' (text); it must be one of wait, requeue, over"),
        ("imports: a.py", "`imports` got 'a.py' (text); it must be a list such as [a, b] (write [a.py])"),
        ("engine: 5", "`engine` got 5; it must be a section with keys such as kind, threads, device, dtype"),
        ("engine: null", "`engine` got null; it must be a section"),
        ("output: 7", "`output` got 7; it must be text or null (write it in quotes: '7')"),
        ("output: 2024-01-01", "`output` got a date; write text in quotes"),
        ("objective: 3", "`objective` got 3; it must be a section"),
        ("objective: {}", "write `objective: grpo` or `objective: {name: grpo, ...}`"),
        ("objective: {name: 3}", "`objective.name` got 3; it must be text"),
        ("objective: {name: grp}", "no objective is called 'grp'; did you mean 'grpo'?"),
        ("objective: {name: grpo, clip_low: x}", "`objective.clip_low` got 'x' (text); it must be a number"),
        ("objective: {name: grpo, scale_rewards: no}", "it must be one of group, batch, none"),
        ("sampling: {top_p: 0.5}", "training samples from the whole distribution"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(tmp_path, text, said):
    message = refused(tmp_path, text)
    assert message.startswith("run.yaml, line 1: ")
    assert said in message
    assert len(message.splitlines()) == 1


NAMES_OF_CORRECTIONS = "tis, sequence_tis, icepop, sequence_mask, off_policy_mask, veto, ratio_cap"


@pytest.mark.parametrize(
    ("corrections", "said"),
    [
        ("[{name: tis, max: -1}]", "`objective.corrections.0.max` got -1; it must be at least 0"),
        ("[{name: veto}, {name: tis, max: two}]", "`objective.corrections.1.max` got 'two' (text); it must be a number"),
        ("[{name: veto, below: 2}]", "`objective.corrections.0.below` got 2; it must be less than 1"),
        ("[{name: sequence_mask, measure: mean}]", "corrections.0.measure` got 'mean' (text); it must be one of product, geometric"),
        ("[{name: tis, min: 3}]", "`objective.corrections.0.min`: min=3.0 must be below max=2.0"),
        ("[{name: tis, maxx: 3}]", "unknown key `objective.corrections.0.maxx`; did you mean `objective.corrections.0.max`?"),
        ("[{name: veto, cap: 3}]", "unknown key `objective.corrections.0.cap`; the keys of `objective.corrections.0` are name, below"),
        ("[{name: tsi}]", f"`objective.corrections.0.name` got 'tsi' (text); it must be one of {NAMES_OF_CORRECTIONS}; did you mean tis?"),
        ("[{name: zzz}]", f"`objective.corrections.0.name` got 'zzz' (text); it must be one of {NAMES_OF_CORRECTIONS}"),
        ("[{max: 3}]", f"`objective.corrections.0` has no `name`; it must be one of {NAMES_OF_CORRECTIONS}"),
        ("[tis]", f"got 'tis' (text); it must be a section with a `name`, one of {NAMES_OF_CORRECTIONS} (write {{name: tis}})"),
        ("veto", "`objective.corrections` got 'veto' (text); it must be a list such as [{name: tis}] (write [{name: veto}])"),
        (
            "{name: tis}",
            "got a section with the keys name; it must be a list such as [{name: tis}] (put it in brackets, or a dash before it)",
        ),
        ("[{name: veto}, {name: veto}]", "`objective.corrections`: 'veto' is named twice"),
        ("[{name: tis}, {name: icepop}]", "which would correct one mismatch twice: keep one"),
    ],
)
def test_a_mistake_in_a_list_of_sections_is_found_where_it_is(tmp_path, corrections, said):
    message = refused(tmp_path, f"objective:\n  name: grpo\n  corrections: {corrections}")
    assert message.endswith(said)
    assert message.startswith("run.yaml, line 3: ")
    assert len(message.splitlines()) == 1


def test_a_mistake_in_a_list_has_the_line_of_its_key(tmp_path):
    text = "objective:\n  name: grpo\n  corrections:\n    - name: tis\n      max: -1\n    - name: veto\n      belw: 1\n  clip_low: 2"
    assert refused(tmp_path, text).splitlines() == [
        "run.yaml, line 5: `objective.corrections.0.max` got -1; it must be at least 0",
        "run.yaml, line 7: unknown key `objective.corrections.1.belw`; did you mean `objective.corrections.1.below`?",
        "run.yaml, line 8: `objective.clip_low` got 2; it must be at most 1",
    ]


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (
            "{name: grpo, kl_target: 1}",
            "`objective.kl_target`: kl_target adapts beta, and beta is 0: set the coefficient that it starts from",
        ),
        ("{name: grpo, beta: 1, kl_estimator: k1, kl_correction: false}", "`objective.kl_estimator`: kl_estimator k1 in the loss without"),
        ("{name: clip_cov, cov_min: 5, cov_max: 1}", "`objective.cov_min`: cov_min=5.0 must not exceed cov_max=1.0"),
        (
            "{name: aipo, corrections: [{name: tis}]}",
            "the ratio of aipo is policy / sampler already: the mismatch would be corrected twice",
        ),
        ("{name: rloo, corrections: [{name: tis}]}", "take one of sequence_tis, sequence_mask, off_policy_mask, veto"),
        ("{name: ppo, baseline: group}", "`objective.baseline` got 'group' (text); it must be none: The critic's values are the baseline."),
        ("{name: bnpo, turn_discount: 0.5}", "`objective.turn_discount` got 0.5; it must be null: BNPO compares whole rollouts."),
        ("{name: grpo, reward_weights: {a: x}}", "`objective.reward_weights.a` got 'x' (text); it must be a number"),
        ("{name: sapo, temperature_neg: 0}", "`objective.temperature_neg` got 0; it must be more than 0"),
        ("{name: grpo, gamma: 1}", "unknown key `objective.gamma`; here it is called objective.discount"),
        ("gpro", "no objective is called 'gpro'; did you mean 'grpo'?"),
    ],
)
def test_what_is_wrong_with_an_objective_is_said(tmp_path, objective, said):
    message = refused(tmp_path, f"objective: {objective}")
    assert message.startswith("run.yaml, line 1: ")
    assert said in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group_size: 1", "objective 'grpo' compares rollouts of one task: set group_size >= 2, got 1"),
        ("dataset: d.jsonl", "`env` and `dataset` are both set"),
        ("rewards: ['r.py:f']", "`rewards` score the rows of a `dataset`"),
        (
            "objective: xpo\ngroup_size: 3",
            "line 2: with objective 'xpo' half of each group is sampled by a rival: set an even group_size, got 3",
        ),
        (
            "objective: {name: online_dpo, preferences: judge}\ngroup_size: 5",
            "a judge compares rollouts two by two: set an even group_size",
        ),
        ("objective: {name: grpo, minibatches: 1000}", "`objective.minibatches` got 1000; a step has 128 rollouts"),
        ("learner: {reference_sync: {}}", "objective 'grpo' has none with these options: set objective.beta, or remove it"),
        ("objective: nash_md\nengine: {kind: vllm}", "a vLLM server cannot mix two models' logits; set engine.kind=embedded"),
        ("imports: [no_such_module]", "cannot import 'no_such_module'"),
    ],
)
def test_combinations_are_checked(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_a_dataset_needs_rewards_and_a_run_something_to_train_on():
    with pytest.raises(ConfigError, match="`dataset` needs `rewards`"):
        runfile.load(None, flags={"model": "m", "dataset": "d.jsonl"})
    with pytest.raises(ConfigError, match="nothing to train on: set `env`"):
        runfile.load(None, flags={"model": "m"})
    with pytest.raises(ConfigError, match="`model` is missing: A folder or Hub name"):
        runfile.load(None)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path):
    text = "zzz: 1\nlearner:\n  lr: x\nsteps: 0"
    lines = refused(tmp_path, text, "seed=x").splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["run.yaml, line 1", "run.yaml, line 3", "run.yaml, line 4", "--set seed=x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2", 'run.yaml, line 2: found duplicate key "seed"'),
        ("seed: 1\n\tsteps: 2", "run.yaml, line 2: found character '\\t'"),
        ("engine: {kind: x", "run.yaml, line 2:"),
        ("learner: !!python/object:os.system x", "run.yaml, line 1: could not determine a constructor"),
        ("learner:\n", "run.yaml, line 1: `learner` has no value: remove it, or write {} for an empty section and null for none"),
        ("learner:\n  lora:\n", "run.yaml, line 2: `learner.lora` has no value"),
        ("imports: &a [*a]", "run.yaml: it is nested too deeply, or an alias in it contains itself"),
        ("seed: 2024-13-45", "run.yaml: month must be in 1..12"),
    ],
)
def test_broken_yaml_is_a_sentence_with_a_line(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_files_that_are_no_run_files(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the run file .*nope.yaml: No such file"):
        runfile.load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the run file .*: Is a directory"):
        runfile.load(tmp_path)
    with pytest.raises(ConfigError, match="a run file is a mapping of keys to values, got a list of 2"):
        runfile.load(write(tmp_path, "- a\n- b"))
    with pytest.raises(ConfigError, match="`model` is missing"):
        runfile.load(write(tmp_path, "# nothing yet\n"))
    binary = tmp_path / "run.bin"
    binary.write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 7\)"):
        runfile.load(binary)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "--set seed: write --set key=value"),
        ("=3", "--set =3: write --set key=value"),
        ("learner..lr=3", "write --set key=value"),
        ("seed=", "--set seed=: `seed` has no value"),
        ("seed=[1", "--set seed=[1: the value is not YAML"),
        ("seed=x", "--set seed=x: `seed` got 'x' (text); it must be a whole number"),
        ("learner.lrr=1", "--set learner.lrr=1: unknown key `learner.lrr`; did you mean `learner.lr`?"),
        ("model.x=1", "--set model.x=1: `model` is 'm' (text) and has no keys"),
        ("objective.name=grp", "--set objective.name=grp: no objective is called 'grp'"),
        ("objective.clip_high=-1", "--set objective.clip_high=-1: `objective.clip_high` got -1; it must be more than 0 or null"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_written(override, said):
    assert said in overridden(override)


def test_a_wrong_flag_is_named():
    with pytest.raises(ConfigError, match=r"^--objective: no objective is called 'grp'"):
        runfile.load(None, flags={**FLAGS, "objective": "grp"})


def test_an_unknown_objective_beside_a_dataset_is_all_that_is_told():
    """Nobody knows whether it would learn from rewards."""
    with pytest.raises(ConfigError) as caught:
        runfile.load(None, flags={"model": "m", "dataset": "d.jsonl", "objective": "sftt"})
    assert str(caught.value).startswith("--objective: no objective is called 'sftt'; did you mean 'sft'?")
    assert "rewards" not in str(caught.value)


def test_python_values_make_the_same_config():
    values = {"model": Path("m"), "env": "e", "learner": {"betas": (0.9, 0.99), "lr": 1e-3}}
    assert runfile.from_mapping(values) == runfile.load(None, ["learner.lr=1e-3"], FLAGS)
    with pytest.raises(ConfigError, match=r"^unknown key `learner.lrr`; did you mean"):
        runfile.from_mapping({**values, "learner": {"lrr": 1}})


def test_a_config_made_in_python_is_checked_and_resolved_the_same_way():
    assert runfile.check(RunConfig(model="m", env="e")) == runfile.load(None, flags=FLAGS)
    with pytest.raises(ConfigError, match="set group_size >= 2, got 1"):
        runfile.check(RunConfig(model="m", env="e", group_size=1))


def test_foreign_names_point_at_keys_that_exist_and_are_no_keys_themselves():
    options = {f"objective.{key}" for row in registered().values() for key in known_keys(row.config)}
    known = {*known_keys(RunConfig), *options}
    assert not {name for name in FOREIGN if name in known}
    dangling = {name for name, ours in FOREIGN.items() if not any(word.strip("(),") in known for word in ours.split())}
    assert dangling == {"resume_from_checkpoint"}


def test_a_dumped_config_reads_back_equal(tmp_path):
    config = runfile.load(None, ["learner.lora.rank=4", "learner.lr=1e-6", "learner.max_grad_norm=null", "objective=rloo"], FLAGS)
    text = runfile.dump(config)
    assert text.splitlines()[0] == "model: m"
    assert runfile.load(write(tmp_path, text)) == config


@given(
    model=st.text(st.characters(codec="utf-8"), min_size=1),
    lr=st.floats(0, 10, allow_subnormal=True),
    seed=st.integers(0, 2**32 - 1),
    stop=st.lists(st.text(), max_size=3),
)
def test_any_value_survives_the_dump(tmp_path_factory, model, lr, seed, stop):
    config = runfile.from_mapping({"model": model, "env": "e", "seed": seed, "learner": {"lr": lr}, "sampling": {"stop": stop}})
    assert runfile.load(write(tmp_path_factory.mktemp("dump"), runfile.dump(config))) == config


def test_an_adapters_transport_needs_an_adapter(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nenv: arithmetic\nengine: {kind: vllm, transport: lora}\n")
    with pytest.raises(ConfigError, match=r"`engine\.transport` is lora and no adapter is trained: set `learner\.lora`"):
        runfile.load(path)
    path.write_text("model: m\nenv: arithmetic\nengine: {kind: vllm, transport: lora}\nlearner: {lora: {}}\n")
    assert runfile.load(path).learner.lora is not None


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{servers: ['http://a:1']}", "only `kind: vllm` reads servers, and kind is embedded"),
        ("{kind: vllm, servers: ['http://a:1'], launch: {}}", "servers and launch are both set"),
        ("{kind: vllm, servers: ['a:1']}", "got 'a:1'; a server is http://HOST:PORT"),
        ("{kind: vllm, servers: ['http://a:1', 'http://a:1/']}", "a server is named twice"),
        ("{kind: vllm, lunch: {}}", "did you mean `engine.launch`"),
        ("{kind: vllm, launch: {tensor_paralel: 2}}", "did you mean `engine.launch.tensor_parallel`"),
    ],
)
def test_what_is_wrong_with_a_vllm_section_is_said(engine, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\nenv: arithmetic\nengine: {engine}\n")
    with pytest.raises(ConfigError) as error:
        runfile.load(path)
    assert message in str(error.value)
