"""Upload of a scored run to a model hub: famix-publish."""

import argparse
import shutil
import tempfile
from pathlib import Path

from famix.inference.hub import require_hub, split_name, upload_folder
from famix.inference.loading import load_model
from famix.io.atomic import require_writable
from famix.reports.publishing import Publication, write_publication
from famix.reports.runs import CONFIG_FILE, read_runs, scored_weights
from famix.utils.errors import ConfigError
from famix.utils.messages import file_size
from famix_cli.programs import run_program


def run(args: argparse.Namespace) -> None:
    """Write the files of a run and upload them, unless `--output` keeps them. Raises FAMixError if a step fails."""
    name, revision = split_name(args.name, "OWNER/NAME")
    if revision is not None:
        raise ConfigError(f"OWNER/NAME must not contain a revision, got {args.name!r}. Use {name!r}.")
    if args.output is None:
        require_hub()
    elif args.output.exists():
        raise ConfigError(f"--output must be a new folder, got '{args.output}', which exists. Choose another one.")
    else:
        require_writable(args.output.parent)
    (scored,) = read_runs([args.run.resolve() if args.run.is_dir() else args.run])
    loaded = load_model(scored_weights(scored), scored.folder / CONFIG_FILE, device="cpu")
    with tempfile.TemporaryDirectory(dir=args.output and args.output.parent) as temporary:
        folder = Path(temporary) / "files"
        write_publication(Publication(name, scored, loaded, args.license), folder)
        for file in sorted(folder.iterdir()):
            print(f"{file_size(file):>11}  {file.name}")
        if args.output is None:
            print(f"published at {upload_folder(folder, name, private=args.private)}")
        else:
            shutil.move(folder, args.output)
            print(f"wrote {args.output}; nothing was uploaded")


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(run, arguments)
