"""Sets of the hub: what is asked for, and one line whatever goes wrong, also without a network."""

import http.server
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from him.core import hub
from him.core.errors import DataError
from him.core.hub import hub_file, hub_folder, hub_split, load_hub_dataset, offline, quiet

REPOSITORY = Path(__file__).parents[2]
NAME = "owner/name"
WAYS = "--train_file FILE"
CAUSE = "OSError: no such host"
ROWS = {"train": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "validation": [{"a": 3, "b": "z"}]}


def check_one_line(error: pytest.ExceptionInfo) -> None:
    assert str(error.value).isprintable() and "; " in str(error.value)


def rows_in(splits: datasets.DatasetDict) -> dict[str, list[dict]]:
    return {name: split.to_list() for name, split in splits.items()}


@pytest.mark.parametrize("config", [None, "3.0.0"])
def test_name_and_configuration_are_asked_for(monkeypatch, reachable, config):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or "the set")
    notes = []
    assert load_hub_dataset(NAME, WAYS, notes, config) == "the set"
    assert asked == [(NAME, config)] and notes == []


def test_local_folder_of_rows(tmp_path, empty_cache):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert rows_in(load_hub_dataset(str(folder), WAYS, [])) == ROWS


@pytest.fixture
def two_configurations(tmp_path, empty_cache):
    """A folder whose card names two configurations, as those of many hub sets do."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"a": name}), encoding="utf-8")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files: two.jsonl\n---\n"
    )
    return str(folder)


def test_one_of_several_configurations(two_configurations):
    assert rows_in(load_hub_dataset(two_configurations, WAYS, [], "two")) == {"train": [{"a": "two"}]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"Config name is missing\..*\['one', 'two'\].*; choose a configuration with --dataset_config NAME$"),
        ("three", r"BuilderConfig 'three' not found\. Available: \['one', 'two'\]; choose a configuration with"),
    ],
)
def test_configuration_that_is_not_there(two_configurations, config, message):
    with pytest.raises(DataError, match=f'^--dataset ".*": {message}') as error:
        load_hub_dataset(two_configurations, WAYS, [], config)
    check_one_line(error)


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        (
            "test",
            ["a"],
            r'^--dataset "owner/name" has no split test \(there is train, validation\); name another one, or use',
        ),
        ("train", ["a", "c", "d"], r'"owner/name" has no column "c", "d" \(there is "a", "b"\); look elsewhere$'),
    ],
)
def test_split_or_column_that_is_not_there(split, columns, message):
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in ROWS.items()})
    with pytest.raises(DataError, match=message) as error:
        hub_split(splits, NAME, split, WAYS, columns, "look elsewhere")
    check_one_line(error)
    assert hub_split(splits, NAME, "train", WAYS, ["b"], "look elsewhere").to_list() == ROWS["train"]


def test_broken_local_folder_is_one_line_and_no_noise(tmp_path, empty_cache, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text('{"id": "a"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r'--dataset ".*" cannot be read \(\w+: .*\); use --train_file FILE') as error:
        load_hub_dataset(str(tmp_path / "mine"), WAYS, [])
    check_one_line(error)
    assert capfd.readouterr().err == ""


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers every request with `status`, as the hub does for a name that it does not know (404) or when ill (503)."""

    status = 404

    def do_HEAD(self):
        self.send_response(self.status)
        if self.status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def fake_hub(monkeypatch, empty_cache):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (FakeHub,), {}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def use_endpoint(monkeypatch, url: str) -> None:
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    for switch in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(switch, "HF_HUB_OFFLINE", False)


OUT_OF_REACH = (
    r'^the Hugging Face hub is out of reach \({}\) and "owner/name" is not in its cache; '
    r"use files of your own with --train_file FILE$"
)


def test_name_that_the_hub_does_not_know(fake_hub, capfd):
    expected = '^the Hugging Face hub has no data set "no/such", or it is private or gated; check the name'
    with pytest.raises(DataError, match=expected) as error:
        load_hub_dataset("no/such", WAYS, [])
    check_one_line(error)
    assert capfd.readouterr().err == ""


def test_hub_that_is_ill_is_not_asked_again_and_again(fake_hub, capfd):
    fake_hub.RequestHandlerClass.status = 503
    started_at = time.perf_counter()
    with pytest.raises(DataError, match=OUT_OF_REACH.format("it answers 503")):
        load_hub_dataset(NAME, WAYS, [])
    assert time.perf_counter() - started_at < 5
    assert capfd.readouterr().err == ""


