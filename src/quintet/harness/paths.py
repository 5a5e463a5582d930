"""Where the repository's own folders are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CONF = REPOSITORY / "conf"
