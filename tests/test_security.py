"""Keys, code and names that come from data: planted in some twenty places, looked for in all that is written."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from c3po_bench import cli, doctor
from c3po_bench.analysis.ablation import write_table
from c3po_bench.config import Config, check_ranges, conf_dir
from c3po_bench.errors import UserError, refuse
from c3po_bench.explain import status_of
from c3po_bench.feedback.calls import CallCache, Reply
from c3po_bench.feedback.chats import open_chat
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.sweep_folder import freeze
from c3po_bench.masking import LOOKS, MASK, masked, remember, secrets, without_secrets
from c3po_bench.report.build import write_report
from c3po_bench.runtime.console import log_to, set_up_logging
from c3po_bench.store import provenance
from c3po_bench.store.files import Journal, write_json, write_jsonl, write_text
from c3po_bench.store.reader import load_experiments, load_runs
from c3po_bench.store.records import read_sealed, write_sealed
from c3po_bench.tracking import _bounded
from tests import store_factory as factory
from tests.feedback.stub_server import chat_config, make_context, serve

pytestmark = pytest.mark.security
KEY = "sk-Planted-0123456789"
LOOKALIKE = "hf_AbCdEfGhIjKlMnOpQrStUv"


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """A key in the environment, under a name that says so, and one under a name that does not."""
    monkeypatch.setenv("PLANTED_API_KEY", KEY)
    monkeypatch.setenv("ODDLY_NAMED", "odd!value!of!a!key")
    remember("odd!value!of!a!key")


def found(folder: Path) -> list[Path]:
    """The files below a folder that hold a planted key."""
    return [
        p
        for p in folder.rglob("*")
        if p.is_file() and any(key.encode() in p.read_bytes() for key in secrets())
    ]


# --- what is masked


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"Bearer {KEY}",
        f"http://host/v1?api_key={KEY}",
        json.dumps({"error": f"bad key {KEY}"}),
        repr(f"{KEY}\n".encode()),
        "odd!value!of!a!key",
        "odd%21value%21of%21a%21key",
    ],
)
def test_a_known_key_is_masked_wherever_it_stands(text):
    assert KEY not in masked(text) and "odd" not in masked(text) and MASK in masked(text)
    assert KEY not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        LOOKALIKE,
        "sk-proj-abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuvwx",
        "AKIAABCDEFGHIJKLMNOP",
        "http://me:a-password@host/v1",
        "https://host/v1?token=abc&x=1",
        "https://host/v1?x=1&access_key=abc",
        "Authorization: Bearer abcdefghijk",
        "Authorization: Basic bWU6cHc=",
    ],
)
def test_what_looks_like_a_key_is_masked_in_messages_and_left_in_data(text):
    assert MASK in masked(text)
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a task about sk-ating and hf_ub",
        "model.path=/data/key/token",
        "http://localhost:8000/v1?api-version=2",
        "e-mail me@host",
        "see https://host/@user",
        "monkey=banana&x",
    ],
)
def test_other_texts_stay(text):
    assert masked(text) == text


def test_short_values_and_words_are_no_secrets(monkeypatch):
    for value in (
        "none",
        "EMPTY",
        "dummy",
        "passwordpassword",
        "12345678",
        "/run/secrets/key",
        "http://host/x",
    ):
        monkeypatch.setenv("SOME_TOKEN", value)
        assert value not in secrets()


# --- every writer and everything that is printed


def writers(folder: Path) -> None:
    write_text(folder / "text.txt", f"a {KEY}")
    write_json(folder / "data.json", {"a": [KEY], KEY: 1})
    write_jsonl(folder / "rows.jsonl", [{"response": KEY}, {"prompt": "odd!value!of!a!key"}])
    write_sealed(folder / "sealed.json", {"answer": KEY})
    Journal(folder / "journal.jsonl").append([{"key": "one", "text": KEY}, {"key": "two", "text": KEY}])
    CallCache(folder / "calls.jsonl").put({"k": Reply(f"echo {KEY}")._asdict()})


def test_no_writer_writes_a_key(tmp_path: Path):
    writers(tmp_path)
    assert not found(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    assert read_sealed(tmp_path / "sealed.json") == {"answer": MASK}, "and its checksum holds"
    assert len(Journal(tmp_path / "journal.jsonl").rows) == 2


def test_no_message_log_or_traceback_shows_a_key(tmp_path: Path, capsys):
    set_up_logging("info")
    log = logging.getLogger("c3po_bench")
    try:
        with log_to(tmp_path / "run" / "log.txt"):
            log.warning("the server said %s", KEY)
            raise ValueError(f"wrong {KEY}")
    except ValueError as error:
        assert status_of(error) == 1
    refuse(f"http://me:{KEY}@host: {LOOKALIKE}")
    status_of(UserError(f"no {KEY}"))
    for handler in log.handlers:
        handler.flush()
    shown = capsys.readouterr()
    assert (
        KEY not in shown.out + shown.err
        and LOOKALIKE not in shown.err
        and "ValueError: wrong ***" in shown.err
    )
    assert not found(tmp_path) and "wrong ***" in (tmp_path / "run" / "log.txt").read_text()


def test_the_command_that_is_recorded_has_no_key(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["c3po_bench", f"name={LOOKALIKE}", f"model.path=http://a:b@c/{KEY}"])
    assert MASK in provenance.command()
    assert (
        not LOOKS.search(provenance.command())
        and KEY not in provenance.command()
        and "a:b" not in provenance.command()
    )


def test_what_a_publishing_process_prints_has_no_key(tmp_path: Path):
    code = f"import sys; print({KEY!r}); sys.exit('refused {KEY}')"
    assert _bounded([sys.executable, "-c", code], tmp_path / "wandb", 30) == "refused ***"
    assert not found(tmp_path)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500, 302, 307])
def test_an_endpoint_that_echoes_the_key_shows_it_to_nobody(tmp_path: Path, status: int, capsys, caplog):
    with serve(lambda body, before: status) as stub, serve(lambda body, before: "text") as other:
        stub.said, stub.location = f"your key {KEY} is odd!value!of!a!key", f"{other.url}/elsewhere"
        chat = open_chat(
            chat_config(stub.url, api_key_env="PLANTED_API_KEY", retries=0), make_context(tmp_path)
        )
        try:
            chat.complete("stage", [[{"role": "user", "content": "a"}]])
        except UserError as error:
            refuse(str(error))
        assert set(stub.keys) == {f"Bearer {KEY}"} and not other.asked, "the key goes to one host alone"
    shown = capsys.readouterr()
    assert KEY not in shown.out + shown.err and "odd!value" not in shown.out + shown.err
    assert not found(tmp_path)


def test_a_store_that_holds_a_key_is_shown_without(tmp_path: Path):
    """In questions, answers, notes, titles, settings, commands: of a store that an older version wrote."""
    runs = factory.feedback_store(tmp_path / "store", hostile=KEY)
    factory.write_run(
        tmp_path / "store",
        "ngd",
        [dict(row) for row in runs[0].samples()],
        settings={"note": KEY},
        notes=[KEY],
    )
    page = write_report(tmp_path / "store", tmp_path / "view")
    assert page.exists() and not found(tmp_path / "view")


# --- configs


@pytest.mark.parametrize(
    "words",
    [
        ["feedback.generator.api_key_env=sk-abcdef-1"],
        ["feedback.generator.api_key_env=0123456789abcdef"],
        ["feedback.judge.chat.api_key_env=abcdef0123456789abcdef0123456789"],
        ["feedback.reviser.writer.api_key_env='${oc.env:PLANTED_API_KEY}'"],
        ["feedback.generator.base_url=http://me:word@host/v1"],
        ["feedback.generator.base_url='http://host/v1?api_key=word'"],
        ["feedback.judge.chat.base_url='http://host/${oc.env:PLANTED_API_KEY}/v1'"],
        ["'name=${oc.env:PLANTED_API_KEY}'"],
        ["model.path=https://token@host/model"],
        [f"model.path={LOOKALIKE}"],
        ["'tasks=[a,${oc.env:PLANTED_API_KEY}]'"],
        ["++arm_options.ngd.note='${oc.env:PLANTED_API_KEY}'"],
        ["tracking.project='${oc.env:PLANTED_API_KEY}'"],
        ["feedback.out_of_scope='https://host/list?token=word'"],
    ],
)
def test_a_key_in_a_config_is_refused_before_anything_is_written(words, tmp_path: Path, capsys):
    words = [word.removeprefix("'").removesuffix("'") if word.startswith("'") else word for word in words]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[*words, f"results_dir={tmp_path / 'store'}"])
        with pytest.raises(UserError, match="holds|wants the name of the environment variable") as caught:
            check_ranges(cli.to_config(cfg))
    assert "word" not in str(caught.value).replace("password", "") and KEY not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_key_in_a_sweep_is_refused_before_its_cells_are_frozen(tmp_path: Path):
    words = ["+sweep=neighbors", "model=tiny", "feedback.generator.base_url=http://me:pw-1@h/v1"]
    with pytest.raises(UserError, match="holds what looks like"):
        freeze(compose_grid([*words, f"results_dir={tmp_path / 'store'}"]))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_KEY2", "key", "A_VERY_LONG_NAME_OF_A_VARIABLE_2026"])
def test_names_of_variables_are_taken(name):
    config = Config()
    config.feedback.generator.api_key_env = name
    check_ranges(config)


# --- code and names that come from data


@pytest.mark.parametrize("asked", ["", "1"])
@pytest.mark.parametrize(
    "file", ["hydra_plugins/mine/__init__.py", "hydra_plugins/__init__.py", "hydra_plugins.py"]
)
def test_plugins_of_the_working_folder_are_not_imported_unless_asked(tmp_path: Path, file: str, asked: str):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("open('imported', 'w').close()\n")
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "C3PO_HYDRA_PLUGINS": asked}
    command = [sys.executable, "-m", "c3po_bench", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / "imported").exists() == bool(asked)
    assert done.returncode == 0 or asked


def test_code_of_a_model_is_never_run(tmp_path: Path):
    from c3po_bench.config import ModelConfig
    from c3po_bench.models import loading
    from c3po_bench.models.tiny import tiny_model, tiny_tokenizer

    tiny_model("olmoe").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own"}
    fields["auto_map"] = {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    with pytest.raises(UserError, match="brings Python code of its own|own"):
        loading.load(ModelConfig(name="own", kind="hf", path=str(tmp_path)))
    assert not (tmp_path / "run").exists()


def test_names_of_a_store_lead_out_of_no_store(tmp_path: Path):
    runs = factory.store(tmp_path / "store", base=[0, 1], ngd=[1, 1])
    for name in ("../elsewhere", "/etc", "..", "a\\b"):
        factory.write_experiment(tmp_path / "store", "x", [SimpleNamespace(run_id=name)])  # pyright: ignore
        with pytest.raises(UserError, match="no folder's name"):
            load_experiments(tmp_path / "store")
        next((tmp_path / "store" / "experiments").glob("*.json")).unlink()
    assert len(load_runs(tmp_path / "store")) == len(runs)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_that_begin_like_formulas_are_texts(tmp_path: Path, start: str):
    formula = f"{start}HYPERLINK('http://host')"
    frame = pd.DataFrame(
        {"title": [formula, "plain", None], "value": [-1.5, 2.0, 3.0], f"{start}name": [1, 2, 3]}
    )
    path, parquet = write_table(frame, tmp_path / "table")
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["title", "value", f"'{start}name".replace("\r", " ")]
    assert rows[1][:2] == [f"'{formula}".replace("\r", " "), "-1.5"]
    assert rows[2][0] == "plain" and rows[3][0] == ""
    assert pd.read_parquet(parquet)["title"][0] == formula, "a typed file is no spreadsheet"


# --- a changed byte


def test_a_changed_byte_of_a_result_is_noticed(tmp_path: Path, capsys):
    (run,) = factory.store(tmp_path, base=[0, 1, 1])
    path = run.path / "result.json"
    write_sealed(path, json.loads(path.read_text()))
    assert load_runs(tmp_path)[0].result["arm"] == "base" and "crc" not in load_runs(tmp_path)[0].result
    whole = path.read_bytes()
    for place in range(len(whole)):
        if chr(whole[place]).isspace():
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged|has schema version|missing|not"):
            _ = load_runs(tmp_path)[0].result
    assert doctor.main([f"results_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "result.json is damaged" in said
    path.write_bytes(whole)
    doctor.main([f"results_dir={tmp_path}"])
    assert "each is what was written" in capsys.readouterr().out


def test_a_shown_config_and_other_librarys_warnings_are_masked():
    words = ["--cfg", "job", "--resolve", "name=${oc.env:PLANTED_API_KEY}", f"log_level={LOOKALIKE}"]
    code = "import logging, sys; from c3po_bench.runtime.console import set_up_logging; set_up_logging('error')\n"
    code += f"logging.getLogger('httpx').warning('sent %s', '{KEY}')\n"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    for command in (["-m", "c3po_bench", *words], ["-c", code]):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert MASK in done.stdout + done.stderr
        assert KEY not in done.stdout + done.stderr and LOOKALIKE not in done.stdout + done.stderr
