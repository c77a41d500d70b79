"""The committed page is what its source builds to."""

import filecmp
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path("services/labeler/page")
STATIC = Path("services/labeler/static")


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm: whether the page is up to date is NOT known")
def test_static_is_what_the_page_builds_to(tmp_path):
    copied = shutil.copytree(SOURCE, tmp_path / "page", ignore=shutil.ignore_patterns("node_modules"))
    try:
        npm("ci", "--no-audit", "--no-fund", "--prefer-offline", at=copied)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no packages: whether the page is up to date is NOT known: {error.stderr[-300:]}")
    npm("run", "build", at=copied)
    assert differences(filecmp.dircmp(tmp_path / "static", STATIC)) == [], "run `make page` and commit"


def npm(*words, at):
    return subprocess.run(["npm", *words], cwd=at, check=True, capture_output=True, text=True, timeout=300)


def differences(found):
    """Names, in this folder and those below; by contents."""
    _, unlike, odd = filecmp.cmpfiles(found.left, found.right, found.common_files, shallow=False)
    below = [name for one in found.subdirs.values() for name in differences(one)]
    return [*found.left_only, *found.right_only, *unlike, *odd, *below]
