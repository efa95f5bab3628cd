"""The inspection page: complete in itself, safe, and true to the shards and the ledger."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.inspect import EXAMPLES, choose, read_pictures, survey
from data_prep.inspect_charts import histogram
from hoi_lightning.data.sample import decode
from tests.tiny import write_shards
from tests.whole_folder import DROPS, LAYOUT, read_tar, spoil, write_folder

VOID = {"meta", "img", "br"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("inspect") / "ho3pairs", sdedit=True)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    assert main(["inspect", str(folder)]) == 0
    return (folder / "inspect.html").read_text()


class Parsed(HTMLParser):
    """Tags with their attributes; complains about tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.feed(page)
        assert self.stack == ["html"] or not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def items(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and "item" in (attrs.get("class") or "").split()]


def test_the_page_needs_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    for tag, attrs in parsed.tags:
        assert tag != "link"
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or "#").startswith("#")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_every_pair_is_a_card_with_what_filters_it(page: str) -> None:
    parsed = Parsed(page)
    cards = parsed.items("figure")
    expected = Counter((split, category) for split, categories in LAYOUT for category in categories)
    assert Counter((card["data-split"], card["data-category"]) for card in cards) == expected
    assert {(card["data-event"], card["data-remover"]) for card in cards} == {("Pickup", "none")}
    pictures = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert Counter(picture["alt"] for picture in pictures) == Counter(
        dict.fromkeys(("HOI", "object", "SDEdit", "hand, object, layout"), len(cards))
    )
    data = pictures[0]["src"]
    assert data is not None
    assert Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).size == (160, 160)


def test_drops_are_counted_and_exemplified(page: str) -> None:
    rows = Parsed(page).items("tr")
    examples = Counter(row["data-reason"] for row in rows)
    assert set(examples) == {reason for reason, _ in DROPS} | {"no-actions"}
    assert max(examples.values()) <= EXAMPLES
    for reason, number in DROPS:
        line = re.search(rf"<tr><th><code>{reason}</code>.*?</tr>", page, re.DOTALL)
        assert line is not None
        assert f"<b>{number}</b>" in line[0]


def test_strangers_words_stay_words(folder: Path, tmp_path: Path) -> None:
    nasty = '<script>alert("1")</script>&\''
    copy = shutil.copytree(folder, tmp_path / "copy")

    def rename(records: list) -> None:
        info = json.loads(records[0]["json"]) | {"category": nasty, "event": nasty, "remover": nasty, "instance": nasty}
        records[0]["json"] = json.dumps(info).encode()

    spoil(copy, "val-000000.tar", rename)
    drop = {"sequence": nasty, "frame": nasty, "reason": nasty, "path": nasty, "detail": nasty}
    with (copy / "dropped.jsonl").open("a") as file:
        file.write(json.dumps(drop) + "\n")
    assert main(["inspect", str(copy), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert [tag for tag, _ in Parsed(page).tags].count("script") == 1
    assert "alert" in page


def test_few_pairs_show_every_category_and_split_and_again_the_same(folder: Path) -> None:
    rows = survey(folder, json.loads((folder / "manifest.json").read_text())["shards"])
    assert len(rows) == sum(len(categories) for _, categories in LAYOUT)
    chosen = choose(rows, 6)
    groups = {(row.info.category, row.shard["split"]) for row in chosen}
    assert len(groups) == len(chosen) == 6
    assert chosen == choose(rows, 6)
    assert len(choose(rows, 3)) == 3
    assert choose(rows, 0) == []


def test_the_overlay_tints_the_hand_and_little_else(folder: Path) -> None:
    rows = survey(folder, json.loads((folder / "manifest.json").read_text())["shards"])[:1]
    (pictures,) = read_pictures(folder, rows).values()
    record = read_tar(folder / rows[0].shard["name"])[0]
    sample = decode({name: data for name, data in record.items() if name != "__key__"})
    assert rows[0].area == pytest.approx(sample.hand.mean())
    hoi, overlay = (np.asarray(Image.open(io.BytesIO(pictures[name])), float) for name in ("hoi", "overlay"))
    difference = np.abs(overlay - hoi).mean(-1)
    hand = np.asarray(Image.fromarray(sample.hand).resize((160, 160)))
    either = np.asarray(Image.fromarray(sample.hand | sample.object).resize((160, 160)))
    assert np.median(difference[hand]) > 20
    assert np.median(difference[~either]) < 3


def test_a_histogram_counts_every_value() -> None:
    values = np.random.default_rng(0).normal(size=500)
    for chart in (histogram("x", values, -1, 1), histogram("x", np.exp(values), 0.5, 2, log=True)):
        assert sum(int(count) for count in re.findall(r": (\d+)</title>", chart)) == 500
    assert "<rect" not in histogram("x", [], 0, 1)


def test_a_folder_without_a_ledger_is_shown_too(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "plain", {"train": 3})
    assert main(["inspect", str(shards), "--samples", "2"]) == 0
    parsed = Parsed((shards / "inspect.html").read_text())
    assert len(parsed.items("figure")) == 2
    assert [attrs["alt"] for tag, attrs in parsed.tags if tag == "img"][:3] == ["HOI", "object", "hand, object, layout"]


def test_bad_places_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert main(["inspect", str(folder), "--html", str(tmp_path / "no" / "page.html")]) == 2
    errors = capsys.readouterr().err
    assert "nowhere: no such folder" in errors
    assert "page.html: cannot be written" in errors


@pytest.mark.browser
def test_a_browser_runs_the_script_under_its_policy(page: str, folder: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    url = (folder / "inspect.html").resolve().as_uri()
    shown = subprocess.run([chromium, *flags, url], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "<output>15 of 15 shown</output>" in shown
