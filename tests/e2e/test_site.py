"""The documentation site: pages of docs/ and of docstrings."""

from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_is_built_without_warnings_and_asks_no_other_host(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path],
                          cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ROOT.glob("docs/*.md"):
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        text = (tmp_path / name).read_text()
        assert "<h1" in text and 'src="http' not in text
        assert 'rel="stylesheet" href="http' not in text
    api = (tmp_path / "api" / "index.html").read_text()
    assert all(name in api for name in ("encode_image", "predict_fns", "order", "examples"))
