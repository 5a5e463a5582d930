"""A W&B server on this machine and its client, for the tests beside this file."""

import threading

import pytest
from wandb_client import Client
from wandb_server import Server


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """Logged in to a server that runs as long as the tests do."""
    pytest.importorskip("wandb")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Client(tmp_path_factory.mktemp("wandb"), server)
    server.shutdown()
