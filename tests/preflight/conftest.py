"""Image files, and the config of a task from outside."""

from pathlib import Path
import textwrap

import pytest
from pictures import broken_files, odd_files, photo_jpeg  # noqa: F401

OUTSIDE = Path(__file__).with_name("outside.py")


@pytest.fixture
def outside_config(tmp_path):
    """A config file of the task of outside.py: batches of 16 in groups of 8."""
    text = f"""
        from albef_jax.config import default_config
        def get_config(variant=None):
            config = default_config("{OUTSIDE}:Contrast")
            config.batch_size, config.group_size, config.steps = 16, 8, 10
            config.data.source = dict(kind="{OUTSIDE}:Recordings")
            return config
    """
    path = tmp_path / "outside_config.py"
    path.write_text(textwrap.dedent(text))
    return path
