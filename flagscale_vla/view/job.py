"""Job `view_data`: a page on shards, served until it is stopped."""

from __future__ import annotations

import logging
import socket

from flagscale_vla.config.view import ViewRun
from flagscale_vla.data.feed import Feed
from flagscale_vla.data.prepare import open_train_data
from flagscale_vla.view.library import Library

logger = logging.getLogger(__name__)


def run(run: ViewRun) -> None:
    """Open the shards as a training run would, and serve the page until Ctrl-C.

    Raises:
        ConfigError: the settings do not go together.
        ValueError: there are no shards, the extra `serve` is not installed.
        OSError: the address is taken.
    """
    try:
        import uvicorn

        from flagscale_vla.view.server import make_app
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'flagscale_vla[serve]'") from error
    app = make_app(open_library(run), run)
    with listen(run) as listener:
        host, port = listener.getsockname()[:2]
        place = f"[{host}]" if ":" in host else host
        # The token is the user's secret: it is not written to a log.
        logger.info("open http://%s:%d/%s; Ctrl-C ends", place, port, "?token=..." if run.token else "")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def open_library(run: ViewRun) -> Library:
    """The shards as training reads them."""
    recipe, sources = open_train_data(run.data, run.action, width=run.model.flow.width, vocab=run.model.language.vocab)
    return Library(
        Feed(
            sources=sources,
            recipe=recipe,
            order=run.data,
            pack_length=run.data.pack_length,
            seed=run.seed,
            augment=True,
        )
    )


def listen(run: ViewRun) -> socket.socket:
    """A socket at the run's address."""
    family = socket.AF_INET6 if ":" in run.host else socket.AF_INET
    return socket.create_server((run.host, run.port), family=family)
