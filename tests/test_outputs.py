"""Where commands write: nothing of somebody else's, no input, no folder in use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ponita_ff.locks import LockedError
from ponita_ff.outputs import MARK_FILE, OutputError, check_outputs, claim_folder, is_claimed


def test_what_somebody_else_wrote_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    check_outputs([path])
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(
        OutputError, match=rf"{re.escape(str(path))} exists, and this program did not write it.*--force"
    ):
        check_outputs([tmp_path / "new", path])
    check_outputs([path], force=True)
    check_outputs([path], is_ours=lambda found: found == path)
    with pytest.raises(OutputError, match="did not write it"):
        check_outputs([path], is_ours=lambda _: False)


@pytest.mark.parametrize("force", [True, False])
def test_inputs_and_folders_are_never_overwritten(force: bool, tmp_path: Path) -> None:
    path, link = tmp_path / "in.xyz", tmp_path / "link.xyz"
    path.write_text("data", encoding="utf-8")
    link.symlink_to(path)
    for out in (path, link, tmp_path / "." / "in.xyz"):
        with pytest.raises(OutputError, match="is an input of this command"):
            check_outputs([out], [None, "ethanol-rmd17", path], force, lambda _: True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_outputs([tmp_path / "folder"], force=force)


def test_a_folder_of_the_program_s_own(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "out"
    with (
        claim_folder(folder, ["a", "b"]),
        pytest.raises(LockedError, match=r"the folder .*out: process"),
        claim_folder(folder),
    ):
        pass
    (folder / "a").write_text("by the program", encoding="utf-8")
    (folder / "c").write_text("by somebody", encoding="utf-8")
    check_outputs([folder / "a", folder / "b"])
    with pytest.raises(OutputError, match="did not write it"):
        check_outputs([folder / "c"])
    with claim_folder(folder, ["c"]):
        pass
    assert all(is_claimed(folder / name) for name in "abc") and not is_claimed(folder / "d")
    (folder / MARK_FILE).write_text('{"files": 7}', encoding="utf-8")
    assert not is_claimed(folder / "a")


def test_what_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(OSError, match=r"cannot write into the folder .*file/out"),
        claim_folder(tmp_path / "file" / "out"),
    ):
        pass
