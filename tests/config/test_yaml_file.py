"""Settings from a YAML file: strict, and one line for every fault."""

import re
import shlex

import pytest

from him.cli.parser import build_parser, parse_command_line
from him.config import Config
from him.core.errors import ConfigError


def parse(line: str) -> tuple[dict, str | None]:
    return parse_command_line(build_parser("HIM"), shlex.split(line))[:2]


def config_of(line: str) -> Config:
    return Config(**parse(line)[0])


def test_yaml_values(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "# comment\nlearning_rate: 5e-4\nnorm_first: no\ntrain_file: [a.json, b.json]\nrun_name: 'x'\ndropout: null\n",
        encoding="utf-8",
    )
    config = config_of(f"--config {file}")
    assert config.learning_rate == 5e-4
    assert config.norm_first is False
    assert config.train_file == ("a.json", "b.json")
    assert config.run_name == "x"
    assert config.dropout is None


def test_empty_yaml_changes_nothing(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert config_of(f"--config {file}") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "unknown setting learning_rat; did you mean learning_rate?"),
        ("zzz: 1\n", "unknown setting zzz; see --help"),
        (
            "seeed: 1\nembeddim: 2\n",
            "unknown setting seeed; did you mean seed?; --config {}: unknown setting embeddim; did you mean embed_dim?",
        ),
        ("5: 1\n", "unknown setting 5; see --help"),
        ("- seed\n", "not a list of `name: value` settings"),
        ("seed\n", "not a list of `name: value` settings"),
        ("seed: [1\n", r"not YAML (while parsing"),
        ("seed: !!python/object:os.system {}\n", r"not YAML (could not determine a constructor"),
        ("? [a]\n: 1\n", "not YAML (while constructing a mapping"),
    ],
)
def test_yaml_faults(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="^" + re.escape(f"--config {file}: {message.replace('{}', str(file), 1)}")):
        parse(f"--config {file}")


def test_yaml_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no.yaml: No such file or directory; name a YAML file$"):
        parse(f"--config {tmp_path}/no.yaml")
    with pytest.raises(ConfigError, match="Is a directory; name a YAML file$"):
        parse(f"--config {tmp_path}")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary.yaml: not YAML \("):
        parse(f"--config {tmp_path}/binary.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: many", "--seed many is not a whole number"),
        ("seed: 1.5", "--seed 1.5 is not a whole number"),
        ("seed: true", "--seed True is not a whole number"),
        ("seed: .nan", "--seed nan is not a whole number"),
        ("seed: .inf", "--seed inf is not a whole number"),
        ("seed: null", "--seed needs a value"),
        ("dropout: [0.1]", "--dropout [0.1] is not a number"),
        ("dropout: yes", "--dropout True is not a number"),
        ("norm_first: 1", "--norm_first 1 is not true or false"),
        ("norm_first: maybe", "--norm_first maybe is not true or false"),
        ("run_name: 5", "--run_name 5 is not text"),
        ("train_file: [1]", "--train_file [1] is not a list of file names"),
        ("train_file: {a: 1}", "--train_file {'a': 1} is not a list of file names"),
        ("precision: {fp32: 1}", "--precision {'fp32': 1} is not text"),
    ],
)
def test_wrong_types_in_yaml(tmp_path, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        config_of(f"--config {file}")
