"""Page in the browser: famix-app."""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from famix.utils.errors import ConfigError
from famix.utils.messages import first_line
from famix_app.networks import find_demo_runs, load_networks
from famix_cli.programs import run_program


def require_gradio() -> None:
    """Raise ConfigError unless Gradio 6 or newer is installed."""
    try:
        import gradio
    except ImportError as error:
        problem = f"cannot be imported ({first_line(error)})"
    else:
        if int(gradio.__version__.partition(".")[0]) >= 6:
            return
        problem = f"must be version 6 or newer, got {gradio.__version__}"
    raise ConfigError(f"famix-app uses gradio, which {problem}. Install it with pip install 'famix[app]'.")


def serve(arguments: argparse.Namespace) -> None:
    """Load the networks and serve the page until the user stops it."""
    runs = arguments.runs or find_demo_runs()
    with tempfile.TemporaryDirectory(prefix="famix-app-") as cache:
        os.environ["GRADIO_TEMP_DIR"] = cache  # for uploads and shown pictures, before the components are built
        require_gradio()
        from famix_app.page import build_page, launch_page

        networks = load_networks(runs, arguments.device)
        for network in networks:
            print(f"loaded {network.name}: {network.predictor!r}")
        page = build_page(networks, Path(cache))
        print(f"FAMix is at {launch_page(page, arguments.host, arguments.port)} (Ctrl-C stops it)", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            page.block_thread()
        finally:
            page.close()


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(serve, arguments)
