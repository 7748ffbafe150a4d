"""docs/inference.md against the code: its settings exist and are all there, its examples are well-formed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "inference.md"
VARIABLE = re.compile(r"DLMESH_[A-Z][A-Z_]*[A-Z]")
# Handed from process to process, or said elsewhere.
INTERNAL = {"DLMESH_KERNEL_SOCKET", "DLMESH_PARAMETERS"}
ELSEWHERE = {"DLMESH_TRITON_HOME", "DLMESH_HTTP_HOST", "DLMESH_HTTP_PORT", "DLMESH_HOME"}


def variables_of(folder: Path) -> set[str]:
    return set().union(*(re.findall(rf'"({VARIABLE.pattern})"', path.read_text()) for path in folder.rglob("*.py")))


def bash_blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_setting_of_inference_is_in_the_guide_and_no_other() -> None:
    named = set(VARIABLE.findall(GUIDE.read_text()))
    service = variables_of(ROOT / "services" / "inference" / "inference_service")
    assert service - INTERNAL - ELSEWHERE - named == set()
    assert named - service - variables_of(ROOT / "gateway") - ELSEWHERE == set()


def test_its_commands_are_a_shells() -> None:
    blocks = bash_blocks()
    assert len(blocks) >= 12
    subprocess.run(["bash", "-n"], input="\n".join(blocks), text=True, check=True)


def test_its_programs_are_pythons_and_its_files_json() -> None:
    for name, content in re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", "\n".join(bash_blocks()), re.M | re.S):
        if name.endswith(".py"):
            ast.parse(content)
        else:
            json.loads(content)


def test_its_bodies_are_json() -> None:
    bodies = re.findall(
        r"^post \S+ '(.*?)'$", "\n".join(re.sub(r" +#.*", "", block) for block in bash_blocks()), re.M | re.S
    )
    assert len(bodies) >= 5
    for body in bodies:
        json.loads(body)


def test_what_it_links_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)", GUIDE.read_text()):
        assert (GUIDE.parent / target).exists(), target
