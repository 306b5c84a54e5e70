"""coremltools is imported whole in a user's process, and without what it only converts from in ours. Stand-ins say what they saw."""

import subprocess
import sys

import pytest

SCRIPT = """
from f2i_runtime.mil.format.coremltools_import import import_coremltools, in_our_process
if {ours}:
    in_our_process()
import_coremltools()
import coremltools, sklearn
print(coremltools.SEES, sklearn.__file__ is not None)
"""


@pytest.mark.parametrize("ours", [False, True])
def test_sources_are_unseen_only_in_a_process_of_ours_and_only_meanwhile(ours, tmp_path):
    for name, text in (
        ("sklearn", ""),
        ("coremltools", "try:\n    import sklearn\n    SEES = True\nexcept ImportError:\n    SEES = False\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + SCRIPT.format(ours=ours)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [str(not ours), "True"]


def test_a_broken_coremltools_hides_nothing_afterwards(tmp_path):
    (tmp_path / "coremltools").mkdir()
    (tmp_path / "coremltools" / "__init__.py").write_text("raise ImportError('broken on purpose')")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + SCRIPT.format(ours=True).replace(
        "import_coremltools()\nimport coremltools", "try:\n    import_coremltools()\nexcept ImportError as e:\n    print(e)\nimport json"
    ).replace("coremltools.SEES", "sys.modules.get('sklearn') is not None")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")[:2] == [
        "broken on purpose",
        "True True",
    ]
