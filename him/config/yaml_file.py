"""Settings from a YAML file: plain `name: value` lines, each name once, and nothing that could be code or grow."""

from collections import Counter
from typing import Any

from him.config.names import known
from him.core.errors import ConfigError

LARGEST_YAML = 20_000  # bytes
DEEPEST_YAML = 10
# What the YAML reader raises for values such as `!!bool x`, `!!timestamp x` or a date before the year 1.
FAULTS_OF_VALUES = (ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


def read_yaml(path: str) -> dict[str, Any]:
    """Settings of a YAML file, by field name. Raises ConfigError: the file is missing, is not YAML, sets a name twice,
    or names an unknown setting."""
    import yaml

    where = f"--config {path}"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_YAML + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; name a YAML file") from None
    if len(content) > LARGEST_YAML:  # reading takes seconds a megabyte
        raise ConfigError(
            f"{where}: larger than {LARGEST_YAML:,} bytes, so that it holds more than settings; name a YAML file of "
            "`name: value` lines"
        )
    try:
        text = content.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them stand for billions of values
                raise ConfigError(f"{where}: has an alias (*name), which is not read; write its value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:  # reading takes the square of the depth
                raise ConfigError(f"{where}: nested too deeply for settings; write `name: value` lines")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        names = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [name for name, number in Counter(names).items() if number > 1]:  # YAML takes the last one
            raise ConfigError(f"{where}: {twice[0]} is set twice; keep one of the lines")
        settings = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, *FAULTS_OF_VALUES) as error:
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    return known({} if settings is None else settings, where)