def test_hub_that_refuses_the_connection(monkeypatch, empty_cache, capfd):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    before = datasets.logging.get_verbosity(), huggingface_hub.logging.get_verbosity()
    with pytest.raises(DataError, match=OUT_OF_REACH.format(".*Connection refused")) as error:
        load_hub_dataset(NAME, WAYS, [])
    check_one_line(error)
    assert capfd.readouterr().err == ""
    # The settings made for the call are gone after it.
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.is_offline_mode()
    assert before == (datasets.logging.get_verbosity(), huggingface_hub.logging.get_verbosity())
    assert before[0] < logging.CRITICAL and not datasets.utils.are_progress_bars_disabled()


def test_hub_that_never_answers(monkeypatch, empty_cache):
    """A firewall that swallows packets: the wait is bounded by us, not by the client, which tries each address."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "HUB_SECONDS", 0.3)
        started_at = time.perf_counter()
        with pytest.raises(DataError, match=OUT_OF_REACH.format("(no answer within 0 s|.*timed out.*)")):
            load_hub_dataset(NAME, WAYS, [])
        assert time.perf_counter() - started_at < 5


@pytest.mark.parametrize("reason", [CAUSE, "HF_HUB_OFFLINE is set"])
def test_cache_serves_when_the_hub_is_out_of_reach(tmp_path, monkeypatch, empty_cache, reason):
    folder = tmp_path / "name"
    folder.mkdir()
    for name, rows in ROWS.items():
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    datasets.load_dataset(str(folder), cache_dir=str(empty_cache))
    shutil.move(empty_cache / "name", empty_cache / "owner___name")  # as the hub's own copy is named
    if reason == CAUSE:
        monkeypatch.setattr(hub, "_why_unreachable", lambda name: CAUSE)
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    notes = []
    assert rows_in(load_hub_dataset(NAME, WAYS, notes)) == ROWS
    assert notes == [f"the Hugging Face hub is out of reach ({reason}): owner/name is read from the cache"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("reset\nby peer"), r"is out of reach \(reset by peer\) and"),
        (TimeoutError("slow"), r"is out of reach \(slow\) and"),
        (
            ValueError("No rows.\nNone"),
            r"cannot be read \(ValueError: No rows\. None\); use",
        ),
        (OSError(28, "No space left on device"), r"cannot be read \(OSError: .*No space left on device\)"),
    ],
)
def test_whatever_the_library_raises_is_one_line(monkeypatch, reachable, error, message):
    def fail(path, config):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=message) as raised:
        load_hub_dataset(NAME, WAYS, [])
    check_one_line(raised)


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached_model(empty_cache) -> Path:
    """A model in the cache, as the hub's client keeps it."""
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--owner--name"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.mark.parametrize("reason", [CAUSE, "HF_HUB_OFFLINE is set"])
def test_a_model_in_the_cache_serves_when_the_hub_is_out_of_reach(monkeypatch, cached_model, reason):
    asked = []
    monkeypatch.setattr(hub, "_why_unreachable", lambda path: asked.append(path) or reason)
    assert hub_folder(NAME, ["*.json"]) == cached_model
    assert asked == ["api/models/owner/name"] and not huggingface_hub.is_offline_mode()


def test_a_file_in_the_cache_is_taken_unasked(monkeypatch, cached_model):
    monkeypatch.setattr(hub, "_why_unreachable", lambda path: pytest.fail("asked"))
    assert hub_file(NAME, "config.json") == cached_model / "config.json"


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "404"), (503, "^the hub is out of reach, it answers 503, and it is not in the c")],
)
@pytest.mark.parametrize("fetch", [lambda: hub_file(NAME, "config.json"), lambda: hub_folder(NAME, ["*.json"])])
def test_a_model_that_cannot_be_had(fake_hub, fetch, status, message, capfd):
    fake_hub.RequestHandlerClass.status = status
    started_at = time.perf_counter()
    with pytest.raises(OSError, match=message):
        fetch()
    assert time.perf_counter() - started_at < 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("bars", [False, True])
def test_libraries_are_quiet_for_a_while(bars):
    import transformers

    def state() -> list[bool | int]:
        logs = [library.utils.logging.get_verbosity() for library in (datasets, huggingface_hub, transformers)]
        off = [library.utils.are_progress_bars_disabled() for library in (datasets, huggingface_hub)]
        return [*logs, *off, not transformers.utils.logging.is_progress_bar_enabled()]

    before = state()
    with quiet("datasets", "huggingface_hub", "transformers", bars=bars):
        assert state() == [logging.CRITICAL] * 3 + (before[3:] if bars else [True] * 3)
    assert state() == before and before[3:] == [False] * 3


def test_offline_for_a_while():
    with pytest.raises(KeyboardInterrupt), offline():
        assert huggingface_hub.is_offline_mode() and datasets.config.HF_HUB_OFFLINE
        raise KeyboardInterrupt
    assert not huggingface_hub.is_offline_mode() and not datasets.config.HF_HUB_OFFLINE


def test_datasets_is_imported_only_when_it_is_called():
    program = "import sys, him.core.hub; assert not {'datasets', 'torch', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
