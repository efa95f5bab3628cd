"""What the README names exists."""

import re
from pathlib import Path

import pytest

from data_prep.__main__ import VERBS as DATA_PREP_VERBS
from data_prep.mini.affordance import RULES
from data_prep.mini.traps import TRAPS
from hoi_lightning.__main__ import FIT_VERBS, VERBS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_commands_and_configs_exist() -> None:
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"python -m (hoi_lightning|data_prep) (\w+)", text))
    known = {("hoi_lightning", v) for v in (*VERBS, *FIT_VERBS)} | {("data_prep", v) for v in DATA_PREP_VERBS}
    assert commands <= known
    assert {verb for _, verb in commands} >= {"fit", "generate", "evaluate", "build"}
    for config in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (ROOT / config).is_file(), config
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)`?", text)) <= targets


def test_the_mini_world_s_page_tells_its_rules_and_traps() -> None:
    text = (ROOT / "docs/mini_world.md").read_text()
    told = re.findall(r"^\| (\w+) \| ([\w-]+) \| (\d\.\d\d) \|", text, re.MULTILINE)
    rules = [(category, rule.name, f"{rule.share:.2f}") for category, rules in RULES.items() for rule in rules]
    assert told == rules
    assert re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| ", text, re.MULTILINE) == list(TRAPS)
