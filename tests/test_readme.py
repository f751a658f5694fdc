"""What README promises: its script runs, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_script_of_readme_prints_the_top_eigenvalues(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(script.splitlines()) <= 25
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    values = [float(line.split(" ± ")[0]) for line in done.stdout.splitlines()]
    assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] > 0
    assert (tmp_path / "mine.h5").stat().st_size > 0 and (tmp_path / "mine.png").stat().st_size > 0


def test_pictures_and_files_named_in_readme_exist():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path


def test_checkpoints_named_in_readme_ship():
    shipped = {path.stem for path in (ROOT / "data_cache" / "checkpoints").glob("*.safetensors")}
    named = set(re.findall(r"\bresnet_(?:dnn|mcdo)(?:_smoothing)?_18(?:_mlp)?\b", README))
    assert named - {"resnet_mcdo_smoothing_18_hessian"} <= shipped
