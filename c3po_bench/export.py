"""`python -m c3po_bench.export RESULTS_DIR ARM --output DIR`: ship what an arm trained, with a model card from the store."""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from omegaconf import OmegaConf

from c3po_bench.analysis.pairing import run_labels
from c3po_bench.config import Config
from c3po_bench.errors import UserError, exit_status, unknown
from c3po_bench.registry import import_plugins
from c3po_bench.report.model_card import Shipped, model_card
from c3po_bench.store.files import writing
from c3po_bench.store.identity import content_hash
from c3po_bench.store.reader import Run, load_runs


def main(argv: list[str] | None = None) -> int:
    """Write the folder, and say where it is; 2 where the user can mend what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.export",
        description="Write the adapter that an arm trained, or the model with it merged in, as a folder that loads with "
        "PEFT or transformers, with its tokenizer and a model card whose numbers come from the store.",
    )
    parser.add_argument("results_dir", help="the store of the experiment that trained it")
    parser.add_argument(
        "arm", help="an arm that trains, such as c3po; or a run id, where several runs share it"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--feedback", metavar="ID", help="which adapter, of an arm that has one for each piece"
    )
    parser.add_argument("--merge", action="store_true", help="the whole model with the adapter merged in")
    parser.add_argument(
        "--base-model", metavar="ID", help="hub id of the base, where it was loaded from a folder"
    )
    parser.add_argument("--license", metavar="NAME", help="as the hub names it, for example apache-2.0")
    parser.add_argument(
        "--push", metavar="ORG/NAME", help="send the folder to this repository of the hub, made private"
    )
    arguments = parser.parse_args(argv)
    return exit_status(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output}: is there already and not empty; give a new folder")
    if arguments.push:
        check_push(arguments.push)
    runs = load_runs(arguments.results_dir)
    run = find_run(runs, arguments.arm)
    with tempfile.TemporaryDirectory() as made:
        shipped = write_weights(run, Path(made), arguments)
        model_card(runs, run, shipped).save(Path(made) / "README.md")
        with writing(output, "--output"):
            shutil.copytree(made, output, dirs_exist_ok=True)
    sys.stdout.write(f"{run.arm} of {run.run_id} is in {output}\n")
    if arguments.push:
        sys.stdout.write(f"pushed to {push(output, arguments.push)}\n")


def find_run(runs: list[Run], name: str) -> Run:
    """The run of this arm, label or id.

    Raises:
        UserError: where there is none, where several could be meant, and for an arm that trains no weights.
    """
    labels = run_labels(runs)
    found = [run for run in runs if name in (run.arm, run.run_id, labels[run.run_id])]
    if not found:
        raise unknown("arm", name, [run.arm for run in runs])
    if len(found) > 1:
        raise UserError(
            f"arm {name!r}: {len(found)} runs are of this arm: give one of {', '.join(r.run_id for r in found)}"
        )
    return found[0]


def write_weights(run: Run, folder: Path, arguments: argparse.Namespace) -> Shipped:
    """Write adapter or model and tokenizer into `folder`; they are those of the run, or nothing is written.

    Raises:
        UserError: where the run's adapter is not that of one piece, or can't be had as it was.
    """
    # torch, transformers and the backends: what is wrong with the arguments is said before they are imported
    from c3po_bench.evaluate.run import open_backend, shared_identity
    from c3po_bench.feedback.backend import FeedbackArm

    cfg: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), run.config))
    cfg.arms = [run.arm]
    import_plugins(cfg.plugins)
    backend = open_backend(cfg)
    arm = next(arm for arm in backend.arms() if arm.row.name == run.arm)
    if not isinstance(arm, FeedbackArm) or arm.plan is None:
        raise UserError(
            f"arm {run.arm!r} trains no weights that could be shipped: take a recipe, such as c3po"
        )
    here, stored = (
        {**shared_identity(cfg, backend.tasks, backend), **arm.identity()},
        run.provenance["identity"],
    )
    if changed := [key for key in here if content_hash(here[key]) != content_hash(stored.get(key))]:
        raise UserError(
            f"{run.path} can't be made here as it was: {', '.join(changed)} changed since; run the experiment again"
        )
    model, adapters = arm.tuned_model()
    names = sorted(set(adapters.values()))
    if arguments.feedback is not None and arguments.feedback not in adapters:
        raise unknown("--feedback", arguments.feedback, sorted(adapters))
    if len(names) > 1 and arguments.feedback is None:
        raise UserError(
            f"arm {run.arm!r} has an adapter for each piece: give --feedback, one of {', '.join(sorted(adapters))}"
        )
    name = adapters[arguments.feedback] if arguments.feedback else names[0]
    subject = arm.session.context.subject
    hub = cfg.model.kind == "hf" and not Path(cfg.model.path).expanduser().exists()
    base = arguments.base_model or (cfg.model.path if hub else None)
    revision = commit_of(cfg.model.path, cfg.model.revision) if hub else None
    if arguments.merge:
        whole = model.merge_and_unload(adapter_names=[name])
        whole.config._name_or_path = base or ""
        whole.save_pretrained(folder)
    else:
        model.save_pretrained(folder, selected_adapters=[name])
        for path in (folder / name).iterdir():
            path.rename(folder / path.name)
        (folder / name).rmdir()
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base, "revision": revision}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    subject.tokenizer.save_pretrained(folder)
    taught = {f.id: f.content for f in arm.session.feedbacks if adapters[f.id] == name}
    return Shipped(base, revision, arguments.merge, arguments.license, taught)


def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit that this machine's cache has of a model's revision; else the revision as it was given."""
    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision


def check_push(repository: str) -> None:
    """`UserError` for a name that the hub does not take, or where nobody is logged in."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push={repository}: is no name of a repository, ORG/NAME ({error})") from error
    if get_token() is None:
        raise UserError("--push needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Send the folder to a private repository of the hub, made if it is not there; its address.

    Raises:
        UserError: where the hub refuses, or can't be reached.
    """
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Add what c3po_bench trained"
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"--push={repository}: the hub did not take it ({why}); the folder {folder} is whole"
        ) from error
    return str(address)


if __name__ == "__main__":
    sys.exit(main())
